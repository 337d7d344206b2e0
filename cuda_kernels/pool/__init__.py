"""Statistics of consecutive runs of rows: the frames of each utterance, in one pass over memory."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from cuda_kernels.backend import resolve
from cuda_kernels.packing import on_device
from cuda_kernels.pool import reference
from cuda_kernels.pool.reference import STATISTICS

__all__ = ["STATISTICS", "pool_rows", "row_starts"]


def row_starts(lengths: Sequence[int], device: torch.device) -> Tensor:
    """int64 ``[S + 1]`` on ``device``: where each run begins, and the end of the last."""
    return on_device(torch.tensor([0, *accumulate(lengths)], dtype=torch.int64), device)


def pool_rows(
    x: Tensor,
    lengths: Sequence[int],
    statistics: Sequence[str],
    backend: str = "auto",
    starts: Tensor | None = None,
) -> dict[str, Tensor]:
    """``[N, D]`` to ``[S, D]`` a statistic, or ``[L, N, D]`` to ``[L, S, D]`` for several layers.

    Run ``s`` is the next ``lengths[s]`` of the ``N = sum(lengths)`` rows. float32, bfloat16 and float16
    are reduced in float32 and come out in it, float64 in float64. ``m2`` is the sum of squared distances
    from the run's own mean: nothing cancels, however far that is from zero. A NaN in a row shows in its
    run's mean, m2, minimum and maximum, an infinity in the mean.

    ``starts``: `row_starts` of the same lengths. Whoever pools the same runs of many tensors makes them once:
    a kernel that has to copy them to its device waits, each time, until the device is done.

    Raises ValueError for an unknown or repeated statistic, a run without rows, and lengths that do not
    add up; TypeError for another dtype.
    """
    if x.dtype not in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        raise TypeError(f"pool_rows takes floating-point rows, not {x.dtype}")
    if x.dim() not in (2, 3):
        raise ValueError(f"pool_rows takes [N, D] or [L, N, D], not {list(x.shape)}")
    if any(n < 1 for n in lengths) or sum(lengths) != x.shape[-2]:
        raise ValueError(
            f"{x.shape[-2]} rows in runs of {list(lengths)}: each must have one, and all be used"
        )
    for name in statistics:
        if name not in STATISTICS:
            raise ValueError(f"unknown statistic {name!r}; known: {', '.join(STATISTICS)}")
    if len(set(statistics)) != len(statistics):
        raise ValueError(f"statistics {', '.join(statistics)}: name each once")
    if resolve(backend, x.device) == "triton":
        from cuda_kernels.pool import kernel

        starts = row_starts(lengths, x.device) if starts is None else starts
        if starts.shape != (len(lengths) + 1,) or starts.dtype != torch.int64 or starts.device != x.device:
            raise ValueError(
                f"starts of {len(lengths)} runs must be int64 [{len(lengths) + 1}] on {x.device}"
            )
        return kernel.pool_rows(x, starts, statistics)
    return reference.pool_rows(x, lengths, statistics)
