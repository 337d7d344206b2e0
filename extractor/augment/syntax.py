"""The grammar of augmentations and recipes as text: text to a tree of names and raw values.

    choice      = alternative { "|" alternative }
    alternative = [ weight "*" ] chain
    chain       = part { "+" part }
    part        = name [ ":" values ]  |  "(" choice ")" [ ":" values ]
    values      = key "=" value { "," key "=" value }

A value with spaces or any of ``, + | ( ) "`` stands in double quotes, with JSON's escapes.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TypeAlias

from extractor.augment.parameters import PLAIN
from extractor.errors import SettingsError

# Names that are values and have a "+" inside: read whole, without quotes.
WITH_PLUS = ("n+se-cp",)
DEEPEST = 50  # parentheses inside each other: far below what Python's stack holds

_NAME = re.compile(r"[A-Za-z_][\w-]*")
_WEIGHT = re.compile(r"([+-]?[\d.]+(?:[eE][+-]?\d+)?)\s*\*")
_VALUE = re.compile(rf'"(?:[^"\\]|\\.)*"|(?:{"|".join(map(re.escape, WITH_PLUS))})(?![\w-])|{PLAIN}')


@dataclass(frozen=True, slots=True)
class Item:
    """``name:key=value``."""

    name: str
    values: dict[str, str]


@dataclass(frozen=True, slots=True)
class Group:
    """``(...)``, with the values behind it."""

    choice: Choice
    values: dict[str, str]


Part: TypeAlias = Item | Group
Chain: TypeAlias = tuple[Part, ...]
Choice: TypeAlias = tuple[tuple[str | None, Chain], ...]  # a weight as written, or None


def read(text: str) -> Choice:
    """The tree of ``text``. Raises SettingsError that names the text and the character."""
    reader = _Reader(text)
    choice = reader.choice()
    reader.skip()
    if reader.at < len(text):
        raise reader.error("the end, or one of + |")
    return choice


class _Reader:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.depth = 0

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
        if not self.text.startswith(mark, self.at):
            return False
        self.at += len(mark)
        return True

    def match(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        self.skip()
        match = pattern.match(self.text, self.at)
        if match is not None:
            self.at = match.end()
        return match

    def choice(self) -> Choice:
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
            return Group(inner, self.values())
        name = self.match(_NAME)
        if name is None:
            raise self.error("the name of an augmentation or (")
        return Item(name[0], self.values())

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
        if not match[0].startswith('"'):
            return match[0]
        try:
            value: str = json.loads(match[0])
        except ValueError as error:
            raise SettingsError(f"augmentation {self.text!r}: {match[0]} is badly quoted: {error}") from None
        return value
