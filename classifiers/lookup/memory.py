"""The index of a layer: the one that was built, or the rows of a small store in memory, searched exactly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from classifiers.lookup.neighbours import nearest, unit
from extractor.errors import SettingsError, StoreError
from extractor.index.search import NO_POSITION
from extractor.store import Store

if TYPE_CHECKING:
    from extractor.index import Index

MAX_ROWS = 200_000  # of 1,024 values 0.8 GB in float32; beyond, an index is to be built once

Searchable: TypeAlias = "Index | MemoryIndex"


class MemoryIndex:
    """All rows of one layer, of unit length; what the lookup needs of an `extractor.index.Index`."""

    kind = "exact, in memory"
    normalisation = "none"

    def __init__(self, store: Store, layer: int, pooling: str) -> None:
        self.layer, self.pooling = layer, pooling
        self.positions = store.positions
        self.rows = unit(store.load(layer, pooling))

    def units(self, x: np.ndarray, speakers: Sequence[str] | None = None) -> np.ndarray:
        """Embeddings float32 ``[N, D]`` as they are compared."""
        return unit(x)

    def search(
        self,
        queries: np.ndarray,
        k: int,
        among: np.ndarray | None = None,
        speakers: Sequence[str] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `Index.search`; ``speakers`` is of no use here: nothing is normalised by speaker."""
        if not queries.any(axis=1).all():
            raise SettingsError("a query of zeros has no direction to compare")
        apart = []
        if among is not None:
            hidden = ~np.isin(self.positions, among)
            apart = [(np.ones(len(queries), np.int8), hidden.astype(np.int8))]
        similarity, row = nearest(unit(queries), self.rows, k, apart)
        # Rounding takes a cosine past 1 by a unit or two.
        return similarity.clip(-1.0, 1.0), np.where(row < 0, NO_POSITION, self.positions[row])


def choose(store: Store, layer: int | None, pooling: str | None) -> tuple[int, str]:
    """Which layer and pooling: as asked, or the only index, or the only ones that are stored."""
    from extractor.index import list_indexes

    poolings = store.pooled if pooling is None else [pooling]
    if not poolings:
        raise StoreError(f"{store.path}: only frames are stored; extract with a pooling to look things up")
    layers, _ = store.resolve(layer, poolings[0])
    stored = [(name, number) for name in poolings for number in layers]
    indexed = [each[:2] for each in list_indexes(store.path) if each[:2] in stored]  # none of a packed file
    choices = indexed or stored
    if len(choices) > 1:
        shown = ", ".join(f"{name}:{number}" for name, number in choices)
        what = "indexes" if indexed else "poolings and layers"
        raise SettingsError(f"{store.path}: name a --layer and --pooling; there are {what} {shown}")
    return choices[0][1], choices[0][0]


def open_index(store: Store, layer: int, pooling: str) -> tuple[Searchable, list[str]]:
    """The index, and what a person should know of it."""
    from extractor.index import Index, IndexMissing

    if store.path.is_dir():
        try:
            return Index.open(store.path, layer, pooling), []
        except IndexMissing:
            if len(store) > MAX_ROWS:
                raise
    elif len(store) > MAX_ROWS:
        raise StoreError(
            f"{store.path}: {len(store):,} rows need an index, and a packed file has none; use the run folder"
        )
    note = f"no index of {pooling}:{layer}: all {len(store):,} rows are searched, in memory"
    return MemoryIndex(store, layer, pooling), [note]
