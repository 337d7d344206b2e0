"""Recordings of noise, runs over them, and what is compared of two runs."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from extractor.progress import Counts, Progress, Summary
from extractor.run.engine import run
from extractor.run.options import Options
from extractor.store import Store


def noise(*lengths: int) -> list[np.ndarray]:
    """float32 ``[length]`` each."""
    rng = np.random.default_rng(sum(lengths))
    return [0.1 * rng.standard_normal(n).astype(np.float32) for n in lengths]


def write_noises(folder: Path, lengths: Sequence[int], flac: int = 0) -> Path:
    """``n00.wav`` and so on; each ``flac``-th as FLAC."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, audio in enumerate(noise(*lengths)):
        suffix = "flac" if flac and i % flac == 0 else "wav"
        soundfile.write(folder / f"n{i:02}.{suffix}", audio, 16_000)
    return folder


def random_lengths(count: int, least: int, most: int) -> list[int]:
    return np.random.default_rng(0).integers(least, most, count).tolist()


class Runs:
    """Runs of one model into folders of their own."""

    def __init__(self, folder: Path, model: str | Path, **options: Any) -> None:
        self.folder, self.options = folder, {"model": str(model), "dtype": "fp32", **options}

    def __call__(
        self,
        source: Any,
        name: str = "run",
        progress: Progress | None = None,
        stop: threading.Event | None = None,
        **options: Any,
    ) -> Summary:
        return run(source, Options(**{**self.options, **options}), self.folder / name, progress, stop)

    def store(self, source: Any, name: str = "run", **options: Any) -> Store:
        self(source, name, **options)
        return Store(self.folder / name)

    def are_same(self, *names: str) -> bool:
        same_store(*(self.folder / name for name in names or ("run", "whole")))
        return True


def same_store(a: Path, b: Path) -> None:
    """Bit for bit, in every column."""
    with Store(a) as x, Store(b) as y:
        assert x.ids == y.ids
        assert x.checksums == y.checksums
        assert x.num_frames.tolist() == y.num_frames.tolist()
        for pooling in x.poolings:
            assert np.array_equal(x.load(pooling=pooling), y.load(pooling=pooling))
        assert sorted(x.errors, key=str) == sorted(y.errors, key=str)


def worst_row_error(a: np.ndarray, b: np.ndarray) -> float:
    """Largest relative L2 error of a row and layer: ``[N, L, D]`` each."""
    return float((np.linalg.norm(a - b, axis=-1) / np.linalg.norm(b, axis=-1)).max())


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of rows to rows, in float64: ``[N, L, D] -> [N, L]``."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


def stopped() -> threading.Event:
    """With it a run plans and embeds nothing."""
    stop = threading.Event()
    stop.set()
    return stop


class Notes:
    """Progress as lists of what was said and shown."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.shown: list[tuple[str, int, float]] = []
        self.counts: list[int] = []

    def note(self, message: str) -> None:
        self.said.append(message)

    def start(self, what: str, recordings: int, audio: float, padding_share: float) -> None:
        self.shown.append((what, recordings, audio))

    def update(self, counts: Counts) -> None:
        self.counts.append(counts.recordings)

    def stop(self) -> None: ...

    def of(self, words: str) -> str:
        """The one note with these words."""
        (found,) = [message for message in self.said if words in message]
        return found

    def compared(self) -> list[int]:
        """Of how many recordings the audio was compared, each time it was."""
        return [n for what, n, _ in self.shown if what == "comparing audio"]


# Runs of three short recordings whose input changes


def sound(path: Path, key: int, num_samples: int = 4_800) -> Path:
    """A short recording that depends on ``key``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.1 * np.random.default_rng(key).standard_normal(num_samples), 16_000)
    return path


def table(folder: Path, text: str, name: str = "m.csv") -> Path:
    path = folder / name
    path.write_text(text.replace(" ", "\n") + "\n")
    return path


def embed(source: Any, out: Path, progress: Notes | None = None, **options: Any) -> Summary:
    return run(source, Options(**{"model": "mfcc", **options}), out, progress)


def rows(out: Path) -> dict[str, bytes]:
    with Store(out) as store:
        values = store.load(pooling="mean")
        return {name: row.tobytes() for name, row in zip(store.ids, values, strict=True)}


def labels(out: Path, name: str) -> dict[str, str]:
    with Store(out) as store:
        return dict(zip(store.ids, store.labels(name), strict=True))


def three_recordings(folder: Path) -> Path:
    """Three recordings of other lengths, and a manifest of them."""
    for key, name in enumerate("abc"):
        sound(folder / "data" / f"{name}.wav", key, 4_800 + 160 * key)
    table(folder / "data", "path,emotion,speaker a.wav,anger,s1 b.wav,fear,s1 c.wav,joy,s2")
    return folder / "data"
