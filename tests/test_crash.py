"""A run that is killed at any moment, as often as you like, ends as one that never was."""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from pathlib import Path

import numpy as np
import soundfile
from conftest import MakeCheckpoint

from extractor import Store
from extractor.engine import Options, run

NUM_RECORDINGS = 300
NUM_KILLS = 20


def _run(folder: str, model: str, out: str) -> None:
    run(folder, Options(model=model, dtype="bf16", batch_seconds=1.5), out)


def _data_files(run_folder: Path) -> set[str]:
    parts = run_folder / "parts"
    return set(os.listdir(parts)) if parts.is_dir() else set()  # noqa: PTH208 - names only


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
            "extractor.batch",
            "extractor.engine",
            "extractor.decode",
            "transformers.models.hubert.modeling_hubert",
        ]
    )
    landed = []
    for k in range(NUM_KILLS):
        child = context.Process(target=_run, args=(str(data), model, str(tmp_path / "run")))
        child.start()
        if k % 4:  # in the midst of committing; else earlier, in the set-up
            before = _data_files(tmp_path / "run")
            while child.is_alive() and _data_files(tmp_path / "run") == before:
                time.sleep(0.001)
        time.sleep(moments.uniform(0.0, 0.12 if k % 4 else 0.8))
        child.kill()
        child.join()
        landed.append(len(Store(tmp_path / "run")) if _data_files(tmp_path / "run") else 0)
    assert landed == sorted(landed), "a kill lost what was stored"
    assert len({n for n in landed if 0 < n < NUM_RECORDINGS}) >= 6, f"the kills missed the run: {landed}"

    summary = run(data, Options(model=model, dtype="bf16", batch_seconds=1.5), tmp_path / "run")
    assert summary.stored == NUM_RECORDINGS
    assert not summary.failures
    assert _contents(tmp_path / "run") == _contents(tmp_path / "whole")
