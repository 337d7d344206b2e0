"""What a check finds: figures against their limits, and how they are printed."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Finding:
    """One figure against its limit. An error may not exceed it, a cosine may not fall below it."""

    check: str
    what: str
    value: float
    limit: float
    at_least: bool = False

    @property
    def passed(self) -> bool:
        """NaN passes nothing."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit


def relative_error(result: Tensor, truth: Tensor) -> float:
    """||result - truth|| / ||truth|| in the truth's dtype; of what must be zero, infinite unless it is."""
    error, size = (result.to(truth.dtype) - truth).norm().item(), truth.norm().item()
    if size == 0:
        return math.inf if error != 0 else 0.0
    return error / size


def largest(errors: Iterable[float]) -> float:
    """NaN if any is NaN, which Python's `max` may pass over."""
    return float(np.max(list(errors)))


def collect(name: str, check: Callable[[], Iterator[Finding]], skipped: dict[str, str]) -> list[Finding]:
    """A check's findings, printed as they come; none, with the reason kept, where a package is missing.

    One that ends by an error has failed, and the others go on: what they find is worth the machine's time.
    """
    findings, began = [], time.perf_counter()
    try:
        for finding in check():
            print_finding(finding)
            findings.append(finding)
    except ImportError as error:  # importlib.metadata's PackageNotFoundError is one
        skipped[name] = str(error)
        print(f"skipped {name}: {error}")
    except run_errors() as error:
        traceback.print_exception(error)
        reason = f"{type(error).__name__}: {str(error).strip()}".partition("\n")[0]
        findings.append(Finding(name, f"ended by {reason}", math.nan, 0.0))
        print_finding(findings[-1])
    print(f"        {name} took {time.perf_counter() - began:.0f} s", flush=True)
    return findings


def run_errors() -> tuple[type[Exception], ...]:
    """What torch and Triton raise where something does not run, CUDA's own errors among it."""
    if find_spec("triton") is None:
        return RuntimeError, AssertionError
    from triton.errors import TritonError

    return RuntimeError, AssertionError, TritonError


def print_finding(finding: Finding) -> None:
    sign = ">=" if finding.at_least else "<="
    figure = f"{finding.value:.6f}" if finding.at_least else f"{finding.value:.1e}"
    word = "ok    " if finding.passed else "FAILED"
    print(f"{word}  {finding.check}: {finding.what}: {figure} ({sign} {finding.limit:g})", flush=True)
