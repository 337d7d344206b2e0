"""Where the time goes: a trace of some batches, and a page of it by stage.

    python -m benchmarks.cli encoder --profile --model hubert-large

The parts of an encoder that was loaded for this are wrapped, each call as a named range of
`torch.profiler`; the extractor's own code has none, so that nothing is paid where nothing is profiled. A
stage's time is, on a CPU, that of its outermost ranges; on CUDA that of the kernels and copies launched in
them (CUDA graphs are off: a kernel in a graph has no launch to trace it to, and takes as long).
"""

from __future__ import annotations

import bisect
import json
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from inspect import ismethod
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks import encoder as encoding
from benchmarks.harness import Table, machine, replaced
from benchmarks.kernels import Clock, copy_speed
from benchmarks.stand_ins import find, label, read
from extractor.encoders import Model, resolve_device
from extractor.run.batch import BatchEncoder, DecodedBatch
from extractor.types import SAMPLE_RATE, Seconds

# Audio in a trace: two batches on a CPU, a few on a GPU; a trace of more is too large to look at.
AUDIO: Mapping[str, Seconds] = {"cpu": 60.0, "cuda": 960.0}
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
# Functions and methods, by the module that calls them; of a dictionary, all that it holds.
FUNCTIONS = {
    "extractor.encoders.transformer.attend": ATTENTION,
    "extractor.encoders.whisper.attend": ATTENTION,
    "extractor.encoders.fused.attend_packed": ATTENTION,
    "extractor.encoders.fused._varlen": ATTENTION,
    "extractor.encoders.fused.ATTENTION": ATTENTION,
    "extractor.encoders.fused.add_norm": NORMS,
    "extractor.encoders.fused.norm_rows": NORMS,
    "extractor.encoders.pooling.Pooler.begin": POOLING,
    "extractor.encoders.pooling.Pooler.add": POOLING,
    "extractor.encoders.pooling.Pooler.embeddings": POOLING,
}
COPY_OPS = ("aten::copy_", "aten::to", "aten::_to_copy", "aten::cat", "aten::contiguous", "aten::clone")
DEVICE_WORK = ("kernel", "gpu_memcpy", "gpu_memset")
US = 1e6
HEADER = ("stage", "ms an audio s", "share", "TFLOP/s", "of the roof", "GB/s", "of a copy")


# --- Names in the trace -------------------------------------------------------------------------


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
        fused.graphs = None


def named_functions() -> tuple[dict[str, Any], list[str]]:
    """Functions as ranges, by their places, and those that there are not: their time counts as other."""
    ranges: dict[str, Any] = {}
    missing = []
    for path, stage in FUNCTIONS.items():
        try:
            found = resolve_name(path)
        except AttributeError:
            missing.append(path)
            continue
        if isinstance(found, dict):
            ranges[path] = {name: in_range(each, stage) for name, each in found.items()}
        else:
            ranges[path] = in_range(found, stage)
    return ranges, missing


# --- The trace ----------------------------------------------------------------------------------


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
    model: Model, encode: BatchEncoder, planned: Sequence[DecodedBatch], out: Path
) -> Breakdown:
    """Encode batches, one after another, and write the trace to ``out`` (for chrome://tracing or Perfetto).

    On a CPU in one thread, as a stream of the engine has, against what one core gives. ``encode`` runs
    ``model``, which cannot be used for anything else afterwards.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        roof = encoding.matrix_roof(encoding.DTYPES[model.dtype], model.device, cores=1)
        copy = copy_speed(Clock.on(model.device.type), rounds=3)
        name_parts(model.encoder)
        on_cuda = model.device.type == "cuda"
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]
        ranges, missing = named_functions()
        with replaced(ranges):
            encode(planned[0])  # to warm up
            with profile(activities=activities) as profiler:
                for batch in planned:
                    with record_function(WHOLE):
                        encode(batch)
                        if on_cuda:
                            torch.cuda.synchronize(model.device)
    finally:
        torch.set_num_threads(threads)
    out.parent.mkdir(parents=True, exist_ok=True)
    profiler.export_chrome_trace(str(out))
    events = json.loads(out.read_text(encoding="utf-8"))["traceEvents"]
    lengths = [len(row.decoded.waveform) for batch in planned for row in batch.rows]
    audio, (total, seconds) = sum(lengths) / SAMPLE_RATE, by_stage(events, on_cuda)
    operations, moved = operations_of(model.encoder, lengths), bytes_of(model.encoder, lengths)
    return Breakdown(audio, total, seconds, operations, moved, roof, copy, missing)


def by_stage(events: Sequence[Mapping[str, Any]], on_cuda: bool) -> tuple[Seconds, dict[str, Seconds]]:
    """Total, and seconds of each stage, from the events of a chrome trace; stages without time are left out.

    What runs in no range is a copy where it is called one, and else other. On CUDA the device's idle time is
    a stage too, and what it does at once counts for each.
    """
    complete = [e for e in events if e.get("ph") == "X"]
    annotated = [e for e in complete if e.get("cat") == "user_annotation" and e["name"].startswith(PREFIX)]
    total = sum(e["dur"] for e in annotated if e["name"] == WHOLE)
    if not total:
        raise ValueError("the trace has no batch in it")
    ranges = outermost([e for e in annotated if e["name"] != WHOLE])
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
                stage = _stage_at(ranges[launch["tid"]], launch["ts"]) if launch else None
                spent[stage or (OTHER if e["cat"] == "kernel" else COPIES)] += e["dur"]
        spent[IDLE] = max(0.0, total - sum(spent.values()))
    else:
        for e in (e for of_thread in ranges.values() for e in of_thread):
            spent[e["name"].removeprefix(PREFIX)] += e["dur"]
        copies = outermost([e for e in complete if e.get("cat") == "cpu_op" and e["name"] in COPY_OPS])
        for e in (e for of_thread in copies.values() for e in of_thread):
            if _stage_at(ranges[e["tid"]], e["ts"]) is None:
                spent[COPIES] += e["dur"]
        spent[OTHER] = max(0.0, total - sum(spent.values()))
    return total / US, {stage: us / US for stage, us in spent.items() if us}


def outermost(events: Sequence[Mapping[str, Any]]) -> Mapping[Any, list[Mapping[str, Any]]]:
    """By thread, those that lie in no other, in their order."""
    found: dict[Any, list[Mapping[str, Any]]] = defaultdict(list)
    for e in sorted(events, key=lambda e: (e["ts"], -e["dur"])):
        before = found[e["tid"]]
        if not before or e["ts"] >= before[-1]["ts"] + before[-1]["dur"]:
            before.append(e)
    return found


def _stage_at(ranges: Sequence[Mapping[str, Any]], when: float) -> str | None:
    i = bisect.bisect_right(ranges, when, key=lambda e: e["ts"]) - 1
    return (
        ranges[i]["name"].removeprefix(PREFIX)
        if i >= 0 and when <= ranges[i]["ts"] + ranges[i]["dur"]
        else None
    )


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


# --- What is said of it -------------------------------------------------------------------------


def page(breakdown: Breakdown, title: str) -> str:
    """The breakdown as text."""
    rows = []
    for stage, seconds in breakdown.seconds.items():
        flops = breakdown.operations.get(stage, 0.0) / seconds
        moved = breakdown.least_bytes.get(stage, 0.0) / seconds
        rows.append(
            [
                stage,
                f"{1e3 * seconds / breakdown.audio:.3f}",
                f"{seconds / breakdown.total:.1%}",
                f"{flops / 1e12:.3f}" if flops else "-",
                f"{flops / breakdown.roof_flops:.0%}" if flops else "-",
                f"{moved / 1e9:,.1f}" if moved else "-",
                f"{moved / breakdown.copy_bytes_per_second:.0%}" if moved else "-",
            ]
        )
    audio = f"{breakdown.audio:.1f} s of audio in {breakdown.total:.2f} s, profiled, one batch at a time"
    missing = [f"not found, and so in 'other': {path}" for path in breakdown.missing]
    return "\n".join([title, audio, "", Table(HEADER, rows).text(), *missing]) + "\n"


def profile_rows(rows: Sequence[dict[str, Any]], settings: encoding.Settings, folder: Path) -> None:
    """Add ``breakdown`` to each row of the encoder's benchmark; a page and a trace of each in ``folder``."""
    names = [(model, lengths) for model in settings.models for lengths in settings.lengths]
    device = resolve_device(settings.device)
    most = AUDIO.get(device.type, AUDIO["cpu"])
    for (name, lengths), row in zip(names, rows, strict=True):
        with tempfile.TemporaryDirectory(prefix="hser-profile-") as scratch:
            waveforms = read(find(lengths, min(most, settings.seconds or most), Path(scratch))[0])
        model = Model(f"random:{name}", settings.dtype, device)
        encode, budget = encoding.batch_encoder(model)
        stem = f"{name}-{label(lengths).replace(' ', '-')}-{machine()}"
        trace = folder / f"{stem}.trace.json"
        made = trace_batches(model, encode, encoding.planned_batches(waveforms, budget), trace)
        text = page(made, f"{name}, {model.dtype}, {label(lengths)}, {machine()}")
        (folder / f"{stem}.txt").write_text(text, encoding="utf-8")
        print(f"\n{text}trace: {trace}")
        row["breakdown"] = asdict(made)
