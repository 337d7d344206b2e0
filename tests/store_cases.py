"""Runs to write and compare, for the tests of the store."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from conftest import ROOT

from extractor.store import Store
from extractor.store.run_folder import ManifestRow
from extractor.store.writer import RunWriter
from extractor.types import BatchResult, Failure, Row, Utterance

COLUMNS = ("emotion", "emotion_raw", "speaker")
LAYERS = (0, 6, 12)
DIM = {"mean": 5, "meanstd": 10}
WITH_FRAMES = DIM | {"none": 4}
FRAMES = {"mean": 5, "none": 4}
SETTINGS = {"model": "tiny", "layers": "0,6,12", "pooling": "mean,meanstd", "dtype": "fp32"}
ENVIRONMENT = {"hser": "0.1.0", "device": "test"}
# Not ASCII, not valid UTF-8 (a file name's stray byte), quotes, what JSON and HDF5 treat specially.
ODD_TEXTS = (
    "plain",
    "smörgås",
    "日本語/録音.wav",
    "b\udcff.wav",
    "q\"u\\o'te",
    "tab\tnew\nline",
    "%2F/.",
    "😀",
    "",
)

Frames = dict[str, int]


def batches(
    num_batches: int, rows: int | Sequence[int] = 3, dim: Frames = DIM, failing: float = 0.2, seed: int = 0
) -> list[BatchResult]:
    """Batches of a plan over a shuffled manifest; of some recordings only the failure is left."""
    rng = np.random.default_rng(seed)
    counts = [rows] * num_batches if isinstance(rows, int) else rows
    positions = iter(rng.permutation(sum(counts)).tolist())
    return [
        _batch(number, [next(positions) for _ in range(n)], dim, failing, rng)
        for number, n in enumerate(counts)
    ]


def _batch(
    number: int, positions: Iterable[int], dim: Frames, failing: float, rng: np.random.Generator
) -> BatchResult:
    rows, failures = [], []
    for position in positions:
        utterance = utterance_at(position)
        if rng.random() < failing:
            failures.append(Failure(utterance.id, utterance.path, "decode", f"cut short ({position})"))
            continue
        num_frames = int(rng.integers(1, 6))
        rows.append(Row(position, utterance, 400 + 320 * num_frames, num_frames, f"sum{position}", "fp32"))

    def values(*shape: int) -> np.ndarray:
        return rng.standard_normal((*shape, len(LAYERS), 1)).astype(np.float32)

    pooled = {
        name: np.repeat(values(len(rows)), width, axis=2) * np.arange(1, width + 1, dtype=np.float32)
        for name, width in dim.items()
        if name != "none"
    }
    frames = [np.repeat(values(row.num_frames), dim["none"], axis=2) for row in rows] if "none" in dim else []
    return BatchResult(number, rows, pooled, frames, failures)


def utterance_at(position: int) -> Utterance:
    text = ODD_TEXTS[position % len(ODD_TEXTS)]
    start = None if position % 3 else position / 7
    end = None if position % 2 else position + 0.5
    labels = (f"emotion{position % 4}", text, "")
    return Utterance(f"{position}:{text}", f"/corpus/{text}/{position}.wav", start, end, labels)


def manifest_of(results: Iterable[BatchResult]) -> list[ManifestRow]:
    batch_of = {row.utterance.id: result.batch for result in results for row in result.rows}
    batch_of |= {failure.id: result.batch for result in results for failure in result.failures}
    utterances = map(utterance_at, range(len(batch_of)))
    return [ManifestRow(k, each, 400, batch_of[each.id]) for k, each in enumerate(utterances)]


def opened(path: Path, dim: Frames | None = DIM, **changes: Any) -> RunWriter:
    arguments: dict[str, Any] = {
        "settings": SETTINGS,
        "environment": ENVIRONMENT,
        "columns": COLUMNS,
        "layers": LAYERS,
        "dim": dim,
    }
    return RunWriter.open(path, **(arguments | changes))


def commit_all(
    writer: RunWriter, planned: Sequence[BatchResult], results: Sequence[BatchResult] | None = None
) -> None:
    """Plan all of ``planned`` where nothing is, and commit them, or only ``results``."""
    if writer.manifest() is None:
        writer.write_manifest(manifest_of(planned))
    for result in planned if results is None else results:
        writer.commit(result)


def lines_of(writer: RunWriter) -> list[ManifestRow]:
    rows = writer.manifest()
    assert rows is not None
    return rows


def edited(
    run: Path, change: Callable[[ManifestRow], ManifestRow], columns: Sequence[str] | None = None
) -> None:
    """Change each line of a run's manifest."""
    with RunWriter.resume(run) as writer:
        writer.edit_manifest([change(row) for row in lines_of(writer)], columns or writer.columns)


def python(code: str, *arguments: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in a process of its own, which finds our packages and the tests' cases."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": path},
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


def write_run(path: Path, results: Sequence[BatchResult], dim: Frames | None = DIM, **changes: Any) -> None:
    """What the engine does: open or resume, commit what is not done, close."""
    with opened(path, dim, **changes) as writer:
        (index, count), done = writer.shard, writer.done()
        left = [each for each in results if each.batch not in done and each.batch % count == index]
        commit_all(writer, results, left)


def content(path: Path) -> dict[str, Any]:
    """All that a reader can learn of a run, comparable bit for bit."""
    with Store(path) as store:
        texts = {name: getattr(store, name) for name in ("ids", "paths", "checksums", "precisions", "errors")}
        names = ("positions", "starts", "ends", "num_samples", "num_frames", "durations")
        arrays = {name: getattr(store, name).tobytes() for name in names}
        labels = {name: store.labels(name) for name in store.columns}
        loaded = {name: store.load(pooling=name).tobytes() for name in store.poolings if name != "none"}
        if "none" in store.poolings:
            loaded["none"] = b"".join(store.frames(row).tobytes() for row in range(len(store)))
        return {**texts, **arrays, "labels": labels, "layers": store.layers, **loaded}


def one_row(batch: int, position: int, value: float = 1.0) -> BatchResult:
    row = Row(position, utterance_at(position), 720, 2, "sum", "fp32")
    shape = (1, len(LAYERS))
    pooled = {name: np.full((*shape, width), value, np.float32) for name, width in DIM.items()}
    return BatchResult(batch, [row], pooled)


def expected_values(results: list[BatchResult], pooling: str) -> np.ndarray:
    """[N, L, D'] in manifest order, from what was committed."""
    pairs = [
        (row.position, values)
        for result in results
        for row, values in zip(result.rows, result.pooled[pooling], strict=True)
    ]
    return np.stack([values for _, values in sorted(pairs, key=lambda pair: pair[0])])
