"""Augmentations as YAML: a tree that is too long for a command line, with copies and seed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from extractor.augment.drawing import NOTHING, Augmentation, Compose, OneOf
from extractor.augment.parameters import Whole
from extractor.augment.table import AUGMENTATIONS, OPERATIONS
from extractor.augment.text import named, parse
from extractor.errors import SettingsError, unknown

_COMBINED = (OneOf.name, Compose.name)
_KNOWN = dict.fromkeys((*AUGMENTATIONS, *_COMBINED, *OPERATIONS, NOTHING))


@dataclass(frozen=True, slots=True)
class Config:
    """What is made of each recording: ``copies`` augmented ones, and itself if ``clean``."""

    augmentation: Augmentation
    copies: int = 1
    seed: int = 0
    clean: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.augmentation, Augmentation):
            raise SettingsError(f"augment: {self.augmentation!r} is not an augmentation")
        for name, least in (("copies", 1), ("seed", 0)):
            value = getattr(self, name)
            if not Whole(least).holds(value):
                raise SettingsError(f"{name}: {value!r}: must be a whole number of at least {least}")
        if not isinstance(self.clean, bool):
            raise SettingsError(f"clean: {self.clean!r}: must be true or false")


def load_yaml(path: str | Path) -> Config:
    """The configuration in a file. Raises SettingsError that names the file and, where known, the line."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise SettingsError(f"{path}: not UTF-8; save the file as UTF-8") from None
    return read_yaml(text, str(path))


def read_yaml(text: str, name: str = "YAML") -> Config:
    """As `load_yaml`, of a text; ``name`` is the file's in messages."""
    try:
        # Nodes first, and safe values from them: the values alone would not know their lines.
        return _Reader(name).config(yaml.compose(text, Loader=yaml.SafeLoader))
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise SettingsError(f"{name}, line {line}: not readable as YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise SettingsError(f"{name}: not readable as YAML: {error}") from None


class _LocatedError(SettingsError):
    """Already says in which file and line."""


def _value(node: yaml.Node) -> Any:
    return yaml.SafeLoader("").construct_object(node, deep=True)


class _Reader:
    def __init__(self, name: str) -> None:
        self.name = name

    def error(self, node: yaml.Node | None, what: object) -> _LocatedError:
        line = "" if node is None else f", line {node.start_mark.line + 1}"
        return _LocatedError(f"{self.name}{line}: {what}")

    @contextmanager
    def located(self, node: yaml.Node) -> Iterator[None]:
        """Says where a refused value stands, once."""
        try:
            yield
        except _LocatedError:
            raise
        except SettingsError as error:
            raise self.error(node, error) from None

    def entries(self, node: yaml.Node) -> dict[str, yaml.Node]:
        if not isinstance(node, yaml.MappingNode):
            raise self.error(node, "entries as in key: value expected")
        entries: dict[str, yaml.Node] = {}
        for key, value in node.value:
            if key.value in entries:
                raise self.error(key, f"{key.value} is given twice")
            entries[key.value] = value
        return entries

    def items(self, node: yaml.Node) -> list[yaml.Node]:
        if not isinstance(node, yaml.SequenceNode):
            raise self.error(node, "a list of augmentations expected")
        return list(node.value)

    def config(self, node: yaml.Node | None) -> Config:
        entries = {} if node is None else self.entries(node)
        known = ("augment", "copies", "seed", "clean")
        for key, value in entries.items():
            if key not in known:
                raise self.error(value, unknown("entry", key, known))
        if "augment" not in entries:
            raise self.error(None, "the entry augment is missing")
        augmentation = self.augmentation(entries["augment"])
        values = {key: _value(of) for key, of in entries.items() if key != "augment"}
        try:
            return Config(augmentation, **values)
        except SettingsError as error:
            refused = next((of for key, of in entries.items() if str(error).startswith(key + ":")), None)
            raise self.error(refused, error) from None

    def augmentation(self, node: yaml.Node, *extras: str) -> Augmentation:
        """One of ``name: {parameters}``, ``oneof: [...]``, ``compose: [...]``, or a text."""
        if isinstance(node, yaml.ScalarNode):
            with self.located(node):
                return parse(node.value)
        entries = self.entries(node)
        names = [key for key in entries if key not in ("p", *extras)]
        for key in names:
            if key not in _KNOWN:
                raise self.error(entries[key], unknown("augmentation", key, _KNOWN))
        if len(names) != 1:
            raise self.error(node, f"one augmentation expected, found: {', '.join(names) or 'none'}")
        name, inner = names[0], entries[names[0]]
        p = {"p": _value(entries["p"])} if "p" in entries else {}
        if name not in _COMBINED and p:
            raise self.error(entries["p"], f"p belongs into the braces of {name}")
        with self.located(inner):
            if name == OneOf.name:
                items = self.items(inner)
                return OneOf([(self.augmentation(i, "weight"), self.weight(i)) for i in items], **p)
            if name == Compose.name:
                return Compose([self.augmentation(item) for item in self.items(inner)], **p)
            empty = isinstance(inner, yaml.ScalarNode) and _value(inner) is None
            return named(name, {} if empty else {k: _value(of) for k, of in self.entries(inner).items()})

    def weight(self, node: yaml.Node) -> Any:
        entries = self.entries(node) if isinstance(node, yaml.MappingNode) else {}
        return _value(entries["weight"]) if "weight" in entries else 1.0
