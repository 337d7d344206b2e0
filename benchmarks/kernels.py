"""Each kernel against its definition, that compiled by torch, and torchaudio, on the same device.

    python -m benchmarks.kernels [--device cuda] [--recordings 64] [--seconds 4] [--rounds 5]

    ours        the function as hser calls it: Triton on CUDA, on a CPU the definition itself
    definition  the plain PyTorch beside the kernel; CUDA only
    compiled    torch.compile of it, recording by recording; CUDA only, unless asked for
    library     what torchaudio or torch has instead, on a batch of equal lengths laid out as it likes

Whole calls are timed, with what the host does; on CUDA also the time that kernels were running, by
torch's profiler. Inputs are not in the GPU's second-level cache. The share of the copy is the bytes that
must be moved (inputs read once, outputs written once) over that time, against a large copy measured in the
same run. A CPU does it all in one thread, as a stream of the engine has.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.findings import relative_error
from benchmarks.harness import arguments, take_turns, write_result
from benchmarks.kernel_cases import COMPILED, DEFINITION, LIBRARY, OURS, Case, Size, cases
from benchmarks.readme import show
from extractor.encoders import exact_fp32

COPY_BYTES = {"cuda": 1 << 30, "cpu": 256 << 20}  # of the tensor that is copied
FLUSH_BYTES = 256 << 20  # four times an H200's second-level cache
CALLS = {"cuda": 5, "cpu": 1}  # a round
# Ours against the definition, before anything is timed. The tests are sharper; this finds a wrong case.
SANE = 1e-2
MS = 1e3


@dataclass(frozen=True, slots=True)
class Clock:
    """Times calls on one device; ``flush`` is written over before each on CUDA."""

    device: str
    calls: int  # a figure is the median of so many
    flush: Tensor = field(repr=False)

    @classmethod
    def on(cls, device: str, calls: int | None = None) -> Clock:
        num_bytes = FLUSH_BYTES if device == "cuda" else 0
        flush = torch.empty(num_bytes, dtype=torch.int8, device=device)
        return cls(device, calls or CALLS.get(device, 1), flush)

    def seconds(self, work: Callable[[], Any]) -> float:
        """Of a whole call."""
        return median(self._once(work) for _ in range(self.calls))

    def _once(self, work: Callable[[], Any]) -> float:
        if self.device != "cuda":
            began = time.perf_counter()
            work()
            return time.perf_counter() - began
        self._clear()
        began_at, ended_at = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began_at.record()
        work()
        ended_at.record()
        torch.cuda.synchronize()
        return began_at.elapsed_time(ended_at) / MS

    def kernel_seconds(self, work: Callable[[], Any]) -> float:
        """Of a call on CUDA, while kernels and copies ran."""
        return median(self._kernels_once(work) for _ in range(self.calls))

    def _kernels_once(self, work: Callable[[], Any]) -> float:
        from torch.autograd import DeviceType
        from torch.profiler import ProfilerActivity, profile

        self._clear()
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            work()
            torch.cuda.synchronize()
        ran = (
            event.time_range.elapsed_us()
            for event in profiler.events()
            # Regions that compiled code names show up on the device too, around their kernels.
            if event.device_type == DeviceType.CUDA and not event.is_user_annotation
        )
        return sum(ran) / 1e6

    def _clear(self) -> None:
        self.flush.zero_()
        torch.cuda.synchronize()


def copy_speed(clock: Clock, rounds: int) -> float:
    """Bytes read and written a second by a large copy within the device."""
    source = torch.randn(COPY_BYTES[clock.device] // 4, device=clock.device)
    target = torch.empty_like(source)
    seconds = [clock.seconds(lambda: target.copy_(source)) for _ in range(rounds + 1)][1:]
    return 2 * COPY_BYTES[clock.device] / median(seconds)


def measure(size: Size, rounds: int, compiled: bool) -> dict[str, Any]:
    """The result file's content; prints nothing."""
    exact_fp32()  # torchaudio's resampling is a convolution
    clock = Clock.on(size.device)
    with torch.inference_mode():
        copy = copy_speed(clock, rounds)
        rows = [measure_case(case, clock, rounds, copy) for case in cases(size, compiled)]
    return {
        "what": "seconds a call",
        "device": size.device,
        "recordings": size.recordings,
        "seconds_each": size.seconds,
        "threads": torch.get_num_threads() if size.device == "cpu" else None,
        "copy_bytes_per_second": copy,
        "rows": rows,
        "findings": list(findings_of(rows)) if size.device == "cuda" else [],
    }


def measure_case(case: Case, clock: Clock, rounds: int, copy: float) -> dict[str, Any]:
    works, missing = runnable(case)
    calls = take_turns({way: partial(clock.seconds, work) for way, work in works.items()}, rounds)
    kernels: dict[str, float] = {}
    if clock.device == "cuda":
        kernels = {way: clock.kernel_seconds(work) for way, work in works.items()}
        if not all(kernels.values()):
            kernels, missing["kernels alone"] = {}, "torch's profiler saw none; the share is of whole calls"
    busy = kernels.get(OURS, median(calls[OURS]))
    return {
        "kernel": case.kernel,
        "what": case.what,
        "bytes": case.num_bytes,
        "library": case.library,
        "calls": calls,
        "kernels": kernels,
        "missing": missing,
        "share_of_copy": case.num_bytes / busy / copy,
        "aims": case.aims,
    }


def runnable(case: Case) -> tuple[dict[str, Callable[[], Any]], dict[str, str]]:
    """The ways that run, each run once, and why the others do not.

    Raises RuntimeError where ours is not what the definition gives.
    """
    works, missing = dict(case.ways), dict(case.missing)
    if COMPILED in works:
        from torch._dynamo.exc import TorchDynamoException

        try:
            works[COMPILED]()
        except TorchDynamoException as error:  # Inductor's are of this kind too
            del works[COMPILED]
            missing[COMPILED] = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    results = {way: work() for way, work in works.items()}
    if DEFINITION in results:
        off = relative_error(results[OURS], results[DEFINITION].double())
        if not off <= SANE:
            raise RuntimeError(
                f"{case.kernel}, {case.what}: {off:.1e} from the definition; nothing was timed"
            )
    return works, missing


def findings_of(rows: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """The aims, and what became of each: shares of the copy by kernels alone, ratios by whole calls."""
    for row in rows:
        figures = {"share_of_copy": row["share_of_copy"]}
        if LIBRARY in row["calls"]:
            figures["library/ours"] = median(row["calls"][LIBRARY]) / median(row["calls"][OURS])
        for name, aim in row["aims"].items():
            if name not in figures:
                continue  # without torchaudio there is nothing to compare with; `missing` says so
            what = f"{row['kernel']}, {row['what']}: {name}"
            yield {"what": what, "value": figures[name], "aim": aim, "met": figures[name] >= aim}


def print_result(result: Mapping[str, Any]) -> None:
    show("kernels", result)
    print(f"copy: {result['copy_bytes_per_second'] / 1e9:,.0f} GB/s, read and written")
    for line in sorted({f"{way}: {why}" for row in result["rows"] for way, why in row["missing"].items()}):
        print(f"not measured, {line}")
    for finding in result["findings"]:
        word = "met" if finding["met"] else "NOT MET"
        print(f"{word}: {finding['what']} {finding['value']:.2f} (aim {finding['aim']:g})")


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(
        __doc__,
        argv,
        device={"choices": ("cpu", "cuda"), "help": "CUDA where it is, else the CPU"},
        recordings=64,
        seconds=(4.0, "of each recording"),
        rounds=5,
        compile={"action": argparse.BooleanOptionalAction, "help": "torch.compile too"},
    )
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cpu":
        torch.set_num_threads(1)
    compiled = device == "cuda" if args.compile is None else args.compile
    result = measure(Size(device, args.recordings, args.seconds), args.rounds, compiled)
    print_result(result)
    write_result("kernels", result, args.out)


if __name__ == "__main__":
    main()
