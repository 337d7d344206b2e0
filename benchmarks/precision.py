"""How near a forward pass in fewer bits is to the same in fp32.

    python -m benchmarks.precision [--models hubert-large,...] [--checkpoint whisper-tiny.en=FOLDER ...]

Eight recordings of different lengths, all layers. Given is the lowest cosine of any recording and layer: of
the mean over a recording's frames, and of its frames on average. Models have random weights, checkpoints
their own. `fp8` is what E4M3 would give on a GPU that has it, worked out on the CPU: inputs of the linear
layers with a scale a frame and weights with a scale an output, both rounded to E4M3, products summed in
fp32, everything else in bf16. Hardware, which sums in fewer bits, can only be further away.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness import arguments, replaced
from benchmarks.readme import publish
from benchmarks.stand_ins import speech
from extractor.encoders import Encoder, Model
from extractor.encoders.linear import Linear, can_run_int8
from extractor.run.fidelity import cosines

CPU = torch.device("cpu")
MODELS = ("hubert-large", "wavlm-large", "hubert-base")
NUM_CLIPS = 8
E4M3 = torch.float8_e4m3fn


def rounded(x: Tensor) -> Tensor:
    """To E4M3 and back, float32 ``[N, I]``: the largest of a row becomes the largest that E4M3 holds."""
    scale = (x.abs().amax(1, keepdim=True) / torch.finfo(E4M3).max).clamp_min(1e-12)
    return (x / scale).to(E4M3).float() * scale


class Float8Linear(Linear):
    """``y = x Wᵀ + b`` as hardware with E4M3 would give it at best; slow."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self.size, self.packed = weight.numel(), False
        self.weight, self.bias = rounded(weight), bias

    def __call__(self, x: Tensor) -> Tensor:
        return self._exact(x).to(x.dtype)

    def gelu(self, x: Tensor) -> Tensor:
        return F.gelu(self._exact(x)).to(x.dtype)

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        return (residual + self._exact(x)).to(x.dtype)

    def _exact(self, x: Tensor) -> Tensor:
        return F.linear(rounded(x.float()), self.weight, self.bias)


def encoders(spec: str) -> Iterator[tuple[str, Encoder]]:
    """The model in fewer bits, one after the other."""
    yield "bf16", Model(spec, "bf16", CPU).encoder
    if can_run_int8(CPU):
        yield "int8", Model(spec, "int8", CPU).encoder
    linear_of = {"extractor.encoders.weights.Weights.linear_of": lambda weights, *of: Float8Linear(*of)}
    with replaced(linear_of):
        encoder = Model(spec, "bf16", CPU).encoder
    yield "fp8", encoder


def measure(name: str, spec: str, waveforms: Sequence[Tensor]) -> dict[str, Any]:
    """A row of the result file: the lowest cosine over the recordings by layer, by dtype."""
    exact = Model(spec, "fp32", CPU).encoder
    found = {dtype: cosines(encoder, exact, waveforms) for dtype, encoder in encoders(spec)}
    return {
        "model": name,
        "weights": "random" if spec.startswith("random:") else "its own",
        "pooled": {dtype: each.pooled.min(0).tolist() for dtype, each in found.items()},
        "frames": {dtype: each.frames.min(0).tolist() for dtype, each in found.items()},
    }


def checkpoint(text: str) -> tuple[str, str]:
    name, _, folder = text.partition("=")
    if not folder:
        raise argparse.ArgumentTypeError(f"{text!r}: write NAME=FOLDER")
    return name, folder


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(
        __doc__,
        argv,
        models=(",".join(MODELS), "with random weights"),
        checkpoint={"type": checkpoint, "action": "append", "default": [], "help": "NAME=FOLDER"},
    )
    with tempfile.TemporaryDirectory(prefix="hser-precision-") as scratch:
        waveforms = [torch.from_numpy(w) for w in speech(240.0, Path(scratch), NUM_CLIPS)]
    specs = [(name, f"random:{name}") for name in args.models.split(",")] + args.checkpoint
    rows = [measure(name, spec, waveforms) for name, spec in specs]
    result = {"clip_samples": [len(w) for w in waveforms], "rows": rows}
    publish("precision", result, args.out)


if __name__ == "__main__":
    main()
