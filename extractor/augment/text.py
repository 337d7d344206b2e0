"""Augmentations and recipes as text, as ``--augment`` takes them and as a store keeps them.

    choice      = alternative { "|" alternative }
    alternative = [ weight "*" ] chain
    chain       = part { "+" part }
    part        = name [ ":" values ]  |  "(" choice ")" [ ":" values ]
    values      = key "=" value { "," key "=" value }

A value with spaces or any of ``, + | ( ) "`` stands in double quotes, with JSON's escapes. A recipe is a
chain of operations, each of which is an augmentation with nothing left to draw.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from extractor.augment.drawing import NOTHING, Augmentation, Compose, Nothing, OneOf
from extractor.augment.parameters import PLAIN, make, number_text, parameters
from extractor.augment.table import AUGMENTATIONS, OPERATIONS, Recipe
from extractor.errors import SettingsError, unknown

# Names that are values and have a "+" inside: read whole, without quotes.
WITH_PLUS = ("n+se-cp",)
DEEPEST = 50  # parentheses inside each other: far below what Python's stack holds

_NAME = re.compile(r"[A-Za-z_][\w-]*")
_WEIGHT = re.compile(r"([+-]?[\d.]+(?:[eE][+-]?\d+)?)\s*\*")
_VALUE = re.compile(rf'"(?:[^"\\]|\\.)*"|(?:{"|".join(map(re.escape, WITH_PLUS))})(?![\w-])|{PLAIN}')

# What a text says, before any name is looked up: a part is a name or a choice in parentheses, with the values
# behind it; a choice has a weight, as written, for each chain that may be taken.
Part: TypeAlias = "tuple[str | Alternatives, dict[str, str]]"
Chain: TypeAlias = "tuple[Part, ...]"
Alternatives: TypeAlias = "tuple[tuple[str | None, Chain], ...]"


def parse(texts: str | Sequence[str]) -> Augmentation:
    """One text is that augmentation; several are alternatives, of which a copy draws one.

    >>> parse("stretch:rate=0.8-1.25+gain")
    >>> parse(["stretch", "0.4*specaugment:policy=SM"])   # weights 1 and 0.4

    Raises SettingsError with what is wrong and where.
    """
    texts = [texts] if isinstance(texts, str) else list(texts)
    if not texts:
        raise SettingsError("no augmentation is given")
    choices = [_Reader(text).whole() for text in texts]
    if len(choices) > 1:
        # Alternatives of one text stay together: they share the weight that each other text has.
        each = (choice[0] if len(choice) == 1 else (None, ((choice, {}),)) for choice in choices)
        return _one_of(tuple(each))
    ((weight, chain), *others) = choices[0]
    if others:
        return _one_of(choices[0])
    if weight is not None:
        name = chain[0][0] if len(chain) == 1 and isinstance(chain[0][0], str) else "(...)"
        raise SettingsError(
            f"augmentation {texts[0]!r}: a weight needs an alternative; "
            f"for a probability give p, as in {name}:p={weight}"
        )
    return _chain(chain)


def parse_recipe(text: str) -> Recipe:
    """The recipe of a stored text. Raises SettingsError where it is none."""
    if text == NOTHING:
        return Recipe()
    ((weight, chain), *others) = _Reader(text).whole()
    if others or weight is not None:
        raise SettingsError(f"recipe {text!r}: has alternatives; an augmentation, not a recipe?")
    operations = []
    for name, values in chain:
        if not isinstance(name, str):
            raise SettingsError(f"recipe {text!r}: has parentheses; an augmentation, not a recipe?")
        if "p" in values and name in OPERATIONS:  # of an augmentation alone
            known = [key for key in parameters(OPERATIONS[name]) if key != "p"]
            raise SettingsError(f"{name}: {unknown('parameter', 'p', known)}")
        operations.append(make("operation", OPERATIONS, name, values))
    return Recipe(tuple(operations))


def _one_of(choice: Alternatives, **p: Any) -> OneOf:
    pairs = []
    for text, chain in choice:
        augmentation = _chain(chain)
        try:
            weight = 1.0 if text is None else float(text)
        except ValueError:
            raise SettingsError(f"oneof: weight {text}: must be a number above 0") from None
        pairs.append((augmentation, weight))
    return OneOf(pairs, **p)


def _chain(chain: Chain) -> Augmentation:
    parts = [_part(part) for part in chain]
    return parts[0] if len(parts) == 1 else Compose(parts)


def _part(part: Part) -> Augmentation:
    what, values = part
    if isinstance(what, str):
        return named(what, values)
    p: dict[str, Any] = dict(values)
    for key in p:
        if key != "p":
            raise SettingsError(f"(...): {unknown('parameter', key, ['p'])}")
    if len(what) > 1 or what[0][0] is not None:
        return _one_of(what, **p)
    return Compose([_part(inner) for inner in what[0][1]], **p)


def named(name: str, values: Mapping[str, Any]) -> Augmentation:
    """The augmentation of that name, or the operation as a recipe writes it, with nothing left to draw.

    Where both tables have the name, the parameters tell. Raises SettingsError.
    """
    operations = OPERATIONS | {NOTHING: Nothing}
    table: Mapping[str, type[Augmentation]] = AUGMENTATIONS
    if name not in AUGMENTATIONS and name in operations:
        table = operations
    elif name in AUGMENTATIONS and name in operations:
        alone = parameters(operations[name]).keys() - parameters(AUGMENTATIONS[name]).keys()
        table = AUGMENTATIONS if alone.isdisjoint(values) else operations
    made: Augmentation = make("augmentation", table, name, values)
    return made


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


class _Reader:
    """The tree of one text. Raises SettingsError that names the text and the character."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.depth = 0

    def whole(self) -> Alternatives:
        choice = self.choice()
        self.skip()
        if self.at < len(self.text):
            raise self.error("the end, or one of + |")
        return choice

    def error(self, expected: str) -> SettingsError:
        found = repr(self.text[self.at]) if self.at < len(self.text) else "the end"
        return SettingsError(
            f"augmentation {self.text!r}, character {self.at + 1}: {expected} expected, {found} found"
        )

    def skip(self) -> None:
        while self.text[self.at : self.at + 1].isspace():
            self.at += 1

    def take(self, mark: str) -> bool:
        self.skip()
        found = self.text.startswith(mark, self.at)
        self.at += len(mark) * found
        return found

    def match(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        self.skip()
        match = pattern.match(self.text, self.at)
        if match is not None:
            self.at = match.end()
        return match

    def choice(self) -> Alternatives:
        alternatives = [self.alternative()]
        while self.take("|"):
            alternatives.append(self.alternative())
        return tuple(alternatives)

    def alternative(self) -> tuple[str | None, Chain]:
        weight = self.match(_WEIGHT)
        parts = [self.part()]
        while self.take("+"):
            parts.append(self.part())
        return weight and weight[1], tuple(parts)

    def part(self) -> Part:
        if self.take("("):
            self.depth += 1
            if self.depth > DEEPEST:
                raise self.error(f"at most {DEEPEST} parentheses inside each other")
            inner = self.choice()
            self.depth -= 1
            if not self.take(")"):
                raise self.error("one of + | )")
            return inner, self.values()
        name = self.match(_NAME)
        if name is None:
            raise self.error("the name of an augmentation or (")
        return name[0], self.values()

    def values(self) -> dict[str, str]:
        values: dict[str, str] = {}
        more = self.take(":")
        while more:
            key = self.match(_NAME)
            if key is None:
                raise self.error("a parameter as in key=value")
            if key[0] in values:
                raise SettingsError(f"augmentation {self.text!r}: {key[0]} is given twice")
            if not self.take("="):
                raise self.error(f"= behind {key[0]}")
            values[key[0]] = self.value(key[0])
            more = self.take(",")
        return values

    def value(self, key: str) -> str:
        match = self.match(_VALUE)
        if match is None:
            raise self.error(f"a value of {key}; with spaces or special characters in double quotes:")
        try:
            return str(json.loads(match[0])) if match[0].startswith('"') else match[0]
        except ValueError as error:
            raise SettingsError(f"augmentation {self.text!r}: {match[0]} is badly quoted: {error}") from None
