"""A recipe: the operations of one copy, with all that is needed to make that copy again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from extractor.augment import syntax
from extractor.augment.latent import LatentMasks
from extractor.augment.operation import NOTHING, Operation
from extractor.augment.parameters import make
from extractor.augment.pool import Clip
from extractor.augment.tables import OPERATIONS
from extractor.errors import SettingsError


@dataclass(frozen=True, slots=True)
class Recipe:
    """Operations in their order; empty: the recording as it is."""

    operations: tuple[Operation, ...] = ()

    def __post_init__(self) -> None:
        if sum(isinstance(operation, LatentMasks) for operation in self.operations) > 1:
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


def parse_recipe(text: str) -> Recipe:
    """The recipe of a stored text. Raises SettingsError where it is none."""
    if text == NOTHING:
        return Recipe()
    choice = syntax.read(text)
    if len(choice) > 1 or choice[0][0] is not None:
        raise SettingsError(f"recipe {text!r}: has alternatives; an augmentation, not a recipe?")
    operations = []
    for part in choice[0][1]:
        if isinstance(part, syntax.Group):
            raise SettingsError(f"recipe {text!r}: has parentheses; an augmentation, not a recipe?")
        operations.append(make("operation", OPERATIONS, part.name, part.values))
    return Recipe(tuple(operations))
