"""Where the utterances of a packed batch lie, on the device: made once a batch, read by every layer.

Kernels that go through utterances take a tile of rows a program. The table of tiles, and the offsets
beside it, come from the host in one copy that nothing waits for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

TILE_ROWS = 128  # rows a program: two of Hopper's warpgroups, each multiplying 64

# Columns of the table of tiles: where its utterance begins and how long it is, and which of the
# utterance's rows is the tile's first
BEGIN, LENGTH, FIRST, COLUMNS = range(4)


@dataclass(frozen=True, slots=True)
class ShapeBucket:
    """What a packing has room for, so that batches which differ share its shapes (see `Packing.load`)."""

    rows: int
    utterances: int
    longest: int  # rows

    def filled(self, lengths: Sequence[int]) -> list[int]:
        """``lengths`` with utterances behind them that fill it up: first all rows, then with none.

        Raises ValueError where they do not fit.
        """
        left = self.rows - sum(lengths)
        fill = [self.longest] * (max(left, 0) // self.longest)
        if left % self.longest:
            fill.append(left % self.longest)
        empty = self.utterances - len(lengths) - len(fill)
        if left < 0 or empty < 0 or max(lengths, default=0) > self.longest:
            raise ValueError(f"{len(lengths)} utterances of {sum(lengths)} rows do not fit {self}")
        return [*lengths, *fill, *[0] * empty]


@dataclass(frozen=True, slots=True)
class Packing:
    """Utterances one behind the other: the next ``lengths[s]`` rows are utterance ``s``; some may be empty.

    Make one with `pack`.
    """

    lengths: tuple[int, ...]  # as it was made: `load` leaves them
    longest: int
    num_rows: int
    table: Tensor  # int32, on the device: offsets, then tiles

    @property
    def offsets(self) -> Tensor:
        """int32 ``[S + 1]``: the first row of each utterance, and the end."""
        return self.table[: len(self.lengths) + 1]

    @property
    def tiles(self) -> Tensor:
        """int32 ``[tiles, COLUMNS]``; those that are not needed have length 0."""
        return self.table[len(self.lengths) + 1 :].view(-1, COLUMNS)

    @property
    def bucket(self) -> ShapeBucket:
        return ShapeBucket(self.num_rows, len(self.lengths), self.longest)

    def load(self, other: Packing) -> None:
        """The other's utterances, in this one's tensors: for kernels that were recorded with them.

        Raises ValueError unless both are of one bucket.
        """
        if self.bucket != other.bucket:
            raise ValueError(f"a packing of {other.bucket} does not fit one of {self.bucket}")
        self.table.copy_(other.table)


def pack(lengths: Sequence[int], device: torch.device, longest: int | None = None) -> Packing:
    """A packing of utterances of so many rows each, some of which may be 0.

    ``longest``: of those that may be loaded into it later; None: of these. Raises ValueError for a negative
    length.
    """
    if any(n < 0 for n in lengths):
        raise ValueError(f"lengths {list(lengths)}: none may be negative")
    most = max(lengths, default=0)
    if longest is not None and longest < most:
        raise ValueError(f"an utterance of {most} rows where none may have more than {longest}")
    table = on_device(_table(lengths), device)
    return Packing(tuple(lengths), most if longest is None else longest, sum(lengths), table)


def on_device(table: Tensor, device: torch.device) -> Tensor:
    """A small table from the host. On CUDA it goes by pinned memory: from elsewhere, whoever copies waits
    until the device has done all that it was told before."""
    if device.type != "cuda":
        return table.to(device)
    return table.pin_memory().to(device, non_blocking=True)


def _table(lengths: Sequence[int]) -> Tensor:
    offsets = [0, *accumulate(lengths)]
    # The longest first: a long utterance's tiles, which take longest, must not start last.
    order = sorted(range(len(lengths)), key=lambda s: -lengths[s])
    values = offsets + [
        value
        for s in order
        for first in range(0, lengths[s], TILE_ROWS)
        for value in (offsets[s], lengths[s], first)
    ]
    # An utterance may begin one tile that it does not fill.
    size = len(offsets) + COLUMNS * (offsets[-1] // TILE_ROWS + len(lengths))
    values += [0] * (size - len(values))
    return torch.tensor(values, dtype=torch.int32)
