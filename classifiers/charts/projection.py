"""Embeddings to two and three dimensions, to be looked at: UMAP (arXiv:1802.03426), or principal components.

The picture of a model is of standardised rows, as the classifiers see them, and of the layers and sources
that the model takes: side by side, or with the weights that it has learned. What it shows is that, not the
classifier's own decision. The map of the page is of what its index compares. Both are the same again for the
same rows.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from classifiers.data.features import FRAMES, Source
from classifiers.data.runs import open_run
from classifiers.data.standardise import standardise
from classifiers.results.files import read_csv, write_csv
from extractor.errors import SettingsError, StoreError, unknown
from extractor.store import Store

FILE = "projection.csv"
MAX_POINTS = 3000  # more hide each other, and a report carries every one of them
SAMPLE_SEED = 0
UMAP_MIN_ROWS = 16  # its 15 neighbours and the row itself
UMAP_SEED = 0
UMAP_DIMENSIONS = 50  # principal components that UMAP starts from: faster, and the rest is mostly noise
TITLES = {"umap": "UMAP", "pca": "principal components"}


class Pca:
    """The directions in which rows ``[N, D]`` differ most; zeros where there are fewer than asked for.

    ``points``: float32 ``[N, num_dims]``, where the rows are that it was fitted on.
    """

    def __init__(self, rows: np.ndarray, num_dims: int = 2) -> None:
        self._mean = rows.mean(axis=0, dtype=np.float64)
        centred = rows - self._mean
        # By the smaller of the two Gram matrices: either may be large, seldom both.
        tall = len(centred) > centred.shape[1]
        values, vectors = np.linalg.eigh(centred.T @ centred if tall else centred @ centred.T)
        largest = [k for k in np.argsort(values)[::-1][:num_dims] if values[k] > 1e-12 * values.max()]
        axes = vectors[:, largest] if tall else centred.T @ vectors[:, largest] / np.sqrt(values[largest])
        # An eigenvector's sign is arbitrary: the largest score is made positive.
        scores = centred @ axes
        signs = np.sign(scores[np.abs(scores).argmax(axis=0), np.arange(len(largest))])
        self._axes = np.zeros((centred.shape[1], num_dims))
        self._axes[:, : len(largest)] = axes * signs
        self.points = self.place(rows)

    def place(self, rows: np.ndarray) -> np.ndarray:
        """float32 ``[Q, num_dims]``: where other rows ``[Q, D]`` come to lie."""
        return ((rows - self._mean) @ self._axes).astype(np.float32)


class Umap:
    """Neighbourhoods kept, distances between far groups not. As `Pca`."""

    def __init__(self, rows: np.ndarray, num_dims: int = 2) -> None:
        with warnings.catch_warnings():
            # It misses tensorflow, which only its parametric variant takes.
            warnings.simplefilter("ignore", ImportWarning)
            import umap
        self._pca = Pca(rows, min(UMAP_DIMENSIONS, *rows.shape))
        # A seed makes it use one thread in any case; saying so spares a warning. It starts from principal
        # components: the spectral start fails where groups are not connected, and only then warns.
        self._umap: Any = umap.UMAP(n_components=num_dims, random_state=UMAP_SEED, n_jobs=1, init="pca")
        self._lock = threading.Lock()  # a transform changes the object's state
        self.points = np.asarray(self._umap.fit_transform(self._pca.points), np.float32)

    def place(self, rows: np.ndarray) -> np.ndarray:
        with self._lock:
            return np.asarray(self._umap.transform(self._pca.place(rows)), np.float32)


PROJECTIONS: dict[str, type[Pca] | type[Umap]] = {"pca": Pca, "umap": Umap}


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


@dataclass(frozen=True, slots=True)
class Picture:
    """Some rows: ``points2`` float32 [P, 2], ``points3`` float32 [P, 3]; by id."""

    method: str  # "umap" or "pca"
    ids: list[str]
    points2: np.ndarray
    points3: np.ndarray


def project_rows(
    sources: Sequence[Source],
    ids: Sequence[str],
    layer_weights: Sequence[float] | None = None,
    method: str | None = None,
) -> Picture:
    """The rows ``ids``, or of many a sample.

    Args:
        sources: with their layers fixed, or "all".
        layer_weights: of the layers, where they are weighted and not side by side.
        method: "umap" or "pca"; None: umap where there are rows enough.

    Raises StoreError where a source has not all rows.
    """
    chosen = list(ids)
    if len(chosen) > MAX_POINTS:
        picked = np.random.default_rng(SAMPLE_SEED).choice(len(ids), MAX_POINTS, replace=False)
        chosen = [ids[i] for i in np.sort(picked).tolist()]
    name = choose_projection(method, len(chosen))
    vectors = _vectors(sources, chosen, layer_weights)
    return Picture(name, chosen, *(PROJECTIONS[name](vectors, dims).points for dims in (2, 3)))


def _vectors(sources: Sequence[Source], ids: Sequence[str], weights: Sequence[float] | None) -> np.ndarray:
    """float32 [P, D], standardised; a layer in memory at a time where layers are weighted."""
    blocks: list[np.ndarray] = []
    for source in sources:
        store = open_run(source.path, incomplete=True)  # rows that were learned from
        number = {name: row for row, name in enumerate(store.ids)}
        unknown = [name for name in ids if name not in number]
        if unknown:
            raise StoreError(f"{source.path}: has no row {unknown[0]!r}; was it extracted again since?")
        rows = np.array([number[name] for name in ids], np.int64)
        layers = store.layers if isinstance(source.layers, str) else list(source.layers)
        each = (standardise(_rows(store, rows, layer, source.pooling)) for layer in layers)
        if weights is not None and len(weights) == len(layers):
            total: np.ndarray = sum(  # type: ignore[assignment]
                np.float32(weight) * block for weight, block in zip(weights, each, strict=True)
            )
            blocks.append(total)
        else:
            blocks += each
    return np.hstack(blocks)


def _rows(store: Store, rows: np.ndarray, layer: int, pooling: str | None) -> np.ndarray:
    """float32 [P, D]; of frames, their mean over time."""
    if pooling != FRAMES:
        return store.load_rows(rows, layer, pooling)
    return np.stack([store.frames(row, layer).mean(axis=0) for row in rows.tolist()])


def write_projection(picture: Picture, path: Path) -> None:
    """One line a row: id, method, x y of two dimensions, x y z of three."""
    header = ["id", "method", "x2", "y2", "x3", "y3", "z3"]
    points = np.hstack([picture.points2, picture.points3])
    rows = zip(picture.ids, points, strict=True)
    write_csv(path, header, ([id_, picture.method, *(f"{v:.5g}" for v in of)] for id_, of in rows))


def read_projection(path: Path) -> Picture:
    """Raises StoreError for a file that is none."""
    try:
        lines = read_csv(path)
        points = np.array([[float(line[name]) for name in ("x2", "y2", "x3", "y3", "z3")] for line in lines])
        if not np.isfinite(points).all() or not len(lines):
            raise StoreError(f"{path}: damaged: no points, or points that are not finite")
        ids, method = [line["id"] for line in lines], lines[0]["method"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path}: not readable as a projection ({error!r})") from error
    points = points.astype(np.float32)
    return Picture(method, ids, points[:, :2], points[:, 2:])
