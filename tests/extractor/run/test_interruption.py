"""Ctrl-C and SIGTERM: 130 and no traceback; the second one ends a process whatever it is in."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import ROOT

from extractor.store import Store
from extractor.store.aside import interrupt_later

COMMANDS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
WAIT = 60  # seconds for what takes one; a machine may be busy
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
    process = subprocess.Popen(
        [sys.executable, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def ended(process: subprocess.Popen[str]) -> str:
    """What it had to say, having ended as it should."""
    _, said = process.communicate(timeout=WAIT)
    assert process.returncode == 130, said
    assert "Traceback" not in said and "Exception ignored" not in said
    return said


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


@pytest.mark.parametrize(
    ("number", "devices"), [(signal.SIGTERM, []), (signal.SIGINT, ["--devices", "cpu,cpu"])]
)
def test_the_second_one_ends_a_run_in_the_midst_of_its_forward_passes(
    number: signal.Signals, devices: list[str], tmp_path: Path
) -> None:
    """All processes of it."""
    for i in range(3):
        soundfile.write(tmp_path / f"{i}.wav", np.full(8_000 + 100 * i, 0.1), 16_000)
    out, at_work = tmp_path / "run", tmp_path / "at-work"
    words = ["--model", "mfcc", "--batch-seconds", "0.1", "--out", str(out), *devices]
    at_work.mkdir()
    (tmp_path / "patch").mkdir()
    (tmp_path / "patch" / "sitecustomize.py").write_text(SLOW_PASS)
    path = os.pathsep.join([str(tmp_path / "patch"), str(ROOT)])
    files = [str(tmp_path / f"{i}.wav") for i in range(3)]
    with started(
        "-m", "extractor.commands.extract", *files, *words, PYTHONPATH=path, AT_WORK=str(at_work)
    ) as process:
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
