"""Attention over packed utterances, each to itself alone, with WavLM's gated relative position bias."""

from __future__ import annotations

import torch
from torch import Tensor

from cuda_kernels.attention import reference
from cuda_kernels.attention.reference import MAX_HEAD_DIM, GatedBias
from cuda_kernels.backend import resolve
from cuda_kernels.packing import Packing

__all__ = ["MAX_HEAD_DIM", "GatedBias", "attend_packed"]


def attend_packed(
    qkv: Tensor, packing: Packing, num_heads: int, bias: GatedBias | None = None, backend: str = "auto"
) -> Tensor:
    """``[N, 3 D]`` to ``[N, D]`` in the same dtype, contiguous, for utterances of ``N`` rows in all.

    ``qkv`` holds queries, already scaled, keys and values side by side, each head's ``D / num_heads``
    channels together; its rows may be strided. Of every utterance ``softmax(q kᵀ + b) v``, heads apart
    (Vaswani et al. 2017, section 3.2.1); ``b`` as `GatedBias` says, or none. Sums are in float32, float64 for
    float64, and the weights are rounded to the inputs' dtype only where Triton multiplies them with the
    values. Empty utterances are allowed.

    Raises ValueError for shapes that do not go together, TypeError for another dtype. float64 is for the
    reference alone.
    """
    if qkv.dtype not in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        raise TypeError(f"attend_packed takes floating-point rows, not {qkv.dtype}")
    if qkv.dim() != 2 or len(qkv) != packing.num_rows or qkv.shape[1] % (3 * num_heads):
        raise ValueError(
            f"qkv {list(qkv.shape)} for {packing.num_rows} rows of {num_heads} heads: must be [N, 3 D]"
        )
    if bias is not None:
        bias.check(len(qkv), num_heads, packing.longest)
    if resolve(backend, qkv.device) == "triton" and qkv.dtype != torch.float64:
        from cuda_kernels.attention import kernel

        return kernel.attend_packed(qkv, packing, num_heads, bias)
    return reference.attend_packed(qkv, packing.lengths, num_heads, bias)
