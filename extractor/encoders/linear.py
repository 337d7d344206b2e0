"""Linear layers and convolutions with the weight laid out once, for the device that runs them.

On CPUs, oneDNN's products with a prepacked weight are faster than `F.linear`, most of all in fp32, and
convolutions of short blocks gain since nothing is laid out again for each block
(`benchmarks/products.py` says how much on a machine). The bias, an exact GELU or the residual sum come
along in the same pass over the output.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

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

# Inputs in int8 go in as unsigned bytes around this: for signed ones oneDNN has no fast product, and its
# reference takes ten thousand times as long.
_ZERO_POINT = 128
# The largest input of a row becomes at most this. Not 127: the scale is rounded to bf16, and 127.5 would
# become 128, which as a signed byte is -128: the outlier would change its sign.
_LARGEST = 126.0
_LARGEST_WEIGHT = 127.0
_SMALLEST = 1e-12  # of what a row is scaled by: a row of zeros stays zeros
_ROWS = 512  # quantised at a time: they stay in cache for the product


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


def _is_linear(device: torch.device, kernel: int, stride: int, groups: int) -> bool:
    """Whether a convolution runs as a linear layer: on a GPU, where its windows lie end to end."""
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


def can_run_int8(device: torch.device) -> bool:
    """CPUs with VNNI, and native bf16 for the rest.

    Without VNNI pairs of products are summed in int16 first, which overflows.
    """
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_vnni") and capabilities.get("avx512_bf16"))


def quantise_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """bf16 ``[N, I]`` to bytes ``[N, I]`` around 128, and what a unit is worth, bf16 ``[N, 1]``.

    A row with a NaN or an infinity gets such a unit: it is not hidden.
    """
    largest = torch.maximum(x.amax(1, keepdim=True), x.amin(1, keepdim=True).neg_())
    per_unit = (_LARGEST / largest.float().clamp_min_(_SMALLEST)).to(x.dtype)
    signed = (x * per_unit).round_().to(torch.int8)
    # Flipping the top bit adds 128.
    return signed.view(torch.uint8).bitwise_xor_(_ZERO_POINT), per_unit.float().reciprocal_().to(x.dtype)


class Int8Linear(Linear):
    """``y = x Wᵀ + b`` for bf16 ``x [N, I]``, ``W [O, I]``, ``b [O]``, on CPUs with VNNI.

    Weights have a scale an output, inputs a scale a row, made as they come, so that a frame's result does not
    depend on what it is encoded with (a scale for a whole batch would be faster, and would break that).
    Products are summed in int32; what comes out is bf16. How near that is to fp32 depends on a model's
    weights and on what it hears: `extractor.run.fidelity` measures it before a run (`docs/eight-bits.md`).
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """``weight`` and ``bias`` in float32, on the CPU."""
        self.size = weight.numel()
        self.packed = True
        self.scale = (weight.abs().amax(1) / _LARGEST_WEIGHT).clamp_min(_SMALLEST)  # [O]
        whole = (weight / self.scale[:, None]).round().clamp(-_LARGEST_WEIGHT, _LARGEST_WEIGHT)
        shape = [_TYPICAL_ROWS, weight.shape[1]]
        self.weight = torch.ops.onednn.qlinear_prepack(whole.to(torch.int8), shape)
        self.zero = torch.zeros(len(weight), dtype=torch.int32)
        self.added = (torch.zeros(len(weight)) if bias is None else bias).to(torch.bfloat16)

    def __call__(self, x: Tensor) -> Tensor:
        """``[N, I] -> [N, O]``."""
        return self._in_blocks(x, lambda rows, out: self._product(x[rows], self.added, out))

    def gelu(self, x: Tensor) -> Tensor:
        """``GELU(x Wᵀ + b)``, the exact (erf) form: ``[N, I] -> [N, O]``."""

        def block(rows: slice, out: Tensor) -> None:
            self._product(x[rows], self.added, out)
            torch.ops.aten.gelu_(out)

        return self._in_blocks(x, block)

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """``residual + x Wᵀ + b``: ``[N, I], [N, O] -> [N, O]``."""
        return self._in_blocks(x, lambda rows, out: self._product(x[rows], residual[rows] + self.added, out))

    def _product(self, x: Tensor, added: Tensor, out: Tensor) -> None:
        whole, unit = quantise_rows(x)
        y = torch.ops.onednn.qlinear_pointwise(
            *(whole, 1.0, _ZERO_POINT, self.weight, self.scale, self.zero),
            *(None, 1.0, 0, torch.bfloat16, "none", [], ""),
        )
        # The unit differs by row, so that neither the bias nor a GELU can come along in the product.
        torch.addcmul(added, y, unit, out=out)

    def _in_blocks(self, x: Tensor, block: Callable[[slice, Tensor], None]) -> Tensor:
        out = x.new_empty(len(x), len(self.zero))
        for i in range(0, len(x), _ROWS):
            rows = slice(i, min(i + _ROWS, len(x)))
            block(rows, out[rows])
        return out


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
        self.as_linear: Tensor | None = None
        if not self.packed and _is_linear(device, self.kernel, stride, groups):
            self.as_linear = weight[:, :, 0].transpose(1, 2).flatten(1)  # [C_out, K C_in]

    def __call__(self, x: Tensor) -> Tensor:
        if self.as_linear is not None:
            num_rows = len(x) // self.kernel
            windows = x[: num_rows * self.kernel].reshape(num_rows, -1)  # a view
            return F.linear(windows, self.as_linear, self.bias)
        return self._rows(x, "none", "")

    def gelu(self, x: Tensor) -> Tensor:
        """The exact (erf) GELU of the convolution."""
        return self._rows(x, "gelu", "none") if self.packed else F.gelu(self(x))

    def _rows(self, x: Tensor, then: str, algorithm: str) -> Tensor:
        x4 = x[None, None].permute(0, 3, 1, 2)  # [1, C, 1, T], channels last without a copy
        if self.packed:
            geometry = [0, 0], [1, self.stride], [1, 1], self.groups
            y = torch.ops.mkldnn._convolution_pointwise(
                x4, self.weight, self.bias, *geometry, then, [], algorithm
            )
        else:
            y = F.conv2d(x4, self.weight, self.bias, stride=(1, self.stride), groups=self.groups)
        return y.permute(0, 2, 3, 1).reshape(y.shape[-1], -1)


def receptive_field(kernels: Sequence[int], strides: Sequence[int]) -> int:
    """Input rows that one output row of a row of convolutions sees."""
    field = 1
    for kernel, stride in zip(reversed(kernels), reversed(strides), strict=True):
        field = (field - 1) * stride + kernel
    return field
