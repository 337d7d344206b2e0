"""What a run says of its rows now: its manifest, edited, and ``rows.h5`` that is derived of it.

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
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import h5py
import numpy as np

from extractor.errors import StoreError
from extractor.store.aside import aside, interrupt_later
from extractor.store.hdf5 import LIBVER, BrokenPart, chunk_rows, decode_text, label_dataset, open_part
from extractor.store.run_folder import (
    CONTENTS,
    FORMAT,
    MANIFEST,
    ROWS,
    Lines,
    ManifestRow,
    identity,
    read_head,
    read_lines,
    to_json,
    write_manifest,
)

_EDITED = "{path}: was edited in the meantime, by another shard or command; run the same command again"


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


def manifest_head(run: Path) -> tuple[tuple[str, ...], int] | None:
    """Columns and edition of an edited manifest, from its first line; None where there is none."""
    try:
        columns, edition = read_head(run / MANIFEST)
    except FileNotFoundError:
        return None
    return None if edition is None else (columns, edition)


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


def rows_problem(run: Path, lines: Lines) -> str | None:
    """What is wrong with ``rows.h5`` beside an edited manifest. It is derived: it may be missing."""
    path = run / ROWS
    if lines.edition is None or not path.exists():
        return None
    problem = None
    try:
        with open_part(path) as h5:
            edition = int(h5.attrs["edition"])
            if edition != lines.edition:
                problem = f"is of edition {edition}, the manifest is of edition {lines.edition}"
            else:
                found = {name: _read_text(h5[name]).tolist() for name in _texts([], lines.columns)}
                found["batch"] = h5["batch"][:].tolist()
                expected = _texts(lines.rows, lines.columns) | {"batch": _batches(lines.rows).tolist()}
                wrong = next((name for name, values in expected.items() if found[name] != values), None)
                problem = wrong and f"its {wrong} is not the manifest's"
    except BrokenPart as error:
        problem = f"damaged ({error.__cause__})"
    return problem and f"{path}: {problem}; delete this file: whoever next writes to the run makes it anew"


def write_text_column(h5: h5py.File, name: str, values: Sequence[str]) -> None:
    """Texts of a fixed width, a block at a time: one long text must not make all of them long in memory."""
    encoded = [value.encode("utf-8", "surrogatepass") for value in values]
    width = max(map(len, encoded), default=1) or 1
    dtype = h5py.string_dtype("utf-8", width)
    if not values:
        h5.create_dataset(name, (0,), dtype)
        return
    rows = chunk_rows(len(values), width)
    dataset = h5.create_dataset(
        name, (len(values),), dtype, chunks=(rows,), compression="gzip", compression_opts=1, fletcher32=True
    )
    for start in range(0, len(values), rows):
        dataset[start : start + rows] = np.array(encoded[start : start + rows], dtype)


def _read_text(dataset: h5py.Dataset) -> np.ndarray:
    out = np.empty(len(dataset), object)
    rows = chunk_rows(len(dataset), dataset.dtype.itemsize)
    for start in range(0, len(dataset), rows):
        out[start : start + rows] = decode_text(dataset[start : start + rows])
    return out


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


class RunManifest:
    """The manifest's writing side, under the folder's lock: written once, grown, edited, each time whole.

    ``columns``: names of the labels that it has now; of a new run, those asked for.
    """

    def __init__(self, run: Path, written: tuple[str, ...]) -> None:
        """``written``: the columns that the run began with, which its parts have."""
        self.columns = written
        self._run = run
        self._path = run / MANIFEST
        self._written = written
        self._seen: Lines | None = None  # what was read or written last

    def repair(self, asked: tuple[str, ...]) -> bool:
        """Bring ``rows.h5`` level with the manifest. True when ``embeddings.h5`` is of another edition."""
        head = manifest_head(self._run)
        if head is None:
            self.columns = self._written if self._path.exists() else asked
            return False
        self.columns, edition = head
        if not is_of_edition(self._run / ROWS, edition):
            lines = read_lines(self._run, self._written)
            write_rows(self._run, lines.rows, lines.columns, edition)
        contents = self._run / CONTENTS
        return contents.exists() and not is_of_edition(contents, edition)

    def read(self) -> list[ManifestRow] | None:
        if not self._path.exists():
            return None
        lines = read_lines(self._run, self._written)
        self._know(lines.rows, lines.columns, lines.edition)
        return lines.rows

    def write(self, rows: Sequence[ManifestRow]) -> None:
        if not self._path.exists():
            _check_rows(rows)
            # Columns were others when the run began: then what counts is the manifest from the first.
            self._replace(rows, self.columns, None if self.columns == self._written else 1)
            return
        there = read_lines(self._run, self._written)
        if (there.rows, there.columns) != ([*rows], self.columns):
            raise StoreError(
                f"{self._path}: the run has another manifest than was planned now (another shard started on "
                "other recordings); start all shards on the same recordings, or name another --out"
            )
        self._know(rows, there.columns, there.edition)

    def append(self, rows: Sequence[ManifestRow], done: Collection[int] | None) -> None:
        """``done``: batches of all shards; another may be working on any other. None: there is no other."""
        there, others = self._there()
        grown = list(there.rows)
        for row in rows:
            if row.position > len(grown):
                raise ValueError(f"position {row.position} after a manifest of {len(grown)} rows")
            if row.position == len(grown):
                grown.append(row)
            elif row != grown[row.position]:
                self._check_replaceable(grown[row.position], row, done)
                grown[row.position] = row
        if grown == there.rows:
            return
        if self.columns != there.columns:
            raise StoreError(_EDITED.format(path=self._path))
        self._replace(grown, there.columns, None if there.edition is None else there.edition + 1)
        if others:
            self._seen = None  # the caller does not know the other's rows

    def edit(self, rows: Sequence[ManifestRow], columns: Sequence[str]) -> bool:
        """Whether readers see something new."""
        columns = tuple(columns)
        _check_rows(rows)
        there, others = self._there()
        rows = list(rows)
        for k, (row, old) in enumerate(zip(rows, there.rows, strict=False)):
            former = old.former  # ids that the line had, which failures in parts carry
            if old.utterance.id != row.utterance.id:
                former = (*former, (old.utterance.id, old.batch))
            rows[k] = row if row.former == former else replace(row, former=former)
        if others:
            if columns != there.columns or rows != there.rows[: len(rows)]:
                raise StoreError(_EDITED.format(path=self._path))
            self.columns = columns
            return False
        if columns == there.columns and rows == there.rows:
            return False
        changed = _differs(there, rows, columns)
        edition = there.edition
        if changed or edition is not None:
            edition = (edition or 0) + 1
        self._replace(rows, columns, edition)
        return changed

    def _there(self) -> tuple[Lines, bool]:
        """The manifest as it is, and whether another shard has replaced it since it was read."""
        if self._seen is not None and self._seen.identity == identity(self._path):
            return self._seen, False
        return read_lines(self._run, self._written), True

    def _know(self, rows: Sequence[ManifestRow], columns: tuple[str, ...], edition: int | None) -> None:
        self.columns = columns
        # Whoever has the rows may change the list.
        self._seen = Lines(list(rows), columns, edition, identity(self._path))

    def _replace(self, rows: Sequence[ManifestRow], columns: tuple[str, ...], edition: int | None) -> None:
        write_manifest(self._run, rows, columns, edition)
        self._know(rows, columns, edition)
        if edition is not None:
            write_rows(self._run, rows, columns, edition)

    def _check_replaceable(self, there: ManifestRow, row: ManifestRow, done: Collection[int] | None) -> None:
        """Another shard may have planned the same recordings since this one read the manifest."""
        name = row.utterance.id
        if there.utterance.id != name:
            raise StoreError(
                f"{self._run}: position {row.position} is another recording than {name!r}; "
                "the manifest has grown in the meantime, run the same command again"
            )
        if (there.utterance.labels, there.dropped) != (row.utterance.labels, row.dropped):
            raise StoreError(_EDITED.format(path=self._path))
        if done is not None and there.batch >= 0 and there.batch not in done:
            raise StoreError(
                f"{self._run}: {name!r} is already planned anew, by another shard; "
                "run again without --retry-failed"
            )


def _check_rows(rows: Iterable[ManifestRow]) -> None:
    seen: set[str] = set()
    for position, row in enumerate(rows):
        if row.position != position:
            raise ValueError(f"manifest row {position} is out of order: its position is {row.position}")
        if not row.dropped and row.utterance.id in seen:
            raise ValueError(f"id {row.utterance.id!r} is of two lines that are not dropped")
        if not row.dropped:
            seen.add(row.utterance.id)


def _differs(there: Lines, rows: Sequence[ManifestRow], columns: tuple[str, ...]) -> bool:
    """Whether readers see another thing in the rows. Raises ValueError for what no edit may do."""
    if len(rows) < len(there.rows):
        raise ValueError(
            f"the manifest has {len(there.rows)} lines, {len(rows)} shall replace them; drop lines instead"
        )
    changed = columns != there.columns
    for old, new in zip(there.rows, rows, strict=False):
        was, now = old.utterance, new.utterance
        if was.span != now.span:
            raise ValueError(f"position {old.position} is cut as {was.id!r}, for good; append the new cut")
        if old.dropped and not new.dropped:
            raise ValueError(f"position {old.position} is dropped, for good; append {now.id!r} anew")
        changed |= was != now or old.dropped != new.dropped
    return changed
