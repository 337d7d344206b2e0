"""The positional convolution in Triton: a matrix product a tap, GELU and the sum behind them, one launch.

A program makes up to `TILE_ROWS` frames of one utterance in one group of channels: for each of the kernel's
taps, the frames that it meets times its matrix. Frames outside of the utterance are zeros that are never
loaded, taps that meet no frame of it are left out; so no utterance needs room around it and none sees
another. Every tap reads its frames again, from the second-level cache: 24 KB for a product of 1 MFLOP, 4.6 GB
in all for four minutes of audio in a large model, the bound of this kernel.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from cuda_kernels.packing import TILE_ROWS, Packing
from cuda_kernels.parts import exact_gelu, own_rows, unbroken

# Rows, warps and pipeline stages of a program, by bytes of an element and whether a group has more than 64
# channels: the largest for which no version of the compiler spills registers.
SHAPES = {
    (2, False): (128, 8, 3),
    (2, True): (128, 8, 3),
    (4, False): (32, 8, 1),
    (4, True): (16, 8, 1),
}


@triton.jit
def _positional_conv(
    x_ptr,
    tiles_ptr,  # int32 [tiles, COLUMNS]
    weight_ptr,  # [groups, K, width, width]
    bias_ptr,
    residual_ptr,
    out_ptr,
    num_channels,
    row_stride,
    residual_row_stride,
    KERNEL: tl.constexpr,
    WIDTH: tl.constexpr,  # channels of a group
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    begin, length, first = own_rows(tiles_ptr, BLOCK_ROWS)
    if first >= length:
        return
    group = tl.program_id(1)
    left: tl.constexpr = KERNEL // 2

    row = first + tl.arange(0, BLOCK_ROWS)
    channel = tl.arange(0, BLOCK_CHANNELS)
    of_group = channel < WIDTH
    x_ptrs = x_ptr + begin * row_stride + group * WIDTH + channel[None, :]
    weight_ptrs = weight_ptr + group.to(tl.int64) * KERNEL * WIDTH * WIDTH
    weight_ptrs += channel[:, None] * WIDTH + channel[None, :]
    last = tl.minimum(first + BLOCK_ROWS, length) - 1
    total = tl.zeros([BLOCK_ROWS, BLOCK_CHANNELS], dtype=tl.float32)
    for tap in range(tl.maximum(0, left - last), tl.minimum(KERNEL, left + length - first)):
        met = row + tap - left
        wanted = ((met >= 0) & (met < length))[:, None] & of_group[None, :]
        x = tl.load(x_ptrs + met.to(tl.int64)[:, None] * row_stride, mask=wanted, other=0.0)
        wanted = of_group[:, None] & of_group[None, :]
        weight = tl.load(weight_ptrs + tap * WIDTH * WIDTH, mask=wanted, other=0.0)
        total = tl.dot(x, weight, total, input_precision="ieee")

    of_row = (row < length)[:, None] & of_group[None, :]
    total += tl.load(bias_ptr + group * WIDTH + channel, mask=of_group, other=0.0).to(tl.float32)[None, :]
    at = (begin + row)[:, None]
    residual_ptrs = residual_ptr + at * residual_row_stride + group * WIDTH + channel[None, :]
    result = tl.load(residual_ptrs, mask=of_row, other=0.0).to(tl.float32) + exact_gelu(total)
    out_ptrs = out_ptr + at * num_channels + group * WIDTH + channel[None, :]
    tl.store(out_ptrs, result.to(out_ptr.dtype.element_ty), mask=of_row)


def positional_conv(x: Tensor, packing: Packing, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    """``[N, D]`` to ``[N, D]``; rows strided as they are."""
    groups, taps, width, _ = weight.shape
    out = torch.empty(residual.shape, dtype=residual.dtype, device=residual.device)
    tiles = packing.tiles
    if not out.numel():
        return out
    x, residual = unbroken(x), unbroken(residual)
    block_rows, num_warps, num_stages = SHAPES[x.element_size(), width > 64]
    with torch.cuda.device_of(x):
        _positional_conv[len(tiles), groups, TILE_ROWS // block_rows](
            x,
            tiles,
            weight.contiguous(),
            bias.contiguous(),
            residual,
            out,
            groups * width,
            x.stride(0),
            residual.stride(0),
            KERNEL=taps,
            WIDTH=width,
            BLOCK_ROWS=block_rows,
            BLOCK_CHANNELS=max(16, triton.next_power_of_2(width)),
            num_warps=num_warps,
            num_stages=num_stages,
        )
    return out
