"""Augmentations as YAML: a tree that is too long for a command line, with copies and seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from extractor.augment.combine import Compose, OneOf
from extractor.augment.fixed import Fixed
from extractor.augment.operation import NOTHING, Augmentation
from extractor.augment.parameters import Row, parameters
from extractor.augment.tables import AUGMENTATIONS, OPERATIONS
from extractor.augment.text import named, parse
from extractor.errors import SettingsError, unknown

_COMBINED = (OneOf.name, Compose.name)
_KINDS = dict.fromkeys((*AUGMENTATIONS, *_COMBINED, *OPERATIONS, NOTHING))


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
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
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
    reader = _Reader(name)
    try:
        # Nodes first, and safe values from them: the values alone would not know their lines.
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        values = {} if node is None else dict(reader.entries(node))
        return reader.config(values)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise SettingsError(f"{name}, line {line}: not readable as YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise SettingsError(f"{name}: not readable as YAML: {error}") from None


class _Located(SettingsError):
    """Already says in which file and line."""


class _Reader:
    def __init__(self, name: str) -> None:
        self.name = name

    def error(self, node: yaml.Node | None, what: object) -> _Located:
        line = "" if node is None else f", line {node.start_mark.line + 1}"
        return _Located(f"{self.name}{line}: {what}")

    def entries(self, node: yaml.Node) -> Iterator[tuple[str, yaml.Node]]:
        if not isinstance(node, yaml.MappingNode):
            raise self.error(node, "entries as in key: value expected")
        seen = set()
        for key, value in node.value:
            if key.value in seen:
                raise self.error(key, f"{key.value} is given twice")
            seen.add(key.value)
            yield key.value, value

    def value(self, node: yaml.Node) -> Any:
        return yaml.SafeLoader("").construct_object(node, deep=True)

    def config(self, entries: Mapping[str, yaml.Node]) -> Config:
        known = ("augment", "copies", "seed", "clean")
        for key, node in entries.items():
            if key not in known:
                raise self.error(node, unknown("entry", key, known))
        if "augment" not in entries:
            raise self.error(None, "the entry augment is missing")
        augmentation = self.augmentation(entries["augment"])
        values = {key: self.value(node) for key, node in entries.items() if key != "augment"}
        try:
            return Config(augmentation, **values)
        except SettingsError as error:
            node = next((node for key, node in entries.items() if str(error).startswith(key + ":")), None)
            raise self.error(node, error) from None

    def augmentation(self, node: yaml.Node, weighted: bool = False) -> Augmentation:
        """One of ``name: {parameters}``, ``oneof: [...]``, ``compose: [...]``, or a text."""
        if isinstance(node, yaml.ScalarNode):
            with self.located(node):
                return parse(node.value)
        entries = dict(self.entries(node))
        extras = ("p", "weight") if weighted else ("p",)
        names = [key for key in entries if key not in extras]
        for key in names:
            if key not in _KINDS:
                raise self.error(entries[key], unknown("augmentation", key, _KINDS))
        if len(names) != 1:
            raise self.error(node, f"one augmentation expected, found: {', '.join(names) or 'none'}")
        name = names[0]
        given = {"p": self.value(entries["p"])} if "p" in entries else {}
        if name not in _COMBINED and given:
            raise self.error(entries["p"], f"p belongs into the braces of {name}")
        with self.located(entries[name]):
            return self.combined(name, entries[name], given)

    def combined(self, name: str, inner: yaml.Node, given: dict[str, Any]) -> Augmentation:
        if name == OneOf.name:
            items = self.items(inner)
            return OneOf(
                [(self.augmentation(item, weighted=True), self.weight(item)) for item in items], **given
            )
        if name == Compose.name:
            return Compose([self.augmentation(item) for item in self.items(inner)], **given)
        empty = isinstance(inner, yaml.ScalarNode) and self.value(inner) is None
        values = {} if empty else {key: self.value(value) for key, value in self.entries(inner)}
        return named(name, values)

    @contextmanager
    def located(self, node: yaml.Node) -> Iterator[None]:
        """Says where a refused value stands, once."""
        try:
            yield
        except _Located:
            raise
        except SettingsError as error:
            raise self.error(node, error) from None

    def items(self, node: yaml.Node) -> list[yaml.Node]:
        if not isinstance(node, yaml.SequenceNode):
            raise self.error(node, "a list of augmentations expected")
        return list(node.value)

    def weight(self, node: yaml.Node) -> Any:
        entries = dict(self.entries(node)) if isinstance(node, yaml.MappingNode) else {}
        return self.value(entries["weight"]) if "weight" in entries else 1.0


def to_yaml(config: Config) -> str:
    """The canonical YAML: ``read_yaml(to_yaml(config)) == config``, for every configuration."""
    tree = {
        "augment": _tree(config.augmentation),
        "copies": config.copies,
        "seed": config.seed,
        "clean": config.clean,
    }
    return yaml.safe_dump(tree, sort_keys=False, default_flow_style=None, allow_unicode=True)


def _tree(augmentation: Augmentation) -> dict[str, Any]:
    p: dict[str, Any] = {} if augmentation.p == 1 else {"p": augmentation.p}
    if isinstance(augmentation, OneOf):
        return {OneOf.name: [{"weight": w, **_tree(a)} for a, w in augmentation.weighted], **p}
    if isinstance(augmentation, Compose):
        return {Compose.name: [_tree(item) for item in augmentation.items], **p}
    if isinstance(augmentation, Fixed):
        operation = augmentation.operation
        return {NOTHING: p} if operation is None else {operation.name: {**_plain(operation), **p}}
    return {augmentation.name: _plain(augmentation)}


def _plain(row: Row) -> dict[str, Any]:
    kinds = parameters(type(row))
    return {key: kinds[key].kind.plain(value) for key, value in row.said.items()}
