"""Matrix products with the weight laid out once, for the device that runs them.

On CPUs, oneDNN's products with a prepacked weight reach 2.4 times `F.linear` in fp32 and 1.2 times
in bf16, and take the bias, an exact GELU or the residual sum along in the same pass over the output.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# oneDNN picks its weight layout for a number of rows; any number may be multiplied afterwards.
# Batches here have hundreds to thousands of frames.
_TYPICAL_ROWS = 1024


def _packs(device: torch.device, dtype: torch.dtype) -> bool:
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32


class Linear:
    """``y = x Wᵀ + b`` for ``x [N, I]``, ``W [O, I]``, ``b [O]``."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, device: torch.device) -> None:
        self.size = weight.numel()
        weight = weight.to(device, dtype).contiguous()
        self.bias = None if bias is None else bias.to(device, dtype).contiguous()
        self.packed = _packs(device, dtype)
        self.weight = (
            torch.ops.mkldnn._reorder_linear_weight(weight, _TYPICAL_ROWS) if self.packed else weight
        )

    def __call__(self, x: Tensor) -> Tensor:
        """``[N, I] -> [N, O]``."""
        if self.packed:
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return F.linear(x, self.weight, self.bias)

    def gelu(self, x: Tensor) -> Tensor:
        """``GELU(x Wᵀ + b)``, the exact (erf) form: ``[N, I] -> [N, O]``."""
        if self.packed:
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "gelu", [], "none")
        return F.gelu(F.linear(x, self.weight, self.bias))

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """``residual + x Wᵀ + b``: ``[N, I], [N, O] -> [N, O]``."""
        if self.packed:
            return torch.ops.mkldnn._linear_pointwise.binary(x, residual, self.weight, self.bias, "add")
        return residual + F.linear(x, self.weight, self.bias)
