"""GroupNorm with one channel a group, over the time of one utterance, and GELU behind it.

That is what follows the first convolution of the encoders with ``feat_extract_norm="group"``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cuda_kernels.backend import FLOATS, accumulated, resolve

_BLOCK_ROWS = 512  # 1 MB of 512 channels in float32: what is made of them stays in a core's cache


def group_norm_gelu(
    x: Tensor,
    starts: Sequence[int],
    lengths: Sequence[int],
    weight: Tensor,
    bias: Tensor,
    eps: float = 1e-5,
    backend: str = "auto",
) -> Tensor:
    """``[P, C]`` to ``[P, C]`` in the same dtype, contiguous; ``weight`` and ``bias`` are ``[C]``.

    Rows ``starts[i]`` to ``starts[i] + lengths[i]`` are utterance ``i``: each of its channels is brought
    to mean 0 and variance 1 over these rows (Wu and He 2018, with as many groups as channels), scaled,
    shifted, and passed through ``GELU(y) = y / 2 * (1 + erf(y / sqrt(2)))``. Rows of no utterance come
    out as zero, whatever they hold. float32, bfloat16 and float16 are computed in float32, float64 in
    float64; the variance is that of rows less their mean, so nothing cancels. Empty utterances are
    allowed.

    Raises ValueError for utterances that overlap or lie outside, and for a ``weight`` or ``bias`` of
    another width; TypeError for another dtype.
    """
    if x.dtype not in FLOATS:
        raise TypeError(f"group_norm_gelu takes floating-point rows, not {x.dtype}")
    if x.dim() != 2 or weight.shape != x.shape[1:] or bias.shape != x.shape[1:]:
        raise ValueError(f"rows {list(x.shape)}, weight {list(weight.shape)}, bias {list(bias.shape)}")
    end = 0
    for start, length in sorted(zip(starts, lengths, strict=True)):
        if length < 0 or start < end or start + length > len(x):
            raise ValueError(f"rows {start} to {start + length} of {len(x)} overlap others or lie outside")
        end = start + length
    if resolve(backend, x.device) == "triton":
        from cuda_kernels.norm_gelu import kernel

        return kernel.group_norm_gelu(x, starts, lengths, weight, bias, eps)
    # The definition, and the CPU path: utterance by utterance
    dtype = accumulated(x.dtype)
    weight, bias = weight.to(dtype), bias.to(dtype)
    out = torch.zeros_like(x, memory_format=torch.contiguous_format)
    for start, length in zip(starts, lengths, strict=True):
        if length:
            rows, normed = (t[start : start + length] for t in (x, out))
            mean, blocks = rows.mean(dim=0, dtype=dtype), rows.split(_BLOCK_ROWS)
            m2 = torch.zeros_like(mean)
            for block in blocks:
                m2 += (block - mean).square_().sum(dim=0)
            scale = weight * torch.rsqrt(m2 / length + eps)
            for block, result in zip(blocks, normed.split(_BLOCK_ROWS), strict=True):
                # Not `block * scale + (bias - mean * scale)`, which cancels where the mean is large.
                result.copy_(F.gelu(torch.addcmul(bias, block - mean, scale)))
    return out
