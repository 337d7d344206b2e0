"""The rows of a small store in memory, searched exactly: what stands in where no index was built."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from classifiers.lookup.neighbours import nearest, unit
from extractor.errors import SettingsError
from extractor.index.search import NO_POSITION
from extractor.store import Store

MAX_ROWS = 200_000  # of 1,024 values 0.8 GB in float32; beyond, an index is to be built once


class Searchable(Protocol):
    """What the lookup needs of an index; ``extractor.index.Index`` has it."""

    layer: int
    pooling: str
    kind: str
    normalisation: str

    @property
    def positions(self) -> np.ndarray: ...

    def __len__(self) -> int: ...

    def search(
        self,
        queries: np.ndarray,
        k: int,
        among: np.ndarray | None = None,
        speakers: Sequence[str] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Cosine float32 ``[Q, k]``, descending, and manifest position int64 ``[Q, k]``; of equals the
        lower position first. Where there are fewer: similarity -1, position `NO_POSITION`.

        ``among``: the only positions to search. ``speakers``: of the queries, where the index is normalised
        by speaker. Raises SettingsError for a query of zeros, which has no direction.
        """
        ...

    def units(self, x: np.ndarray, speakers: Sequence[str] | None = None) -> np.ndarray:
        """Embeddings float32 ``[N, D]`` as they are compared; ``speakers`` as in `search`."""
        ...


class MemoryIndex:
    """All rows of one layer, of unit length."""

    kind = "exact, in memory"
    normalisation = "none"

    def __init__(self, store: Store, layer: int, pooling: str) -> None:
        self.layer, self.pooling = layer, pooling
        self.positions = store.positions
        self.rows = unit(store.load(layer, pooling))

    def __len__(self) -> int:
        return len(self.rows)

    def units(self, x: np.ndarray, speakers: Sequence[str] | None = None) -> np.ndarray:
        return unit(x)

    def search(
        self,
        queries: np.ndarray,
        k: int,
        among: np.ndarray | None = None,
        speakers: Sequence[str] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `Searchable` says; ``speakers`` is of no use here: nothing is normalised by speaker."""
        if not queries.any(axis=1).all():
            raise SettingsError("a query of zeros has no direction to compare")
        apart = []
        if among is not None:
            hidden = ~np.isin(self.positions, among)
            apart = [(np.ones(len(queries), np.int8), hidden.astype(np.int8))]
        similarity, row = nearest(unit(queries), self.rows, k, apart)
        # Rounding takes a cosine past 1 by a unit or two.
        return similarity.clip(-1.0, 1.0), np.where(row < 0, NO_POSITION, self.positions[row])
