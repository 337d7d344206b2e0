"""Batches under a budget of audio, planned from headers before the first sample is decoded."""

from __future__ import annotations

import itertools

import numpy as np

# Recordings are sorted by length within stretches of this many, so that a plan for any number of
# them is made in one pass; the first batch of a stretch is its largest.
LOOK_AHEAD = 65_536


def plan_batches(num_samples: np.ndarray, budget_samples: int, streams: int = 1) -> list[np.ndarray]:
    """Cut recordings into batches, longest first.

    For one stream batches are as full as the budget allows. Several finish together: there are as
    many batches for each, of about the same audio, so that the last one is not worked on alone.

    Args:
        num_samples: int64 ``[N]``, planned length of each recording.
        budget_samples: most samples in a batch; a longer recording is a batch of its own.
        streams: batches that are worked on at once.

    Returns:
        Indices into ``num_samples``, an int64 array a batch; every index occurs exactly once. The
        same input gives the same batches: ties keep their order.
    """
    batches: list[np.ndarray] = []
    for start in range(0, len(num_samples), LOOK_AHEAD):
        stretch = num_samples[start : start + LOOK_AHEAD]
        order = np.argsort(-stretch, kind="stable")
        ends = np.cumsum(stretch[order])
        cuts = _cut(ends, budget_samples)
        if streams > 1:
            cuts = _level(ends, cuts, budget_samples, streams)
        batches += [order[first:last] + start for first, last in itertools.pairwise([0, *cuts])]
    return batches


def _cut(ends: np.ndarray, most: int) -> list[int]:
    """Where batches of at most ``most`` samples end; ``ends`` is the running total of the samples."""
    cuts: list[int] = []
    first, filled = 0, 0
    while first < len(ends):
        # Recordings that fit are found by one search in the running total.
        first = max(first + 1, int(np.searchsorted(ends, filled + most, side="right")))
        filled = int(ends[first - 1])
        cuts.append(first)
    return cuts


def _level(ends: np.ndarray, cuts: list[int], budget: int, streams: int) -> list[int]:
    """The most even batches: the smallest ones of which no more are needed than streams can share."""
    num_batches = -(-len(cuts) // streams) * streams
    least, most = int(ends[-1]) // num_batches, budget
    while least < most:
        middle = (least + most) // 2
        tried = _cut(ends, middle)
        if len(tried) > num_batches:
            least = middle + 1
        else:
            most, cuts = middle, tried
    return cuts
