"""Augmentations made of others: one of several, or several in a row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, TypeAlias

from extractor.augment.chance import Random
from extractor.augment.operation import Augmentation, Operation
from extractor.augment.pool import Pool, Source
from extractor.errors import SettingsError

Choices: TypeAlias = Sequence["tuple[Augmentation, float] | Augmentation"]


@dataclass(frozen=True, slots=True)
class OneOf(Augmentation):
    """One of ``choices``, drawn for each copy with a probability proportional to its weight.

    ``choices``: pairs (augmentation, weight > 0), or augmentations alone, which weigh 1. The weights need
    not add up to 1.
    """

    name: ClassVar[str] = "oneof"
    choices: Choices

    def __post_init__(self) -> None:
        Augmentation.__post_init__(self)
        pairs = tuple(_weighted(choice) for choice in self.choices)
        if not pairs:
            raise SettingsError("oneof: has no augmentation to choose from")
        object.__setattr__(self, "choices", pairs)

    @property
    def weighted(self) -> tuple[tuple[Augmentation, float], ...]:
        return self.choices  # type: ignore[return-value]  # pairs since __post_init__

    @property
    def inner(self) -> tuple[Augmentation, ...]:
        return tuple(augmentation for augmentation, _ in self.weighted)

    def draw(self, source: Source, random: Random, pool: Pool) -> tuple[Operation, ...]:
        chosen = random.weighted([weight for _, weight in self.weighted])
        return self.inner[chosen].drawn(source, random.inside(chosen), pool)


def _weighted(choice: object) -> tuple[Augmentation, float]:
    augmentation, weight = choice if isinstance(choice, tuple | list) and len(choice) == 2 else (choice, 1.0)
    if not isinstance(augmentation, Augmentation):
        raise SettingsError(
            f"oneof: {augmentation!r} is not an augmentation, nor a pair (augmentation, weight)"
        )
    number = isinstance(weight, int | float) and not isinstance(weight, bool)
    if not number or not 0 < weight < math.inf:
        raise SettingsError(f"oneof: weight {weight!r} of {augmentation.name}: must be a number above 0")
    return augmentation, float(weight)


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
        latent = [item for item in self.items if any(leaf.inside_encoder for leaf in item.leaves())]
        if len(latent) > 1:
            raise SettingsError(
                "compose: has latent masks twice; give one of them a larger time_prob instead"
            )

    @property
    def inner(self) -> tuple[Augmentation, ...]:
        return tuple(self.items)

    def draw(self, source: Source, random: Random, pool: Pool) -> tuple[Operation, ...]:
        operations: list[Operation] = []
        for place, item in enumerate(self.items):
            drawn = item.drawn(source, random.inside(place), pool)
            n = source.num_samples
            for operation in drawn:
                n = operation.num_samples(n)
            source = replace(source, num_samples=n)
            operations += drawn
        return tuple(operations)
