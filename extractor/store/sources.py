"""The finished files of a run, batches and parts, and the rows that each holds."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from extractor.errors import StoreError
from extractor.store.edition import Edition
from extractor.store.hdf5 import decode_text, open_part, read_failures
from extractor.store.run_folder import MANIFEST, list_files, probe_failures
from extractor.types import Failure

_LISTINGS = 100  # of the folder, before one gives up on files that vanish


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A finished file and the manifest positions of its rows."""

    path: Path
    positions: np.ndarray
    batches: tuple[int, ...]
    failures: list[tuple[int, Failure]]  # with the batch of each


def list_sources(run: Path) -> list[StoredFile]:
    if not (run / "parts").exists():
        return []
    for _ in range(_LISTINGS):
        batches, parts = list_files(run)
        try:
            sources = [read_source(path) for path in parts]
            # A batch that was merged but not yet deleted is in the part as well.
            merged = {batch for source in sources for batch in source.batches}
            loose = [read_source(path) for path in batches]
            return sources + [source for source in loose if merged.isdisjoint(source.batches)]
        except FileNotFoundError:
            continue  # a writer merged that batch since the folder was listed
    raise StoreError(f"{run}: its files vanish as they are read")


def read_source(path: Path) -> StoredFile:
    with open_part(path) as h5:
        batches = tuple(h5["batches"][:].tolist())
        return StoredFile(path, h5["position"][:], batches, read_failures(h5))


def checksums_at(run: Path, positions: set[int]) -> dict[int, str]:
    """Of the audio of these lines of the manifest, those that are dropped too, where they have rows."""
    for _ in range(_LISTINGS if positions else 0):
        found: dict[int, str] = {}
        try:
            for source in list_sources(run):
                if positions.isdisjoint(source.positions.tolist()):
                    continue
                with open_part(source.path) as h5:
                    found |= zip(source.positions.tolist(), decode_text(h5["checksum"][:]), strict=True)
        except FileNotFoundError:
            continue
        return {position: found[position] for position in positions & found.keys()}
    return {}


def failures_of(
    run: Path | None, sources: Sequence[StoredFile], edition: Edition | None
) -> dict[Any, Failure]:
    """Failures by id, of an edited run by position; of each the last one, as its batch or the run has it.

    First those of headers, which only the manifest of a ``run`` folder has.
    """
    failures: dict[Any, Failure] = {}
    found: list[tuple[int, Failure]] = []
    if run is not None and (run / MANIFEST).exists():
        found = [(sys.maxsize, failure) for failure in probe_failures(run / MANIFEST)]
    found += sorted((pair for source in sources for pair in source.failures), key=lambda pair: pair[0])
    for batch, failure in found:
        key = failure.id if edition is None else edition.line_of(batch, failure.id)
        if key is not None:  # of this edition
            failures.pop(key, None)
            failures[key] = failure
    return failures
