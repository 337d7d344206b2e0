"""Size and time of recordings' files in a run's manifest: what tells later that they are what they were."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from extractor.audio.files import Stamp
from extractor.store.run_folder import ManifestRow
from extractor.types import Seconds

if TYPE_CHECKING:
    from extractor.store.writer import RunWriter

SAVE_SECONDS: Seconds = 30.0  # between two notes of how far a comparison of audio has come
SAVE_SHARE = 0.05  # of the time that noting may take, when the run is so large that it is slow


class Noted:
    """How far a comparison of audio has come, in the manifest: one that is killed goes on from there."""

    def __init__(self, writer: RunWriter, rows: Sequence[ManifestRow], alone: bool) -> None:
        """``alone``: other shards may compare the same at this moment, and write what they find."""
        self._writer, self._rows, self._alone = writer, rows, alone
        self._same: dict[int, Stamp] = {}
        self._next = time.monotonic() + SAVE_SECONDS

    def add(self, rows: Iterable[ManifestRow], stamp: Stamp) -> None:
        """These rows are of the file as it is."""
        self._same.update((row.position, stamp) for row in rows)
        if time.monotonic() >= self._next:
            self.save()

    def save(self) -> None:
        began = time.monotonic()
        if self._alone and self._same:
            rows = [
                stamped(row, self._same[row.position]) if row.position in self._same else row
                for row in self._rows
            ]
            self._writer.edit_manifest(rows, self._writer.columns)
        now = time.monotonic()
        self._next = now + max(SAVE_SECONDS, (now - began) / SAVE_SHARE)


def stamped(row: ManifestRow, stamp: Stamp | None) -> ManifestRow:
    if stamp is None or (row.size, row.mtime_ns) == stamp:
        return row
    return replace(row, size=stamp[0], mtime_ns=stamp[1])
