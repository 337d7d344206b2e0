"""What a person should know of a run beside its rows and errors: a line each, with counts and first names.

What its input and its model gave to say stands in the run's description. What its recordings give is found
by their checksums, so it is right after a resume, for several shards, and where rows were dropped since.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from extractor.copies import COLUMNS
from extractor.store import Store
from extractor.store.aside import writable
from extractor.store.run_folder import NOTES, QUIET
from extractor.types import Decoded, Failure

SHOWN = 3  # names in a line
BLOCK = bytes(1 << 20)


def remember_quiet(run: Path, shard: tuple[int, int], decoded: Iterable[Decoded | Failure]) -> None:
    """Notes what is silent of a batch, before that is committed: no row can be there without it."""
    found = {each.checksum for each in decoded if isinstance(each, Decoded) and each.quiet}
    path = run / QUIET.format(*shard)
    new = sorted(found - _lines(path)) if found else []
    if new:
        with writable(run), path.open("a", encoding="ascii") as file:
            file.writelines(f"{checksum}\n" for checksum in new)


def _lines(path: Path) -> set[str]:
    # What is damaged in it is no recording's checksum.
    return set(path.read_text("ascii", errors="replace").split()) if path.exists() else set()


def remarks(store: Store) -> list[str]:
    """The lines for the summary and for `hser-store info`, the run's own notes first."""
    said = [note for key in NOTES for note in store.environment.get(key, [])]
    recordings = _recordings(store)
    # What was made before silence was noted down holds zeros, at least.
    quiet = zero_checksums({int(n) for n in store.num_samples})
    for path in store.path.glob(QUIET.format("*", "*")) if store.path.is_dir() else ():
        quiet |= _lines(path)
    silent = [name for name, checksum in recordings.items() if checksum in quiet]
    if silent:
        said.append(
            f"{_count(len(silent))} silent as decoded (channels can cancel where they are averaged;"
            f" --channel takes one): {_names(silent)}"
        )
    first: dict[str, str] = {}
    again = []
    for name, checksum in recordings.items():
        if checksum in first and checksum not in quiet:
            again.append(f"{name} = {first[checksum]}")
        first.setdefault(checksum, name)
    if again:
        said.append(f"{_count(len(again))} in the run twice, by the audio: {_names(again)}")
    return said


def _recordings(store: Store) -> dict[str, str]:
    """Checksum of each recording, once, by its id: a copy's checksum is its original's."""
    found: dict[str, str] = {}
    names = store.labels(COLUMNS[0]) if set(COLUMNS) <= set(store.columns) else store.ids
    for name, checksum in zip(names, store.checksums, strict=True):
        found.setdefault(name, checksum)
    return found


def zero_checksums(lengths: Iterable[int]) -> set[str]:
    """`Decoded.checksum` of so many samples of silence each, in one pass over the longest."""
    digest, done, found = hashlib.sha256(), 0, set()
    for n in sorted(lengths):
        left = 4 * (n - done)
        while left > 0:
            digest.update(BLOCK[:left])
            left -= len(BLOCK)
        done = n
        found.add(digest.copy().hexdigest())
    return found


def _count(number: int) -> str:
    return "1 recording is" if number == 1 else f"{number:,} recordings are"


def _names(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
