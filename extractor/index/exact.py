"""Nearest neighbours by cosine, exactly, in blocks of unit vectors that are in memory.

What the approximate kinds are tuned by, and what evaluation of a store that fits in memory is done with.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

QUERY_BLOCK = 512  # rows of a block of similarities
ROW_BLOCK = 16_384  # and its columns: 32 MiB in float32
WIDE_ROWS = 4096  # in float64 at once: a layer of gigabytes is not there three times

# Group codes of the queries, int [Q], and of the rows, int [N]: pairs of one group are kept apart.
Groups = tuple[np.ndarray, np.ndarray]
Neighbours = tuple[
    np.ndarray, np.ndarray
]  # similarity float32 [Q, k], descending, and number of the row int64


def unit(x: np.ndarray) -> np.ndarray:
    """float32 ``[N, D]`` of length 1; a zero vector stays zero and has similarity 0 to all.

    In float64, so that equal and scaled rows give equal bits.
    """
    units = np.empty(x.shape, np.float32)
    for rows in _slices(len(x), WIDE_ROWS):
        wide = x[rows].astype(np.float64)
        lengths = np.sqrt((wide * wide).sum(axis=1, keepdims=True))
        units[rows] = np.divide(wide, lengths, out=np.zeros_like(wide), where=lengths > 0)
    return units


def nearest(
    queries: np.ndarray,
    rows: np.ndarray,
    k: int,
    apart: Sequence[Groups] = (),
    numbers: np.ndarray | None = None,
    so_far: Neighbours | None = None,
) -> Neighbours:
    """The ``k`` nearest rows of each query, by the dot product of unit vectors.

    Args:
        queries, rows: float32 ``[Q, D]`` and ``[N, D]``, from `unit`.
        apart: a row is no neighbour of a query with which it shares a group in any of these.
        numbers: int64 ``[N]``, what the rows are called; None: 0 to N - 1.
        so_far: what was found among other rows, to be found among these as well.

    Returns:
        similarity float32 ``[Q, k]``, descending, and number int64 ``[Q, k]``; -inf and -1 where there
        are fewer. Equally similar rows come in the order in which they were given.
    """
    numbers = np.arange(len(rows)) if numbers is None else numbers
    similarity = np.full((len(queries), k), -np.inf, np.float32)
    found = np.full((len(queries), k), -1, np.int64)
    if so_far is not None:
        similarity[:], found[:] = so_far
    for q in _slices(len(queries), QUERY_BLOCK):
        for n in _slices(len(rows), ROW_BLOCK):
            block = queries[q] @ rows[n].T  # [queries, rows]
            for of_query, of_row in apart:
                block[of_query[q, None] == of_row[n]] = -np.inf
            similarity[q], found[q] = _merged(similarity[q], found[q], block, numbers[n])
    return similarity, found


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


def _merged(similarity: np.ndarray, found: np.ndarray, block: np.ndarray, numbers: np.ndarray) -> Neighbours:
    """The best ``k`` of those so far and of a block, whose columns are the rows ``numbers``."""
    k, width = similarity.shape[1], block.shape[1]
    columns = np.broadcast_to(np.arange(width), block.shape)
    if width > k:
        # All that reach the k-th largest, ties included, are few; only they are sorted.
        kth = np.partition(block, width - k, axis=1)[:, width - k, None]
        most = int((block >= kth).sum(axis=1).max())
        if most < width:
            columns = np.sort(np.argpartition(-block, most - 1, axis=1)[:, :most], axis=1)
    values = np.take_along_axis(block, columns, axis=1)
    called = np.where(values > -np.inf, numbers[columns], -1)
    values, called = np.hstack([similarity, values]), np.hstack([found, called])
    # Stable: what came first stays first among equals.
    order = np.argsort(-values, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(values, order, axis=1), np.take_along_axis(called, order, axis=1)


def _slices(length: int, size: int) -> Iterator[slice]:
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))
