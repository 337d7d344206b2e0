"""The convolutional position embedding of packed utterances: each padded with zeros of its own, none stored.

``x + GELU(conv(y) + b)``, a grouped convolution over time whose kernel is wide (128 frames) and whose groups
are narrow (64 channels).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cuda_kernels.backend import FLOATS, accumulated, resolve
from cuda_kernels.packing import Packing


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
    if x.dtype not in FLOATS:
        raise TypeError(f"positional_conv takes floating-point rows, not {x.dtype}")
    if len({t.dtype for t in (x, weight, residual)}) > 1:
        raise TypeError(f"rows {x.dtype}, weight {weight.dtype}, residual {residual.dtype}: must be the same")
    groups, taps, width, _ = weight.shape
    D = groups * width
    fits = x.shape == residual.shape == (packing.num_rows, D)
    if not fits or weight.shape[3] != width or bias.shape != (D,):
        shapes = [list(t.shape) for t in (x, weight, bias, residual)]
        raise ValueError(f"rows, weight, bias, residual {shapes} for {packing.num_rows} rows do not fit")
    if resolve(backend, x.device) == "triton" and x.dtype != torch.float64:
        from cuda_kernels.positional_conv import kernel

        return kernel.positional_conv(x, packing, weight, bias, residual)
    # The definition, and the way without Triton: utterance by utterance
    dtype = accumulated(x.dtype)
    filters = weight.to(dtype).permute(0, 3, 2, 1).flatten(0, 1)  # [D, D / groups, K]
    out = torch.empty_like(residual, memory_format=torch.contiguous_format)
    start = 0
    for T in packing.lengths:
        rows = slice(start, start + T)
        start += T
        if T:
            padded = F.pad(x[rows].to(dtype).t(), (taps // 2, (taps - 1) // 2))  # [D, T + K - 1]
            y = F.conv1d(padded[None], filters, bias.to(dtype), groups=groups)[0].t()
            out[rows] = residual[rows].to(dtype) + F.gelu(y)
    return out
