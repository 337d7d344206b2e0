"""The convolutional position embedding of packed utterances: each padded with zeros of its own, none stored.

``x + GELU(conv(y) + b)``, a grouped convolution over time whose kernel is wide (128 frames) and whose groups
are narrow (64 channels).
"""

from __future__ import annotations

import torch
from torch import Tensor

from cuda_kernels.backend import resolve
from cuda_kernels.packing import Packing
from cuda_kernels.positional_conv import reference

__all__ = ["lay_out", "positional_conv"]


def lay_out(weight: Tensor, groups: int) -> Tensor:
    """A convolution's ``[D, D / groups, K]`` as `positional_conv` takes it: ``[groups, K, in, out]``."""
    return weight.unflatten(0, (groups, -1)).permute(0, 3, 2, 1).contiguous()


def positional_conv(
    x: Tensor, packing: Packing, weight: Tensor, bias: Tensor, residual: Tensor, backend: str = "auto"
) -> Tensor:
    """``[N, D], [N, D]`` to ``residual + GELU(conv(x) + bias)``, ``[N, D]`` in the same dtype, contiguous.

    Frame t of an utterance sees its frames ``t - K // 2`` to ``t + (K - 1) // 2`` ('same' padding, without an
    even kernel's surplus output: Baevski et al. 2020, section 2), zeros where it has none. ``weight`` as
    `lay_out` makes it, ``bias [D]``; GELU is the exact one. Sums are in float32, in float64 for float64.
    Empty utterances are allowed.

    Raises ValueError for shapes that do not go together, TypeError for other or differing dtypes. float64 is
    for the reference alone.
    """
    if x.dtype not in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        raise TypeError(f"positional_conv takes floating-point rows, not {x.dtype}")
    if len({t.dtype for t in (x, weight, residual)}) > 1:
        raise TypeError(f"rows {x.dtype}, weight {weight.dtype}, residual {residual.dtype}: must be the same")
    groups, _, width, _ = weight.shape
    D = groups * width
    fits = x.shape == residual.shape == (packing.num_rows, D)
    if not fits or weight.shape[3] != width or bias.shape != (D,):
        shapes = [list(t.shape) for t in (x, weight, bias, residual)]
        raise ValueError(f"rows, weight, bias, residual {shapes} for {packing.num_rows} rows do not fit")
    if resolve(backend, x.device) == "triton" and x.dtype != torch.float64:
        from cuda_kernels.positional_conv import kernel

        return kernel.positional_conv(x, packing, weight, bias, residual)
    return reference.positional_conv(x, packing.lengths, weight, bias, residual)
