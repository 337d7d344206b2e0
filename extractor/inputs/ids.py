# ruff: noqa: PTH118, PTH119, PTH120, PTH122, PTH206
# A path is a str here: a Path a row would cost more than all the rest.
"""Ids of recordings: as a manifest gives them, else made from names, never from a path of the machine.

    given ─────────────────────────────────────────────> "take-17"
    corpus's own, or the stem ─────────────────────────> "03-01-05"
    path below the input that was named ───────────────> "Actor_01/03-01-05"
    the same with its suffix ──────────────────────────> "Actor_01/03-01-05.wav"

    and, for what comes to a run later, with the name of the input: "RAVDESS/Actor_01/03-01-05.wav"

A segment's id carries its times: ``stem@1.5-4``. Of several inputs, each is told by its name: by as
many of its last folders as it takes to tell them all apart.
"""

from __future__ import annotations

import itertools
import os
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from extractor.errors import InputError
from extractor.inputs.table import MAX_PROBLEMS, WHOLE, Input


class Names(Sequence[Sequence[str]]):
    """What each recording may be called: the one id that was given, else its forms, the shortest first."""

    def __init__(self, inputs: Sequence[Input]) -> None:
        self._inputs = [_InputNames(each) for each in inputs]
        self._first = [0, *itertools.accumulate(len(each.paths) for each in self._inputs)]
        highest = _highest({root for each in self._inputs for root in each.roots()})
        called = _told_apart(set(highest.values()))
        for each in self._inputs:
            each.called = {root: (above, called[above]) for root, above in highest.items()}

    def __len__(self) -> int:
        return self._first[-1]

    def __getitem__(self, i: Any) -> Any:
        at = bisect_right(self._first, i) - 1
        each, k = self._inputs[at], i - self._first[at]
        return (each.given(k),) if each.given(k) else each.forms(k)

    def given(self) -> list[bool]:
        """Of each recording, whether a manifest gives its id; empty where none does."""
        if not any(any(each.ids) for each in self._inputs):
            return []
        return [bool(each.given(k)) for each, k in self._each()]

    def ids(self) -> list[str]:
        """Of all, unique: the shortest form that tells all apart. Raises InputError where none does.

        A corpus's own id stays where others need a longer form, unless it is there twice itself.
        """
        ids = [each.given(k) or each.short(k) for each, k in self._each()]
        twice = {name for name, count in Counter(ids).items() if count > 1}
        for with_suffix in (False, True):
            if len(set(ids)) == len(ids):
                return ids
            ids = [
                each.given(k) or each.own(k, twice) or each.long(k, with_suffix) for each, k in self._each()
            ]
        if len(set(ids)) == len(ids):
            return ids
        first: dict[str, str] = {}
        problems: list[str] = []
        for name, (each, k) in zip(ids, self._each(), strict=True):
            origin = f"{each.name}, line {each.lines[k]}" if each.lines else each.paths[k]
            if name in first and len(problems) < MAX_PROBLEMS:
                problems.append(f"{name!r}: {first[name]} and {origin}")
            first.setdefault(name, origin)
        raise InputError("\n  ".join(["recordings with the same id; give each row its own 'id'", *problems]))

    def _each(self) -> Iterator[tuple[_InputNames, int]]:
        return ((each, k) for each in self._inputs for k in range(len(each.paths)))


class _InputNames:
    """Of an input, what its recordings are called by; its labels need not be kept for that."""

    def __init__(self, source: Input) -> None:
        self.name, self.lines = source.name, source.lines
        self.paths, self.spans = source.paths, source.spans
        self.ids, self.corpus_ids = source.ids, source.corpus_ids
        # A root: the highest of all roots that it lies below, or itself, and what that is called.
        self.called: dict[str, tuple[str, str]] = {}
        self._root = source.root if source.searched else None
        self._below = ""
        if source.is_manifest:
            folder = os.path.join(source.root, "")
            inside = {os.path.dirname(path) for path in source.paths if path.startswith(folder)}
            self._below = os.path.join(os.path.commonpath(inside), "") if inside else ""

    def given(self, i: int) -> str:
        return self.ids[i] if self.ids else ""

    def own(self, i: int, twice: set[str]) -> str:
        """The corpus's own id, unless it is one of ``twice``."""
        name = self.short(i) if self.corpus_ids and self.corpus_ids[i] else ""
        return "" if name in twice else name

    def roots(self) -> Iterable[str]:
        return [self._root] if self._root is not None else {self._root_of(path) for path in self.paths}

    def _root_of(self, path: str) -> str:
        """The folder that the path is shown below: the input's own, or of a file that lies elsewhere its."""
        if self._root is not None:
            return self._root
        if self._below and path.startswith(self._below):
            return self._below.rstrip(os.sep) or os.sep
        return os.path.dirname(path)

    def short(self, i: int) -> str:
        name = self.corpus_ids[i] if self.corpus_ids else ""
        return self._whole(i, name or os.path.splitext(os.path.basename(self.paths[i]))[0])

    def long(self, i: int, with_suffix: bool = False) -> str:
        path = self.paths[i]
        root, called = self.called[self._root_of(path)]
        name = called + path.removeprefix(os.path.join(root, "")).replace(os.sep, "/")
        return self._whole(i, name if with_suffix else os.path.splitext(name)[0])

    def forms(self, i: int) -> tuple[str, ...]:
        root, called = self.called[self._root_of(self.paths[i])]
        whole = self.long(i, with_suffix=True)
        # With the input's name last: another input of a run may have the same names below it.
        named = whole if called else f"{os.path.basename(root)}/{whole}"
        return (self.short(i), self.long(i), whole, named)

    def _whole(self, i: int, name: str) -> str:
        start, end = self.spans[i] if self.spans else WHOLE
        if (start, end) != WHOLE:
            name = f"{name}@{start or 0:.10g}-{'end' if end is None else f'{end:.10g}'}"
        # bytes of a file name that are no UTF-8 are surrogates, which no store can write
        return name if name.isascii() else name.encode("utf-8", "backslashreplace").decode("utf-8")


def _highest(roots: set[str]) -> dict[str, str]:
    """For each folder the highest of them that it lies below, or itself."""
    highest = {}
    for root in roots:
        highest[root], above = root, os.path.dirname(root)
        while above != os.path.dirname(above):  # the top of the file system tells nothing apart
            if above in roots:
                highest[root] = above
            above = os.path.dirname(above)
    return highest


def _told_apart(roots: set[str]) -> dict[str, str]:
    """Folders by as many of their last names as tell them all apart, each with a slash; one needs none."""
    if len(roots) < 2:
        return dict.fromkeys(roots, "")
    parts = {root: [part for part in root.split(os.sep) if part] for root in roots}
    for count in itertools.count(1):
        told = {root: "/".join(names[-count:]) for root, names in parts.items()}
        if len(set(told.values())) == len(told) or count > max(map(len, parts.values())):
            break
    return {root: f"{name}/" if name else "" for root, name in told.items()}
