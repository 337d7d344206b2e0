"""Is a run what it was when it was written, and is it complete? Reads every byte."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path

from extractor.store.parts import BrokenPart, checksum_problems, decode_text, open_part, read_info
from extractor.store.reader import Store
from extractor.store.run_folder import AGAIN, CONTENTS, MANIFEST, RunInfo, list_files, read_manifest, read_run

_SHOWN = 5  # ids named in one message


def verify(path: str | PathLike[str]) -> list[str]:
    """Problems of a run folder or of a packed file, one message each; none when all is well.

    Checked are the checksum of every dataset, shapes and counts, and that each utterance of the
    manifest is there exactly once: as a row or, where it has none, as a failure.
    """
    path = Path(path)
    if path.is_file():
        store = Store(path)
        if store.path == path:
            return _damage([path], store.info) or _packed_counts(path, store)
        path = store.path
    info = read_run(path)
    batches, parts = list_files(path)
    # Counts over damaged files would say the same once more, less clearly.
    return _damage([*parts, *batches], info) or [*_counts(path, info), *_contents_problems(path)]


def _damage(files: Iterable[Path], info: RunInfo) -> list[str]:
    problems = []
    for path in files:
        try:
            read_info(path, info.columns, len(info.layers))
            problems += checksum_problems(path)
        except BrokenPart as error:
            problems.append(str(error))
        except FileNotFoundError:
            continue  # a batch that a writer has just merged
    return problems


def _counts(run: Path, info: RunInfo) -> list[str]:
    """The manifest against the rows and the failures."""
    if not (run / MANIFEST).exists():
        return [f"{run}: has no {MANIFEST} yet; {AGAIN}"]
    planned = {row.position: row.utterance.id for row in read_manifest(run / MANIFEST, info.columns)}
    rows = _positions_and_ids(run)
    count_of = Counter(key for _, key in rows)
    twice = [key for key, count in count_of.items() if count > 1]
    if twice:  # Store would refuse to read failures from such a run
        return [f"{run}: {len(twice)} utterances have more than one row: {_some(twice)}"]
    failed = {failure.id for failure in Store(run).errors}
    ids = dict.fromkeys(planned.values())
    # What is wrong, and the utterances that it is wrong with.
    checks = {
        "rows are not where the manifest has them": [key for at, key in rows if planned.get(at) != key],
        "failures are of no utterance of the manifest": [key for key in failed if key not in ids],
        f"of {len(planned)} recordings are not done yet; {AGAIN}": [
            key for key in ids if key not in count_of and key not in failed
        ],
    }
    return [f"{run}: {len(found)} {what}: {_some(found)}" for what, found in checks.items() if found]


def _positions_and_ids(run: Path) -> list[tuple[int, str]]:
    """Of every row, those of a batch that is also in a part counted once: opening the run removes it."""
    batches, parts = list_files(run)
    found: list[tuple[int, str]] = []
    merged: set[int] = set()
    for path in [*parts, *batches]:
        with open_part(path) as h5:
            inside = h5["batches"][:].tolist()
            if path in parts or merged.isdisjoint(inside):
                found += zip(h5["position"][:].tolist(), decode_text(h5["id"][:]), strict=True)
            merged.update(inside)
    return found


def _contents_problems(run: Path) -> list[str]:
    batches, parts = list_files(run)
    path = run / CONTENTS
    if not path.exists():
        return [f"{path}: not written yet; {AGAIN}"]
    expected = 0
    for part in parts:
        with open_part(part) as h5:
            expected += int(h5.attrs["num_rows"])
    with open_part(path) as h5:
        shown = len(h5["position"])
    if batches or shown != expected:
        return [f"{path}: shows {shown} rows of {len(Store(run))}; {AGAIN}"]
    return []


def _packed_counts(path: Path, store: Store) -> list[str]:
    if store.unfinished:
        return [f"{path}: {store.unfinished}"]
    found = len(store) + len(store.errors)
    return (
        []
        if found == store.num_planned
        else [f"{path}: {found} rows and failures, packed were {store.num_planned}"]
    )


def _some(ids: Sequence[str]) -> str:
    return ", ".join(ids[:_SHOWN]) + (", ..." if len(ids) > _SHOWN else "")
