"""The command: what it prints, what it exits with, and what becomes of bad recordings."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import shared

from extractor import Store
from extractor.progress import Counts, Log, Summary, clock_time, failure_reasons, summary_rows
from extractor.types import Failure

HSER = (sys.executable, "-m", "extractor.commands.extract")


def hser(*args: object) -> subprocess.CompletedProcess[str]:
    """``hser-extract`` as a user runs it, in a process of its own."""
    return subprocess.run([*HSER, *map(str, args)], capture_output=True, text=True, check=False, timeout=300)


def test_help_names_models_poolings_and_corpora_that_exist() -> None:
    from extractor.encoders.families import MODELS
    from extractor.encoders.pooling import POOLINGS
    from extractor.encoders.spectral import SPECTRAL
    from extractor.inputs.corpora.table import CORPORA

    done = hser("--help")
    assert done.returncode == 0
    words = set(done.stdout.replace(",", " ").replace(";", " ").split())
    assert {*MODELS, *SPECTRAL, *POOLINGS, *CORPORA} <= words


def test_odd_files_are_embedded_or_explained(tmp_path: Path) -> None:
    odd = shared("odd")
    files = [p for p in odd.rglob("*") if p.is_file()]
    done = hser(odd, "--model", "mfcc", "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    with Store(tmp_path / "run") as store:
        paths, errors = store.paths, store.errors
        assert np.isfinite(store.load()).all()
    failed = [f.path for f in errors]
    assert sorted(paths + failed) == sorted(str(p) for p in files)
    assert len(paths) >= 80
    assert {failure.stage for failure in errors} <= {"probe", "decode"}
    for failure in errors:
        assert 5 < len(failure.reason) < 300 and not re.search(r"0x|\n", failure.reason)
    lines = (tmp_path / "run" / "errors.jsonl").read_text().splitlines()
    assert {json.loads(line)["path"] for line in lines} == set(failed)
    assert "Traceback" not in done.stderr
    assert hser(odd, "--model", "mfcc", "--out", tmp_path / "run", "--strict").returncode == 1


def test_errors_are_one_line_with_the_remedy(tmp_path: Path) -> None:
    done = hser(tmp_path / "nowhere", "--out", tmp_path / "run")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "nowhere" in done.stderr
    assert "Traceback" not in done.stderr
    (tmp_path / "a.wav").touch()
    done = hser(tmp_path / "a.wav", "--model", "hubert-larg", "--out", tmp_path / "run")
    assert (done.returncode, "unknown model 'hubert-larg'; known: hubert-large" in done.stderr) == (2, True)
    assert not (tmp_path / "run").exists()
    done = hser(tmp_path / "a.wav", "--shard", "2", "--out", tmp_path / "run")
    assert "not of the form i/n" in done.stderr


def test_quiet_says_nothing(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(16_000), 16_000)
    done = hser(tmp_path / "a.wav", "--model", "logmel", "--out", tmp_path / "run", "-q")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_reasons_are_counted_without_their_numbers() -> None:
    failures = [Failure(str(i), "p", "decode", f"cut short: {i} of {i + 9.5} s") for i in range(3)]
    failures.append(Failure("x", "p", "probe", "empty file"))
    assert failure_reasons(failures) == [("decode: cut short: # of # s", 3), ("probe: empty file", 1)]


def test_the_summary_says_where_time_went() -> None:
    summary = Summary("runs/x", "hubert-large", 10, 9, 9, audio=100.0, seconds=20.0, decode_wait=5.0)
    rows = dict(summary_rows(summary))
    assert rows["speed"] == "5.0 audio seconds per second"
    assert rows["waiting for decode"] == "0:05 (25% of the time)"
    assert "warm-up" not in rows  # on a CPU there is none
    summary.warm_up = 7.25
    said = dict(summary_rows(summary))["warm-up"]
    assert said == "7.2 s of the encoding, for the first batch and CUDA graphs"
    assert [clock_time(s) for s in (5, 65, 3_725)] == ["0:05", "1:05", "1:02:05"]


def test_the_log_has_a_line_now_and_then_with_rate_and_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    log = Log(sys.stderr)
    log.start("embedding", 100, 1_000.0, 0.012)
    for seconds, recordings in ((10.0, 10), (31.0, 50), (32.0, 51), (60.0, 100)):
        now[0] = seconds
        log.update(Counts(recordings, recordings * 10.0))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "embedding: 50/100 recordings, 16.1 audio s/s, padding 1.2%, 0:31 left"
    assert [line.split()[1] for line in lines] == ["50/100", "100/100"]
