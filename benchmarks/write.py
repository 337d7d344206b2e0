"""Committing batches to a run, against appending the same rows to one HDF5 file with plain h5py.

    python -m benchmarks.write [--rows 4000] [--repeats 5] [--out FILE.json]

hser syncs what it commits to the disk, renames it and makes parts of it: as a run does it, in a
thread that commits together what has come in meanwhile, and each batch alone, merged later. Plain
h5py, as people write it, resizes one dataset and flushes after each batch, and loses the file to a
crash. All write hubert-large's shape, all 25 layers mean-pooled, to the same folder, turn by turn.
The floor is plain ``write`` and ``fsync`` of the same bytes.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import h5py
import numpy as np

from benchmarks.harness import arguments, take_turns
from benchmarks.readme import publish
from extractor.run.pipeline import Committer
from extractor.store.run_folder import ManifestRow
from extractor.store.writer import RunWriter
from extractor.types import BatchResult, Row, Utterance

NUM_LAYERS, WIDTH = 25, 1024
ROW_BYTES = NUM_LAYERS * WIDTH * 4
COLUMNS = ("emotion", "emotion_raw", "speaker")


def make_batches(num_rows: int, batch_rows: int) -> list[BatchResult]:
    values = np.random.default_rng(0).standard_normal((batch_rows, NUM_LAYERS, WIDTH)).astype(np.float32)
    rows = []
    for p in range(num_rows):
        path = f"/corpus/speaker/{p:08d}.wav"
        utterance = Utterance(f"utterance{p:08d}", path, labels=("anger", "W", "03"))
        rows.append(Row(p, utterance, 64_000, 199, f"{p:032x}", "fp32"))
    batches = [rows[start : start + batch_rows] for start in range(0, num_rows, batch_rows)]
    return [BatchResult(b, batch, {"mean": values[: len(batch)]}) for b, batch in enumerate(batches)]


def with_hser(folder: Path, results: Sequence[BatchResult], alone: bool = False) -> None:
    layers, dims = range(NUM_LAYERS), {"mean": WIDTH}
    with RunWriter.open(folder / "run", {}, {}, COLUMNS, layers, dims) as writer:
        writer.write_manifest(
            ManifestRow(row.position, row.utterance, row.num_samples, result.batch)
            for result in results
            for row in result.rows
        )
        if alone:
            for result in results:
                writer.commit(result)
            return
        with Committer(writer, lambda result, refused: None) as committer:
            for result in results:
                committer.put(result)


def with_h5py(folder: Path, results: Sequence[BatchResult]) -> None:
    with h5py.File(folder / "plain.h5", "w") as h5:
        shape = (0, NUM_LAYERS, WIDTH)
        embeddings = h5.create_dataset(
            "embeddings", shape, "f4", maxshape=(None, NUM_LAYERS, WIDTH), chunks=True
        )
        ids = h5.create_dataset("ids", (0,), h5py.string_dtype(), maxshape=(None,))
        for result in results:
            start, stop = len(ids), len(ids) + len(result.rows)
            embeddings.resize(stop, axis=0)
            ids.resize(stop, axis=0)
            embeddings[start:stop] = result.pooled["mean"]
            ids[start:stop] = [row.utterance.id for row in result.rows]
            h5.flush()


def with_write(folder: Path, results: Sequence[BatchResult]) -> None:
    for result in results:
        with (folder / f"{result.batch}.bin").open("wb", buffering=0) as file:
            file.write(result.pooled["mean"].data)
            os.fsync(file.fileno())


WRITERS: dict[str, Callable[[Path, Sequence[BatchResult]], None]] = {
    "hser": with_hser,
    "hser, each batch alone": partial(with_hser, alone=True),
    "h5py, one resizable file": with_h5py,
    "write and fsync": with_write,
}


def rows_per_second(name: str, results: Sequence[BatchResult], scratch: Path | None) -> float:
    with tempfile.TemporaryDirectory(prefix="hser-write-", dir=scratch) as folder:
        os.sync()  # what the one before left to write is not this one's
        began = time.perf_counter()
        WRITERS[name](Path(folder), results)
        return sum(len(result.rows) for result in results) / (time.perf_counter() - began)


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(
        __doc__,
        argv,
        rows=4000,
        batch_rows=(50, "200 seconds in clips of 4"),
        repeats=5,
        scratch=(Path, "folder on the disk to measure (default: temporary)"),
    )
    results = make_batches(args.rows, args.batch_rows)
    contenders = {name: partial(rows_per_second, name, results, args.scratch) for name in WRITERS}
    speeds = take_turns(contenders, args.repeats)
    result = {
        "what": "rows committed per second, all 25 layers of hubert-large mean-pooled",
        "rows": args.rows,
        "rows_a_batch": args.batch_rows,
        "row_bytes": ROW_BYTES,
        "hdf5": h5py.version.hdf5_version,
        "speeds": speeds,
    }
    publish("write", result, args.out)


if __name__ == "__main__":
    main()
