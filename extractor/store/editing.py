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
from extractor.store.edition import Lines, identity, is_of_edition, manifest_head, read_lines, write_rows
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
        self._seen: Lines | None = None  # what was read or written last

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
        self._know(lines.rows, lines.columns, lines.edition, lines.identity)
        return lines.rows

    def write(self, rows: Sequence[ManifestRow]) -> None:
        lines = list(manifest_lines(rows, self.columns))
        if not self._path.exists():
            _check_rows(rows)
            # Columns were others when the run began: then what counts is the manifest from the first.
            self._replace(lines, rows, self.columns, None if self.columns == self._written else 1)
        elif self._lines()[0] != lines:
            raise StoreError(
                f"{self._path}: the run has another manifest than was planned now (another shard started on "
                "other recordings); start all shards on the same recordings, or name another --out"
            )
        else:
            self._know(rows, self.columns, self._lines()[1], identity(self._path))

    def append(self, rows: Sequence[ManifestRow], planned_elsewhere: Callable[[int], bool]) -> None:
        """``planned_elsewhere``: whether a batch is one that another shard may be working on."""
        lines, edition = self._lines()
        grown = list(lines)
        for row, line in zip(rows, manifest_lines(rows, self.columns), strict=True):
            if row.position > len(grown):
                raise ValueError(f"position {row.position} after a manifest of {len(grown)} rows")
            if row.position == len(grown):
                grown.append(line)
            elif line != grown[row.position]:
                self._check_replaceable(json.loads(grown[row.position]), json.loads(line), planned_elsewhere)
                grown[row.position] = line
        if grown == lines:
            return
        there = manifest_head(self._run)
        if self.columns != (self._written if there is None else there[0]):
            raise StoreError(_EDITED.format(path=self._path))
        seen = self._seen
        if seen is None or seen.identity != identity(self._path):  # another shard was here since
            write_text(self._path, _with_edition(grown, None if edition is None else edition + 1))
            if edition is not None:
                self._write_rows()
            return
        by_position = dict(enumerate(seen.rows)) | {row.position: row for row in rows}
        self._replace(
            grown, list(by_position.values()), seen.columns, None if edition is None else edition + 1
        )

    def edit(self, rows: Sequence[ManifestRow], columns: Sequence[str]) -> bool:
        """Whether readers see something new."""
        columns, seen = tuple(columns), self._seen
        _check_rows(rows)
        others = seen is None or seen.identity != identity(self._path)  # another shard was here since
        there = read_lines(self._run, self._written) if seen is None or others else seen
        known = [_with_former_ids(row, old) for row, old in zip(rows, there.rows, strict=False)]
        rows = [*known, *rows[len(known) :]]
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
        self._replace(list(manifest_lines(rows, columns)), rows, columns, edition)
        return changed

    def _know(
        self,
        rows: Sequence[ManifestRow],
        columns: tuple[str, ...],
        edition: int | None,
        identity: tuple[int, ...],
    ) -> None:
        self.columns = columns
        self._seen = Lines(list(rows), columns, edition, identity)  # whoever has the rows may change the list

    def _lines(self) -> tuple[list[str], int | None]:
        """The lines as ``manifest_lines`` makes them, and the edition."""
        lines = self._path.read_text(encoding="ascii").splitlines(keepends=True)
        found = _LAST.search(lines[0]) if lines else None
        if found is None:
            return lines, None
        return [lines[0][: found.start()] + "}\n", *lines[1:]], int(found[1])

    def _replace(
        self,
        lines: Sequence[str],
        rows: Sequence[ManifestRow],
        columns: tuple[str, ...],
        edition: int | None,
    ) -> None:
        write_text(self._path, _with_edition(lines, edition))
        self._know(rows, columns, edition, identity(self._path))
        if edition is not None:
            write_rows(self._run, rows, columns, edition)

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


def _with_edition(lines: Sequence[str], edition: int | None) -> Sequence[str]:
    # Before the last brace of line 0
    return lines if edition is None else [f'{lines[0][:-2]},"edition":{edition}}}\n', *lines[1:]]


def _with_former_ids(row: ManifestRow, old: ManifestRow) -> ManifestRow:
    """The row with the ids that its line had, which failures in parts carry."""
    former = old.former
    if old.utterance.id != row.utterance.id:
        former = (*former, (old.utterance.id, old.batch))
    return row if row.former == former else replace(row, former=former)


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
        if (was.start, was.end) != (now.start, now.end):
            raise ValueError(f"position {old.position} is cut as {was.id!r}, for good; append the new cut")
        if old.dropped and not new.dropped:
            raise ValueError(f"position {old.position} is dropped, for good; append {now.id!r} anew")
        changed |= was != now or old.dropped != new.dropped
    return changed
