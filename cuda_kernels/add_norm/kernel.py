"""Sum, LayerNorm and GELU of rows in Triton: each row is read once and written once.

A program holds a few whole rows in registers: `BLOCK_ELEMENTS` values, 32 a thread. Mean and variance take
two passes over the registers, none over memory. 12,000 rows of 1,024 channels make 3,000 programs, of which
half a dozen share a multiprocessor, so that some load while others compute.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from cuda_kernels.parts import exact_gelu, unbroken

BLOCK_ELEMENTS = 4096  # a program
NUM_WARPS = 4


@triton.jit(do_not_specialize=["num_rows"])  # it changes from batch to batch
def _add_norm(
    x_ptr,
    residual_ptr,  # [N, D], or None
    weight_ptr,
    bias_ptr,
    sum_ptr,  # [N, D], or None where it is not wanted
    normed_ptr,  # [N, D]
    num_rows,
    row_stride,
    residual_row_stride,
    EPS: tl.constexpr,  # an argument would come as float32
    GELU: tl.constexpr,
    NUM_CHANNELS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    dtype: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    channel = tl.arange(0, BLOCK_CHANNELS)
    wanted = channel < NUM_CHANNELS
    inside = (row < num_rows)[:, None] & wanted[None, :]
    x_ptrs = x_ptr + row[:, None] * row_stride + channel[None, :]
    total = tl.load(x_ptrs, mask=inside, other=0.0).to(dtype)
    if residual_ptr is not None:
        residual_ptrs = residual_ptr + row[:, None] * residual_row_stride + channel[None, :]
        total += tl.load(residual_ptrs, mask=inside, other=0.0).to(dtype)
    offset = row[:, None] * NUM_CHANNELS + channel[None, :]
    if sum_ptr is not None:
        tl.store(sum_ptr + offset, total.to(sum_ptr.dtype.element_ty), mask=inside)

    mean = tl.sum(total, axis=1) / NUM_CHANNELS
    deviation = tl.where(inside, total - mean[:, None], 0.0)
    variance = tl.sum(deviation * deviation, axis=1) / NUM_CHANNELS
    scale = 1.0 / tl.sqrt(variance + EPS)
    weight = tl.load(weight_ptr + channel, mask=wanted, other=0.0).to(dtype)
    bias = tl.load(bias_ptr + channel, mask=wanted, other=0.0).to(dtype)
    normed = deviation * scale[:, None] * weight[None, :] + bias[None, :]
    if GELU:
        normed = exact_gelu(normed)
    tl.store(normed_ptr + offset, normed.to(normed_ptr.dtype.element_ty), mask=inside)


def add_norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    gelu: bool,
    total: Tensor | None,
    normed: Tensor,
) -> None:
    """``[N, D]`` each; writes the sum, where it is wanted, and the norm; rows strided as they are."""
    N, D = x.shape
    if N == 0:
        return
    x, residual = unbroken(x), None if residual is None else unbroken(residual)
    block_channels = triton.next_power_of_2(D)
    block_rows = max(1, BLOCK_ELEMENTS // block_channels)
    with torch.cuda.device_of(x):
        _add_norm[(triton.cdiv(N, block_rows),)](
            x,
            residual,
            weight.contiguous(),
            bias.contiguous(),
            total,
            normed,
            N,
            x.stride(0),
            0 if residual is None else residual.stride(0),
            EPS=eps,
            GELU=gelu,
            NUM_CHANNELS=D,
            BLOCK_ROWS=block_rows,
            BLOCK_CHANNELS=block_channels,
            num_warps=NUM_WARPS,
        )
