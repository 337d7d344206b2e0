"""Attention over packed utterances, each to itself alone, with WavLM's gated relative position bias."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cuda_kernels.backend import FLOATS, accumulated, resolve
from cuda_kernels.packing import Packing

_SCORE_BYTES = 16 << 20  # of scores at once: they stay in a core's cache, or near it


class GatedBias(NamedTuple):
    """What WavLM adds to the scores: ``gate[i, h] * by_distance[h, j - i]`` (Chen et al. 2021, section 3.2).

    ``gate = a (b c - 1) + 2`` with ``a, b = sigmoid`` of row i's logits, ``c = const`` (equation 5).
    """

    by_distance: Tensor  # [H, 2 M - 1]: distances 1 - M to M - 1; M at least the longest utterance
    logits: Tensor  # [N, 2 H]: of a for all heads, then of b; rows may be strided
    const: Tensor  # [H]

    def check(self, num_rows: int, num_heads: int, longest: int) -> None:
        """Raises ValueError where these do not go with such a batch."""
        H, width = num_heads, self.by_distance.shape[-1]
        if (
            self.by_distance.shape != (H, width)
            or width % 2 == 0
            or (width + 1) // 2 < longest
            or self.logits.shape != (num_rows, 2 * H)
            or self.const.shape != (H,)
        ):
            shapes = [list(x.shape) for x in (self.by_distance, self.logits, self.const)]
            raise ValueError(
                f"bias {shapes}: must be [H, 2 M - 1], [N, 2 H], [H] with H = {H}, N = {num_rows} and"
                f" M >= {longest}"
            )

    def gate(self, dtype: torch.dtype) -> Tensor:
        """``[N, H]``"""
        a, b = torch.sigmoid(self.logits.to(dtype)).chunk(2, dim=1)
        return a * (b * self.const.to(dtype) - 1.0) + 2.0


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
    if qkv.dtype not in FLOATS:
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
    # The definition, and the way without Triton: utterance by utterance
    dtype = accumulated(qkv.dtype)
    N, head_dim = len(qkv), qkv.shape[1] // (3 * num_heads)
    out = qkv.new_empty(N, num_heads, head_dim)
    heads = qkv.unflatten(1, (3, num_heads, head_dim)).permute(1, 2, 0, 3)  # [3, H, N, d]
    gate = None if bias is None else bias.gate(dtype).t()[:, :, None]  # [H, N, 1]
    start = 0
    for T in packing.lengths:
        rows = slice(start, start + T)
        q, k, v = heads[:, :, rows].to(dtype)  # [H, T, d] each
        at_once = max(1, _SCORE_BYTES // max(1, num_heads * T * dtype.itemsize))
        for i in range(0, T, at_once):
            scores = q[:, i : i + at_once] @ k.mT  # [H, t, T]
            if bias is not None and gate is not None:
                zero = bias.by_distance.shape[1] // 2  # where distance 0 is
                # Window s holds distances s - zero + (0 .. T - 1): that of query i begins at distance -i.
                windows = bias.by_distance.to(dtype).unfold(1, T, 1)  # [H, 2 M - T, T]
                square = windows[:, zero - i - scores.shape[1] + 1 : zero - i + 1].flip(1)  # [H, t, T]
                scores += gate[:, rows][:, i : i + at_once] * square
            weighted = torch.softmax(scores, dim=-1) @ v
            out[rows][i : i + at_once] = weighted.transpose(0, 1)
        start += T
    return out.flatten(1)
