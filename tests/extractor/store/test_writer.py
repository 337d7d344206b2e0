"""What is committed, together or one by one; runs that are resumed and grow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
from interruptions import EVERY_PWRITE, interrupted_everywhere
from store_cases import (
    COLUMNS,
    SETTINGS,
    WITH_FRAMES,
    batches,
    commit_all,
    content,
    expected_values,
    manifest_of,
    one_row,
    opened,
    utterance_at,
    write_run,
)

from extractor.errors import SettingsDiffer, StoreError, StoreUnwritable
from extractor.run.pipeline import num_bytes
from extractor.store import Store, parts
from extractor.store import writer as run_writer
from extractor.store.pack import pack
from extractor.store.run_folder import ManifestRow, read_lines
from extractor.store.verify import verify
from extractor.store.writer import RunWriter
from extractor.types import BatchResult, Failure, Utterance


def write_together(path: Path, results: Sequence[BatchResult], group: int) -> None:
    with opened(path) as writer:
        commit_all(writer, results, [])
        todo = [result for result in results if result.batch not in writer.done()]
        for start in range(0, len(todo), group):
            with writer.together():
                for result in todo[start : start + group]:
                    writer.commit(result)


@pytest.mark.parametrize("part_bytes", [1, 4_000, 128 << 20])
def test_committed_together_is_what_one_by_one_is(
    part_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether each group is a part at once, or some are, or all are merged in the end."""
    results = batches(20, rows=[*[1, 4, 0, 9, 2] * 4])
    write_run(tmp_path / "alone", results)
    monkeypatch.setattr(run_writer, "MERGE_BYTES", part_bytes)
    monkeypatch.setattr(parts, "BESIDE_BYTES", 1)  # checksums in a thread of their own, as of large files
    write_together(tmp_path / "together", results, group=3)
    assert content(tmp_path / "together") == content(tmp_path / "alone")
    assert verify(tmp_path / "together") == []
    with opened(tmp_path / "together") as writer:
        assert writer.done() == set(range(20))


def test_a_group_is_one_file_and_a_large_one_a_part_that_is_not_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = batches(6, rows=4, failing=0.0)
    size = num_bytes(results[0])
    with opened(tmp_path / "run") as writer:
        writer.write_manifest(manifest_of(results))
        for group, part_bytes in (([2, 0, 1], 3 * size), ([5, 4], 128 << 20)):
            monkeypatch.setattr(run_writer, "MERGE_BYTES", part_bytes)
            with writer.together():
                for batch in group:
                    writer.commit(results[batch])
                assert not list((tmp_path / "run" / "parts").glob(f"*{min(group)}.h5"))
        part = tmp_path / "run" / "parts" / "part-00000000.h5"
        inode = part.stat().st_ino
        assert (tmp_path / "run" / "parts" / "batch-00000004.h5").exists()
        with pytest.raises(ValueError, match="committed"):
            writer.commit(results[1])
        writer.commit(results[3])
    assert part.stat().st_ino == inode
    assert verify(tmp_path / "run") == []


def test_what_was_committed_before_an_error_in_a_group_is_kept(tmp_path: Path) -> None:
    results = batches(3)

    def fail_in_between(writer: RunWriter) -> None:
        with writer.together():
            writer.commit(results[0])
            writer.commit(results[1])
            raise StoreUnwritable("of something else")

    with opened(tmp_path / "run") as writer:
        writer.write_manifest(manifest_of(results))
        with pytest.raises(StoreUnwritable, match="something else"):
            fail_in_between(writer)
        assert writer.done() == {0, 1}
        writer.commit(results[2])  # and the run goes on
    assert verify(tmp_path / "run") == []


def test_killed_at_any_file_operation_of_a_group_and_resumed_equals_uninterrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups of which some are parts at once and some are merged."""
    monkeypatch.setattr("os.fsync", lambda fd: None)  # what a process wrote survives its death
    results = batches(4, rows=[2, 1, 4, 2], failing=0.0)
    monkeypatch.setattr(run_writer, "MERGE_BYTES", 6 * num_bytes(one_row(0, 0)))
    write_together(tmp_path / "whole", results, group=2)
    expected, times = content(tmp_path / "whole"), 0
    work = partial(write_together, results=results, group=2)
    for run_folder, _ in interrupted_everywhere(work, lambda k: tmp_path / f"{k}", "kill", EVERY_PWRITE):
        work(run_folder)
        assert content(run_folder) == expected, run_folder
        assert verify(run_folder) == [], run_folder
        times += 1
    assert times > 20


# Resuming, growing


def test_every_differing_setting_is_named(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_run(run, batches(1))
    other = SETTINGS | {"layers": "6,12", "dtype": "bf16", "extra": {"snr_db": 3}}
    del other["model"]
    with pytest.raises(SettingsDiffer) as raised:
        opened(run, settings=other)
    message = str(raised.value)
    assert "layers: the run has 0,6,12, you asked for 6,12" in message
    assert "dtype: the run has fp32, you asked for bf16" in message
    assert "model: the run has tiny, you asked for nothing" in message
    assert 'extra: the run has nothing, you asked for {"snr_db": 3}' in message
    assert "pooling" not in message
    assert "--out" in message
    opened(run, columns=("emotion",)).close()  # labels are no part of an embedding
    with pytest.raises(SettingsDiffer, match="storage_dtype"):
        opened(run, storage_dtype="fp16")
    opened(run, environment={"device": "another"}).close()


def test_a_run_grows_and_failures_are_tried_again(tmp_path: Path) -> None:
    run = tmp_path / "run"
    failed = utterance_at(1)
    unread = utterance_at(2)
    rows = [
        ManifestRow(0, utterance_at(0), 400, 0),
        ManifestRow(1, failed, 400, 0),
        ManifestRow(2, unread, 0, -1, Failure(unread.id, unread.path, "probe", "no such file")),
    ]
    with opened(run) as writer:
        assert writer.manifest() is None
        writer.write_manifest(rows)
        assert writer.manifest() == rows
        failure = Failure(failed.id, failed.path, "decode", "cut short")
        writer.commit(replace(one_row(0, 0), failures=[failure]))
    assert Store(run).errors == [rows[2].failure, failure]
    assert verify(run) == []

    with opened(run) as writer:
        again = [
            ManifestRow(1, failed, 400, 1),
            ManifestRow(2, unread, 400, 1),
            ManifestRow(3, utterance_at(3), 400, 1),
        ]
        writer.append_manifest(again)
        assert writer.manifest() == [rows[0], *again]
        writer.append_manifest(again)  # as another shard would
        assert writer.manifest() == [rows[0], *again]
        with pytest.raises(StoreError, match="position 3 is another recording"):
            writer.append_manifest([ManifestRow(3, utterance_at(4), 400, 1)])
        second = Failure(unread.id, unread.path, "decode", "empty")
        writer.commit(replace(one_row(1, 1), failures=[second]))
        assert len(verify(run)) == 2  # position 3 is missing; embeddings.h5 is of before
        writer.commit(one_row(2, 3))
    store = Store(run)
    assert store.ids == [utterance_at(k).id for k in (0, 1, 3)]
    assert store.errors == [second]
    assert verify(run) == []


def test_a_manifest_is_written_once_and_agreed_on(tmp_path: Path) -> None:
    run = tmp_path / "run"
    rows = manifest_of(batches(3))
    with opened(run) as writer:
        writer.write_manifest(rows)
        writer.write_manifest(rows)
        with pytest.raises(StoreError, match="another manifest"):
            writer.write_manifest(rows[:-1])
        with pytest.raises(ValueError, match="out of order"):
            opened(tmp_path / "other").write_manifest(rows[1:])


def test_a_long_manifest_comes_back_as_it_was_written(tmp_path: Path) -> None:
    num_rows = 20_000
    rows = [
        ManifestRow(k, Utterance(f"id{k}", f"/a/{k}.wav", labels=("x", "y", "z")), 400, k // 50)
        for k in range(num_rows)
    ]
    with opened(tmp_path / "run") as writer:
        writer.write_manifest(rows)
        assert read_lines(tmp_path / "run", COLUMNS).rows == rows


def test_a_bug_of_the_caller_is_not_stored(tmp_path: Path) -> None:
    result = batches(1, failing=0)[0]
    with opened(tmp_path / "run") as writer:
        with pytest.raises(ValueError, match="poolings"):
            writer.commit(replace(result, pooled={"mean": result.pooled["mean"]}))
        with pytest.raises(ValueError, match="rows"):
            writer.commit(replace(result, pooled=result.pooled | {"mean": result.pooled["mean"][1:]}))
        writer.commit(result)
        with pytest.raises(ValueError, match="is committed"):
            writer.commit(result)
    with pytest.raises(ValueError, match="closed"):
        writer.commit(replace(result, batch=1))
    writer.close()


# Half precision


def test_halves_are_stored_and_what_does_not_fit_is_a_failure(tmp_path: Path) -> None:
    run = tmp_path / "run"
    results = batches(2, dim=WITH_FRAMES, failing=0)
    results[0].pooled["mean"][1, 2, 3] = -70_000.0
    results[1].frames[0][0, 1, 2] = 1e6
    results[1].pooled["mean"][2, 0, 0] = 65_504.0  # the largest half
    refused = []
    with opened(run, WITH_FRAMES, storage_dtype="fp16") as writer:
        writer.write_manifest(manifest_of(results))
        for result in results:
            refused += writer.commit(result)
    assert [failure.stage for failure in refused] == ["store", "store"]
    assert "pooling mean, layer 12: the value -70000 is beyond fp16 (largest 65504)" in refused[0].reason
    assert "pooling none, layer 6: the value 1e+06" in refused[1].reason
    assert all("--storage-dtype fp32" in failure.reason for failure in refused)
    store = Store(run)
    assert store.errors == refused
    assert len(store) == 4
    kept = expected_values(results, "mean")[store.positions]
    np.testing.assert_array_equal(store.load(pooling="mean"), kept.astype(np.float16).astype(np.float32))
    assert np.isfinite(store.load(pooling="mean")).all()
    with h5py.File(run / "embeddings.h5") as h5:
        assert h5["embeddings/mean"].dtype == np.float16
    pack(run, tmp_path / "packed.h5")
    assert content(tmp_path / "packed.h5") == content(run)
    assert verify(run) == verify(tmp_path / "packed.h5") == []


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_never_stored(tmp_path: Path, value: float) -> None:
    with opened(tmp_path / "run") as writer:
        writer.write_manifest([ManifestRow(0, utterance_at(0), 400, 0)])
        (failure,) = writer.commit(one_row(0, 0, value))
    assert failure.reason == f"pooling mean, layer 0: a value is {value}"
    assert len(Store(tmp_path / "run")) == 0
