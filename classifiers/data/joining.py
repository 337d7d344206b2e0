"""Rows of several runs, joined by id; what is left out, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from classifiers.data.label_maps import as_classes
from classifiers.data.runs import augmentations_of, tested_rows
from classifiers.data.source import CLEAN, OPEN_LAYERS, Labelling, Source
from extractor.errors import InputError, SettingsError
from extractor.inputs.corpora.words import is_missing
from extractor.store import Store

NAMED = 5  # ids that a note names


@dataclass(slots=True)
class Part:
    """One source, opened: ``rows[i]`` is the store's row of the features' row i."""

    source: Source
    store: Store
    rows: np.ndarray
    pooling: str


def named(ids: Sequence[str]) -> str:
    """How many recordings, and the first of them by name."""
    shown = ", ".join(ids[:NAMED]) + (", ..." if len(ids) > NAMED else "")
    return f"{len(ids):,} {'recording' if len(ids) == 1 else 'recordings'} ({shown})"


def resolved(source: Source, store: Store) -> Part:
    """A source with its pooling and layers by name. Raises SettingsError for one that is not there."""
    layers = source.layers
    if isinstance(layers, str) and layers not in OPEN_LAYERS:
        raise SettingsError(f"--layer {layers!r}: write a number, 6,12, all, best or each")
    fixed = None if isinstance(layers, str) else layers
    numbers, pooling = store.resolve(fixed, source.pooling, frames=True, hint=" (RUN:pooling)")
    if fixed is not None or len(numbers) == 1:
        layers = tuple(numbers)
    rows = np.arange(len(store))
    return Part(replace(source, pooling=pooling, layers=layers), store, rows, pooling)


def join(parts: Sequence[Part]) -> list[str]:
    """Keep of every part the rows whose id all have, in the order of the first. Returns notes."""
    ids = [part.store.ids for part in parts]
    common = set.intersection(*map(set, ids))
    if not common:
        paths = " and ".join(part.source.path for part in parts)
        example = "; ".join(f"{part.source.path}: {named(of)}" for part, of in zip(parts, ids, strict=True))
        raise InputError(f"{paths}: no recording is in all of them, by id. {example}")
    notes = []
    order = [name for name in ids[0] if name in common]
    for part, of in zip(parts, ids, strict=True):
        lost = [name for name in of if name not in common]
        if lost:
            notes.append(f"{part.source.path}: {named(lost)} not in every run: left out")
        row = {name: k for k, name in enumerate(of)}
        part.rows = np.array([row[name] for name in order], np.int64)
    _refuse_contradictions(parts, order, "augmentation")
    return notes


def _refuse_contradictions(parts: Sequence[Part], ids: Sequence[str], column: str) -> None:
    """Rows of one id that are labelled differently are not the same recording."""
    have = [part for part in parts if column in part.store.columns]
    if len(have) < 2:
        return
    values = [np.array(part.store.labels(column), object)[part.rows] for part in have]
    for part, other in zip(have[1:], values[1:], strict=True):
        unequal = np.flatnonzero(other != values[0])
        if len(unequal):
            at = int(unequal[0])
            raise InputError(
                f"{have[0].source.path} and {part.source.path} contradict each other in {column!r} of"
                f" {named([ids[i] for i in unequal.tolist()])}: {values[0][at]!r} and {other[at]!r}"
            )


def labelled(parts: Sequence[Part], labelling: Labelling, notes: list[str]) -> list[str]:
    """Labels of the rows that have one that counts; the parts keep these rows only."""
    first = parts[0]
    names = first.store.ids
    ids = [names[row] for row in first.rows.tolist()]
    _refuse_contradictions(parts, ids, labelling.column)
    every = first.store.labels(labelling.column)
    given = [every[row] for row in first.rows.tolist()]
    labels, found = as_classes(
        first.source.path, labelling.column, given, labelling.rename, labelling.classes
    )
    kept = np.array([name != "" for name in labels], bool)
    unlabelled = [name for name, label in zip(ids, given, strict=True) if is_missing(label)]
    if unlabelled:
        notes.append(f"{first.source.path}: {named(unlabelled)} without {labelling.column}: left out")
    notes += found
    if labelling.copies == "none":
        clean = first.store.clean
        used = clean if labelling.test_on == CLEAN else clean | _tested(first.store, clean, labelling.test_on)
        of_rows = used[first.rows]
        if not of_rows.all():
            notes.append(f"{first.source.path}: {int((~of_rows).sum()):,} augmented copies: left out")
            kept &= of_rows
    for part in parts:
        part.rows = part.rows[kept]
    return [name for name, keep in zip(labels, kept.tolist(), strict=True) if keep]


def _tested(store: Store, clean: np.ndarray, test_on: str) -> np.ndarray:
    return tested_rows(clean, augmentations_of(store), test_on, str(store.path))
