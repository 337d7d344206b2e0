"""A run on several devices, or several batches at once on a CPU, is what one process gives."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from conftest import MakeCheckpoint
from run_cases import Notes, random_lengths, same_store, stopped, write_noises

from extractor import SettingsError, Store, extract
from extractor.errors import ModelError, ProcessDied
from extractor.index import Index
from extractor.progress import Counts
from extractor.run.batch import BatchEncoder
from extractor.run.devices import Display, Worker, Workers, parse_devices
from extractor.run.engine import run
from extractor.run.options import Options
from extractor.run.pipeline import num_streams, threads_of
from extractor.store.verify import verify

NUM_RECORDINGS = 40


@pytest.fixture(scope="module")
def noises(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_noises(tmp_path_factory.mktemp("noises"), random_lengths(NUM_RECORDINGS, 8_000, 32_000))
    (folder / "empty.wav").touch()
    return folder


def options(model: Path | str, **changes: Any) -> Options:
    return Options(model=str(model), dtype="fp32", **({"batch_seconds": 2.0} | changes))


def test_two_processes_give_what_one_gives_with_one_progress_and_the_index(
    noises: Path, checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    model, noted = checkpoint(), Notes()
    run(noises, options(model), tmp_path / "one")
    made = options(model, devices="cpu,cpu", index="mean:-1")
    summary = run(noises, made, tmp_path / "two", noted)
    same_store(tmp_path / "one", tmp_path / "two")
    assert verify(tmp_path / "two") == []
    assert (summary.embedded, summary.stored, summary.stopped) == (NUM_RECORDINGS, NUM_RECORDINGS, False)
    assert [failure.id for failure in summary.failures] == ["empty"]
    assert summary.speed > 0 and 0 < summary.encode_seconds <= summary.seconds
    store = Store(tmp_path / "two")
    assert (
        Index.open(tmp_path / "two", store.layers[-1], "mean").positions.tolist() == store.positions.tolist()
    )
    # Both had a share, and together they are one display that ends with all.
    assert [n for what, n, _ in noted.shown if what == "embedding"] == [NUM_RECORDINGS]
    assert noted.counts[-1] == NUM_RECORDINGS
    assert len(set(noted.said)) == len(noted.said)
    assert noted.of("corpus")


def test_a_process_that_is_killed_is_named_and_the_others_go_on(
    noises: Path, checkpoint: MakeCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = Workers._take
    killed: list[Worker] = []

    def kill_the_first_when_it_has_planned(self: Workers, worker: Worker, report: Any) -> None:
        take(self, worker, report)
        if worker.share is not None and not killed:
            killed.append(worker)
            worker.process.send_signal(signal.SIGKILL)

    monkeypatch.setattr(Workers, "_take", kill_the_first_when_it_has_planned)
    made, noted = options(checkpoint("wavlm"), batch_seconds=0.5), Notes()
    with pytest.raises(ProcessDied, match=r"process of cpu was killed by signal 9.*[Ll]ast lines"):
        run(noises, replace(made, devices=["cpu", "cpu"]), tmp_path / "run", noted)
    assert noted.of("the other devices go on")
    stored = len(Store(tmp_path / "run"))
    assert 0 < stored < NUM_RECORDINGS
    summary = run(noises, made, tmp_path / "run")  # divided otherwise now: all by one
    assert (summary.stored, summary.embedded) == (NUM_RECORDINGS, NUM_RECORDINGS - stored)
    assert verify(tmp_path / "run") == []


def test_an_error_of_a_process_is_the_error_of_the_run(noises: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"cpu: .*hubert-larg"):
        extract(noises, model="hubert-larg", out=tmp_path / "run", devices=["cpu", "cpu"])
    assert not (tmp_path / "run").exists()


def test_stopped_before_it_began_it_plans_nothing_twice_and_embeds_nothing(
    noises: Path, tmp_path: Path
) -> None:
    summary = run(noises, Options("mfcc", devices="cpu,cpu"), tmp_path / "run", stop=stopped())
    assert (summary.embedded, summary.stopped) == (0, True)


def test_devices_are_parsed_and_refused_by_name() -> None:
    assert parse_devices("") == parse_devices(()) == []
    assert parse_devices("cpu, cpu") == parse_devices(["cpu", "cpu"]) == ["cpu", "cpu"]
    for bad in ("tpu", "0;1", "cuda", "99"):
        with pytest.raises(SettingsError, match=f"--device.*{bad}"):
            parse_devices(bad)


def test_the_display_begins_when_all_have_begun_or_ended() -> None:
    noted = Notes()
    display = Display(noted)
    workers = [Worker(device, None, None) for device in ("a", "b", "c")]  # type: ignore[arg-type]
    workers[0].share, workers[0].done = (10, 50.0, 0.0), Counts(4, 20.0)
    display.show(workers)
    display.show(workers)
    assert noted.shown == [] and noted.counts == []
    workers[1].share, workers[2].ended = (5, 20.0, 0.0), True
    display.show(workers)
    workers[1].done = Counts(2, 1.0)
    display.show(workers)
    assert noted.shown == [("embedding", 15, 70.0)] and noted.counts == [4, 6]


@pytest.fixture(scope="module")
def short_noises(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 recordings of noise, 0.5 to 1.5 s: 24 s in all."""
    seconds = np.random.default_rng(0).permutation(np.linspace(0.5, 1.5, 24))
    return write_noises(tmp_path_factory.mktemp("noises"), [round(16_000 * each) for each in seconds])


def test_a_lone_run_is_cut_for_its_cores_and_shards_are_not(
    short_noises: Path, checkpoint: MakeCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards make one plan on machines that differ; a run alone keeps all cores of its own busy."""

    def seconds_by_batch(cores: int, shard: tuple[int, int]) -> list[float]:
        monkeypatch.setattr("extractor.run.pipeline.num_cores", lambda: cores)
        out = tmp_path / f"{cores}-{shard[1]}"
        run(short_noises, Options(model=str(checkpoint()), dtype="fp32", device="cpu", shard=shard), out)
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
    short_noises: Path, checkpoint: MakeCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("extractor.run.pipeline.num_cores", lambda: 2)
    threads: dict[int, int] = {}
    encode = BatchEncoder.__call__

    def watched(self: BatchEncoder, job: Any) -> Any:
        threads[job.batch.index] = torch.get_num_threads()
        return encode(self, job)

    monkeypatch.setattr(BatchEncoder, "__call__", watched)
    files = [str(p) for p in sorted(short_noises.iterdir()) if soundfile.info(p).duration > 1][:3]
    before = torch.get_num_threads()
    run(
        files,
        Options(model=str(checkpoint()), dtype="fp32", device="cpu", batch_seconds=0.5),
        tmp_path / "run",
    )
    assert threads == {0: 1, 1: 1, 2: 2}
    assert torch.get_num_threads() == before
