"""The waveform chain in Triton: sums, where power or variance are wanted, then one read and one write.

`_sum_chunks` adds up, a program a chunk of one recording, the seven sums of which the noise's scale, the
mean and the variance of the result follow in closed form; `_apply` adds its recording's chunks up again, in
their order, and writes. White noise is drawn in both and lies in no memory; the second read comes from the
second-level cache. A recording is cut into chunks by its own length alone, and none adds to another's sums,
so that its result is the same, bit for bit, in any batch. All but the noise is float64, as in the reference.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from cuda_kernels.edits import EPS, WaveformEdit
from cuda_kernels.packing import on_device

BLOCK = 2048  # samples a step; a multiple of four, so that no counter's four samples are parted
# Warps of a program of each kernel: the fewest for which no version of the compiler spills a register.
SUM_WARPS, APPLY_WARPS = 16, 8
MAX_CHUNKS = 256  # of one recording, which `_apply` reads at once; longer ones take several steps a chunk

NO_NOISE, WHITE, GIVEN = map(tl.constexpr, range(3))
# A recording's row in the plan, int64: the floats gain and ratio by their bits
START, LENGTH, FIRST_BLOCK, FIRST_CHUNK, NUM_CHUNKS, STEPS = map(tl.constexpr, range(6))
NOISE, KEY, GAIN, RATIO, FIRST_MASK, LAST_MASK, COLUMNS = map(tl.constexpr, range(6, 13))
# A chunk's sums, float64: over all its samples, then over those outside masks (K, kept)
XX, NN, KX, KN, KXX, KXN, KNN, SUMS = map(tl.constexpr, range(8))


@triton.jit
def _normal_pair(word, angle_word):
    """Box and Muller on two words, as in `philox.white_noise`."""
    u = word.to(tl.float32) * 2.3283064365386963e-10 + 2.3283064365386963e-10  # 2^-32
    radius = tl.sqrt(-2.0 * tl.log(u))
    angle = angle_word.to(tl.float32) * 1.4629180792671596e-09  # 2 pi 2^-32
    return radius * tl.cos(angle), radius * tl.sin(angle)


@triton.jit
def philox_words(key, counter):
    """The four words of `philox.philox4x32`, uint32 ``[N]`` each, for counters int64 ``[N]``."""
    zero = tl.zeros_like(counter).to(tl.uint32)
    return tl.philox(key, counter.to(tl.uint32), (counter >> 32).to(tl.uint32), zero, zero)


@triton.jit
def _white(key, counter):
    """Samples 4 counter to 4 counter + 3 of the key's noise: float32 ``[4 N]`` for counters ``[N]``."""
    w0, w1, w2, w3 = philox_words(key, counter)
    lane0, lane1 = _normal_pair(w0, w1)
    lane2, lane3 = _normal_pair(w2, w3)
    return tl.interleave(tl.interleave(lane0, lane2), tl.interleave(lane1, lane3))


@triton.jit
def _read(x_ptr, noise_ptr, masks_ptr, row, first, BLOCK: tl.constexpr):
    """A block of one recording: samples and noise, float64, zero past its end, and where no mask is."""
    at = first + tl.arange(0, BLOCK)
    inside = at < tl.load(row + LENGTH)
    start = tl.load(row + START)
    x = tl.load(x_ptr + start + at, mask=inside, other=0.0)
    noise = tl.zeros([BLOCK], dtype=tl.float32)
    kind = tl.load(row + NOISE)
    if kind == WHITE:
        noise = _white(tl.load(row + KEY), first // 4 + tl.arange(0, BLOCK // 4))
    elif kind == GIVEN:
        noise = tl.load(noise_ptr + start + at, mask=inside, other=0.0)
    noise = tl.where(inside, noise, 0.0)
    kept = inside
    for mask in range(tl.load(row + FIRST_MASK), tl.load(row + LAST_MASK)):
        kept &= (at < tl.load(masks_ptr + 2 * mask)) | (at >= tl.load(masks_ptr + 2 * mask + 1))
    return x.to(tl.float64), noise.to(tl.float64), kept


@triton.jit(do_not_specialize=["num_chunks"])
def _sum_chunks(
    x_ptr,
    noise_ptr,
    rows_ptr,  # int64 [num_recordings, COLUMNS]
    masks_ptr,  # int64 [num_masks, 2]
    recording_ptr,  # int64 [num_chunks]: the recording a chunk is of
    sums_ptr,  # float64 [SUMS, num_chunks]
    num_chunks,
    BLOCK: tl.constexpr,
):
    chunk = tl.program_id(0).to(tl.int64)
    row = rows_ptr + COLUMNS * tl.load(recording_ptr + chunk)
    steps = tl.load(row + STEPS)
    first = (chunk - tl.load(row + FIRST_CHUNK)) * steps * BLOCK
    xx = tl.full((), 0.0, tl.float64)
    nn, kx, kn, kxx, kxn, knn = xx, xx, xx, xx, xx, xx
    for step in range(steps):
        x, noise, kept = _read(x_ptr, noise_ptr, masks_ptr, row, first + step * BLOCK, BLOCK)
        xx += tl.sum(x * x)
        nn += tl.sum(noise * noise)
        x = tl.where(kept, x, 0.0)
        noise = tl.where(kept, noise, 0.0)
        kx += tl.sum(x)
        kn += tl.sum(noise)
        kxx += tl.sum(x * x)
        kxn += tl.sum(x * noise)
        knn += tl.sum(noise * noise)
    sums_ptr += chunk
    tl.store(sums_ptr + XX * num_chunks, xx)
    tl.store(sums_ptr + NN * num_chunks, nn)
    tl.store(sums_ptr + KX * num_chunks, kx)
    tl.store(sums_ptr + KN * num_chunks, kn)
    tl.store(sums_ptr + KXX * num_chunks, kxx)
    tl.store(sums_ptr + KXN * num_chunks, kxn)
    tl.store(sums_ptr + KNN * num_chunks, knn)


@triton.jit
def _total(sums_ptr, row, which, num_chunks, MAX_CHUNKS: tl.constexpr):
    """One of the sums over all chunks of a recording."""
    chunk = tl.arange(0, MAX_CHUNKS)
    own = sums_ptr + which * num_chunks + tl.load(row + FIRST_CHUNK)
    return tl.sum(tl.load(own + chunk, mask=chunk < tl.load(row + NUM_CHUNKS), other=0.0))


@triton.jit(do_not_specialize=["num_chunks"])
def _apply(
    x_ptr,
    noise_ptr,
    rows_ptr,  # int64 [num_recordings, COLUMNS]
    masks_ptr,  # int64 [num_masks, 2]
    recording_ptr,  # int64 [num_blocks]: the recording a block is of
    sums_ptr,  # float64 [SUMS, num_chunks], read with HAS_SUMS only
    out_ptr,
    num_chunks,
    eps,
    HAS_SUMS: tl.constexpr,
    NORMALISE: tl.constexpr,
    BLOCK: tl.constexpr,
    MAX_CHUNKS: tl.constexpr,
):
    block = tl.program_id(0).to(tl.int64)
    row = rows_ptr + COLUMNS * tl.load(recording_ptr + block)
    first = (block - tl.load(row + FIRST_BLOCK)) * BLOCK
    x, noise, kept = _read(x_ptr, noise_ptr, masks_ptr, row, first, BLOCK)
    gain = tl.load(row + GAIN).to(tl.float64, bitcast=True)
    y = gain * x
    if HAS_SUMS:
        xx = _total(sums_ptr, row, XX, num_chunks, MAX_CHUNKS)
        nn = _total(sums_ptr, row, NN, num_chunks, MAX_CHUNKS)
        ratio = tl.load(row + RATIO).to(tl.float64, bitcast=True)
        scale = tl.where(nn > 0.0, gain * ratio * tl.sqrt(xx / tl.where(nn > 0.0, nn, 1.0)), 0.0)
        y += scale * noise
    y = tl.where(kept, y, 0.0)
    length = tl.load(row + LENGTH)
    if NORMALISE:
        kx = _total(sums_ptr, row, KX, num_chunks, MAX_CHUNKS)
        kn = _total(sums_ptr, row, KN, num_chunks, MAX_CHUNKS)
        kxx = _total(sums_ptr, row, KXX, num_chunks, MAX_CHUNKS)
        kxn = _total(sums_ptr, row, KXN, num_chunks, MAX_CHUNKS)
        knn = _total(sums_ptr, row, KNN, num_chunks, MAX_CHUNKS)
        mean = (gain * kx + scale * kn) / length
        power = (gain * gain * kxx + 2.0 * gain * scale * kxn + scale * scale * knn) / length
        # In float64 the difference is good to 1e-16 of the power; it may fall below zero by as much.
        variance = tl.maximum(power - mean * mean, 0.0)
        y = (y - mean) / tl.sqrt(variance + eps)
    at = first + tl.arange(0, BLOCK)
    tl.store(out_ptr + tl.load(row + START) + at, y.to(tl.float32), mask=at < length)


def edit_waveforms(
    x: Tensor, lengths: Sequence[int], edits: Sequence[WaveformEdit], noise: Tensor | None, normalise: bool
) -> Tensor:
    """See `waveform.edit_waveforms`, which has checked the arguments; float32 only."""
    x = x.contiguous()
    out = torch.empty_like(x)
    if not len(x):
        return out
    given = x if noise is None else noise.contiguous()  # where none is given, no row asks for it
    plan = _plan(lengths, edits, normalise)
    num_blocks, num_chunks = len(plan[2]), len(plan[3])
    # One copy to the device for all four, and views of it. Each begins at a multiple of 16 bytes: for every
    # other address Triton would compile the kernels anew.
    parts = [np.pad(part.ravel(), (0, part.size % 2)) for part in plan]
    packed = on_device(torch.from_numpy(np.concatenate(parts)), x.device)
    rows, masks, of_block, of_chunk = packed.split([part.size for part in parts])
    sums = torch.empty(int(SUMS), num_chunks, dtype=torch.float64, device=x.device)
    with torch.cuda.device_of(x):
        if num_chunks:
            _sum_chunks[(num_chunks,)](
                x, given, rows, masks, of_chunk, sums, num_chunks, BLOCK=BLOCK, num_warps=SUM_WARPS
            )
        _apply[(num_blocks,)](
            x,
            given,
            rows,
            masks,
            of_block,
            sums,
            out,
            num_chunks,
            EPS,
            HAS_SUMS=num_chunks > 0,
            NORMALISE=normalise,
            BLOCK=BLOCK,
            MAX_CHUNKS=MAX_CHUNKS,
            num_warps=APPLY_WARPS,
        )
    return out


def _plan(lengths: Sequence[int], edits: Sequence[WaveformEdit], normalise: bool) -> list[np.ndarray]:
    """Rows, masks, and the recording of each block and of each chunk: int64."""
    rows = np.zeros((len(lengths), int(COLUMNS)), dtype=np.int64)
    floats = rows.view(np.float64)
    masks: list[tuple[int, int]] = []
    start = first_block = first_chunk = 0
    blocks, chunks = [], []
    for row, real, n, edit in zip(rows, floats, lengths, edits, strict=True):
        steps = max(1, triton.cdiv(n, BLOCK * MAX_CHUNKS))
        blocks.append(triton.cdiv(n, BLOCK))
        chunks.append(triton.cdiv(n, BLOCK * steps) if normalise or edit.snr_db is not None else 0)
        row[: int(NOISE)] = start, n, first_block, first_chunk, chunks[-1], steps
        real[int(GAIN)] = edit.gain
        if edit.snr_db is not None:
            row[int(NOISE)] = int(GIVEN if edit.noise_key is None else WHITE)
            row[int(KEY)] = np.uint64(edit.noise_key or 0).view(np.int64)
            real[int(RATIO)] = 10 ** (-edit.snr_db / 20)
        row[int(FIRST_MASK)] = len(masks)
        masks.extend(edit.masks)
        row[int(LAST_MASK)] = len(masks)
        start, first_block, first_chunk = start + n, first_block + blocks[-1], first_chunk + chunks[-1]
    recordings = np.arange(len(lengths))
    return [
        rows,
        np.array(masks, dtype=np.int64),
        np.repeat(recordings, blocks),
        np.repeat(recordings, chunks),
    ]
