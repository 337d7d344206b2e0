"""``hser-store merge``: several runs become one, with all that each of them has."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from interruptions import EVERY_PWRITE, interrupted_everywhere
from store_cases import (
    COLUMNS,
    FRAMES,
    LAYERS,
    SETTINGS,
    batches,
    content,
    lines_of,
    manifest_of,
    opened,
    write_run,
)
from test_edit import COPIED, copies_of, recording, write

from extractor.commands.store import hser_store
from extractor.errors import SettingsDiffer, SettingsError, StoreError
from extractor.store import Store
from extractor.store import merge as store_merge
from extractor.store import writer as run_writer
from extractor.store.edit import drop, relabel
from extractor.store.merge import merge
from extractor.store.parts import write_part
from extractor.store.run_folder import RUN, ManifestRow
from extractor.store.verify import verify
from extractor.types import BatchResult, Manifest, Row


def invoke(*arguments: object) -> str:
    result = CliRunner().invoke(hser_store, [str(each) for each in arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_rows_errors_and_labels_of_both(tmp_path: Path) -> None:
    one = write(tmp_path / "one", [recording("a", emotion="joy"), recording("b"), recording("c")], ["b"])
    two = write(
        tmp_path / "two", [recording("a", "/two", emotion="fear"), recording("d"), recording("e")], ["e"]
    )
    drop(one, "id == 'c'")
    relabel(two, Manifest([replace(recording("d"), labels=("9",))], ("age",)))
    output = invoke("merge", one, two, "--out", tmp_path / "out")
    assert output.splitlines() == [
        f"{tmp_path / 'out'}: 3 rows, 2 failed",
        "1 recording of one id in several runs, now called: two/a",
    ]
    store = Store(tmp_path / "out")
    assert store.ids == ["a", "two/a", "d"]
    assert store.paths == ["/corpus/a.wav", "/two/a.wav", "/corpus/d.wav"]
    assert store.columns == (*COLUMNS, "age")
    assert store.labels("emotion") == ["joy", "fear", ""]
    assert store.labels("age") == ["", "", "9"]
    assert {failure.id for failure in store.errors} == {"b", "e"}
    np.testing.assert_array_equal(store.load(12, "mean")[:, 0], [1, 1, 2])
    assert store.edition == 0
    assert [(each["run"], each["rows"]) for each in store.environment["merged"]] == [("one", 1), ("two", 2)]
    assert str(tmp_path) not in (tmp_path / "out" / RUN).read_text()
    assert verify(tmp_path / "out") == []
    assert not list(tmp_path.rglob("*.tmp"))
    drop(tmp_path / "out", "emotion == 'joy'")
    assert Store(tmp_path / "out").ids == ["two/a", "d"]


def batch_of(number: int, lines: list[ManifestRow], dim: dict[str, int]) -> BatchResult:
    rows = [Row(line.position, line.utterance, 720, 2, "again", "fp32") for line in lines]
    values = np.arange(len(rows) * len(LAYERS) * dim["mean"], dtype=np.float32)
    frames = [np.full((2, len(LAYERS), dim["none"]), k, np.float32) for k in range(len(rows))]
    return BatchResult(number, rows, {"mean": values.reshape(len(rows), len(LAYERS), -1)}, frames)


@pytest.mark.parametrize("storage_dtype", ["fp32", "fp16"])
def test_embeddings_are_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, storage_dtype: str
) -> None:
    """Frames too, of parts and of batch files, a few rows at a time, rows left out in between."""
    monkeypatch.setattr(store_merge, "write_part", partial(write_part, buffer_bytes=100))
    monkeypatch.setattr(run_writer, "MERGE_BATCHES", 3)  # one part, of the rest another
    for number in range(2):
        results = batches(5, rows=4, dim=FRAMES, seed=number)
        write_run(tmp_path / f"run{number}", results, FRAMES, storage_dtype=storage_dtype)
    with opened(tmp_path / "run1", FRAMES, storage_dtype=storage_dtype) as writer:
        rows = lines_of(writer)
        failed = [row for row in rows if row.utterance.id in {f.id for f in Store(writer.path).errors}]
        writer.append_manifest([replace(row, batch=5) for row in failed])
        writer.commit(batch_of(5, failed, FRAMES))
        writer._pending.clear()  # a batch file is left unmerged
    sources = [Store(tmp_path / f"run{number}") for number in range(2)]
    dropped = {source.ids[k] for source in sources for k in (1, 4, 5)}
    for number in range(2):
        for name in sources[number].ids:
            if name in dropped:
                drop(tmp_path / f"run{number}", f"id == {name!r}")
    merge([source.path for source in sources], tmp_path / "out")
    out = Store(tmp_path / "out")
    kept = [(source, k) for source in sources for k, name in enumerate(source.ids) if name not in dropped]
    assert len(out) == len(kept)
    for row, (source, k) in enumerate(kept):
        assert out.ids[row].removeprefix("run1/") == source.ids[k]
        np.testing.assert_array_equal(
            out.load_rows([row], pooling="mean"), source.load_rows([k], pooling="mean")
        )
        np.testing.assert_array_equal(out.frames(row), source.frames(k))
    assert verify(tmp_path / "out") == []


def test_copies_follow_their_originals(tmp_path: Path) -> None:
    settings = SETTINGS | {"augmentation": "gain:db=-6..6"}
    for name in ("one", "two"):
        utterances = copies_of("a", name, "gain:db=3")
        write(tmp_path / name, utterances, columns=COPIED, settings=settings)
    merge([tmp_path / "one", tmp_path / "two"], tmp_path / "out")
    store = Store(tmp_path / "out")
    assert store.ids == ["a", "a~1", "two/a", "two/a~1"]
    assert store.labels("original") == ["a", "a", "two/a", "two/a"]
    assert store.columns[-3:] == ("original", "copy", "augmentation")


def test_folders_of_one_name(tmp_path: Path) -> None:
    for folder in ("x", "y", "z"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "run", [recording("a")])
    merge([tmp_path / folder / "run" for folder in ("x", "y", "z")], tmp_path / "out")
    assert Store(tmp_path / "out").ids == ["a", "run/a", "run-2/a"]
    assert verify(tmp_path / "out") == []


def test_what_is_not_merged(tmp_path: Path) -> None:
    one = write(tmp_path / "one", [recording("a")])
    other = write(tmp_path / "other", [recording("b")], settings=SETTINGS | {"dtype": "bf16"})
    with pytest.raises(
        SettingsDiffer, match=r"one and .*other were made with other settings. dtype: fp32 and bf16"
    ):
        merge([one, other], tmp_path / "out")
    with pytest.raises(SettingsError, match="each once"):
        merge([one, tmp_path / "x" / ".." / "one"], tmp_path / "out")
    with pytest.raises(StoreError, match="exists; name another --out"):
        merge([one, other], other)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.tmp").exists()


def test_a_run_that_is_not_done_is_refused_or_goes_on(tmp_path: Path) -> None:
    results = batches(3, rows=2, failing=0)
    one = write(tmp_path / "one", [recording("a")])
    with opened(tmp_path / "part") as writer:
        writer.write_manifest(manifest_of(results))
        writer.commit(results[1])
    with pytest.raises(StoreError, match="part: 4 of its recordings are not done yet"):
        merge([one, tmp_path / "part"], tmp_path / "out")
    merge([one, tmp_path / "part"], tmp_path / "out", incomplete=True)
    assert len(Store(tmp_path / "out")) == 3
    with opened(tmp_path / "out") as writer:
        assert writer.done() == {0, 2}
        rows = lines_of(writer)
        for batch, result in ((1, results[0]), (3, results[2])):
            moved = [replace(row, position=row.position + 1) for row in result.rows]
            assert {row.position for row in moved} == {row.position for row in rows if row.batch == batch}
            writer.commit(replace(result, batch=batch, rows=moved))
    assert verify(tmp_path / "out") == []


def test_a_failure_that_is_to_be_tried_again_goes_along(tmp_path: Path) -> None:
    one = write(tmp_path / "one", [recording("a"), recording("b")], ["b"])
    with opened(one) as writer:
        rows = lines_of(writer)
        writer.append_manifest([replace(rows[1], batch=1)])
    merge([one, write(tmp_path / "two", [recording("c")])], tmp_path / "out")
    assert [failure.id for failure in Store(tmp_path / "out").errors] == ["b"]
    with opened(tmp_path / "out") as writer:
        assert writer.done() == {0, 2}
        writer.commit(BatchResult(1, [], {}, (), Store(one).errors))


@pytest.mark.parametrize("how", ["kill", "fail"])
def test_interrupted_at_any_file_operation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """The new run is there whole or not at all; asked for again it is there."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    for number in range(2):
        write_run(tmp_path / f"run{number}", batches(1, rows=2, seed=number))
    runs = [tmp_path / "run0", tmp_path / "run1"]
    merge(runs, tmp_path / "whole")
    expected = content(tmp_path / "whole")
    step, times = 1 if how == "kill" else 3, 0
    for out, _ in interrupted_everywhere(
        partial(merge, runs), lambda k: tmp_path / f"{k}", how, EVERY_PWRITE, step
    ):
        times += 1
        if not out.exists():
            merge(runs, out)
        assert content(out) == expected
        assert not (tmp_path / f"{out.name}.tmp").exists()
    assert times * step > 20
    assert verify(out) == []
    assert json.loads((out / RUN).read_text())["settings"] == SETTINGS


@pytest.mark.parametrize(
    ("corpora", "joined", "speakers"),
    [
        (("emodb", "ravdess"), "emodb+ravdess", ["emodb-03", "ravdess-03"]),
        (("emodb", "emodb"), "emodb", ["03", "03"]),
        (("emodb+savee", "ravdess"), "emodb+savee+ravdess", ["03", "ravdess-03"]),  # has its names already
        (("files", "ravdess"), "ravdess", ["03", "03"]),  # of plain files nobody knows whose they are
        (("files", "files"), "files", ["03", "03"]),
    ],
)
def test_speakers_of_several_corpora_are_not_one_speaker(
    corpora: tuple[str, str], joined: str, speakers: list[str], tmp_path: Path
) -> None:
    runs = [write(tmp_path / name, [recording(name, speaker="03")]) for name in ("one", "two")]
    for run, corpus in zip(runs, corpora, strict=True):
        info = json.loads((run / RUN).read_text())
        info["environment"]["corpus"] = corpus
        (run / RUN).write_text(json.dumps(info))
        (run / "quiet-0-of-1.txt").write_text(f"{run.name}\n")
    merge(runs, tmp_path / "out")
    store = Store(tmp_path / "out")
    assert (store.environment["corpus"], store.labels("speaker")) == (joined, speakers)
    assert (tmp_path / "out" / "quiet-0-of-1.txt").read_text() == "one\ntwo\n"
