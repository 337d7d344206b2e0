"""Sum, LayerNorm and GELU of rows in plain PyTorch: the definition, and the way without Triton."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def add_norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    gelu: bool,
    total: Tensor | None,
    normed: Tensor,
) -> None:
    """``[N, D]`` each; writes the sum, where it is wanted, and the norm; see the package."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    exact = x.to(dtype) if residual is None else x.to(dtype) + residual.to(dtype)
    if total is not None:
        total.copy_(exact)
    made = F.layer_norm(exact, weight.shape, weight.to(dtype), bias.to(dtype), eps)
    normed.copy_(F.gelu(made) if gelu else made)
