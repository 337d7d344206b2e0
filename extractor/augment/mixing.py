"""Augmentations by another recording of the corpus: CopyPaste."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from extractor.augment.chance import Random
from extractor.augment.errors import CannotAugment
from extractor.augment.operation import Augmentation, Operation
from extractor.augment.parameters import Choice, Flag, Name, Whole
from extractor.augment.pool import Clip, Pool, Source

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

    def draw(self, source: Source, random: Random, pool: Pool) -> tuple[Operation, ...]:
        possible = [pool.partners(source, e, self.same_speaker) for e in self._emotions(source)]
        found = [partners for partners in possible if len(partners)]
        if not found:
            raise CannotAugment(self._why_none(source))
        partners = found[random.index(len(found))]
        partner = partners[random.index(len(partners))]
        ends = ENDS[self.order]
        return (Join(partner.id, ends[random.index(len(ends))], partner.num_samples),)

    def _emotions(self, source: Source) -> list[str]:
        """What the partner's emotion may be; "" where it would be the source's and that is not known."""
        return [NEUTRAL if kind == NEUTRAL_PARTNER else source.emotion for kind in KINDS[self.kind]]

    def _why_none(self, source: Source) -> str:
        if self.kind == SAME_EMOTION and not source.emotion:
            return "copypaste, kind=se-cp: this recording's emotion is not known"
        if self.same_speaker and not source.speaker:
            return "copypaste, same_speaker=yes: this recording's speaker is not known"
        emotion = " or ".join(dict.fromkeys(filter(None, self._emotions(source))))
        speaker = f" of speaker {source.speaker!r}" if self.same_speaker else ""
        return f"copypaste, kind={self.kind}: the corpus has no other {emotion} recording{speaker}"

    def check(self, pool: Pool) -> None:
        if set(pool.by_emotion) <= {""}:
            raise self.refuse("kind", "no recording has an emotion; it takes a corpus with labels")
        if NEUTRAL_PARTNER in KINDS[self.kind] and NEUTRAL not in pool.by_emotion:
            raise self.refuse("kind", "no recording of the corpus is neutral")
        pairs = (len(group) > 1 for emotion, group in pool.by_emotion.items() if emotion)
        if self.kind == SAME_EMOTION and not any(pairs):
            raise self.refuse("kind", "no two recordings of the corpus have the same emotion")
        if self.same_speaker and not pool.speakers:
            raise self.refuse("same_speaker", "no recording has a speaker; it takes a corpus with speakers")
