"""Runs with embeddings of one's choice, and the brute force that an index is held against."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from extractor.store.run_folder import ManifestRow
from extractor.store.writer import RunWriter
from extractor.types import BatchResult, Row, Utterance

LAYER, OTHER_LAYER = 3, 7


def clustered(rows: int, dim: int, clusters: int = 20, seed: int = 0) -> np.ndarray:
    """float32 [rows, dim]: clouds of rows of every length, as recordings of speakers are."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((clusters, dim))
    x = centres[rng.integers(0, clusters, rows)] + 0.5 * rng.standard_normal((rows, dim))
    return (x * rng.uniform(0.1, 10, (rows, 1))).astype(np.float32)


def batches_of(
    x: np.ndarray, speakers: Sequence[str] | None = None, batch_rows: int = 500, seed: int = 0
) -> list[BatchResult]:
    """Rows in shuffled order, as a plan by length has them; row k of ``x`` is at position 2 k.

    Every second position failed: positions and rows are never the same by chance. The row's id
    and emotion name its position. Layer ``OTHER_LAYER`` holds the negative.
    """
    order = np.random.default_rng(seed).permutation(len(x))
    found = []
    for batch, start in enumerate(range(0, len(x), batch_rows)):
        rows = order[start : start + batch_rows].tolist()
        values = np.stack([x[rows], -x[rows]], axis=1)
        found.append(
            BatchResult(batch, [_row(k, speakers[k] if speakers else "") for k in rows], {"mean": values})
        )
    return found


def _row(k: int, speaker: str) -> Row:
    return Row(2 * k, utterance_at(2 * k, speaker), 16_000, 49, f"sum{k}", "fp32")


def utterance_at(position: int, speaker: str = "") -> Utterance:
    return Utterance(f"u{position}", f"/corpus/u{position}.wav", labels=(f"emotion{position}", "", speaker))


def opened(run: Path, dim: int, **changes: object) -> RunWriter:
    settings = {"model": "tiny", **changes}
    columns = ("emotion", "emotion_raw", "speaker")
    return RunWriter.open(run, settings, {}, columns, (LAYER, OTHER_LAYER), {"mean": dim})


def manifest_of(results: Sequence[BatchResult]) -> list[ManifestRow]:
    batch_of = {row.position: (result.batch, row.utterance) for result in results for row in result.rows}
    last = max(batch_of, default=-1)
    return [
        ManifestRow(k, batch_of[k][1] if k in batch_of else utterance_at(k), 16_000, batch_of.get(k, (0,))[0])
        for k in range(last + 1)
    ]


def write(run: Path, x: np.ndarray, speakers: Sequence[str] | None = None, batch_rows: int = 500) -> Path:
    results = batches_of(x, speakers, batch_rows)
    with opened(run, x.shape[1]) as writer:
        writer.write_manifest(manifest_of(results))
        for result in results:
            writer.commit(result)
    return run


def brute_force(
    queries: np.ndarray, x: np.ndarray, k: int, rows: Sequence[int] | np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Cosine by one product in float64 of float32 unit vectors; ties by position. Row k is at 2 k."""
    chosen = np.arange(len(x)) if rows is None else np.sort(np.asarray(rows))
    similarities = (unit(queries).astype(np.float64) @ unit(x[chosen]).astype(np.float64).T).astype(
        np.float32
    )
    order = np.argsort(-similarities, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(similarities, order, axis=1), 2 * chosen[order]


def unit(x: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    return np.divide(x, lengths, out=np.zeros(x.shape), where=lengths > 0).astype(np.float32)
