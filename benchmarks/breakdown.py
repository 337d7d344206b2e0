"""Where the time goes: a trace of some batches, and a page of it by stage.

    python -m benchmarks.cli encoder --profile --model hubert-large

The parts of an encoder that was loaded for this are wrapped, each call as a named range of
`torch.profiler`; the extractor's own code has none, so that nothing is paid where nothing is profiled. A
stage's time is, on a CPU, that of its outermost ranges; on CUDA that of the kernels and copies launched in
them (CUDA graphs are off: a kernel in a graph has no launch to trace it to, and takes as long).
"""

from __future__ import annotations

import bisect
import importlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from inspect import ismethod
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.common import print_table
from extractor.encoders import Model
from extractor.run.batch import BatchEncoder
from extractor.run.staging import Job
from extractor.types import SAMPLE_RATE, Decoded, Seconds

PREFIX = "hser:"
WHOLE = f"{PREFIX}batch"
CNN, PROJECTION, POSITIONS, NORMS = "CNN", "projection", "positions", "norms"
DENSE, ATTENTION, FEED_FORWARD = "attention's products", "attention", "feed-forward"
POOLING, COPIES, OTHER, IDLE = "pooling", "copies", "other", "idle"
STAGES = (CNN, PROJECTION, POSITIONS, DENSE, ATTENTION, FEED_FORWARD, NORMS, POOLING, COPIES, OTHER, IDLE)

# Attributes of an encoder and of its layers -> the stage that calling them, or their methods, belongs to.
ENCODER_PARTS = {
    **dict.fromkeys(("cnn", "log_mel", "conv1", "conv2"), CNN),
    "projection": PROJECTION,
    "positions": POSITIONS,
    "feature_norm": NORMS,
    "norm": NORMS,
}
LAYER_PARTS = {
    **dict.fromkeys(("qkv", "queries", "keys_values", "out"), DENSE),
    **dict.fromkeys(("fc1", "fc2", "activation"), FEED_FORWARD),
    **dict.fromkeys(("norm1", "norm2"), NORMS),
}
# Functions and methods, by the module that calls them.
FUNCTIONS = {
    "extractor.encoders.wav2vec2:attend": ATTENTION,
    "extractor.encoders.whisper:attend": ATTENTION,
    "extractor.encoders.fused:attend_packed": ATTENTION,
    "extractor.encoders.fused:_varlen": ATTENTION,
    "extractor.encoders.fused:add_norm": NORMS,
    "extractor.encoders.fused:norm_rows": NORMS,
    "extractor.encoders.pooling:Pooler.begin": POOLING,
    "extractor.encoders.pooling:Pooler.add": POOLING,
    "extractor.encoders.pooling:Pooler.arriving": POOLING,
}
TABLES = {"extractor.encoders.fused:ATTENTION": ATTENTION}  # all functions that a dictionary holds
COPY_OPS = ("aten::copy_", "aten::to", "aten::_to_copy", "aten::cat", "aten::contiguous", "aten::clone")
DEVICE_WORK = ("kernel", "gpu_memcpy", "gpu_memset")
US = 1e6
HEADER = ("stage", "ms an audio s", "share", "TFLOP/s", "of the roof", "GB/s", "of a copy")


class Named:
    """A part whose calls, and whose methods' calls, are ranges of a stage; its data are as they were."""

    def __init__(self, part: Any, stage: str) -> None:
        self._part, self._stage = part, stage

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return in_range(self._part, self._stage)(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._part, name)
        return in_range(value, self._stage) if ismethod(value) else value


def in_range(function: Callable[..., Any], stage: str) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        with record_function(PREFIX + stage):
            return function(*args, **kwargs)

    return call


def name_parts(encoder: Any) -> None:
    """Wrap the parts of an encoder, for good: it is for profiling only."""
    for owner, parts in [(encoder, ENCODER_PARTS), *((layer, LAYER_PARTS) for layer in encoder.layers)]:
        for name, stage in parts.items():
            part = getattr(owner, name, None)
            if callable(part):
                setattr(owner, name, Named(part, stage))
    fused = getattr(encoder, "fused", None)
    if fused is not None:
        fused.recordings = None


@contextmanager
def named_functions() -> Iterator[list[str]]:
    """Functions as ranges meanwhile. Gives those that there are not: their time counts as other."""
    missing = []
    with ExitStack() as stack:
        for path, stage in FUNCTIONS.items():
            owner, name = _owner(path)
            function = getattr(owner, name, None)
            if function is None:
                missing.append(path)
            else:
                stack.enter_context(mock.patch.object(owner, name, _plain(in_range(function, stage))))
        for path, stage in TABLES.items():
            owner, name = _owner(path)
            table = getattr(owner, name, None)
            if table is None:
                missing.append(path)
            else:
                ranges = {key: in_range(function, stage) for key, function in table.items()}
                stack.enter_context(mock.patch.dict(table, ranges))
        yield missing


def _owner(path: str) -> tuple[Any, str]:
    module, _, name = path.partition(":")
    *outer, name = name.split(".")
    owner: Any = importlib.import_module(module)
    for each in outer:
        owner = getattr(owner, each)
    return owner, name


def _plain(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function in its own right, which a class binds as a method."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return call


@dataclass(frozen=True, slots=True)
class Breakdown:
    """Seconds by stage, of some audio."""

    audio: Seconds
    total: Seconds  # from the first batch's begin to the last one's end
    seconds: Mapping[str, Seconds]  # by stage; they add up to the total
    operations: Mapping[str, float]  # useful floating-point operations, of the stages that are products
    least_bytes: Mapping[str, float]  # of the stages that only move data: frames read and written once
    roof_flops: float
    copy_bytes_per_second: float  # of a large copy within the device, read and written
    missing: Sequence[str]  # functions that were not found


def trace_batches(
    model: Model,
    encode: BatchEncoder,
    planned: Sequence[Job],
    out: Path,
    roof_flops: float,
    copy_bytes_per_second: float,
) -> Breakdown:
    """Encode batches, one after another, and write the trace to ``out`` (for chrome://tracing or Perfetto).

    ``model`` cannot be used for anything else afterwards; ``encode`` runs it.
    """
    name_parts(model.encoder)
    on_cuda = model.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]
    with named_functions() as missing:
        encode(planned[0])  # to warm up
        with profile(activities=activities) as profiler:
            for job in planned:
                with record_function(WHOLE):
                    encode(job)
                    if on_cuda:
                        torch.cuda.synchronize(model.device)
    out.parent.mkdir(parents=True, exist_ok=True)
    profiler.export_chrome_trace(str(out))
    events = json.loads(out.read_text(encoding="utf-8"))["traceEvents"]
    lengths = [len(d.waveform) for job in planned for d in job.decoded if isinstance(d, Decoded)]
    total, seconds = by_stage(events, on_cuda)
    return Breakdown(
        sum(lengths) / SAMPLE_RATE,
        total,
        seconds,
        operations_of(model.encoder, lengths),
        bytes_of(model.encoder, lengths),
        roof_flops,
        copy_bytes_per_second,
        missing,
    )


def by_stage(events: Sequence[Mapping[str, Any]], on_cuda: bool) -> tuple[Seconds, dict[str, Seconds]]:
    """Total, and seconds of each stage, from the events of a chrome trace; stages without time are left out.

    What runs in no range is a copy where it is called one, and else other. On CUDA the device's idle time is
    a stage too, and what it does at once counts for each.
    """
    complete = [e for e in events if e.get("ph") == "X"]
    whole = [e for e in complete if e.get("cat") == "user_annotation" and e["name"] == WHOLE]
    if not whole:
        raise ValueError("the trace has no batch in it")
    total = sum(e["dur"] for e in whole)
    ranges = {t: outermost(es) for t, es in _by_thread(complete).items()}
    spent = dict.fromkeys(STAGES, 0.0)
    if on_cuda:
        launches = {
            e["args"]["correlation"]: e
            for e in complete
            if e.get("cat") in ("cuda_runtime", "cuda_driver") and "correlation" in e.get("args", {})
        }
        for e in complete:
            if e.get("cat") in DEVICE_WORK:
                launch = launches.get(e.get("args", {}).get("correlation"))
                stage = _stage_at(ranges.get(launch["tid"], []), launch["ts"]) if launch else None
                spent[stage or (OTHER if e["cat"] == "kernel" else COPIES)] += e["dur"]
        spent[IDLE] = max(0.0, total - sum(spent.values()))
    else:
        for found in ranges.values():
            for _, duration, stage in found:
                spent[stage] += duration
        for e in _outermost_copies(complete):
            if _stage_at(ranges.get(e["tid"], []), e["ts"]) is None:
                spent[COPIES] += e["dur"]
        spent[OTHER] = max(0.0, total - sum(spent.values()))
    return total / US, {stage: us / US for stage, us in spent.items() if us}


def _by_thread(events: Sequence[Mapping[str, Any]]) -> dict[Any, list[Mapping[str, Any]]]:
    """Stages' ranges, of the host."""
    threads: dict[Any, list[Mapping[str, Any]]] = {}
    for e in events:
        if e.get("cat") == "user_annotation" and e["name"].startswith(PREFIX) and e["name"] != WHOLE:
            threads.setdefault(e["tid"], []).append(e)
    return threads


def outermost(ranges: Sequence[Mapping[str, Any]]) -> list[tuple[float, float, str]]:
    """Begin, duration and stage of those that lie in no other, in their order."""
    found: list[tuple[float, float, str]] = []
    end = float("-inf")
    for e in sorted(ranges, key=lambda e: (e["ts"], -e["dur"])):
        if e["ts"] >= end:
            found.append((e["ts"], e["dur"], e["name"].removeprefix(PREFIX)))
            end = e["ts"] + e["dur"]
    return found


def _stage_at(ranges: Sequence[tuple[float, float, str]], when: float) -> str | None:
    i = bisect.bisect_right(ranges, when, key=lambda r: r[0]) - 1
    return ranges[i][2] if i >= 0 and when <= ranges[i][0] + ranges[i][1] else None


def _outermost_copies(events: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    ends: dict[Any, float] = {}
    copies = (e for e in events if e.get("cat") == "cpu_op" and e["name"] in COPY_OPS)
    for e in sorted(copies, key=lambda e: (e["ts"], -e["dur"])):
        if e["ts"] >= ends.get(e["tid"], float("-inf")):
            ends[e["tid"]] = e["ts"] + e["dur"]
            yield e


def operations_of(encoder: Any, lengths: Sequence[int]) -> dict[str, float]:
    """Useful floating-point operations of each stage that is products; nothing for other families."""
    if not hasattr(encoder, "cnn"):
        return {}
    frames = [encoder.num_frames(n) for n in lengths]
    T, layers = sum(frames), encoder.layers
    return {
        CNN: float(T * encoder.cnn.operations()),
        PROJECTION: float(2 * T * encoder.projection.size),
        POSITIONS: float(2 * T * encoder.positions.conv.size),
        DENSE: float(2 * T * sum(layer.qkv.size + layer.out.size for layer in layers)),
        ATTENTION: float(4 * len(layers) * encoder.dim * sum(t * t for t in frames)),
        FEED_FORWARD: float(2 * T * sum(layer.fc1.size + layer.fc2.size for layer in layers)),
    }


def bytes_of(encoder: Any, lengths: Sequence[int]) -> dict[str, float]:
    """What the layers' norms (two each) and the pooling of every layer must read and write at least."""
    if not hasattr(encoder, "cnn"):
        return {}
    frames = sum(encoder.num_frames(n) for n in lengths) * encoder.dim * encoder.dtype.itemsize
    return {NORMS: 4.0 * len(encoder.layers) * frames, POOLING: float(encoder.num_layers * frames)}


def result(breakdown: Breakdown) -> dict[str, Any]:
    """What goes into the result file."""
    return asdict(breakdown)


def rows_of(breakdown: Breakdown) -> Iterator[list[str]]:
    for stage, seconds in breakdown.seconds.items():
        flops = breakdown.operations.get(stage, 0.0) / seconds
        moved = breakdown.least_bytes.get(stage, 0.0) / seconds
        yield [
            stage,
            f"{1e3 * seconds / breakdown.audio:.3f}",
            f"{seconds / breakdown.total:.1%}",
            f"{flops / 1e12:.3f}" if flops else "-",
            f"{flops / breakdown.roof_flops:.0%}" if flops else "-",
            f"{moved / 1e9:,.1f}" if moved else "-",
            f"{moved / breakdown.copy_bytes_per_second:.0%}" if moved else "-",
        ]


def page(breakdown: Breakdown, title: str) -> str:
    """The breakdown as text."""
    from contextlib import redirect_stdout
    from io import StringIO

    text = StringIO()
    with redirect_stdout(text):
        print(title)
        print(f"{breakdown.audio:.1f} s of audio in {breakdown.total:.2f} s, profiled, one batch at a time\n")
        print_table(HEADER, list(rows_of(breakdown)))
        for path in breakdown.missing:
            print(f"not found, and so in 'other': {path}")
    return text.getvalue()
