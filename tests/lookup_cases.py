"""Runs to look things up in, for the tests of lookup and evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tests.classifier_cases import Corpus, write_run


def write_embeddings(
    run: Path,
    vectors: np.ndarray,
    labels: Sequence[Mapping[str, str]],
    ids: Sequence[str] | None = None,
    paths: Sequence[str] | None = None,
    checksums: Sequence[str] | None = None,
) -> Path:
    """A run of given embeddings float32 ``[N, L, D]``, pooling ``mean``, layers 0 to L - 1."""
    ids = ids or [f"r{i:03}" for i in range(len(vectors))]
    rows = Corpus(vectors.astype(np.float32), [dict(row) for row in labels], list(ids))
    audio = checksums or [f"sum-{name}" for name in ids]
    return write_run(run, rows, settings={"augmentation": "none"}, audio=audio, paths=paths)


def clustered(
    num_rows: int, dim: int, num_layers: int = 1, num_emotions: int = 3, num_speakers: int = 4, seed: int = 0
) -> tuple[np.ndarray, list[dict[str, str]]]:
    """Vectors ``[N, L, D]`` that lie around their emotion, less so in each further layer, and labels."""
    rng = np.random.default_rng(seed)
    emotion = rng.integers(num_emotions, size=num_rows)
    speaker = rng.integers(num_speakers, size=num_rows)
    centres = rng.standard_normal((num_emotions, dim))
    noise = rng.standard_normal((num_rows, num_layers, dim)) * (1 + np.arange(num_layers))[:, None]
    vectors = (centres[emotion][:, None] + noise).astype(np.float32)
    names = ("anger", "neutral", "sadness", "fear")
    return vectors, [
        {"emotion": names[e], "speaker": f"s{s}", "age": str(20 + s)}
        for e, s in zip(emotion.tolist(), speaker.tolist(), strict=True)
    ]
