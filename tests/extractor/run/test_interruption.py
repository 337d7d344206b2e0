"""Ctrl-C and SIGTERM: 130 and no traceback; the second one ends a process whatever it is in.

A run that is killed at any moment, as often as you like, ends as one that never was.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import pytest
from conftest import ROOT, MakeCheckpoint
from run_cases import random_lengths, same_store, write_noises

from extractor.run import pipeline
from extractor.run.engine import run
from extractor.run.options import Options
from extractor.store import Store
from extractor.store.aside import interrupt_later
from extractor.store.verify import verify

COMMANDS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
WAIT = 120  # seconds for what takes one; a machine may be busy
BETWEEN = 0.3  # seconds from one Ctrl-C to the next: more than what counts as the same

# A command whose work waits as Python does, or computes in C, which no handler in Python interrupts.
SLOW = """
import hashlib, sys, time
import click
from importlib import import_module

def work(*_):
    print("at work", flush=True)
    if how == "python":
        time.sleep(600)
    else:
        hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)

click.Command.invoke = click.Group.invoke = work
click.Command.parse_args = click.Group.parse_args = lambda *_: []
(module, main), how = sys.argv[1].split(":"), sys.argv[2]
getattr(import_module(module), main)()
"""

# Found by every process of a run: the forward pass takes minutes.
SLOW_PASS = """
import os, time
from extractor.run.batch import BatchEncoder

def encode(self, job):
    with open(os.environ["AT_WORK"] + f"/{os.getpid()}", "w"):
        time.sleep(600)

BatchEncoder.__call__ = encode
"""


@contextmanager
def started(*words: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """In a group of its own, which a terminal's Ctrl-C reaches as a whole."""
    process = subprocess.Popen(
        [sys.executable, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def ended(process: subprocess.Popen[str]) -> str:
    """What it had to say, having ended as it should."""
    printed, said = process.communicate(timeout=WAIT)
    assert process.returncode == 130, said
    assert "Traceback" not in said and "Exception ignored" not in said
    return printed + said


@pytest.mark.parametrize("name", COMMANDS)
def test_the_first_ctrl_c_ends_a_command_without_a_traceback(name: str) -> None:
    with started("-c", SLOW, COMMANDS[name], "python") as process:
        assert process.stdout is not None and process.stdout.readline() == "at work\n"
        process.send_signal(signal.SIGINT)
        assert ended(process) == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_second_one_ends_a_command_that_is_computing(number: signal.Signals) -> None:
    with started("-c", SLOW, COMMANDS["hser-train"], "c") as process:
        assert process.stdout is not None and process.stdout.readline() == "at work\n"
        time.sleep(BETWEEN)  # until it is in C
        process.send_signal(number)
        time.sleep(BETWEEN)
        assert process.poll() is None
        process.send_signal(number)
        assert ended(process) == ""


TWO = ["--devices", "cpu,cpu"]


@pytest.mark.parametrize(
    ("number", "devices"), [(signal.SIGINT, []), (signal.SIGTERM, []), (signal.SIGINT, TWO)]
)
def test_ctrl_c_ends_after_the_batches_in_flight_and_says_how_to_go_on(
    number: signal.Signals, devices: list[str], tmp_path: Path, checkpoint: MakeCheckpoint
) -> None:
    data, out = write_noises(tmp_path / "data", [24_000] * 120), tmp_path / "run"
    options = ["--model", str(checkpoint("hubert")), "--dtype", "fp32", "--batch-seconds", "1.5"]
    command = ["-m", "extractor.commands.extract", str(data), *options, "--out", str(out)]
    with started(*command, *devices) as process:
        while not any(out.glob("parts/*.h5")):
            assert process.poll() is None, process.communicate()
            time.sleep(0.002)
        os.killpg(process.pid, number)
        said = ended(process)
    assert "run the same command again" in said and "stopped" in said
    assert 0 < len(Store(out)) < 120
    assert devices or (out / "embeddings.h5").exists()
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=True, cwd=ROOT)
    assert re.search(r"^stored +120 ", done.stdout, re.MULTILINE)
    assert verify(out) == []


@pytest.mark.parametrize(("number", "devices"), [(signal.SIGTERM, []), (signal.SIGINT, TWO)])
def test_the_second_one_ends_a_run_in_the_midst_of_its_forward_passes(
    number: signal.Signals, devices: list[str], tmp_path: Path
) -> None:
    """All processes of it."""
    data = write_noises(tmp_path / "data", [8_000, 8_100, 8_200])
    out, at_work = tmp_path / "run", tmp_path / "at-work"
    words = ["--model", "mfcc", "--batch-seconds", "0.1", "--out", str(out), *devices]
    at_work.mkdir()
    (tmp_path / "patch").mkdir()
    (tmp_path / "patch" / "sitecustomize.py").write_text(SLOW_PASS)
    path = os.pathsep.join([str(tmp_path / "patch"), str(ROOT)])
    command = ["-m", "extractor.commands.extract", str(data), *words]
    with started(*command, PYTHONPATH=path, AT_WORK=str(at_work)) as process:
        until = time.monotonic() + WAIT
        while len(list(at_work.iterdir())) < (2 if devices else 1):
            assert process.poll() is None and time.monotonic() < until, process.communicate()
            time.sleep(0.02)
        process.send_signal(number)
        time.sleep(BETWEEN)
        assert process.poll() is None
        process.send_signal(number)
        said = ended(process)
        assert "run the same command again" in said
        for pid in [int(file.name) for file in at_work.iterdir()]:
            while Path(f"/proc/{pid}/stat").exists() and process.pid != pid:
                assert time.monotonic() < until, f"process {pid} is left behind"
                time.sleep(0.02)
    assert len(Store(out)) == 0


def test_what_was_held_back_is_one_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """A handler is called once, behind the block, and no signal is raised again."""
    heard: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        monkeypatch.setattr(signal, "raise_signal", None)
        before = signal.signal(number, lambda number, frame: heard.append(number))
        try:
            with interrupt_later():
                os.kill(os.getpid(), number)
                os.kill(os.getpid(), number)
                assert heard == []
            assert heard == [number]
        finally:
            signal.signal(number, before)
        heard.clear()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_at_the_very_end_changes_nothing(number: signal.Signals) -> None:
    # What is registered first is called last: when the command and its threads have ended.
    code = (
        "import atexit, os, sys\n"
        f"atexit.register(os.kill, os.getpid(), {int(number)})\n"
        "from extractor.run.interruption import end_on_signals\n"
        "end_on_signals()\n"
        "sys.exit(3)\n"
    )
    with started("-c", code) as process:
        _, said = process.communicate(timeout=WAIT)
    assert (process.returncode, said) == (3, "")


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


def test_killed_twenty_times_and_resumed_equals_uninterrupted(
    checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    moments = random.Random(5)
    data = write_noises(tmp_path / "data", random_lengths(NUM_RECORDINGS, 4_000, 24_000))
    model = str(checkpoint("hubert"))
    run(data, Options(model=model, dtype="bf16", batch_seconds=1.5), tmp_path / "whole")

    # Forked from a process that has imported everything: seconds of import in each would make
    # most kills hit the imports.
    context = multiprocessing.get_context("forkserver")
    modules = ["run.batch", "run.engine", "audio.decode"]
    context.set_forkserver_preload(
        [*(f"extractor.{name}" for name in modules), "transformers.models.hubert.modeling_hubert"]
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
    same_store(tmp_path / "run", tmp_path / "whole")
