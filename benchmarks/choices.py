"""What each choice of the forward pass on a CPU gives: each taken away alone, then all, in one run.

    python -m benchmarks.choices [--models hubert-large,wavlm-large] [--lengths emodb] [--rounds 3]

The encoder runs as in `benchmarks.encoder`, all layers mean-pooled, with random weights; `CHOICES` says what
stands in a choice's place. The result also has where the time goes, by stage, without any and with all.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import encoder as encoding
from benchmarks.breakdown import Breakdown, trace_batches
from benchmarks.common import median, print_table, spread, take_turns, write_result
from benchmarks.encoder import AUDIO, audio_seconds, bare, batch_encoder, jobs, matrix_roof
from benchmarks.kernels import Clock, copy_speed
from benchmarks.lengths import find, label, read
from benchmarks.profiled import AUDIO as TRACED
from extractor.encoders import Model
from extractor.run.batch import BatchEncoder
from extractor.run.pipeline import most_streams
from extractor.types import Seconds

CPU = torch.device("cpu")
ALL, NONE = "all of them", "none of them"
ONE_BY_ONE: Seconds = 0.01  # of audio in a batch: shorter than any recording, which then goes alone


def sdpa(
    qkv: Tensor,
    lengths: Sequence[int],
    num_heads: int,
    bias: Tensor | None = None,
    gate: Tensor | None = None,
) -> Tensor:
    """`extractor.encoders.transformer.attend`, with PyTorch's attention for each utterance."""
    dim = qkv.shape[1] // 3
    out = qkv.new_zeros(len(qkv), dim)
    start = 0
    for frames in lengths:
        rows = slice(start, start + frames)
        q, k, v = qkv[rows].view(frames, 3, num_heads, -1).permute(1, 2, 0, 3)[:, None]
        mask = None
        if bias is not None and gate is not None:
            mask = (gate[rows].t()[:, :, None] * bias[:, :frames, :frames])[None]
        attended = F.scaled_dot_product_attention(q, k, v, mask, scale=1.0)  # queries are scaled already
        out[rows] = attended[0].transpose(0, 1).reshape(frames, dim)
        start += frames
    return out


def _one_stream(device: str, num_batches: int) -> int:
    return 1


@dataclass(frozen=True, slots=True)
class Choice:
    """``instead`` is what is there without it: values by the places that they are read from."""

    what: str
    without: str
    instead: Mapping[str, Any]
    at_load: bool = False  # a model is made differently
    batch: Seconds | None = None  # of audio, instead of the engine's

    @contextmanager
    def away(self) -> Iterator[None]:
        with ExitStack() as stack:
            for place, value in self.instead.items():
                stack.enter_context(mock.patch(place, value))
            yield


_CHOICES = (
    Choice(
        "weights laid out once; bias, GELU and sum in the product",
        "`F.linear`, `F.conv2d`, `F.gelu`",
        {"extractor.encoders.linear._packs": lambda device, dtype: False},
        at_load=True,
    ),
    Choice(
        "CNN in blocks of 64 frames",
        "blocks of 4,096",
        {"extractor.encoders.cnn._BLOCK_FRAMES": {"cpu": 4096}},
        at_load=True,
    ),
    Choice("attention by batched products", "SDPA", {"extractor.encoders.wav2vec2.attend": sdpa}),
    Choice(
        "rows rounded up to 32",
        "as many as there are",
        {f"extractor.encoders.{module}.ROW_MULTIPLE": 1 for module in ("attention", "wav2vec2")},
    ),
    Choice("one batch a core", "one batch, all cores", {"benchmarks.encoder.num_streams": _one_stream}),
    Choice("packed batches", "one by one", {}, batch=ONE_BY_ONE),
)
CHOICES: Mapping[str, Choice] = {choice.what: choice for choice in _CHOICES}


@contextmanager
def all_away() -> Iterator[None]:
    with ExitStack() as stack:
        for choice in CHOICES.values():
            stack.enter_context(choice.away())
        yield


def measure(name: str, lengths: str, rounds: int, seconds: Seconds, scratch: Path) -> dict[str, Any]:
    """A row of the result file."""
    found = find(lengths, seconds, scratch)
    waveforms = read(found.files)

    def load() -> tuple[Model, BatchEncoder, Seconds]:
        model = Model(f"random:{name}", "auto", CPU)
        return model, *batch_encoder(model)

    def runner(encode: BatchEncoder, batch: Seconds, away: Callable[[], Any]) -> Callable[[], float]:
        planned = jobs(waveforms, batch, most_streams(CPU.type))

        def run() -> float:
            with away():
                return bare(encode, planned, audio_seconds(waveforms))

        return run

    ours, encode, batch = load()
    runs = {ALL: runner(encode, batch, ExitStack)}
    for choice in CHOICES.values():
        other = encode
        if choice.at_load:
            with choice.away():
                _, other, _ = load()
        runs[choice.what] = runner(other, choice.batch or batch, choice.away)
    with all_away():
        plain, other, _ = load()
    runs[NONE] = runner(other, ONE_BY_ONE, all_away)
    speeds = take_turns(runs, rounds)
    with all_away():
        before = traced(plain, other, waveforms, ONE_BY_ONE, scratch)
    after = traced(ours, encode, waveforms, batch, scratch)
    return {
        "model": name,
        "dtype": ours.dtype,
        "lengths": label(lengths),
        "content": found.content,
        "recordings": len(waveforms),
        "audio_seconds": audio_seconds(waveforms),
        "speeds": speeds,  # audio seconds per second, by what is taken away
        "gain": {what: median(speeds[ALL]) / median(each) for what, each in speeds.items() if what != ALL},
        # Milliseconds of one core an audio second, by stage
        "stages": {NONE: milliseconds(before), ALL: milliseconds(after)},
    }


def traced(
    model: Model, encode: BatchEncoder, waveforms: Sequence[np.ndarray], batch: Seconds, scratch: Path
) -> Breakdown:
    """In one thread, as a stream of the engine has; the model is of no use afterwards."""
    every = max(1, round(audio_seconds(waveforms) / TRACED["cpu"]))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        roof = matrix_roof(encoding.DTYPES[model.dtype], CPU, cores=1)
        copy = copy_speed(Clock.on("cpu"), rounds=3)
        planned = jobs(sorted(waveforms, key=len)[::every], batch)
        return trace_batches(model, encode, planned, scratch / "trace.json", roof, copy)
    finally:
        torch.set_num_threads(threads)


def milliseconds(breakdown: Breakdown) -> dict[str, float]:
    return {stage: 1e3 * seconds / breakdown.audio for stage, seconds in breakdown.seconds.items()}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", default="hubert-large,wavlm-large")
    parser.add_argument("--lengths", default="emodb", help="emodb, ravdess or seconds")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=AUDIO["cpu"], help="of audio")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(argv)
    models = args.models.split(",")
    settings = encoding.Settings(tuple(models), (args.lengths,))
    encoding.check(settings)
    rows = []
    with tempfile.TemporaryDirectory(prefix="hser-choices-") as scratch:
        for name in models:
            rows.append(measure(name, args.lengths, args.rounds, args.seconds, Path(scratch)))
            report(rows[-1])
    result = {
        "what": "audio seconds per second of the CPU's forward pass without each of its choices",
        "instead": {choice.what: choice.without for choice in CHOICES.values()},
        "rows": rows,
    }
    write_result("choices", result, args.out)


def report(row: Mapping[str, Any]) -> None:
    head = f"{row['model']} {row['dtype']}, {row['lengths']}"
    lines = [
        [what, spread(each), f"{row['gain'][what]:.2f}x" if what in row["gain"] else ""]
        for what, each in row["speeds"].items()
    ]
    print_table([f"{head}; without", "audio s/s", "it gives"], lines)
    before, after = row["stages"][NONE], row["stages"][ALL]
    names = dict.fromkeys([*before, *after])
    print_table(
        ["ms of one core an audio second", "without any", "with all"],
        [[name, *(f"{each.get(name, 0.0):.2f}" for each in (before, after))] for name in names],
    )


if __name__ == "__main__":
    main()
