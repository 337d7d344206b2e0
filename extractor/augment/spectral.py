"""Augmentations of the spectrogram: time stretch, SpecAugment, pitch shift."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Annotated, ClassVar, NamedTuple

from extractor.augment.drawing import DECIMALS, Augmentation, Operation, Operations, Original, Pool, Random
from extractor.augment.parameters import Choice, Interval, Number, Parts, Range, Spans, Whole
from extractor.types import SAMPLE_RATE

# As `cuda_kernels.spectral` has them (tested); that module imports torch, and drawing needs none.
N_FFT = 640  # 40 ms: bins are 25 Hz apart
HOP = 160  # 10 ms: a frame is a frame of the SpecAugment paper
NUM_BINS = N_FFT // 2 + 1

NUM_CHANNELS = 80  # of the mel axis that SpecAugment's frequency masks are counted on


def num_frames(num_samples: int) -> int:
    """Frames of the spectrogram, the first centred on sample 0."""
    return 1 + num_samples // HOP


@dataclass(frozen=True, slots=True)
class Stretch(Operation):
    """Phase vocoder: n samples become round(n / rate), pitch kept."""

    name: ClassVar[str] = "stretch"
    rate: Annotated[float, Number(0.25, 4), "times as fast"]

    def num_samples(self, n: int) -> int:
        return round(n / self.rate)


@dataclass(frozen=True, slots=True)
class TimeStretch(Augmentation):
    """Faster or slower speech at its own pitch, by a phase vocoder (Flanagan and Golden 1966).

    ``rate`` is drawn uniformly; 0.8 makes a recording 1.25 times as long. Bins that share a sound come out of
    phase with each other, as in any plain phase vocoder: speech is some 3 dB softer than before.
    """

    name: ClassVar[str] = "stretch"
    rate: Annotated[Range, Interval(0.25, 4), "times as fast"] = (0.8, 1.25)

    def draw(self, source: Original, random: Random, pool: Pool) -> Operations:
        return (Stretch(random.within(self.rate)),)


class Policy(NamedTuple):
    """Bounds of what SpecAugment draws, by the letters of the paper."""

    warp: int  # W, frames
    frequency_width: int  # F, mel channels
    frequency_masks: int  # m_F
    time_width: int  # T, frames
    time_share: float  # p
    time_masks: int  # m_T


# Park et al. 2019, "SpecAugment: a simple data augmentation method for ASR", table 1: LibriSpeech basic and
# double, Switchboard mild and strong.
POLICIES = {
    "LB": Policy(80, 27, 1, 100, 1.0, 1),
    "LD": Policy(80, 27, 2, 100, 1.0, 2),
    "SM": Policy(40, 15, 2, 70, 0.2, 2),
    "SS": Policy(40, 27, 2, 70, 0.2, 2),
}


@dataclass(frozen=True, slots=True)
class MaskSpectrogram(Operation):
    """Time warp, then parts of the spectrogram set to zero; the length is kept.

    The warp is a piecewise-linear map: the source's frame ``warp_from`` comes to lie at frame ``warp_to``,
    first and last stay where they are. Bands are STFT bins (25 Hz apart), spans are frames of the result
    (10 ms apart).
    """

    name: ClassVar[str] = "masks"
    warp_from: Annotated[float | None, Number(0, math.inf), "frame of the source"] = None
    warp_to: Annotated[float | None, Number(0, math.inf), "frame of the result where it lands"] = None
    bands: Annotated[Spans, Parts("bins of 25 Hz"), "bins set to zero"] = ()
    spans: Annotated[Spans, Parts("frames of 10 ms"), "frames set to zero"] = ()

    def __post_init__(self) -> None:
        Operation.__post_init__(self)
        if (self.warp_from is None) != (self.warp_to is None):
            raise self.refuse("warp_from", "goes with warp_to")


@dataclass(frozen=True, slots=True)
class SpecAugment(Augmentation):
    """SpecAugment (Park et al. 2019, section 2), on the waveform's own spectrogram.

    Widths are drawn uniformly up to their bound, then a place for them: ``f`` of 0 .. F of 80 mel channels,
    ``f0`` of 0 .. 80 - f - 1; ``t`` of 0 .. min(T, p * frames), ``t0`` alike. The warp moves a point at least
    W frames from both ends by up to W frames (W is at most a quarter of the frames). ``policy`` is a row of
    the paper's table 1; a bound given beside it replaces the policy's own.
    """

    name: ClassVar[str] = "specaugment"
    policy: Annotated[str, Choice(tuple(POLICIES)), "row of the paper's table 1"] = "LD"
    warp: Annotated[int | None, Whole(0, 10_000, "frames of 10 ms"), "W: a point moves so far"] = None
    frequency_width: Annotated[
        int | None, Whole(0, NUM_CHANNELS, f"of {NUM_CHANNELS} mel channels"), "F: widest frequency mask"
    ] = None
    frequency_masks: Annotated[int | None, Whole(0, 100), "m_F: how many"] = None
    time_width: Annotated[int | None, Whole(0, 100_000, "frames of 10 ms"), "T: widest time mask"] = None
    time_share: Annotated[float | None, Number(0, 1), "p: widest time mask, share of the frames"] = None
    time_masks: Annotated[int | None, Whole(0, 100), "m_T: how many"] = None

    @property
    def bounds(self) -> Policy:
        """The policy with the bounds that were given beside it."""
        given = {f: getattr(self, f) for f in Policy._fields if getattr(self, f) is not None}
        return POLICIES[self.policy]._replace(**given)

    def draw(self, source: Original, random: Random, pool: Pool) -> Operations:
        bounds, tau = self.bounds, num_frames(source.num_samples)
        warp: tuple[float | None, float | None] = (None, None)
        if most := min(bounds.warp, tau // 4):
            point = random.within((most, tau - 1 - most))
            moved = round(point + random.within((-most, most)), DECIMALS)
            warp = (
                point,
                min(max(moved, 0.5), tau - 1.5),
            )  # never onto an end: the rate there would be infinite
        bands, spans = [], []
        for _ in range(bounds.frequency_masks):
            f = random.whole(0, bounds.frequency_width)
            first = random.index(max(NUM_CHANNELS - f, 1))
            bands.append((bin_of(first), bin_of(first + f)))
        for _ in range(bounds.time_masks):
            t = random.whole(0, min(bounds.time_width, int(bounds.time_share * tau)))
            first = random.index(max(tau - t, 1))
            spans.append((first, first + t))
        filled = (tuple(span for span in each if span[0] < span[1]) for each in (bands, spans))
        return (MaskSpectrogram(*warp, *filled),)


def bin_of(channel: int) -> int:
    """The first STFT bin in or above a mel channel, 0 .. 80 (HTK's mel scale, 0 to 8000 Hz).

    Channels are equal parts of the mel axis, so each bin belongs to one channel and all 80 to all bins. The
    lowest are narrower than a bin, and a few of them hold none.
    """
    if channel == NUM_CHANNELS:
        return NUM_BINS
    top = 2595 * math.log10(1 + SAMPLE_RATE / 2 / 700)
    hertz = 700 * (10 ** (channel / NUM_CHANNELS * top / 2595) - 1)
    return math.ceil(hertz * N_FFT / SAMPLE_RATE)


@dataclass(frozen=True, slots=True)
class Shift(Operation):
    """Time stretch, then resampling back to the same length; see `pitch_ratio`."""

    name: ClassVar[str] = "pitch"
    semitones: Annotated[float, Number(-24, 24, "semitones"), "higher by"]


@dataclass(frozen=True, slots=True)
class PitchShift(Augmentation):
    """Higher or lower by semitones, length kept: a time stretch by the vocoder, then resampling.

    Formants move with the pitch. The frequency ratio is one of small whole numbers (`pitch_ratio`).
    """

    name: ClassVar[str] = "pitch"
    semitones: Annotated[Range, Interval(-24, 24, "semitones"), "higher by"] = (-2.0, 2.0)

    def draw(self, source: Original, random: Random, pool: Pool) -> Operations:
        return (Shift(random.within(self.semitones)),)


RATIO_SLACK = 2.0  # cents; the least that is always met by whole numbers up to 512 (near a ratio of 1)


@lru_cache(maxsize=4096)
def pitch_ratio(semitones: float) -> Fraction:
    """The ratio p/q of the smallest numbers within two cents of 2^(semitones / 12); p and q up to 512.

    Resampling by p/q needs a filter for each phase: small numbers keep those few, and the ratios of a range
    of semitones few as well. Two cents are well below what listeners tell apart.
    """
    slack = 2 ** (RATIO_SLACK / 1200)
    asked = 2 ** (semitones / 12)
    return _simplest(Fraction(asked / slack), Fraction(asked * slack))


def _simplest(low: Fraction, high: Fraction) -> Fraction:
    """The fraction of the least denominator in [low, high], by their common continued fraction."""
    whole = math.floor(low)
    if low == whole:
        return Fraction(whole)
    if whole < math.floor(high):
        return Fraction(whole + 1)
    return whole + 1 / _simplest(1 / (high - whole), 1 / (low - whole))
