"""GroupNorm of one channel a group, and GELU, in Triton: two passes over memory, two launches.

Utterances are cut into chunks of `CHUNK_ROWS` rows. `_chunk_statistics` gives each chunk's mean and sum
of squared deviations; `_apply` merges those of its utterance (Chan, Golub and LeVeque 1983), then reads
and writes its own chunk once. Chunks are counted from their utterance's first row and merged in their
order, so an utterance's result does not depend on what lies around it. Four seconds are 13 chunks of
the first layer: reading their statistics, from the second-level cache, is a twentieth of a chunk's rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from cuda_kernels.backend import accumulated
from cuda_kernels.packing import on_device
from cuda_kernels.parts import exact_gelu

CHUNK_ROWS = 1024  # rows a program
BLOCK_ROWS = 32  # rows a step
BLOCK_CHANNELS = 64  # a warp reads whole lines of 128 bytes, in half precision too

# Columns of the table of chunks: where its rows lie, and which chunks are its utterance's
FIRST_ROW, NUM_ROWS, FIRST_CHUNK, NUM_CHUNKS, COLUMNS = map(tl.constexpr, range(5))


@triton.jit
def _chunk_statistics(
    x_ptr,
    chunks_ptr,  # int64 [chunks, COLUMNS]
    mean_ptr,  # [chunks, C]
    m2_ptr,  # [chunks, C]
    num_channels,
    row_stride,
    channel_stride,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    dtype: tl.constexpr = mean_ptr.dtype.element_ty
    chunk = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS).to(tl.int64)
    wanted = channel < num_channels
    first_row = tl.load(chunks_ptr + chunk * COLUMNS + FIRST_ROW)
    num_rows = tl.load(chunks_ptr + chunk * COLUMNS + NUM_ROWS)
    x_ptrs = x_ptr + first_row * row_stride + channel * channel_stride

    # Rows less the chunk's first one: rounding is then in proportion to their spread, not their distance
    # from zero.
    pivot = tl.load(x_ptrs, mask=wanted, other=0.0).to(dtype)
    total = tl.zeros([BLOCK_CHANNELS], dtype=dtype)
    m2 = tl.zeros([BLOCK_CHANNELS], dtype=dtype)
    for before in range(0, num_rows, BLOCK_ROWS):
        row = before + tl.arange(0, BLOCK_ROWS).to(tl.int64)
        inside = (row < num_rows)[:, None] & wanted[None, :]
        rows = tl.load(x_ptrs[None, :] + row[:, None] * row_stride, mask=inside, other=0.0).to(dtype)
        centred = tl.where(inside, rows - pivot[None, :], 0.0)
        n = tl.cast(tl.minimum(num_rows - before, BLOCK_ROWS), dtype)
        block_total = tl.sum(centred, axis=0)
        deviation = tl.where(inside, centred - (block_total / n)[None, :], 0.0)
        m2 += tl.sum(deviation * deviation, axis=0)
        if before > 0:
            num_before = tl.cast(before, dtype)
            delta = block_total / n - total / num_before
            m2 += delta * delta * (num_before * n / (num_before + n))
        total += block_total
    offset = chunk * num_channels + channel
    tl.store(mean_ptr + offset, pivot + total / tl.cast(num_rows, dtype), mask=wanted)
    tl.store(m2_ptr + offset, m2, mask=wanted)


@triton.jit
def _apply(
    x_ptr,
    chunks_ptr,
    mean_ptr,
    m2_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    num_channels,
    row_stride,
    channel_stride,
    EPS: tl.constexpr,  # an argument would come as float32
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    dtype: tl.constexpr = mean_ptr.dtype.element_ty
    chunk = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS).to(tl.int64)
    wanted = channel < num_channels
    first_row = tl.load(chunks_ptr + chunk * COLUMNS + FIRST_ROW)
    num_rows = tl.load(chunks_ptr + chunk * COLUMNS + NUM_ROWS)
    first_chunk = tl.load(chunks_ptr + chunk * COLUMNS + FIRST_CHUNK)
    num_chunks = tl.load(chunks_ptr + chunk * COLUMNS + NUM_CHUNKS)  # 0: rows of no utterance

    num_before = tl.zeros([BLOCK_CHANNELS], dtype=dtype)
    mean = tl.zeros([BLOCK_CHANNELS], dtype=dtype)
    m2 = tl.zeros([BLOCK_CHANNELS], dtype=dtype)
    for other in range(first_chunk, first_chunk + num_chunks):
        n = tl.load(chunks_ptr + other * COLUMNS + NUM_ROWS).to(dtype)
        offset = other * num_channels + channel
        delta = tl.load(mean_ptr + offset, mask=wanted, other=0.0) - mean
        m2 += tl.load(m2_ptr + offset, mask=wanted, other=0.0)
        m2 += delta * delta * (num_before * n / (num_before + n))
        mean += delta * (n / (num_before + n))
        num_before += n
    variance = m2 / tl.maximum(num_before, 1.0)
    scale = tl.load(weight_ptr + channel, mask=wanted, other=0.0).to(dtype) / tl.sqrt(variance + EPS)
    bias = tl.load(bias_ptr + channel, mask=wanted, other=0.0).to(dtype)

    x_ptrs = x_ptr + first_row * row_stride + channel * channel_stride
    out_ptrs = out_ptr + first_row * num_channels + channel
    for before in range(0, num_rows, BLOCK_ROWS):
        row = before + tl.arange(0, BLOCK_ROWS).to(tl.int64)
        inside = (row < num_rows)[:, None] & wanted[None, :]
        # Rows of no utterance are not even read: what they hold may be NaN.
        read = inside & (num_chunks > 0)
        rows = tl.load(x_ptrs[None, :] + row[:, None] * row_stride, mask=read, other=0.0).to(dtype)
        y = (rows - mean[None, :]) * scale[None, :] + bias[None, :]
        result = tl.where(read, exact_gelu(y), 0.0).to(out_ptr.dtype.element_ty)
        tl.store(out_ptrs[None, :] + row[:, None] * num_channels, result, mask=inside)


def group_norm_gelu(
    x: Tensor,
    starts: Sequence[int],
    lengths: Sequence[int],
    weight: Tensor,
    bias: Tensor,
    eps: float,
) -> Tensor:
    """``[P, C]`` to ``[P, C]``; strides of ``x`` as they are."""
    dtype = accumulated(x.dtype)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    of_utterances = list(_chunks(starts, lengths))
    of_gaps = list(_gaps(starts, lengths, len(x)))
    if not x.numel():
        return out
    chunks = on_device(torch.tensor(of_utterances + of_gaps, dtype=torch.int64), x.device)
    mean, m2 = torch.empty(2, len(of_utterances), x.shape[1], dtype=dtype, device=x.device)
    blocks = triton.cdiv(x.shape[1], BLOCK_CHANNELS)
    shape = {"BLOCK_ROWS": BLOCK_ROWS, "BLOCK_CHANNELS": BLOCK_CHANNELS}
    rows = (x.shape[1], *x.stride())
    with torch.cuda.device_of(x):
        if of_utterances:
            _chunk_statistics[len(of_utterances), blocks](x, chunks, mean, m2, *rows, **shape)
        _apply[len(chunks), blocks](
            x, chunks, mean, m2, weight.contiguous(), bias.contiguous(), out, *rows, EPS=eps, **shape
        )
    return out


def _chunks(starts: Sequence[int], lengths: Sequence[int]) -> Iterator[tuple[int, int, int, int]]:
    """Rows of the table for all utterances, those of one behind each other."""
    first = 0
    for start, length in zip(starts, lengths, strict=True):
        count = -(-length // CHUNK_ROWS)
        for row in range(0, length, CHUNK_ROWS):
            yield start + row, min(CHUNK_ROWS, length - row), first, count
        first += count


def _gaps(starts: Sequence[int], lengths: Sequence[int], end: int) -> Iterator[tuple[int, int, int, int]]:
    """Rows of the table for what no utterance has."""
    last = 0
    for start, length in [*sorted(zip(starts, lengths, strict=True)), (end, 0)]:
        for row in range(last, start, CHUNK_ROWS):
            yield row, min(CHUNK_ROWS, start - row), 0, 0
        last = start + length
