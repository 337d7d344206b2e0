# ruff: noqa: PTH113, PTH118, PTH119, PTH120, PTH122
# A path is a str here: there may be millions of them.
"""What corpora keep of their recordings in files of their own: where these lie, and what is in them.

``annotate_...(paths, rows, root)`` completes in place the rows that the names have given.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias

from extractor.errors import InputError

Labels: TypeAlias = dict[str, str]  # of one recording; what is unknown is absent or ""

GENDER = {"M": "male", "F": "female", "Male": "male", "Female": "female"}


@lru_cache(maxsize=4)  # every corpus is asked of one path after the other
def stem(path: str) -> str:
    return os.path.splitext(os.path.basename(path))[0]


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
        folder = os.path.dirname(folder)
    return None


def by_folder(
    paths: Sequence[str], rows: Sequence[Labels | None]
) -> Iterator[tuple[str, list[tuple[str, Labels]]]]:
    """Each folder with its recordings, path and row: side files are looked up once a folder."""
    folders: dict[str, list[tuple[str, Labels]]] = {}
    for path, row in zip(paths, rows, strict=True):
        if row is not None:
            folders.setdefault(os.path.dirname(path), []).append((path, row))
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


def read_table(file: str, required: Sequence[str]) -> list[Labels]:
    """Rows of a corpus's own table, cells stripped. Raises ``InputError`` if a column is missing."""
    text = io.StringIO(read_text(file), newline="")
    # Between tabs a quotation mark is a quotation mark.
    tabs = csv.reader(text, delimiter="\t", quoting=csv.QUOTE_NONE)
    reader = tabs if file.endswith(".tsv") else csv.reader(text)
    header = [cell.strip() for cell in next(reader, [])]
    missing = [name for name in required if name not in header]
    if missing:
        raise InputError(
            f"{file}: no column {', '.join(map(repr, missing))} (found: {', '.join(header) or 'none'}); "
            "restore the file as the corpus came with it, or move it away"
        )
    return [dict(zip(header, map(str.strip, cells), strict=False)) for cells in reader if cells]


# --- CREMA-D and nEMO: one table of actors, one of recordings --------------------------------------


def annotate_cremad(paths: Sequence[str], rows: Sequence[Labels | None], root: str) -> None:
    """Sex and age, from ``VideoDemographics.csv`` (ActorID,Age,Sex,Race,Ethnicity)."""
    for _, row, table in _joined(paths, rows, root, "VideoDemographics.csv", ("ActorID", "Age", "Sex")):
        person = table.get(row["speaker"], {})
        row["gender"] = GENDER.get(person.get("Sex", ""), "")
        row["age"] = person.get("Age", "")


def annotate_nemo(paths: Sequence[str], rows: Sequence[Labels | None], root: str) -> None:
    """Text, gender and age, from ``data.tsv``."""
    for path, row, table in _joined(paths, rows, root, "data.tsv", ("file_id",)):
        more = table.get(stem(path), {})
        gender = (more.get("gender") or more.get("sex") or "").lower()
        row["gender"] = GENDER.get(gender.capitalize(), gender)
        row["age"] = more.get("age", "")
        row["text"] = more.get("raw_text") or more.get("normalized_text", "")


def _joined(
    paths: Sequence[str], rows: Sequence[Labels | None], root: str, name: str, columns: Sequence[str]
) -> Iterator[tuple[str, Labels, dict[str, Labels]]]:
    """Each recording, path and row, with the rows of the table ``name`` beside or above it by the first of
    its ``columns``; none where there is no table."""
    tables: dict[str | None, dict[str, Labels]] = {None: {}}
    for folder, members in by_folder(paths, rows):
        file = beside(folder, [name], root)
        if file is not None and file not in tables:
            # A key may be a file name; some copies of such a table leave the suffix out.
            tables[file] = {stem(row[columns[0]]): row for row in read_table(file, columns)}
        for path, row in members:
            yield path, row, tables[file]


# --- IEMOCAP: two texts for each dialogue ----------------------------------------------------------

_LABEL = re.compile(
    r"^\[[\d.]+\s*-\s*[\d.]+\]\s+(\S+)\s+(\w+)\s+\[([\d.]+),\s*([\d.]+),\s*([\d.]+)\]", re.MULTILINE
)
_TEXT = re.compile(r"^(Ses\S+) \[[^\]\n]*\]:[ \t]*(.*?)\s*$", re.MULTILINE)
_LEVELS = 5  # from a turn's folder up past sentences/wav and Session1 to a folder above the corpus


def annotate_iemocap(paths: Sequence[str], rows: Sequence[Labels | None], root: str) -> None:
    """Labels from ``Session1/dialog/EmoEvaluation/{dialogue}.txt``, one line a turn, columns parted by tabs:
    ``[start - end]  turn  emotion  [v, a, d]``; texts from ``dialog/transcriptions/{dialogue}.txt``. The
    dialogue is the turn without its last five characters."""
    for folder, members in by_folder(paths, rows):
        turns: dict[str, Labels] = {}
        for dialogue in sorted({row["dialogue"] for _, row in members}):
            for kind, pattern, names in (
                ("EmoEvaluation", _LABEL, ("emotion_raw", "valence", "arousal", "dominance")),
                ("transcriptions", _TEXT, ("text",)),
            ):
                name = f"dialog/{kind}/{dialogue}.txt"
                file = beside(folder, [name, f"Session{int(dialogue[3:5])}/{name}"], levels=_LEVELS)
                for turn, *values in pattern.findall(read_text(file)) if file is not None else ():
                    turns.setdefault(turn, {}).update(zip(names, values, strict=True))
        for _, row in members:
            row |= turns.get(row.get("id", ""), {})


# --- MELD: a table for each split ------------------------------------------------------------------

MELD_SPLITS = ("train", "dev", "test")
_MELD_COLUMNS = {
    "emotion_raw": "Emotion",
    "speaker": "Speaker",
    "text": "Utterance",
    "sentiment": "Sentiment",
    "season": "Season",
    "episode": "Episode",
}


def annotate_meld(paths: Sequence[str], rows: Sequence[Labels | None], root: str) -> None:
    """``train_sent_emo.csv``, ``dev_...``, ``test_...``. A clip whose folder names no split takes it from the
    one table found beside or above it. A second cut of a clip has an emotion only if the first is not there,
    so that no utterance counts twice."""
    tables: dict[str, dict[tuple[str, str], Labels]] = {}
    first, second = set(), []
    for folder, members in by_folder(paths, rows):
        files = {split: beside(folder, [f"{split}_sent_emo.csv"], root) for split in MELD_SPLITS}
        there = [split for split in MELD_SPLITS if files[split] is not None]
        for path, row in members:
            row["split"] = row["split"] or (there[0] if len(there) == 1 else "")
            key, file = (row["dialogue"], row["utterance"]), files.get(row["split"])
            if file is not None:
                if file not in tables:
                    tables[file] = _meld_clips(file)
                row |= tables[file].get(key, {})
            if row["split"]:
                row["id"] = f"{row['split']}_{stem(path)}"
            if stem(path).startswith("final"):
                second.append((key, row))
            elif row["split"] == "test":
                first.add(key)
    for key, row in second:
        if key in first:
            row["emotion_raw"] = ""


def _meld_clips(file: str) -> dict[tuple[str, str], Labels]:
    table = read_table(file, ("Dialogue_ID", "Utterance_ID", "Speaker", "Emotion"))
    return {
        (row["Dialogue_ID"], row["Utterance_ID"]): {
            ours: row.get(theirs, "") for ours, theirs in _MELD_COLUMNS.items()
        }
        for row in table
    }
