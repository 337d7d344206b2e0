"""Killed at any moment and resumed equals uninterrupted.

The writer runs in a forked process that dies (``os._exit``, as by SIGKILL: nothing is cleaned up),
or whose file system fails, at its k-th file operation; for every k until it gets through.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from interruptions import (
    EVERY_PWRITE,
    KILLED,
    SURVIVED,
    THROUGH,
    exit_code,
    in_child,
    interrupt_at,
    interrupted_everywhere,
)
from store_cases import (
    COLUMNS,
    DIM,
    FRAMES,
    batches,
    commit_all,
    content,
    manifest_of,
    opened,
    utterance_at,
    write_run,
)

from extractor.errors import StoreError
from extractor.store import Store
from extractor.store import writer as run_writer
from extractor.store.edit import drop, relabel
from extractor.store.run_folder import RUN
from extractor.store.verify import verify
from extractor.types import Manifest

AGED = (*COLUMNS, "age")


@pytest.fixture(autouse=True)
def small_merges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_writer, "MERGE_BATCHES", 3)
    # What a process wrote survives its death without a sync; thousands of them would take a minute.
    monkeypatch.setattr(os, "fsync", lambda fd: None)


def check_readable(run: Path, whole: Store) -> None:
    """Whatever happened, what is there is right and complete rows."""
    if not (run / RUN).exists():
        return
    store = Store(run)
    known = np.searchsorted(whole.positions, store.positions)
    np.testing.assert_array_equal(store.load(pooling="mean"), whole.load_rows(known, pooling="mean"))
    assert store.ids == [whole.ids[k] for k in known]


@pytest.mark.parametrize("how", ["kill", "fail"])
def test_interrupted_at_any_file_operation_and_resumed_equals_uninterrupted(tmp_path: Path, how: str) -> None:
    results = batches(4, rows=2, dim=FRAMES)
    write_run(tmp_path / "whole", results, FRAMES)
    expected, whole = content(tmp_path / "whole"), Store(tmp_path / "whole")
    num_runs = 0
    work = partial(write_run, results=results, dim=FRAMES)
    for run, _ in interrupted_everywhere(work, lambda k: tmp_path / f"{k}", how, EVERY_PWRITE):
        check_readable(run, whole)
        write_run(run, results, FRAMES)
        assert content(run) == expected, run
        assert verify(run) == [], run
        assert not list(run.rglob("*.tmp"))
        num_runs += 1
    assert num_runs > 40


@pytest.mark.parametrize("how", ["kill", "fail"])
def test_edits_interrupted_at_any_file_operation(tmp_path: Path, how: str) -> None:
    """A run is what it was before an edit or what it is after; the next writer leaves no trace of more."""
    write_run(tmp_path / "run", batches(2, rows=3))
    manifest = Manifest([replace(utterance_at(k), labels=("joy", "", "", "9")) for k in range(6)], AGED)

    def edit(run: Path, states: list[dict[str, Any]] | None = None) -> None:
        relabel(run, manifest)
        if states is not None:
            states.append(content(run))
        drop(run, "id == '0:plain'")

    states = [content(tmp_path / "run")]
    shutil.copytree(tmp_path / "run", tmp_path / "edited")
    edit(tmp_path / "edited", states)
    states.append(content(tmp_path / "edited"))
    seen = []
    runs = interrupted_everywhere(
        edit,
        lambda k: shutil.copytree(tmp_path / "run", tmp_path / f"{k}"),
        how,
        EVERY_PWRITE,
        step=1 if how == "kill" else 3,
    )
    for run, code in runs:
        state = states.index(content(run))
        opened(run).close()
        assert content(run) == states[state]
        assert verify(run) == []
        assert not list(run.rglob("*.tmp"))
        if code != SURVIVED:
            seen.append(state)
    assert sorted(seen) == seen
    assert set(seen) == {0, 1, 2}


def test_interrupted_while_it_resumes(tmp_path: Path) -> None:
    """A run that is left with batch files, leftovers and a half-deleted merge, killed again and again."""
    results = batches(9, rows=2)
    write_run(tmp_path / "whole", results)
    expected = content(tmp_path / "whole")
    randomly = random.Random(0)
    for number in range(4):
        run = tmp_path / f"run{number}"
        for _ in range(12):
            k = randomly.randrange(5, 60)

            def work(run: Path = run, k: int = k) -> None:
                interrupt_at(k, "kill", EVERY_PWRITE)
                write_run(run, results)

            assert exit_code(in_child(work)) in (THROUGH, KILLED)
        write_run(run, results)
        assert content(run) == expected
        assert verify(run) == []


def test_killed_at_twenty_random_moments_equals_uninterrupted(tmp_path: Path) -> None:
    results = batches(60, rows=5, dim=FRAMES)
    write_run(tmp_path / "whole", results, FRAMES)
    run = tmp_path / "run"
    randomly = random.Random(1)
    sizes = []
    for _ in range(20):
        pid = in_child(lambda: write_run(run, results, FRAMES))
        time.sleep(randomly.uniform(0.005, 0.12))
        os.kill(pid, signal.SIGKILL)
        exit_code(pid)
        if (run / RUN).exists():
            check_readable(run, Store(tmp_path / "whole"))
            sizes.append(len(Store(run)))
    assert sizes == sorted(sizes)  # nothing that was committed is ever lost
    write_run(run, results, FRAMES)
    assert content(run) == content(tmp_path / "whole")
    assert verify(run) == []


def test_shards_write_at_once(tmp_path: Path) -> None:
    results = batches(40, rows=3)
    write_run(tmp_path / "whole", results)
    run = tmp_path / "run"
    shards = [in_child(partial(write_run, run, results, shard=(i, 3))) for i in range(3)]
    assert [exit_code(pid) for pid in shards] == [THROUGH] * 3
    assert content(run) == content(tmp_path / "whole")
    assert verify(run) == []


def test_shards_killed_and_resumed_otherwise_divided(tmp_path: Path) -> None:
    results = batches(40, rows=3)
    write_run(tmp_path / "whole", results)
    run = tmp_path / "run"
    randomly = random.Random(2)
    for count in (2, 3, 2, 4):
        shards = [in_child(partial(write_run, run, results, shard=(i, count))) for i in range(count)]
        time.sleep(randomly.uniform(0.02, 0.1))
        for pid in shards:
            os.kill(pid, signal.SIGKILL)
            assert exit_code(pid) in (-signal.SIGKILL, THROUGH)
        if (run / RUN).exists():
            check_readable(run, Store(tmp_path / "whole"))
    write_run(run, results)
    assert content(run) == content(tmp_path / "whole")
    assert verify(run) == []


def test_ctrl_c_inside_hdf5_leaves_the_batch_out_and_the_process_well(tmp_path: Path) -> None:
    results = batches(3, rows=2)
    real = os.pwrite

    def interrupting(*arguments: Any) -> int:
        os.kill(os.getpid(), signal.SIGINT)
        return real(*arguments)

    def work() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with opened(tmp_path / "run") as writer:
            writer.write_manifest(manifest_of(results))
            writer.commit(results[0])
            os.pwrite = interrupting
            try:
                writer.commit(results[1])
            except KeyboardInterrupt:
                os.pwrite = real
                writer.commit(results[2])
            else:
                raise AssertionError("Ctrl-C was lost")

    assert exit_code(in_child(work)) == THROUGH
    with opened(tmp_path / "run") as writer:
        assert writer.done() == {0, 2}
    write_run(tmp_path / "run", results)
    assert verify(tmp_path / "run") == []


def test_a_batch_that_is_also_in_a_part_counts_once(tmp_path: Path) -> None:
    run = tmp_path / "run"
    results = batches(2, dim=DIM)
    with opened(run) as writer:
        commit_all(writer, results)
        saved = {path: path.read_bytes() for path in (run / "parts").iterdir()}
    for path, data in saved.items():
        path.write_bytes(data)
    (run / "parts" / "batch-00000001.h5.tmp").write_bytes(b"")
    expected = sum(len(result.rows) for result in results)
    assert len(Store(run)) == expected
    with opened(run) as writer:
        assert writer.done() == {0, 1}
        assert writer.repaired == []
        assert [path.name for path in (run / "parts").iterdir()] == ["part-00000000.h5"]
    assert len(Store(run)) == expected
    assert verify(run) == []


def test_rows_that_are_there_twice_are_refused_and_named(tmp_path: Path) -> None:
    run = tmp_path / "run"
    results = batches(3)
    with opened(run) as writer:
        commit_all(writer, results, [*results, replace(results[0], batch=7)])
        with pytest.raises(StoreError, match="rows are there twice"):
            Store(run)
        assert any("more than one row" in problem for problem in verify(run))
        (run / "parts" / "batch-00000007.h5").unlink()
        writer._pending.clear()
    assert verify(run) == []
