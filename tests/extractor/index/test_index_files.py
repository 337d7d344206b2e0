"""An index is the old one or the new one, whole, and always of the rows that its store has."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from index_cases import LAYER, batches_of, brute_force, clustered, manifest_of, opened, write
from interruptions import THROUGH, exit_code, in_child, interrupted_everywhere
from threadpoolctl import threadpool_limits

from extractor.errors import InputError, SettingsError, StoreError, StoreUnwritable
from extractor.index import BrokenIndex, Index, IndexMissing, IndexStale, IndexWriter, build, in_memory
from extractor.index import writer as index_writer
from extractor.index.generation import HEAD, folder_of
from extractor.store import Store

DIM = 6
COMMAND = r"hser-lookup build .*run --layer 3 --pooling mean"


@pytest.fixture(autouse=True)
def no_syncs(monkeypatch: pytest.MonkeyPatch) -> None:
    # What a process wrote survives its death without a sync; hundreds of them would take long.
    monkeypatch.setattr(os, "fsync", lambda fd: None)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    # A fork has none of the threads that OpenMP keeps ready, and would wait for them for ever.
    with threadpool_limits(limits=1):
        yield


@pytest.fixture
def x() -> np.ndarray:
    return clustered(120, DIM)


@pytest.fixture
def run(tmp_path: Path, x: np.ndarray) -> Path:
    return write(tmp_path / "run", x, batch_rows=30)


def files(run: Path) -> list[str]:
    return sorted(path.name for path in folder_of(run, LAYER, "mean").iterdir())


def assert_brute_force(index: Index, x: np.ndarray, rows: np.ndarray | None = None) -> None:
    """Every answer is brute force's, and ids are aligned: a row's own embedding finds its position."""
    rows = np.arange(len(x)) if rows is None else rows
    np.testing.assert_array_equal(index.positions, 2 * rows)
    similarities, positions = index.search(x, 9)
    expected = brute_force(x, x, 9, rows)
    np.testing.assert_array_equal(positions, expected[1])
    np.testing.assert_allclose(similarities, expected[0], rtol=0, atol=2.0**-23)  # float64 summed otherwise


@pytest.mark.parametrize("how", ["kill", "fail"])
def test_interrupted_at_any_file_operation_it_is_the_old_or_the_new(
    run: Path, x: np.ndarray, how: str
) -> None:
    build(run, LAYER)
    seen = []

    def work(run: Path) -> None:
        kind = json.loads((folder_of(run, LAYER, "mean") / HEAD).read_text())["kind"]
        build(run, LAYER, kind="ivf" if kind == "flat" else "flat")

    for _ in interrupted_everywhere(work, lambda k: run, how):
        index = Index.open(run, LAYER, mapped=False)
        seen.append(index.kind)
        np.testing.assert_array_equal(index.search(x, 1)[1][:, 0], 2 * np.arange(len(x)))
    assert len(seen) > 10
    assert {*seen} == {"flat", "ivf"}
    number = json.loads((folder_of(run, LAYER, "mean") / HEAD).read_text())["generation"]
    assert files(run) == sorted([HEAD, "lock", f"{number}.faiss", f"{number}.npz"])


def test_interrupted_at_its_first_build_it_is_missing_or_whole(run: Path, x: np.ndarray) -> None:
    times = 0
    for _ in interrupted_everywhere(partial(build, layer=LAYER), lambda k: run, "kill"):
        times += 1
        try:
            assert_brute_force(Index.open(run, LAYER), x)
        except IndexMissing:
            assert not (folder_of(run, LAYER, "mean") / HEAD).exists()
        else:
            (folder_of(run, LAYER, "mean") / HEAD).unlink()
    assert times > 10


def extract_with_index(run: Path, x: np.ndarray, kind: str = "auto", batch_rows: int = 30) -> Index:
    """What the engine does: commit what is not done, feed the index, close both."""
    results = batches_of(x, batch_rows=batch_rows)
    with opened(run, x.shape[1]) as writer:
        if writer.manifest() is None:
            writer.write_manifest(manifest_of(results))
        index = IndexWriter(run, LAYER, None, len(x), kind)
        done = writer.done()
        for result in results:
            if result.batch not in done:
                writer.commit(result)
                positions = np.array([row.position for row in result.rows])
                index.add(positions, result.pooled["mean"][:, 0])
    return index.close()


def test_killed_at_random_moments_and_resumed_equals_uninterrupted(
    tmp_path: Path, x: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_writer, "PERSIST_SECONDS", 0.0)
    monkeypatch.setattr(index_writer, "PERSIST_SHARE", 1e9)  # at every batch
    run = tmp_path / "run"
    randomly = random.Random(0)
    for _ in range(12):
        pid = in_child(lambda: extract_with_index(run, x, batch_rows=5) and None)
        time.sleep(randomly.uniform(0.02, 0.2))
        os.kill(pid, signal.SIGKILL)
        assert exit_code(pid) in (-signal.SIGKILL, THROUGH)
    index = extract_with_index(run, x, batch_rows=5)
    assert_brute_force(index, x)
    store = Store(run)
    _, positions = index.search(store.load(LAYER), 1)
    labels = dict(zip(store.positions.tolist(), store.labels("emotion"), strict=True))
    assert [labels[position] for position in positions[:, 0].tolist()] == store.labels("emotion")


@pytest.mark.parametrize("kind", ["auto", "flat", "ivf", "hnsw"])
def test_streaming_and_building_at_once_are_the_same(tmp_path: Path, x: np.ndarray, kind: str) -> None:
    streamed = extract_with_index(tmp_path / "run", x, kind)
    at_once = build(tmp_path / "run", LAYER, kind=kind)
    assert streamed.kind == at_once.kind
    assert streamed.parameters == at_once.parameters
    for found, expected in zip(streamed.search(x, 7), at_once.search(x, 7), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_more_rows_than_expected_are_indexed_as_if_they_had_been(
    tmp_path: Path, x: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("extractor.index.kinds.FLAT_VALUES", 100 * DIM)
    run = write(tmp_path / "run", x)
    index = IndexWriter(run, LAYER, None, expected_rows=60)
    assert index._content is not None  # it streams
    index.add(np.array([0, 2]), x[:2])
    assert index.close().kind == build(run, LAYER).kind == "ivf"


def test_a_kind_that_too_few_rows_train_is_refused_before_extraction(run: Path) -> None:
    with pytest.raises(SettingsError, match="kind ivfpq is trained on at least 9,984 rows"):
        IndexWriter(run, LAYER, "mean", 500, "ivfpq")


def test_a_run_that_grows_grows_its_index(tmp_path: Path, x: np.ndarray) -> None:
    run = tmp_path / "run"
    extract_with_index(run, x[:90])
    results = batches_of(x[90:], batch_rows=30)
    with opened(run, DIM) as writer:
        index = IndexWriter(run, LAYER, "mean", len(x))
        assert index._known == set(range(0, 180, 2))  # taken up, not built anew
        rows = [row for result in results for row in result.rows]
        moved = [type(row)(row.position + 180, row.utterance, 16_000, 49, "sum", "fp32") for row in rows]
        grown = type(results[0])(3, moved, results[0].pooled)
        writer.commit(grown)
        with pytest.raises(IndexStale, match=rf"30 of the store's 120 are missing from it.*{COMMAND}"):
            Index.open(run, LAYER)
        index.add(np.array([row.position for row in moved]), grown.pooled["mean"][:, 0])
    assert_brute_force(index.close(), x)


def test_rows_fed_twice_or_never_are_there_once(run: Path, x: np.ndarray) -> None:
    index = IndexWriter(run, LAYER, "mean", len(x))
    for start in (0, 10, 0, 50):  # some twice, most never
        index.add(2 * np.arange(start, start + 20), x[start : start + 20])
    assert_brute_force(index.close(), x)
    with pytest.raises(ValueError, match="closed"):
        index.add(np.array([0]), x[:1])


def test_rows_that_were_never_committed_are_not_in_the_index(run: Path, x: np.ndarray) -> None:
    index = IndexWriter(run, LAYER, "mean", 500)
    index.add(np.array([7, 99_998]), x[:2])
    assert_brute_force(index.close(), x)


def test_several_writers_at_once_leave_a_whole_index(tmp_path: Path, x: np.ndarray) -> None:
    run = write(tmp_path / "run", x, batch_rows=30)

    def shard(number: int) -> None:
        index = IndexWriter(run, LAYER, "mean", len(x))
        rows = np.arange(number, len(x), 3)
        index.add(2 * rows, x[rows])
        index.close()

    pids = [in_child(partial(shard, number)) for number in range(3)]
    assert [exit_code(pid) for pid in pids] == [THROUGH] * 3
    assert_brute_force(Index.open(run, LAYER), x)


def test_a_broken_writer_leaves_the_old_index(run: Path, x: np.ndarray) -> None:
    build(run, LAYER)
    with pytest.raises(InputError, match="not finite"), IndexWriter(run, LAYER, "mean", 500, "auto") as index:
        index.add(np.array([999]), np.full((1, DIM), np.inf, np.float32))
    assert_brute_force(Index.open(run, LAYER), x)


# Memory-mapped, stale, damaged


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw"])
def test_mapped_equals_in_memory(run: Path, x: np.ndarray, kind: str) -> None:
    build(run, LAYER, kind=kind)
    mapped, read = Index.open(run, LAYER), Index.open(run, LAYER, mapped=False)
    for among in (None, np.arange(0, 100, 4)):
        for found, expected in zip(mapped.search(x, 9, among), read.search(x, 9, among), strict=True):
            np.testing.assert_array_equal(found, expected)


def test_a_mapped_index_outlives_its_files(run: Path, x: np.ndarray) -> None:
    build(run, LAYER)
    index = Index.open(run, LAYER)
    build(run, LAYER, kind="hnsw")
    assert_brute_force(index, x)


def test_a_reader_follows_to_the_next_generation(
    run: Path, x: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    from extractor.index import generation

    build(run, LAYER)
    real = generation._load
    replaced: list[int] = []

    def late(*arguments: Any) -> Any:
        if not replaced:
            replaced.append(1)
            build(run, LAYER)  # deletes what is about to be read
        return real(*arguments)

    monkeypatch.setattr(generation, "_load", late)
    assert_brute_force(Index.open(run, LAYER), x)


def test_an_index_of_another_run_is_refused_with_the_command_that_rebuilds_it(
    tmp_path: Path, run: Path, x: np.ndarray
) -> None:
    build(run, LAYER)
    run_json = run / "run.json"
    values = json.loads(run_json.read_text())
    values["settings"]["model"] = "another"
    run_json.write_text(json.dumps(values))
    with pytest.raises(IndexStale, match=rf"other settings; build it with `{COMMAND}`"):
        Index.open(run, LAYER)
    index = IndexWriter(run, LAYER, "mean", len(x))
    assert not index._known  # nothing of the stale one is taken up
    assert_brute_force(index.close(), x)


def test_rows_that_the_store_lost_are_counted(run: Path) -> None:
    build(run, LAYER)
    part = next((run / "parts").iterdir())
    part.unlink()
    with pytest.raises(IndexStale, match=rf"120 of its own are no longer there; build it with `{COMMAND}`"):
        Index.open(run, LAYER)


@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize("suffix", [".faiss", ".npz"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "grown", "empty", "missing"])
def test_a_damaged_file_is_refused_with_the_command_that_rebuilds_it(
    run: Path, x: np.ndarray, suffix: str, damage: str, mapped: bool
) -> None:
    build(run, LAYER)
    path = folder_of(run, LAYER, "mean") / f"1{suffix}"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    damaged = {"cut": data[:-9], "flipped": data, "grown": data + b"0", "empty": b"", "missing": None}[damage]
    path.unlink()
    if damaged is not None:
        path.write_bytes(damaged)
    with pytest.raises(BrokenIndex, match=rf"1\{suffix}: .*build it with `{COMMAND}`"):
        Index.open(run, LAYER, mapped=mapped)
    assert_brute_force(build(run, LAYER), x)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"format": 1}', '{"format": 1, "files": []}'])
def test_a_damaged_description_is_refused(run: Path, x: np.ndarray, text: str) -> None:
    build(run, LAYER)
    (folder_of(run, LAYER, "mean") / HEAD).write_text(text)
    with pytest.raises(BrokenIndex, match=rf"index.json: .*build it with `{COMMAND}`"):
        Index.open(run, LAYER)
    assert_brute_force(IndexWriter(run, LAYER, "mean", len(x)).close(), x)


def test_another_format_is_refused(run: Path) -> None:
    build(run, LAYER)
    head = folder_of(run, LAYER, "mean") / HEAD
    head.write_text(json.dumps(json.loads(head.read_text()) | {"format": 2}))
    with pytest.raises(BrokenIndex, match="format 2, this hser reads 1"):
        Index.open(run, LAYER)


def test_a_folder_that_cannot_be_written_is_named(run: Path) -> None:
    (run / "index").write_text("a file where the folder should be")
    with pytest.raises(StoreUnwritable, match="a file is where a folder should be"):
        build(run, LAYER)
    assert len(in_memory(Store(run), LAYER, "mean")) == 120


def test_a_packed_run_has_no_index(run: Path, tmp_path: Path) -> None:
    from extractor.store.pack import pack

    pack(run, tmp_path / "packed.h5")
    with pytest.raises(StoreError, match="a packed run has no index"):
        build(tmp_path / "packed.h5", LAYER)
