"""Augmentations of the waveform: gain, noise, time masks, band-pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from extractor.augment.chance import Random
from extractor.augment.errors import CannotAugment
from extractor.augment.latent import KEYS
from extractor.augment.operation import Augmentation, Operation
from extractor.augment.parameters import (
    Choice,
    Interval,
    Name,
    Number,
    Parts,
    Range,
    Spans,
    Whole,
)
from extractor.augment.pool import NOISE, Clip, Pool, Source
from extractor.types import SAMPLE_RATE, Seconds

_DB = 120.0  # beyond the dynamic range of 16-bit audio (96 dB): surely a slip


@dataclass(frozen=True, slots=True)
class Scale(Operation):
    """Every sample times 10^(db / 20)."""

    name: ClassVar[str] = "gain"
    db: Annotated[float, Number(-_DB, _DB, "dB"), "louder by"]


@dataclass(frozen=True, slots=True)
class Gain(Augmentation):
    """Louder or softer. Encoders that normalise their input do not notice it."""

    name: ClassVar[str] = "gain"
    db: Annotated[Range, Interval(-_DB, _DB, "dB"), "louder by"] = (-6.0, 6.0)

    def draw(self, source: Source, random: Random, pool: Pool) -> tuple[Operation, ...]:
        return (Scale(random.within(self.db)),)


# Power ~ 1 / f^exponent.
COLOURS = {"white": 0.0, "pink": 1.0, "brown": 2.0}


@dataclass(frozen=True, slots=True)
class AddNoise(Operation):
    """Noise of a colour and key, or of a recording from its start (repeated where it is too short)."""

    name: ClassVar[str] = "noise"
    snr_db: Annotated[float, Number(-_DB, _DB, "dB"), "mean power of the recording over that of the noise"]
    color: Annotated[str | None, Choice(tuple(COLOURS)), "of made noise"] = None
    key: Annotated[int | None, KEYS, "of the random numbers of made noise"] = None
    clip: Annotated[str | None, Name(), "recording of noise"] = None
    start: Annotated[Seconds | None, Number(0, 1e9, "s"), "in the recording of noise"] = None

    def __post_init__(self) -> None:
        Operation.__post_init__(self)
        given = tuple(value is not None for value in (self.color, self.key, self.clip, self.start))
        if given not in ((True, True, False, False), (False, False, True, True)):
            raise self.refuse("color", "either color and key, or clip and start")

    @property
    def clip_needed(self) -> Clip | None:
        return None if self.clip is None else Clip(self.clip, NOISE)


@dataclass(frozen=True, slots=True)
class AdditiveNoise(Augmentation):
    """Noise at a signal-to-noise ratio, measured on the recording's own mean power.

    White, pink (1/f) or brown (1/f^2) noise, or a cut of a recording drawn from ``folder``.
    """

    name: ClassVar[str] = "noise"
    snr_db: Annotated[Range, Interval(-_DB, _DB, "dB"), "signal-to-noise ratio"] = (5.0, 20.0)
    color: Annotated[str | None, Choice(tuple(COLOURS)), "of made noise; white unless a folder is given"] = (
        None
    )
    folder: Annotated[str | None, Name(), "of recordings of noise, in place of a color"] = None

    def __post_init__(self) -> None:
        Augmentation.__post_init__(self)
        if self.color is not None and self.folder is not None:
            raise self.refuse("folder", f"and color={self.color} exclude each other")
        if self.folder is None and self.color is None:
            object.__setattr__(self, "color", "white")

    def draw(self, source: Source, random: Random, pool: Pool) -> tuple[Operation, ...]:
        snr_db = random.within(self.snr_db)
        if self.folder is None:
            return (AddNoise(snr_db, color=self.color, key=random.key()),)
        clips = pool.noise.get(self.folder, ())
        if not clips:
            raise CannotAugment(f"noise: there is no recording in folder {self.folder!r}")
        clip = clips[random.index(len(clips))]
        spare = max(clip.num_samples - source.num_samples, 0)
        return (AddNoise(snr_db, clip=clip.id, start=random.whole(0, spare) / SAMPLE_RATE),)

    def check(self, pool: Pool) -> None:
        if self.folder is not None and not pool.noise.get(self.folder):
            raise self.refuse("folder", "there is no recording in it")


@dataclass(frozen=True, slots=True)
class Silence(Operation):
    """Parts set to zero."""

    name: ClassVar[str] = "silence"
    spans: Annotated[Spans, Parts("samples at 16 kHz"), "samples set to zero"] = ()


@dataclass(frozen=True, slots=True)
class TimeMask(Augmentation):
    """Parts of the waveform set to zero; together never more than half of the recording."""

    name: ClassVar[str] = "timemask"
    width: Annotated[Range, Interval(0, 60, "s", above=True), "of one mask"] = (0.05, 0.2)
    count: Annotated[int, Whole(1, 100), "how many"] = 1

    def draw(self, source: Source, random: Random, pool: Pool) -> tuple[Operation, ...]:
        most = source.num_samples // (2 * self.count)
        spans = []
        for _ in range(self.count):
            width = min(round(random.within(self.width) * SAMPLE_RATE), most)
            first = random.whole(0, source.num_samples - width)
            spans.append((first, first + width))
        return (Silence(tuple(span for span in spans if span[0] < span[1])),)


BANDS = {"telephone": (300.0, 3400.0)}  # Hz; ITU-T G.712's pass band
_HERTZ = Number(0, SAMPLE_RATE / 2, "Hz")


@dataclass(frozen=True, slots=True)
class Band(Operation):
    """Frequencies outside ``low`` to ``high`` removed, without delay; see `extractor.augment.filters`."""

    name: ClassVar[str] = "band"
    low: Annotated[float, _HERTZ, "lower edge; 0: none"]
    high: Annotated[float, _HERTZ, "upper edge; 8000: none"]

    def __post_init__(self) -> None:
        Operation.__post_init__(self)
        if self.low >= self.high:
            raise self.refuse("low", f"must be below high={self.high}")


@dataclass(frozen=True, slots=True)
class BandPass(Augmentation):
    """Band-limited speech, as over a telephone; ``low`` and ``high`` in place of a named band."""

    name: ClassVar[str] = "bandpass"
    band: Annotated[str | None, Choice(tuple(BANDS)), "a named band; telephone unless edges are given"] = None
    low: Annotated[float | None, _HERTZ, "lower edge; 0: none"] = None
    high: Annotated[float | None, _HERTZ, "upper edge; 8000: none"] = None

    def __post_init__(self) -> None:
        Augmentation.__post_init__(self)
        edges = (self.low, self.high)
        if self.band is not None and edges != (None, None):
            raise self.refuse("band", "excludes low and high")
        if edges == (None, None):
            object.__setattr__(self, "band", self.band or "telephone")
            return
        low, high = self.edges
        if low >= high:
            raise self.refuse("low" if self.high is None else "high", "low must be below high")

    @property
    def edges(self) -> Range:
        if self.band is not None:
            return BANDS[self.band]
        return self.low or 0.0, SAMPLE_RATE / 2 if self.high is None else self.high

    def draw(self, source: Source, random: Random, pool: Pool) -> tuple[Operation, ...]:
        return (Band(*self.edges),)
