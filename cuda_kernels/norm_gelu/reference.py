"""GroupNorm of one channel a group, and GELU, in plain PyTorch: the definition, and the CPU path."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

_BLOCK_ROWS = 512  # 1 MB of 512 channels in float32: what is made of them stays in a core's cache


def group_norm_gelu(
    x: Tensor,
    starts: Sequence[int],
    lengths: Sequence[int],
    weight: Tensor,
    bias: Tensor,
    eps: float,
) -> Tensor:
    """``[P, C]`` to ``[P, C]``, utterance by utterance; see the package."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    weight, bias = weight.to(dtype), bias.to(dtype)
    out = torch.zeros_like(x, memory_format=torch.contiguous_format)
    for start, length in zip(starts, lengths, strict=True):
        if length:
            rows = slice(start, start + length)
            _normalise(x[rows], weight, bias, eps, out[rows])
    return out


def _normalise(rows: Tensor, weight: Tensor, bias: Tensor, eps: float, out: Tensor) -> None:
    """One utterance, ``[T, C]``, into ``out``."""
    mean = rows.mean(dim=0, dtype=weight.dtype)
    blocks = rows.split(_BLOCK_ROWS)
    m2 = torch.zeros_like(mean)
    for block in blocks:
        m2 += (block - mean).square_().sum(dim=0)
    scale = weight * torch.rsqrt(m2 / len(rows) + eps)
    for block, result in zip(blocks, out.split(_BLOCK_ROWS), strict=True):
        # Not `block * scale + (bias - mean * scale)`, which cancels where the mean is large.
        result.copy_(F.gelu(torch.addcmul(bias, block - mean, scale)))
