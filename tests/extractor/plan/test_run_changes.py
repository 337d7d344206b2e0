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
from run_cases import Notes, stopped

from extractor import InputError, Store
from extractor.audio import files
from extractor.index import Index
from extractor.plan import changes
from extractor.progress import Summary
from extractor.run.batch import BatchEncoder
from extractor.run.engine import run
from extractor.run.options import Options
from extractor.store.edit import drop
from extractor.store.verify import verify


def sound(path: Path, key: int, num_samples: int = 4_800) -> Path:
    """A short recording that depends on ``key``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.1 * np.random.default_rng(key).standard_normal(num_samples), 16_000)
    return path


def table(folder: Path, text: str, name: str = "m.csv") -> Path:
    path = folder / name
    path.write_text(text.replace(" ", "\n") + "\n")
    return path


def embed(source: Any, out: Path, progress: Notes | None = None, **options: Any) -> Summary:
    return run(source, Options(**{"model": "mfcc", **options}), out, progress)


def rows(out: Path) -> dict[str, bytes]:
    with Store(out) as store:
        values = store.load(pooling="mean")
        return {name: row.tobytes() for name, row in zip(store.ids, values, strict=True)}


def labels(out: Path, name: str) -> dict[str, str]:
    with Store(out) as store:
        return dict(zip(store.ids, store.labels(name), strict=True))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three recordings of other lengths, and a manifest of them."""
    for key, name in enumerate("abc"):
        sound(tmp_path / "data" / f"{name}.wav", key, 4_800 + 160 * key)
    table(tmp_path / "data", "path,emotion,speaker a.wav,anger,s1 b.wav,fear,s1 c.wav,joy,s2")
    return tmp_path / "data"


@pytest.fixture
def out(data: Path, tmp_path: Path) -> Path:
    embed(data / "m.csv", tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def encodes_nothing(monkeypatch: pytest.MonkeyPatch, out: Path) -> None:
    def refuse(self: Any, job: Any) -> None:
        raise AssertionError("it was encoded again")

    monkeypatch.setattr(BatchEncoder, "__call__", refuse)


def manifest_bytes(out: Path) -> bytes:
    return (out / "manifest.jsonl").read_bytes()


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


@pytest.mark.usefixtures("encodes_nothing")
def test_another_corpus_gives_other_labels(data: Path, out: Path) -> None:
    embed(data, out)
    assert labels(out, "emotion") == {"a": "", "b": "", "c": ""}


def test_an_untouched_run_is_left_as_it_is(data: Path, out: Path) -> None:
    before = manifest_bytes(out), {p: p.stat().st_mtime_ns for p in (out / "parts").iterdir()}
    notes = Notes()
    summary = embed(data / "m.csv", out, notes)
    assert (manifest_bytes(out), {p: p.stat().st_mtime_ns for p in (out / "parts").iterdir()}) == before
    assert summary.embedded == 0 and not any("now" in said for said in notes.said)
    assert not notes.compared()


# --- audio


def test_changed_audio_is_encoded_again_under_its_id(data: Path, out: Path) -> None:
    before, notes = rows(out), Notes()
    sound(data / "b.wav", 7, 4_960)  # as long as it was
    summary = embed(data / "m.csv", out, notes)
    assert (summary.changes.replaced, summary.embedded, summary.stored) == (1, 1, 3)
    assert notes.of("other audio") == "1 recordings have other audio now and are encoded again: b"
    after, whole = rows(out), out.parent / "whole"
    embed(data / "m.csv", whole)
    assert after == rows(whole) and after["b"] != before["b"] and after["a"] == before["a"]
    assert labels(out, "emotion") == labels(whole, "emotion")
    assert verify(out) == []
    assert embed(data / "m.csv", out).embedded == 0


def test_audio_of_another_length_is_encoded_again(data: Path, out: Path) -> None:
    sound(data / "b.wav", 7, 9_600)
    assert embed(data / "m.csv", out).embedded == 1
    with Store(out) as store:
        assert dict(zip(store.ids, store.num_samples.tolist(), strict=True))["b"] == 9_600
        assert not store.errors


@pytest.mark.usefixtures("encodes_nothing")
def test_a_file_that_was_only_touched_keeps_its_row(data: Path, out: Path) -> None:
    os.utime(data / "b.wav", ns=(1, 1))
    notes = Notes()
    assert embed(data / "m.csv", out, notes).changes.replaced == 0
    assert notes.compared() == [1]
    notes = Notes()
    embed(data / "m.csv", out, notes)
    assert not notes.compared()


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


# --- places and ids


@pytest.mark.usefixtures("encodes_nothing")
def test_renamed_files_keep_their_rows_and_ids(data: Path, out: Path) -> None:
    before, notes = rows(out), Notes()
    (data / "a.wav").rename(data / "z.wav")
    (data / "b.wav").rename(sound(data / "sub" / "a.wav", 0))
    os.utime(data / "z.wav", ns=(1, 1))
    summary = embed(data, out, notes)
    assert rows(out) == before
    assert (summary.changes.moved, summary.changes.left, summary.embedded) == (2, 0, 0)
    assert "2 recordings lie elsewhere now" in notes.of("elsewhere")
    with Store(out) as store:
        assert dict(zip(store.ids, store.paths, strict=True)) == {
            "a": str(data / "z.wav"), "b": str(data / "sub" / "a.wav"), "c": str(data / "c.wav")
        }  # fmt: skip
    assert verify(out) == []


def test_renamed_files_with_the_same_audio_keep_a_row_each(data: Path, tmp_path: Path) -> None:
    shutil.copy(data / "a.wav", data / "b.wav")
    embed(data, tmp_path / "run")
    (data / "a.wav").rename(data / "x.wav")
    (data / "b.wav").rename(data / "y.wav")
    assert embed(data, tmp_path / "run").embedded == 0
    with Store(tmp_path / "run") as store:
        paths = {name: Path(path).name for name, path in zip(store.ids, store.paths, strict=True)}
    assert paths == {"a": "x.wav", "b": "y.wav", "c": "c.wav"}


def test_another_segment_of_the_same_audio_is_another_recording(data: Path, tmp_path: Path) -> None:
    soundfile.write(data / "a.wav", np.tile([0.1, -0.1], 4_800), 16_000)
    table(data, "path,start,end a.wav,0,0.1")
    embed(data / "m.csv", tmp_path / "run")
    table(data, "path,start,end a.wav,0.1,0.2")
    summary = embed(data / "m.csv", tmp_path / "run")
    assert (summary.embedded, summary.changes.left) == (1, 1)
    assert Store(tmp_path / "run").ids == ["a@0-0.1", "a@0.1-0.2"]


@pytest.mark.usefixtures("encodes_nothing")
def test_a_corpus_that_moved_with_its_times_is_not_decoded(data: Path, out: Path, tmp_path: Path) -> None:
    before, notes = rows(out), Notes()
    data.rename(tmp_path / "elsewhere")
    embed(tmp_path / "elsewhere" / "m.csv", out, notes)
    assert rows(out) == before and not notes.compared()
    assert all(path.startswith(str(tmp_path / "elsewhere")) for path in Store(out).paths)


def test_one_new_file_of_the_same_name_renames_no_row(data: Path, out: Path) -> None:
    before = rows(out)
    sound(data / "more" / "a.wav", 11)
    sound(data / "more" / "d.wav", 12)
    embed(data, out)
    found = rows(out)
    assert [*found] == ["a", "b", "c", "more/a", "d"]
    assert {name: found[name] for name in before} == before
    sound(data / "most" / "a.wav", 13)
    embed(data, out)
    assert [*rows(out)] == ["a", "b", "c", "more/a", "d", "most/a"]


def test_another_corpus_with_the_same_names_is_no_moved_one(data: Path, out: Path, tmp_path: Path) -> None:
    """Neither its paths nor its audio are the run's: what was there has left, what is there is new."""
    before, notes = rows(out), Notes()
    for key, name in enumerate("abc"):
        sound(tmp_path / "other" / f"{name}.wav", 20 + key, 4_800 + 160 * key)
    assert embed(tmp_path / "other", out, notes).changes.left == 3
    found = rows(out)
    assert [*found] == ["a", "b", "c", "a.wav", "b.wav", "c.wav"]
    assert {name: found[name] for name in before} == before
    embed([data, tmp_path / "other"], out)
    assert [*rows(out)] == ["a", "b", "c", "a.wav", "b.wav", "c.wav"]


@pytest.mark.usefixtures("encodes_nothing")
def test_a_manifest_gives_rows_other_ids(data: Path, out: Path) -> None:
    before, notes = rows(out), Notes()
    table(data, "path,id,emotion,speaker a.wav,b,anger,s1 b.wav,a,fear,s1 c.wav,x,joy,s2")
    summary = embed(data / "m.csv", out, notes)
    assert rows(out) == {"b": before["a"], "a": before["b"], "x": before["c"]}
    assert (summary.changes.renamed, summary.embedded) == (3, 0)
    assert "3 recordings have another id" in notes.of("another id")
    table(data, "path,emotion,speaker a.wav,anger,s1 b.wav,fear,s1 c.wav,joy,s2")
    embed(data / "m.csv", out)  # for good, until another is given
    assert [*rows(out)] == ["b", "a", "x"]
    table(data, "path,id a.wav,a b.wav, c.wav,")
    with pytest.raises(InputError, match="id 'a' would be"):
        embed(data / "m.csv", out)


def test_a_segment_that_is_cut_at_other_times_is_encoded_again(data: Path, tmp_path: Path) -> None:
    table(data, "id,path,start,end x,a.wav,0,0.1 y,a.wav,0.1,0.2")
    embed(data / "m.csv", tmp_path / "run")
    before = rows(tmp_path / "run")
    table(data, "id,path,start,end x,a.wav,0,0.1 y,a.wav,0.1,0.25")
    assert embed(data / "m.csv", tmp_path / "run").embedded == 1
    after = rows(tmp_path / "run")
    assert after["x"] == before["x"] and after["y"] != before["y"]
    with Store(tmp_path / "run") as store:
        assert dict(zip(store.ids, store.ends.tolist(), strict=True)) == {"x": 0.1, "y": 0.25}


def test_rows_of_the_same_file_and_span_stay_apart(data: Path, tmp_path: Path) -> None:
    table(data, "path,id,take a.wav,x,1 a.wav,y,2")
    embed(data / "m.csv", tmp_path / "run")
    table(data, "path,id,take a.wav,y,3 a.wav,x,4")
    assert embed(data / "m.csv", tmp_path / "run").embedded == 0
    assert labels(tmp_path / "run", "take") == {"x": "4", "y": "3"}


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


@pytest.mark.usefixtures("encodes_nothing")
def test_what_was_dropped_by_hand_stays_out(data: Path, out: Path) -> None:
    drop(out, "id == 'b'")
    notes = Notes()
    embed(data / "m.csv", out, notes, prune=True)
    assert Store(out).ids == ["a", "c"]
    assert "1 recordings stay out, which were dropped by hand: b" in notes.of("by hand")


def test_what_was_dropped_by_hand_stays_out_wherever_it_lies_now(data: Path, out: Path) -> None:
    """Moved and renamed, with another time; the other one of the same audio keeps its row."""
    shutil.copy(data / "b.wav", data / "b2.wav")
    embed(data, out)
    drop(out, "id == 'b'")
    for name in ("b", "b2"):
        (data / "sub").mkdir(exist_ok=True)
        shutil.copy(data / f"{name}.wav", data / "sub" / f"x{name}.wav")
        (data / f"{name}.wav").unlink()
    notes = Notes()
    assert embed(data, out, notes).embedded == 0
    assert Store(out).ids == ["a", "c", "b2"]
    assert notes.of("by hand") == "1 recordings stay out, which were dropped by hand: b"
    assert embed(data, out).changes.moved == 0
    assert verify(out) == []


def test_an_id_that_was_dropped_by_hand_is_free_for_whom_it_is_given_to(data: Path, out: Path) -> None:
    drop(out, "id == 'b'")
    sound(data / "sub" / "b.wav", 9)
    embed(data, out)
    assert Store(out).ids == ["a", "c", "sub/b"]
    table(data, "path,id a.wav, b.wav,x c.wav, sub/b.wav,b")
    assert embed(data / "m.csv", out).embedded == 0
    assert Store(out).ids == ["a", "c", "b"]


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
