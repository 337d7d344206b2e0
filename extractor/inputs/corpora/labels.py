# ruff: noqa: PTH113, PTH118, PTH119, PTH120, PTH122
# A path is a str here: there may be millions of them.
"""What every corpus adapter is made of.

An adapter reads a recording's labels from its file name (``parse``) and, where the corpus keeps
more in files of its own, from those (``annotate``). The labels of one recording are a ``Labels``
dict: ``emotion_raw`` as the corpus codes it, ``speaker``, the adapter's own ``columns``, and
``id`` where the corpus has ids that are better than file stems. What is unknown is absent or ``""``.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias

from extractor.errors import InputError
from extractor.inputs.corpora.words import common_emotion, plain

Labels: TypeAlias = dict[str, str]

GENDER = {"M": "male", "F": "female", "Male": "male", "Female": "female"}


@dataclass(frozen=True)
class Spare:
    """Recordings of a corpus that a search of its folder leaves out, and says so.

    They are left out only where others are there: naming their own folder takes them.
    """

    pattern: re.Pattern[str]  # searched for in the absolute path, with slashes
    reason: str


@dataclass(frozen=True)
class Corpus:
    """One row of the table of corpora.

    ``parse(path, root)`` takes an absolute path and the input folder it was found under, and gives
    the labels that the name holds, or ``None`` if the name is not of this corpus.
    ``annotate(paths, rows, root)`` completes those rows in place from the corpus's own files.
    """

    name: str
    title: str
    emotions: Mapping[str, str]  # raw label -> common emotion
    columns: tuple[str, ...]  # labels beside emotion, emotion_raw, speaker
    parse: Callable[[str, str], Labels | None]
    annotate: Callable[[Sequence[str], Sequence[Labels | None], str], None] | None = None
    spare: Spare | None = None
    share: float = 0.9  # of the files must fit for the corpus to be recognised: strays are common

    def label(self, paths: Sequence[str], root: str) -> list[Labels | None]:
        """Labels of each recording, ``emotion`` included; ``None`` where the name does not fit."""
        rows = [self.parse(path, root) for path in paths]
        if self.annotate is not None:
            self.annotate(paths, rows, root)
        common: dict[str, str] = {}
        for row in rows:
            if row is not None:
                raw = row.get("emotion_raw", "")
                if raw not in common:
                    common[raw] = self.emotion(raw)
                row["emotion"] = common[raw]
        return rows

    def emotion(self, raw: str) -> str:
        """In the common set by the corpus's own codes, in any case, else as `common_emotion` has it."""
        if raw not in self.emotions:
            for code, emotion in self.emotions.items():
                if plain(code) == plain(raw):
                    return emotion
        return self.emotions.get(raw) or common_emotion(raw)


@lru_cache(maxsize=4)  # every adapter asks it of one path after the other
def stem(path: str) -> str:
    return os.path.splitext(os.path.basename(path))[0]


def name(path: str) -> str:
    return os.path.basename(path)


def parent(path: str) -> str:
    return os.path.dirname(path)


def beside(folder: str, files: Sequence[str], root: str | None = None, levels: int = 3) -> str | None:
    """The first of a corpus's own ``files`` in ``folder`` or up to ``levels`` above it.

    Inside ``root`` the folders next to the way up are looked into too (``MELD/csv/`` beside
    ``MELD/train_splits/``). Nothing outside the input is listed, only asked for by name.
    """
    for _ in range(levels + 1):
        places = [folder]
        if root is not None and (folder == root or folder.startswith(os.path.join(root, ""))):
            # a manifest may name recordings whose folder is not there
            with suppress(OSError), os.scandir(folder) as entries:
                places += sorted(entry.path for entry in entries if entry.is_dir())
        for place in places:
            for file in files:
                candidate = os.path.join(place, file)
                if os.path.isfile(candidate):
                    return candidate
        folder = parent(folder)
    return None


def by_folder(paths: Sequence[str], rows: Sequence[Labels | None]) -> Iterator[tuple[str, list[int]]]:
    """Each folder with the positions of its recordings: side files are looked up once a folder."""
    folders: dict[str, list[int]] = {}
    for i, path in enumerate(paths):
        if rows[i] is not None:
            folders.setdefault(parent(path), []).append(i)
    yield from folders.items()


def read_text(file: str) -> str:
    """The text of a corpus's own file: UTF-8, else cp1252, in which some corpora were written."""
    try:
        data = Path(file).read_bytes()
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252", errors="replace")


def read_table(file: str, required: Sequence[str], delimiter: str = ",") -> list[Labels]:
    """Rows of a corpus's own table, cells stripped. Raises ``InputError`` if a column is missing."""
    text = io.StringIO(read_text(file), newline="")
    if delimiter == "\t":  # where a quotation mark is a quotation mark
        reader = csv.reader(text, delimiter=delimiter, quoting=csv.QUOTE_NONE)
    else:
        reader = csv.reader(text, delimiter=delimiter)
    header = [cell.strip() for cell in next(reader, [])]
    missing = [name for name in required if name not in header]
    if missing:
        raise InputError(
            f"{file}: no column {', '.join(map(repr, missing))} (found: {', '.join(header) or 'none'}); "
            "restore the file as the corpus came with it, or move it away"
        )
    return [dict(zip(header, map(str.strip, cells), strict=False)) for cells in reader if cells]
