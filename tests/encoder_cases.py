"""Running an encoder and keeping what it gives, and checkpoints to be changed, for the encoders' tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from conftest import FP32_RELATIVE, relative_error
from torch import Tensor

CPU = torch.device("cpu")
KINDS = ("hubert", "wavlm", "wav2vec2")  # of one family; `test_whisper.py` has the other
Layers = list[list[Tensor]]  # [utterance][layer] of [T, D]


class Kept:
    """A sink that keeps every layer's frames."""

    def __init__(self) -> None:
        self.layers: list[Tensor] = []

    def add(self, layer: int, hidden: Tensor) -> None:
        assert layer == len(self.layers)
        self.layers.append(hidden.cpu().clone())  # graphs write over it


def encode(encoder: Any, waveforms: Sequence[Tensor], **options: Any) -> Layers:
    """``options``: of the encoder's ``forward``."""
    sink = Kept()
    encoder.forward(waveforms, sink, **options)
    split = [layer.split([encoder.num_frames(len(w)) for w in waveforms]) for layer in sink.layers]
    return [[frames[i] for frames in split] for i in range(len(waveforms))]


def assert_same(ours: Layers, theirs: Layers, limit: float = FP32_RELATIVE) -> None:
    """Every layer of every utterance; with a ``limit`` of 0 bit for bit."""
    for a, b in zip(ours, theirs, strict=True):
        for x, y in zip(a, b, strict=True):
            assert x.shape == y.shape
            assert relative_error(x, y) < limit if limit else torch.equal(x, y)


def noises(lengths: Sequence[int], seed: int = 7, scale: float = 1.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(n, generator=generator) for n in lengths]


def changed(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> Path:
    """A checkpoint, its tensors changed in place."""
    from safetensors.torch import load_file, save_file

    path = Path(folder) / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    return Path(folder)
