"""Committing batches to a run, against appending the same rows to one HDF5 file with plain h5py.

    python benchmarks/write.py [--rows 4000] [--repeats 5] [--out FILE.json]

hser syncs each batch to the disk, renames it and merges batches into parts; plain h5py, as people
write it, resizes one dataset and flushes after each batch, and loses the file to a crash. Both
write hubert-large's shape, all 25 layers mean-pooled, to the same folder, turn by turn. The floor
is plain ``write`` and ``fsync`` of the same bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

from extractor.store.run_folder import ManifestRow
from extractor.store.writer import RunWriter
from extractor.types import BatchResult, Row, Utterance

NUM_LAYERS, WIDTH = 25, 1024
ROW_BYTES = NUM_LAYERS * WIDTH * 4
COLUMNS = ("emotion", "emotion_raw", "speaker")


def make_batches(num_rows: int, batch_rows: int) -> list[BatchResult]:
    values = np.random.default_rng(0).standard_normal((batch_rows, NUM_LAYERS, WIDTH)).astype(np.float32)
    results = []
    for batch, start in enumerate(range(0, num_rows, batch_rows)):
        rows = [_row(position) for position in range(start, min(start + batch_rows, num_rows))]
        results.append(BatchResult(batch, rows, {"mean": values[: len(rows)]}))
    return results


def _row(position: int) -> Row:
    utterance = Utterance(
        f"utterance{position:08d}", f"/corpus/speaker/{position:08d}.wav", labels=("anger", "W", "03")
    )
    return Row(position, utterance, 64_000, 199, f"{position:032x}", "fp32")


def with_hser(folder: Path, results: list[BatchResult]) -> None:
    manifest = [
        ManifestRow(row.position, row.utterance, row.num_samples, result.batch)
        for result in results
        for row in result.rows
    ]
    dim = {"mean": WIDTH}
    with RunWriter.open(folder / "run", {}, {}, COLUMNS, range(NUM_LAYERS), dim) as writer:
        writer.write_manifest(manifest)
        for result in results:
            writer.commit(result)


def with_h5py(folder: Path, results: list[BatchResult]) -> None:
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


def with_write(folder: Path, results: list[BatchResult]) -> None:
    for result in results:
        with (folder / f"{result.batch}.bin").open("wb", buffering=0) as file:
            file.write(result.pooled["mean"].data)
            os.fsync(file.fileno())


WRITERS: dict[str, Callable[[Path, list[BatchResult]], None]] = {
    "hser": with_hser,
    "h5py, one resizable file": with_h5py,
    "write and fsync": with_write,
}


def measure(results: list[BatchResult], repeats: int, scratch: Path | None) -> dict[str, list[float]]:
    """Seconds of each writer, ``repeats`` times, in turns so that a busy moment hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in WRITERS}
    for _ in range(repeats):
        for name, write in WRITERS.items():
            folder = Path(tempfile.mkdtemp(prefix="hser-write-", dir=scratch))
            os.sync()
            started = time.perf_counter()
            write(folder, results)
            seconds[name].append(time.perf_counter() - started)
            shutil.rmtree(folder)
    return seconds


def machine() -> str:
    """The CPU model and the number of cores, as a file name."""
    path = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", path.read_text()) if path.exists() else None
    model = found[1] if found else platform.processor() or platform.machine()
    return re.sub(r"[^a-z0-9]+", "-", f"{model.lower()} {os.cpu_count()} cores").strip("-")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--batch-rows", type=int, default=50, help="200 seconds in clips of 4")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--scratch", type=Path, help="folder on the disk to measure (default: temporary)")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / f"write-{machine()}.json"
    )
    arguments = parser.parse_args()
    seconds = measure(
        make_batches(arguments.rows, arguments.batch_rows), arguments.repeats, arguments.scratch
    )
    megabytes = arguments.rows * ROW_BYTES / 1e6
    report = {
        "machine": machine(),
        "rows": arguments.rows,
        "rows_a_batch": arguments.batch_rows,
        "megabytes": megabytes,
        "versions": {"h5py": h5py.__version__, "hdf5": h5py.version.hdf5_version, "numpy": np.__version__},
        "seconds": seconds,
    }
    print(
        f"{arguments.rows} rows of {ROW_BYTES / 1e3:.0f} kB in batches of {arguments.batch_rows}, {machine()}"
    )
    print(f"{'':26}{'rows/s':>10}{'MB/s':>10}{'spread':>10}")
    for name, times in seconds.items():
        median = statistics.median(times)
        spread = (max(times) - min(times)) / median
        print(f"{name:26}{arguments.rows / median:10.0f}{megabytes / median:10.0f}{spread:10.0%}")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
