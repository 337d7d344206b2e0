"""One HDF5 part: its layout, its writer, its reader, its check.

    embeddings/<pooling>   float32 or float16 [N, L, D']; checked by fletcher32
    embeddings/none        [sum of frames, L, D]: row k is frame_offsets[k] : frame_offsets[k + 1]
    frame_offsets          int64 [N + 1], with the pooling `none` only
    position id path start end num_samples num_frames checksum precision labels/<column>   [N]
    layers                 int64 [L]
    batches                int64: the batches of the plan that are inside
    failures               bytes, JSON lines: recordings of these batches that could not be embedded
    failure_batches        int64: the batch of each

Chunks are ``(about 1 MiB of rows, 1, D')`` and are written layer after layer, so one layer of
all recordings is one run of bytes in the file (but for the chunk index, which HDF5 puts behind
the first chunk). Committed batches, a part and a packed run have this one layout. Strings
are of fixed length, which virtual datasets join whatever it is: variable ones live in HDF5's
heap, the one structure of this format that has no checksum.

Each dataset's attribute ``sha256`` is the SHA-256 of its little-endian bytes; of
``embeddings/*`` layer after layer, ``[L, N, D']``; of strings their UTF-8 joined by NUL.
"""

from __future__ import annotations

import bisect
import contextlib
import hashlib
import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from extractor.errors import StoreError
from extractor.store.aside import aside, interrupt_later
from extractor.store.outside import refuse_outside
from extractor.store.run_folder import FORMAT, PARTS, RUN, failure_from_json, failure_json, lowest_batch
from extractor.types import BatchResult, Failure, Row

CHUNK_BYTES = 1 << 20
MERGE_BUFFER_BYTES = 32 << 20  # embeddings held in memory while parts are merged
# From here on the checksum, which takes about as long as the writing, has a thread of its own.
BESIDE_BYTES = 16 << 20
# HDF5 1.10 is the oldest that knows virtual datasets; newer formats would shut readers out.
LIBVER = ("v110", "v110")

STORAGE_DTYPES: dict[str, np.dtype] = {"fp32": np.dtype("<f4"), "fp16": np.dtype("<f2")}
NO_POOLING = "none"
CHECKSUM = "sha256"  # twice as fast as BLAKE2b where the CPU has instructions for it

TEXT = "text"
# What is kept of a row, and as what. `Row` and `Utterance` have attributes of these names.
ROW_COLUMNS: dict[str, str] = {
    "position": "<i8",
    "id": TEXT,
    "path": TEXT,
    "start": "<f8",
    "end": "<f8",
    "num_samples": "<i8",
    "num_frames": "<i8",
    "checksum": TEXT,
    "precision": TEXT,
}

Column = np.ndarray | list[str]
# (rows, layers) -> [rows, layers, D']
ReadEmbeddings = Callable[[slice, slice], np.ndarray]


class BrokenPart(StoreError):
    """The file is cut, damaged or not a part; what was in it has to be computed again."""


@dataclass(frozen=True, slots=True)
class Embeddings:
    """An array ``[N, L, D']`` to be written, which need not be in memory."""

    shape: tuple[int, int, int]
    dtype: np.dtype
    read: ReadEmbeddings

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Contents:
    """All that goes into one part. ``columns`` is in the order of ``column_names``."""

    batches: Sequence[int]
    layers: Sequence[int]
    columns: Mapping[str, Column]
    embeddings: Mapping[str, Embeddings]
    frame_offsets: np.ndarray | None
    failures: Sequence[str]  # JSON
    failure_batches: Sequence[int]


@dataclass(frozen=True, slots=True)
class PartInfo:
    """What a part is known to hold once it was written or checked."""

    path: Path
    batches: tuple[int, ...]
    num_rows: int
    num_bytes: int


def label_dataset(column: str) -> str:
    """Dataset of a label column. HDF5 gives `/` and `.`, in virtual datasets also `%`, a meaning."""
    return "labels/" + re.sub(r"[~/.%]", lambda found: f"~{ord(found[0]):02X}", column)


def column_kinds(labels: Iterable[str]) -> dict[str, str]:
    """Every per-row dataset and its kind (a dtype or ``TEXT``)."""
    return ROW_COLUMNS | {label_dataset(name): TEXT for name in labels}


def chunk_rows(num_rows: int, width: int, itemsize: int) -> int:
    return max(1, min(num_rows, CHUNK_BYTES // max(1, width * itemsize)))


# Text. `surrogatepass` keeps every str as it is, also file names that are no valid UTF-8.


def encode_text(values: Sequence[str]) -> np.ndarray:
    encoded = [value.encode("utf-8", "surrogatepass") for value in values]
    width = max(map(len, encoded), default=1) or 1
    return np.array(encoded, dtype=h5py.string_dtype("utf-8", width))


def decode_text(values: np.ndarray) -> list[str]:
    return [value.decode("utf-8", "surrogatepass") for value in values.tolist()]


# Writing


def batch_contents(
    results: Sequence[BatchResult],
    labels: Sequence[str],
    layers: Sequence[int],
    storage_dtype: str,
    given: Sequence[str] | None = None,
) -> Contents:
    """What one file of these batches holds, their rows in the order of the batches given.

    ``given``: the columns that the rows' labels are of, where they are not ``labels``: of a run that
    was edited. A column that is not among them is empty.
    """
    dtype = STORAGE_DTYPES[storage_dtype]
    filled = [result for result in results if result.rows]
    poolings = filled[0].pooled if filled else {}
    embeddings = {name: join([result.pooled[name] for result in filled], dtype) for name in poolings}
    offsets = None
    frames = [frames for result in filled for frames in result.frames]
    if frames:
        offsets = np.cumsum([0, *map(len, frames)], dtype="<i8")
        embeddings[NO_POOLING] = join(frames, dtype)
    return Contents(
        batches=[result.batch for result in results],
        layers=layers,
        columns=_row_columns([row for result in filled for row in result.rows], labels, given or labels),
        embeddings=embeddings,
        frame_offsets=offsets,
        failures=[failure_json(failure) for result in results for failure in result.failures],
        failure_batches=[result.batch for result in results for _ in result.failures],
    )


def _row_columns(rows: Sequence[Row], labels: Sequence[str], given: Sequence[str]) -> dict[str, Column]:
    utterances = [row.utterance for row in rows]
    columns: dict[str, Column] = {}
    for name, kind in ROW_COLUMNS.items():
        values: list[Any] = [
            getattr(row, name) if hasattr(row, name) else getattr(utterance, name)
            for row, utterance in zip(rows, utterances, strict=True)
        ]
        # A missing start or end is None, which becomes NaN.
        columns[name] = values if kind is TEXT else np.array(values, dtype=kind)
    index = {label: k for k, label in enumerate(given)}
    for label in labels:
        k = index.get(label)
        values = [""] * len(rows) if k is None else [utterance.labels[k] for utterance in utterances]
        columns[label_dataset(label)] = values
    return columns


def write_part(
    path: Path,
    contents: Contents,
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
        for name, embeddings in contents.embeddings.items():
            _write_embeddings(h5, f"embeddings/{name}", embeddings, buffer_bytes, file.check)
        for name, column in contents.columns.items():
            _write_column(h5, name, encode_text(column) if isinstance(column, list) else column)
        for name in ("layers", "batches", "failure_batches"):
            _write_column(h5, name, np.array(getattr(contents, name), dtype="<i8"))
        if contents.frame_offsets is not None:
            _write_column(h5, "frame_offsets", contents.frame_offsets)
        failures = "".join(f"{failure}\n" for failure in contents.failures)
        _write_column(h5, "failures", np.frombuffer(failures.encode(), np.uint8))
        num_rows = len(contents.columns["position"])
        h5.attrs.update({**(attributes or {}), "num_rows": num_rows, "kind": kind, "format": FORMAT})
        h5.attrs["complete"] = True
    return PartInfo(path, tuple(contents.batches), num_rows, path.stat().st_size)


def _write_column(h5: h5py.File, name: str, values: np.ndarray) -> None:
    h5.create_dataset(name, data=values).attrs[CHECKSUM] = column_checksum(values)


def _write_embeddings(
    h5: h5py.File, name: str, embeddings: Embeddings, buffer_bytes: int, check: Callable[[], None]
) -> None:
    num_rows, _, width = embeddings.shape
    rows = chunk_rows(num_rows, width, embeddings.dtype.itemsize)
    filled = 0 not in embeddings.shape
    dataset = h5.create_dataset(
        name,
        embeddings.shape,
        embeddings.dtype,
        chunks=(rows, 1, width) if filled else None,
        fletcher32=filled,
    )
    digest = _digest()
    for row_range, layer_range in _tiles(embeddings, rows, buffer_bytes):
        block = embeddings.read(row_range, layer_range)  # [rows, layers, D']
        layers = [np.ascontiguousarray(block[:, k]) for k in range(block.shape[1])]
        with _beside(_update, digest, layers, worth_it=block.nbytes >= BESIDE_BYTES):
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


def merge(path: Path, parts: Sequence[PartInfo], labels: Sequence[str]) -> PartInfo:
    """Write one part that holds ``parts`` in their order. Each is opened once for a bufferful."""
    heads = [_read_head(part.path, labels) for part in parts]
    filled = [head for head in heads if head.columns["position"].size]
    poolings = filled[0].embeddings if filled else {}
    columns: dict[str, Column] = {}
    for name, kind in column_kinds(labels).items():
        pieces = [head.columns[name] for head in heads]
        columns[name] = [*itertools.chain(*pieces)] if kind is TEXT else np.concatenate(pieces)
    offsets = None
    if NO_POOLING in poolings:
        offsets = join_offsets([head.frame_offsets for head in filled])
    contents = Contents(
        batches=[batch for part in parts for batch in part.batches],
        layers=heads[0].layers,
        columns=columns,
        embeddings={
            name: join([head.embeddings[name] for head in filled], array.dtype)
            for name, array in poolings.items()
        },
        frame_offsets=offsets,
        failures=[failure for head in heads for failure in head.failures],
        failure_batches=[batch for head in heads for batch in head.failure_batches],
    )
    return write_part(path, contents, kind="part")


@dataclass(frozen=True, slots=True)
class _StoredArray:
    """A dataset of a part, opened only while a piece of it is read."""

    path: Path
    name: str
    shape: tuple[int, int, int]
    dtype: np.dtype

    def __getitem__(self, key: tuple[slice, slice]) -> np.ndarray:
        with open_part(self.path) as h5:
            return np.asarray(h5["embeddings"][self.name][key])


def join(pieces: Sequence[np.ndarray | _StoredArray], dtype: np.dtype) -> Embeddings:
    """Arrays ``[n, L, D']``, one after the other, read only as they are written."""
    starts = [0, *itertools.accumulate(piece.shape[0] for piece in pieces)]
    _, num_layers, width = pieces[0].shape

    def read(rows: slice, layers: slice) -> np.ndarray:
        # Layer after layer in memory, as in the file: then a layer is written without another copy.
        block = np.empty((layers.stop - layers.start, rows.stop - rows.start, width), dtype).swapaxes(0, 1)
        first = bisect.bisect_right(starts, rows.start) - 1
        for piece, start in zip(pieces[first:], starts[first:], strict=False):
            low, high = max(rows.start, start), min(rows.stop, start + piece.shape[0])
            if start >= rows.stop:
                break
            block[low - rows.start : high - rows.start] = piece[low - start : high - start, layers]
        return block

    return Embeddings((starts[-1], num_layers, width), dtype, read)


def join_offsets(offsets: Sequence[np.ndarray]) -> np.ndarray:
    """``frame_offsets`` of parts, one after the other, as those of one."""
    counts = [np.diff(each) for each in offsets]
    return np.cumsum(np.concatenate([[0], *counts]), dtype="<i8")


# Reading


@contextlib.contextmanager
def open_part(path: Path) -> Iterator[h5py.File]:
    """Open a finished file for reading.

    Raises ``BrokenPart`` when its content is damaged, there or in the block, and leaves alone
    what is not the file's fault (it vanished, permissions, too many open files, a failing disk):
    those carry an errno, and what they hide may be perfectly good. Raises ``StoreError`` for a file
    that would have others read.
    """
    try:
        refuse_outside(path)
        # Immutable, so no lock is needed; and some network file systems refuse them.
        with h5py.File(path, "r", locking=False) as h5:
            yield h5
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        if isinstance(error, OSError) and (error.errno is not None or "errno =" in str(error)):
            raise
        cause = str(error).strip("'\"")
        raise BrokenPart(f"{path}: {_remedy(path, cause)}") from error


def _remedy(path: Path, cause: str) -> str:
    """Only what a run made, and makes again, is to be deleted: other files are the user's own."""
    if (
        path.parent.name == PARTS
        and (path.parent.parent / RUN).exists()
        and lowest_batch(path.name) is not None
    ):
        again = "delete this file and run the same command again: its recordings are then computed anew"
        return f"damaged ({cause}); {again}"
    return (
        f"not a run or packed file, or damaged ({cause}); name a run's folder, or a file of `hser-store pack`"
    )


def read_info(path: Path, labels: Sequence[str], num_layers: int) -> PartInfo:
    """Check what can be checked without reading the embeddings. Raises ``BrokenPart``."""
    with open_part(path) as h5:
        if h5.attrs["format"] != FORMAT:  # not broken: another version's, and not ours to delete
            raise StoreError(f"{path}: format {h5.attrs['format']}, this hser reads {FORMAT}")
        problem = _shape_problem(h5, labels, num_layers)
        if problem:
            raise BrokenPart(f"{path}: {problem}")
        batches = tuple(h5["batches"][:].tolist())
        return PartInfo(path, batches, int(h5.attrs["num_rows"]), path.stat().st_size)


def _shape_problem(h5: h5py.File, labels: Sequence[str], num_layers: int) -> str | None:
    if not h5.attrs.get("complete", False):
        return "was not completed"
    num_rows = int(h5.attrs["num_rows"])
    expected = dict.fromkeys(column_kinds(labels), (num_rows,)) | {"layers": (num_layers,)}
    if num_rows and NO_POOLING in h5["embeddings"]:
        expected["frame_offsets"] = (num_rows + 1,)
    for name, shape in expected.items():
        if name not in h5 or h5[name].shape != shape:
            return f"dataset {name} is missing or not of shape {list(shape)}"
    for name in h5.get("embeddings", ()):
        dataset = h5["embeddings"][name]  # raises where items() would give None
        rows = int(h5["frame_offsets"][-1]) if name == NO_POOLING else num_rows
        if dataset.shape[:2] != (rows, num_layers):
            return (
                f"dataset embeddings/{name} is {list(dataset.shape)}, not {rows} rows of {num_layers} layers"
            )
    return None


def read_column(h5: h5py.File, name: str) -> Column:
    values = h5[name][:]
    return decode_text(values) if values.dtype.kind == "S" else values


def read_failures(h5: h5py.File) -> list[tuple[int, Failure]]:
    """Failures with the batch of each."""
    failures = map(failure_from_json, _failure_lines(h5))
    return list(zip(h5["failure_batches"][:].tolist(), failures, strict=True))


def _failure_lines(h5: h5py.File) -> list[str]:
    return h5["failures"][:].tobytes().decode("ascii").splitlines()


@dataclass(frozen=True, slots=True)
class _Head:
    """A part without its embeddings, which stay on the disk."""

    layers: list[int]
    columns: dict[str, Any]
    embeddings: dict[str, _StoredArray]
    frame_offsets: np.ndarray
    failures: list[str]
    failure_batches: list[int]


def _read_head(path: Path, labels: Sequence[str]) -> _Head:
    with open_part(path) as h5:
        arrays = [(name, h5["embeddings"][name]) for name in h5.get("embeddings", ())]
        return _Head(
            layers=h5["layers"][:].tolist(),
            columns={name: read_column(h5, name) for name in column_kinds(labels)},
            embeddings={name: _StoredArray(path, name, data.shape, data.dtype) for name, data in arrays},
            frame_offsets=h5["frame_offsets"][:] if "frame_offsets" in h5 else np.zeros(1, "<i8"),
            failures=_failure_lines(h5),
            failure_batches=h5["failure_batches"][:].tolist(),
        )


# Checksums


def _digest() -> Any:
    return hashlib.sha256()


@contextlib.contextmanager
def _beside(work: Callable[..., None], *arguments: Any, worth_it: bool) -> Iterator[None]:
    """Do the work in a thread while the block runs, or before it where that is not worth a thread."""
    if not worth_it:
        work(*arguments)
        yield
        return
    with ThreadPoolExecutor(1, "checksum") as pool:
        done = pool.submit(work, *arguments)
        yield
        done.result()


def _update(digest: Any, pieces: Iterable[np.ndarray]) -> None:
    for values in pieces:
        digest.update(values)


def column_checksum(values: np.ndarray) -> str:
    digest = _digest()
    if values.dtype.kind == "S":
        digest.update(b"\0".join(values.tolist()))
    else:
        digest.update(np.ascontiguousarray(values, values.dtype.newbyteorder("<")))
    return str(digest.hexdigest())


def _embeddings_checksum(dataset: h5py.Dataset) -> str:
    digest = _digest()
    num_rows, num_layers, _ = dataset.shape
    rows = dataset.chunks[0] if dataset.chunks else max(1, num_rows)
    for layer in range(num_layers):
        for row in range(0, num_rows, rows):
            digest.update(np.ascontiguousarray(dataset[row : row + rows, layer]))
    return str(digest.hexdigest())


def checksum_problems(path: Path) -> list[str]:
    """Read every byte of a part and name the datasets whose content is not what was written."""
    problems = []
    with open_part(path) as h5:
        names: list[str] = []
        h5.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
    for name in names:
        try:
            with open_part(path) as h5:
                dataset = h5[name]
                pooled = name.startswith("embeddings/")
                found = _embeddings_checksum(dataset) if pooled else column_checksum(dataset[:])
                if found != dataset.attrs[CHECKSUM]:
                    problems.append(f"{path}: dataset {name} is not what was written")
        except BrokenPart as error:
            problems.append(f"dataset {name} of {error}")
    return problems
