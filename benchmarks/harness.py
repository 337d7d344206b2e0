"""What every benchmark does: read options, let ways take turns, measure memory, show and write results."""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import platform
import re
import string
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, ParamSpec, TypeAlias, TypeVar
from unittest import mock

if TYPE_CHECKING:
    import torch

K = TypeVar("K")
P = ParamSpec("P")
T = TypeVar("T")

RESULTS = Path(__file__).parent / "results"
SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"  # real recordings, where they are at hand
CANNOT_RUN = 77  # exit code of a benchmark that lacks something here: automake's for a skipped test
MIB = 1 << 20
RESET_PEAK = "5"  # proc(5), clear_refs: the high-water mark becomes what is resident now


def arguments(doc: str | None, argv: Sequence[str] | None, **options: Any) -> argparse.Namespace:
    """Parsed options, ``--out`` among them.

    Each is its default, or its type where it has none, or a pair of that and its help, or the keywords of
    `add_argument`.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawTextHelpFormatter)
    options.setdefault("out", Path)
    for name, option in options.items():
        default, about = option if isinstance(option, tuple) else (option, None)
        if isinstance(option, dict):
            keywords = option
        elif default is False:
            keywords = {"action": "store_true"}
        elif isinstance(default, type):
            keywords = {"type": default}
        else:
            keywords = {"type": type(default), "default": default}
        parser.add_argument(f"--{name.replace('_', '-')}", **({"help": about} | keywords))
    return parser.parse_args(argv)


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


@contextmanager
def replaced(values: Mapping[str, Any]) -> Iterator[None]:
    """Values by the places that they are read from: functions, methods and constants, meanwhile."""
    with ExitStack() as stack:
        for place, value in values.items():
            stack.enter_context(mock.patch(place, value))
        yield


# --- Memory -------------------------------------------------------------------------------------


def in_child(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call it in a fresh process: memory that one run has touched must not count for the next."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *args, **kwargs).result()


def process_bytes(name: str) -> int:
    """Of this process, a line of Linux's ``/proc/self/status``, such as ``VmRSS``."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) << 10


def peak_bytes() -> int:
    """Most resident memory that this process has had."""
    if Path("/proc/self/status").exists():  # getrusage would count the memory of the parent that was forked
        return process_bytes("VmHWM")
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


def forget_peak() -> int:
    """Begin the high-water mark anew. Returns what is resident now; OSError where that is not allowed."""
    Path("/proc/self/clear_refs").write_text(RESET_PEAK)
    return process_bytes("VmRSS")


def working_bytes(work: Callable[[], object], device: torch.device | None = None) -> int | None:
    """The most memory that ``work`` takes above what was there before, on the device or else of this process.

    None, without doing the work, where it cannot be found out.
    """
    if device is not None and device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    # Freed memory goes back to the system first, to be counted when it is taken again; glibc can do that.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is None or (device is not None and device.type != "cpu"):
        return None
    gc.collect()  # or it is freed meanwhile, and hides what the work takes
    trim(0)
    try:
        before = forget_peak()
    except OSError:  # not Linux, or a container that does not allow it
        return None
    work()
    return max(0, peak_bytes() - before)


# --- Tables -------------------------------------------------------------------------------------


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def with_range(values: Sequence[float]) -> str:
    """``15.1 (14.8-15.3)``: median and range."""
    return f"{number(median(values))} ({number(min(values))}-{number(max(values))})"


def milliseconds(seconds: Sequence[float]) -> str:
    """``0.0512 (0.0508-0.0531)``: median and range, to three figures."""
    figures = (1e3 * s for s in (median(seconds), min(seconds), max(seconds)))
    return "{} ({}-{})".format(*(f"{ms:,.0f}" if ms >= 100 else f"{ms:.3g}" for ms in figures))


class CellFormat(string.Formatter):
    """`str.format` that also knows how figures of several rounds are told, as ``{speeds[hser]:range}``."""

    def format_field(self, value: Any, format_spec: str) -> str:
        if value is None:
            raise KeyError(format_spec)
        told = {"range": with_range, "ms": milliseconds}.get(format_spec)
        return told(value) if told else format(value, format_spec)


Columns: TypeAlias = Mapping[str, str | Callable[[Any], str]]


@dataclass(frozen=True, slots=True)
class Table:
    """Cells as a document has them: all columns but the first ``words`` are figures."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int = 1

    @classmethod
    def of(cls, rows: Iterable[Any], columns: Columns) -> Table:
        """A column is its head and how a cell reads: a dash where a row lacks what it tells.

        Columns that no row has a figure for are left out.
        """

        def cell(row: Any, how: str | Callable[[Any], str]) -> str:
            try:
                return how(row) if callable(how) else CellFormat().vformat(how, (), row)
            except KeyError:
                return "-"

        rows = list(rows)
        told = {head: [cell(row, how) for row in rows] for head, how in columns.items()}
        told = {head: column for head, column in told.items() if {*column} != {"-"}}
        return cls(list(told), list(zip(*told.values(), strict=True)))

    def __str__(self) -> str:
        """In Markdown."""
        rule = ["---"] * self.words + ["---:"] * (len(self.header) - self.words)
        return "\n".join(f"| {' | '.join(line)} |" for line in (self.header, rule, *self.rows))

    def text(self) -> str:
        """On the terminal, without Markdown's signs."""
        # Here, since `benchmarks.egemaps` runs without our packages.
        from extractor.commands.options import table_lines

        lines = [[re.sub(r"\*\*|[`\\]", "", cell) for cell in line] for line in (self.header, *self.rows)]
        return "\n".join(table_lines(lines, align=str.rjust))


# --- Result files -------------------------------------------------------------------------------


def machine() -> str:
    """CPU model and cores, or the GPU's model, as a part of a file name; never a host's name."""
    import torch

    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
    else:
        cpus = Path("/proc/cpuinfo")
        found = re.search(r"model name\s*:\s*(.+)", cpus.read_text()) if cpus.exists() else None
        model = found[1].strip() if found else platform.processor() or platform.machine()
        name = f"{model} {os.cpu_count()} cores"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def result_path(name: str, out: Path | None = None) -> Path:
    """``out``, or where this machine's result of a benchmark goes."""
    return out or RESULTS / f"{name}-{machine()}.json"


def read_result(path: Path) -> dict[str, Any]:
    """Empty where there is none yet."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def measured_before(path: Path, about: Mapping[str, Any], what: str) -> dict[str, Any]:
    """``what`` of a result file of the same size and settings: of it, what is not asked for stays."""
    before = read_result(path)
    same = before and all(before.get(name) == value for name, value in about.items())
    return dict(before[what]) if same else {}


def rows_by(
    key: Callable[[Mapping[str, Any]], K], path: Path, new: Sequence[Mapping[str, Any]]
) -> dict[K, Mapping[str, Any]]:
    """Rows of a result file by their key, the new ones in place of those with the same key."""
    return {key(row): row for row in [*read_result(path).get("rows", []), *new]}


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
