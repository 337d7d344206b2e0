"""Matrix products and convolutions with the weight laid out once, for the device that runs them.

On CPUs, oneDNN's products with a prepacked weight are faster than `F.linear`, most of all in fp32, and
convolutions of short blocks gain since nothing is laid out again for each block
(`benchmarks/products.py` says how much on a machine). The bias, an exact GELU or the residual sum come
along in the same pass over the output.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Numbers of rows are rounded up to this: bf16 values in a 512-bit register. oneDNN makes a program for
# each new shape and keeps it, so that memory grew with the number of different lengths; and softmax pays
# for the scalar tail of an odd row.
ROW_MULTIPLE = 32

# oneDNN picks a weight's layout for a number of rows; any number may be multiplied afterwards.
# Batches here have hundreds to thousands of frames.
_TYPICAL_ROWS = 1024


def round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def blank_rows(count: int, like: Tensor) -> Tensor:
    """Rows that bring a number of rows to a multiple; they reach no row that is kept."""
    return like.new_zeros(count, *like.shape[1:])


def _packs(device: torch.device, dtype: torch.dtype) -> bool:
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32


def _is_product(device: torch.device, kernel: int, stride: int, groups: int) -> bool:
    """Whether a convolution runs as a plain product: on a GPU, where its windows lie end to end."""
    return device.type == "cuda" and kernel == stride and groups == 1


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


class Conv:
    """Convolution over rows without padding: ``[T, C_in] -> [(T - K) // stride + 1, C_out]``.

    Rows keep a frame's channels together ("channels last"), as norms and products want them.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        dtype: torch.dtype,
        device: torch.device,
        stride: int = 1,
        groups: int = 1,
        typical_rows: int = _TYPICAL_ROWS,
    ) -> None:
        """``weight [C_out, C_in / groups, K]``, ``bias [C_out]``; ``typical_rows``: of the input."""
        self.size, self.kernel = weight.numel(), weight.shape[-1]
        self.stride, self.groups = stride, groups
        weight = weight.to(device, dtype)[:, :, None].contiguous(memory_format=torch.channels_last)
        self.bias = None if bias is None else bias.to(device, dtype).contiguous()
        self.packed = _packs(device, dtype)
        if self.packed:
            shape = [1, weight.shape[1] * groups, 1, max(typical_rows, self.kernel)]
            weight = torch.ops.mkldnn._reorder_convolution_weight(
                weight, [0, 0], [1, stride], [1, 1], groups, shape
            )
        self.weight = weight
        self.product: Tensor | None = None
        if not self.packed and _is_product(device, self.kernel, stride, groups):
            self.product = weight[:, :, 0].transpose(1, 2).flatten(1)  # [C_out, K C_in]

    def __call__(self, x: Tensor) -> Tensor:
        if self.product is not None:
            num_rows = len(x) // self.kernel
            windows = x[: num_rows * self.kernel].reshape(num_rows, -1)  # a view
            return F.linear(windows, self.product, self.bias)
        return self._rows(x, "none", "")

    def gelu(self, x: Tensor) -> Tensor:
        """The exact (erf) GELU of the convolution."""
        return self._rows(x, "gelu", "none") if self.packed else F.gelu(self(x))

    def _rows(self, x: Tensor, then: str, algorithm: str) -> Tensor:
        x4 = x[None, None].permute(0, 3, 1, 2)  # [1, C, 1, T], channels last without a copy
        if self.packed:
            y = torch.ops.mkldnn._convolution_pointwise(
                x4,
                self.weight,
                self.bias,
                [0, 0],
                [1, self.stride],
                [1, 1],
                self.groups,
                then,
                [],
                algorithm,
            )
        else:
            y = F.conv2d(x4, self.weight, self.bias, stride=(1, self.stride), groups=self.groups)
        return y.permute(0, 2, 3, 1).reshape(y.shape[-1], -1)
