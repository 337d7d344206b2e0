"""What the models read: pooled rows, or frames of recordings of different lengths; and in which parts.

Frames come packed, ``[sum of lengths, D]``, one recording after the other, without padding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from classifiers.data.features import FrameRows
from extractor.errors import InputError, some

BLOCK_ROWS = 256  # of pooled rows whose moments are taken at once: 50 MB in float64 of 25 x 1,024
POOL_BATCHES = 32  # batches are cut from this many batches' rows at a time, sorted by length
LARGEST_SHARE = 0.5  # of the rows that the validation part may take, however the groups fall

_AXES = {2: ("rows, features", "frames, features"), 3: ("rows, layers, features", "frames, layers, features")}


class Inputs:
    """Rows that a network reads, each one frame or several of ``shape``: (D,), or (L, D) of all layers.

    ``lengths``: int64 [N], frames of each row. ``read``: frames of some rows, float32
    ``[sum of lengths, *shape]``. ``block``: rows whose moments are taken at once.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        shape: tuple[int, ...],
        read: Callable[[np.ndarray], np.ndarray],
        block: int,
    ) -> None:
        self.lengths, self.shape, self._read, self._block = lengths, shape, read, block

    def values(self, rows: np.ndarray) -> Tensor:
        """float32 ``[sum of lengths, *shape]`` of these rows, one after the other."""
        return torch.from_numpy(self._read(rows))

    def moments(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """float64 ``[*shape]``: mean and deviation over all frames of these rows, a block at a time.

        Running mean and sum of squared deviations after Chan, Golub and LeVeque (1983). A feature that
        is constant but for float32's rounding has the deviation 1.
        """
        count, mean, m2 = 0, np.zeros(self.shape), np.zeros(self.shape)
        for start in range(0, len(rows), self._block):
            block = self._read(rows[start : start + self._block]).astype(np.float64)
            own, total = block.mean(axis=0), count + len(block)
            delta = own - mean
            mean += delta * (len(block) / total)
            m2 += np.square(block - own).sum(axis=0) + delta**2 * (count * len(block) / total)
            count = total
        std = np.sqrt(m2 / max(count, 1))
        return mean, np.where(std > np.finfo(np.float32).eps * np.abs(mean), std, 1.0)


def pooled(rows: Any, ndim: int) -> Inputs:
    """Of pooled rows ``[N, D]``, or ``[N, L, D]``. Raises InputError: other axes, NaN, infinity."""
    rows = np.asarray(rows, np.float32)
    if rows.ndim != ndim or 0 in rows.shape:
        raise InputError(f"expected embeddings [{_AXES[ndim][0]}], got an array of shape {list(rows.shape)}")
    blocks = (rows[i : i + BLOCK_ROWS] for i in range(0, len(rows), BLOCK_ROWS))
    axes = tuple(range(1, ndim))
    bad = np.flatnonzero(~np.concatenate([np.isfinite(block).all(axis=axes) for block in blocks]))
    if len(bad):
        raise InputError(_not_finite(bad))
    return Inputs(np.ones(len(rows), np.int64), rows.shape[1:], rows.__getitem__, BLOCK_ROWS)


def frames_of(recordings: Sequence[Any] | FrameRows) -> Inputs:
    """Of recordings ``[T, D]``; read once for lengths and checks, and then when they are asked for.

    ``recordings``: a list of arrays, or a sequence that reads an array each time it is asked, of which
    `FrameRows` keeps what fits in memory.
    """
    if not len(recordings):
        raise InputError("no recordings were given")
    if not isinstance(recordings, list | tuple | FrameRows):
        recordings = FrameRows(recordings.__getitem__, np.arange(len(recordings)))
    shape = _frames(recordings, 0).shape[1:]
    lengths = [len(_frames(recordings, i, shape)) for i in range(len(recordings))]

    def read(rows: np.ndarray) -> np.ndarray:
        return np.concatenate([np.asarray(recordings[i], np.float32) for i in rows])

    return Inputs(np.array(lengths, np.int64), shape, read, 1)


def time_means(recordings: Sequence[Any]) -> np.ndarray:
    """float32 ``[N, L, D]``: the mean over time of frames ``[T, L, D]``; one recording in memory at a time.

    ``[N, L, D]``, which are such means already, are passed through.
    """
    if isinstance(recordings, np.ndarray) and recordings.ndim == 3:
        return recordings
    if not len(recordings):
        raise InputError("no recordings were given")
    shape = _frames(recordings, 0, ndim=3).shape[1:]
    means = np.empty((len(recordings), *shape), np.float32)
    for i in range(len(recordings)):
        means[i] = _frames(recordings, i, shape, ndim=3).mean(axis=0, dtype=np.float64)
    return means


def _frames(
    recordings: Sequence[Any] | FrameRows, i: int, shape: tuple[int, ...] | None = None, ndim: int = 2
) -> np.ndarray:
    """Recording ``i``, checked: float32 ``[T, *shape]``."""
    frames = np.asarray(recordings[i], np.float32)
    if frames.ndim != ndim or 0 in frames.shape:
        raise InputError(f"row {i}: expected [{_AXES[ndim][1]}], got an array of shape {list(frames.shape)}")
    if shape is not None and frames.shape[1:] != shape:
        raise InputError(f"row {i}: a frame has shape {list(frames.shape[1:])}, in row 0 {list(shape)}")
    if not np.isfinite(frames).all():
        raise InputError(_not_finite([i]))
    return frames


def _not_finite(rows: Sequence[int] | np.ndarray) -> str:
    return f"{len(rows)} rows hold NaN or infinity (row {some([str(i) for i in rows])}); leave them out"


def batches(
    rows: np.ndarray, lengths: np.ndarray, batch_size: int, random: np.random.Generator
) -> Iterator[np.ndarray]:
    """Each row once, in a random order, in batches of rows of about the same length.

    Sorted by length within `POOL_BATCHES` batches only, so that batches differ from epoch to epoch.
    Rows of equal length, pooled ones, are simply shuffled.
    """
    order = random.permutation(rows)
    cut: list[np.ndarray] = []
    pool = batch_size * POOL_BATCHES
    for start in range(0, len(order), pool):
        part = order[start : start + pool]
        part = part[np.argsort(lengths[part], kind="stable")]
        cut += [part[i : i + batch_size] for i in range(0, len(part), batch_size)]
    for i in random.permutation(len(cut)):
        yield cut[i]


def passes(rows: np.ndarray, lengths: np.ndarray, max_frames: int) -> Iterator[np.ndarray]:
    """Runs of ``rows`` of at most ``max_frames`` frames, each counted as long as the run's longest.

    A recording that is longer goes alone.
    """
    start, longest = 0, 0
    for i, length in enumerate(lengths[rows]):
        longest = max(longest, length)
        if i > start and longest * (i + 1 - start) > max_frames:
            yield rows[start:i]
            start, longest = i, length
    if start < len(rows):
        yield rows[start:]


@dataclass(frozen=True, slots=True)
class Split:
    """Rows to learn from and rows to watch training on, both int64 and ascending."""

    train: np.ndarray
    validation: np.ndarray
    how: str  # in words, for the report


def split_validation(y: np.ndarray, groups: Sequence[Any] | None, share: float, seed: int) -> Split:
    """About ``share`` of the rows for validation, whole groups (speakers) where groups are given.

    Every class keeps a row to learn from. Where no group can be spared (one speaker, or each the only
    one with some class) the rows are split by class instead, and ``how`` says so.

    Args:
        y: class codes, int64 ``[N]``.
        groups: one a row; rows of one group stay together. Without groups, augmented copies of one
            recording may fall on both sides: give the original's id as group then.
    """
    random = np.random.default_rng([seed, 1])
    if share == 0:
        return Split(np.arange(len(y)), np.zeros(0, np.int64), "none")
    how, taken = "rows, stratified by class", []
    if groups is not None:
        names, codes = np.unique(np.asarray(groups), return_inverse=True)
        taken = _spared_groups(y, codes, share, random)
        how += f": none of {len(names)} groups can be spared"
    if taken:
        validation = np.flatnonzero(np.isin(codes, taken))
        how = f"{len(taken)} of {len(names)} groups: {', '.join(str(names[g]) for g in sorted(taken))}"
    else:
        parts = []
        for code in np.unique(y):  # at least one row of each class that has two or more
            rows = random.permutation(np.flatnonzero(y == code))
            parts.append(rows[: min(max(round(share * len(rows)), 1), len(rows) - 1)])
        validation = np.sort(np.concatenate(parts))
    if not len(validation):  # one row of each class
        how = "none: no class has a row to spare"
    return Split(np.setdiff1d(np.arange(len(y)), validation), validation, how)


def _spared_groups(y: np.ndarray, codes: np.ndarray, share: float, random: np.random.Generator) -> list[int]:
    """Groups in a random order until they have ``share`` of the rows."""
    num_classes = int(y.max()) + 1
    table = np.stack([np.bincount(y[codes == g], minlength=num_classes) for g in range(codes.max() + 1)])
    left = table.sum(axis=0)  # rows of each class to learn from
    had = left > 0
    taken: list[int] = []
    for group in random.permutation(len(table)):
        rest = left - table[group]
        enough = len(y) - rest.sum() <= LARGEST_SHARE * len(y)
        if enough and (rest[had] > 0).all():
            taken.append(int(group))
            left = rest
        if len(y) - left.sum() >= share * len(y):
            break
    return taken
