"""Batches under a budget of audio, planned from headers before the first sample is decoded."""

from __future__ import annotations

import numpy as np

# Recordings are sorted by length within stretches of this many, so that a plan for any number of
# them is made in one pass; the first batch of a stretch is its largest.
LOOK_AHEAD = 65_536


def plan_batches(
    num_samples: np.ndarray, budget_samples: int, look_ahead: int = LOOK_AHEAD
) -> list[np.ndarray]:
    """Cut recordings into batches, longest first.

    Args:
        num_samples: int64 ``[N]``, planned length of each recording.
        budget_samples: most samples in a batch; a longer recording is a batch of its own.
        look_ahead: recordings that are sorted at a time.

    Returns:
        Indices into ``num_samples``, an int64 array a batch; every index occurs exactly once. The
        same input gives the same batches: ties keep their order.
    """
    batches: list[np.ndarray] = []
    for start in range(0, len(num_samples), look_ahead):
        stretch = num_samples[start : start + look_ahead]
        order = np.argsort(-stretch, kind="stable")
        ends = np.cumsum(stretch[order])
        first, filled = 0, 0
        while first < len(order):
            # Longest first: recordings that fit are found by one search in the running total.
            last = max(first + 1, int(np.searchsorted(ends, filled + budget_samples, side="right")))
            batches.append(order[first:last] + start)
            first, filled = last, int(ends[last - 1])
    return batches
