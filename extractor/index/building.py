"""Build an index from the store, a block of rows at a time; remove rows from one.

    fit the normalisation  ->  train on a sample  ->  add all rows, in the order of the disk
    ->  tune the effort of a search until stored rows find their exact neighbours  ->  save

The sample is a function of positions and seed alone. What is in memory is the index, the sample
and one block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from extractor.errors import SettingsError, unknown
from extractor.index import normalisation as normalisations
from extractor.index.generation import (
    Content,
    Head,
    check_fits,
    list_indexes,
    load,
    locked,
    resolve,
    save,
    settings_digest,
    speakers_digest,
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
from extractor.index.normalisation import NORMALISATIONS, Normalisation
from extractor.index.problems import BrokenIndex, IndexStale
from extractor.index.search import Index
from extractor.store import Store

BLOCK_BYTES = 32 << 20  # of embeddings read at once
NEIGHBOURS = 10  # recall is measured at
TUNING_QUERIES = 200
# Aimed at is 0.95. What 200 queries measure has a standard error of about 0.01, since misses come
# together; so that other queries reach it too, these have to do better by two of them.
TUNED_RECALL = 0.97
ROUNDING = 1e-5  # between two float32 products of the same unit vectors, of thousands of dimensions

Progress = Callable[[str, int, int], None]  # what is done, rows so far, rows in all


def build(
    run: str | PathLike[str],
    layer: int,
    pooling: str | None = None,
    kind: str = "auto",
    normalisation: str = "none",
    progress: Progress | None = None,
    seed: int = 0,
    save_it: bool = True,
) -> Index:
    """Build the index of one layer and pooling, and replace what is there.

    ``kind``: a name in ``KINDS``, or ``auto`` by rows, dimensions and the machine's memory.
    ``normalisation``: ``none``, ``whiten`` or ``speaker`` (``normalisation.py``), fitted on the store.
    Rows that were ``remove``d and are in the store come back.
    With ``save_it`` False the index is in memory only, and the run folder is left as it is.

    Raises ``SettingsError`` for an unknown name, or a kind that so few rows cannot train;
    ``StoreError`` for a store that cannot be read or written.
    """
    with Store(Path(run)) as store:
        layer, pooling = resolve(store, layer, pooling)
        source = Source(store, layer, pooling, progress)
        if not save_it:
            return Index(built(source, kind, normalisation, seed))
        with locked(store.path, layer, pooling) as folder:
            return Index(save(folder, built(source, kind, normalisation, seed)))


def remove(run: str | PathLike[str], layer: int, pooling: str | None, positions: np.ndarray) -> Index:
    """Take rows out of an index; the store keeps them. They stay out until it is built anew.

    What was trained, fitted and tuned is kept; the rows that stay are added again from the store.
    Raises ``SettingsError`` for a position that is not in the index, and what ``Index.open`` raises.
    """
    positions = np.unique(np.asarray(positions, np.int64))
    with Store(Path(run)) as store:
        layer, pooling = resolve(store, layer, pooling)
        with locked(store.path, layer, pooling) as folder:
            content = load(store.path, layer, pooling, mapped=False)
            check_fits(store, content)
            absent = np.setdiff1d(positions, content.order)
            if len(absent):
                raise SettingsError(f"{store.path}: position {absent[0]} is not in the index")
            return Index(save(folder, _refilled(store, content, np.union1d(content.removed, positions))))


def follow(run: str | PathLike[str]) -> list[str]:
    """Bring the indexes of a run that was edited level with it. Returns what cannot follow, and the remedy.

    Rows that were dropped go, as by ``remove``. What was fitted on labels that are others now, or on
    speakers of whom rows are gone, stays as it is and is refused by ``Index.open``.
    """
    problems = []
    for pooling, layer, *_ in list_indexes(Path(run)):
        with Store(Path(run)) as store, locked(store.path, layer, pooling) as folder:
            try:
                content = load(store.path, layer, pooling, mapped=False)
                stay = np.isin(content.order, store.positions)
                if stay.all() or content.normalisation.needs_speakers:
                    check_fits(store, content)
                    continue
                removed = np.intersect1d(content.removed, store.positions)
                level = replace(content, order=content.order[stay], removed=removed)
                check_fits(store, level)
                save(folder, _refilled(store, content, removed))
            except (BrokenIndex, IndexStale) as error:
                problems.append(str(error))
    return problems


def _refilled(store: Store, content: Content, removed: np.ndarray) -> Content:
    """The index with the rows that the store has, but for the removed ones; all else of it is kept."""
    content.faiss_index.reset()
    source = Source(store, content.head.layer, content.head.pooling, removed=removed)
    order, zeros = fill(content.faiss_index, source, content.normalisation)
    head = replace(content.head, rows=len(order), zero_rows=zeros)
    return replace(content, head=head, order=order, removed=removed)


@dataclass(frozen=True, slots=True)
class Source:
    """One layer and pooling of a store, read in blocks, without the rows that were removed."""

    store: Store
    layer: int
    pooling: str
    progress: Progress | None = None
    removed: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # positions

    @property
    def dim(self) -> int:
        return self.store.shapes[self.pooling]

    @property
    def positions(self) -> np.ndarray:
        return np.setdiff1d(self.store.positions, self.removed, assume_unique=True)

    @property
    def block_rows(self) -> int:
        return max(1, BLOCK_BYTES // (4 * self.dim))

    def blocks(self, what: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Row indices int64 ``[n]`` and embeddings float32 ``[n, D]``, in the order of the disk."""
        done = 0
        for rows, embeddings in self.store.iter_rows(self.layer, self.pooling, self.block_rows):
            stay = ~np.isin(self.store.positions[rows], self.removed)
            if stay.any():
                yield rows[stay], embeddings[stay]
            done += len(rows)
            if self.progress is not None:
                self.progress(what, done, len(self.store))

    def rows_at(self, positions: np.ndarray) -> np.ndarray:
        """Row indices of positions that are there."""
        return np.searchsorted(self.store.positions, positions)

    def load(self, rows: np.ndarray) -> np.ndarray:
        return self.store.load_rows(rows, self.layer, self.pooling)

    def speakers(self, normalisation: str) -> list[str]:
        """Of every row; none where the normalisation does not need them."""
        if normalisation not in NORMALISATIONS:
            raise SettingsError(unknown("normalisation", normalisation, NORMALISATIONS))
        return self.store.labels("speaker") if normalisation == "speaker" else []


def built(source: Source, kind: str, normalisation: str, seed: int) -> Content:
    """A new index of the source's rows, in memory."""
    positions, memory = source.positions, machine_memory()
    kind = choose(kind, len(positions), source.dim, memory)
    parameters = KINDS[kind].parameters(len(positions), source.dim, memory)
    speakers = source.speakers(normalisation)
    fitted = normalisations.fit(normalisation, lambda: source.blocks("fit"), speakers)
    faiss_index = new_index(source.dim, parameters, seed)
    if parameters.training_rows:
        _train(faiss_index, _units(source, fitted, sample(positions, parameters.training_rows, seed)))
    queries = sample(positions, 0 if KINDS[kind].exact else TUNING_QUERIES, seed + 1)
    exact = _Nearest(_units(source, fitted, queries), queries)
    order, zeros = fill(faiss_index, source, fitted, exact)
    effort, recall = _tune(kind, parameters, faiss_index, order, exact)
    head = Head(
        layer=source.layer,
        pooling=source.pooling,
        kind=kind,
        dim=source.dim,
        rows=len(order),
        normalisation=normalisation,
        parameters=parameters,
        effort=effort,
        recall_at_10=recall,
        zero_rows=zeros,
        settings=settings_digest(source.store),
        speakers=speakers_digest(source.store) if normalisation == "speaker" else "",
        seed=seed,
    )
    return Content(head, faiss_index, order, source.removed, fitted)


def new_index(dim: int, parameters: Parameters, seed: int) -> Any:
    """An empty FAISS index, not trained yet."""
    faiss = load_faiss()
    faiss_index = faiss.index_factory(dim, parameters.factory, faiss.METRIC_INNER_PRODUCT)
    if parameters.num_lists:
        lists = faiss.downcast_index(faiss.extract_index_ivf(faiss_index))
        lists.cp.seed = seed + 1
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
    source: Source,
    normalisation: Normalisation,
    exact: _Nearest | None = None,
) -> tuple[np.ndarray, int]:
    """Add all rows. Returns ``order`` and how many of them are zero."""
    speakers = source.speakers(normalisation.name)
    order, zeros = [np.zeros(0, np.int64)], 0
    for rows, embeddings in source.blocks("add"):
        names = [speakers[row] for row in rows.tolist()] if speakers else None
        units = normalisation(embeddings, names)
        faiss_index.add(units)
        order.append(source.store.positions[rows])
        zeros += num_zero(units)
        if exact is not None and len(exact.own):
            exact.add(order[-1], units)
    return np.concatenate(order), zeros


def num_zero(units: np.ndarray) -> int:
    return int((~units.any(axis=1)).sum())


def _units(source: Source, normalisation: Normalisation, positions: np.ndarray) -> np.ndarray:
    rows = source.rows_at(positions)
    speakers = source.speakers(normalisation.name)
    names = [speakers[row] for row in rows.tolist()] if speakers else None
    return normalisation(source.load(rows), names)


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


class _Nearest:
    """Exact neighbours of some stored rows, themselves left out, as the rows go by."""

    def __init__(self, units: np.ndarray, own: np.ndarray) -> None:
        self.units, self.own = units, own
        self.similarities = np.zeros((len(own), 0), np.float32)
        self.positions = np.zeros((len(own), 0), np.int64)

    def add(self, positions: np.ndarray, units: np.ndarray) -> None:
        similarities = self.units @ units.T
        similarities[positions[None] == self.own[:, None]] = -np.inf
        similarities = np.concatenate([self.similarities, similarities], axis=1)
        joined = np.concatenate([self.positions, np.tile(positions, (len(self.own), 1))], axis=1)
        best = np.argsort(-similarities, axis=1, kind="stable")[:, :NEIGHBOURS]
        self.similarities = np.take_along_axis(similarities, best, axis=1)
        self.positions = np.take_along_axis(joined, best, axis=1)


def _tune(
    kind: str, parameters: Parameters, faiss_index: Any, order: np.ndarray, exact: _Nearest
) -> tuple[Effort, float]:
    """The least effort whose recall is enough, or else the one whose recall is best; and its recall."""
    if KINDS[kind].exact:
        return {}, 1.0
    faiss = load_faiss()
    best: tuple[Effort, float] = ({}, -1.0)
    for effort in KINDS[kind].efforts(parameters):
        asked = KINDS[kind].search_parameters(faiss, effort, None)
        values, found = faiss_index.search(exact.units, NEIGHBOURS + 1, params=asked)
        values = values if KINDS[kind].true_similarities else np.full_like(values, -np.inf)
        recall = _recall(np.where(found < 0, -1, order[found]), values, exact)
        if recall > best[1]:
            best = (effort, recall)
        if recall >= TUNED_RECALL:
            break
    return best


def _recall(found: np.ndarray, values: np.ndarray, exact: _Nearest) -> float:
    """Share of the true neighbours among the found; a row is no neighbour of itself.

    One that is as similar as the last of the true ones counts as well: of copies, any will do.
    """
    if not exact.positions.size:
        return 1.0
    hits = 0
    for near, similar, own, true, last in zip(
        found, values, exact.own, exact.positions, exact.similarities[:, -1], strict=True
    ):
        right = (near >= 0) & (near != own) & (np.isin(near, true) | (similar >= last - ROUNDING))
        hits += min(int(right.sum()), len(true))
    return hits / exact.positions.size
