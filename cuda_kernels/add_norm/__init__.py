"""LayerNorm of rows, of the sum of two if wanted, and GELU behind it if wanted: one pass over memory.

In pre-norm layers a half's result is added to its input and the next half's norm follows; in post-norm
layers only the normed sum is needed; in the CNN, GELU follows the norm.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cuda_kernels.backend import FLOATS, accumulated, resolve


def add_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    out: tuple[Tensor, Tensor] | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """``[N, D], [N, D]`` to their sum and its LayerNorm, both ``[N, D]`` in the same dtype, contiguous.

    The norm is that of the sum before it is rounded (Ba et al. 2016, equation 4): each row brought to mean
    0 and variance 1, scaled by ``weight [D]``, shifted by ``bias [D]``. float32, bfloat16 and float16 are
    computed in float32, float64 in float64; the variance is that of the row less its mean, so that nothing
    cancels.

    ``out``: where to write the two, contiguous; the first may be ``residual`` itself, since a row is read
    before it is written.

    Raises ValueError for shapes that do not go together, TypeError for other or differing dtypes.
    """
    total, normed = out or (torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(2))
    _write(x, residual, weight, bias, eps, False, total, normed, backend)
    return total, normed


def norm_rows(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    residual: Tensor | None = None,
    gelu: bool = False,
    out: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """The LayerNorm alone, of ``x`` or of ``x + residual``, as `add_norm` makes it; GELU behind it, if asked.

    Norm and ``GELU(y) = y / 2 * (1 + erf(y / sqrt(2)))`` are rounded once, at the end. ``out``: where to
    write it, contiguous; it may be ``x`` or ``residual``.
    """
    normed = torch.empty_like(x, memory_format=torch.contiguous_format) if out is None else out
    _write(x, residual, weight, bias, eps, gelu, None, normed, backend)
    return normed


def _write(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    gelu: bool,
    total: Tensor | None,
    normed: Tensor,
    backend: str,
) -> None:
    if x.dtype not in FLOATS:
        raise TypeError(f"rows must be floating-point, not {x.dtype}")
    if residual is not None and residual.dtype != x.dtype:
        raise TypeError(f"rows of {x.dtype} and residual of {residual.dtype}: must be the same")
    alike = x.dim() == 2 and x.shape[1] > 0 and (residual is None or residual.shape == x.shape)
    if not alike or weight.shape != x.shape[1:] or bias.shape != x.shape[1:]:
        shapes = [list(t.shape) for t in (x, residual, weight, bias) if t is not None]
        raise ValueError(f"rows, residual, weight, bias {shapes}: must be [N, D], [N, D], [D], [D]")
    for out in (normed,) if total is None else (total, normed):
        if out.shape != x.shape or out.dtype != x.dtype or not out.is_contiguous():
            raise ValueError(f"out must be as the rows, {list(x.shape)} in {x.dtype}, and contiguous")
    if resolve(backend, x.device) == "triton":
        from cuda_kernels.add_norm import kernel

        kernel.add_norm(x, residual, weight, bias, eps, gelu, total, normed)
        return
    # The definition, and the way without Triton
    dtype = accumulated(x.dtype)
    exact = x.to(dtype) if residual is None else x.to(dtype) + residual.to(dtype)
    if total is not None:
        total.copy_(exact)
    made = F.layer_norm(exact, weight.shape, weight.to(dtype), bias.to(dtype), eps)
    normed.copy_(F.gelu(made) if gelu else made)
