"""Masks inside the encoder: spans of latent frames and of their channels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from extractor.augment.chance import Random
from extractor.augment.operation import Augmentation, Operation
from extractor.augment.parameters import Number, Spans, Whole
from extractor.augment.pool import Pool, Source

MIN_TIME_SPANS = 2  # `mask_time_min_masks` of transformers' HuBERT and wav2vec 2.0; of channels there is none
KEYS = Whole(0, 2**64 - 1)

_TIME_PROB = Number(0, 1)
_LENGTH = Whole(1, 100_000)


@dataclass(frozen=True, slots=True)
class LatentMasks(Operation):
    """Spans that follow from the number of frames, the number of channels and ``key`` alone."""

    name: ClassVar[str] = "latent"
    time_prob: Annotated[float, _TIME_PROB, "share of the frames in masks, were none to overlap"]
    time_length: Annotated[int, _LENGTH, "frames of one mask"]
    channel_prob: Annotated[float, _TIME_PROB, "share of the channels in masks, were none to overlap"]
    channel_length: Annotated[int, _LENGTH, "channels of one mask"]
    key: Annotated[int, KEYS, "of the random numbers"]

    def spans(self, num_frames: int, dim: int) -> tuple[Spans, Spans]:
        """Spans ``[first, last)`` of ``num_frames`` frames and of ``dim`` channels, sorted, may overlap.

        A frame in a span is replaced by the model's mask embedding, a channel in one set to zero. Their
        number is prob * size / length, rounded up or down by chance, and at least two spans of time, as
        far as that many fit one behind the other; starts are distinct (as `transformers` draws them).
        """
        time = _spans(num_frames, self.time_prob, self.time_length, MIN_TIME_SPANS, Random(self.key, "time"))
        channels = _spans(dim, self.channel_prob, self.channel_length, 0, Random(self.key, "channels"))
        return time, channels


def _spans(size: int, prob: float, length: int, least: int, random: Random) -> Spans:
    if prob == 0:
        return ()
    count = max(int(prob * size / length + random.uniform()), least)
    starts = max(size - length + 1, 0)
    count = min(count, size // length, starts)
    return tuple((first, first + length) for first in random.distinct(count, starts))


@dataclass(frozen=True, slots=True)
class LatentMask(Augmentation):
    """Masks over the CNN's output, as wav2vec 2.0 and HuBERT are trained and fine-tuned with.

    Baevski et al. 2020, sections 3.1 and 4.2; Hsu et al. 2021. Defaults are those of `transformers`
    (``mask_time_prob`` 0.05 and so on); HuBERT's pre-training masked more: each frame began a mask of 10
    with probability 0.08, which is ``time_prob=0.8`` in the meaning here, the share of masked frames
    before overlaps.
    """

    name: ClassVar[str] = "latent"
    time_prob: Annotated[float, _TIME_PROB, "share of the frames in masks, were none to overlap"] = 0.05
    time_length: Annotated[int, _LENGTH, "frames of one mask"] = 10
    channel_prob: Annotated[float, _TIME_PROB, "share of the channels in masks, were none to overlap"] = 0.0
    channel_length: Annotated[int, _LENGTH, "channels of one mask"] = 10

    @property
    def inside_encoder(self) -> bool:
        return True

    def draw(self, source: Source, random: Random, pool: Pool) -> tuple[Operation, ...]:
        return (
            LatentMasks(
                self.time_prob, self.time_length, self.channel_prob, self.channel_length, random.key()
            ),
        )
