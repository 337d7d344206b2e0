"""Statistics of runs of rows in Triton: a program walks the rows of one run in one block of channels.

64 runs of 200 frames of 1,024 channels make 1,024 programs, several for each multiprocessor, so that
the rows of a run need not be shared out. Rows are read once, as they are (bf16 takes half the bytes).
A tile's mean and squared deviations are merged into those of the rows before it (Chan, Golub and
LeVeque 1983), in the order of the rows: nothing cancels, and no run sees another.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_ROWS = 32
BLOCK_CHANNELS = 64


@triton.jit
def _pool_rows(
    x_ptr,
    starts_ptr,  # int64 [S + 1]
    mean_ptr,  # [S, D], or None where it is not wanted; so are all statistics
    m2_ptr,
    min_ptr,
    max_ptr,
    first_ptr,
    last_ptr,
    num_channels,
    row_stride,
    channel_stride,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    dtype: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    run = tl.program_id(1).to(tl.int64)
    channel = tl.program_id(0) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    wanted = channel < num_channels
    start = tl.load(starts_ptr + run)
    length = tl.load(starts_ptr + run + 1) - start
    x_ptr += start * row_stride
    x_ptrs = x_ptr + channel.to(tl.int64) * channel_stride
    offset = run * num_channels + channel

    total = tl.zeros([BLOCK_CHANNELS], dtype=dtype)
    m2 = tl.zeros([BLOCK_CHANNELS], dtype=dtype)
    # The means that m2 is merged by are of rows less the first one: their rounding is then in proportion
    # to the rows' spread, not to their distance from zero.
    pivot = tl.load(x_ptrs, mask=wanted, other=0.0).to(dtype)
    centred_total = tl.zeros([BLOCK_CHANNELS], dtype=dtype)
    low = tl.full([BLOCK_CHANNELS], float("inf"), dtype=dtype)
    high = tl.full([BLOCK_CHANNELS], float("-inf"), dtype=dtype)
    nan = tl.zeros([BLOCK_CHANNELS], dtype=tl.int32)
    for before in range(0, length, BLOCK_ROWS):
        row = before + tl.arange(0, BLOCK_ROWS).to(tl.int64)
        inside = (row < length)[:, None] & wanted[None, :]
        rows = tl.load(x_ptrs[None, :] + row[:, None] * row_stride, mask=inside, other=0.0).to(dtype)
        total += tl.sum(rows, axis=0)
        if m2_ptr is not None:
            n = tl.cast(tl.minimum(length - before, BLOCK_ROWS), dtype)
            centred = tl.where(inside, rows - pivot[None, :], 0.0)
            tile_total = tl.sum(centred, axis=0)
            deviation = tl.where(inside, centred - (tile_total / n)[None, :], 0.0)
            m2 += tl.sum(deviation * deviation, axis=0)
            if before > 0:
                num_before = tl.cast(before, dtype)
                delta = tile_total / n - centred_total / num_before
                m2 += delta * delta * (num_before * n / (num_before + n))
            centred_total += tile_total
        if min_ptr is not None:
            low = tl.minimum(low, tl.min(tl.where(inside, rows, float("inf")), axis=0))
        if max_ptr is not None:
            high = tl.maximum(high, tl.max(tl.where(inside, rows, float("-inf")), axis=0))
        if min_ptr is not None or max_ptr is not None:
            nan = tl.maximum(nan, tl.max((rows != rows).to(tl.int32), axis=0))

    if mean_ptr is not None:
        tl.store(mean_ptr + offset, total / length.to(dtype), mask=wanted)
    if m2_ptr is not None:
        tl.store(m2_ptr + offset, m2, mask=wanted)
    if min_ptr is not None:
        tl.store(min_ptr + offset, tl.where(nan > 0, float("nan"), low), mask=wanted)
    if max_ptr is not None:
        tl.store(max_ptr + offset, tl.where(nan > 0, float("nan"), high), mask=wanted)
    if first_ptr is not None:
        tl.store(first_ptr + offset, pivot, mask=wanted)
    if last_ptr is not None:
        last = tl.load(x_ptrs + (length - 1) * row_stride, mask=wanted, other=0.0)
        tl.store(last_ptr + offset, last.to(dtype), mask=wanted)


def pool_rows(x: Tensor, starts: Tensor, *statistics: Tensor | None) -> None:
    """``[N, D]`` into ``[S, D]`` each, or None where it is not wanted; strides of ``x`` as they are.

    ``starts``: int64 ``[S + 1]`` on the device, the end of the last run with them. ``statistics`` in the
    order of `_pool_rows`.
    """
    num_runs, num_channels = len(starts) - 1, x.shape[1]
    if not num_runs or not num_channels or not any(out is not None for out in statistics):
        return
    grid = (triton.cdiv(num_channels, BLOCK_CHANNELS), num_runs)
    shape = {"BLOCK_ROWS": BLOCK_ROWS, "BLOCK_CHANNELS": BLOCK_CHANNELS}
    with torch.cuda.device_of(x):
        _pool_rows[grid](x, starts, *statistics, num_channels, *x.stride(), **shape)
