"""Batches that are committed together are one file, and what one by one is."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
from interruptions import EVERY_PWRITE, interrupted_everywhere
from store_cases import batches, content, manifest_of, one_row, opened, write_run

from extractor import StoreUnwritable
from extractor.run.pipeline import num_bytes
from extractor.store import parts
from extractor.store import writer as run_writer
from extractor.store.verify import verify
from extractor.store.writer import RunWriter
from extractor.types import BatchResult


def write_together(path: Path, results: Sequence[BatchResult], group: int) -> None:
    with opened(path) as writer:
        if writer.manifest() is None:
            writer.write_manifest(manifest_of(results))
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
