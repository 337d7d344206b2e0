"""Linear layers in int8 on CPUs with VNNI: weights have a scale an output, inputs a scale a row.

Scales of inputs are made as they come and belong to one frame each, so that a frame's result does not
depend on what it is encoded with (a scale for a whole batch would be faster, and would break that).
Products are summed in int32; what comes out, and all that is not a linear layer, is bf16.

How near that is to fp32 depends on a model's weights and on what it hears: `extractor.run.fidelity` measures
it before a run. `docs/eight-bits.md` has the figures.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from extractor.encoders.products import Linear

# Inputs go in as unsigned bytes around this: for signed ones oneDNN has no fast product, and its
# reference takes ten thousand times as long.
_ZERO_POINT = 128
# The largest input of a row becomes at most this. Not 127: the scale is rounded to bf16, and 127.5 would
# become 128, which as a signed byte is -128: the outlier would change its sign.
_LARGEST = 126.0
_LARGEST_WEIGHT = 127.0
_SMALLEST = 1e-12  # of what a row is scaled by: a row of zeros stays zeros
_ROWS = 512  # quantised at a time: they stay in cache for the product
_TYPICAL_ROWS = 1024  # a layout is picked for; any number may be multiplied


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
    """``y = x Wᵀ + b`` for bf16 ``x [N, I]``, ``W [O, I]``, ``b [O]``."""

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
