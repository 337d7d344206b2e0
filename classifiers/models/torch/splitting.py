"""The part of the training rows that training is watched on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

LARGEST_SHARE = 0.5  # of the rows that the validation part may take, however the groups fall


@dataclass(frozen=True, slots=True)
class Split:
    """Rows to learn from and rows to watch, both int64 and ascending."""

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
    if groups is None:
        return _split(y, _rows_by_class(y, share, random), "rows, stratified by class")
    names, codes = np.unique(np.asarray(groups), return_inverse=True)
    taken = _groups(y, codes, share, random)
    if len(taken):
        how = f"{len(taken)} of {len(names)} groups: {', '.join(str(names[g]) for g in sorted(taken))}"
        return _split(y, np.flatnonzero(np.isin(codes, taken)), how)
    how = f"rows, stratified by class: none of {len(names)} groups can be spared"
    return _split(y, _rows_by_class(y, share, random), how)


def _split(y: np.ndarray, validation: np.ndarray, how: str) -> Split:
    if not len(validation):  # one row of each class
        how = "none: no class has a row to spare"
    return Split(np.setdiff1d(np.arange(len(y)), validation), np.sort(validation), how)


def _rows_by_class(y: np.ndarray, share: float, random: np.random.Generator) -> np.ndarray:
    """At least one row of each class that has two or more."""
    taken = []
    for code in np.unique(y):
        rows = random.permutation(np.flatnonzero(y == code))
        taken.append(rows[: min(max(round(share * len(rows)), 1), len(rows) - 1)])
    return np.concatenate(taken)


def _groups(y: np.ndarray, codes: np.ndarray, share: float, random: np.random.Generator) -> list[int]:
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
