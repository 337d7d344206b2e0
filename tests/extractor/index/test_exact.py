"""Exact neighbours in memory: what everything approximate is measured against."""

from __future__ import annotations

import numpy as np
import pytest

from extractor.index import exact
from extractor.index.exact import nearest, similar_pairs, unit

# Two float32 dot products of unit vectors of a few dozen values, summed in another order.
DOT_ERROR = 1e-6


@pytest.mark.parametrize(
    ("num_queries", "num_rows", "k"), [(1, 1, 1), (1, 63, 5), (65, 500, 10), (7, 1_000, 999)]
)
def test_nearest_is_a_full_sort_whatever_the_blocks(
    num_queries: int, num_rows: int, k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exact, "QUERY_BLOCK", 13)
    monkeypatch.setattr(exact, "ROW_BLOCK", 37)
    rng = np.random.default_rng(num_rows)
    # Whole numbers: products are exact, so that ties are ties in any block.
    queries = rng.integers(-3, 4, (num_queries, 5)).astype(np.float32)
    rows = rng.integers(-3, 4, (num_rows, 5)).astype(np.float32)
    groups = (rng.integers(3, size=num_queries), rng.integers(3, size=num_rows))
    for apart in ([], [groups]):
        product = queries @ rows.T
        if apart:
            product[groups[0][:, None] == groups[1]] = -np.inf
        order = np.argsort(-product, axis=1, kind="stable")[:, :k]
        best = np.take_along_axis(product, order, axis=1)
        similarity, row = nearest(queries, rows, k, apart)
        assert np.array_equal(similarity[:, : best.shape[1]], best)
        assert np.array_equal(row[:, : best.shape[1]], np.where(best > -np.inf, order, -1))
        assert (row[:, num_rows:] == -1).all()


def test_unit_vectors_keep_directions_and_zeros() -> None:
    x = np.float32([[3, 4], [0, 0], [-1e-20, 0], [1e18, 1e18]])
    np.testing.assert_allclose(unit(x), [[0.6, 0.8], [0, 0], [-1, 0], [0.5**0.5] * 2], atol=DOT_ERROR)


def test_pairs_do_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = unit(np.random.default_rng(0).standard_normal((150, 4)))
    product = rows @ rows.T
    expected = [(i, j) for i in range(150) for j in range(i + 1, 150) if product[i, j] > 0.9]
    for blocks in ((512, 16_384), (7, 11), (11, 7), (150, 1)):
        monkeypatch.setattr(exact, "QUERY_BLOCK", blocks[0])
        monkeypatch.setattr(exact, "ROW_BLOCK", blocks[1])
        i, j, similarity = (np.concatenate(each) for each in zip(*similar_pairs(rows, 0.9), strict=True))
        assert sorted(zip(i.tolist(), j.tolist(), strict=True)) == expected
        np.testing.assert_allclose(similarity, product[i, j], atol=DOT_ERROR)
