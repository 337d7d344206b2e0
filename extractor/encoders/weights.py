"""A checkpoint's tensors on their way into the forward pass: cast, moved, folded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cuda_kernels.add_norm import norm_rows
from extractor.encoders.linear import Int8Linear, Linear, round_up

# A product's outputs are padded to this on a GPU: rows of 16 values begin where wide loads can begin.
_OUTPUT_MULTIPLE = 16

# torch's own, of every norm that the reference builds without saying the config's: those of the CNN, the
# adapter and the positional convolution.
DEFAULT_EPS = 1e-5


@dataclass(frozen=True, slots=True)
class Norm:
    """LayerNorm over the last axis."""

    weight: Tensor
    bias: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)

    def gelu(self, x: Tensor, backend: str) -> Tensor:
        """With the exact GELU behind it, in one kernel: ``[N, D] -> [N, D]``."""
        return norm_rows(x, self.weight, self.bias, self.eps, gelu=True, backend=backend)


@dataclass(frozen=True, slots=True)
class Weights:
    """Tensors by the names of the `transformers` model, cast on the way out."""

    tensors: Mapping[str, Tensor]
    dtype: torch.dtype
    device: torch.device
    eps: float
    kernels: str | None = None  # backend of the fused kernels that will use them; None: plain products
    int8: bool = False  # linear layers in int8

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def raw(self, name: str) -> Tensor:
        """As the checkpoint has it: float32, on the CPU."""
        return self.tensors[name]

    def get(self, name: str) -> Tensor:
        return self.tensors[name].to(self.device, self.dtype).contiguous()

    def norm(self, name: str, eps: float | None = None) -> Norm:
        return Norm(self.get(f"{name}.weight"), self.get(f"{name}.bias"), self.eps if eps is None else eps)

    def linear(self, name: str) -> Linear:
        return self.linear_of(self.raw(f"{name}.weight"), self.raw(f"{name}.bias"))

    def linear_of(self, weight: Tensor, bias: Tensor) -> Linear:
        """Of tensors that were made of the checkpoint's, float32."""
        if self.int8:
            return Int8Linear(weight, bias)
        return Linear(weight, bias, self.dtype, self.device)


def fold_weight_norm(weights: Weights, name: str) -> Tensor:
    """Weight norm over the kernel axis, ``w = g v / |v|``, in its old and its new parametrisation."""
    if f"{name}.weight" in weights:
        return weights.raw(f"{name}.weight")
    old, new = f"{name}.weight_", f"{name}.parametrizations.weight.original"
    names = (f"{old}g", f"{old}v") if f"{old}g" in weights else (f"{new}0", f"{new}1")
    g, v = (weights.raw(n) for n in names)
    return v * (g / v.norm(dim=(0, 1), keepdim=True))


def fold_batch_norm(weights: Weights, name: str) -> tuple[Tensor, Tensor] | None:
    """BatchNorm in evaluation as ``scale, shift``, each ``[D]``, or None where there is none."""
    if f"{name}.running_var" not in weights:
        return None
    scale = weights.raw(f"{name}.weight") * torch.rsqrt(weights.raw(f"{name}.running_var") + DEFAULT_EPS)
    shift = weights.raw(f"{name}.bias") - weights.raw(f"{name}.running_mean") * scale
    return scale.to(weights.device, weights.dtype), shift.to(weights.device, weights.dtype)


def fold_qkv(weights: Weights, name: str, num_heads: int, gated: bool) -> Linear:
    """Queries (scaled), keys and values as one product, WavLM's two gate logits a head behind them."""
    parts = [(weights.raw(f"{name}.{p}_proj.weight"), weights.raw(f"{name}.{p}_proj.bias")) for p in "qkv"]
    D = parts[0][0].shape[0]
    scale = (D // num_heads) ** -0.5
    parts[0] = (parts[0][0] * scale, parts[0][1] * scale)
    if gated:
        # The reference projects each head's slice of the input to 8 values and sums them in fours.
        weight = weights.raw(f"{name}.gru_rel_pos_linear.weight").view(2, 4, -1).sum(1)  # [2, d]
        bias = weights.raw(f"{name}.gru_rel_pos_linear.bias").view(2, 4).sum(1)  # [2]
        for w, b in zip(weight, bias, strict=True):
            parts.append((torch.block_diag(*[w[None]] * num_heads), b.expand(num_heads)))  # [H, D], [H]
        if weights.kernels:
            outputs = sum(len(w) for w, _ in parts)
            blank = round_up(outputs, _OUTPUT_MULTIPLE) - outputs
            parts.append((parts[0][0].new_zeros(blank, D), parts[0][1].new_zeros(blank)))
    weight = torch.cat([w for w, _ in parts])
    return weights.linear_of(weight, torch.cat([b for _, b in parts]))
