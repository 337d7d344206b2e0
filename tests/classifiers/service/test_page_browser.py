"""The page in a headless Chromium, with real recordings: what a person does with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import soundfile
from browser import Browser, find_chromium
from conftest import shared
from test_page_slow import serving

from classifiers import lookup
from classifiers.service.uploads import Limits
from extractor import extract

READY = "document.getElementById('waiting')?.hidden === true"
SHOWN = "!document.getElementById('result').hidden && document.getElementById('result-title').textContent"
NEIGHBOURS = "[...document.querySelectorAll('#neighbours .id')].map((each) => each.textContent)"
STATUS = "document.getElementById('status').textContent"
WAVE_DRAWN = "document.getElementById('clock').textContent.endsWith('/ 1.9 s')"  # 03a01Fa.wav lasts 1.9 s
WINDOWS = ((1280, 800), (360, 740))


@pytest.fixture(scope="module")
def recordings() -> Path:
    return shared("emodb") / "wav"


@pytest.fixture(scope="module")
def address(recordings: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of the page of EmoDB."""
    run = tmp_path_factory.mktemp("runs") / "emodb"
    extract(recordings, model="mfcc", pooling="meanstd", out=run, device="cpu")
    with serving(lookup.open(run), Limits()) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def browser(address: str, recordings: Path, tmp_path: Path) -> Iterator[Browser]:
    """Its microphone hears a recording of EmoDB, again and again. It must have nothing to complain of."""
    heard = recordings / "03a01Wa.wav"
    allowed = ("--use-fake-ui-for-media-stream", f"--use-file-for-fake-audio-capture={heard}")
    with Browser(find_chromium(), tmp_path / "profile", *allowed) as made:
        yield made
        made.evaluate("0")  # what was still under way is noted
        assert made.complaints == []
        foreign = [url for url in made.requests if not url.startswith((address, f"blob:{address}"))]
        assert foreign == []


def open_page(
    browser: Browser, address: str, width: int = 1280, height: int = 800, scheme: str = "light"
) -> None:
    browser.open(f"{address}/", width, height, scheme)
    browser.wait_for(READY)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_an_opened_file_gives_neighbours_in_any_window(
    browser: Browser, address: str, recordings: Path, scheme: str
) -> None:
    for width, height in WINDOWS:
        open_page(browser, address, width, height, scheme)
        browser.choose_file("#file", recordings / "03a01Fa.wav")
        assert browser.wait_for(SHOWN) == "03a01Fa.wav"
        found = browser.evaluate(NEIGHBOURS)
        assert len(found) == 10
        assert found[0] == "03a01Fa"
        assert "Vote: happiness" in browser.evaluate(STATUS)
        browser.wait_for(WAVE_DRAWN)
        assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
        # WCAG 2.2, 2.5.8: at least 24 px to press; 32 is kept.
        low = "[...document.querySelectorAll('button')].filter((b) => b.offsetParent && b.offsetHeight < 32)"
        assert browser.evaluate(f"{low}.map((b) => b.outerHTML)") == []


def test_points_are_heard_and_walked_through_by_keyboard(browser: Browser, address: str) -> None:
    open_page(browser, address)
    browser.press("/", "/")
    assert browser.evaluate("document.activeElement.id") == "find"
    for key in "11b09fd":
        browser.press(key, key)
    browser.wait_for("document.querySelectorAll('#found [role=option]').length === 1")
    browser.press("Enter", "\r")
    assert browser.wait_for(SHOWN) == "11b09Fd"
    assert browser.evaluate("document.activeElement.id") == "map"
    browser.wait_for(f"{NEIGHBOURS}.length === 10")
    before = browser.evaluate(NEIGHBOURS)
    browser.press("Enter", "\r")
    browser.wait_for("parseFloat(document.getElementById('clock').textContent) > 0")
    assert browser.evaluate("document.getElementById('play').ariaLabel") == "Pause 11b09Fd"
    browser.press("ArrowLeft")
    went = browser.wait_for(SHOWN, lambda title: title != "11b09Fd")
    assert went in before
    browser.press("Escape")
    browser.wait_for("document.getElementById('result').hidden")


def test_the_microphone_is_looked_up(browser: Browser, address: str) -> None:
    open_page(browser, address)
    browser.evaluate("document.getElementById('record').click()")
    browser.wait_for("parseFloat(document.getElementById('record-label').textContent.slice(5)) > 2.5")
    browser.evaluate("document.getElementById('record').click()")
    assert browser.wait_for(SHOWN) == "Microphone"
    # What was played to it, through Opus and from some place on.
    assert browser.evaluate(NEIGHBOURS)[0] == "03a01Wa"


def test_a_microphone_that_is_refused_is_explained(address: str, tmp_path: Path) -> None:
    with Browser(find_chromium(), tmp_path / "profile", "--deny-permission-prompts") as browser:
        open_page(browser, address)
        browser.evaluate("document.getElementById('record').click()")
        browser.wait_for(STATUS, lambda text: text.startswith("The microphone was not allowed."))


def test_the_legend_hides_an_emotion(browser: Browser, address: str) -> None:
    open_page(browser, address)
    # Ink on the map, as a number of pixels that are drawn on.
    drawn = (
        "(() => { const map = document.getElementById('map'); const [w, h] = [map.width, map.height];"
        " const copy = new OffscreenCanvas(w, h).getContext('2d', { willReadFrequently: true });"
        " copy.drawImage(map, 0, 0); const data = copy.getImageData(0, 0, w, h).data; let n = 0;"
        " for (let i = 3; i < data.length; i += 4) n += data[i] > 0; return n; })()"
    )
    all_of_it = browser.wait_for(drawn, lambda pixels: pixels > 1000)
    browser.evaluate("document.querySelector('#legend button').click()")
    browser.wait_for(drawn, lambda pixels: 0 < pixels < 0.9 * all_of_it)
    assert browser.evaluate("document.querySelector('#legend button').ariaPressed") == "false"
    browser.evaluate("document.querySelector('#legend button').click()")
    browser.wait_for(drawn, lambda pixels: pixels == all_of_it)


def test_a_point_is_named_under_the_pointer_and_shown_by_a_click(browser: Browser, address: str) -> None:
    open_page(browser, address)
    place = browser.evaluate(
        "(async () => { const at = document.getElementById('map').getBoundingClientRect();"
        " const map = await (await fetch('/api/map')).json();"
        " return [at.left, at.top, at.width, at.height, map.x, map.y, map.id]; })()"
    )
    left, top, width, height, x, y, ids = place
    # As the page lays it out: one scale for both axes, 28 px of margin, the middle in the middle.
    scale = min((width - 56) / (max(x) - min(x)), (height - 56) / (max(y) - min(y)))
    rightmost = x.index(max(x))
    px = left + width / 2 + (x[rightmost] - (max(x) + min(x)) / 2) * scale
    py = top + height / 2 - (y[rightmost] - (max(y) + min(y)) / 2) * scale
    browser.click(px, py)
    assert ids[rightmost] in browser.wait_for("document.getElementById('tip').textContent")
    assert browser.wait_for(SHOWN) == ids[rightmost]


def test_what_cannot_be_looked_up_is_explained(address: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no audio")
    soundfile.write(tmp_path / "long.flac", [0.1, -0.1] * (8_000 * 121), 16_000)
    with Browser(find_chromium(), tmp_path / "profile") as browser:
        open_page(browser, address)
        for name, reason in (("notes.txt", "not a recording"), ("long.flac", "longer than 120 s")):
            browser.choose_file("#file", tmp_path / name)
            browser.wait_for(STATUS, lambda text, reason=reason: text.startswith(reason))
            assert browser.evaluate("document.getElementById('result').hidden")
