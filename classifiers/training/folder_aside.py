"""A folder appears whole or not at all: it is filled aside and takes its name when it is complete.

    FOLDER.new  ->  FOLDER to FOLDER.old  ->  FOLDER.new to FOLDER  ->  FOLDER.old is removed

Two renames cannot be one, so that a kill between them leaves the old one as ``FOLDER.old``: `settled`
reads it from there, and the next writer begins by giving it its name back.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from extractor.store.aside import sync_folder, writable


def _beside(folder: Path, ending: str) -> Path:
    return folder.with_name(folder.name + ending)


def settled(folder: Path) -> Path:
    """Where the folder's complete content is."""
    old = _beside(folder, ".old")
    return old if not folder.exists() and old.is_dir() else folder


@contextlib.contextmanager
def folder_aside(folder: Path) -> Iterator[Path]:
    """An empty folder to fill; it replaces ``folder`` when the block ends well, else it is removed.

    Raises StoreUnwritable when the target is full, read-only or forbidden. One writer at a time.
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
