"""Which recordings of a run are which of its input now: moved, renamed, cut anew, dropped by hand."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from run_cases import Notes, embed, labels, rows, sound, table, three_recordings

from extractor import InputError, Store
from extractor.store.edit import drop
from extractor.store.verify import verify


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return three_recordings(tmp_path)


@pytest.fixture
def out(data: Path, tmp_path: Path) -> Path:
    embed(data / "m.csv", tmp_path / "run")
    return tmp_path / "run"


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


def test_a_corpus_that_moved_with_its_times_is_not_decoded(data: Path, out: Path, tmp_path: Path) -> None:
    before, notes = rows(out), Notes()
    data.rename(tmp_path / "elsewhere")
    assert embed(tmp_path / "elsewhere" / "m.csv", out, notes).embedded == 0
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


def test_what_was_dropped_by_hand_stays_out_wherever_it_lies_now(data: Path, out: Path) -> None:
    """Moved and renamed, with another time; the other one of the same audio keeps its row."""
    shutil.copy(data / "b.wav", data / "b2.wav")
    embed(data, out)
    drop(out, "id == 'b'")
    notes = Notes()
    assert embed(data, out, notes, prune=True).embedded == 0
    assert Store(out).ids == ["a", "c", "b2"]
    assert notes.of("by hand") == "1 recordings stay out, which were dropped by hand: b"
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
