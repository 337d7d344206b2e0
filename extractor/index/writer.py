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

import numpy as np

from extractor.index.building import StoredLayer, built, new_index, num_zero
from extractor.index.generation import (
    BrokenIndex,
    Content,
    Head,
    IndexMissing,
    load,
    locked,
    read_head,
    resolve,
    save,
    settings_digest,
)
from extractor.index.kinds import Parameters, choose, machine_memory
from extractor.index.normalisation import Normalisation
from extractor.index.search import Index
from extractor.store import Store

PERSIST_SECONDS = 300.0
PERSIST_SHARE = 0.05  # of the time that persisting may take, when the index is so large that it is slow


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
    ) -> None:
        """``expected_rows``: of the whole run, what ``auto`` chooses by until the true number is known.

        Raises ``SettingsError`` as ``build`` does, before anything is extracted.
        """
        self._kind = kind
        with Store(Path(run)) as store:
            self.run = store.path
            self.layer, self.pooling = resolve(store, layer, pooling)
            dim = store.shapes[self.pooling]
            streams = choose(kind, expected_rows, dim, machine_memory()) == "flat"
            self._content = self._taken_up(store) if streams else None
        self._order: list[np.ndarray] = [self._content.order] if self._content else []
        self._known = set(self._order[0].tolist()) if self._content else set()
        self._closed = False
        self._next_persist = time.monotonic() + PERSIST_SECONDS

    def _taken_up(self, store: Store) -> Content:
        """What an earlier writer persisted, where it is a flat index of this store; or an empty one."""
        try:
            head = read_head(self.run, self.layer, self.pooling)
            if (head.kind, head.normalisation, head.settings) == ("flat", "none", settings_digest(store)):
                content = load(self.run, self.layer, self.pooling, mapped=False)
                if np.isin(content.order, store.positions).all():
                    return content
        except (IndexMissing, BrokenIndex):
            pass  # built anew from the store: nothing of it is lost
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
        )
        return Content(
            head, new_index(head.dim, head.parameters), np.zeros(0, np.int64), Normalisation("none")
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
        self._feed(np.asarray(positions, np.int64), vectors)
        if time.monotonic() >= self._next_persist:
            began = time.monotonic()
            # Until it is closed, ``Index.open`` refuses it: rows are missing.
            with Store(self.run) as store, locked(store, self.layer, self.pooling):
                save(store, self._fed())
            took = time.monotonic() - began
            self._next_persist = began + took + max(PERSIST_SECONDS, took / PERSIST_SHARE)

    def close(self) -> Index:
        """Bring the index level with the store and make it valid. Safe to call twice.

        Raises what ``build`` raises; so it does for a trained kind of which too few rows came.
        """
        if not self._closed:
            self._closed = True
            with Store(self.run) as store, locked(store, self.layer, self.pooling):
                rows = StoredLayer(store, self.layer, self.pooling)
                flat = choose(self._kind, len(store), rows.dim, machine_memory()) == "flat"
                if flat and self._content is not None and self._known.issubset(store.positions.tolist()):
                    self._feed_missing(rows)
                    save(store, self._fed())
                else:
                    save(store, built(rows, self._kind, "none"))
        return Index.open(self.run, self.layer, self.pooling)

    def __enter__(self) -> IndexWriter:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """After an error nothing is written: the next writer takes the rows from the store."""
        if error is None:
            self.close()

    # How it is done

    def _feed(self, positions: np.ndarray, vectors: np.ndarray) -> None:
        """Add the rows that are not there yet."""
        assert self._content is not None
        new = np.array([position not in self._known for position in positions.tolist()], bool)
        if new.any():
            units = self._content.normalisation(vectors[new])
            self._content.faiss_index.add(units)
            self._order.append(positions[new])
            self._known.update(positions[new].tolist())
            head = self._content.head
            head = replace(head, rows=len(self._known), zero_rows=head.zero_rows + num_zero(units))
            self._content = replace(self._content, head=head)

    def _feed_missing(self, rows: StoredLayer) -> None:
        """Rows of the store that were not fed, of which there may be none, few or all."""
        positions = rows.store.positions
        missing = positions[[position not in self._known for position in positions.tolist()]]
        if len(missing) <= rows.block_rows:
            self._feed(missing, rows.at(missing)[1])
            return
        for numbers, embeddings in rows.blocks():
            self._feed(positions[numbers], embeddings)

    def _fed(self) -> Content:
        assert self._content is not None
        return replace(self._content, order=np.concatenate(self._order))
