"""Polyphase resampling in Triton: a program is a block of outputs of one recording.

The filter bank lies transposed, ``[taps, up]``, with the outputs of a period in their own order, so
that neighbouring outputs read neighbouring coefficients; the samples they read lie ``down / up``
apart, and each is read again for ``taps * up / down`` outputs, from the first-level cache. Each output
sums its products in the order of the taps, so it depends on its own samples alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
import triton
import triton.language as tl
from torch import Tensor

from cuda_kernels.packing import on_device

BLOCK = 256  # outputs a program


# Nothing is compiled for one ratio: pitch shifts bring hundreds of them.
@triton.jit(do_not_specialize=["up", "down", "half"])
def _resample(
    x_ptr,
    bank_ptr,  # [taps, up]
    ranges_ptr,  # int64 [num_recordings, 4]: first sample and length, of the input and of the output
    out_ptr,
    up,
    down,
    half,
    BLOCK: tl.constexpr,
):
    ranges = ranges_ptr + 4 * tl.program_id(1).to(tl.int64)
    out_length = tl.load(ranges + 3)
    block_start = tl.program_id(0).to(tl.int64) * BLOCK
    if block_start >= out_length:
        return
    x_ptr += tl.load(ranges)
    length = tl.load(ranges + 1)
    out_ptr += tl.load(ranges + 2)

    m = block_start + tl.arange(0, BLOCK)
    wanted = m < out_length
    first = m * down // up - half + 1
    column = m % up
    total = tl.zeros([BLOCK], dtype=out_ptr.dtype.element_ty)
    for tap in range(2 * half):
        sample = first + tap
        inside = wanted & (sample >= 0) & (sample < length)
        # The bank is read even where no sample is: zeros of its own would cost a second mask.
        total += tl.load(bank_ptr + tap * up + column) * tl.load(x_ptr + sample, mask=inside, other=0.0)
    tl.store(out_ptr + m, total, mask=wanted)


def resample(
    x: Tensor, lengths: Sequence[int], new_lengths: Sequence[int], bank: Tensor, down: int
) -> Tensor:
    """``[sum n] -> [sum m]`` in the dtype of ``x`` and of ``bank [taps, up]``; the ratio in lowest terms."""
    out = torch.empty(sum(new_lengths), dtype=x.dtype, device=x.device)
    if not len(out):
        return out
    starts, new_starts = (list(accumulate(n, initial=0))[:-1] for n in (lengths, new_lengths))
    ranges = torch.tensor(list(zip(starts, lengths, new_starts, new_lengths, strict=True)), dtype=torch.int64)
    ranges = on_device(ranges, x.device)
    taps, up = bank.shape
    grid = (triton.cdiv(max(new_lengths), BLOCK), len(lengths))
    with torch.cuda.device_of(x):
        _resample[grid](x.contiguous(), bank, ranges, out, up, down, taps // 2, BLOCK=BLOCK)
    return out
