"""Runs to learn from, for the tests of the classifiers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from extractor.store.run_folder import ManifestRow
from extractor.store.writer import RunWriter
from extractor.types import BatchResult, Row, Utterance

BASE = ("emotion", "emotion_raw", "speaker")
EMOTIONS = ("anger", "happiness", "neutral", "sadness")
DIM = 8


@dataclass(frozen=True, slots=True)
class Corpus:
    """Rows of a made-up corpus. x: float32 [N, L, D]."""

    x: np.ndarray
    labels: list[dict[str, str]]
    ids: list[str]


def corpus(
    num_speakers: int = 4,
    takes: int = 3,
    num_layers: int = 1,
    signal_layer: int = 0,
    signal: float = 2.0,
    emotions: Sequence[str] = EMOTIONS,
    copies: int = 0,
    dim: int = DIM,
    seed: int = 0,
    speakers_apart: float = 0.5,
) -> Corpus:
    """Every speaker says every emotion ``takes`` times. One layer tells the emotion, the rest do not.

    Rows have their speaker's offset too. Copies are the original and a little noise, and come behind
    their original with the labels that the engine gives them.
    """
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(1234).standard_normal((len(EMOTIONS), dim)) * signal  # of every corpus
    x, labels, ids = [], [], []
    for speaker in range(num_speakers):
        offset = rng.standard_normal(dim) * speakers_apart
        for emotion in emotions:
            for take in range(takes):
                layers = rng.standard_normal((num_layers, dim)) + offset
                layers[signal_layer] += centres[EMOTIONS.index(emotion)]
                name = f"s{speaker}-{emotion}-{take}"
                own = {
                    "emotion": emotion,
                    "speaker": f"s{speaker}",
                    "session": f"S{speaker // 2}",
                    "split": ("train", "dev", "test")[min(speaker, 2)],
                }
                for copy in range(copies + 1):
                    x.append(layers + 0.1 * copy * rng.standard_normal(layers.shape))
                    recipe = "gain:db=3.0" if copy else "none"
                    extra = {"original": name, "copy": str(copy), "augmentation": recipe} if copies else {}
                    labels.append(own | extra)
                    ids.append(f"{name}~{copy}" if copy else name)
    return Corpus(np.array(x, np.float32), labels, ids)


def write_run(
    path: Path,
    rows: Corpus,
    pooling: str = "mean",
    settings: Mapping[str, Any] | None = None,
    frames: Sequence[np.ndarray] | None = None,
) -> Path:
    """A run of these embeddings, layers 0 to L - 1. ``frames``: [T, L, D] a row, as pooling none."""
    columns = tuple(dict.fromkeys([*BASE, *(name for row in rows.labels for name in row)]))
    utterances = [
        Utterance(name, f"/corpus/{name}.wav", labels=tuple(row.get(column, "") for column in columns))
        for name, row in zip(rows.ids, rows.labels, strict=True)
    ]
    lengths = [49] * len(rows.ids) if frames is None else [len(each) for each in frames]
    stored = [
        Row(i, each, 400 + 320 * length, length, f"sum-{each.id}", "fp32")
        for i, (each, length) in enumerate(zip(utterances, lengths, strict=True))
    ]
    dim = {pooling: rows.x.shape[2]} | ({} if frames is None else {"none": frames[0].shape[2]})
    with RunWriter.open(
        path,
        settings={"model": "given", "weights": "none", "pooling": pooling} | dict(settings or {}),
        environment={},
        columns=columns,
        layers=tuple(range(rows.x.shape[1])),
        dim=dim,
    ) as writer:
        writer.write_manifest([ManifestRow(i, each, 16_000, 0) for i, each in enumerate(utterances)])
        writer.commit(BatchResult(0, stored, {pooling: rows.x}, frames or []))
    return path


def without(rows: Corpus, keep: Sequence[bool]) -> Corpus:
    """Some of the rows."""
    kept = np.flatnonzero(keep).tolist()
    return Corpus(rows.x[kept], [rows.labels[i] for i in kept], [rows.ids[i] for i in kept])
