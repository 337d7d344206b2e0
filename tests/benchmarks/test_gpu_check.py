"""The GPU check, its logic on the CPU: what it finds, where it cannot run and where it breaks off."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from bench_cases import small_models as small_models

from benchmarks import gpu_check, kernel_checks, readme
from benchmarks.findings import Finding, collect, largest, relative_error
from benchmarks.harness import machine
from benchmarks.kernel_checks import KernelBatch
from benchmarks.stand_ins import NORMS, write_config

CHECKS: dict[str, Callable[[Path], Iterator[Finding]]] = {
    "layers": lambda scratch: gpu_check.check_models("layers", "cpu", [gpu_check.PARITY_LENGTHS]),
    "pooling": lambda scratch: gpu_check.check_pooling("cpu"),
    "bf16": lambda scratch: gpu_check.check_bf16("cpu", [write_config(scratch / "small")]),
    "engine": lambda scratch: gpu_check.check_engine("cpu", scratch, ["wavlm"], (0.3, 1.1)),
    "kernels": lambda scratch: kernel_checks.check_kernels("cpu", (1, 63, 0, 400), 2000),
    "augment": lambda scratch: kernel_checks.check_augment("cpu"),
    "attention": lambda scratch: kernel_checks.check_layer_kernels("cpu", True, (1, 63, 0, 3)),
    "layers-kernels": lambda scratch: kernel_checks.check_layer_kernels("cpu", False, (1, 63, 0, 3)),
}


@pytest.mark.parametrize("name", CHECKS)
def test_gpu_checks_find_the_cpu_equal_to_itself(name: str, tmp_path: Path) -> None:
    findings = list(CHECKS[name](tmp_path))
    assert findings
    for finding in findings:
        assert finding.passed, finding
        assert finding.value == 0.0 or name not in ("layers", "pooling")
    assert len(findings) == len(gpu_check.KINDS) * len(NORMS) or name != "layers"


def test_gpu_check_measures_speed(tmp_path: Path) -> None:
    row = gpu_check.measure_speed("small-hubert", "cpu", tmp_path, rounds=1, seconds=9.0, loop_seconds=4.5)
    assert row["speeds"].keys() == {"loop", "best", "hser", "command"}
    gpu_check.summary([], {}, [row])
    result = {"machine": "toy", "rows": [row]}
    assert "small-hubert, " in str(readme.speed_table(result))
    assert "small-hubert: hser" in readme.chart([result])


@pytest.mark.parametrize("wrong", ["value", "unwritten", "batch"])
def test_gpu_check_notices_a_wrong_kernel(wrong: str) -> None:
    def call(
        packed: torch.Tensor, rows: Sequence[int], lengths: list[int], backend: str
    ) -> kernel_checks.Ragged:
        if packed.dtype == torch.float64:
            return packed, lengths
        if wrong == "unwritten":
            return torch.empty(len(packed)), lengths
        return packed * (1.001 if wrong == "value" else 1 + 1e-7 * len(rows)), lengths

    batch = KernelBatch("toy", [torch.full((4,), i + 1.0) for i in range(3)], 1e-5, call)
    error, changed = kernel_checks.check("toy", batch, "cpu")
    assert error.passed == (wrong == "batch")
    assert changed.passed == (wrong == "value")


def test_gpu_check_writes_the_kernels_result_beside_its_own(tmp_path: Path) -> None:
    assert not [*gpu_check.check_kernels_speed("cpu", 1, tmp_path / "gpu.json", batch=(2, 0.2))]
    [path] = tmp_path.iterdir()
    assert path.name == f"kernels-{machine()}.json" and json.loads(path.read_text())["rows"]


def test_nan_passes_no_check() -> None:
    assert math.isnan(largest([1e-9, math.nan, 1e-9]))
    for at_least in (False, True):
        assert not Finding("a", "b", math.nan, 0.5, at_least).passed
    assert Finding("a", "b", 0.9, 0.5, at_least=True).passed
    assert not Finding("a", "b", 0.9, 0.5).passed
    zero, one = torch.zeros(2), torch.ones(2)
    assert relative_error(one, zero) == math.inf and relative_error(zero, zero) == 0


def test_a_check_without_its_packages_is_skipped_by_name() -> None:
    from importlib.metadata import version

    def check() -> Iterator[Finding]:
        version("no-such-package")
        yield Finding("a", "b", 0.0, 1.0)

    skipped: dict[str, str] = {}
    assert collect("toy", check, skipped) == []
    assert "no-such-package" in skipped["toy"]


def test_gpu_check_without_a_gpu_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_check.main([]) == 2
    assert "no CUDA device" in capsys.readouterr().out


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
    failures = [torch.OutOfMemoryError("out of memory")]
    if find_spec("triton"):  # a kernel that does not compile
        failures.append(importlib.import_module("triton.errors").TritonError("no such function"))
    for failure in failures:
        assert not collect("toy", lambda error=failure: breaking_off(error), {})[-1].passed
    with pytest.raises(KeyError):  # a mistake of ours
        collect("toy", lambda: breaking_off(KeyError("x")), {})
