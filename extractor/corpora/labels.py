# ruff: noqa: PTH113, PTH118, PTH119, PTH120, PTH122
# A path is a str here: there may be millions of them.
"""What every corpus adapter is made of, and the words that are read as emotions.

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

Labels: TypeAlias = dict[str, str]

GENDER = {"M": "male", "F": "female", "Male": "male", "Female": "female"}

# Words and codes in use, by the common emotion they mean. Compared by `_bare`: without case,
# punctuation, and digits around them, so that "Pleasant_surprise" and "03-Happy" are found.
_WORDS = {
    "anger": "anger angry ang mad rage fury furious irritated irritation annoyed annoyance "
    "hotanger coldanger",
    "happiness": "happiness happy hap joy joyful joyous glad elation elated delight delighted cheerful "
    "amused amusement excited excitement exc",
    "sadness": "sadness sad sorrow sorrowful grief unhappy melancholy",
    "neutral": "neutral neu neutrality",
    "fear": "fear fearful fea afraid scared frightened terror terrified panic anxious anxiety",
    "disgust": "disgust disgusted disgusting dis",
    "surprise": "surprise surprised sur suprise suprised ps pleasantsurprise pleasantsurprised "
    "pleasantlysurprised",
    "calm": "calm calmness cal relaxed relaxation",
    "boredom": "boredom bored boring bor",
    "other": "other others oth xxx frustration frustrated fru contempt contemptuous sarcasm sarcastic "
    "pride proud disappointed disappointment confused confusion",
}
SYNONYMS = {word: emotion for emotion, words in _WORDS.items() for word in words.split()}


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
        for row in rows:
            if row is not None:
                row["emotion"] = self.emotion(row.get("emotion_raw", ""))
        return rows

    def emotion(self, raw: str) -> str:
        return self.emotions.get(raw) or common_emotion(raw)


@lru_cache(maxsize=4096)
def emotion_word(word: str) -> str | None:
    """The common emotion that a word or code means, or ``None`` if it is no emotion word."""
    return SYNONYMS.get(_bare(word))


def common_emotion(raw: str) -> str:
    """``raw`` in the common set: ``"other"`` for a label with no counterpart, ``""`` for none."""
    return (emotion_word(raw) or "other") if raw.strip() else ""


def _bare(word: str) -> str:
    return re.sub(r"[\W_]+", "", word.casefold()).strip("0123456789")


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
