"""Statistics of runs of rows in plain PyTorch: the definition, and the CPU path.

Run by run: a few large reductions, each over rows that fit a core's cache, beat one over all runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

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


def pool_rows(x: Tensor, lengths: Sequence[int], statistics: Sequence[str]) -> dict[str, Tensor]:
    """``[N, D]`` or ``[L, N, D]`` to ``[S, D]`` or ``[L, S, D]`` each; see the package."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    shape = (*x.shape[:-2], len(lengths), x.shape[-1])
    out = {name: torch.empty(shape, dtype=dtype, device=x.device) for name in statistics}
    for layer in range(shape[0] if x.dim() == 3 else 1):
        of_layer = {name: (o[layer] if x.dim() == 3 else o) for name, o in out.items()}
        for i, rows in enumerate((x[layer] if x.dim() == 3 else x).split(list(lengths))):
            rows = rows.to(dtype)
            mean = rows.mean(dim=0)
            for name, o in of_layer.items():
                o[i] = _REDUCTIONS[name](rows, mean)
    return out
