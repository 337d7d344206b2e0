"""A run that is killed at any moment, as often as you like, ends as one that never was."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import time
from pathlib import Path

import h5py
import numpy as np
import soundfile
from conftest import MakeCheckpoint

from extractor import Store
from extractor.run import pipeline
from extractor.run.engine import run
from extractor.run.options import Options

NUM_RECORDINGS = 300
NUM_KILLS = 20


def _run(folder: str, model: str, out: str) -> None:
    # Some batches in a commit, and still many commits to be killed between, however slow the disk is.
    pipeline.MAX_BATCHES = 4
    run(folder, Options(model=model, dtype="bf16", batch_seconds=1.5), out)


def _committed(run_folder: Path, known: dict[str, list[int]]) -> int:
    """Batches in the data files, which hold one or several; ``known``: what each was seen to hold."""
    parts = run_folder / "parts"
    names = os.listdir(parts) if parts.is_dir() else []  # noqa: PTH208 - names only
    for name in names:
        if name.endswith(".h5") and name not in known:
            with contextlib.suppress(FileNotFoundError), h5py.File(parts / name, locking=False) as h5:
                known[name] = h5["batches"][:].tolist()
    return len({batch for batches in known.values() for batch in batches})


def _contents(path: Path) -> tuple[list[str], list[str], bytes]:
    with Store(path) as store:
        return store.ids, store.checksums, store.load().tobytes()


def test_killed_twenty_times_and_resumed_equals_uninterrupted(
    checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    rng, moments = np.random.default_rng(5), random.Random(5)
    data = tmp_path / "data"
    data.mkdir()
    for i in range(NUM_RECORDINGS):
        audio = 0.1 * rng.standard_normal(int(rng.integers(4_000, 24_000)))
        soundfile.write(data / f"r{i:03}.wav", audio, 16_000)
    model = str(checkpoint("hubert"))
    run(data, Options(model=model, dtype="bf16", batch_seconds=1.5), tmp_path / "whole")

    # Forked from a process that has imported everything: seconds of import in each would make
    # most kills hit the imports.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "extractor.run.batch",
            "extractor.run.engine",
            "extractor.audio.decode",
            "transformers.models.hubert.modeling_hubert",
        ]
    )
    with Store(tmp_path / "whole") as store:
        num_batches = len(store.batches)
    # Kills are spread by what is committed, not by the clock: over the whole run on any machine.
    # None is a kill during the set-up; the last two hit the merging and closing.
    targets: list[int | None] = sorted(moments.sample(range(1, num_batches), NUM_KILLS - 6))
    targets = [None, *targets[:5], None, *targets[5:], None, num_batches, num_batches, None]
    landed = []
    known: dict[str, list[int]] = {}
    for target in targets:
        child = context.Process(target=_run, args=(str(data), model, str(tmp_path / "run")))
        child.start()
        if target is None:
            time.sleep(moments.uniform(0.0, 0.8))
        while target is not None and child.is_alive() and _committed(tmp_path / "run", known) < target:
            time.sleep(0.0005)
        if target is not None:
            time.sleep(moments.uniform(0.0, 0.01))
        child.kill()
        child.join()
        landed.append(len(Store(tmp_path / "run")) if _committed(tmp_path / "run", known) else 0)
    assert len(landed) == NUM_KILLS
    assert landed == sorted(landed), "a kill lost what was stored"
    assert len({n for n in landed if 0 < n < NUM_RECORDINGS}) >= 10, f"the kills missed the run: {landed}"
    assert sum(n > NUM_RECORDINGS // 2 for n in landed) >= 4, f"only its beginning was hit: {landed}"

    summary = run(data, Options(model=model, dtype="bf16", batch_seconds=1.5), tmp_path / "run")
    assert summary.stored == NUM_RECORDINGS
    assert not summary.failures
    assert _contents(tmp_path / "run") == _contents(tmp_path / "whole")
