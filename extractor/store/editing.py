"""The manifest's writing side: it is written once, grows, and is edited; each time it is replaced whole.

All of it under the folder's lock. See ``edition.py`` for what an edition is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from extractor.errors import StoreError
from extractor.store.edition import identity, is_of_edition, manifest_head, read_lines, write_rows
from extractor.store.run_folder import CONTENTS, MANIFEST, ROWS, ManifestRow, manifest_lines, write_text

_LAST = re.compile(r',"edition":(\d+)\}\n\Z')
_EDITED = "{path}: was edited in the meantime, by another shard or command; run the same command again"


class RunManifest:
    """``columns``: names of the labels that the manifest has now; of a new run, those asked for."""

    def __init__(self, run: Path, written: tuple[str, ...]) -> None:
        """``written``: the columns that the run began with, which its parts have."""
        self.columns = written
        self._run = run
        self._path = run / MANIFEST
        self._written = written
        self._read: tuple[int, ...] = ()  # the file that was read last, see `identity`

    def repair(self, asked: tuple[str, ...]) -> bool:
        """Bring ``rows.h5`` level with the manifest. True when ``embeddings.h5`` is of another edition."""
        head = manifest_head(self._run)
        if head is None:
            self.columns = self._written if self._path.exists() else asked
            return False
        self.columns, edition = head
        if not is_of_edition(self._run / ROWS, edition):
            self._write_rows()
        contents = self._run / CONTENTS
        return contents.exists() and not is_of_edition(contents, edition)

    def read(self) -> list[ManifestRow] | None:
        if not self._path.exists():
            return None
        lines = read_lines(self._run, self._written)
        self.columns, self._read = lines.columns, lines.identity
        return lines.rows

    def write(self, rows: Iterable[ManifestRow]) -> None:
        lines = list(manifest_lines(rows, self.columns))
        if not self._path.exists():
            _check_positions(lines)
            # Columns were others when the run began: then what counts is the manifest from the first.
            self._replace(lines, None if self.columns == self._written else 1)
        elif self._lines()[0] != lines:
            raise StoreError(
                f"{self._path}: the run has another manifest than was planned now (another shard started on "
                "other recordings); start all shards on the same recordings, or name another --out"
            )
        self._read = identity(self._path)

    def append(self, rows: Iterable[ManifestRow], planned_elsewhere: Callable[[int], bool]) -> None:
        """``planned_elsewhere``: whether a batch is one that another shard may be working on."""
        known = identity(self._path) == self._read
        lines, edition = self._lines()
        before, grown = len(lines), list(lines)
        for line in manifest_lines(rows, self.columns):
            values = json.loads(line)
            position = values["position"]
            if position > len(grown):
                raise ValueError(f"position {position} after a manifest of {len(grown)} rows")
            if position == len(grown):
                grown.append(line)
            elif line != grown[position]:
                self._check_replaceable(json.loads(grown[position]), values, planned_elsewhere)
                grown[position] = line
        _check_positions(grown[before:], before)
        if grown == lines:
            return
        if self._columns_there() != self.columns:
            raise StoreError(_EDITED.format(path=self._path))
        self._replace(grown, None if edition is None else edition + 1)
        if known:
            self._read = identity(self._path)

    def edit(self, rows: Sequence[ManifestRow], columns: Sequence[str]) -> bool:
        """Whether readers see something new."""
        columns = tuple(columns)
        _check_ids(rows)
        there, edition = self._lines()
        was = [json.loads(line) for line in there]
        known = [_with_former_ids(row, old) for row, old in zip(rows, was, strict=False)]
        lines = list(manifest_lines([*known, *rows[len(known) :]], columns))
        _check_positions(lines)
        others = identity(self._path) != self._read  # another shard was here since
        if others and lines != there[: len(lines)]:
            raise StoreError(_EDITED.format(path=self._path))
        if others or lines == there:
            self.columns = columns
            return False
        changed = _differs(was, [json.loads(line) for line in lines])
        changed |= columns != self._columns_there()
        if changed or edition is not None:
            edition = (edition or 0) + 1
        self._replace(lines, edition)
        self.columns, self._read = columns, identity(self._path)
        return changed

    def _lines(self) -> tuple[list[str], int | None]:
        """The lines as ``manifest_lines`` makes them, and the edition."""
        lines = self._path.read_text(encoding="ascii").splitlines(keepends=True)
        found = _LAST.search(lines[0]) if lines else None
        if found is None:
            return lines, None
        return [lines[0][: found.start()] + "}\n", *lines[1:]], int(found[1])

    def _columns_there(self) -> tuple[str, ...]:
        head = manifest_head(self._run)
        return self._written if head is None else head[0]

    def _replace(self, lines: Sequence[str], edition: int | None) -> None:
        if edition is None:
            write_text(self._path, lines)
            return
        first = f'{lines[0][:-2]},"edition":{edition}}}\n'  # before the last brace
        write_text(self._path, [first, *lines[1:]])
        self._write_rows()

    def _write_rows(self) -> None:
        lines = read_lines(self._run, self._written)
        assert lines.edition is not None
        write_rows(self._run, lines.rows, lines.columns, lines.edition)

    def _check_replaceable(
        self, there: Mapping[str, Any], line: Mapping[str, Any], planned_elsewhere: Callable[[int], bool]
    ) -> None:
        """Another shard may have planned the same recordings since this one read the manifest."""
        if there["id"] != line["id"]:
            raise StoreError(
                f"{self._run}: position {line['position']} is another recording than {line['id']!r}; "
                "the manifest has grown in the meantime, run the same command again"
            )
        if any(there.get(key) != line.get(key) for key in ("labels", "dropped")):
            raise StoreError(_EDITED.format(path=self._path))
        if planned_elsewhere(there["batch"]):
            raise StoreError(
                f"{self._run}: {line['id']!r} is already planned anew, by another shard; "
                "run again without --retry-failed"
            )


def _with_former_ids(row: ManifestRow, old: Mapping[str, Any]) -> ManifestRow:
    """The row with the ids that its line had, which failures in parts carry."""
    former = [(name, batch) for name, batch in old.get("former", ())]
    if old["id"] != row.utterance.id:
        former.append((old["id"], old["batch"]))
    return row if row.former == tuple(former) else replace(row, former=tuple(former))


def _check_positions(lines: Sequence[str], first: int = 0) -> None:
    for position, line in enumerate(lines, first):
        if not line.startswith(f'{{"position":{position},'):
            raise ValueError(f"manifest row {position} is out of order: {line[:40]}")


def _check_ids(rows: Iterable[ManifestRow]) -> None:
    seen: set[str] = set()
    for row in rows:
        if not row.dropped and row.utterance.id in seen:
            raise ValueError(f"id {row.utterance.id!r} is of two lines that are not dropped")
        if not row.dropped:
            seen.add(row.utterance.id)


def _differs(was: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]) -> bool:
    """Whether readers see another thing in the lines. Raises ValueError for what no edit may do."""
    if len(now) < len(was):
        raise ValueError(
            f"the manifest has {len(was)} lines, {len(now)} shall replace them; drop lines instead"
        )
    changed = False
    for old, new in zip(was, now, strict=False):
        if any(old[key] != new[key] for key in ("start", "end")):
            raise ValueError(
                f"position {old['position']} is cut as {old['id']!r}, for good; append the new cut"
            )
        if old.get("dropped") and not new.get("dropped"):
            raise ValueError(f"position {old['position']} is dropped, for good; append {new['id']!r} anew")
        changed |= any(old.get(key) != new.get(key) for key in ("id", "path", "labels", "dropped"))
    return changed
