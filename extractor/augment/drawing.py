"""What is drawn for a copy: by which numbers, from which recordings, and what it makes of them.

    Random                      random numbers, functions of what they are drawn for, never of a state
    Original   Clip   Pool        an original, other audio, and all that may be drawn from
    Augmentation -> Operation   what is asked for, in ranges; what was drawn, in numbers
    OneOf  Compose              augmentations made of others

A draw depends on the run's seed, the recording's id, the number of the copy and the place in the
augmentation that asks, and on nothing else: not on order, batch mates, workers or a resume.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import Annotated, ClassVar, TypeAlias

from extractor.augment.parameters import Number, Range, TableRow
from extractor.errors import SettingsError

RECORDING = "recording"  # of the corpus: `Clip.id` is its utterance's id
NOISE = "noise"  # from a folder of noise: `Clip.id` is its path
NOTHING = "none"  # the text of a recipe without operations

_BLOCK = 4  # numbers at a time: most draws need no more
DECIMALS = 6  # of a drawn parameter: below what can be heard, and texts stay short


class Random:
    """The numbers of one place, from Philox4x32-10 under a key made of ``parts``.

    ``parts`` are what the draw may depend on: seed, recording, copy, place in the augmentation.
    """

    def __init__(self, *parts: str | int) -> None:
        self._parts = parts
        self._key: int | None = None
        self._block: list[float] = []
        self._used = 0

    def inside(self, place: int) -> Random:
        """The numbers of the ``place``-th augmentation inside this one."""
        return Random(*self._parts, place)

    def key(self) -> int:
        """64 bits for noise or spans that are made later."""
        from cuda_kernels.philox import derive_key

        return derive_key(*self._parts, "samples")

    def uniform(self) -> float:
        """Uniform in [0, 1)."""
        from cuda_kernels.philox import derive_key, uniforms

        if self._key is None:
            self._key = derive_key(*self._parts)
        if self._used % _BLOCK == 0:
            self._block = uniforms(self._key, _BLOCK, first=self._used).tolist()
        self._used += 1
        return self._block[(self._used - 1) % _BLOCK]

    def within(self, interval: Range) -> float:
        """Uniform in [low, high], of six decimals."""
        low, high = interval
        drawn = round(low + self.uniform() * (high - low), DECIMALS)
        return min(max(drawn, low), high)

    def index(self, count: int) -> int:
        """Uniform in 0 .. count - 1."""
        # u < 1, but u * count may be rounded up to count itself when count is large.
        return min(int(self.uniform() * count), count - 1)

    def whole(self, low: int, high: int) -> int:
        """Uniform in low .. high, both included."""
        return low + self.index(high - low + 1)

    def weighted(self, weights: Sequence[float]) -> int:
        """An index, with a probability proportional to its weight."""
        sums = list(accumulate(weights))
        point = self.uniform() * sums[-1]
        return next((i for i, total in enumerate(sums) if point < total), len(sums) - 1)

    def distinct(self, count: int, below: int) -> list[int]:
        """``count`` different whole numbers of 0 .. below - 1, sorted (Floyd's sampling).

        Robert Floyd, "A sample of brilliance", CACM 30(9), 1987: one draw for each number.
        """
        chosen: set[int] = set()
        for last in range(below - count, below):
            drawn = self.whole(0, last)
            chosen.add(last if drawn in chosen else drawn)
        return sorted(chosen)


# What may be drawn from


@dataclass(frozen=True, slots=True)
class Original:
    """An original recording, as far as drawing needs to know it; "" where a label is not known."""

    id: str
    num_samples: int  # at 16 kHz, as planned: an estimate where a header does not tell
    emotion: str = ""
    speaker: str = ""


@dataclass(frozen=True, slots=True)
class Clip:
    """Other audio that a recipe needs. The same clip whatever is known of its length."""

    id: str
    kind: str = RECORDING
    num_samples: int = field(default=0, compare=False)  # at 16 kHz, as planned; 0: not known


class Pool:
    """Candidates in the order of their ids, found by label without a pass over all recordings."""

    def __init__(
        self, sources: Iterable[Original] = (), noise: Mapping[str, Sequence[Clip]] | None = None
    ) -> None:
        """``sources``: originals, ids unique. ``noise``: the clips of each folder, as it was written."""
        self.noise = {
            folder: tuple(sorted(clips, key=lambda clip: clip.id)) for folder, clips in (noise or {}).items()
        }
        # By emotion and speaker; under the speaker None all of an emotion.
        self.groups: dict[tuple[str, str | None], list[Original]] = {}
        for source in sorted(sources, key=lambda source: source.id):
            for speaker in (source.speaker, None):
                self.groups.setdefault((source.emotion, speaker), []).append(source)

    def has(self, recording: str) -> bool:
        return any(source.id == recording for of in self.groups.values() for source in of)

    def of_emotion(self, emotion: str) -> list[Original]:
        return self.groups.get((emotion, None), [])

    def partners(self, source: Original, emotion: str, same_speaker: bool) -> Partners:
        """Recordings of ``emotion`` other than ``source``; none where a label is not known."""
        if not emotion or (same_speaker and not source.speaker):
            return Partners([], None)
        found = self.groups.get((emotion, source.speaker if same_speaker else None), [])
        at = bisect_left(found, source.id, key=lambda other: other.id)
        itself = at < len(found) and found[at].id == source.id
        return Partners(found, at if itself else None)


@dataclass(frozen=True, slots=True)
class Partners:
    """A sorted list less the recording itself (at ``itself``), which is skipped, not copied around."""

    found: Sequence[Original]
    itself: int | None

    def __len__(self) -> int:
        return len(self.found) - (self.itself is not None)

    def __getitem__(self, index: int) -> Original:
        return self.found[index + (self.itself is not None and index >= self.itself)]


# What is asked for, and what is drawn

Operations: TypeAlias = "tuple[Operation, ...]"


@dataclass(frozen=True, slots=True)
class Augmentation(TableRow):
    """What is asked for: ranges, from which each copy's operations are drawn.

    What it needs and whether it can work at all is asked of an augmentation made of others (``inner``) as
    of one row of the table.
    """

    p: Annotated[float, Number(0, 1, above=True), "probability that it is applied, else skipped"] = field(
        default=1.0, kw_only=True
    )

    def draw(self, source: Original, random: Random, pool: Pool) -> Operations:
        """The operations for one copy of ``source``, given that this is applied at all.

        Raises CannotAugment where this recording leaves nothing to draw from.
        """
        raise NotImplementedError  # never reached: each row of the table has its own

    def drawn(self, source: Original, random: Random, pool: Pool) -> Operations:
        """With probability ``p`` what `draw` gives, else nothing."""
        if self.p < 1 and random.uniform() >= self.p:
            return ()
        return self.draw(source, random, pool)

    @property
    def inner(self) -> tuple[Augmentation, ...]:
        """What it is made of, if it is a combination of others."""
        return ()

    def check(self, pool: Pool) -> None:
        """Raises SettingsError where the corpus, or a folder of noise, has nothing that could be drawn."""
        for part in self.inner:
            part.check(pool)

    @property
    def inside_encoder(self) -> bool:
        """Whether it may draw masks inside the encoder: it must be one that has a mask embedding."""
        return any(part.inside_encoder for part in self.inner)

    @property
    def needs_partners(self) -> bool:
        """Whether it may take other recordings of the corpus."""
        return any(part.needs_partners for part in self.inner)

    @property
    def folders(self) -> tuple[str, ...]:
        """Folders of noise that are needed, as they were written, each once."""
        return tuple(dict.fromkeys(folder for part in self.inner for folder in part.folders))


@dataclass(frozen=True, slots=True)
class Operation(Augmentation):
    """What was drawn for one copy, every number fixed. As an augmentation: the same for every copy."""

    def num_samples(self, n: int) -> int:
        """How many samples ``n`` of them become, at 16 kHz."""
        return n

    @property
    def clip_needed(self) -> Clip | None:
        """Other audio that this takes."""
        return None

    def draw(self, source: Original, random: Random, pool: Pool) -> Operations:
        return (self if self.p == 1 else replace(self, p=1.0),)

    def check(self, pool: Pool) -> None:
        clip = self.clip_needed
        if clip and clip.kind == NOISE and not Path(clip.id).is_file():
            raise SettingsError(f"{self.text}: there is no file {clip.id!r}")
        if clip and clip.kind == RECORDING and not pool.has(clip.id):
            raise SettingsError(f"{self.text}: no recording of the input has the id {clip.id!r}")

    @property
    def needs_partners(self) -> bool:
        return self.clip_needed is not None and self.clip_needed.kind == RECORDING


@dataclass(frozen=True, slots=True)
class Nothing(Operation):
    """The recording as it is."""

    name: ClassVar[str] = NOTHING

    def draw(self, source: Original, random: Random, pool: Pool) -> Operations:
        return ()


@dataclass(frozen=True, slots=True)
class OneOf(Augmentation):
    """One of ``choices``, drawn for each copy with a probability proportional to its weight.

    ``choices``: pairs (augmentation, weight > 0), or augmentations alone, which weigh 1. The weights need
    not add up to 1.
    """

    name: ClassVar[str] = "oneof"
    choices: Sequence[tuple[Augmentation, float] | Augmentation]

    def __post_init__(self) -> None:
        Augmentation.__post_init__(self)
        pairs = []
        for choice in self.choices:
            pair = isinstance(choice, tuple | list) and len(choice) == 2
            augmentation, weight = choice if pair else (choice, 1.0)  # type: ignore[misc]
            if not isinstance(augmentation, Augmentation):
                why = "is not an augmentation, nor a pair (augmentation, weight)"
                raise SettingsError(f"oneof: {augmentation!r} {why}")
            if not Number(0, above=True).holds(weight):
                what = f"weight {weight!r} of {augmentation.name}"
                raise SettingsError(f"oneof: {what}: must be a number above 0")
            pairs.append((augmentation, float(weight)))
        if not pairs:
            raise SettingsError("oneof: has no augmentation to choose from")
        object.__setattr__(self, "choices", tuple(pairs))

    @property
    def weighted(self) -> tuple[tuple[Augmentation, float], ...]:
        return self.choices  # type: ignore[return-value]  # pairs since __post_init__

    @property
    def inner(self) -> tuple[Augmentation, ...]:
        return tuple(augmentation for augmentation, _ in self.weighted)

    def draw(self, source: Original, random: Random, pool: Pool) -> Operations:
        chosen = random.weighted([weight for _, weight in self.weighted])
        return self.inner[chosen].drawn(source, random.inside(chosen), pool)


@dataclass(frozen=True, slots=True)
class Compose(Augmentation):
    """All of ``items``, one after the other: each sees the length that those before it leave."""

    name: ClassVar[str] = "compose"
    items: Sequence[Augmentation]

    def __post_init__(self) -> None:
        Augmentation.__post_init__(self)
        object.__setattr__(self, "items", tuple(self.items))
        if not self.items:
            raise SettingsError("compose: has no augmentation in it")
        for item in self.items:
            if not isinstance(item, Augmentation):
                raise SettingsError(f"compose: {item!r} is not an augmentation")
        if sum(item.inside_encoder for item in self.items) > 1:
            raise SettingsError(
                "compose: has latent masks twice; give one of them a larger time_prob instead"
            )

    @property
    def inner(self) -> tuple[Augmentation, ...]:
        return tuple(self.items)

    def draw(self, source: Original, random: Random, pool: Pool) -> Operations:
        operations: list[Operation] = []
        for place, item in enumerate(self.items):
            drawn = item.drawn(source, random.inside(place), pool)
            for operation in drawn:
                source = replace(source, num_samples=operation.num_samples(source.num_samples))
            operations += drawn
        return tuple(operations)
