"""Batches at once on a CPU: a run's cut and its threads keep all cores busy, down to the last batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from conftest import MakeCheckpoint
from run_cases import write_noises

from extractor.run.batch import BatchEncoder
from extractor.run.engine import run
from extractor.run.options import Options
from extractor.run.pipeline import num_streams, threads_of


@pytest.fixture(scope="module")
def noises(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 recordings of noise, 0.5 to 1.5 s: 24 s in all."""
    seconds = np.random.default_rng(0).permutation(np.linspace(0.5, 1.5, 24))
    return write_noises(tmp_path_factory.mktemp("noises"), [round(16_000 * each) for each in seconds])


def test_a_lone_run_is_cut_for_its_cores_and_shards_are_not(
    noises: Path, checkpoint: MakeCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards make one plan on machines that differ; a run alone keeps all cores of its own busy."""

    def seconds_by_batch(cores: int, shard: tuple[int, int]) -> list[float]:
        monkeypatch.setattr("extractor.run.pipeline.num_cores", lambda: cores)
        out = tmp_path / f"{cores}-{shard[1]}"
        run(noises, Options(model=str(checkpoint()), dtype="fp32", device="cpu", shard=shard), out)
        seconds: dict[int, float] = {}
        for line in (out / "manifest.jsonl").read_text().splitlines():
            row = json.loads(line)
            seconds[row["batch"]] = seconds.get(row["batch"], 0.0) + row["num_samples"] / 16_000
        return [seconds[b] for b in sorted(seconds)]

    assert len(seconds_by_batch(1, (0, 1))) == 1  # 24 s fit in one batch
    for cores in (2, 3):
        alone = seconds_by_batch(cores, (0, 1))
        assert len(alone) == cores
        assert max(alone) < 1.5 * min(alone)
    assert seconds_by_batch(2, (0, 2)) == seconds_by_batch(3, (0, 2)) == seconds_by_batch(1, (0, 1))


def test_streams_fill_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("extractor.run.pipeline.num_cores", lambda: 6)
    assert [num_streams("cuda", 100), num_streams("cpu", 100), num_streams("cpu", 1)] == [1, 6, 1]
    assert threads_of(0, 1, 1) == threads_of(7, 100, 1) == 6
    assert [threads_of(b, 12, 6) for b in range(12)] == [1] * 12
    assert [threads_of(b, 8, 6) for b in range(8)] == [1] * 6 + [3] * 2  # two at the end: three cores each


def test_the_odd_batch_at_the_end_has_all_cores(
    noises: Path, checkpoint: MakeCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("extractor.run.pipeline.num_cores", lambda: 2)
    threads: dict[int, int] = {}
    encode = BatchEncoder.__call__

    def watched(self: BatchEncoder, job: Any) -> Any:
        threads[job.batch.index] = torch.get_num_threads()
        return encode(self, job)

    monkeypatch.setattr(BatchEncoder, "__call__", watched)
    files = [str(p) for p in sorted(noises.iterdir()) if soundfile.info(p).duration > 1][:3]
    before = torch.get_num_threads()
    run(
        files,
        Options(model=str(checkpoint()), dtype="fp32", device="cpu", batch_seconds=0.5),
        tmp_path / "run",
    )
    assert threads == {0: 1, 1: 1, 2: 2}
    assert torch.get_num_threads() == before
