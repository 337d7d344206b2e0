"""``IndexWriter``: an index that grows while a run extracts.

Only a flat index without normalisation can be fed row by row and come out as if it had been built
at once. Clusters, codes, graphs and fitted statistics depend on all rows, so those kinds are built
from the store when the run ends: one sequential read of one layer, which is little beside the run,
and the result is that of ``build``. Either way the store decides what is in the index; what was fed
only saves reading it again.
"""

from __future__ import annotations

import time
from dataclasses import replace
from os import PathLike
from pathlib import Path
from types import TracebackType

import numpy as np

from extractor.index.building import Progress, Source, built, new_index, num_zero
from extractor.index.generation import (
    Content,
    Head,
    load,
    locked,
    read_head,
    read_removed,
    resolve,
    save,
    settings_digest,
)
from extractor.index.kinds import Parameters, choose, machine_memory
from extractor.index.normalisation import Normalisation
from extractor.index.problems import BrokenIndex, IndexMissing
from extractor.index.search import Index
from extractor.store import Store

PERSIST_SECONDS = 300.0
PERSIST_SHARE = 0.05  # of the time that persisting may take, when the index is so large that it is slow
BLOCK_ROWS = 8192
EMPTY = np.zeros(0, np.int64)


class IndexWriter:
    """Feed it rows as they are committed; ``close`` brings it level with the store.

    Rows that are in the store and were not fed (committed before a kill, or by another shard) are
    added from the store. The run's manifest and settings are there before the writer is made.
    """

    def __init__(
        self,
        run: str | PathLike[str],
        layer: int,
        pooling: str | None,
        expected_rows: int,
        kind: str = "auto",
        normalisation: str = "none",
        progress: Progress | None = None,
        seed: int = 0,
    ) -> None:
        """``expected_rows``: of the whole run, what ``auto`` chooses by until the true number is known.

        Raises ``SettingsError`` as ``build`` does, before anything is extracted.
        """
        self._asked = (kind, normalisation, seed)
        self._progress = progress
        with Store(Path(run)) as store:
            self.run = store.path
            self.layer, self.pooling = resolve(store, layer, pooling)
            dim = store.shapes[self.pooling]
            Source(store, self.layer, self.pooling, self._progress).speakers(normalisation)
            self._streams = (
                normalisation == "none" and choose(kind, expected_rows, dim, machine_memory()) == "flat"
            )
            self._content = self._taken_up(store) if self._streams else None
        self._order: list[np.ndarray] = [self._content.order] if self._content else []
        self._known = set(self._order[0].tolist()) if self._content else set()
        self._closed = False
        self._next_persist = time.monotonic() + PERSIST_SECONDS

    def _taken_up(self, store: Store) -> Content:
        """What an earlier writer persisted, where it is a flat index of this store; or an empty one."""
        try:
            head = read_head(self.run, self.layer, self.pooling)
            plain = (head.kind, head.normalisation, head.settings) == ("flat", "none", settings_digest(store))
            content = load(self.run, self.layer, self.pooling, mapped=False) if plain else None
        except (IndexMissing, BrokenIndex):
            content = None  # built anew from the store: nothing of it is lost
        if content is not None and not len(np.setdiff1d(content.order, store.positions)):
            return content
        head = Head(
            layer=self.layer,
            pooling=self.pooling,
            kind="flat",
            dim=store.shapes[self.pooling],
            rows=0,
            normalisation="none",
            parameters=Parameters("Flat"),
            effort={},
            recall_at_10=1.0,
            zero_rows=0,
            settings=settings_digest(store),
            seed=self._asked[2],
        )
        return Content(
            head, new_index(head.dim, head.parameters, head.seed), EMPTY, EMPTY, Normalisation("none")
        )

    def add(self, positions: np.ndarray, vectors: np.ndarray) -> None:
        """Rows that were committed: positions int64 ``[n]``, embeddings float32 ``[n, D]``.

        Positions that are there already are left as they are. Raises ``InputError`` for values that
        are not finite, and now and then what writing raises.
        """
        if self._closed:
            raise ValueError("the index is closed")
        if self._content is None:
            return
        positions = np.asarray(positions, np.int64)
        new = np.array([position not in self._known for position in positions.tolist()], bool)
        self._feed(positions[new], vectors[new])
        if time.monotonic() >= self._next_persist:
            began = time.monotonic()
            self.persist()
            took = time.monotonic() - began
            self._next_persist = began + took + max(PERSIST_SECONDS, took / PERSIST_SHARE)

    def persist(self) -> None:
        """Write what was fed so far. Until ``close``, ``Index.open`` refuses it: rows are missing."""
        if self._content is None:
            return
        with Store(self.run) as store, locked(self.run, self.layer, self.pooling) as folder:
            save(folder, self._without(read_removed(store, self.layer, self.pooling)))

    def close(self) -> Index:
        """Bring the index level with the store and make it valid. Safe to call twice.

        Raises what ``build`` raises; so it does for a trained kind of which too few rows came.
        """
        kind, normalisation, seed = self._asked
        if not self._closed:
            self._closed = True
            with Store(self.run) as store, locked(self.run, self.layer, self.pooling) as folder:
                removed = read_removed(store, self.layer, self.pooling)
                source = Source(store, self.layer, self.pooling, self._progress, removed)
                flat = choose(kind, len(source.positions), source.dim, machine_memory()) == "flat"
                if flat and self._content is not None and self._known.issubset(store.positions.tolist()):
                    self._feed_missing(source)
                    save(folder, self._without(removed))
                else:
                    save(folder, built(source, kind, normalisation, seed))
        return Index.open(self.run, self.layer, self.pooling)

    def __enter__(self) -> IndexWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """After an error nothing is written: the next writer takes the rows from the store."""
        if error is None:
            self.close()

    # How it is done

    def _feed(self, positions: np.ndarray, vectors: np.ndarray) -> None:
        assert self._content is not None
        if len(positions):
            units = self._content.normalisation(vectors)
            self._content.faiss_index.add(units)
            self._order.append(positions)
            self._known.update(positions.tolist())

    def _feed_missing(self, source: Source) -> None:
        """Rows of the store that were not fed, of which there may be none, few or all."""
        missing = np.array(
            [position for position in source.positions.tolist() if position not in self._known], np.int64
        )
        if len(missing) <= source.block_rows:
            self._feed(missing, source.load(source.rows_at(missing)))
            return
        for rows, embeddings in source.blocks("add"):
            positions = source.store.positions[rows]
            new = np.isin(positions, missing)
            self._feed(positions[new], embeddings[new])

    def _without(self, removed: np.ndarray) -> Content:
        """What was fed, less what was removed in the meantime (a flat index closes the gaps)."""
        assert self._content is not None
        faiss_index, order = self._content.faiss_index, np.concatenate([EMPTY, *self._order])
        gone = np.isin(order, removed)
        if gone.any():
            faiss_index.remove_ids(np.flatnonzero(gone))
            order = order[~gone]
        self._order = [order]
        zeros = sum(
            num_zero(faiss_index.reconstruct_n(start, min(BLOCK_ROWS, len(order) - start)))
            for start in range(0, len(order), BLOCK_ROWS)
        )
        head = replace(self._content.head, rows=len(order), zero_rows=zeros)
        return replace(self._content, head=head, order=order, removed=removed)
