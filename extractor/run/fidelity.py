"""How near a model in int8 is to itself in fp32, on the recordings that it is to embed.

Random weights say little about it: what int8 cannot hold are outliers, which training makes. So the
rule is applied to the weights and the recordings at hand, before a run is begun.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor

from extractor.errors import SettingsError
from extractor.types import Header, Seconds, Utterance

if TYPE_CHECKING:
    from extractor.audio.decode import DecodeOptions
    from extractor.encoders import Encoder, Model
    from extractor.progress import Progress

T = TypeVar("T")

LEAST_COSINE = 0.999  # of every layer to fp32
RECORDINGS = 4  # that the rule is applied to, evenly spaced in the input
TRIED = 32  # recordings to find so many readable ones among
LONGEST: Seconds = 4.0  # of each that is taken: together they take fp32 a few seconds


@dataclass(frozen=True, slots=True)
class Cosines:
    """Of each recording and layer to fp32: float64 ``[U, L]`` each."""

    pooled: np.ndarray  # of the mean over frames
    frames: np.ndarray  # of a frame, their mean

    def lowest(self, frames: bool) -> tuple[float, int, int]:
        """The lowest, of which recording and which layer; NaN counts as lowest."""
        cosines = self.frames if frames else self.pooled
        recording, layer = np.unravel_index(int(np.argmin(cosines)), cosines.shape)
        return float(cosines[recording, layer]), int(recording), int(layer)


class _Frames:
    """A sink that keeps every layer."""

    def __init__(self) -> None:
        self.layers: list[Tensor] = []

    def add(self, layer: int, hidden: Tensor) -> None:
        self.layers.append(hidden.to(torch.float32, copy=True))


def cosines(encoder: Encoder, exact: Encoder, waveforms: Sequence[Tensor]) -> Cosines:
    """Of all layers of an encoder to those of the same one in fp32; waveforms float32 ``[num_samples]``."""
    sinks = (_Frames(), _Frames())
    for each, sink in zip((encoder, exact), sinks, strict=True):
        each.forward(each.normalise(waveforms), sink)
    lengths = [exact.num_frames(len(w)) for w in waveforms]
    pooled, frames = [], []
    for layers in zip(*(sink.layers for sink in sinks), strict=True):
        a, b = (layer.double() for layer in layers)
        by_frame = torch.cosine_similarity(a, b, dim=1)
        frames.append([part.mean().item() for part in by_frame.split(lengths)])
        mean, exact_mean = (torch.stack([part.mean(0) for part in x.split(lengths)]) for x in (a, b))
        pooled.append(torch.cosine_similarity(mean, exact_mean, dim=1).tolist())
    return Cosines(np.array(pooled).T, np.array(frames).T)


def check_int8(
    model: Model, utterances: Sequence[Utterance], options: DecodeOptions, frames: bool, progress: Progress
) -> None:
    """Refuse a model that loses too much in int8. Nothing has been written yet.

    Args:
        model: in int8.
        utterances: what is to be embedded; a few of them are, as they are, twice.
        options: how to decode.
        frames: whether frames are stored, which keep less than what is pooled over them.
        progress: is told how near the model came.

    Raises:
        SettingsError: a layer's cosine to fp32 is below `LEAST_COSINE`.
    """
    samples = _samples(utterances, options, model)
    if not samples:
        progress.note("int8 was not held against fp32: no recording could be read")
        return
    exact = model.build("fp32")  # not `in_fp32`, which would keep it
    found = cosines(model.encoder, exact, [waveform for _, waveform in samples])
    cosine, recording, layer = found.lowest(frames)
    what = "frames" if frames else "embedding"
    if not cosine >= LEAST_COSINE:
        raise SettingsError(
            f"--dtype int8: {model.spec} loses too much: in layer {layer} the cosine of the {what} to fp32 is"
            f" {cosine:.5f} on {samples[recording][0].path}, at least {LEAST_COSINE} is asked for;"
            " take --dtype bf16"
        )
    progress.note(
        f"int8 held against fp32 on {len(samples)} recordings: lowest cosine of the {what} {cosine:.5f}"
        f" (layer {layer})"
    )


def _samples(
    utterances: Sequence[Utterance], options: DecodeOptions, model: Model
) -> list[tuple[Utterance, Tensor]]:
    """The beginnings of a few recordings that can be read, evenly spaced; float32 ``[num_samples]``."""
    from extractor.audio.decode import decode_batch
    from extractor.audio.probe import probe
    from extractor.run.batch import DecodedBatch, arrived, stage

    tried = _spaced(utterances, TRIED)
    headers = probe(tried, options.workers)
    beginnings = []
    for utterance, header in zip(tried, headers, strict=True):
        start = utterance.start or 0.0
        longer = isinstance(header, Header) and (utterance.end or header.duration) - start > LONGEST
        beginnings.append(replace(utterance, start=start, end=start + LONGEST) if longer else utterance)
    decoded = decode_batch(beginnings, headers, options)
    # As a batch would have them: with `resample` off they are at 16 kHz from here on only.
    batch = DecodedBatch.of(0, range(len(decoded)), beginnings, decoded)
    there = zip(batch.rows, arrived(stage(batch, model.device)), strict=True)
    return _spaced(
        [(row.utterance, w) for row, w in there if len(w) >= model.encoder.min_samples], RECORDINGS
    )


def _spaced(things: Sequence[T], most: int) -> list[T]:
    return list(things[:: max(1, len(things) // most)][:most])
