"""``Index``: nearest neighbours by cosine similarity.

The exact kind is exact whatever FAISS's products round to: FAISS names somewhat more candidates
than were asked for, their similarities are computed anew in float64, one pair at a time, and
ties come in ascending position. So a query's answer does not depend on the queries beside it,
on the machine's BLAS or on the order in which rows were added.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from extractor.errors import SettingsError
from extractor.index.generation import Content, check_fits, load, resolve
from extractor.index.kinds import KINDS, load_faiss
from extractor.store import Store

NO_POSITION, NO_SIMILARITY = -1, -1.0  # where there are fewer neighbours than asked for
EXTRA_CANDIDATES = 8  # beyond k, at first
PAIR_VALUES = 1 << 22  # of vectors whose products are computed at once: 100 MB with what they need
FLOAT32_ROUNDING = 2.0**-24


class Index:
    """An index of one layer and pooling of a run, from its files (``open``) or just built."""

    def __init__(self, content: Content) -> None:
        head = content.head
        self.layer: int = head.layer
        self.pooling: str = head.pooling
        # What was saved is of a generation, the first of which is 1.
        self._in_memory = not head.generation
        self.kind: str = "exact, in memory" if self._in_memory else head.kind
        self.dim: int = head.dim
        self.normalisation: str = head.normalisation
        # Factory string, lists, training rows, effort of a search and the recall it reached
        self.parameters: Mapping[str, Any] = {
            **asdict(head.parameters),
            **head.effort,
            "recall_at_10": head.recall_at_10,
        }
        self._content = content
        self._kind = KINDS[head.kind]
        self._order = content.order
        self._sorted = np.argsort(content.order)  # faiss rows, by position
        self._positions = content.order[self._sorted]

    @classmethod
    def open(
        cls, run: str | PathLike[str], layer: int, pooling: str | None = None, mapped: bool = True
    ) -> Index:
        """The index of a layer (negative: from the end) and pooling (may be left out if there is one).

        ``mapped``: vectors stay on the disk until a search touches them, and large files are
        checked at their edges only; else all is read and checked.
        Raises ``IndexMissing``; ``IndexStale`` when rows or settings are not the store's;
        ``BrokenIndex``; ``SettingsError`` for a layer or pooling that the store does not have.
        """
        with Store(Path(run)) as store:
            layer, pooling = resolve(store, layer, pooling)
            content = load(store.path, layer, pooling, mapped)
            check_fits(store, content)
        return cls(content)

    def __len__(self) -> int:
        return len(self._order)

    def __repr__(self) -> str:
        return f"Index({self.kind}, layer {self.layer}, {self.pooling}: {len(self)} rows of {self.dim})"

    @property
    def positions(self) -> np.ndarray:
        """int64 [N]: manifest positions of the rows, ascending."""
        return self._positions

    @property
    def faiss_index(self) -> Any:
        """FAISS's own object; its rows are not positions."""
        return self._content.faiss_index

    def units(self, x: np.ndarray, speakers: Sequence[str] | None = None) -> np.ndarray:
        """Embeddings as they are compared: normalised, of length 1; float32 ``[N, D]`` to the same.

        ``speakers``: one a row (``""``: not known) for an index normalised by speaker.
        """
        return self._content.normalisation(x, speakers)

    def search(
        self,
        queries: np.ndarray,
        k: int,
        among: np.ndarray | None = None,
        speakers: Sequence[str] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest rows of each query, the most similar first.

        ``queries``: float32 ``[Q, D]``, pooled embeddings as the store has them, not normalised.
        ``among``: positions (any order); only these are found. ``speakers``: Q names for an index
        normalised by speaker; one it does not know, or ``""``, gets the corpus's mean and deviation.

        Returns cosine similarities float32 ``[Q, k]``, descending, and positions int64 ``[Q, k]``;
        ties in ascending position. Where there are fewer than k: position -1, similarity -1.
        Raises ``SettingsError`` for k < 1, another shape or a query without a direction (all zeros,
        or equal to the mean it is compared with), ``InputError`` for values that are not finite.
        """
        units = self._unit_queries(queries, speakers)
        if k < 1:
            raise SettingsError(f"k is {k}; ask for at least 1 neighbour")
        similarities = np.full((len(units), k), NO_SIMILARITY, np.float32)
        positions = np.full((len(units), k), NO_POSITION, np.int64)
        rows = None if among is None else self._rows_at(among)
        wanted = min(k, len(self) if rows is None else len(rows))
        if wanted and len(units):
            values, found = self._nearest(units, wanted, rows)
            none = found < 0
            values = np.minimum(np.maximum(values, -1), 1)  # rounding may go beyond
            similarities[:, :wanted] = np.where(none, NO_SIMILARITY, values)
            positions[:, :wanted] = np.where(none, NO_POSITION, self._order[found])
        return similarities, positions

    # How it is done. From here on a neighbour is a row of the FAISS index.

    def _unit_queries(self, queries: np.ndarray, speakers: Sequence[str] | None) -> np.ndarray:
        queries = np.asarray(queries, np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise SettingsError(f"queries are {list(queries.shape)}, the index takes [Q, {self.dim}]")
        units = self.units(queries, speakers)
        without = np.flatnonzero(~units.any(axis=1))
        if len(without):
            which = "a query of zeros" if self._in_memory else f"query {without[0]} is zero: it"
            raise SettingsError(f"{which} has no direction to compare")
        return units

    def _rows_at(self, positions: np.ndarray) -> np.ndarray:
        """FAISS rows of those positions that the index has, each once."""
        positions = np.asarray(positions, np.int64)
        return self._sorted[np.isin(self._positions, positions)]

    def _nearest(
        self, units: np.ndarray, wanted: int, rows: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Similarities float32 and rows int64, ``[Q, wanted]``; -1 where there is none."""
        faiss = load_faiss()
        selector = None if rows is None else _selector(faiss, rows, len(self))
        # The graph of hnsw may not lead to the rows selected.
        if self._kind.exact or (self.kind == "hnsw" and rows is not None):
            return self._exact(units, wanted, rows, selector)
        effort = dict(self._content.head.effort)
        num_lists = self._content.head.parameters.num_lists
        if rows is not None:  # they are spread over more lists than as many neighbours would be
            effort["nprobe"] = min(num_lists, math.ceil(effort["nprobe"] * len(self) / len(rows)))
        if "efSearch" in effort:
            effort["efSearch"] = max(effort["efSearch"], wanted)
        values, found = self._found(units, wanted, effort, selector)
        short = np.flatnonzero(found[:, -1] < 0)
        if len(short) and self.kind == "hnsw":
            values[short], found[short] = self._exact(units[short], wanted, None, None)
        elif len(short):
            effort["nprobe"] = num_lists
            values[short], found[short] = self._found(units[short], wanted, effort, selector)
        values[found < 0] = -np.inf
        return self._best(values, found, wanted)

    def _best(self, values: np.ndarray, found: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The first ``count`` of each query by similarity, ties by position."""
        order = np.lexsort((self._order[found], -values), axis=-1)[:, :count]
        each = np.arange(len(values))[:, None]
        return values[each, order], found[each, order]

    def _found(
        self, units: np.ndarray, depth: int, effort: Mapping[str, int], selector: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        parameters = self._kind.search_parameters(load_faiss(), dict(effort), selector)
        found: tuple[np.ndarray, np.ndarray] = self._content.faiss_index.search(
            units, depth, params=parameters
        )
        return found

    def _exact(
        self, units: np.ndarray, wanted: int, rows: np.ndarray | None, selector: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        faiss = load_faiss()
        count = len(self) if rows is None else len(rows)
        # A product of unit vectors in float32, in whatever order it is summed, is off by gamma_D times
        # the sum of magnitudes, at most 1 (Higham 2002, section 3.1); 2 for roundings before and after.
        bound = (self.dim + 2) * FLOAT32_ROUNDING
        values = np.empty((len(units), wanted), np.float32)
        found = np.empty((len(units), wanted), np.int64)
        pending, depth = np.arange(len(units)), wanted + EXTRA_CANDIDATES
        while len(pending):
            depth = min(depth, count)
            rough, candidates = self._vectors().search(
                units[pending], depth, params=faiss.SearchParameters(sel=selector)
            )
            exact = self._products(units[pending], candidates)
            best, rows_found = self._best(exact, candidates, wanted)
            # What was not named is no more similar than the last that was, give or take its error.
            settled = (rough[:, -1] + bound < best[:, -1]) if depth < count else np.ones(len(pending), bool)
            values[pending[settled]] = best[settled]
            found[pending[settled]] = rows_found[settled]
            pending, depth = pending[~settled], 4 * depth
        return values, found

    def _vectors(self) -> Any:
        """The flat index of all vectors: the index itself, or what the graph is over."""
        faiss = load_faiss()
        index = self._content.faiss_index
        return index if self._kind.exact else faiss.downcast_index(index.storage)

    def _products(self, units: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """float32 ``[Q, depth]``: similarities to the candidates, each computed on its own in float64."""
        queries = np.repeat(np.arange(len(units)), candidates.shape[1])
        flat = candidates.ravel()
        products = np.empty(len(flat), np.float32)
        vectors, step = self._vectors(), max(1, PAIR_VALUES // self.dim)
        for start in range(0, len(flat), step):
            piece = slice(start, start + step)
            stored = vectors.reconstruct_batch(flat[piece])
            # Over the last axis of a contiguous array numpy sums each row in the same way.
            products[piece] = np.multiply(units[queries[piece]], stored, dtype=np.float64).sum(axis=1)
        return products.reshape(candidates.shape)


def _selector(faiss: Any, rows: np.ndarray, count: int) -> Any:
    """One bit a row: as quick for a million rows as for one."""
    chosen = np.zeros(count, bool)
    chosen[rows] = True
    return faiss.IDSelectorBitmap(np.packbits(chosen, bitorder="little"))
