"""What goes into one HDF5 file of a run, from where it comes, and how it is written (format: ``hdf5.py``).

    batches that were computed    part_of_batch  \
    finished files                stored_part     }  joined, or changed  ->  write_part
    some rows of a finished file  stored_part    /

Embeddings need not be in memory: they are read a piece at a time, as they are written.
"""

from __future__ import annotations

import bisect
import contextlib
import hashlib
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from extractor.store.aside import aside, interrupt_later
from extractor.store.hdf5 import (
    CHECKSUM,
    LIBVER,
    NO_POOLING,
    ROW_COLUMNS,
    TEXT,
    Column,
    PartInfo,
    chunk_rows,
    column_checksum,
    column_kinds,
    encode_text,
    label_dataset,
    open_part,
    read_column,
    read_failures,
    read_rows,
)
from extractor.store.run_folder import FORMAT, RunInfo, failure_json
from extractor.types import BatchResult, Failure

MERGE_BUFFER_BYTES = 32 << 20  # embeddings held in memory while parts are merged
# From here on the checksum, which takes about as long as the writing, has a thread of its own.
BESIDE_BYTES = 16 << 20

STORAGE_DTYPES: dict[str, np.dtype] = {"fp32": np.dtype("<f4"), "fp16": np.dtype("<f2")}


@dataclass(frozen=True, slots=True)
class Embeddings:
    """An array ``[N, L, D']`` to be written, which need not be in memory."""

    shape: tuple[int, int, int]
    dtype: np.dtype
    read: Callable[[slice, slice], np.ndarray]  # (rows, layers) -> [rows, layers, D']

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Part:
    """All that goes into one file. ``columns`` is in the order of ``column_kinds``."""

    batches: Sequence[int]
    layers: Sequence[int]
    columns: Mapping[str, Column]
    embeddings: Mapping[str, Embeddings]
    frame_offsets: np.ndarray | None
    failures: Sequence[tuple[int, Failure]]  # with the batch of each


def part_of_batch(result: BatchResult, info: RunInfo, given: Sequence[str]) -> Part:
    """``given``: the columns that the rows' labels are of; others among the run's are empty."""
    dtype = STORAGE_DTYPES[info.storage_dtype]

    def in_memory(values: np.ndarray) -> Embeddings:
        return Embeddings(values.shape, dtype, lambda rows, layers: values[rows, layers])

    columns: dict[str, Column] = {}
    for name, kind in ROW_COLUMNS.items():
        values: list[Any] = [
            getattr(row if hasattr(row, name) else row.utterance, name) for row in result.rows
        ]
        # A missing start or end is None, which becomes NaN.
        columns[name] = values if kind is TEXT else np.array(values, dtype=kind)
    index = {label: k for k, label in enumerate(given)}
    for label in info.columns:
        k = index.get(label)
        columns[label_dataset(label)] = ["" if k is None else row.utterance.labels[k] for row in result.rows]
    embeddings, offsets = {name: in_memory(values) for name, values in result.pooled.items()}, None
    if result.frames:
        embeddings[NO_POOLING] = _join([in_memory(frames) for frames in result.frames])
        offsets = np.cumsum([0, *map(len, result.frames)], dtype="<i8")
    failures = [(result.batch, failure) for failure in result.failures]
    return Part([result.batch], info.layers, columns, embeddings, offsets, failures)


def stored_part(path: Path, labels: Sequence[str], rows: np.ndarray | None = None) -> Part:
    """A finished file, its embeddings left on the disk. ``rows``: these alone, int64, ascending."""
    with open_part(path) as h5:
        columns = {name: read_column(h5, name) for name in column_kinds(labels)}
        datasets = [(name, h5["embeddings"][name]) for name in h5.get("embeddings", ())]
        arrays = {name: (dataset.shape, dataset.dtype) for name, dataset in datasets}
        offsets = h5["frame_offsets"][:] if "frame_offsets" in h5 else None
        batches, layers = h5["batches"][:].tolist(), h5["layers"][:].tolist()
        failures = read_failures(h5)
    frames = None
    if rows is not None:
        columns = {
            name: [values[k] for k in rows] if isinstance(values, list) else values[rows]
            for name, values in columns.items()
        }
        if not len(rows):
            arrays, offsets = {}, None
        elif offsets is not None:
            frames = np.concatenate([np.arange(offsets[k], offsets[k + 1]) for k in rows])
            offsets = np.cumsum([0, *np.diff(offsets)[rows]], dtype="<i8")
    embeddings = {
        name: _stored(path, name, shape, dtype, frames if name == NO_POOLING else rows)
        for name, (shape, dtype) in arrays.items()
    }
    return Part(batches, layers, columns, embeddings, offsets, failures)


def _stored(
    path: Path, name: str, shape: tuple[int, int, int], dtype: np.dtype, chosen: np.ndarray | None
) -> Embeddings:
    """A dataset of a finished file, or chosen rows of it; opened only while a piece is read."""

    def read(rows: slice, layers: slice) -> np.ndarray:
        with open_part(path) as h5:
            dataset = h5["embeddings"][name]
            return dataset[rows, layers] if chosen is None else read_rows(dataset, chosen[rows], layers)

    return Embeddings((shape[0] if chosen is None else len(chosen), *shape[1:]), dtype, read)


def joined(parts: Sequence[Part]) -> Part:
    """One part of several, in their order."""
    filled = [part for part in parts if len(part.columns["position"])]
    columns: dict[str, Column] = {}
    for name, first in parts[0].columns.items():
        pieces: list[Any] = [part.columns[name] for part in parts]
        columns[name] = [*itertools.chain(*pieces)] if isinstance(first, list) else np.concatenate(pieces)
    offsets = None
    if filled and filled[0].frame_offsets is not None:
        counts = [np.diff(part.frame_offsets) for part in filled if part.frame_offsets is not None]
        offsets = np.cumsum(np.concatenate([[0], *counts]), dtype="<i8")
    return Part(
        batches=[batch for part in parts for batch in part.batches],
        layers=parts[0].layers,
        columns=columns,
        embeddings={
            name: _join([part.embeddings[name] for part in filled])
            for name in (filled[0].embeddings if filled else ())
        },
        frame_offsets=offsets,
        failures=[failure for part in parts for failure in part.failures],
    )


def _join(pieces: Sequence[Embeddings]) -> Embeddings:
    """Arrays ``[n, L, D']``, one after the other, read only as they are written."""
    starts = [0, *itertools.accumulate(piece.shape[0] for piece in pieces)]
    _, num_layers, width = pieces[0].shape
    dtype = pieces[0].dtype

    def read(rows: slice, layers: slice) -> np.ndarray:
        # Layer after layer in memory, as in the file: then a layer is written without another copy.
        block = np.empty((layers.stop - layers.start, rows.stop - rows.start, width), dtype).swapaxes(0, 1)
        first = bisect.bisect_right(starts, rows.start) - 1
        for piece, start in zip(pieces[first:], starts[first:], strict=False):
            low, high = max(rows.start, start), min(rows.stop, start + piece.shape[0])
            if start >= rows.stop:
                break
            block[low - rows.start : high - rows.start] = piece.read(slice(low - start, high - start), layers)
        return block

    return Embeddings((starts[-1], num_layers, width), dtype, read)


# Writing


def write_part(
    path: Path,
    part: Part,
    kind: str,
    attributes: Mapping[str, Any] | None = None,
    buffer_bytes: int = MERGE_BUFFER_BYTES,
) -> PartInfo:
    """Write ``path`` aside and rename it. ``kind`` (batch, part, packed) is stored in the file.

    At most about ``buffer_bytes`` of embeddings, and the columns, are in memory at a time.
    Raises ``StoreUnwritable``.
    """
    # Chunks are written whole and once: a cache would only change their order in the file.
    with (
        aside(path) as file,
        interrupt_later(),
        h5py.File(file, "w", libver=LIBVER, rdcc_nbytes=0) as h5,
    ):
        for name, embeddings in part.embeddings.items():
            _write_embeddings(h5, f"embeddings/{name}", embeddings, buffer_bytes, file.check)
        failures = "".join(f"{failure_json(failure)}\n" for _, failure in part.failures)
        columns: dict[str, Column] = {
            **part.columns,
            "layers": np.array(part.layers, "<i8"),
            "batches": np.array(part.batches, "<i8"),
            "failure_batches": np.array([batch for batch, _ in part.failures], "<i8"),
            **({} if part.frame_offsets is None else {"frame_offsets": part.frame_offsets}),
            "failures": np.frombuffer(failures.encode(), np.uint8),
        }
        for name, column in columns.items():
            values = encode_text(column) if isinstance(column, list) else column
            h5.create_dataset(name, data=values).attrs[CHECKSUM] = column_checksum(values)
        num_rows = len(part.columns["position"])
        h5.attrs.update({**(attributes or {}), "num_rows": num_rows, "kind": kind, "format": FORMAT})
        h5.attrs["complete"] = True
    return PartInfo(path, tuple(part.batches), num_rows, path.stat().st_size)


def _write_embeddings(
    h5: h5py.File, name: str, embeddings: Embeddings, buffer_bytes: int, check: Callable[[], None]
) -> None:
    num_rows, _, width = embeddings.shape
    rows = chunk_rows(num_rows, width * embeddings.dtype.itemsize)
    filled = 0 not in embeddings.shape
    dataset = h5.create_dataset(
        name,
        embeddings.shape,
        embeddings.dtype,
        chunks=(rows, 1, width) if filled else None,
        fletcher32=filled,
    )
    digest: Any = hashlib.sha256()
    for row_range, layer_range in _tiles(embeddings, rows, buffer_bytes):
        block = embeddings.read(row_range, layer_range)  # [rows, layers, D']
        layers = [np.ascontiguousarray(block[:, k]) for k in range(block.shape[1])]
        with _beside(partial(_update, digest, layers), block.nbytes >= BESIDE_BYTES):
            for layer, values in enumerate(layers, layer_range.start):
                dataset[row_range, layer] = values
        check()
    dataset.attrs[CHECKSUM] = digest.hexdigest()


def _tiles(embeddings: Embeddings, rows_a_chunk: int, buffer_bytes: int) -> Iterator[tuple[slice, slice]]:
    """Pieces that fit the buffer, in the order of the file: several whole layers, or part of one."""
    num_rows, num_layers, width = embeddings.shape
    layer_bytes = num_rows * width * embeddings.dtype.itemsize
    if layer_bytes == 0:
        return
    layers = max(1, buffer_bytes // layer_bytes)
    rows = num_rows
    if layer_bytes > buffer_bytes:
        chunk_bytes = layer_bytes // num_rows * rows_a_chunk
        rows = max(1, buffer_bytes // chunk_bytes) * rows_a_chunk
    for layer in range(0, num_layers, layers):
        for row in range(0, num_rows, rows):
            yield (
                slice(row, min(row + rows, num_rows)),
                slice(layer, min(layer + layers, num_layers)),
            )


def _update(digest: Any, pieces: Sequence[np.ndarray]) -> None:
    for values in pieces:
        digest.update(values)


@contextlib.contextmanager
def _beside(work: Callable[[], Any], worth_it: bool) -> Iterator[None]:
    """Do the work in a thread while the block runs, or before it where that is not worth a thread."""
    if not worth_it:
        work()
        yield
        return
    with ThreadPoolExecutor(1, "checksum") as pool:
        done = pool.submit(work)
        yield
        done.result()


# Does a row fit the dtype it is stored in? What does not is a failure, never an infinity. What does is
# rounded to it: whatever is compared with stored rows is rounded alike.


def refuse_overflow(
    result: BatchResult, layers: Sequence[int], storage_dtype: str
) -> tuple[BatchResult, list[Failure]]:
    """Take out the rows with a value that the storage dtype cannot hold, and say why."""
    refused: dict[int, Failure] = {}
    for k, row in enumerate(result.rows):
        arrays = {name: values[k] for name, values in result.pooled.items()}
        if result.frames:
            arrays[NO_POOLING] = result.frames[k]
        reason = _overflow(arrays, layers, storage_dtype)
        if reason:
            refused[k] = Failure(row.utterance.id, row.utterance.path, "store", reason)
    if not refused:
        return result, []
    keep = [k for k in range(len(result.rows)) if k not in refused]
    kept = replace(
        result,
        rows=[result.rows[k] for k in keep],
        pooled={name: values[keep] for name, values in result.pooled.items()},
        frames=[result.frames[k] for k in keep] if result.frames else (),
        failures=[*result.failures, *refused.values()],
    )
    return kept, [*refused.values()]


def as_stored(result: BatchResult, layers: Sequence[int], storage_dtype: str) -> BatchResult:
    """What a reader has of a batch once it is committed: rounded, and without what does not fit."""
    kept, _ = refuse_overflow(result, layers, storage_dtype)
    return replace(
        kept,
        pooled={name: rounded(values, storage_dtype) for name, values in kept.pooled.items()},
        frames=[rounded(values, storage_dtype) for values in kept.frames],
    )


def rounded(values: np.ndarray, storage_dtype: str) -> np.ndarray:
    """float32 of any shape to the values that the storage dtype has for them, in float32."""
    return values.astype(STORAGE_DTYPES[storage_dtype], copy=False).astype(np.float32, copy=False)


def _overflow(arrays: Mapping[str, np.ndarray], layers: Sequence[int], storage_dtype: str) -> str | None:
    """Why a row cannot be stored. ``arrays``: ``[L, D']``, and ``[T, L, D]`` of frames."""
    limit = float(np.finfo(STORAGE_DTYPES[storage_dtype]).max)
    for name, values in arrays.items():
        if max(values.max(), -values.min()) <= limit:  # false for NaN as well
            continue
        wrong = np.argwhere(~(np.abs(values) <= limit))[0]
        value, layer = values[tuple(wrong)], layers[wrong[-2]]
        if not np.isfinite(value):
            return f"pooling {name}, layer {layer}: a value is {value}"
        return (
            f"pooling {name}, layer {layer}: the value {value:g} is beyond fp16 (largest {limit:g}); "
            "use --storage-dtype fp32"
        )
    return None
