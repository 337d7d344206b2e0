"""What the benchmarks share: the machine's name, recordings, turns, tables and result files."""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

K = TypeVar("K")
T = TypeVar("T")

RESULTS = Path(__file__).parent / "results"
SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"  # real recordings, where they are at hand
CANNOT_RUN = 77  # exit code of a benchmark that lacks something here: automake's for a skipped test


def cpu_model() -> str:
    path = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", path.read_text()) if path.exists() else None
    return found[1].strip() if found else platform.processor() or platform.machine()


def machine() -> str:
    """CPU model and cores, or the GPU's model, as a part of a file name; never a host's name."""
    import torch

    name = (
        torch.cuda.get_device_name() if torch.cuda.is_available() else f"{cpu_model()} {os.cpu_count()} cores"
    )
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def take_turns(
    contenders: Mapping[K, Callable[[], T]], rounds: int, warm_up: bool = True
) -> dict[K, list[T]]:
    """Each contender's figure in each round; they alternate, so that a busy moment hits all alike.

    A contender returns its own figure (say, audio seconds per second). One more round goes before
    the counted ones, to warm up, unless each call is a process of its own.
    """
    figures: dict[K, list[T]] = {name: [] for name in contenders}
    for k in range(0 if warm_up else 1, rounds + 1):
        names = list(contenders)
        for name in names if k % 2 else reversed(names):
            figure = contenders[name]()
            if k:
                figures[name].append(figure)
    return figures


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def spread(values: Sequence[float]) -> str:
    return f"{median(values):,.1f} ({min(values):,.1f}-{max(values):,.1f})"


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    for row in [header, *rows]:
        cells = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
        print("  ".join(cells))


def result_path(name: str, out: Path | None = None) -> Path:
    """``out``, or where this machine's result of a benchmark goes."""
    return out or RESULTS / f"{name}-{machine()}.json"


def measured_before(path: Path, about: Mapping[str, Any], what: str) -> dict[str, Any]:
    """``what`` of a result file of the same size and settings: of it, what is not asked for stays."""
    if not path.exists():
        return {}
    before = json.loads(path.read_text(encoding="utf-8"))
    same = all(before.get(name) == value for name, value in about.items())
    return dict(before[what]) if same else {}


def write_result(name: str, result: Mapping[str, Any], out: Path | None = None) -> Path:
    """Write ``benchmarks/results/<name>-<machine>.json``, with the machine and the versions in it."""
    from importlib.metadata import version

    packages = ("torch", "transformers", "numpy", "h5py")
    path = result_path(name, out)
    path.parent.mkdir(parents=True, exist_ok=True)
    # A machine with a GPU may lack h5py.
    versions = {p: version(p) for p in packages if find_spec(p) is not None}
    about = {"machine": machine(), "versions": versions}
    path.write_text(json.dumps({**about, **result}, indent=1) + "\n")
    print(f"written to {path}")
    return path
