"""``hser-store relabel`` and ``drop``: a run is edited without its audio and its model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from store_cases import COLUMNS, DIM, LAYERS, SETTINGS, content, lines_of, opened

from extractor.commands.store import hser_store
from extractor.errors import InputError, SettingsError, StoreError
from extractor.inputs.manifest import read_manifest
from extractor.store import Store
from extractor.store.edit import drop, relabel
from extractor.store.pack import pack
from extractor.store.run_folder import BY_HAND, MANIFEST, ManifestRow
from extractor.store.verify import verify
from extractor.types import BatchResult, Failure, Manifest, Row, Utterance

COPIED = (*COLUMNS, "original", "copy", "augmentation")


def write(run: Path, utterances: Sequence[Utterance], failing: Sequence[str] = (), **opening: Any) -> Path:
    """A run of one batch; the embeddings of row k are k + 1."""
    with opened(run, **opening) as writer:
        writer.write_manifest([ManifestRow(k, u, 720, 0) for k, u in enumerate(utterances)])
        good = [(k, u) for k, u in enumerate(utterances) if u.id not in failing]
        values = np.array([k + 1 for k, _ in good], np.float32)[:, None, None]
        pooled = {name: np.tile(values, (1, len(LAYERS), width)) for name, width in DIM.items()}
        rows = [Row(k, u, 720, 2, f"sum{k}", "fp32") for k, u in good]
        failures = [Failure(u.id, u.path, "decode", "cut") for u in utterances if u.id in failing]
        writer.commit(BatchResult(0, rows, pooled, (), failures))
    return run


def recording(name: str, folder: str = "/corpus", start: float | None = None, **labels: str) -> Utterance:
    values = tuple(labels.get(column, "") for column in COLUMNS)
    return Utterance(name, f"{folder}/{name.rpartition('/')[2]}.wav", start, None, values)


def labels_of(run: Path, column: str) -> dict[str, str]:
    with Store(run) as store:
        return dict(zip(store.ids, store.labels(column), strict=True))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    named = {"a": "anger", "b": "fear", "c": "joy", "broken": "joy"}
    given = [recording(name, emotion=emotion, speaker=name) for name, emotion in named.items()]
    return write(tmp_path / "run", given, failing=["broken"])


def test_rows_take_the_labels_of_a_manifest_without_encoding(run: Path, tmp_path: Path) -> None:
    before = content(run)
    parts = {path: path.stat().st_mtime_ns for path in (run / "parts").iterdir()}
    table = tmp_path / "clips.csv"
    table.write_text("path,emotion,age\n/corpus/a.wav,sad,30\nelsewhere/b.wav,fear,40\nother.wav,fear,50\n")
    result = CliRunner().invoke(hser_store, ["relabel", str(run), str(table)], catch_exceptions=False)
    assert result.exit_code == 0
    assert "2 rows of 4 have other labels now" in result.output
    assert "2 recordings not in" in result.output and ": c, broken" in result.output
    assert "1 recording of" in result.output and "not in the run: other" in result.output
    assert "columns as they were: speaker" in result.output
    assert labels_of(run, "emotion") == {"a": "sadness", "b": "fear", "c": "joy"}
    assert labels_of(run, "speaker") == {"a": "a", "b": "b", "c": "c"}
    assert labels_of(run, "age") == {"a": "30", "b": "40", "c": ""}
    assert {path: path.stat().st_mtime_ns for path in (run / "parts").iterdir()} == parts
    assert {**content(run), "labels": 0} == {**before, "labels": 0}
    assert verify(run) == []
    again = CliRunner().invoke(hser_store, ["relabel", str(run), str(table)], catch_exceptions=False)
    assert "0 rows of 4" in again.output


def test_recordings_are_matched_by_path_then_id_then_name(tmp_path: Path) -> None:
    """Never by a name that two have, nor by an id that is made of one."""
    stored = [
        recording("moved"),
        recording("x", "/one"),
        recording("two/x", "/two"),
        recording("cut@1", start=1.0),
        recording("cut@2", start=2.0),
        recording("given"),
    ]
    run = write(tmp_path / "run", stored)
    manifest = Manifest(
        [
            recording("new/moved", "/new", emotion="by name"),
            recording("x", "/corpus/two", emotion="made of the name"),  # the run's "x" is /one/x.wav
            Utterance("cut", "/corpus/cut@1.wav", 1.0, None, ("by path", "", "")),
            Utterance("cut@2", "/elsewhere/cut.wav", 3.0, None, ("other span", "", "")),
            Utterance("given", "/elsewhere/renamed.wav", None, None, ("by id", "", "")),
        ],
        COLUMNS,
    )
    done = relabel(run, manifest)
    expected = {"moved": "by name", "x": "", "two/x": "", "cut@1": "by path", "cut@2": "", "given": "by id"}
    assert labels_of(run, "emotion") == expected
    assert list(done.not_named) == ["x", "two/x", "cut@2"]
    assert list(done.not_stored) == ["x", "cut@2"]


def copies_of(name: str, emotion: str, recipe: str) -> list[Utterance]:
    clean = (emotion, emotion, "s", name, "0", "none")
    copy = (emotion, emotion, "s", name, "1", recipe)
    path = f"/corpus/{name}.wav"
    return [Utterance(name, path, labels=clean), Utterance(f"{name}~1", path, labels=copy)]


def copied(run: Path, augmentation: str) -> Path:
    settings = SETTINGS | {"augmentation": augmentation, "copies": 1, "seed": 0, "clean": True}
    utterances = [*copies_of("a", "anger", "gain:db=3"), *copies_of("b", "fear", "gain:db=-3")]
    return write(run, utterances, columns=COPIED, settings=settings)


def test_copies_take_their_originals_labels(tmp_path: Path) -> None:
    run = copied(tmp_path / "run", "gain:db=-6..6")
    done = relabel(run, Manifest([recording("a", emotion="joy")], COLUMNS))
    assert list(done.changed) == ["a", "a~1"]
    assert list(done.not_named) == ["b"]
    assert labels_of(run, "emotion") == {"a": "joy", "a~1": "joy", "b": "fear", "b~1": "fear"}
    assert labels_of(run, "augmentation")["a~1"] == "gain:db=3"
    relabel(run, Manifest([Utterance("a", "/corpus/a.wav", labels=("joy", "7"))], ("emotion", "age")))
    assert Store(run).columns == (*COLUMNS, "age", "original", "copy", "augmentation")
    with pytest.raises(InputError, match="column 'copy'"):
        relabel(run, Manifest([Utterance("a", "/corpus/a.wav", labels=("1",))], ("copy",)))


def test_copies_that_were_drawn_by_a_label_are_refused_by_name(tmp_path: Path) -> None:
    run = copied(tmp_path / "run", "copypaste")
    before = (run / MANIFEST).read_bytes()
    with pytest.raises(StoreError, match=r"drawn by emotion and speaker .* 2 rows: a, a~1; run hser-extract"):
        relabel(run, Manifest([recording("a", emotion="joy")], COLUMNS))
    assert (run / MANIFEST).read_bytes() == before
    relabel(
        run, Manifest([Utterance("a", "/corpus/a.wav", labels=("x",))], ("age",))
    )  # nothing is drawn by it
    assert labels_of(run, "age")["a~1"] == "x"


def test_rows_that_are_dropped(run: Path) -> None:
    dry = CliRunner().invoke(hser_store, ["drop", str(run), "--where", "emotion == 'joy'", "--dry-run"])
    assert dry.output.splitlines() == ["c", "broken", f"{run}: 2 rows would be dropped"]
    assert len(Store(run)) == 3
    result = CliRunner().invoke(hser_store, ["drop", str(run), "--where", "emotion == 'joy'"])
    assert result.output == f"{run}: 2 rows dropped\n"
    store = Store(run)
    assert store.ids == ["a", "b"]
    assert store.errors == []
    np.testing.assert_array_equal(store.load(12, "mean")[:, 0], [1, 2])
    assert verify(run) == []
    with opened(run) as writer:
        rows = lines_of(writer)
        assert [row.dropped for row in rows] == ["", "", BY_HAND, BY_HAND]
    info = CliRunner().invoke(hser_store, ["info", str(run)])
    assert "dropped: 2" in info.output
    assert drop(run, "emotion == 'joy'") == []
    assert drop(run, "speaker=a") == ["a"]


def test_a_runs_own_manifest_as_an_input_has_its_lines_that_count(run: Path) -> None:
    drop(run, "emotion == 'joy'")
    relabel(run, Manifest([recording("a", emotion="calm")], COLUMNS))
    manifest = read_manifest([run / MANIFEST])
    assert [(u.id, u.labels[0]) for u in manifest.utterances] == [("a", "calm"), ("b", "fear")]


def test_what_is_not_dropped(run: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="true of all its 4 rows"):
        drop(run, "emotion != 'nothing'")
    with pytest.raises(SettingsError, match="unknown column 'speeker'"):
        drop(run, "speeker == '3'")
    pack(run, tmp_path / "packed.h5")
    with pytest.raises(StoreError, match="a packed run is not edited"):
        drop(tmp_path / "packed.h5", "speaker == 'a'")
    assert len(Store(run)) == 3
