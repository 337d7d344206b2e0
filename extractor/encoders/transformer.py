"""One transformer layer of the wav2vec2 family, as a CPU runs it; a GPU runs its weights by `fused`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from extractor.encoders.attention import attend
from extractor.encoders.cnn import Activation
from extractor.encoders.weights import DEFAULT_EPS, Weights, fold_qkv


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
        self.norm_first = config.do_stable_layer_norm
        adapter = f"{name}.adapter_layer"
        self.adapter = Adapter(weights, adapter) if f"{adapter}.norm.weight" in weights else None

        self.size = self.qkv.size + self.out.size + self.fc1.size + self.fc2.size

    def __call__(self, x: Tensor, lengths: Sequence[int], bias: Tensor | None) -> Tensor:
        """``[N, D] -> [N, D]``; ``bias [H, Tmax, Tmax]`` or None as `attend` takes it."""
        if self.norm_first:
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
