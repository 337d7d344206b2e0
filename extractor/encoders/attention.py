"""Self-attention over packed frames: each utterance attends to its own frames only.

Plain batched products are used rather than fused attention: on CPUs they are as fast as SDPA in fp32
and more than twice as fast in bf16 at speech lengths (`benchmarks/products.py`), and WavLM's gated bias
fits between them. Scores never take more than
`_SCORE_BYTES`: heads, then query rows, are taken in chunks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from extractor.encoders.products import ROW_MULTIPLE, round_up

_SCORE_BYTES = 16 << 20  # of scores at once: a 3 s utterance of 16 heads takes 0.7 MiB in bf16


class RelativePositionBias:
    """WavLM's bucketed relative position bias (Chen et al. 2021, section 3.2; T5's bucketing).

    ``bias[h, i, j]`` depends on ``j - i`` alone, so a vector a head holds it all; the square that an
    utterance needs is laid out from it, once for all layers of a forward pass.
    """

    def __init__(self, embedding: Tensor, max_distance: int) -> None:
        """``embedding [buckets, H]``: the table that all layers share."""
        self.embedding = embedding
        self.max_distance = max_distance

    def _buckets(self, distance: Tensor) -> Tensor:
        """Bucket of each signed distance: exact while small, logarithmic up to ``max_distance``."""
        half = self.embedding.shape[0] // 2
        exact = half // 2
        magnitude = distance.abs()
        log = torch.log(magnitude.float().clamp(min=1) / exact) / math.log(self.max_distance / exact)
        large = (exact + log * (half - exact)).long().clamp(max=half - 1)
        return (distance > 0).long() * half + torch.where(magnitude < exact, magnitude, large)

    def by_distance(self, num_frames: int) -> Tensor:
        """``[H, 2 T - 1]`` for ``T = num_frames``: the bias of distances ``1 - T`` to ``T - 1``."""
        distance = torch.arange(1 - num_frames, num_frames, device=self.embedding.device)
        return self.embedding[self._buckets(distance)].t().contiguous()

    def square(self, num_frames: int) -> Tensor:
        """``[H, T, T]`` for ``T = num_frames`` rounded up as `attend` does it.

        Its top left corners serve shorter utterances.
        """
        num_frames = round_up(num_frames, ROW_MULTIPLE)
        # Window s holds distances s - (T - 1) + (0 .. T - 1): that is row i = T - 1 - s.
        return self.by_distance(num_frames).unfold(1, num_frames, 1).flip(1).contiguous()


def attend(
    qkv: Tensor,
    lengths: Sequence[int],
    num_heads: int,
    bias: Tensor | None = None,
    gate: Tensor | None = None,
) -> Tensor:
    """Attention of packed frames: ``[N, 3 D] -> [N, D]``, ``N >= sum(lengths)``.

    Args:
        qkv: queries (already scaled by ``head_dim ** -0.5``), keys and values side by side.
        lengths: frames of each utterance, all positive; rows behind them come out as zeros.
        num_heads: ``H``; ``D = H * head_dim``.
        bias: ``[H, Tmax, Tmax]`` added to the scores after ``gate`` has scaled its rows, or None;
            ``Tmax`` is the longest of ``lengths``, rounded up to `ROW_MULTIPLE`.
        gate: ``[N, H]``, one factor a frame and head; given with ``bias``.
    """
    N, D = qkv.shape[0], qkv.shape[1] // 3
    head_dim = D // num_heads
    out = qkv.new_empty(N, num_heads, head_dim)
    qkv = qkv.view(N, 3, num_heads, head_dim)
    start = 0
    for T in lengths:
        rows = slice(start, start + T)
        _attend_one(qkv[rows], out[rows], bias, None if gate is None else gate[rows].t())
        start += T
    out[start:] = 0
    return out.view(N, D)


def _attend_one(qkv: Tensor, out: Tensor, bias: Tensor | None, gate: Tensor | None) -> None:
    """One utterance: ``qkv [T, 3, H, d]``, ``gate [H, T]``; writes ``out [T, H, d]``."""
    T, _, H, d = qkv.shape
    # Keys that are not there get scores of -inf and so weights of exactly zero; queries that are not
    # there are dropped.
    Tk = round_up(T, ROW_MULTIPLE)
    padded = qkv.new_zeros(3, H, Tk, d)
    padded[:, :, :T] = qkv.permute(1, 2, 0, 3)
    if gate is not None:
        gate = F.pad(gate, (0, Tk - T))
    q, k, v = padded[0], padded[1].transpose(1, 2), padded[2]  # [H, Tk, d], [H, d, Tk], [H, Tk, d]

    bytes_a_row = Tk * q.element_size()
    heads = max(1, min(H, _SCORE_BYTES // (Tk * bytes_a_row)))
    queries = Tk if heads > 1 else max(1, min(Tk, _SCORE_BYTES // bytes_a_row))
    for h in range(0, H, heads):
        hs = slice(h, h + heads)
        for i in range(0, T, queries):
            rows = slice(i, i + queries)
            scores = torch.bmm(q[hs, rows], k[hs])  # [h, t, Tk]
            if bias is not None and gate is not None:
                scores.addcmul_(gate[hs, rows, None], bias[hs, rows, :Tk])
            scores[:, :, T:] = -math.inf
            weights = torch.softmax(scores, dim=-1)
            out[rows, hs] = torch.bmm(weights, v[hs])[:, : T - i].transpose(0, 1)
