"""The map of a run: what is drawn, where, and the same again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from classifiers import lookup
from classifiers.charts.projection import PROJECTIONS, Pca
from classifiers.service.corpus_map import CorpusMap
from extractor.index import build
from tests.classifier_cases import clustered, write_embeddings


@pytest.mark.parametrize("name", PROJECTIONS)
def test_a_projection_is_the_same_again_and_places_finitely(name: str, tmp_path: Path) -> None:
    if name == "umap":
        pytest.importorskip("umap", reason="the extra `serve` is not installed")
    vectors, labels = clustered(40, 6)
    opened = lookup.open(write_embeddings(tmp_path / "run", vectors, labels))
    once, again = (CorpusMap(opened, name) for _ in range(2))
    assert once.to_dict() == again.to_dict()
    assert once.place(vectors[0, 0]) == again.place(vectors[0, 0])
    assert np.isfinite(once.place(np.full(6, 100.0, np.float32))).all()


@pytest.mark.parametrize("normalisation", ["none", "whiten", "speaker"])
def test_the_map_shows_what_the_index_compares(normalisation: str, tmp_path: Path) -> None:
    """Speakers lie far apart as they are stored; where the index takes that away, the map does, too."""
    vectors, labels = clustered(80, 6)
    speakers = np.array([row["speaker"] for row in labels])
    offsets = {name: 20.0 * np.eye(6)[k] for k, name in enumerate(sorted(set(speakers)))}
    vectors = (vectors + np.stack([offsets[name] for name in speakers])[:, None]).astype(np.float32)
    path = write_embeddings(tmp_path / "run", vectors, labels)
    build(path, 0, "mean", "flat", normalisation)
    opened = lookup.open(path)
    drawn = CorpusMap(opened, "pca")
    units = opened.index.units(vectors[:, 0], list(speakers) if normalisation == "speaker" else None)
    np.testing.assert_allclose(drawn.fitted().points, Pca(units).points, atol=1e-6)
    centres = np.stack([drawn.fitted().points[speakers == name].mean(axis=0) for name in offsets])
    apart = np.linalg.norm(centres - centres.mean(axis=0), axis=1).max()
    assert (apart < 0.3) == (normalisation == "speaker")  # of unit vectors
    assert np.isfinite(drawn.place(vectors[0, 0])).all()


def test_of_a_large_run_a_sample_is_drawn_and_said(tmp_path: Path) -> None:
    vectors, labels = clustered(50, 4)
    opened = lookup.open(write_embeddings(tmp_path / "run", vectors, labels))
    drawn = CorpusMap(opened, "pca", max_points=20).to_dict()
    assert (len(drawn["id"]), drawn["num_rows"]) == (20, 50)
    assert drawn["position"] == sorted(set(drawn["position"]))
    assert drawn["id"] == [f"r{position:03}" for position in drawn["position"]]


def test_copies_are_not_drawn(tmp_path: Path) -> None:
    vectors, labels = clustered(10, 4)
    copies = [{**row, "copy": str(i % 2), "original": f"r{i // 2 * 2:03}"} for i, row in enumerate(labels)]
    opened = lookup.open(write_embeddings(tmp_path / "run", vectors, copies))
    assert CorpusMap(opened, "pca").to_dict()["position"] == [0, 2, 4, 6, 8]
