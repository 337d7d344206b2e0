"""Is a run what it was when it was written, and is it complete? Reads every byte."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from os import PathLike
from pathlib import Path

import numpy as np

from extractor.errors import some
from extractor.store.edition import rows_problem
from extractor.store.hdf5 import BrokenPart, checksum_problems, decode_text, open_part, read_info
from extractor.store.reader import Store
from extractor.store.run_folder import (
    AGAIN,
    CONTENTS,
    MANIFEST,
    RunInfo,
    list_files,
    read_lines,
    read_run,
)
from extractor.store.sources import list_sources


def verify(path: str | PathLike[str]) -> list[str]:
    """Problems of a run folder or of a packed file, one message each; none when all is well.

    Checked are the checksum of every dataset, shapes and counts, and that each utterance of the
    manifest that is not dropped is there exactly once: as a row or, where it has none, as a failure.
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
    lines = read_lines(run, info.columns)
    stale = rows_problem(run, lines)
    if stale:  # Store would answer by it
        return [stale]
    planned = {row.position: row.utterance.id for row in lines.rows}
    dropped = {row.position for row in lines.rows if row.dropped}
    rows: list[tuple[int, str]] = []
    for source in list_sources(run):
        with open_part(source.path) as h5:
            rows += zip(source.positions.tolist(), decode_text(h5["id"][:]), strict=True)
    if lines.edition is not None:  # a recording may have another id now than its part was written with
        rows = [(at, planned.get(at, key)) for at, key in rows]
    count_of = Counter(key for at, key in rows if at not in dropped)
    twice = [key for key, count in count_of.items() if count > 1]
    if twice:  # Store would refuse to read failures from such a run
        return [f"{run}: {len(twice)} utterances have more than one row: {some(twice)}"]
    failed = {failure.id for failure in Store(run).errors}
    ids = dict.fromkeys(key for at, key in planned.items() if at not in dropped)
    # What is wrong, and the utterances that it is wrong with.
    checks = {
        "rows are not where the manifest has them": [key for at, key in rows if planned.get(at) != key],
        "failures are of no utterance of the manifest": [key for key in failed if key not in ids],
        f"of {len(ids)} recordings are not done yet; {AGAIN}": [
            key for key in ids if key not in count_of and key not in failed
        ],
    }
    return [f"{run}: {len(found)} {what}: {some(found)}" for what, found in checks.items() if found]


def _contents_problems(run: Path) -> list[str]:
    path = run / CONTENTS
    if not path.exists():
        return [f"{path}: not written yet; {AGAIN}"]
    store = Store(run)
    with open_part(path) as h5:
        shown, edition = np.sort(h5["position"][:]), int(h5.attrs.get("edition", 0))
    if not np.array_equal(shown, store.positions):
        return [f"{path}: shows {len(shown)} rows of {len(store)}; {AGAIN}"]
    if edition != store.edition:
        return [f"{path}: shows the run before it was edited last; {AGAIN}"]
    return []


def _packed_counts(path: Path, store: Store) -> list[str]:
    if store.unfinished:
        return [f"{path}: {store.unfinished}"]
    found = len(store) + len(store.errors)
    if found == store.num_planned:
        return []
    return [f"{path}: {found} rows and failures, packed were {store.num_planned}"]
