"""What an edited run says of its rows now: its manifest's lines, and ``rows.h5`` that is derived of them.

Parts keep the labels they were written with. Once labels, columns, paths or dropped lines of the
manifest are others, its line 0 carries ``"edition": n``, and n grows by one with every change from
then on. A manifest that was never edited has none, and readers take everything from the parts.

``rows.h5`` holds ``id path dropped former batch labels/<column>`` of every position, for readers that cannot
wait for millions of lines of JSON, and the edition that it is of. The manifest is renamed first. Where
``rows.h5`` is of another edition (killed in between), is missing or damaged, the manifest itself is
read: slower, with the same answer. The next writer puts it right.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np

from extractor.errors import StoreError
from extractor.store.aside import aside, interrupt_later
from extractor.store.parts import (
    CHUNK_BYTES,
    LIBVER,
    BrokenPart,
    decode_text,
    label_dataset,
    open_part,
)
from extractor.store.run_folder import FORMAT, MANIFEST, ROWS, ManifestRow, read_head, read_manifest, to_json

_READINGS = 100  # of a manifest, before one gives up on one that changes all the time


@dataclass(frozen=True, slots=True)
class Lines:
    """A manifest as it was read. ``identity`` is that of the file: it is only ever replaced whole."""

    rows: list[ManifestRow]
    columns: tuple[str, ...]
    edition: int | None
    identity: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Edition:
    """The rows of an edited run by position, as its manifest has them. Arrays are ``[positions]``."""

    path: Path  # rows.h5
    number: int
    columns: tuple[str, ...]
    dropped: np.ndarray  # bool
    batches: np.ndarray  # int64
    _texts: dict[str, np.ndarray] = field(default_factory=dict)
    _called: dict[str, list[tuple[int, int]]] = field(default_factory=dict)  # see `line_of`

    def text(self, name: str) -> np.ndarray:
        """``id``, ``path``, ``dropped``, ``former`` or ``labels/<column>`` of every position, as str.

        Raises ``StoreError`` when the run was edited since.
        """
        if name not in self._texts:
            try:
                with open_part(self.path) as h5:
                    values = _read_text(h5[name]) if int(h5.attrs["edition"]) == self.number else None
            except (FileNotFoundError, BrokenPart):
                values = None  # derived, so nothing is lost: what counts is the manifest
            if values is None:
                self._texts.update(self._from_manifest())
            else:
                self._texts[name] = values
        return self._texts[name]

    def live(self, positions: np.ndarray) -> np.ndarray:
        """bool: which of these positions are lines of this edition that are not dropped."""
        known = positions < len(self.dropped)
        return known & ~self.dropped[np.where(known, positions, 0)]

    def line_of(self, batch: int, name: str) -> int | None:
        """Position of the line that was called ``name`` when it failed in ``batch``; None if it is dropped.

        Several lines may have had one id, one after the other: of a recording that was replaced, or that
        has another id now. Batches count upwards, so each is the line's whose last one comes first.
        """
        if not self._called:
            for position, key in enumerate(self.text("id")):
                last = int(self.batches[position]) if self.dropped[position] else sys.maxsize
                self._called.setdefault(key, []).append((last, position))
            for position in np.flatnonzero(self.text("former") != "").tolist():
                for key, last in json.loads(self.text("former")[position]):
                    self._called.setdefault(key, []).append((last, position))
        lines = [position for last, position in sorted(self._called.get(name, ())) if last >= batch]
        return lines[0] if lines and not self.dropped[lines[0]] else None

    def _from_manifest(self) -> dict[str, np.ndarray]:
        lines = read_lines(self.path.parent, self.columns)
        if lines.edition != self.number:
            raise StoreError(f"{self.path.parent}: was edited since it was opened; open it again")
        return {name: _objects(values) for name, values in _texts(lines.rows, lines.columns).items()}


def read_edition(run: Path) -> Edition | None:
    """None for a run that was never edited: its parts say all."""
    head = manifest_head(run)
    if head is None:
        return None
    columns, number = head
    path = run / ROWS
    try:
        with open_part(path) as h5:
            if int(h5.attrs["edition"]) == number:
                dropped = np.asarray(h5["dropped"][:]) != b""
                return Edition(path, number, columns, dropped, h5["batch"][:])
    except (FileNotFoundError, BrokenPart):
        pass  # derived, so nothing is lost: what counts is the manifest
    lines = read_lines(run, columns)
    assert lines.edition is not None
    texts = {name: _objects(values) for name, values in _texts(lines.rows, lines.columns).items()}
    return Edition(path, lines.edition, lines.columns, texts["dropped"] != "", _batches(lines.rows), texts)


# The manifest's side


def manifest_head(run: Path) -> tuple[tuple[str, ...], int] | None:
    """Columns and edition of an edited manifest, from its first line; None where there is none."""
    try:
        columns, edition = read_head(run / MANIFEST)
    except FileNotFoundError:
        return None
    return None if edition is None else (columns, edition)


def read_lines(run: Path, written: Sequence[str]) -> Lines:
    """The whole manifest, of one moment. ``written``: the run's columns, for one that was never edited."""
    path = run / MANIFEST
    for _ in range(_READINGS):
        before = identity(path)
        columns, edition = manifest_head(run) or (tuple(written), None)
        rows = read_manifest(path, columns)
        if identity(path) == before:
            return Lines(rows, columns, edition, before)
    raise StoreError(f"{path}: changes as it is read")


def identity(path: Path) -> tuple[int, ...]:
    there = path.stat()
    return (there.st_ino, there.st_mtime_ns, there.st_size)


# rows.h5


def is_of_edition(path: Path, edition: int) -> bool:
    """Whether a derived file (``rows.h5``, ``embeddings.h5``) is of this edition."""
    try:
        with open_part(path) as h5:
            return int(h5.attrs.get("edition", 0)) == edition
    except (FileNotFoundError, BrokenPart):
        return False


def write_rows(run: Path, rows: Sequence[ManifestRow], columns: Sequence[str], edition: int) -> None:
    """(Re)write ``rows.h5``. Raises ``StoreUnwritable``."""
    with aside(run / ROWS) as file, interrupt_later(), h5py.File(file, "w", libver=LIBVER) as h5:
        for name, values in _texts(rows, columns).items():
            write_text_column(h5, name, values)
        h5.create_dataset("batch", data=_batches(rows), fletcher32=bool(rows), chunks=bool(rows) or None)
        h5.attrs.update({"format": FORMAT, "kind": "rows", "edition": edition})


def rows_problem(path: Path, lines: Lines) -> str | None:
    """What is wrong with ``rows.h5`` beside an edited manifest. Raises ``BrokenPart``."""
    with open_part(path) as h5:
        if int(h5.attrs["edition"]) != lines.edition:
            return f"is of edition {h5.attrs['edition']}, the manifest is of edition {lines.edition}"
        for name, values in _texts(lines.rows, lines.columns).items():
            if _read_text(h5[name]).tolist() != values:
                return f"its {name} is not the manifest's"
        if not np.array_equal(h5["batch"][:], _batches(lines.rows)):
            return "its batch is not the manifest's"
    return None


def write_text_column(h5: h5py.File, name: str, values: Sequence[str]) -> None:
    """Texts of a fixed width, a block at a time: one long text must not make all of them long in memory."""
    encoded = [value.encode("utf-8", "surrogatepass") for value in values]
    width = max(map(len, encoded), default=1) or 1
    dtype = h5py.string_dtype("utf-8", width)
    if not values:
        h5.create_dataset(name, (0,), dtype)
        return
    rows = _block(len(values), width)
    dataset = h5.create_dataset(
        name, (len(values),), dtype, chunks=(rows,), compression="gzip", compression_opts=1, fletcher32=True
    )
    for start in range(0, len(values), rows):
        dataset[start : start + rows] = np.array(encoded[start : start + rows], dtype)


def _read_text(dataset: h5py.Dataset) -> np.ndarray:
    out = np.empty(len(dataset), object)
    rows = _block(len(dataset), dataset.dtype.itemsize)
    for start in range(0, len(dataset), rows):
        out[start : start + rows] = decode_text(dataset[start : start + rows])
    return out


def _block(num_rows: int, width: int) -> int:
    return max(1, min(num_rows, CHUNK_BYTES // width))


def _texts(rows: Sequence[ManifestRow], columns: Sequence[str]) -> dict[str, list[str]]:
    of_row: dict[str, Callable[[ManifestRow], str]] = {
        "id": lambda row: row.utterance.id,
        "path": lambda row: row.utterance.path,
        "dropped": lambda row: row.dropped,
        "former": lambda row: to_json(row.former) if row.former else "",
    }
    texts = {name: [value(row) for row in rows] for name, value in of_row.items()}
    for k, column in enumerate(columns):
        texts[label_dataset(column)] = [row.utterance.labels[k] for row in rows]
    return texts


def _batches(rows: Sequence[ManifestRow]) -> np.ndarray:
    return np.array([row.batch for row in rows], np.int64)


def _objects(values: Sequence[str]) -> np.ndarray:
    out = np.empty(len(values), object)
    out[:] = values
    return out
