"""Files of results: each appears whole or not at all, and so does a folder of them.

    FOLDER.new  ->  FOLDER to FOLDER.old  ->  FOLDER.new to FOLDER  ->  FOLDER.old is removed

Two renames cannot be one, so that a kill between them leaves the old one as ``FOLDER.old``: `settled`
reads it from there, and the next writer begins by giving it its name back.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from extractor.store.aside import aside, sync_folder, writable

TEXT = ("utf-8", "surrogateescape")  # ids may be file names that are no valid UTF-8


def write_file(path: Path, text: str) -> None:
    """Into a folder that is made where it is missing. Raises StoreUnwritable, as all that write here do."""
    with writable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with aside(path) as file:
        file.write(text.encode(*TEXT))


def write_json(path: Path, value: Any) -> None:
    write_file(path, json.dumps(plain(value), indent=1) + "\n")


def plain(value: Any) -> Any:
    """As JSON has it: no tuples, no numpy, and null for what is not a number, since JSON has no NaN."""
    if isinstance(value, dict):
        return {str(key): plain(of) for key, of in value.items()}
    if isinstance(value, list | tuple):
        return [plain(of) for of in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Iterable[Any]]) -> None:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    write_file(path, text.getvalue())


def read_csv(path: Path) -> list[dict[str, str]]:
    """Of each line its values by column. Raises OSError and ValueError."""
    return list(csv.DictReader(io.StringIO(path.read_bytes().decode(*TEXT), newline="")))


# A folder


def _beside(folder: Path, ending: str) -> Path:
    return folder.with_name(folder.name + ending)


def settled(folder: Path) -> Path:
    """Where the folder's complete content is."""
    old = _beside(folder, ".old")
    return old if not folder.exists() and old.is_dir() else folder


@contextlib.contextmanager
def folder_aside(folder: Path) -> Iterator[Path]:
    """An empty folder to fill; it replaces ``folder`` when the block ends well, else it is removed.

    One writer at a time.
    """
    folder = Path(folder).absolute()
    new, old = _beside(folder, ".new"), _beside(folder, ".old")
    with writable(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        if not folder.exists() and old.is_dir():
            old.rename(folder)
        for left in (new, old):
            if left.is_dir():
                shutil.rmtree(left)
        new.mkdir()
    try:
        yield new
        with writable(folder):
            sync_folder(new)
            if folder.exists():
                folder.rename(old)
            new.rename(folder)
            sync_folder(folder.parent)
    finally:
        for left in (new, old if folder.exists() else new):
            shutil.rmtree(left, ignore_errors=True)
