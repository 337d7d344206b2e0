"""The page's server: what it answers, what it refuses, and that it keeps nothing."""

from __future__ import annotations

import io
import re
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile

from tests.classifier_cases import clustered, refused, write_embeddings

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")

from starlette.testclient import TestClient

from classifiers import lookup
from classifiers.commands.lookup import hser_lookup
from classifiers.service import server
from classifiers.service.app import make_app
from classifiers.service.uploads import Limits
from extractor import SettingsError, extract
from extractor.types import SAMPLE_RATE

WAV = {"content-type": "audio/wav"}


def tone(hertz: float, seconds: float = 0.75, rate: int = SAMPLE_RATE) -> np.ndarray:
    noise = np.random.default_rng(round(hertz)).standard_normal(round(rate * seconds))
    return 0.2 * np.sin(2 * np.pi * hertz * np.arange(len(noise)) / rate) + 0.01 * noise


def encoded(samples: np.ndarray, rate: int = SAMPLE_RATE, kind: str = "WAV") -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=kind)
    return buffer.getvalue()


def encoded_by_ffmpeg(
    kind: str, codec: str, seconds: float, rate: int, bit_rate: int, form: str = "fltp", **options: str
) -> bytes:
    buffer = io.BytesIO()
    samples = np.zeros((1, round(seconds * rate)), np.float32)
    samples[0, ::100] = 0.1
    with av.open(buffer, "w", format=kind, options=options) as out:
        stream = out.add_stream(codec, rate=rate)
        stream.bit_rate = bit_rate
        for start in range(0, samples.shape[1], rate):
            frame = av.AudioFrame.from_ndarray(samples[:, start : start + rate], form, "mono")
            frame.sample_rate, frame.pts = rate, start
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return buffer.getvalue()


def streamed_webm(seconds: float) -> bytes:
    """Opus at 6 kbit/s in a WebM without a length, as browsers record it."""
    return encoded_by_ffmpeg("webm", "libopus", seconds, 48_000, 6_000, "flt", live="1")


def untagged_mp3(seconds: float, bit_rate: int) -> bytes:
    tags = {"write_xing": "0", "id3v2_version": "0"}
    return encoded_by_ffmpeg("mp3", "libmp3lame", seconds, SAMPLE_RATE, bit_rate, **tags)


def answered(page: TestClient, content: Any, kind: str = "audio/wav") -> tuple[int, Any]:
    """Status and JSON of an upload."""
    answer = page.post("/api/query", content=content, headers={"content-type": kind})
    return answer.status_code, answer.json()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight recordings: WAV, one of each other kind that differs here, and one that is gone since."""
    folder = tmp_path_factory.mktemp("tones")
    names = [*(f"n{i}.wav" for i in range(5)), "n5.flac", "n6.aiff", "n7.wav"]
    for i, name in enumerate(names):
        soundfile.write(folder / name, tone(200 * (i + 1)), SAMPLE_RATE)
    spans = [*(f"{name},," for name in names), "n0.wav,0.1,0.5"]
    lines = [f"r{i},{span},{('anger', 'fear')[i % 2]},s{i % 3}" for i, span in enumerate(spans)]
    (folder / "tones.csv").write_text("\n".join(["id,path,start,end,emotion,speaker", *lines]) + "\n")
    path = tmp_path_factory.mktemp("runs") / "tones"
    extract(folder / "tones.csv", model="mfcc", out=path)
    (folder / "n7.wav").unlink()
    return path


@contextmanager
def client(run: Path, limits: Limits | None = None, **options: Any) -> Iterator[TestClient]:
    app = make_app(lookup.open(run), "pca", limits, **options)
    with TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as made:
        yield made


@pytest.fixture(scope="module")
def page(run: Path) -> Iterator[TestClient]:
    with client(run) as made:
        yield made


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go during the test."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


# --- what it answers


def test_the_map_has_every_row_once_with_its_labels(page: TestClient, run: Path) -> None:
    drawn = page.get("/api/map").json()
    store = lookup.open(run).store
    assert drawn["id"] == store.ids
    assert drawn["emotion"] == store.labels("emotion")
    assert drawn["num_rows"] == len(store) == len(set(drawn["position"]))
    assert np.isfinite([drawn["x"], drawn["y"]]).all()


def test_a_row_has_the_neighbours_and_the_vote_of_a_search(page: TestClient, run: Path) -> None:
    hits = lookup.open(run).search(row="r3", k=4)
    answer = page.get("/api/rows/3", params={"k": 4}).json()
    assert answer["id"] == "r3"
    assert [each["id"] for each in answer["neighbours"]] == [each.id for each in hits.neighbours]
    assert {each["emotion"]: each["share"] for each in answer["vote"]} == hits.vote
    assert (answer["winner"], answer["margin"]) == (hits.winner, hits.margin)
    assert answer["duration"] == 0.75


def test_an_uploaded_recording_of_the_run_lies_where_its_row_lies(page: TestClient) -> None:
    _, answer = answered(page, encoded(tone(600)))
    drawn = page.get("/api/map").json()
    assert answer["neighbours"][0]["id"] == "r2"
    # The same samples give the same embedding; the map is rounded to 5 places.
    assert [answer["x"], answer["y"]] == pytest.approx([drawn["x"][2], drawn["y"][2]], abs=1e-5)


def test_what_browsers_record_is_looked_up(page: TestClient) -> None:
    status, answer = answered(page, streamed_webm(1.0), "audio/webm")
    assert (status, len(answer["neighbours"])) == (200, 9)


def test_a_row_without_a_neighbour_that_may_be_one_has_no_vote(tmp_path: Path) -> None:
    with client(write_embeddings(tmp_path / "one", np.ones((1, 1, 4)), [{"emotion": "anger"}])) as page:
        answer = page.get("/api/rows/0").json()
        assert (answer["neighbours"], answer["vote"], answer["winner"]) == ([], [], None)
        assert len(page.get("/api/map").json()["x"]) == 1


def test_ids_are_found_by_a_part_of_them_beginnings_first(tmp_path: Path) -> None:
    names = ["xa1", *(f"A{i}" for i in range(30))]
    vectors, labels = clustered(31, 4)
    with client(write_embeddings(tmp_path / "run", vectors, labels, ids=names)) as page:
        found = page.get("/api/ids", params={"contains": "a1"}).json()
        assert [row["id"] for row in found["rows"]] == ["A1", *(f"A1{i}" for i in range(10)), "xa1"]
        many = page.get("/api/ids", params={"contains": "a"}).json()
        assert (len(many["rows"]), many["num_rows"]) == (20, 31)


# --- the recordings of rows


def test_a_whole_recording_is_its_own_file_in_ranges_too(page: TestClient, run: Path) -> None:
    for position, kind in ((1, "audio/wav"), (5, "audio/flac")):
        data = Path(lookup.open(run).store.paths[position]).read_bytes()
        answer = page.get(f"/api/audio/{position}")
        assert (answer.content, answer.headers["content-type"]) == (data, kind)
        part = page.get(f"/api/audio/{position}", headers={"range": "bytes=100-199"})
        assert (part.status_code, part.content) == (206, data[100:200])


SPAN = slice(round(0.1 * SAMPLE_RATE), round(0.5 * SAMPLE_RATE))


def plays(page: TestClient, position: int, expected: np.ndarray) -> None:
    samples, rate = soundfile.read(io.BytesIO(page.get(f"/api/audio/{position}").content))
    assert (rate, len(samples)) == (SAMPLE_RATE, len(expected))
    assert np.abs(samples - expected).max() <= 1.5 / 2**15  # rounded to 16 bits twice: file and answer


def test_a_segment_is_cut_and_what_browsers_do_not_play_is_decoded(page: TestClient) -> None:
    plays(page, 8, tone(200)[SPAN])
    plays(page, 6, tone(1400))


def test_a_segment_is_heard_by_the_channel_that_its_row_is_of(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "two.wav", np.stack([tone(300), tone(900)], axis=1), SAMPLE_RATE)
    (tmp_path / "two.csv").write_text("path,start,end\ntwo.wav,0.1,0.5\n")
    extract(tmp_path / "two.csv", model="mfcc", out=tmp_path / "run", channel=1)
    with client(tmp_path / "run") as page:
        plays(page, 0, tone(900)[SPAN])


@pytest.mark.parametrize(
    ("asked", "status", "part"),
    [
        ("bytes=10-19", 206, slice(10, 20)),
        ("bytes=10-", 206, slice(10, None)),
        ("bytes=-7", 206, slice(-7, None)),
        ("bytes=0-99999999", 206, slice(0, None)),
        ("bytes=99999999-", 416, slice(0, 0)),
        ("bytes=9-3", 416, slice(0, 0)),
        ("bytes=-0", 416, slice(0, 0)),
        ("bytes=-", 200, slice(0, None)),
        ("lines=1-2", 200, slice(0, None)),
    ],
)
def test_decoded_audio_has_ranges(page: TestClient, asked: str, status: int, part: slice) -> None:
    whole = page.get("/api/audio/8").content
    answer = page.get("/api/audio/8", headers={"range": asked})
    assert (answer.status_code, answer.content) == (status, whole[part])
    if status == 206:
        first, last = part.indices(len(whole))[:2]
        assert answer.headers["content-range"] == f"bytes {first}-{last - 1}/{len(whole)}"


def test_a_recording_that_is_gone_says_so(page: TestClient) -> None:
    answer = page.get("/api/audio/7")
    assert (answer.status_code, answer.json()) == (404, {"error": "r7: no such file"})


def test_a_file_that_is_no_audio_is_not_handed_out(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("the password")
    vectors, labels = clustered(3, 4)
    run = write_embeddings(tmp_path / "run", vectors, labels, paths=[str(secret), "/dev/zero", str(tmp_path)])
    with client(run) as page:
        for position in range(3):
            answer = page.get(f"/api/audio/{position}")
            assert answer.status_code == 404
            assert b"password" not in answer.content


# --- what it refuses


@pytest.mark.parametrize("position", ["9", "-1", "99999999999999999999999"])
def test_an_unknown_position_is_not_found(page: TestClient, position: str) -> None:
    for answer in (page.get(f"/api/{what}/{position}") for what in ("rows", "audio")):
        assert answer.status_code == 404 and position in answer.json()["error"]


PATHS = """
/static/../app.py /static/%2e%2e/app.py /static/..%2fapp.py /static/%2e%2e%2f%2e%2e%2fserver.py
/static//etc/passwd /static/%2fetc%2fpasswd /static/..%5capp.py /api/audio/..%2f..%2fetc%2fpasswd
/api/audio/%2fetc%2fpasswd /api/audio/0/../../../etc/passwd /api/audio/0%00 /docs /openapi.json
"""


@pytest.mark.parametrize("path", PATHS.split())
def test_no_path_leads_to_another_file(page: TestClient, path: str) -> None:
    answer = page.get(path)
    assert answer.status_code in (404, 422)
    assert set(answer.json()) == {"error"}


def test_too_many_bytes_are_refused_whether_stated_or_not(run: Path, kept: Path) -> None:
    def chunks() -> Iterator[bytes]:  # sent without a length
        for _ in range(64):
            yield bytes(1024)

    with client(run, Limits(num_bytes=16 * 1024)) as page:
        for content in (bytes(16 * 1024 + 1), chunks()):
            assert answered(page, content) == (413, {"error": "larger than 0.015625 MB"})
    assert not list(kept.iterdir())


@pytest.mark.parametrize("kind", ["wav", "flac", "webm", "mpeg"])
def test_too_long_a_recording_is_refused_with_the_reason(run: Path, kept: Path, kind: str) -> None:
    """The length of an MP3 without a tag is guessed from its first frame: here 3 s, and it lasts 21 s."""
    most = 10 if kind == "mpeg" else 2
    if kind == "mpeg":
        long = untagged_mp3(1.0, 160_000) + untagged_mp3(20.0, 8_000)
    else:
        long = streamed_webm(3.0) if kind == "webm" else encoded(tone(300, 3.0), kind=kind.upper())
    with client(run, Limits(duration=most)) as page:
        status, answer = answered(page, long, f"audio/{kind}")
        assert status == 422 and answer["error"].startswith(f"longer than {most} s")
    assert not list(kept.iterdir())


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"no audio at all", "not a recording in a format that is known here"),
        (b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n", "not a recording in a format that is known here"),
        (encoded(tone(300))[:5000], "cut short"),
        (encoded(np.zeros(200)), "too short: 200 samples"),
        (b"\x1aE\xdf\xa3" + bytes(4000), ""),
    ],
)
def test_what_cannot_be_looked_up_is_refused_with_the_reason(
    page: TestClient, kept: Path, content: bytes, reason: str
) -> None:
    status, answer = answered(page, content)
    assert status == 422 and answer["error"].startswith(reason)
    assert str(kept) not in answer["error"]
    assert not list(kept.iterdir())


def test_forms_of_other_sites_are_not_taken(page: TestClient) -> None:
    for headers in ({"content-type": "text/plain"}, {"content-type": "multipart/form-data; boundary=x"}):
        assert page.post("/api/query", content=encoded(tone(300)), headers=headers).status_code == 415
    for headers in ({"sec-fetch-site": "cross-site"}, {"origin": "http://evil.example"}, {"origin": "null"}):
        answer = page.post("/api/query", content=encoded(tone(300)), headers={**WAV, **headers})
        assert (answer.status_code, answer.json()) == (403, {"error": "asked from another site"})
    own = {"origin": "http://localhost", "sec-fetch-site": "same-origin"}
    assert page.post("/api/query", content=encoded(tone(300)), headers={**WAV, **own}).status_code == 200


def test_a_foreign_name_for_this_machine_is_refused(page: TestClient, run: Path) -> None:
    for host in ("evil.example", "evil.example:8000", "localhost.evil.example", "[::1", "", "127.0.0.2"):
        answer = page.get("/api/map", headers={"host": host})
        assert answer.status_code == 400
        assert set(answer.json()) == {"error"}
    for host in ("localhost", "localhost:8123", "127.0.0.1:8000", "[::1]:8000", "LOCALHOST"):
        assert page.get("/api/run", headers={"host": host}).json()["index"] == "exact, in memory"
    with client(run, hosts=None) as open_page:
        assert open_page.get("/api/run", headers={"host": "lab.example"}).status_code == 200
    assert server.hosts_of("127.0.0.1") == server.hosts_of("localhost")
    assert "127.0.0.5" in (server.hosts_of("127.0.0.5") or ())
    assert server.hosts_of("0.0.0.0") is server.hosts_of("::") is None


def test_every_answer_has_the_security_headers(page: TestClient) -> None:
    paths = ("/", "/static/app.js", "/static/base.css", "/api/map", "/api/audio/1", "/nowhere")
    for answer in [page.get("/", headers={"host": "evil.example"}), *map(page.get, paths)]:
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'self';")
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in answer.headers


def test_what_the_page_names_is_served(page: TestClient) -> None:
    named = re.findall(r'(?:href|src)="(/[^"]+)"', page.get("/").text)
    assert {"/static/base.css", "/static/style.css", "/static/app.js"} <= set(named)
    assert [page.get(path).status_code for path in named] == [200] * len(named)


def test_the_page_refers_to_nothing_outside() -> None:
    static = [Path(server.__file__).parents[1] / room / "static" for room in ("service", "report")]
    for file in [file for folder in static for file in folder.iterdir()]:
        text = file.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "//" not in "".join(part for part in text.split() if "http" in part), file
        if file.suffix == ".html":
            assert "style=" not in text
            assert "onclick" not in text


# --- time and many at once


class Slow:
    """A lookup whose queries wait until they are let go."""

    def __init__(self, run: Path) -> None:
        self._opened = lookup.open(run)
        self.go = threading.Event()
        self.running = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._opened, name)

    def embed(self, *args: Any, **options: Any) -> Any:
        self.running += 1
        assert self.go.wait(20)
        try:
            return list(self._opened.embed(*args, **options))
        finally:
            self.running -= 1


def test_time_out_and_too_many_at_once(run: Path, kept: Path) -> None:
    slow = Slow(run)
    limits = Limits(time=1.0, at_once=3, workers=2)
    content = encoded(tone(300))
    with TestClient(make_app(slow, "pca", limits), base_url="http://localhost") as page:

        def post(_: int = 0) -> tuple[int, str]:
            status, answer = answered(page, content)
            return status, answer.get("error", "")

        with ThreadPoolExecutor(8) as pool:
            answers = sorted(pool.map(post, range(8)))
        assert {status for status, _ in answers} == {503, 504}
        assert answers.count((504, "took longer than 1 s; try a shorter one")) >= 2
        # Two hang in the threads and keep their places; one place is left, which waits for a thread.
        assert slow.running == 2
        for _ in range(2):  # it is free again after each
            with ThreadPoolExecutor(2) as pool:
                answers = sorted(pool.map(post, range(2)))
            assert [status for status, _ in answers] == [503, 504]
        slow.go.set()
        until = time.monotonic() + 20  # seconds; they need a fraction of one
        while slow.running or list(kept.iterdir()):
            assert time.monotonic() < until
            time.sleep(0.01)
        while (answer := post())[0] == 503:
            assert time.monotonic() < until
        assert answer == (200, "")
    assert not list(kept.iterdir())


def test_recordings_at_the_same_time_do_not_touch_each_other(run: Path) -> None:
    with client(run, Limits(at_once=8)) as page, ThreadPoolExecutor(4) as pool:

        def first(i: int) -> str:
            return answered(page, encoded(tone(200 * (i + 1))))[1]["neighbours"][0]["id"]

        assert list(pool.map(first, [0, 1, 2, 3, 4] * 2)) == ["r0", "r1", "r2", "r3", "r4"] * 2


# --- the command


def test_serve_names_the_extra_that_is_missing(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "find_spec", lambda name: None if name == "uvicorn" else object())
    message = refused(hser_lookup, "serve", run, error=SettingsError)
    assert "needs uvicorn: pip install 'hser[serve]'" in message
