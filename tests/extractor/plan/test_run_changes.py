"""A run says what its input says now: the same command on a corrected input brings it up to date."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from run_cases import Notes, embed, labels, rows, sound, stopped, table, three_recordings

from extractor import InputError, Store
from extractor.audio import files
from extractor.index import Index
from extractor.plan import changes
from extractor.run.batch import BatchEncoder
from extractor.run.engine import run
from extractor.run.options import Options
from extractor.store.verify import verify


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return three_recordings(tmp_path)


@pytest.fixture
def out(data: Path, tmp_path: Path) -> Path:
    embed(data / "m.csv", tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def encodes_nothing(monkeypatch: pytest.MonkeyPatch, out: Path) -> None:
    def refuse(self: Any, job: Any) -> None:
        raise AssertionError("it was encoded again")

    monkeypatch.setattr(BatchEncoder, "__call__", refuse)


def no_stamps(out: Path) -> None:
    """As runs were before sizes and times were noted."""
    lines = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("size"), line.pop("mtime_ns")
    text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
    (out / "manifest.jsonl").write_text(text)


# --- labels


@pytest.mark.usefixtures("encodes_nothing")
def test_corrected_labels_are_the_run_s_without_encoding(data: Path, out: Path) -> None:
    before, notes = rows(out), Notes()
    table(data, "path,emotion,speaker a.wav,anger,s1 b.wav,disgust,s1 c.wav,joy,s9")
    summary = embed(data / "m.csv", out, notes)
    assert labels(out, "emotion") == {"a": "anger", "b": "disgust", "c": "happiness"}
    assert labels(out, "speaker") == {"a": "s1", "b": "s1", "c": "s9"}
    assert rows(out) == before
    assert (summary.changes.relabelled, summary.embedded, summary.stored) == (2, 0, 3)
    assert notes.of("other labels") == "2 rows have other labels now"
    assert verify(out) == []
    assert embed(data / "m.csv", out).changes.relabelled == 0
    embed(data, out)  # an input that says nothing of them
    assert labels(out, "emotion") == {"a": "", "b": "", "c": ""}


@pytest.mark.usefixtures("encodes_nothing")
def test_new_and_fewer_columns_are_no_other_settings(data: Path, out: Path) -> None:
    table(data, "path,age,emotion,take a.wav,30,anger,1 b.wav,,fear,2 c.wav,41,joy,3")
    assert embed(data / "m.csv", out).changes.relabelled == 3
    with Store(out) as store:
        assert store.columns == ("emotion", "emotion_raw", "speaker", "age", "take")
    assert labels(out, "age") == {"a": "30", "b": "", "c": "41"}
    assert labels(out, "speaker") == {"a": "", "b": "", "c": ""}
    table(data, "path,emotion a.wav,anger b.wav,fear c.wav,joy")
    assert embed(data / "m.csv", out).changes.relabelled == 3
    with Store(out) as store:
        assert store.columns == ("emotion", "emotion_raw", "speaker")


@pytest.mark.usefixtures("encodes_nothing")
def test_a_column_stays_while_recordings_that_left_have_it(data: Path, out: Path) -> None:
    table(data, "path,emotion,take a.wav,anger,1 b.wav,fear,2 c.wav,joy,3")
    embed(data / "m.csv", out)
    table(data, "path,emotion a.wav,anger b.wav,fear")
    embed(data / "m.csv", out)
    assert labels(out, "take") == {"a": "", "b": "", "c": "3"}
    embed(data / "m.csv", out, prune=True)
    with Store(out) as store:
        assert store.columns == ("emotion", "emotion_raw", "speaker") and store.ids == ["a", "b"]


def test_an_untouched_run_is_left_as_it_is(data: Path, out: Path) -> None:
    files = [out / "manifest.jsonl", *(out / "parts").iterdir()]
    before, notes = [(path.read_bytes(), path.stat().st_mtime_ns) for path in files], Notes()
    summary = embed(data / "m.csv", out, notes)
    assert [(path.read_bytes(), path.stat().st_mtime_ns) for path in files] == before
    assert summary.embedded == 0 and not any("now" in said for said in notes.said)
    assert not notes.compared()


# --- audio


@pytest.mark.parametrize("num_samples", [4_960, 9_600], ids=["as long as it was", "longer"])
def test_changed_audio_is_encoded_again_under_its_id(num_samples: int, data: Path, out: Path) -> None:
    before, notes = rows(out), Notes()
    sound(data / "b.wav", 7, num_samples)
    summary = embed(data / "m.csv", out, notes)
    assert (summary.changes.replaced, summary.embedded, summary.stored) == (1, 1, 3)
    assert notes.of("other audio") == "1 recordings have other audio now and are encoded again: b"
    after, whole = rows(out), out.parent / "whole"
    embed(data / "m.csv", whole)
    assert after == rows(whole) and after["b"] != before["b"] and after["a"] == before["a"]
    assert labels(out, "emotion") == labels(whole, "emotion")
    with Store(out) as store:
        assert dict(zip(store.ids, store.num_samples.tolist(), strict=True))["b"] == num_samples
        assert not store.errors
    assert verify(out) == []
    assert embed(data / "m.csv", out).embedded == 0


@pytest.mark.usefixtures("encodes_nothing")
def test_a_file_that_was_only_touched_keeps_its_row(data: Path, out: Path) -> None:
    os.utime(data / "b.wav", ns=(1, 1))
    for compared in ([1], []):
        notes = Notes()
        assert embed(data / "m.csv", out, notes).changes.replaced == 0
        assert notes.compared() == compared


def test_a_change_that_keeps_size_and_time_is_found_once_the_time_is_another(data: Path, out: Path) -> None:
    was = (data / "b.wav").stat()
    sound(data / "b.wav", 7, 4_960)
    os.utime(data / "b.wav", ns=(was.st_mtime_ns, was.st_mtime_ns))
    assert embed(data / "m.csv", out).embedded == 0
    os.utime(data / "b.wav", ns=(1, 1))
    assert embed(data / "m.csv", out).embedded == 1


@pytest.mark.parametrize("options", [{"channel": 1}, {"resample": "gpu"}], ids=str)
def test_audio_is_compared_as_the_run_decodes_it(options: dict[str, Any], tmp_path: Path) -> None:
    both = np.random.default_rng(0).standard_normal((8_000, 2)) * 0.1
    soundfile.write(tmp_path / "a.wav", both, 22_050)
    embed(tmp_path / "a.wav", tmp_path / "run", **options)
    os.utime(tmp_path / "a.wav", ns=(1, 1))
    assert embed(tmp_path / "a.wav", tmp_path / "run", **options).embedded == 0
    soundfile.write(tmp_path / "a.wav", both * [[0.5, 1.0]], 22_050)
    assert embed(tmp_path / "a.wav", tmp_path / "run", **options).embedded == int("resample" in options)


def test_audio_that_cannot_be_read_any_more_is_an_error_row(data: Path, out: Path) -> None:
    (data / "b.wav").write_bytes(b"no audio")
    summary = embed(data / "m.csv", out)
    assert [failure.id for failure in summary.failures] == ["b"]
    assert Store(out).ids == ["a", "c"]
    sound(data / "b.wav", 1, 4_960)
    summary = embed(data / "m.csv", out)
    assert (summary.embedded, list(summary.failures)) == (1, [])
    assert sorted(Store(out).ids) == ["a", "b", "c"]


def test_a_failed_recording_whose_file_changed_is_tried_again(data: Path, tmp_path: Path) -> None:
    (data / "b.wav").write_bytes(b"no audio")
    soundfile.write(data / "c.wav", np.full(4_800, np.nan), 16_000, subtype="FLOAT")
    summary = embed(data / "m.csv", tmp_path / "run")
    assert {failure.id for failure in summary.failures} == {"b", "c"}
    assert embed(data / "m.csv", tmp_path / "run").embedded == 0
    sound(data / "b.wav", 1)
    sound(data / "c.wav", 2, 4_800)
    summary = embed(data / "m.csv", tmp_path / "run")
    assert (summary.embedded, list(summary.failures)) == (2, [])


def test_a_file_that_is_not_there_is_named_and_its_row_stays(data: Path, out: Path) -> None:
    before, notes = rows(out), Notes()
    (data / "b.wav").unlink()
    summary = embed(data / "m.csv", out, notes, prune=True)
    assert "1 recordings of the input are not there: b;" in notes.of("not there")
    assert rows(out) == before and summary.changes.missing == 1


def test_what_changed_before_it_was_encoded_is_planned_anew(data: Path, tmp_path: Path) -> None:
    run(data / "m.csv", Options("mfcc"), tmp_path / "run", stop=stopped())
    sound(data / "a.wav", 8, 4_800)  # as long as it was
    sound(data / "b.wav", 9, 16_000)
    summary = embed(data / "m.csv", tmp_path / "run")
    assert (summary.stored, list(summary.failures)) == (3, [])
    assert summary.changes.replaced == 0  # nothing was encoded twice
    embed(data / "m.csv", tmp_path / "whole")
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")


# --- runs from before


def test_a_run_without_stamps_is_compared_once(data: Path, out: Path) -> None:
    sound(data / "b.wav", 7, 4_960)
    no_stamps(out)
    notes = Notes()
    summary = embed(data / "m.csv", out, notes)
    assert (summary.changes.replaced, summary.embedded) == (1, 1)
    assert "3 recordings were stored before" in notes.of("this once")
    ((_, recordings, audio),) = [shown for shown in notes.shown if shown[0] == "comparing audio"]
    assert recordings == 3 and audio == pytest.approx(3 * 0.3 + 0.03)
    notes = Notes()
    assert embed(data / "m.csv", out, notes).embedded == 0
    assert not notes.compared()


def test_a_comparison_that_ends_early_goes_on(data: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_stamps(out)
    monkeypatch.setattr(files, "BLOCK_RECORDINGS", 1)
    monkeypatch.setattr(changes, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(changes, "SAVE_SHARE", 1e9)
    count = iter(range(10))

    def die(self: Any, counts: Any) -> None:
        if counts.audio and next(count) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(Notes, "update", die)
    with pytest.raises(KeyboardInterrupt):
        embed(data / "m.csv", out, Notes())
    monkeypatch.undo()
    stamps = ["size" in line for line in (out / "manifest.jsonl").read_text().splitlines()]
    assert stamps == [True, True, False]
    notes = Notes()
    embed(data / "m.csv", out, notes)
    assert notes.compared() == [1]


def test_a_comparison_that_is_stopped_drops_and_adds_nothing(
    data: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "BLOCK_RECORDINGS", 1)
    before = rows(out)
    for name in "ab":
        (data / f"{name}.wav").rename(data / f"z{name}.wav")
    run(data, Options("mfcc", prune=True), out, stop=stopped())
    assert rows(out) == before
    assert embed(data, out).embedded == 0
    assert rows(out) == before


def test_failed_ones_without_stamps_are_tried_again_where_they_can_be_read(
    data: Path, tmp_path: Path
) -> None:
    for name in "bc":
        (data / f"{name}.wav").write_bytes(b"no audio")
    embed(data / "m.csv", tmp_path / "run")
    no_stamps(tmp_path / "run")
    sound(data / "b.wav", 1)
    summary = embed(data / "m.csv", tmp_path / "run")
    assert summary.embedded == 1 and [failure.id for failure in summary.failures] == ["c"]


# --- what left


def test_what_left_the_input_is_named_and_dropped_on_request(data: Path, out: Path) -> None:
    before, notes = rows(out), Notes()
    table(data, "path,emotion,speaker a.wav,anger,s1")
    summary = embed(data / "m.csv", out, notes)
    assert notes.of("not in the input") == (
        "2 recordings of this run are not in the input any more: b, c; what is stored of them stays (--prune"
        " drops it)"
    )
    assert rows(out) == before and (summary.changes.left, summary.changes.pruned) == (2, 0)
    summary = embed(data / "m.csv", out, prune=True)
    assert [*rows(out)] == ["a"] and (summary.recordings, summary.changes.pruned) == (1, 2)
    assert verify(out) == []
    table(data, "path,emotion,speaker a.wav,anger,s1 b.wav,fear,s1 c.wav,joy,s2")
    summary = embed(data / "m.csv", out)
    assert (summary.embedded, summary.stored) == (2, 3)
    assert rows(out) == before


def test_what_left_before_it_was_encoded_is_not_encoded_when_pruned(data: Path, tmp_path: Path) -> None:
    run(data / "m.csv", Options("mfcc"), tmp_path / "run", stop=stopped())
    table(data, "path,emotion a.wav,anger b.wav,fear")
    summary = embed(data / "m.csv", tmp_path / "run", prune=True)
    assert (summary.embedded, summary.recordings) == (2, 2)
    assert verify(tmp_path / "run") == []


def test_pruning_everything_is_refused(data: Path, out: Path, tmp_path: Path) -> None:
    before = rows(out)
    sound(tmp_path / "other" / "z.wav", 3)
    with pytest.raises(InputError, match="--prune: none of the 3 recordings"):
        embed(tmp_path / "other", out, prune=True)
    assert rows(out) == before


def test_an_index_follows(data: Path, tmp_path: Path) -> None:
    """Of changed audio, of what left, of what is new."""
    out = tmp_path / "run"
    embed(data / "m.csv", out, index="mean:0")
    sound(data / "b.wav", 7, 4_960)
    sound(data / "d.wav", 8)
    table(data, "path,emotion a.wav,anger b.wav,fear d.wav,joy")
    embed(data / "m.csv", out, index="mean:0", prune=True)
    with Store(out) as store:
        index = Index.open(out, 0, "mean")
        assert index.positions.tolist() == store.positions.tolist() == [0, 3, 4]
        found = index.search(store.load(pooling="mean")[:, 0], 1)[1]
        assert found[:, 0].tolist() == [0, 3, 4]  # each is nearest to itself


class Killed(BaseException):
    """What a process that dies does not live to see."""


def test_killed_at_any_rename_and_repeated_is_uninterrupted(
    data: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound(data / "b.wav", 7, 4_960)
    sound(data / "d.wav", 8)
    (data / "a.wav").rename(data / "z.wav")
    table(data, "path,emotion,take z.wav,joy,1 b.wav,fear,2 d.wav,anger,3")
    shutil.copytree(out, tmp_path / "whole")
    embed(data / "m.csv", tmp_path / "whole", prune=True)
    expected = rows(tmp_path / "whole"), labels(tmp_path / "whole", "take"), Store(tmp_path / "whole").paths
    assert [*expected[0]] == ["a", "b", "d"]
    replace, deaths = os.replace, 0
    for k in range(100):
        each = tmp_path / f"run{k}"
        shutil.copytree(out, each)
        count = iter(range(1000))

        def die(*names: Any, count: Any = count, k: int = k) -> None:
            if next(count) >= k:  # and nothing after it
                raise Killed
            replace(*names)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", die)
            try:
                embed(data / "m.csv", each, prune=True)
                break
            except Killed:
                deaths += 1
        assert "a" in Store(each).ids
        embed(data / "m.csv", each, prune=True)
        assert (rows(each), labels(each, "take"), Store(each).paths) == expected, k
        assert verify(each) == [], k
    assert 4 <= deaths < 100


def test_shards_bring_a_run_level_one_after_the_other(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    for i in range(2):
        embed(data / "m.csv", out, shard=(i, 2), batch_seconds=0.3)
    before = rows(out)
    sound(data / "b.wav", 7, 4_960)
    table(data, "path,emotion a.wav,anger b.wav,fear c.wav,disgust")
    embedded = [embed(data / "m.csv", out, shard=(i, 2), batch_seconds=0.3).embedded for i in range(2)]
    assert sorted(embedded) == [0, 1]
    after = rows(out)
    assert after["a"] == before["a"] and after["b"] != before["b"]
    assert labels(out, "emotion")["c"] == "disgust" and verify(out) == []
