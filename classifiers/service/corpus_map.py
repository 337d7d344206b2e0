"""The rows that are drawn, where, and with which labels."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from classifiers.charts.projection import PROJECTIONS, Pca, Umap, choose_projection

if TYPE_CHECKING:
    from classifiers.lookup import Lookup

MAX_POINTS = 20_000  # more are a blur on a screen, and minutes of UMAP
SAMPLE_SEED = 0
LABELS = ("emotion", "speaker")


class CorpusMap:
    """A map of a run's layer. Computed when it is first needed, once; safe to use from threads.

    Augmented copies are not drawn: they are no neighbours either. Of more than ``max_points`` rows a
    sample is drawn, each with equal probability.
    """

    def __init__(self, lookup: Lookup, projection: str | None = None, max_points: int = MAX_POINTS) -> None:
        store = lookup.store
        self.index = lookup.index
        self.store, self.layer, self.pooling = store, lookup.layer, lookup.pooling
        rows = np.flatnonzero(np.isin(store.positions, lookup.index.positions))
        originals = store.clean
        rows = rows[originals[rows]] if originals.any() else rows
        self.num_rows = len(rows)
        if len(rows) > max_points:
            chosen = np.random.default_rng(SAMPLE_SEED).choice(rows, max_points, replace=False)
            rows = np.sort(chosen)
        self.rows = rows  # int64 [P], of the store
        self.projection = choose_projection(projection, len(rows))
        self._fitted: Pca | Umap | None = None
        self._fitting = threading.Lock()

    def fitted(self) -> Pca | Umap:
        with self._fitting:
            if self._fitted is None:
                vectors = self.store.load_rows(self.rows, self.layer, self.pooling)
                self._fitted = PROJECTIONS[self.projection](self._units(vectors, self.rows))
            return self._fitted

    def warm_up(self) -> None:
        """Fits, and places a row once: what umap places with is compiled at its first use, for seconds."""
        self.fitted()
        self.place(self.store.load_rows(self.rows[:1], self.layer, self.pooling)[0])

    def _units(self, vectors: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
        """What the index compares, so that neighbours lie close together; ``rows``: those of the store."""
        if self.index.normalisation != "speaker":
            return self.index.units(vectors, None)
        speakers = self.store.labels("speaker")
        return self.index.units(vectors, [""] if rows is None else [speakers[row] for row in rows])

    def place(self, vector: np.ndarray) -> tuple[float, float]:
        """Where an embedding float32 ``[D']`` of an unknown speaker lies on the map."""
        x, y = self.fitted().place(self._units(vector[None]))[0].tolist()
        return x, y

    def to_dict(self) -> dict[str, Any]:
        """As the page takes it: one list a column, aligned."""
        points = self.fitted().points.astype(float).round(5)
        chosen = self.rows.tolist()
        columns = {name: self.store.labels(name) for name in LABELS if name in self.store.columns}
        ids = self.store.ids
        return {
            "projection": self.projection,
            "num_rows": self.num_rows,
            "position": self.store.positions[self.rows].tolist(),
            "x": points[:, 0].tolist(),
            "y": points[:, 1].tolist(),
            "id": [ids[row] for row in chosen],
            **{name: [column[row] for row in chosen] for name, column in columns.items()},
        }
