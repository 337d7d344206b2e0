# ruff: noqa: PTH112, PTH113, PTH116, PTH118, PTH122, PTH206, PTH207
# A path is a str here: a Path a file would cost more than all the rest.
"""Which files an input names: a folder is searched, a pattern expanded. Links are followed.

Every folder is visited once, whatever number of links lead to it, and by its own name where it lies
inside the input: folders that link to one another have an end, and a recording is not found twice.
"""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from extractor.errors import some

# fmt: off
AUDIO_SUFFIXES = frozenset((
    ".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".m4a", ".aac", ".mp4", ".m4v", ".mkv", ".mov",
    ".avi", ".webm", ".aif", ".aiff", ".aifc", ".sph", ".au", ".snd", ".wma", ".amr", ".caf", ".w64",
    ".rf64", ".3gp", ".gsm", ".nist", ".raw", ".mp1", ".mp2", ".spx", ".mpga", ".mpg", ".mpeg", ".vob",
    ".m2ts", ".mts", ".3g2", ".m4b", ".adts", ".flv", ".asf", ".wmv", ".mka", ".weba", ".ogv", ".ogx",
    ".ac3", ".eac3", ".wv", ".tta", ".voc", ".bwf", ".avr", ".svx", ".8svx", ".paf", ".pvf",
))
# Texts, tables, pictures and archives that lie beside recordings: nobody expects them to be taken.
_COMPANIONS = frozenset((
    "", ".txt", ".csv", ".tsv", ".json", ".jsonl", ".md", ".rst", ".pdf", ".doc", ".docx", ".odt", ".rtf",
    ".xls", ".xlsx", ".ods", ".htm", ".html", ".xml", ".yaml", ".yml", ".ini", ".cfg", ".toml", ".log",
    ".tex", ".bib", ".lab", ".laba", ".labtext", ".silb", ".textgrid", ".trs", ".eaf", ".anvil", ".srt",
    ".vtt", ".ctm", ".stm", ".lst", ".list", ".phn", ".wrd", ".jpg", ".jpeg", ".png", ".gif", ".svg",
    ".bmp", ".tif", ".tiff", ".zip", ".tar", ".gz", ".bz2", ".xz", ".7z", ".rar", ".md5", ".sha1",
    ".sha256", ".py", ".ipynb", ".sh", ".bat", ".m", ".r", ".c", ".h", ".pl", ".js", ".css", ".npy", ".npz",
    ".h5", ".hdf5", ".pkl", ".pt", ".mat", ".parquet", ".arrow", ".db", ".sqlite", ".exe", ".dll",
    ".ds_store", ".lnk", ".url",
))
# fmt: on


@dataclass
class Search:
    """What a search has come upon beside the files that it gave."""

    unreadable: list[str] = field(default_factory=list)  # folders
    broken: list[str] = field(default_factory=list)  # links that lead nowhere, without an audio suffix
    not_taken: Counter[str] = field(default_factory=Counter)  # files by suffix

    def notes(self, name: str) -> list[str]:
        """As a person reads them; ``name``: the input."""
        left_out = (
            ("cannot be read", "folder", self.unreadable),
            ("leads nowhere", "link", self.broken),
        )
        notes = [
            f"{name}: left out, {why}: {len(paths):,} {what}{'' if len(paths) == 1 else 's'} ({some(paths)})"
            for why, what, paths in left_out
            if paths
        ]
        return notes + [
            f"{name}: {count:,} file{'' if count == 1 else 's'} with suffix {suffix} not taken;"
            f" if they are recordings, name them: '{name}/**/*{suffix}'"
            for suffix, count in sorted(self.not_taken.items())
        ]


def suffix_of(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def recordings(root: str, found: Search) -> list[str]:
    """Audio files below a folder in a fixed order: by name, folder by folder; hidden ones left out.

    A link that leads nowhere is one too if its suffix is an audio file's. Raises OSError where ``root``
    itself cannot be read.
    """
    paths: list[str] = []
    for _, files in folders(root, found):
        for path in files:
            suffix = suffix_of(path)
            if suffix in AUDIO_SUFFIXES:
                paths.append(path)
            elif suffix not in _COMPANIONS:
                found.not_taken[suffix] += 1
    paths.sort(key=lambda path: path.split(os.sep))
    return paths


def folders(root: str, found: Search) -> Iterator[tuple[str, list[str]]]:
    """Each folder at and below ``root`` once, with its files. Raises OSError for ``root`` itself."""
    seen: set[object] = set()
    waiting = [root]
    linked: list[str] = []  # looked at last: what lies inside the input keeps its own name
    while waiting or linked:
        folder = waiting.pop() if waiting else linked.pop(0)
        try:
            key = _identity(folder)
            if key in seen:
                continue
            seen.add(key)
            with os.scandir(folder) as entries:
                listed = sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
        except OSError:
            if folder == root:
                raise
            found.unreadable.append(folder)
            continue
        files, inside = [], []
        for entry in listed:
            if entry.is_dir(follow_symlinks=False):
                inside.append(entry.path)
            elif entry.is_symlink() and os.path.isdir(entry.path):
                linked.append(entry.path)
            elif (
                not entry.is_symlink()
                or os.path.isfile(entry.path)
                or suffix_of(entry.name) in AUDIO_SUFFIXES
            ):
                files.append(entry.path)
            else:
                found.broken.append(entry.path)
        waiting.extend(reversed(inside))
        yield folder, files


def _identity(folder: str) -> object:
    status = os.stat(folder)
    # Some network file systems number nothing.
    return (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(folder)


def expand(pattern: str) -> list[str]:
    """What matches, sorted. ``**`` is any folders; `glob` alone would follow linked ones in circles."""
    parts = pattern.split(os.sep)
    if "**" not in parts:
        return sorted(glob.glob(pattern))
    at = parts.index("**")
    before, after = os.sep.join(parts[:at]) or (os.sep if at else ""), os.sep.join(parts[at + 1 :]) or "*"
    matched: dict[str, None] = {}
    for base in sorted(glob.glob(before)) if glob.has_magic(before) else [before]:
        # What cannot be read is not matched.
        with suppress(OSError):
            for folder, _ in folders(base or os.curdir, Search()):
                # Named as the pattern names it.
                folder = folder if base else folder.removeprefix(os.curdir).removeprefix(os.sep)
                matched |= dict.fromkeys(
                    expand(os.path.join(glob.escape(folder), after) if folder else after)
                )
    return sorted(matched)
