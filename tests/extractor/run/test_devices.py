"""A run on several devices: what one process gives, however the others fare."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeCheckpoint
from run_cases import Notes, random_lengths, same_store, stopped, write_noises

from extractor import SettingsError, Store, extract
from extractor.errors import ModelError, ProcessDied
from extractor.index import Index
from extractor.progress import Counts
from extractor.run.devices import Display, Worker, Workers, parse_devices
from extractor.run.engine import run
from extractor.run.options import Options
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


def test_ctrl_c_stops_all_after_their_batches_in_flight(
    noises: Path, checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    model, out = checkpoint("hubert"), tmp_path / "run"
    args = [noises, "--model", model, "--dtype", "fp32", "--batch-seconds", "0.5", "--out", out]
    command = [sys.executable, "-m", "extractor.commands.extract", *map(str, args), "--devices", "cpu,cpu"]
    # A group of its own, which a terminal's Ctrl-C reaches as a whole.
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as child:
        while not any(out.glob("parts/*.h5")):
            assert child.poll() is None, child.communicate()
            time.sleep(0.002)
        os.killpg(child.pid, signal.SIGINT)
        printed, err = child.communicate(timeout=120)
    assert child.returncode == 130, err
    assert "stopped" in printed and "Traceback" not in err
    assert 0 < len(Store(out)) < NUM_RECORDINGS
    assert run(noises, options(model, batch_seconds=0.5), out).stored == NUM_RECORDINGS
    assert verify(out) == []


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
