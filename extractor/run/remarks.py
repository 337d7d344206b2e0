"""What a person should know of a run beside its rows and errors: a line each, with counts and first names.

What its input and its model gave to say stands in the run's description. What its recordings and their labels
give is read from the rows that count now, by checksum, so it is right after a resume, for several shards, and
where rows were relabelled or dropped since.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from extractor.errors import some
from extractor.inputs.labels import label_notes
from extractor.store import Store
from extractor.store.aside import writable
from extractor.store.pack import quiet_checksums
from extractor.store.run_folder import NOTES, QUIET, read_quiet
from extractor.types import SAMPLE_RATE, Decoded, Failure

SHOWN = 3  # names in a line
# Samples of silence whose checksum is computed, in 0.3 s: a part may claim that it has any number.
LONGEST_ZEROS = 2 * 3600 * SAMPLE_RATE
BLOCK = bytes(1 << 20)


def remember_quiet(run: Path, shard: tuple[int, int], decoded: Iterable[Decoded | Failure]) -> None:
    """Notes what is silent of a batch, before that is committed: no row can be there without it."""
    found = {each.checksum for each in decoded if isinstance(each, Decoded) and each.quiet}
    path = run / QUIET.format(*shard)
    new = sorted(found - read_quiet(path)) if found else []
    if new:
        with writable(run), path.open("a", encoding="ascii") as file:
            file.writelines(f"{checksum}\n" for checksum in new)


def remarks(store: Store) -> list[str]:
    """The lines for the summary and for `hser-store info`, the run's own notes first."""
    said = [note for key in NOTES for note in store.environment.get(key, [])]
    if store.originals and {"emotion", "emotion_raw"} <= set(store.columns):
        columns = (store.labels("emotion"), store.labels("emotion_raw"))
        of_recording = {name: labels for name, *labels in zip(store.originals, *columns, strict=True)}
        said += label_notes(*zip(*of_recording.values(), strict=True))
    # A copy's checksum is its original's.
    recordings: dict[str, str] = {}
    for name, checksum in zip(store.originals, store.checksums, strict=True):
        recordings.setdefault(name, checksum)
    # What was made before silence was noted down holds zeros, at least.
    quiet = zero_checksums({int(n) for n in store.num_samples if n <= LONGEST_ZEROS})
    quiet |= quiet_checksums(store.path)
    silent = [name for name, checksum in recordings.items() if checksum in quiet]
    if silent:
        said.append(
            f"{_count(silent)} silent as decoded (channels can cancel where they are averaged;"
            f" --channel takes one): {some(silent, SHOWN)}"
        )
    first: dict[str, str] = {}
    again = []
    for name, checksum in recordings.items():
        if checksum in first and checksum not in quiet:
            again.append(f"{name} = {first[checksum]}")
        first.setdefault(checksum, name)
    if again:
        said.append(f"{_count(again)} in the run twice, by the audio: {some(again, SHOWN)}")
    return said


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


def _count(names: Sequence[str]) -> str:
    return "1 recording is" if len(names) == 1 else f"{len(names):,} recordings are"
