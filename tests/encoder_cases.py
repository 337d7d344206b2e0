"""Running an encoder and keeping what it gives, for the tests of the encoders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


class Kept:
    """A sink that keeps every layer's frames."""

    def __init__(self) -> None:
        self.layers: list[torch.Tensor] = []

    def add(self, layer: int, hidden: torch.Tensor) -> None:
        assert layer == len(self.layers)
        self.layers.append(hidden.clone())


def encode(encoder: Any, waveforms: Sequence[torch.Tensor], **options: Any) -> list[list[torch.Tensor]]:
    """``[utterance][layer]`` of ``[T, D]``. ``options``: of the encoder's ``forward``."""
    sink = Kept()
    encoder.forward(waveforms, sink, **options)
    split = [layer.split([encoder.num_frames(len(w)) for w in waveforms]) for layer in sink.layers]
    return [[frames[i] for frames in split] for i in range(len(waveforms))]
