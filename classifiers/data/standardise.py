"""Every dimension to mean 0 and deviation 1: by the rows themselves or by others, without their labels."""

from __future__ import annotations

import numpy as np

_COLUMNS = 256  # at a time, so that float64 takes little beside the rows themselves


def standardise(x: np.ndarray, by: np.ndarray | None = None) -> np.ndarray:
    """float32 ``[N, ...]`` in place, by the mean and deviation over the rows of ``by`` (None: its own).

    A dimension that does not vary says nothing and becomes 0.
    """
    rows = x.reshape(len(x), -1)
    others = rows if by is None else by.reshape(len(by), -1)
    for start in range(0, rows.shape[1], _COLUMNS):
        columns = slice(start, start + _COLUMNS)
        of = others[:, columns].astype(np.float64)
        mean, deviation = of.mean(axis=0), of.std(axis=0)
        varies = deviation > 1e-7 * np.abs(mean)  # float32 cannot tell less from rounding
        scaled = (rows[:, columns] - mean) / np.where(varies, deviation, 1.0)
        rows[:, columns] = np.where(varies, scaled, 0.0)
    return x
