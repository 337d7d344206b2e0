"""Embeddings to two and three dimensions, to be looked at: UMAP, or principal components.

Standardised first, as the classifiers see them, and of the layers and sources that the model takes:
side by side, or with the weights that it has learned. What a picture shows is that, not the
classifier's own decision.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from classifiers.charts.plane import UMAP_SEED, choose_projection
from classifiers.data.features import FRAMES, Source
from classifiers.data.runs import open_run
from classifiers.data.standardise import standardise
from classifiers.results.files import read_csv, write_csv
from extractor.errors import StoreError
from extractor.store import Store

FILE = "projection.csv"
MAX_POINTS = 3000  # more hide each other, and a report carries every one of them
SAMPLE_SEED = 0
UMAP_DIMENSIONS = 50  # principal components that UMAP starts from: faster, and the rest is mostly noise
TITLES = {"umap": "UMAP", "pca": "principal components"}


@dataclass(frozen=True, slots=True)
class Projection:
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
) -> Projection:
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
    return Projection(name, chosen, *(project(vectors, dims, name) for dims in (2, 3)))


def project(vectors: np.ndarray, num_dims: int, method: str) -> np.ndarray:
    """float32 [N, num_dims] of float32 [N, D]; the same for the same rows."""
    reduced = _principal(vectors, num_dims if method == "pca" else min(UMAP_DIMENSIONS, *vectors.shape))
    if method == "pca":
        return reduced
    with warnings.catch_warnings():
        # It misses tensorflow, which only its parametric variant takes.
        warnings.simplefilter("ignore", ImportWarning)
        import umap
    # Random starts: the spectral one fails where groups are not connected, and only then warns.
    made = umap.UMAP(n_components=num_dims, random_state=UMAP_SEED, n_jobs=1, init="pca")
    return np.asarray(made.fit_transform(reduced), np.float32)


def _principal(vectors: np.ndarray, num_dims: int) -> np.ndarray:
    """Scores on the first principal components; zeros where there are fewer."""
    centred = vectors - vectors.mean(axis=0, dtype=np.float64)
    # By the smaller of the two Gram matrices: either may be large, seldom both.
    tall = len(centred) > centred.shape[1]
    values, axes = np.linalg.eigh(centred.T @ centred if tall else centred @ centred.T)
    largest = np.argsort(values)[::-1][:num_dims]
    axes = axes[:, largest]
    scores = centred @ axes if tall else axes * np.sqrt(np.maximum(values[largest], 0))
    # An eigenvector's sign is arbitrary: the largest score is made positive.
    if scores.size:
        scores = scores * np.where(
            scores[np.abs(scores).argmax(axis=0), np.arange(scores.shape[1])] < 0, -1, 1
        )
    out = np.zeros((len(vectors), num_dims), np.float32)
    out[:, : scores.shape[1]] = scores
    return out


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


def write_projection(projection: Projection, path: Path) -> None:
    """One line a row: id, method, x y of two dimensions, x y z of three."""
    header = ["id", "method", "x2", "y2", "x3", "y3", "z3"]
    points = np.hstack([projection.points2, projection.points3])
    rows = zip(projection.ids, points, strict=True)
    write_csv(path, header, ([id_, projection.method, *(f"{v:.5g}" for v in of)] for id_, of in rows))


def read_projection(path: Path) -> Projection:
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
    return Projection(method, ids, points[:, :2], points[:, 2:])
