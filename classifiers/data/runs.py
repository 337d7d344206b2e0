"""Runs as they are read to learn from, to report on and to search: whole, and with their copies told apart.

Every reader of the package opens its run here, so that none takes an unfinished run for a whole one.
Which rows are recordings as they are, and which are augmented copies, the store says (`Store.clean`,
`Store.originals`); what was done to a copy is in its column ``augmentation``, and is read here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import numpy as np

from classifiers.data.source import CLEAN, COPIES_ONLY, EVERY_ROW
from extractor.augment import parse_recipe
from extractor.augment.copies import UNALTERED
from extractor.errors import InputError, SettingsError, StoreError, unknown
from extractor.store import Store

NOT_RECORDED = "not recorded"  # of what an earlier version did not write down
# Operations that are stored under another name than the augmentation that draws them.
_DRAWN_BY = {"masks": "specaugment", "join": "copypaste", "silence": "timemask", "band": "bandpass"}


def open_run(path: str | PathLike[str], incomplete: bool = False) -> Store:
    """A run to read. Raises StoreError: no run; one that is not finished, unless ``incomplete``."""
    store = Store(path)
    if store.unfinished and not incomplete:
        raise StoreError(f"{store.path}: {store.unfinished}, or take what is there with --incomplete")
    return store


def missing_notes(store: Store) -> list[str]:
    """Recordings of the run's input that are not among its rows."""
    notes = []
    if store.unfinished:
        notes.append(f"{store.path}: INCOMPLETE: {store.unfinished}; figures are of what is there")
    failed = len(store.errors)
    if failed:
        notes.append(f"{store.path}: {failed:,} failed recordings have no row; `hser-store info` says why")
    return notes


def column_of(store: Store, name: str) -> list[str]:
    """A label of every row, or its ``id``, ``path`` or ``checksum``."""
    return store.labels(name) if name in store.columns else list(store.column(name))


# Which rows are tested


def augmentations_of(store: Store) -> list[str]:
    """Of every row the names of its augmentations, joined by +; "none" for a recording as it is."""
    clean = store.clean
    named = "augmentation" in store.columns and not clean.all()
    recipes = store.labels("augmentation") if named else [""] * len(clean)
    return [
        UNALTERED if each else kind_of(recipe) for each, recipe in zip(clean.tolist(), recipes, strict=True)
    ]


def kind_of(recipe: str) -> str:
    """Names of a recipe's augmentations: ``stretch:rate=1.1+gain:db=2`` is ``stretch+gain``."""
    try:
        operations = parse_recipe(recipe)
    except SettingsError:  # of copies that another program has made, and named
        return recipe or "unnamed"
    names = [operation.text.split(":")[0] for operation in operations]
    return "+".join(_DRAWN_BY.get(name, name) for name in names) or UNALTERED


def tested_rows(clean: np.ndarray, augmentations: Sequence[str], test_on: str, where: str) -> np.ndarray:
    """bool [N]: the rows that ``test_on`` names: "clean", "copies", "all", or an augmentation.

    Raises InputError where there is none, SettingsError for a name that no copy has; ``where`` is the
    run, for messages.
    """
    if test_on == EVERY_ROW:
        return np.ones(len(clean), bool)
    if test_on == CLEAN:
        if len(clean) and not clean.any():
            raise InputError(
                f"{where}: holds augmented copies only ({len(clean):,}), no recording as it is; test on them"
                " with --test-on copies, or extract without --no-clean"
            )
        return clean
    if clean.all():
        raise InputError(f"{where}: holds no augmented copies to test on; extract with --augment")
    if test_on == COPIES_ONLY:
        return ~clean
    there = np.array([test_on == kind or test_on in kind.split("+") for kind in augmentations], bool)
    if not (there & ~clean).any():
        known = sorted({name for kind in augmentations for name in (kind, *kind.split("+"))} - {UNALTERED})
        raise SettingsError(f"--test-on: {unknown('augmentation', test_on, [CLEAN, COPIES_ONLY, *known])}")
    return there & ~clean


def encoder_words(settings: Mapping[str, Any]) -> str:
    """Of a run's settings: the model, and the dtype that it computed in."""
    model, dtype = settings.get("model", NOT_RECORDED), settings.get("dtype")
    return f"{model} ({dtype})" if dtype else str(model)
