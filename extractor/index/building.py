"""Build an index from the store, a block of rows at a time.

    fit the normalisation  ->  train on a sample  ->  add all rows, in the order of the disk
    ->  tune the effort of a search until stored rows find their exact neighbours  ->  save

The sample is a function of positions alone. What is in memory is the index, the sample and one block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from extractor.index.exact import Neighbours, nearest
from extractor.index.generation import (
    BrokenIndex,
    Content,
    Head,
    IndexStale,
    check_fits,
    list_indexes,
    load,
    locked,
    resolve,
    save,
)
from extractor.index.kinds import (
    KINDS,
    PQ_CENTROIDS,
    ROWS_A_LIST,
    Effort,
    Parameters,
    choose,
    load_faiss,
    machine_memory,
)
from extractor.index.normalisation import Normalisation, fit
from extractor.index.search import Index
from extractor.store import Store

BLOCK_BYTES = 32 << 20  # of embeddings read at once
NEIGHBOURS = 10  # recall is measured at
TUNING_QUERIES = 200
# Aimed at is 0.95. What 200 queries measure has a standard error of about 0.01, since misses come
# together; so that other queries reach it too, these have to do better by two of them.
TUNED_RECALL = 0.97
ROUNDING = 1e-5  # between two float32 products of the same unit vectors, of thousands of dimensions


def build(
    run: str | PathLike[str],
    layer: int,
    pooling: str | None = None,
    kind: str = "auto",
    normalisation: str = "none",
) -> Index:
    """Build the index of one layer and pooling, and replace what is there.

    ``kind``: a name in ``KINDS``, or ``auto`` by rows, dimensions and the machine's memory.
    ``normalisation``: ``none``, ``whiten`` or ``speaker`` (``normalisation.py``), fitted on the store.

    Raises ``SettingsError`` for an unknown name, or a kind that so few rows cannot train;
    ``StoreError`` for a store that cannot be read or written.
    """
    with Store(Path(run)) as store:
        layer, pooling = resolve(store, layer, pooling)
        with locked(store, layer, pooling):
            return Index(save(store, built(StoredLayer(store, layer, pooling), kind, normalisation)))


def in_memory(store: Store, layer: int, pooling: str) -> Index:
    """An exact index without files: the store is left as it is, and may be a packed one."""
    return Index(built(StoredLayer(store, layer, pooling), "flat", "none"))


def follow(run: str | PathLike[str]) -> list[str]:
    """Bring the indexes of a run that was edited level with it. Returns what cannot follow, and the remedy.

    Of rows that were dropped the index is rid: what was trained, fitted and tuned is kept, the rows that
    stay are added again from the store. What was fitted on labels that are others now, or on speakers
    of whom rows are gone, stays as it is and is refused by ``Index.open``.
    """
    problems = []
    for pooling, layer, *_ in list_indexes(Path(run)):
        with Store(Path(run)) as store, locked(store, layer, pooling):
            try:
                content = load(store.path, layer, pooling, mapped=False)
                stay = np.isin(content.order, store.positions)
                if stay.all() or content.normalisation.needs_speakers:
                    check_fits(store, content)
                    continue
                check_fits(store, replace(content, order=content.order[stay]))
                content.faiss_index.reset()
                rows = StoredLayer(store, layer, pooling)
                order, zeros, _ = fill(content.faiss_index, rows, content.normalisation)
                head = replace(content.head, rows=len(order), zero_rows=zeros)
                save(store, replace(content, head=head, order=order))
            except (BrokenIndex, IndexStale) as error:
                problems.append(str(error))
    return problems


@dataclass(frozen=True, slots=True)
class StoredLayer:
    """One layer and pooling of a store, read in blocks."""

    store: Store
    layer: int
    pooling: str

    @property
    def dim(self) -> int:
        return self.store.shapes[self.pooling]

    @property
    def block_rows(self) -> int:
        return max(1, BLOCK_BYTES // (4 * self.dim))

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Row indices int64 ``[n]`` and embeddings float32 ``[n, D]``, in the order of the disk."""
        return self.store.iter_rows(self.layer, self.pooling, self.block_rows)

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The same of positions that are there."""
        rows = np.searchsorted(self.store.positions, positions)
        return rows, self.store.load_rows(rows, self.layer, self.pooling)

    def speakers(self, normalisation: str) -> np.ndarray | None:
        """Names ``[N]`` of every row's speaker; None where the normalisation does not need them."""
        return np.array(self.store.labels("speaker"), object) if normalisation == "speaker" else None


def built(rows: StoredLayer, kind: str, normalisation: str) -> Content:
    """A new index of the store's rows, in memory."""
    positions, memory = rows.store.positions, machine_memory()
    kind = choose(kind, len(positions), rows.dim, memory)
    parameters = KINDS[kind].parameters(len(positions), rows.dim, memory)
    speakers = rows.speakers(normalisation)
    fitted = fit(normalisation, rows.blocks, speakers)
    faiss_index = new_index(rows.dim, parameters)
    if parameters.training_rows:
        _train(faiss_index, _units(rows, fitted, sample(positions, parameters.training_rows, seed=0)))
    queries = sample(positions, 0 if KINDS[kind].exact else TUNING_QUERIES, seed=1)
    units = _units(rows, fitted, queries)
    order, zeros, exact = fill(faiss_index, rows, fitted, units, queries)
    effort, recall = _tune(kind, parameters, faiss_index, order, units, queries, exact)
    head = Head(
        layer=rows.layer,
        pooling=rows.pooling,
        kind=kind,
        dim=rows.dim,
        rows=len(order),
        normalisation=normalisation,
        parameters=parameters,
        effort=effort,
        recall_at_10=recall,
        zero_rows=zeros,
    )
    return Content(head, faiss_index, order, fitted)


def new_index(dim: int, parameters: Parameters) -> Any:
    """An empty FAISS index, not trained yet."""
    faiss = load_faiss()
    faiss_index = faiss.index_factory(dim, parameters.factory, faiss.METRIC_INNER_PRODUCT)
    if parameters.num_lists:
        lists = faiss.downcast_index(faiss.extract_index_ivf(faiss_index))
        lists.cp.seed = 1
        lists.cp.spherical = True  # rows are unit vectors, so centroids are
    if parameters.coded:
        # Orders codes for a search by Hamming distance that is not done here: nine tenths of training
        lists.do_polysemous_training = False
        base = faiss.downcast_index(faiss_index.base_index) if parameters.refined else faiss_index
        rotation = faiss.downcast_VectorTransform(base.chain.at(0))
        rotation.max_train_points = PQ_CENTROIDS * ROWS_A_LIST
        # FAISS's own 50 take five times as long; on clustered rows their error is 1 % less
        rotation.niter = 10
    return faiss_index


def sample(positions: np.ndarray, count: int, seed: int) -> np.ndarray:
    """``count`` of the positions (or all), ascending: those with the least hash. As good as random,
    yet the same whenever the same positions are there."""
    start = 0x9E3779B97F4A7C15 * (seed + 1) % (1 << 64)
    mixed = positions.astype(np.uint64) + np.uint64(start)
    # The finaliser of SplitMix64 (Steele, Lea and Flood 2014)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return np.sort(positions[np.argsort(mixed, kind="stable")[:count]])


def fill(
    faiss_index: Any,
    rows: StoredLayer,
    normalisation: Normalisation,
    queries: np.ndarray | None = None,
    own: np.ndarray | None = None,
) -> tuple[np.ndarray, int, Neighbours | None]:
    """Add all rows. Returns ``order``, how many of them are zero, and the exact neighbours of ``queries``
    by position, as the rows go by; a query is no neighbour of its ``own`` position."""
    speakers = rows.speakers(normalisation.name)
    order, zeros, exact = [np.zeros(0, np.int64)], 0, None
    for numbers, embeddings in rows.blocks():
        units = normalisation(embeddings, None if speakers is None else speakers[numbers])
        positions = rows.store.positions[numbers]
        faiss_index.add(units)
        order.append(positions)
        zeros += num_zero(units)
        if queries is not None and own is not None and len(own):
            exact = nearest(queries, units, NEIGHBOURS, [(own, positions)], positions, exact)
    return np.concatenate(order), zeros, exact


def num_zero(units: np.ndarray) -> int:
    return int((~units.any(axis=1)).sum())


def _units(rows: StoredLayer, normalisation: Normalisation, positions: np.ndarray) -> np.ndarray:
    speakers = rows.speakers(normalisation.name)
    numbers, embeddings = rows.at(positions)
    return normalisation(embeddings, None if speakers is None else speakers[numbers])


def _train(faiss_index: Any, units: np.ndarray) -> None:
    """On GPUs where there are any: that is the costly part, assigning rows to centroids over and over."""
    faiss = load_faiss()
    if not faiss.get_num_gpus():
        faiss_index.train(units)
        return
    lists = faiss.extract_index_ivf(faiss_index)
    on_gpus = faiss.index_cpu_to_all_gpus(faiss.IndexFlatIP(lists.d))  # FAISS keeps a pointer only
    lists.clustering_index = on_gpus
    faiss_index.train(units)
    lists.clustering_index = None


def _tune(
    kind: str,
    parameters: Parameters,
    faiss_index: Any,
    order: np.ndarray,
    queries: np.ndarray,
    own: np.ndarray,
    exact: Neighbours | None,
) -> tuple[Effort, float]:
    """The least effort whose recall is enough, or else the one whose recall is best; and its recall."""
    if KINDS[kind].exact or exact is None:
        return {}, 1.0
    faiss = load_faiss()
    best: tuple[Effort, float] = ({}, -1.0)
    for effort in KINDS[kind].efforts(parameters):
        asked = KINDS[kind].search_parameters(faiss, effort, None)
        values, found = faiss_index.search(queries, NEIGHBOURS + 1, params=asked)
        values = values if KINDS[kind].true_similarities else np.full_like(values, -np.inf)
        recall = _recall(np.where(found < 0, -1, order[found]), values, own, exact)
        if recall > best[1]:
            best = (effort, recall)
        if recall >= TUNED_RECALL:
            break
    return best


def _recall(found: np.ndarray, values: np.ndarray, own: np.ndarray, exact: Neighbours) -> float:
    """Share of the true neighbours among the found; a row is no neighbour of itself.

    One that is as similar as the last of the true ones counts as well: of copies, any will do.
    """
    similarities, positions = exact
    there = positions >= 0
    if not there.any():
        return 1.0
    right = np.isin(found, -1, invert=True) & (found != own[:, None])
    among = np.array([np.isin(near, true) for near, true in zip(found, positions, strict=True)])
    right &= among | (values >= similarities[:, -1:] - ROUNDING)
    return float(np.minimum(right.sum(axis=1), there.sum(axis=1)).sum() / there.sum())
