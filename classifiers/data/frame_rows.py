"""Frames of many recordings as a sequence: read when asked for, kept while they fit in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import overload

import numpy as np

KEPT_BYTES = (
    512 << 20
)  # of frames that are kept in memory: about 90 minutes of 120 dimensions, ten times over


class FrameRows(Sequence[np.ndarray]):
    """Element k: float32 ``[T, D]`` or ``[T, L, D]``, as ``read(rows[k])`` gives it.

    What is read is kept until ``kept_bytes`` are full, by all sequences that were taken from one.
    """

    def __init__(
        self, read: Callable[[int], np.ndarray], rows: np.ndarray, kept_bytes: int = KEPT_BYTES
    ) -> None:
        self._read, self.rows = read, np.asarray(rows, np.int64)
        self._kept: dict[int, np.ndarray] = {}
        self._room = [kept_bytes]  # shared, as `_kept` is

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...

    @overload
    def __getitem__(self, index: slice) -> FrameRows: ...

    def __getitem__(self, index: int | slice) -> np.ndarray | FrameRows:
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        row = int(self.rows[index])
        found = self._kept.get(row)
        if found is None:
            found = self._read(row)
            if found.nbytes <= self._room[0]:
                self._room[0] -= found.nbytes
                self._kept[row] = found
        return found

    def take(self, index: np.ndarray) -> FrameRows:
        """Some of the elements, by index, as a sequence of the same memory."""
        taken = FrameRows(self._read, self.rows[index])
        taken._kept, taken._room = self._kept, self._room
        return taken
