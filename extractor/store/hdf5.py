"""HDF5 files of a run: their format, how they are opened and what is checked before they are believed.

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

HDF5 can keep a dataset's values in another file, by external storage, by a link or by a virtual dataset.
A part has its values itself, whatever its origin says; the table of contents alone is virtual, over
the parts beside it (``contents.py``). A file that would have others read is refused.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from extractor.errors import StoreError
from extractor.store.run_folder import FORMAT, PARTS, RUN, failure_from_json, lowest_batch
from extractor.types import Failure

CHUNK_BYTES = 1 << 20
# HDF5 1.10 is the oldest that knows virtual datasets; newer formats would shut readers out.
LIBVER = ("v110", "v110")
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

_DEPTH = 1  # of groups below the root: embeddings, labels
_PART = re.compile(rf"{PARTS}/part-\d{{8,}}\.h5")  # a source of the table of contents, relative to itself


class BrokenPart(StoreError):
    """The file is cut, damaged or not a part; what was in it has to be computed again."""


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


def chunk_rows(num_rows: int, row_bytes: int) -> int:
    return max(1, min(num_rows, CHUNK_BYTES // max(1, row_bytes)))


# Text. `surrogatepass` keeps every str as it is, also file names that are no valid UTF-8.


def encode_text(values: Sequence[str]) -> np.ndarray:
    encoded = [value.encode("utf-8", "surrogatepass") for value in values]
    width = max(map(len, encoded), default=1) or 1
    return np.array(encoded, dtype=h5py.string_dtype("utf-8", width))


def decode_text(values: np.ndarray) -> list[str]:
    return [value.decode("utf-8", "surrogatepass") for value in values.tolist()]


# Opening


@contextlib.contextmanager
def open_part(path: Path) -> Iterator[h5py.File]:
    """Open a finished file for reading.

    Raises ``BrokenPart`` when its content is damaged, there or in the block, and leaves alone
    what is not the file's fault (it vanished, permissions, too many open files, a failing disk):
    those carry an errno, and what they hide may be perfectly good. Raises ``StoreError`` for a file
    that would have others read.
    """
    try:
        there = path.stat()
        problem = _points_outside(path, there.st_dev, there.st_ino, there.st_size, there.st_mtime_ns)
        if problem:
            raise StoreError(
                f"{path}: {problem}, which in no file of a run is so: hser did not write it. Take the run"
                " from where it is from again, or delete this file"
            )
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
    in_run = path.parent.name == PARTS and (path.parent.parent / RUN).exists()
    if in_run and lowest_batch(path.name) is not None:
        again = "delete this file and run the same command again: its recordings are then computed anew"
        return f"damaged ({cause}); {again}"
    return (
        f"not a run or packed file, or damaged ({cause}); name a run's folder, or a file of `hser-store pack`"
    )


# Readers open a file for every piece that they read, and this takes ten times as long as opening.
@functools.lru_cache(maxsize=1 << 16)
def _points_outside(path: Path, *_identity: int) -> str | None:
    with h5py.File(path, "r", locking=False) as h5:
        contents = h5.attrs.get("kind") == "contents" and path.parent.name != PARTS
        groups = [(h5.id, "", 0)]
        while groups:
            group, prefix, depth = groups.pop()
            for k in range(group.get_num_objs()):
                raw = group.get_objname_by_idx(k)
                name = f"{prefix}{raw.decode('utf-8', 'backslashreplace')}"
                # Hard links are names of what is in the file.
                if group.links.get_info(raw).type != h5py.h5l.TYPE_HARD:
                    return f"{name} is a link to something else"
                item = h5py.h5o.open(group, raw)
                if isinstance(item, h5py.h5g.GroupID):
                    if depth == _DEPTH:
                        return f"{name} is a group in a group"
                    groups.append((item, f"{name}/", depth + 1))
                elif isinstance(item, h5py.h5d.DatasetID):
                    problem = _kept_outside(item, contents)
                    if problem:
                        return f"dataset {name} {problem}"
    return None


def _kept_outside(dataset: h5py.h5d.DatasetID, contents: bool) -> str | None:
    made = dataset.get_create_plist()
    if made.get_external_count():
        return "is kept in another file"
    if made.get_layout() != h5py.h5d.VIRTUAL:
        return None
    sources = (made.get_virtual_filename(k) for k in range(made.get_virtual_count()))
    foreign = next((source for source in sources if not contents or not _PART.fullmatch(source)), None)
    return None if foreign is None else f"is read from {foreign!r}"


# Reading


def read_rows(dataset: h5py.Dataset, rows: np.ndarray, layers: int | slice) -> np.ndarray:
    """Rows in any order, of one layer ``[n, D']`` or several; read a chunk at a time, as they lie."""
    out = np.empty((len(rows), *dataset[:0, layers].shape[1:]), dataset.dtype)
    rows_a_chunk = dataset.chunks[0] if dataset.chunks else 1
    order = np.argsort(rows, kind="stable")
    cuts = np.flatnonzero(np.diff(rows[order] // rows_a_chunk)) + 1
    for group in np.split(order, cuts) if len(rows) else ():
        start = rows[group[0]] // rows_a_chunk * rows_a_chunk
        out[group] = dataset[start : start + rows_a_chunk, layers][rows[group] - start]
    return out


def read_column(h5: h5py.File, name: str) -> Column:
    values = h5[name][:]
    return decode_text(values) if values.dtype.kind == "S" else values


def read_failures(h5: h5py.File) -> list[tuple[int, Failure]]:
    """Failures with the batch of each."""
    lines = h5["failures"][:].tobytes().decode("ascii").splitlines()
    return list(zip(h5["failure_batches"][:].tolist(), map(failure_from_json, lines), strict=True))


# Checking


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


def column_checksum(values: np.ndarray) -> str:
    data: Any = (
        b"\0".join(values.tolist())
        if values.dtype.kind == "S"
        else np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    )
    return hashlib.sha256(data).hexdigest()


def _embeddings_checksum(dataset: h5py.Dataset) -> str:
    digest: Any = hashlib.sha256()
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
