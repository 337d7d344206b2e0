"""What an index answers: the exact kind equals brute force, the others come near it."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from index_cases import LAYER, OTHER_LAYER, brute_force, clustered, write

from extractor.errors import InputError, SettingsError, StoreError
from extractor.index import KINDS, Index, IndexMissing, build, in_memory, list_indexes
from extractor.index.building import sample
from extractor.index.generation import read_head
from extractor.index.kinds import choose, lists_of
from extractor.index.normalisation import Normalisation, fit
from extractor.store import Store

ROWS, DIM = 3000, 24
UNSEEN = 300  # more rows of the same clouds, that are not in the store
# float64 products summed in another order, then rounded to float32: at most one unit in the last place
ONE_ULP = 2.0**-23


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return clustered(ROWS + UNSEEN, DIM)[:ROWS]


@pytest.fixture(scope="module")
def unseen() -> np.ndarray:
    return clustered(ROWS + UNSEEN, DIM)[ROWS:]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, x: np.ndarray) -> Path:
    return write(tmp_path_factory.mktemp("run") / "run", x)


@pytest.fixture(scope="module")
def indexes(run: Path) -> dict[str, Index]:
    return {kind: build(run, LAYER, "mean", kind) for kind in ("flat", "ivf", "hnsw")}


@pytest.fixture
def queries() -> np.ndarray:
    return clustered(17, DIM, seed=1)


def assert_same(found: tuple[np.ndarray, np.ndarray], expected: tuple[np.ndarray, np.ndarray]) -> None:
    np.testing.assert_array_equal(found[1], expected[1])
    np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=ONE_ULP)


# Exact


@pytest.mark.parametrize("k", [1, 10, 257])
def test_flat_is_brute_force(indexes: dict[str, Index], x: np.ndarray, queries: np.ndarray, k: int) -> None:
    similarities, positions = indexes["flat"].search(queries, k)
    assert similarities.dtype == np.float32
    assert positions.dtype == np.int64
    assert_same((similarities, positions), brute_force(queries, x, k))


@given(seed=st.integers(0, 2**32 - 1), distinct=st.integers(1, 12), k=st.integers(1, 70))
@settings(max_examples=30, deadline=None)
def test_ties_come_in_ascending_position(
    tmp_path_factory: pytest.TempPathFactory, seed: int, distinct: int, k: int
) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((distinct, 5)).astype(np.float32)[rng.integers(0, distinct, 60)]
    x *= 2.0 ** rng.integers(-3, 3, (60, 1))  # the length does not matter, and a power of two is exact
    run = write(tmp_path_factory.mktemp("ties") / "run", x.astype(np.float32))
    similarities, positions = in_memory(Store(run), LAYER, "mean").search(x[:4], k)
    expected = brute_force(x[:4], x, min(k, 60))
    assert_same((similarities[:, :60], positions[:, :60]), expected)


def test_all_rows_equal_is_all_ties(tmp_path: Path) -> None:
    run = write(tmp_path / "run", np.ones((500, 7), np.float32))
    _, positions = build(run, LAYER).search(np.ones((2, 7), np.float32), 30)
    np.testing.assert_array_equal(positions, np.tile(2 * np.arange(30), (2, 1)))


@pytest.mark.parametrize("count", [1, 2, 19, 20, 21])  # FAISS takes a matrix product from 20 queries on
def test_an_answer_does_not_depend_on_the_queries_beside_it(indexes: dict[str, Index], count: int) -> None:
    queries = clustered(40, DIM, seed=2)
    alone = [indexes["flat"].search(query[None], 10) for query in queries[:count]]
    together = indexes["flat"].search(queries[:count], 10)
    for k in (0, 1):
        np.testing.assert_array_equal(together[k], np.concatenate([each[k] for each in alone]))


def test_a_stored_row_finds_itself(run: Path, indexes: dict[str, Index]) -> None:
    store = Store(run)
    for index in indexes.values():
        similarities, positions = index.search(store.load(LAYER)[:50], 1)
        np.testing.assert_array_equal(positions[:, 0], store.positions[:50])
        np.testing.assert_allclose(similarities, 1, rtol=0, atol=1e-6)  # float32 products of 24 numbers
        assert [
            store.labels("emotion")[row] for row in np.searchsorted(store.positions, positions[:, 0])
        ] == [f"emotion{position}" for position in positions[:, 0]]


# Approximate


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_approximate_kinds_reach_the_recall_aimed_at(
    indexes: dict[str, Index], x: np.ndarray, unseen: np.ndarray, kind: str
) -> None:
    similarities, positions = indexes[kind].search(unseen, 10)
    expected, true = brute_force(unseen, x, 10)
    recall = np.mean([len(np.intersect1d(a, b)) / 10 for a, b in zip(positions, true, strict=True)])
    assert recall >= 0.95
    assert indexes[kind].parameters["recall_at_10"] >= 0.97
    same = positions == true
    np.testing.assert_allclose(similarities[same], expected[same], rtol=0, atol=1e-6)
    assert (np.diff(similarities, axis=1) <= 0).all()


def test_codes_reach_the_recall_aimed_at_in_less_memory(tmp_path: Path) -> None:
    x, queries = np.split(clustered(10_200, 12, clusters=40), [10_000])
    run = write(tmp_path / "run", x)
    index = build(run, LAYER, kind="ivfpq")
    assert index.parameters["factory"] == f"OPQ3_12,IVF{index.parameters['num_lists']},PQ3,Refine(SQfp16)"
    for each in (index, Index.open(run, LAYER)):
        _, positions = each.search(queries, 10)
        _, true = brute_force(queries, x, 10)
        recall = np.mean([len(np.intersect1d(a, b)) / 10 for a, b in zip(positions, true, strict=True)])
        assert recall >= 0.95
    among = np.arange(0, 20_000, 50)
    _, positions = index.search(queries, 10, among=among)
    assert np.isin(positions, among).all()
    assert sum(path.stat().st_size for path in run.glob("index/*/*.faiss")) < x.nbytes


def test_codes_alone_record_the_recall_that_they_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, queries = np.split(clustered(10_200, 4), [10_000])
    monkeypatch.setattr("extractor.index.building.machine_memory", lambda: 1 << 20)  # no room for vectors
    index = build(write(tmp_path / "run", x), LAYER, "mean", "ivfpq")
    assert index.parameters["factory"].endswith(",PQ1")
    _, positions = index.search(queries, 10)
    _, true = brute_force(queries, x, 10)
    recall = np.mean([len(np.intersect1d(a, b)) / 10 for a, b in zip(positions, true, strict=True)])
    assert index.parameters["recall_at_10"] < 0.9
    # Two samples of 200 queries, of a standard error of at most sqrt(1/4 / 200) = 0.035 each
    assert abs(index.parameters["recall_at_10"] - recall) < 3 * 0.05


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_as_many_as_are_asked_for_are_found(
    indexes: dict[str, Index], kind: str, queries: np.ndarray
) -> None:
    _, positions = indexes[kind].search(queries, ROWS)
    assert (np.sort(positions, axis=1) == indexes[kind].positions).all()


# Filters


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw"])
@pytest.mark.parametrize("count", [1, 3, 40, ROWS])
def test_among_finds_these_alone(
    indexes: dict[str, Index], x: np.ndarray, queries: np.ndarray, kind: str, count: int
) -> None:
    rows = np.random.default_rng(0).permutation(ROWS)[:count]
    similarities, positions = indexes[kind].search(queries, 10, among=2 * rows)
    there = min(10, count)
    assert np.isin(positions[:, :there], 2 * rows).all()
    assert (positions[:, there:] == -1).all()
    assert (similarities[:, there:] == -1).all()
    if kind != "ivf":
        expected = brute_force(queries, x, there, rows)
        if count < ROWS or kind == "flat":
            assert_same((similarities[:, :there], positions[:, :there]), expected)


def test_among_positions_without_a_row_finds_nothing(indexes: dict[str, Index], queries: np.ndarray) -> None:
    for index in indexes.values():
        for among in (np.array([1, 3, 99_999]), np.zeros(0, np.int64)):
            similarities, positions = index.search(queries, 5, among=among)
            assert (positions == -1).all()
            assert (similarities == -1).all()


# Edges


def test_more_than_there_are_is_filled_with_no_position(tmp_path: Path) -> None:
    x = clustered(3, 4)
    similarities, positions = build(write(tmp_path / "run", x), LAYER).search(x, 5)
    assert_same((similarities[:, :3], positions[:, :3]), brute_force(x, x, 3))
    assert (positions[:, 3:] == -1).all()
    assert (similarities[:, 3:] == -1).all()


def test_an_empty_store_has_an_empty_index(tmp_path: Path) -> None:
    run = write(tmp_path / "run", np.zeros((0, 4), np.float32))
    built = build(run, LAYER)
    for index in (built, Index.open(run, LAYER)):
        assert len(index) == 0
        similarities, positions = index.search(np.ones((2, 4), np.float32), 3)
        assert (positions == -1).all()
        assert similarities.shape == (2, 3)
    with pytest.raises(StoreError, match="no rows"):
        build(run, LAYER, normalisation="whiten")
    with pytest.raises(SettingsError, match="at least 39 rows"):
        build(run, LAYER, kind="ivf")


def test_no_queries_give_no_neighbours(indexes: dict[str, Index]) -> None:
    for index in indexes.values():
        similarities, positions = index.search(np.zeros((0, DIM), np.float32), 3)
        assert similarities.shape == positions.shape == (0, 3)


def test_a_zero_row_is_similar_to_nothing_and_a_zero_query_is_refused(tmp_path: Path) -> None:
    x = clustered(30, 4)
    x[7] = 0
    index = build(write(tmp_path / "run", x), LAYER)
    assert read_head(tmp_path / "run", LAYER, "mean").zero_rows == 1
    similarities, positions = index.search(x[:3], 30)
    assert (similarities[positions == 14] == 0).all()
    with pytest.raises(SettingsError, match="query 1 is zero"):
        index.search(x[[0, 7]], 3)


def test_what_cannot_be_searched_is_refused(indexes: dict[str, Index]) -> None:
    index = indexes["flat"]
    with pytest.raises(SettingsError, match="k is 0"):
        index.search(np.ones((1, DIM), np.float32), 0)
    with pytest.raises(SettingsError, match=r"\[1, 5\], the index takes \[Q, 24\]"):
        index.search(np.ones((1, 5), np.float32), 3)
    with pytest.raises(InputError, match="embedding 1 has values that are not finite"):
        index.search(np.stack([np.ones(DIM), np.full(DIM, np.nan)]), 3)


def test_a_layer_or_pooling_that_is_not_there_is_named(run: Path) -> None:
    with pytest.raises(SettingsError, match=r"layer 5 is not stored; there are: \[3, 7\]"):
        Index.open(run, 5)
    with pytest.raises(SettingsError, match="unknown pooling 'maen'; known: mean"):
        build(run, LAYER, "maen")
    with pytest.raises(SettingsError, match="unknown kind of index 'hnws'; known: hnsw"):
        build(run, LAYER, kind="hnws")
    with pytest.raises(SettingsError, match="unknown normalisation 'whitened'; known: whiten"):
        build(run, LAYER, normalisation="whitened")


def test_layers_are_told_apart(tmp_path: Path) -> None:
    x = clustered(50, 4)
    run = write(tmp_path / "run", x)
    build(run, LAYER)
    with pytest.raises(IndexMissing, match=rf"hser-lookup build .*run --layer {OTHER_LAYER} --pooling mean"):
        Index.open(run, OTHER_LAYER)
    build(run, -1, "mean", kind="hnsw")
    assert list_indexes(run) == [("mean", LAYER, "flat", 50), ("mean", OTHER_LAYER, "hnsw", 50)]
    np.testing.assert_array_equal(Index.open(run, -1).search(-x, 1)[1][:, 0], 2 * np.arange(50))
    np.testing.assert_array_equal(Index.open(run, LAYER).search(x, 1)[1][:, 0], 2 * np.arange(50))


def test_without_faiss_the_package_to_install_is_named(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(SettingsError, match="pip install faiss-cpu"):
        in_memory(Store(run), LAYER, "mean")


def test_what_is_sent_to_gpus_answers_alike(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training through GPUs, with copies in memory in their place."""
    import faiss

    copied = []

    def copy(index: object) -> object:
        copied.append(index)
        return faiss.clone_index(index)

    queries = clustered(17, DIM, seed=1)
    expected = build(run, LAYER, "mean", "ivf").search(queries, 10)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    monkeypatch.setattr(faiss, "index_cpu_to_all_gpus", copy)
    found = build(run, LAYER, "mean", "ivf").search(queries, 10)
    assert len(copied) == 1
    for k in (0, 1):
        np.testing.assert_array_equal(found[k], expected[k])


# Kinds


def test_auto_is_exact_while_small_and_codes_where_memory_is_short() -> None:
    gib = 1 << 30
    assert choose("auto", 200_000, 1024, 24 * gib) == "flat"
    assert choose("auto", 1_000_000, 1024, 24 * gib) == "ivf"
    assert choose("auto", 1_000_000, 1024, 6 * gib) == "ivfpq"
    assert choose("auto", 1_000_000, 40, 24 * gib) == "flat"
    refined = {memory: KINDS["ivfpq"].parameters(10**7, 1024, memory * gib).factory for memory in (8, 32, 64)}
    assert not refined[8].endswith(")")
    assert refined[32].endswith("PQ64,Refine(SQ8)")
    assert refined[64].endswith("PQ64,Refine(SQfp16)")
    for kind in KINDS.values():
        assert next(kind.efforts(kind.parameters(100_000, 64, gib))) is not None


@given(rows=st.integers(39, 10**9), dim=st.integers(1, 4096), memory=st.integers(1 << 28, 1 << 40))
def test_lists_have_rows_enough_to_train_on(rows: int, dim: int, memory: int) -> None:
    lists, training_rows = lists_of(rows, dim, memory)
    assert 39 * lists <= training_rows <= rows
    assert 4 * dim * training_rows <= max(memory / 8, 4 * dim * 39)


@given(count=st.integers(0, 300), seed=st.integers(0, 5))
def test_a_sample_depends_on_positions_alone(count: int, seed: int) -> None:
    positions = np.arange(0, 500, 2)
    chosen = sample(positions, count, seed)
    assert len(chosen) == min(count, len(positions))
    np.testing.assert_array_equal(
        chosen, sample(np.random.default_rng(0).permutation(positions), count, seed)
    )
    # More rows push some out of the sample, and none in that was not.
    fewer = sample(positions[:100], count, seed)
    assert set(chosen.tolist()) & set(positions[:100].tolist()) <= set(fewer.tolist())


# Normalisation


def test_whitening_is_that_of_ledoit_and_wolf(tmp_path: Path) -> None:
    from sklearn.covariance import LedoitWolf

    for rows in (8, 200):  # fewer than dimensions, and more
        x = clustered(rows, 12)
        fitted = fit("whiten", lambda x=x: [(np.arange(5), x[:5]), (np.arange(5, len(x)), x[5:])])
        model = LedoitWolf().fit(x.astype(np.float64))
        assert fitted.arrays["shrinkage"] == pytest.approx(model.shrinkage_, rel=1e-9)
        whitening = fitted.arrays["whitening"]
        # Float64 throughout, and the condition number is below 1e6: some ten digits are left.
        np.testing.assert_allclose(whitening @ model.covariance_ @ whitening.T, np.eye(12), atol=1e-8)
        np.testing.assert_allclose(fitted.arrays["mean"], x.mean(axis=0, dtype=np.float64), rtol=1e-9)


def test_whitened_search_is_brute_force_on_whitened_rows(tmp_path: Path) -> None:
    x, queries = clustered(200, 12), clustered(5, 12, seed=9)
    run = write(tmp_path / "run", x)
    build(run, LAYER, normalisation="whiten")
    index = Index.open(run, LAYER)
    assert index.normalisation == "whiten"
    centred = x - x.mean(axis=0, dtype=np.float64)
    from sklearn.covariance import LedoitWolf

    variances, axes = np.linalg.eigh(LedoitWolf().fit(x.astype(np.float64)).covariance_)
    whitening = axes / np.sqrt(variances)  # in the axes of the covariance: angles are the same
    mean = x.mean(axis=0, dtype=np.float64)
    expected = brute_force((queries - mean) @ whitening, centred @ whitening, 10)
    found = index.search(queries, 10)
    np.testing.assert_array_equal(found[1], expected[1])
    # Unit vectors rounded to float32 in two bases: 12 products, each off by two roundings
    np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=12 * 2 * 2.0**-24)


def test_each_speaker_is_normalised_by_their_own_rows(tmp_path: Path) -> None:
    x = clustered(90, 6)
    speakers = ["a", "b", "", "a", "b", "c"] * 15
    speakers[-1] = "once"
    x[:, 5] = 3.0  # a dimension that does not vary is 0 for everybody
    run = write(tmp_path / "run", x, speakers)
    build(run, LAYER, normalisation="speaker")
    index = Index.open(run, LAYER)
    names = np.array(speakers)
    mean, deviation = x.mean(axis=0, dtype=np.float64), x.std(axis=0, dtype=np.float64)
    deviation[5] = 1
    normalised = (x - mean) / deviation
    for name in ("a", "b", "c"):
        own = x[names == name].astype(np.float64)
        scale = np.where(own.std(axis=0) > 0, own.std(axis=0), deviation)
        normalised[names == name] = (own - own.mean(axis=0)) / scale
    asked = ["a", "stranger", "", "once", "c"]
    rows = [0, 2, 8, 89, 5]
    queries = normalised[rows].copy()
    queries[1] = (x[2] - mean) / deviation
    expected = brute_force(queries, normalised, 10)
    found = index.search(x[rows], 10, speakers=asked)
    np.testing.assert_array_equal(found[1], expected[1])
    np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=1e-6)
    with pytest.raises(SettingsError, match="name the speaker of each query"):
        index.search(x[:2], 3)


def test_normalised_vectors_are_of_length_one_or_zero() -> None:
    x = np.stack([np.full(4, 1e-30), np.full(4, 1e30), np.zeros(4)]).astype(np.float32)
    lengths = np.linalg.norm(Normalisation("none")(x).astype(np.float64), axis=1)
    np.testing.assert_allclose(lengths, [1, 1, 0], rtol=0, atol=1e-7)
