"""The table: augmentations by the name that is written, each beside the operation that it draws.

    stretch, specaugment, pitch       `extractor.augment.spectral`
    latent                            masks inside the encoder
    gain, noise, timemask, bandpass   of the waveform
    copypaste                         by another recording of the corpus

To add one: a dataclass with what may be asked for and a dataclass with what was drawn, a row for both at
the end, and a pass in `extractor.augment.apply`. Text, YAML and the tests go through these tables.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

from extractor.augment.drawing import (
    NOISE,
    NOTHING,
    Augmentation,
    Clip,
    Operation,
    Operations,
    Original,
    Pool,
    Random,
)
from extractor.augment.parameters import Choice, Flag, Interval, Name, Number, Parts, Range, Spans, Whole
from extractor.augment.spectral import (
    MaskSpectrogram,
    PitchShift,
    Shift,
    SpecAugment,
    Stretch,
    TimeStretch,
)
from extractor.errors import CannotAugment, SettingsError
from extractor.types import SAMPLE_RATE, Seconds

MIN_TIME_SPANS = 2  # `mask_time_min_masks` of transformers' HuBERT and wav2vec 2.0; of channels there is none
KEYS = Whole(0, 2**64 - 1)


@dataclass(frozen=True, slots=True)
class LatentMasks(Operation):
    """Spans that follow from the number of frames, the number of channels and ``key`` alone."""

    name: ClassVar[str] = "latent"
    time_prob: Annotated[float, Number(0, 1), "share of the frames in masks, were none to overlap"]
    time_length: Annotated[int, Whole(1, 100_000), "frames of one mask"]
    channel_prob: Annotated[float, Number(0, 1), "share of the channels in masks, were none to overlap"]
    channel_length: Annotated[int, Whole(1, 100_000), "channels of one mask"]
    key: Annotated[int, KEYS, "of the random numbers"]

    @property
    def inside_encoder(self) -> bool:
        return True

    def spans(self, num_frames: int, dim: int) -> tuple[Spans, Spans]:
        """Spans ``[first, last)`` of ``num_frames`` frames and of ``dim`` channels, sorted, may overlap.

        A frame in a span is replaced by the model's mask embedding, a channel in one set to zero. Their
        number is prob * size / length, rounded up or down by chance, and at least two spans of time, as
        far as that many fit one behind the other; starts are distinct (as `transformers` draws them).
        """
        time = (num_frames, self.time_prob, self.time_length, MIN_TIME_SPANS, "time")
        channels = (dim, self.channel_prob, self.channel_length, 0, "channels")
        drawn: list[Spans] = []
        for size, prob, length, least, what in (time, channels):
            random, starts = Random(self.key, what), max(size - length + 1, 0)
            count = max(int(prob * size / length + random.uniform()), least) if prob else 0
            firsts = random.distinct(min(count, size // length, starts), starts)
            drawn.append(tuple((first, first + length) for first in firsts))
        return drawn[0], drawn[1]


@dataclass(frozen=True, slots=True)
class LatentMask(Augmentation):
    """Masks over the CNN's output, as wav2vec 2.0 and HuBERT are trained and fine-tuned with.

    Baevski et al. 2020, sections 3.1 and 4.2; Hsu et al. 2021. Defaults are those of `transformers`
    (``mask_time_prob`` 0.05 and so on); HuBERT's pre-training masked more: each frame began a mask of 10
    with probability 0.08, which is ``time_prob=0.8`` in the meaning here, the share of masked frames
    before overlaps.
    """

    name: ClassVar[str] = "latent"
    time_prob: Annotated[float, Number(0, 1), "share of the frames in masks, were none to overlap"] = 0.05
    time_length: Annotated[int, Whole(1, 100_000), "frames of one mask"] = 10
    channel_prob: Annotated[float, Number(0, 1), "share of the channels in masks, were none to overlap"] = 0.0
    channel_length: Annotated[int, Whole(1, 100_000), "channels of one mask"] = 10

    @property
    def inside_encoder(self) -> bool:
        return True

    def draw(self, source: Original, random: Random, pool: Pool) -> Operations:
        asked = (self.time_prob, self.time_length, self.channel_prob, self.channel_length)
        return (LatentMasks(*asked, random.key()),)


NEUTRAL = "neutral"  # of the common emotion set

NEUTRAL_PARTNER, SAME_EMOTION, EITHER = "n-cp", "se-cp", "n+se-cp"
KINDS = {
    NEUTRAL_PARTNER: [NEUTRAL_PARTNER],
    SAME_EMOTION: [SAME_EMOTION],
    EITHER: [NEUTRAL_PARTNER, SAME_EMOTION],
}
ENDS = {"append": ("end",), "prepend": ("start",), "random": ("end", "start")}


@dataclass(frozen=True, slots=True)
class Join(Operation):
    """Another recording before or behind this one, scaled to this one's RMS."""

    name: ClassVar[str] = "join"
    clip: Annotated[str, Name(), "id of the other recording"]
    at: Annotated[str, Choice(("start", "end")), "where it is joined on"]
    partner_samples: Annotated[
        int, Whole(0, 2**62, "samples"), "of the other recording at 16 kHz, as planned"
    ]

    def num_samples(self, n: int) -> int:
        return n + self.partner_samples

    @property
    def clip_needed(self) -> Clip | None:
        return Clip(self.clip, num_samples=self.partner_samples)


@dataclass(frozen=True, slots=True)
class CopyPaste(Augmentation):
    """A recording joined to another, its label kept (Pappagari et al. 2020, "CopyPaste", section 3).

    ``n-cp``: the other is neutral (Neutral CopyPaste); ``se-cp``: it has the same emotion; ``n+se-cp``: one
    of the two is drawn for each copy, of those for which the corpus has another recording.
    """

    name: ClassVar[str] = "copypaste"
    kind: Annotated[str, Choice(tuple(KINDS)), "which recordings are joined on"] = NEUTRAL_PARTNER
    order: Annotated[str, Choice(tuple(ENDS)), "where"] = "append"
    same_speaker: Annotated[bool, Flag(), "only recordings of the same speaker"] = False

    @property
    def needs_partners(self) -> bool:
        return True

    def draw(self, source: Original, random: Random, pool: Pool) -> Operations:
        possible = [pool.partners(source, e, self.same_speaker) for e in self._emotions(source)]
        found = [partners for partners in possible if len(partners)]
        if not found:
            raise CannotAugment(f"copypaste, {self._why_none(source)}")
        partners = found[random.index(len(found))]
        partner = partners[random.index(len(partners))]
        ends = ENDS[self.order]
        return (Join(partner.id, ends[random.index(len(ends))], partner.num_samples),)

    def _emotions(self, source: Original) -> list[str]:
        """What the partner's emotion may be; "" where it would be the source's and that is not known."""
        return [NEUTRAL if kind == NEUTRAL_PARTNER else source.emotion for kind in KINDS[self.kind]]

    def _why_none(self, source: Original) -> str:
        if self.kind == SAME_EMOTION and not source.emotion:
            return "kind=se-cp: this recording's emotion is not known"
        if self.same_speaker and not source.speaker:
            return "same_speaker=yes: this recording's speaker is not known"
        emotion = " or ".join(dict.fromkeys(filter(None, self._emotions(source))))
        speaker = f" of speaker {source.speaker!r}" if self.same_speaker else ""
        return f"kind={self.kind}: the corpus has no other {emotion} recording{speaker}"

    def check(self, pool: Pool) -> None:
        known = {emotion: len(pool.of_emotion(emotion)) for emotion, _ in pool.groups if emotion}
        if not known:
            raise self.refuse("kind", "no recording has an emotion; it takes a corpus with labels")
        if NEUTRAL_PARTNER in KINDS[self.kind] and NEUTRAL not in known:
            raise self.refuse("kind", "no recording of the corpus is neutral")
        if self.kind == SAME_EMOTION and max(known.values()) < 2:
            raise self.refuse("kind", "no two recordings of the corpus have the same emotion")
        if self.same_speaker and not any(speaker for _, speaker in pool.groups):
            raise self.refuse("same_speaker", "no recording has a speaker; it takes a corpus with speakers")


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

    def draw(self, source: Original, random: Random, pool: Pool) -> Operations:
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

    def draw(self, source: Original, random: Random, pool: Pool) -> Operations:
        snr_db = random.within(self.snr_db)
        if self.folder is None:
            return (AddNoise(snr_db, color=self.color, key=random.key()),)
        clips = pool.noise.get(self.folder, ())
        if not clips:
            raise CannotAugment(f"noise: there is no recording in folder {self.folder!r}")
        clip = clips[random.index(len(clips))]
        spare = max(clip.num_samples - source.num_samples, 0)
        return (AddNoise(snr_db, clip=clip.id, start=random.whole(0, spare) / SAMPLE_RATE),)

    @property
    def folders(self) -> tuple[str, ...]:
        return () if self.folder is None else (self.folder,)

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

    def draw(self, source: Original, random: Random, pool: Pool) -> Operations:
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
    """Frequencies outside ``low`` to ``high`` removed, without delay; see `extractor.augment.apply`."""

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

    def draw(self, source: Original, random: Random, pool: Pool) -> Operations:
        return (Band(*self.edges),)


# Name -> what is asked for, and what is drawn.
_ROWS: tuple[tuple[type[Augmentation], type[Operation]], ...] = (
    (TimeStretch, Stretch),
    (SpecAugment, MaskSpectrogram),
    (LatentMask, LatentMasks),
    (AdditiveNoise, AddNoise),
    (CopyPaste, Join),
    (PitchShift, Shift),
    (TimeMask, Silence),
    (BandPass, Band),
    (Gain, Scale),
)
AUGMENTATIONS = {asked.name: asked for asked, _ in _ROWS}
OPERATIONS = {drawn.name: drawn for _, drawn in _ROWS}


@dataclass(frozen=True, slots=True)
class Recipe:
    """The operations of one copy, with all that is needed to make it again; empty: the recording as it is."""

    operations: Operations = ()

    def __post_init__(self) -> None:
        if sum(operation.inside_encoder for operation in self.operations) > 1:
            raise SettingsError(
                f"recipe {self.text!r}: has latent masks twice; once is all an encoder applies"
            )

    def __iter__(self) -> Iterator[Operation]:
        return iter(self.operations)

    def __len__(self) -> int:
        return len(self.operations)

    @property
    def text(self) -> str:
        """``parse_recipe(recipe.text) == recipe``, exactly."""
        return "+".join(operation.text for operation in self.operations) or NOTHING

    def num_samples(self, n: int) -> int:
        """How many samples ``n`` of the original become, at 16 kHz."""
        for operation in self.operations:
            n = operation.num_samples(n)
        return n

    @property
    def clips(self) -> tuple[Clip, ...]:
        """Other audio that it needs, each once."""
        needed = (operation.clip_needed for operation in self.operations)
        return tuple(dict.fromkeys(clip for clip in needed if clip is not None))

    @property
    def latent(self) -> LatentMasks | None:
        """The masks that the encoder applies, if there are any; `augment` has nothing to do with them."""
        return next((operation for operation in self.operations if isinstance(operation, LatentMasks)), None)


def draw(augmentation: Augmentation, source: Original, seed: int, copy: int, pool: Pool) -> Recipe:
    """The recipe of copy number ``copy`` of ``source``: a function of its arguments alone.

    Of ``pool``, it depends on the candidates of this recording. Raises CannotAugment where the recording
    leaves nothing to draw from, such as a partner that does not exist.
    """
    return Recipe(augmentation.drawn(source, Random(seed, source.id, copy), pool))
