"""The positional convolution in plain PyTorch: the definition, and the way without Triton."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def positional_conv(
    x: Tensor, lengths: Sequence[int], weight: Tensor, bias: Tensor, residual: Tensor
) -> Tensor:
    """``[N, D]`` to ``[N, D]``, utterance by utterance; see the package."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    groups, kernel = weight.shape[:2]
    filters = weight.to(dtype).permute(0, 3, 2, 1).flatten(0, 1)  # [D, D / groups, K]
    out = torch.empty_like(residual, memory_format=torch.contiguous_format)
    start = 0
    for T in lengths:
        rows = slice(start, start + T)
        start += T
        if T:
            padded = F.pad(x[rows].to(dtype).t(), (kernel // 2, (kernel - 1) // 2))  # [D, T + K - 1]
            y = F.conv1d(padded[None], filters, bias.to(dtype), groups=groups)[0].t()
            out[rows] = residual[rows].to(dtype) + F.gelu(y)
    return out
