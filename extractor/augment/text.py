"""Augmentations as text, as ``--augment`` takes it; the grammar is in `extractor.augment.syntax`.

A recipe is such a text, too: what its operations are called is `Fixed`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from extractor.augment import syntax
from extractor.augment.combine import Compose, OneOf
from extractor.augment.fixed import Fixed
from extractor.augment.operation import NOTHING, Augmentation
from extractor.augment.parameters import make, number_text, parameters
from extractor.augment.tables import AUGMENTATIONS, OPERATIONS
from extractor.errors import SettingsError, unknown


def parse(texts: str | Sequence[str]) -> Augmentation:
    """One text is that augmentation; several are alternatives, of which a copy draws one.

    >>> parse("stretch:rate=0.8-1.25+gain")
    >>> parse(["stretch", "0.4*specaugment:policy=SM"])   # weights 1 and 0.4

    Raises SettingsError with what is wrong and where.
    """
    texts = [texts] if isinstance(texts, str) else list(texts)
    if not texts:
        raise SettingsError("no augmentation is given")
    choices = [syntax.read(text) for text in texts]
    if len(choices) == 1 and len(choices[0]) == 1:
        weight, chain = choices[0][0]
        if weight is not None:
            raise SettingsError(
                f"augmentation {texts[0]!r}: a weight needs an alternative; "
                f"for a probability give p, as in {chain_name(chain)}:p={weight}"
            )
        return _chain(chain)
    if len(choices) == 1:
        return OneOf(_alternatives(choices[0]))
    return OneOf(
        [
            _alternatives(choice)[0] if len(choice) == 1 else (OneOf(_alternatives(choice)), 1.0)
            for choice in choices
        ]
    )


def chain_name(chain: syntax.Chain) -> str:
    return chain[0].name if len(chain) == 1 and isinstance(chain[0], syntax.Item) else "(...)"


def _alternatives(choice: syntax.Choice) -> list[tuple[Augmentation, float]]:
    return [(_chain(chain), _weight(weight)) for weight, chain in choice]


def _weight(text: str | None) -> float:
    try:
        return 1.0 if text is None else float(text)
    except ValueError:
        raise SettingsError(f"oneof: weight {text}: must be a number above 0") from None


def _chain(chain: syntax.Chain) -> Augmentation:
    parts = [_part(part) for part in chain]
    return parts[0] if len(parts) == 1 else Compose(parts)


def _part(part: syntax.Part) -> Augmentation:
    if isinstance(part, syntax.Item):
        return named(part.name, part.values)
    for key in part.values:
        if key != "p":
            raise SettingsError(f"(...): {unknown('parameter', key, ['p'])}")
    if len(part.choice) > 1 or part.choice[0][0] is not None:
        return OneOf(_alternatives(part.choice), **part.values)  # type: ignore[arg-type]  # p is read
    return Compose([_part(inner) for inner in part.choice[0][1]], **part.values)  # type: ignore[arg-type]


def named(name: str, values: Mapping[str, object]) -> Augmentation:
    """The augmentation of that name, or the operation as a recipe writes it, with nothing left to draw.

    Where both tables have the name, the parameters tell. Raises SettingsError.
    """
    if not _is_operation(name, values):
        made: Augmentation = make("augmentation", AUGMENTATIONS, name, values)
        return made
    p = {key: value for key, value in values.items() if key == "p"}
    given = {key: value for key, value in values.items() if key != "p"}
    if name == NOTHING:
        if given:
            raise SettingsError(f"{NOTHING}: {unknown('parameter', next(iter(given)), ['p'])}")
        return Fixed(None, **p)  # type: ignore[arg-type]  # p is read
    return Fixed(make("operation", OPERATIONS, name, given), **p)  # type: ignore[arg-type]


def _is_operation(name: str, values: Mapping[str, object]) -> bool:
    if name not in OPERATIONS:
        return name == NOTHING
    if name not in AUGMENTATIONS:
        return True
    alone = parameters(OPERATIONS[name]).keys() - parameters(AUGMENTATIONS[name]).keys()
    return not alone.isdisjoint(values)


def to_text(augmentation: Augmentation) -> str:
    """The canonical text: ``parse(to_text(a)) == a``, for every augmentation."""
    if isinstance(augmentation, Compose) and len(augmentation.items) > 1 and augmentation.p == 1:
        return "+".join(map(_part_text, augmentation.items))
    return _part_text(augmentation)


def _part_text(augmentation: Augmentation) -> str:
    if isinstance(augmentation, OneOf):
        inner = "|".join(f"{number_text(w)}*{to_text(a)}" for a, w in augmentation.weighted)
    elif isinstance(augmentation, Compose):
        inner = "+".join(map(_part_text, augmentation.items))
    else:
        return augmentation.text
    return f"({inner})" + (f":p={number_text(augmentation.p)}" if augmentation.p != 1 else "")
