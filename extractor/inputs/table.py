# ruff: noqa: PTH100, PTH117, PTH118, PTH120, PTH123
# A path is a str here: a Path a row would cost more than all the rest.
"""Manifest files, ``.csv``, ``.tsv`` and ``.jsonl`` with a row a recording; and what an input is.

``path`` (relative to the file's own folder), optional ``id emotion speaker split text start end``
(seconds), and any further column, kept as a label. Everything that is wrong with a file is refused
here, with line numbers (the header is line 1); a recording that does not exist is not: it becomes an
error row of the run.
"""

from __future__ import annotations

import csv
import difflib
import json
import math
import os
import unicodedata
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from sys import intern
from typing import TypeAlias

from extractor.errors import InputError
from extractor.inputs.corpora.recognise import Piece
from extractor.inputs.corpora.table import Corpus
from extractor.inputs.corpora.words import known
from extractor.types import Seconds

BASE_COLUMNS = ("emotion", "emotion_raw", "speaker")
# What rows are told apart and grouped by: "nan" and the like are no value there. A text stays as it is.
_NAMES = ("speaker", "split", "session", "gender", "age")
_NOT_LABELS = ("path", "id", "start", "end")
_KNOWN = (*_NOT_LABELS, *BASE_COLUMNS, "split", "text")  # found in a header whatever their case
_PATH_LIKE = ("file", "filename", "filepath", "file_path", "file_name", "wav", "wav_path", "audio")
MAX_PROBLEMS = 10
LONGEST_SHARED = 40  # characters: longer labels are texts, which seldom repeat

NO_CORPUS = "files"  # `Manifest.corpus` of plain files; as the wanted corpus: read no labels from names

Span: TypeAlias = tuple[Seconds | None, Seconds | None]
WHOLE: Span = (None, None)


@dataclass
class Input:
    """Recordings that came in together. The lists are aligned; an empty one says nothing of any."""

    name: str  # the input as it was given
    root: str  # folder that ids and labels from folder names are relative to
    paths: list[str]
    spans: list[Span] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)  # given by the user; "" where not
    corpus_ids: list[str] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    labels: list[tuple[str, ...]] = field(default_factory=list)
    lines: array[int] = field(default_factory=lambda: array("q"))  # in a manifest file
    pieces: list[Piece] = field(default_factory=list)  # corpora that the recordings are of
    searched: bool = False  # a folder: its recordings were found, not named
    notes: list[str] = field(default_factory=list)
    label_notes: list[str] = field(default_factory=list)

    @property
    def is_manifest(self) -> bool:
        return bool(self.lines)

    @property
    def corpora(self) -> list[str]:
        """Names of the corpora that labels were read from."""
        return [piece.corpus.name for piece in self.pieces] if self.corpus_ids else []

    def corpus_of_rows(self) -> list[Corpus | None]:
        of_row: list[Corpus | None] = [None] * len(self.paths)
        for piece in self.pieces:
            for row in piece.rows:
                of_row[row] = piece.corpus
        return of_row

    def values(self, column: str) -> list[str]:
        """One column of the labels; empty where there is none of this name."""
        if column not in self.columns:
            return []
        at = self.columns.index(column)
        return [row[at] for row in self.labels]

    def replace(self, column: str, values: Sequence[str]) -> None:
        """Gives a column, where it is there, other values."""
        if column in self.columns:
            at = self.columns.index(column)
            self.labels = [
                row if row[at] == value else (*row[:at], value, *row[at + 1 :])
                for row, value in zip(self.labels, values, strict=True)
            ]

    def span(self, i: int) -> Span:
        return self.spans[i] if self.spans else WHOLE


class _Problems:
    """What is wrong with a manifest file: a user mends ten lines at a time, not one."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.found: list[str] = []

    def add(self, line: int, what: str) -> None:
        self.found.append(f"line {line}: {what}")
        if len(self.found) >= MAX_PROBLEMS:
            self.found.append("there may be more")
            self.stop()

    def stop(self) -> None:
        if self.found:
            raise InputError("\n  ".join([f"{self.file}: not a usable manifest", *self.found]))


# line, path, id, start, end, labels
_Record: TypeAlias = tuple[int, str, str, object, object, list[str]]


def read_table(name: str) -> Input:
    file = os.path.abspath(name)
    source = Input(name, os.path.dirname(file), [])
    problems = _Problems(name)
    names: list[str] = []
    records = _json_records if name.lower().endswith(".jsonl") else _csv_records
    try:
        _take(records(file, names, problems), source, problems)
    except UnicodeDecodeError:
        problems.add(_undecodable_line(file), "not UTF-8; save the file as UTF-8")
    except OSError as error:
        raise InputError(f"{name}: cannot be read: {error.strerror}") from error
    problems.stop()
    if not source.paths:
        raise InputError(f"{name}: not a usable manifest\n  line 1: no recording in it")
    _name_columns(source, names)
    return source


def _take(records: Iterator[_Record], source: Input, problems: _Problems) -> None:
    """Checks each record and appends it to ``source``."""
    folder = os.path.join(source.root, "")
    first_line: dict[str, int] = {}
    for line, path, name, start, end, labels in records:
        if not path.strip():
            problems.add(line, "'path' is empty")
            continue
        span: Span = WHOLE
        if start not in ("", None) or end not in ("", None):
            try:
                span = _seconds("start", start), _seconds("end", end)
            except ValueError as error:
                problems.add(line, str(error))
                continue
            if span[1] is not None and span[1] <= (span[0] or 0.0):
                problems.add(line, f"'end' ({span[1]:g}) is not after 'start' ({span[0] or 0:g})")
                continue
        if name:
            before = first_line.setdefault(name, line)
            if before != line:
                problems.add(line, f"the id {name!r} is taken by line {before}")
                continue
        path = path if os.path.isabs(path) else folder + path
        if os.sep != "/" or "//" in path or "/." in path or path[-1] == "/":  # it has something to resolve
            path = os.path.abspath(path)
        source.paths.append(path)
        source.ids.append(name)
        source.spans.append(span)
        source.lines.append(line)
        source.labels.append(tuple([intern(x) if len(x) <= LONGEST_SHARED else x for x in labels]))


def _seconds(name: str, value: object) -> Seconds | None:
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        number = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{name!r} is not a number of seconds: {value!r}") from None
    if not math.isfinite(number) or number < 0:
        raise ValueError(f"{name!r} must be zero or more seconds, not {value!r}")
    return number


def _header(cells: list[str]) -> list[str]:
    """Column names; those that mean something are found in any case, "Emotion" as "emotion"."""
    names = [cell.strip() for cell in cells]
    return [intern(name.lower() if name.lower() in _KNOWN else name) for name in names]


def _csv_records(file: str, names: list[str], problems: _Problems) -> Iterator[_Record]:
    delimiter = "\t" if file.lower().endswith(".tsv") else ","
    with open(file, encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(_without_nul(stream, problems), delimiter=delimiter, strict=True)
        line = 0
        try:
            header = _header(next(reader, []))
            if not _usable_header(header, delimiter, problems):
                return
            column = {name: header.index(name) for name in _NOT_LABELS if name in header}
            path_at, id_at = column["path"], column.get("id", -1)
            start_at, end_at = column.get("start", -1), column.get("end", -1)
            # a column without a name is a table's row number, as pandas writes it
            labels_at = [i for i, name in enumerate(header) if name and name not in _NOT_LABELS]
            names.extend(header[i] for i in labels_at)
            line = reader.line_num
            for cells in reader:
                line, after = reader.line_num, line + 1  # a quoted cell may span lines: `after` is its first
                if len(cells) != len(header):
                    if cells and any(map(str.strip, cells)):
                        problems.add(after, f"{len(cells)} cells where the header has {len(header)}")
                    continue
                labels = [cells[i].strip() for i in labels_at]
                cells.append("")  # of the columns that are not there: -1 is their index
                yield after, cells[path_at], cells[id_at].strip(), cells[start_at], cells[end_at], labels
        except csv.Error as error:
            problems.add(line + 1, f"cannot be read as a table: {error}")


def _without_nul(lines: Iterable[str], problems: _Problems) -> Iterator[str]:
    """The lines up to one with a NUL, which neither a path nor the store can hold."""
    for line, text in enumerate(lines, 1):
        if "\0" in text:
            problems.add(line, "contains a NUL byte; is this a text file?")
            return
        yield text


def _usable_header(header: list[str], delimiter: str, problems: _Problems) -> bool:
    if not header:
        problems.add(1, "no header; a manifest begins with the names of its columns, 'path' among them")
        return False
    twice = sorted({name for name in header if name and header.count(name) > 1})
    if twice:
        problems.add(1, f"more than one column {', '.join(map(repr, twice))}")
        return False
    if "path" in header:
        return True
    problems.add(1, f"no column 'path' (found: {', '.join(header)}){_near_path(header)}")
    other = {",": ";\t", "\t": ",;"}[delimiter]
    if len(header) == 1 and any(character in header[0] for character in other):
        problems.add(1, "cells are parted by commas in .csv and by tabs in .tsv")
    return False


def _near_path(names: Sequence[str]) -> str:
    near = [name for name in names if name.lower() in _PATH_LIKE]
    near += [name for name in difflib.get_close_matches("path", names, cutoff=0.5) if name not in near]
    return f"; rename {' or '.join(map(repr, near))} to 'path'" if near else ""


def _json_records(file: str, names: list[str], problems: _Problems) -> Iterator[_Record]:
    position: dict[str, int] = {}  # of a label; lines may bring new ones
    with open(file, encoding="utf-8-sig") as stream:
        for line, text in enumerate(_without_nul(stream, problems), 1):
            if not text.strip():
                continue
            try:
                record = json.loads(text)
            except (json.JSONDecodeError, RecursionError) as error:
                problems.add(line, f"not JSON: {error.msg if isinstance(error, ValueError) else error}")
                continue
            if not isinstance(record, dict):
                problems.add(line, 'not a JSON object such as {"path": "a.wav"}')
                continue
            if isinstance(record.get("labels"), dict):
                # a run's own manifest.jsonl: what is beside "labels" is the run's, not the recording's
                if record.get("dropped"):
                    continue
                record = record["labels"] | {key: record[key] for key in _NOT_LABELS if key in record}
            record = dict(zip(_header(list(record)), record.values(), strict=True))
            if not isinstance(record.get("path"), str) or "\0" in record["path"]:
                found = ", ".join(record) or "none"
                problems.add(line, f"no 'path' with a text (found: {found}){_near_path(list(record))}")
                continue
            cells = [""] * len(names)
            for name, value in record.items():
                if name in _NOT_LABELS or not name:
                    continue
                if name not in position:
                    position[name] = len(names)
                    names.append(name)
                    cells.append("")
                cells[position[name]] = _cell(line, name, value, problems)
            name = _cell(line, "id", record.get("id"), problems)
            yield line, record["path"], name, record.get("start"), record.get("end"), cells


def _cell(line: int, name: str, value: object, problems: _Problems) -> str:
    if isinstance(value, str):
        # What only JSON's escapes can bring: lone surrogates and NULs.
        if "\0" in value or (not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value)):
            problems.add(line, f"{name!r} holds a character that cannot be written as UTF-8, or a NUL")
            return ""
        return value.strip()
    if value is None:
        return ""
    if isinstance(value, dict | list):
        problems.add(line, f"{name!r} must be a text or a number, not a {type(value).__name__}")
        return ""
    return json.dumps(value)


def _undecodable_line(file: str) -> int:
    with open(file, "rb") as stream:
        for line, data in enumerate(stream, 1):
            try:
                data.decode("utf-8")
            except UnicodeDecodeError:
                return line
    return 1


def _name_columns(source: Input, names: list[str]) -> None:
    """``emotion`` and ``emotion_raw`` both as written, from either column where there is one; see `_NAMES`.

    What a written emotion is in the common set is said when the corpus is known.
    """
    width = len(names)
    source.columns = names
    source.labels = [
        row if len(row) == width else (*row, *[""] * (width - len(row))) for row in source.labels
    ]
    for name in _NAMES:
        values = source.values(name)
        clean = {value: known(unicodedata.normalize("NFC", value)) for value in set(values)}
        source.replace(name, [clean[value] for value in values])
    given = [name for name in ("emotion", "emotion_raw") if name in names]
    if len(given) == 1:
        at = names.index(given[0])
        source.columns = [*names[:at], "emotion_raw", *names[at + 1 :], "emotion"]
        source.labels = [(*row, row[at]) for row in source.labels]
