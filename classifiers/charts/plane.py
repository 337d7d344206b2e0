"""Embeddings to two dimensions: principal components, or UMAP (McInnes et al. 2018, arXiv:1802.03426).

Both work on vectors of unit length, where squared distance is 2 - 2 cosine: near on the map means what
near means in a search. Both give the same map again for the same rows.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np

from extractor.errors import SettingsError, unknown

UMAP_MIN_ROWS = 16  # its 15 neighbours and the row itself
UMAP_SEED = 0


class Projection(Protocol):
    """``points``: float32 ``[N, 2]``, where the rows are that it was fitted on."""

    points: np.ndarray

    def place(self, units: np.ndarray) -> np.ndarray:
        """float32 ``[Q, 2]``: where vectors of unit length ``[Q, D]`` come to lie."""
        ...


class Pca:
    """The two directions in which the rows differ most."""

    def __init__(self, units: np.ndarray) -> None:
        self._mean = units.mean(axis=0, dtype=np.float64)
        centred = units - self._mean
        # Of the D x D covariance: N may be large, D is a few thousand.
        _, vectors = np.linalg.eigh(centred.T @ centred)
        axes = vectors[:, : -min(2, vectors.shape[1]) - 1 : -1]
        # An eigenvector's sign is arbitrary: the largest entry is made positive.
        axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
        self._axes = np.zeros((len(vectors), 2))  # of one dimension there is only one axis
        self._axes[:, : axes.shape[1]] = axes
        self.points = self.place(units)

    def place(self, units: np.ndarray) -> np.ndarray:
        return ((units - self._mean) @ self._axes).astype(np.float32)


class Umap:
    """Neighbourhoods kept, distances between far groups not."""

    def __init__(self, units: np.ndarray) -> None:
        with warnings.catch_warnings():
            # It misses tensorflow, which only its parametric variant takes.
            warnings.simplefilter("ignore", ImportWarning)
            import umap
        # A seed makes it use one thread in any case; saying so spares a warning.
        self._umap: Any = umap.UMAP(random_state=UMAP_SEED, n_jobs=1)
        self._lock = threading.Lock()  # a transform changes the object's state
        self.points = self._umap.fit_transform(units).astype(np.float32)

    def place(self, units: np.ndarray) -> np.ndarray:
        with self._lock:
            return np.asarray(self._umap.transform(units), np.float32)


PROJECTIONS: dict[str, Callable[[np.ndarray], Projection]] = {"pca": Pca, "umap": Umap}


def choose_projection(name: str | None, num_rows: int) -> str:
    """The name of the one to use: as asked, else ``umap`` where it is installed and has rows enough.

    Raises SettingsError for an unknown name, or for umap where it cannot be done.
    """
    if name is not None and name not in PROJECTIONS:
        raise SettingsError(f"--projection: {unknown('projection', name, PROJECTIONS)}")
    installed = find_spec("umap") is not None
    if name == "umap" and not installed:
        raise SettingsError("--projection umap needs umap-learn: pip install 'hser[serve]'")
    if name == "umap" and num_rows < UMAP_MIN_ROWS:
        raise SettingsError(f"--projection umap needs {UMAP_MIN_ROWS} rows, there are {num_rows}; take pca")
    return name or ("umap" if installed and num_rows >= UMAP_MIN_ROWS else "pca")
