"""The edit in Triton: one program for each recording and block of bins walks the output frames.

Phases are 32-bit integers in units of 2^-32 turns. They wrap as a phase does and add without rounding:
nothing drifts, however long the recording, and no order of summation or size of block can show in the
result. What error there is lies in the arc tangents, about 2^-26 turns each, and enters only where the
map skips or repeats a source frame; elsewhere advances telescope.

Walking is enough to fill a GPU: 64 recordings of 321 bins are 1,344 programs. Of these an H200's 132
multiprocessors hold five each at a time (94 registers a thread), with 5 x 64 x 16 x 8 = 41 kB to be read
underway in each, where its memory needs some 25 kB to be kept busy; 4 s are seven steps. A second pass, to
start all steps of a recording at once, would read the source twice for nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from itertools import accumulate
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cuda_kernels.edits import SpectralEdit
from cuda_kernels.packing import on_device

BLOCK_FRAMES = 64
BLOCK_BINS = 16  # complex64: 128 bytes of a row

_QUARTER = tl.constexpr(1 << 30)  # of a turn


def edit_spectrogram(spectrogram: Tensor, lengths: Sequence[int], edits: Sequence[SpectralEdit]) -> Tensor:
    """``[sum T, F]`` complex64 to ``[sum of num_frames, F]``, as the reference; arguments are checked."""
    counts = [edit.num_frames for edit in edits]
    num_bins = spectrogram.shape[1]
    result = torch.empty(sum(counts), num_bins, dtype=spectrogram.dtype, device=spectrogram.device)
    if result.numel() == 0:
        return result
    starts, result_starts = accumulate(lengths, initial=0), accumulate(counts, initial=0)
    copies = [edit.copies for edit in edits]
    frames = _table(zip(starts, lengths, result_starts, counts, copies, strict=False), torch.int64, result)
    maps = _table([(e.rates[0], e.knee, e.rates[1], e.origin) for e in edits], torch.float64, result)
    bands, num_bands = _ranges([edit.bands for edit in edits], result)
    spans, num_spans = _ranges([edit.spans for edit in edits], result)
    blocks = triton.cdiv(num_bins, BLOCK_BINS)
    source = _as_words(spectrogram.contiguous())
    with torch.cuda.device_of(result) if result.is_cuda else nullcontext():
        _edit[(len(edits) * blocks,)](
            source, _as_words(result), frames, maps, bands, spans,
            num_bands, num_spans, num_bins, blocks, BLOCK_FRAMES, BLOCK_BINS,
            sanitize_overflow=False,  # phases are meant to wrap
        )  # fmt: skip
    return result


def _as_words(spectrogram: Tensor) -> Tensor:
    """A view of complex64 as int64: the real part in the lower half. Eight bytes move at once."""
    return torch.view_as_real(spectrogram).view(torch.int64)


def _table(rows: Any, dtype: torch.dtype, like: Tensor) -> Tensor:
    return on_device(torch.tensor(list(rows), dtype=dtype), like.device)


def _ranges(of_each: Sequence[tuple[tuple[int, int], ...]], like: Tensor) -> tuple[Tensor, int]:
    """int32 ``[R, most, 2]``: ``[first, last)`` of each recording, empty slots (0, 0); and ``most``."""
    most = max(1, *map(len, of_each))
    return _table(
        [(*ranges, *[(0, 0)] * (most - len(ranges))) for ranges in of_each], torch.int32, like
    ), most


# One program whatever the numbers of masks: made for one mask each, it takes a third more registers.
@triton.jit(do_not_specialize=["num_bands", "num_spans", "bin_blocks"])
def _edit(
    source: tl.tensor,  # int64 [sum T, F]
    result: tl.tensor,  # int64 [sum of num_frames, F]
    frames: tl.tensor,  # int64 [R, 5]: start and number of source frames, of result frames, whether to copy
    maps: tl.tensor,  # float64 [R, 4]: rate, knee, rate behind it, origin of the map behind it
    bands: tl.tensor,  # int32 [R, num_bands, 2]
    spans: tl.tensor,  # int32 [R, num_spans, 2]
    num_bands: tl.tensor,
    num_spans: tl.tensor,
    num_bins: tl.tensor,
    bin_blocks: tl.tensor,
    block_frames: tl.constexpr,
    block_bins: tl.constexpr,
) -> None:
    recording = (tl.program_id(0) // bin_blocks).to(tl.int64)
    bins = tl.program_id(0) % bin_blocks * block_bins + tl.arange(0, block_bins)
    inside = bins < num_bins
    start = tl.load(frames + recording * 5)
    num_source = tl.load(frames + recording * 5 + 1)
    result_start = tl.load(frames + recording * 5 + 2)
    num_frames = tl.load(frames + recording * 5 + 3)
    copies = tl.load(frames + recording * 5 + 4)
    rate = tl.load(maps + recording * 4)
    knee = tl.load(maps + recording * 4 + 1)
    rate_behind = tl.load(maps + recording * 4 + 2)
    origin = tl.load(maps + recording * 4 + 3)

    banned = _covered(bins, bands + recording * num_bands * 2, num_bands)  # [bins]
    first_row = tl.load(source + start * num_bins + bins, mask=inside & (num_source > 0), other=0)
    phase = _polar(first_row)[1]  # [bins]
    for first in range(0, num_frames, block_frames):
        t = first + tl.arange(0, block_frames)
        position = tl.where(t <= knee, t * rate, (t - origin) * rate_behind)  # float64
        position = tl.minimum(position, num_source.to(tl.float64))
        frame = position.to(tl.int64)
        fraction = (position - frame.to(tl.float64)).to(tl.float32)
        if copies != 0:
            edited = _load_rows(source, start, num_source, t.to(tl.int64), num_bins, bins)
        else:
            before, turns = _polar(_load_rows(source, start, num_source, frame, num_bins, bins))
            after, turns_after = _polar(_load_rows(source, start, num_source, frame + 1, num_bins, bins))
            advance = tl.where((t < num_frames)[:, None], turns_after - turns, 0)
            phases = phase[None, :] + tl.cumsum(advance, axis=0) - advance
            phase += tl.sum(advance, axis=0)
            magnitude = before + fraction[:, None] * (after - before)
            edited = _complex(magnitude, phases)
        masked = banned[None, :] | _covered(t, spans + recording * num_spans * 2, num_spans)[:, None]
        edited = tl.where(masked, 0, edited)
        row = (result_start + t) * num_bins
        there = (t < num_frames)[:, None] & inside[None, :]
        tl.store(result + row[:, None] + bins[None, :], edited, mask=there)


@triton.jit
def _load_rows(
    source: tl.tensor,
    start: tl.tensor,
    num_source: tl.tensor,
    frame: tl.tensor,
    num_bins: tl.tensor,
    bins: tl.tensor,
) -> tl.tensor:
    """int64 ``[frames, bins]``; zero behind the last frame."""
    there = (frame < num_source)[:, None] & (bins < num_bins)[None, :]
    return tl.load(source + ((start + frame) * num_bins)[:, None] + bins[None, :], mask=there, other=0)


@triton.jit
def _covered(index: tl.tensor, ranges: tl.tensor, num_ranges: tl.tensor) -> tl.tensor:
    """Whether each index lies in one of the ranges ``[first, last)``."""
    covered = index < 0
    for i in range(num_ranges):
        first = tl.load(ranges + 2 * i)
        last = tl.load(ranges + 2 * i + 1)
        covered = covered | ((index >= first) & (index < last))
    return covered


@triton.jit
def _polar(word: tl.tensor) -> tl.tensor:
    """Magnitude, and phase in 2^-32 turns; 0 and 0 for a zero, as `torch.abs` and `torch.angle`.

    The phase is built from the arc tangent of the smaller part over the larger, an eighth of a turn at
    most: in eight terms q P(q^2) (minimax), 6e-9 turns off in exact arithmetic and 3e-8 in fp32. No
    square of a part is taken, so none overflows or vanishes.
    """
    real = word.to(tl.int32).to(tl.float32, bitcast=True)
    imag = (word >> 32).to(tl.int32).to(tl.float32, bitcast=True)
    larger = tl.maximum(tl.abs(real), tl.abs(imag), propagate_nan=tl.PropagateNan.ALL)
    smaller = tl.minimum(tl.abs(real), tl.abs(imag))
    ratio = smaller / tl.where(larger > 0, larger, 1.0)
    square = ratio * ratio
    arc = -0.00229204725474119 + square * 0.00039099983405321836
    arc = 0.006331378128379583 + square * arc
    arc = -0.0115146329626441 + square * arc
    arc = 0.016709592193365097 + square * arc
    arc = -0.02253829687833786 + square * arc
    arc = 0.031808558851480484 + square * arc
    arc = -0.05305047705769539 + square * arc
    arc = ratio * (0.15915492177009583 + square * arc)
    turns = (arc * 4294967296.0).to(tl.int32)
    turns = tl.where(tl.abs(imag) > tl.abs(real), _QUARTER - turns, turns)
    turns = tl.where(real < 0, _QUARTER + (_QUARTER - turns), turns)  # half a turn is 2^31: it wraps
    turns = tl.where(imag < 0, -turns, turns)
    return larger * tl.sqrt(1.0 + square), turns


@triton.jit
def _complex(magnitude: tl.tensor, turns: tl.tensor) -> tl.tensor:
    """The inverse of `_polar`, as a word.

    Cosine and sine come from the distance to the nearest quarter turn, an eighth at most, in four terms
    each (minimax): 1e-9 off in exact arithmetic, 1e-7 in fp32.
    """
    shifted = turns + _QUARTER // 2
    quarter = (shifted >> 30) & 3
    x = ((shifted & (_QUARTER - 1)) - _QUARTER // 2).to(tl.float32) * (1.0 / 4294967296.0)
    square = x * x
    sine = 81.58812713623047 + square * -75.24006652832031
    sine = -41.34162902832031 + square * sine
    sine = x * (6.283185005187988 + square * sine)
    cosine = -85.44374084472656 + square * 59.24596405029297
    cosine = 64.93932342529297 + square * cosine
    cosine = 1.0 + square * (-19.739208221435547 + square * cosine)
    odd = (quarter & 1) != 0
    real = tl.where(odd, sine, cosine)
    imag = tl.where(odd, cosine, sine)
    real = magnitude * tl.where((quarter == 1) | (quarter == 2), -real, real)
    imag = magnitude * tl.where(quarter >= 2, -imag, imag)
    low = real.to(tl.int32, bitcast=True).to(tl.int64) & 0xFFFFFFFF
    return (imag.to(tl.int32, bitcast=True).to(tl.int64) << 32) | low
