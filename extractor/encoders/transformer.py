"""One transformer layer of the wav2vec2 family, as a CPU runs it; a GPU runs its weights by `fused`.

Attention is over packed frames: each utterance attends to its own frames only. Plain batched products are
used rather than fused attention: on CPUs they are as fast as SDPA in fp32 and more than twice as fast in bf16
at speech lengths (`benchmarks/products.py`), and WavLM's gated bias fits between them. Scores never take more
than `_SCORE_BYTES`: heads, then query rows, are taken in chunks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from extractor.encoders.cnn import Activation
from extractor.encoders.linear import ROW_MULTIPLE, round_up
from extractor.encoders.weights import DEFAULT_EPS, Weights, fold_qkv

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


class TransformerLayer:
    """One layer, with the norm before each half ('stable') or behind it."""

    def __init__(self, weights: Weights, config: Any, index: int, activation: Activation | None) -> None:
        name = f"encoder.layers.{index}"
        self.num_heads = config.num_attention_heads
        self.gated = f"{name}.attention.gru_rel_pos_linear.weight" in weights
        self.qkv = fold_qkv(weights, f"{name}.attention", self.num_heads, self.gated)
        if self.gated:
            self.gate_const = weights.get(f"{name}.attention.gru_rel_pos_const").view(-1)  # [H]
        self.out = weights.linear(f"{name}.attention.out_proj")
        self.fc1 = weights.linear(f"{name}.feed_forward.intermediate_dense")
        self.fc2 = weights.linear(f"{name}.feed_forward.output_dense")
        self.norm1 = weights.norm(f"{name}.layer_norm")
        self.norm2 = weights.norm(f"{name}.final_layer_norm")
        self.activation = activation  # None is the exact GELU, which the first product takes along
        self.pre_norm = config.do_stable_layer_norm
        adapter = f"{name}.adapter_layer"
        self.adapter = Adapter(weights, adapter) if f"{adapter}.norm.weight" in weights else None

        self.size = self.qkv.size + self.out.size + self.fc1.size + self.fc2.size

    def __call__(self, x: Tensor, lengths: Sequence[int], bias: Tensor | None) -> Tensor:
        """``[N, D] -> [N, D]``; ``bias [H, Tmax, Tmax]`` or None as `attend` takes it."""
        if self.pre_norm:
            x = self.out.add(self.attention(self.norm1(x), lengths, bias), x)
            x = self.fc2.add(self.feed_forward(self.norm2(x)), x)
            return x if self.adapter is None else self.adapter(x)
        x = self.norm1(self.out.add(self.attention(x, lengths, bias), x))
        return self.norm2(self.fc2.add(self.feed_forward(x), x))

    def feed_forward(self, x: Tensor) -> Tensor:
        return self.fc1.gelu(x) if self.activation is None else self.activation(self.fc1(x))

    def attention(self, x: Tensor, lengths: Sequence[int], bias: Tensor | None) -> Tensor:
        D, H = x.shape[1], self.num_heads
        qkv = self.qkv(x)  # [N, 3 D], WavLM: [N, 3 D + 2 H]
        if not self.gated:
            return attend(qkv, lengths, H)
        a, b = torch.sigmoid(qkv[:, 3 * D :]).split(H, dim=1)
        gate = a * (b * self.gate_const - 1.0) + 2.0  # Chen et al. 2021, equation 5
        return attend(qkv[:, : 3 * D], lengths, H, bias, gate)


class Adapter:
    """Language adapter of MMS checkpoints: ``x + W2 relu(W1 norm(x))``."""

    def __init__(self, weights: Weights, name: str) -> None:
        self.norm = weights.norm(f"{name}.norm", DEFAULT_EPS)
        self.down, self.up = weights.linear(f"{name}.linear_1"), weights.linear(f"{name}.linear_2")

    def __call__(self, x: Tensor) -> Tensor:
        return self.up.add(F.relu(self.down(self.norm(x))), x)
