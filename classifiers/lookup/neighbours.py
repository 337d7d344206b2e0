"""Nearest neighbours by cosine, exactly, in blocks: what an index is measured against.

For stores that fit in memory, one layer at a time; larger ones are searched with ``extractor.index``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

QUERY_BLOCK = 512  # rows of a block of similarities
ROW_BLOCK = 16_384  # and its columns: 32 MiB in float32

# Group codes of the queries, int [Q], and of the rows, int [N]: pairs of one group are kept apart.
Groups = tuple[np.ndarray, np.ndarray]


def unit(vectors: np.ndarray) -> np.ndarray:
    """float32 ``[N, D]`` of length 1; a zero vector stays zero and has similarity 0 to all."""
    vectors = np.asarray(vectors, np.float32)
    if not vectors.size:
        return vectors.copy()
    # Divided by the largest value first: squares of very small or large ones leave float32's range.
    largest = np.maximum(vectors.max(axis=1), -vectors.min(axis=1))[:, None]
    units = vectors / np.where(largest > 0, largest, 1)
    length = np.sqrt(np.vecdot(units, units))[:, None]
    units /= np.where(length > 0, length, 1)
    return units


def nearest(
    queries: np.ndarray, rows: np.ndarray, k: int, apart: Sequence[Groups] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """The ``k`` nearest rows of each query, by the dot product of unit vectors.

    Args:
        queries, rows: float32 ``[Q, D]`` and ``[N, D]``, from `unit`.
        apart: a row is no neighbour of a query with which it shares a group in any of these.

    Returns:
        similarity float32 ``[Q, k]``, descending, and row int64 ``[Q, k]``; -inf and -1 where there
        are fewer. Equally similar rows come in ascending order.
    """
    similarity = np.full((len(queries), k), -np.inf, np.float32)
    index = np.full((len(queries), k), -1, np.int64)
    for q in _slices(len(queries), QUERY_BLOCK):
        for n in _slices(len(rows), ROW_BLOCK):
            block = queries[q] @ rows[n].T  # [queries, rows]
            for of_query, of_row in apart:
                block[of_query[q, None] == of_row[n]] = -np.inf
            similarity[q], index[q] = _merged(similarity[q], index[q], block, n.start)
    return similarity, index


def similar_pairs(rows: np.ndarray, threshold: float) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Pairs ``i < j`` of unit rows ``[N, D]`` whose dot product is above ``threshold``.

    Yields i int64 ``[P]``, j int64 ``[P]`` and the product float32 ``[P]``, a block at a time.
    """
    for a in _slices(len(rows), QUERY_BLOCK):
        for b in _slices(len(rows), ROW_BLOCK):
            if b.stop <= a.start:
                continue  # these pairs are met the other way round
            block = rows[a] @ rows[b].T
            i, j = np.nonzero(block > threshold)
            upper = a.start + i < b.start + j
            i, j = i[upper], j[upper]
            yield a.start + i, b.start + j, block[i, j]


def _merged(
    similarity: np.ndarray, index: np.ndarray, block: np.ndarray, start: int
) -> tuple[np.ndarray, np.ndarray]:
    """The best ``k`` of those so far and of a block whose first row is ``start``."""
    k, width = similarity.shape[1], block.shape[1]
    columns = np.broadcast_to(np.arange(width), block.shape)
    if width > k:
        # All that reach the k-th largest, ties included, are few; only they are sorted.
        kth = np.partition(block, width - k, axis=1)[:, width - k, None]
        most = int((block >= kth).sum(axis=1).max())
        if most < width:
            columns = np.sort(np.argpartition(-block, most - 1, axis=1)[:, :most], axis=1)
    values = np.take_along_axis(block, columns, axis=1)
    places = np.where(values > -np.inf, columns + start, -1)
    values, places = np.hstack([similarity, values]), np.hstack([index, places])
    # Stable: what came first, the lower rows, stays first among equals.
    order = np.argsort(-values, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(values, order, axis=1), np.take_along_axis(places, order, axis=1)


def _slices(length: int, size: int) -> Iterator[slice]:
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))
