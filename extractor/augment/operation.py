"""What both tables' rows have in common: an augmentation is asked for, an operation is carried out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated

from extractor.augment.chance import Random
from extractor.augment.parameters import Number, Row
from extractor.augment.pool import Clip, Pool, Source

NOTHING = "none"  # the text of a recipe without operations


@dataclass(frozen=True, slots=True)
class Operation(Row):
    """What was drawn for one copy: every number is fixed."""

    def num_samples(self, n: int) -> int:
        """How many samples ``n`` of them become, at 16 kHz."""
        return n

    @property
    def clip_needed(self) -> Clip | None:
        """Other audio that this takes."""
        return None


@dataclass(frozen=True, slots=True)
class Augmentation(Row):
    """What is asked for: ranges, from which each copy's operations are drawn."""

    p: Annotated[float, Number(0, 1, above=True), "probability that it is applied, else skipped"] = field(
        default=1.0, kw_only=True
    )

    def draw(self, source: Source, random: Random, pool: Pool) -> tuple[Operation, ...]:
        """The operations for one copy of ``source``, given that this is applied at all.

        Raises CannotAugment where this recording leaves nothing to draw from.
        """
        raise NotImplementedError  # each row of `tables.AUGMENTATIONS` has its own; OneOf and Compose too

    def drawn(self, source: Source, random: Random, pool: Pool) -> tuple[Operation, ...]:
        """With probability ``p`` what `draw` gives, else nothing."""
        if self.p < 1 and random.uniform() >= self.p:
            return ()
        return self.draw(source, random, pool)

    def check(self, pool: Pool) -> None:
        """Raises SettingsError where no recording of the corpus could be augmented."""

    @property
    def inside_encoder(self) -> bool:
        """Whether it draws masks inside the encoder: it must be one that has a mask embedding."""
        return False

    @property
    def needs_partners(self) -> bool:
        """Whether it may take other recordings of the corpus."""
        return False

    @property
    def inner(self) -> tuple[Augmentation, ...]:
        """What it is made of, if it is a combination of others."""
        return ()

    def leaves(self) -> Iterator[Augmentation]:
        """The rows of the table in it, in their order."""
        if not self.inner:
            yield self
        for part in self.inner:
            yield from part.leaves()
