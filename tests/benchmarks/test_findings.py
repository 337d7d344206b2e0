"""What a check on a GPU finds, where it cannot run at all and where it breaks off."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from benchmarks.findings import Finding, collect


def breaking_off(error: Exception) -> Iterator[Finding]:
    yield Finding("toy", "the first", 0.0, 1.0)
    raise error


def test_a_check_that_breaks_off_has_failed_and_the_others_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    error = RuntimeError("CUDA error: misaligned address\nFor debugging consider ...")
    skipped: dict[str, str] = {}
    first, last = collect("toy", lambda: breaking_off(error), skipped)
    assert first.passed and not last.passed and not skipped
    assert last.what == "ended by RuntimeError: CUDA error: misaligned address"
    assert "in breaking_off" in capsys.readouterr().err  # where it was


def test_a_kernel_that_does_not_compile_is_a_failure_too() -> None:
    errors = pytest.importorskip("triton.errors")
    [_, last] = collect("toy", lambda: breaking_off(errors.TritonError("no such function")), {})
    assert not last.passed


def test_memory_that_runs_out_is_a_failure_and_a_mistake_of_ours_is_raised() -> None:
    assert not collect("toy", lambda: breaking_off(torch.OutOfMemoryError("out of memory")), {})[-1].passed
    with pytest.raises(KeyError):
        collect("toy", lambda: breaking_off(KeyError("x")), {})
