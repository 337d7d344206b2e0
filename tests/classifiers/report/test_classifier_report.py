"""The report: one file that needs nothing else, says what was found, and works in a browser."""

from __future__ import annotations

import html
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Browser, find_chromium
from model_cases import EMOTIONS, made_up_result, origin, write_result

from classifiers.charts.projection import FILE as PROJECTION
from classifiers.charts.projection import Picture, write_projection
from classifiers.commands.report import command
from classifiers.report import write_report
from classifiers.report.markup import interval, number, p_value, percent, tag
from classifiers.report.page import report_html
from classifiers.report.sections import extract_command, holm
from classifiers.results.metrics import mcnemar
from classifiers.results.result import Result
from classifiers.training.model_folder import PROVENANCE
from extractor import InputError, StoreError
from tests.classifier_cases import ran

NAN = float("nan")
WINDOWS = [(width, scheme) for width in (360, 1280) for scheme in ("light", "dark")]


def add_map(folder: Path, result: Result) -> None:
    points = np.random.default_rng(0).standard_normal((len(result.ids), 3)).astype(np.float32)
    write_projection(Picture("pca", result.ids, points[:, :2], points), folder / PROJECTION)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A good model, one that knows its speakers, and one that was trained in epochs."""
    good = made_up_result(skill=3.0, seed=1)
    known = made_up_result(seeds=(0, 1), speaker_dependent=True, protocol="stratified-kfold")
    deep = made_up_result(seed=2)
    epochs = [{"epoch": e, "train_loss": 1 / e, "val_loss": 1.0, "val_ua": 0.5} for e in (1, 2)]
    for fold in deep.folds[0]:
        fold.history.extend(epochs)
    folder = tmp_path_factory.mktemp("models")
    made = {"good": good, "known": known, "deep": deep}
    for name, result in made.items():
        write_result(folder / name, result)
        add_map(folder / name, result)
    return [folder / name for name in made]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    scores = [
        {"pooling": "mean", "layer": layer, "UA": 0.5 + 0.1 * layer, "WA": 0.5, "macro_f1": None,
         "weighted_f1": 0.5, "deviation": 0.0, "low": 0.4, "high": 0.6 + 0.1 * layer}
        for layer in range(3)
    ]  # fmt: skip
    values = {
        "config": made_up_result(protocol="stratified-kfold").config,
        "classes": EMOTIONS,
        "num_tested": 60,
        "speaker_dependent": True,
        "scores": scores,
        "notes": [],
        "caution": "a little too high",
    }
    folder = tmp_path_factory.mktemp("study")
    (folder / "layer_study.json").write_text(json.dumps(values))
    return folder


@pytest.fixture(scope="module")
def page(models: list[Path], study: Path) -> str:
    """About all of them."""
    return report_html([*models, study], ["hser-report", "a folder/m"])


class Page(HTMLParser):
    """Elements that open and close, ids, and text by section."""

    VOID = ("meta", "link", "br", "hr", "img", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.text: dict[str, str] = {}
        self._section = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        if name not in self.VOID:
            self.open.append(name)
        if found.get("id"):
            self.ids.append(found["id"] or "")
        if name == "section":
            self._section = found.get("id") or ""
        self.references += [
            value or "" for key, value in attributes if key in ("href", "src", "xlink:href", "srcset", "data")
        ]

    def handle_startendtag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(name, attributes)
        if name not in self.VOID:
            self.open.pop()

    def handle_endtag(self, name: str) -> None:
        assert self.open.pop() == name

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text[self._section] = self.text.get(self._section, "") + data + " "


def said(page: str) -> dict[str, str]:
    return {name: re.sub(r"\s+", " ", text) for name, text in Page(page).text.items()}


# What the file is


def test_nothing_is_asked_for_from_anywhere(page: str) -> None:
    assert not re.search(r"https?:|//[\w-]+\.\w|@import|url\((?!#)|\bfetch\(|XMLHttpRequest|\bimport\b", page)
    references = Page(page).references
    assert references
    assert all(each.startswith("#") or each == "data:," for each in references)
    assert "default-src 'none'" in page


def test_the_page_is_well_formed_and_its_ids_are_its_own(page: str) -> None:
    read = Page(page)
    assert read.open == []
    assert len(read.ids) == len(set(read.ids))
    assert {each[1:] for each in read.references if each.startswith("#")} <= set(read.ids)
    assert {"figures", "tests", "study-0", "model-0", "model-1", "model-2", "this-report"} <= set(read.text)


def test_the_same_models_give_the_same_page(models: list[Path], study: Path, page: str) -> None:
    assert report_html([*models, study], ["hser-report", "a folder/m"]) == page


def test_names_from_outside_are_text_and_never_markup(tmp_path: Path) -> None:
    bad = "</script><script>alert(1)</script>"
    classes = (bad, "{{data}}", 'quote" onload="x')
    ids = [f"{bad}{k}" for k in range(60)]
    result = made_up_result(classes, ids=ids)
    result.notes.append(f"note {bad}")
    write_result(tmp_path / "m", result, model=bad)
    add_map(tmp_path / "m", result)
    page = report_html([tmp_path / "m"])
    assert page.count("<script") == 2  # the data, and the page's own
    assert bad not in page
    assert Page(page).open == []
    data = page.split('id="maps">', 1)[1].split("</script>", 1)[0]
    assert json.loads(data)["0"]["ids"] == ids
    assert json.loads(data)["0"]["classes"] == list(classes)


# What it says


def test_figures_have_their_intervals(models: list[Path], page: str) -> None:
    text = said(page)["figures"]
    for folder in models:
        figures = Result.load(folder).figures()
        for name in ("UA", "WA", "macro_f1", "weighted_f1"):
            assert percent(figures["mean"][name]) in text
            assert interval(figures["interval"][name]) in text
            assert interval(figures["interval_by_speaker"][name]) in text
        assert number(figures["mean"]["ece"]) in text


def test_speaker_dependent_is_said_wherever_the_protocol_is(models: list[Path], study: Path) -> None:
    good, known, _ = models
    text = said(report_html([good, known, study]))
    assert text["figures"].count("speaker-dependent") == 1
    assert "speaker-dependent" in text["model-1"]
    assert "speaker-dependent" not in text["model-0"]
    assert "speaker-dependent" in text["study-0"]
    assert "only one of them is speaker-dependent" in text["tests"]
    assert "speaker-dependent" not in " ".join(said(report_html([good])).values())


def test_differences_are_mcnemars(models: list[Path]) -> None:
    first, _, third = (Result.load(folder) for folder in models)
    test = mcnemar(first.predictions[0], third.predictions[0])
    text = said(report_html([models[0], models[2]]))["tests"]
    p = p_value(test["p_value"])
    assert f"good against deep {test['n10']} {test['n01']} {p} {p}" in text


def test_models_that_cannot_be_compared_say_why(models: list[Path], tmp_path: Path) -> None:
    write_result(tmp_path / "others", made_up_result(ids=[f"x{k}" for k in range(60)]))
    write_result(tmp_path / "classes", made_up_result(("a", "b")))
    text = said(report_html([models[0], tmp_path / "others", tmp_path / "classes"]))["tests"]
    assert "tested on the same recordings" in text
    assert text.count("they tell different classes apart") == 2


def test_holms_correction() -> None:
    """By hand: 3 x 0.01; the larger of 2 x 0.03 and that; the larger of 0.04 and those."""
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_what_is_not_a_number_is_shown_as_a_dash(tmp_path: Path) -> None:
    """One class in the test rows has no ROC; a class that nobody is of has no recall."""
    result = made_up_result(labels=[0] * 60)
    write_result(tmp_path / "m", result)
    assert np.isnan(result.figures()["mean"]["roc_auc"])
    page = report_html([tmp_path / "m"])
    assert not re.search(r"\b(nan|inf|NaN|Infinity|None|null)\b", " ".join(said(page).values()))
    assert re.search(r"fear 0 - ", said(page)["model-0"])
    for value in (None, NAN, float("inf")):
        assert {percent(value), number(value), p_value(value), interval([value, 0.5])} == {"-"}


def test_a_layer_study_is_shown_with_its_caution(page: str) -> None:
    text = said(page)["study-0"]
    assert "a little too high" in text
    assert "mean:2 70.0 40.0 to 80.0 50.0 - 50.0" in text


def test_where_embeddings_came_from_and_the_commands_are_there(models: list[Path], page: str) -> None:
    text = said(page)
    assert "hubert-large" in text["model-0"]
    assert f"hser-train --config {models[0]}/config.yaml --out {models[0]}" in text["model-0"]
    assert "hser-report 'a folder/m'" in text["this-report"]


def test_the_extract_command_has_what_is_not_the_default() -> None:
    assert extract_command(origin()) == (
        "hser-extract RECORDINGS --model hubert-large --layers all --pooling mean --dtype bf16 --out runs/x"
    )
    augmented = origin(
        augmentation="1*gain:db=3", copies=2, seed=7, clean=False, window_seconds=20.0, channel=1
    )
    assert extract_command(augmented).endswith(
        "--channel 1 --window 20.0 --augment '1*gain:db=3' --copies 2 --seed 7 --no-clean"
    )


def test_markup_is_escaped_but_once() -> None:
    assert tag("p", tag("b", "a<b"), "&", title='"') == '<p title="&quot;"><b>a&lt;b</b>&amp;</p>'
    assert html.unescape(tag("p", "<&>\"'")) == "<p><&>\"'</p>"


# Refusals


def test_what_is_no_model_is_refused_by_name(models: list[Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreError, match="empty"):
        report_html([models[0], tmp_path / "empty"])
    with pytest.raises(InputError, match="named twice"):
        report_html([models[0], models[0].parent / "good"])
    damaged = tmp_path / "damaged"
    shutil.copytree(models[0], damaged)
    (damaged / PROVENANCE).write_text("{")
    with pytest.raises(StoreError, match=PROVENANCE):
        report_html([damaged])


def test_the_command_writes_one_file(models: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "a" / "report"
    assert "index.html" in ran(command, models[0], "--out", out).output
    assert [path.name for path in out.iterdir()] == ["index.html"]


def test_models_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for parent in ("a", "b"):
        write_result(tmp_path / parent / "svm", made_up_result())
    text = said(report_html([tmp_path / "a" / "svm", tmp_path / "b" / "svm"]))
    assert "a/svm" in text["model-0"] and "b/svm" in text["model-1"]


# In a browser


@pytest.fixture
def browser(tmp_path: Path) -> Any:
    with Browser(find_chromium(), tmp_path / "profile") as opened:
        yield opened


@pytest.fixture(scope="module")
def address(models: list[Path], study: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of the report about all of them."""
    return write_report([*models, study], tmp_path_factory.mktemp("report"), ["hser-report", "x"]).as_uri()


READY = "document.readyState === 'complete' && document.querySelectorAll('.legend button').length > 0"
COVERED = """(() => {
  const canvas = document.querySelector("#model-0 canvas");
  const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  let sum = 0;
  for (let i = 3; i < data.length; i += 4) sum += data[i] > 0;
  return sum;
})()"""
PICTURE = "document.querySelector('#model-0 canvas').toDataURL()"


def test_the_page_fits_every_screen_and_asks_for_nothing(browser: Browser, address: str) -> None:
    browser.open(address)
    browser.wait_for(READY)
    for width, scheme in WINDOWS:
        browser.show_as(width, 800, scheme)
        assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth"), (width, scheme)
        letters = browser.evaluate("getComputedStyle(document.querySelector('figure svg text')).fill")
        assert letters == browser.evaluate("getComputedStyle(document.body).color"), (
            "letters of charts are as dark or light as the page's"
        )
        small = browser.evaluate(
            """Math.min(...[...document.querySelectorAll("figure svg")].map((svg) =>
              svg.getBoundingClientRect().width / svg.viewBox.baseVal.width))"""
        )
        assert small > 0.8, "charts are not shrunk until nobody can read them"
    browser.evaluate("new Promise((done) => requestAnimationFrame(done))")
    assert (browser.requests, browser.complaints) == ([address], [])


def test_the_map_turns_by_keyboard_and_by_dragging(browser: Browser, address: str) -> None:
    browser.open(address)
    browser.wait_for(READY)
    browser.wait_for(COVERED, lambda pixels: pixels > 500)
    flat = browser.evaluate(PICTURE)
    browser.evaluate("document.querySelector('#model-0 canvas').focus()")
    browser.press("ArrowLeft")
    assert browser.evaluate(PICTURE) == flat, "two dimensions have nothing to turn"
    browser.evaluate("document.querySelector('#model-0 [data-dims=\"3\"]').click()")
    seen = [flat, browser.evaluate(PICTURE)]
    for key in ("ArrowLeft", "ArrowUp", "+"):
        browser.press(key)
        seen.append(browser.evaluate(PICTURE))
    browser.evaluate("document.querySelector('#model-0 canvas').scrollIntoView({block: 'center'})")
    x, y = browser.evaluate(
        "(() => {const b = document.querySelector('#model-0 canvas').getBoundingClientRect();"
        " return [b.x + b.width / 2, b.y + b.height / 2]})()"
    )
    browser.click(x, y, x + 60, y + 10)
    browser.send("Input.dispatchMouseEvent", type="mouseMoved", x=2, y=2)
    seen.append(browser.evaluate(PICTURE))
    assert len(set(seen)) == len(seen), "each of them is another view"
    assert browser.complaints == []


def test_classes_are_hidden_and_errors_picked_out(browser: Browser, address: str) -> None:
    browser.open(address)
    browser.wait_for(READY)
    every = browser.wait_for(COVERED, lambda pixels: pixels > 500)
    browser.evaluate("document.querySelector('#model-0 [data-wrong]').click()")
    wrong = browser.evaluate(COVERED)
    assert 0 < wrong < every
    browser.evaluate("document.querySelectorAll('#model-0 .legend button').forEach((each) => each.click())")
    assert browser.evaluate(COVERED) == 0
    pressed = "[...document.querySelectorAll('#model-0 .legend button')].map((b) => b.ariaPressed)"
    assert browser.evaluate(pressed) == ["false"] * 3


def test_paper_is_light_and_whole(browser: Browser, address: str) -> None:
    browser.open(address, scheme="dark")
    browser.wait_for(READY)
    browser.send("Emulation.setEmulatedMedia", media="print")
    paper, ink = browser.evaluate(
        "[getComputedStyle(document.documentElement).getPropertyValue('--field').trim(),"
        " getComputedStyle(document.documentElement).getPropertyValue('--ink').trim()]"
    )
    assert (paper, ink) == ("#fbfcfc", "#17212b")
    browser.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert browser.evaluate("[...document.querySelectorAll('details')].every((each) => each.open)")
