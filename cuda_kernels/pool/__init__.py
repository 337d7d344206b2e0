"""Statistics of consecutive runs of rows: the frames of each utterance, in one pass over memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from cuda_kernels.backend import FLOATS, accumulated, resolve
from cuda_kernels.packing import on_device

# Of the rows of one run [T, D] and their mean [D]. `m2` in two passes: no cancellation.
_REDUCTIONS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean": lambda rows, mean: mean,
    "m2": lambda rows, mean: (rows - mean).square_().sum(dim=0),
    "min": lambda rows, mean: rows.amin(dim=0),
    "max": lambda rows, mean: rows.amax(dim=0),
    "first": lambda rows, mean: rows[0],
    "last": lambda rows, mean: rows[-1],
}
STATISTICS = tuple(_REDUCTIONS)


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
    """``[N, D]`` to ``[S, D]`` a statistic.

    Run ``s`` is the next ``lengths[s]`` of the ``N = sum(lengths)`` rows. float32, bfloat16 and float16
    are reduced in float32 and come out in it, float64 in float64. ``m2`` is the sum of squared distances
    from the run's own mean: nothing cancels, however far that is from zero. A NaN in a row shows in its
    run's mean, m2, minimum and maximum, an infinity in the mean.

    ``starts``: `row_starts` of the same lengths. Whoever pools the same runs of many tensors makes them once:
    a kernel that has to copy them to its device waits, each time, until the device is done.

    Raises ValueError for an unknown or repeated statistic, a run without rows, and lengths that do not
    add up; TypeError for another dtype.
    """
    if x.dtype not in FLOATS:
        raise TypeError(f"pool_rows takes floating-point rows, not {x.dtype}")
    if x.dim() != 2:
        raise ValueError(f"pool_rows takes [N, D], not {list(x.shape)}")
    if any(n < 1 for n in lengths) or sum(lengths) != len(x):
        raise ValueError(f"{len(x)} rows in runs of {list(lengths)}: each must have one, and all be used")
    for name in statistics:
        if name not in STATISTICS:
            raise ValueError(f"unknown statistic {name!r}; known: {', '.join(STATISTICS)}")
    if len(set(statistics)) != len(statistics):
        raise ValueError(f"statistics {', '.join(statistics)}: name each once")
    out = {
        name: torch.empty(len(lengths), x.shape[1], dtype=accumulated(x.dtype), device=x.device)
        for name in statistics
    }
    if resolve(backend, x.device) == "triton":
        from cuda_kernels.pool import kernel

        starts = row_starts(lengths, x.device) if starts is None else starts
        if starts.shape != (len(lengths) + 1,) or starts.dtype != torch.int64 or starts.device != x.device:
            raise ValueError(
                f"starts of {len(lengths)} runs must be int64 [{len(lengths) + 1}] on {x.device}"
            )
        kernel.pool_rows(x, starts, *(out.get(name) for name in STATISTICS))
        return out
    # The definition, and the CPU path. Run by run: a few large reductions, each over rows that fit a core's
    # cache, beat one over all runs.
    for i, rows in enumerate(x.split(list(lengths))):
        rows = rows.to(accumulated(x.dtype))
        mean = rows.mean(dim=0)
        for name, values in out.items():
            values[i] = _REDUCTIONS[name](rows, mean)
    return out
