"""Resampling of packed recordings by a ratio of whole numbers.

The filter (`filter_bank`) is a sinc under a Kaiser window (Oppenheim and Schafer, Discrete-Time Signal
Processing, section 7.5.3), designed once a ratio and kept for the latest ratios. Relative to the lower of
the two Nyquist frequencies the pass band ends at 0.9, flat within 0.0001 dB, and the stop band starts at 1,
so that nothing folds back into the result, and is more than 100 dB down, below the rounding of 16-bit
recordings. That takes 64.8 samples of the lower rate on either side. soxr's HQ has the same band (its pass
band ends at 0.913).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from cuda_kernels.backend import resolve

ATTENUATION_DB = 101.0  # designed; Kaiser's formulas are good to 1 dB, and 100 are met (tested)
PASS_BAND = 0.9  # of the lower Nyquist frequency; the stop band starts at 1
# Kaiser's formulas for the window's shape and for its half width, in samples of the lower rate.
BETA = 0.1102 * (ATTENUATION_DB - 8.7)
HALF_WIDTH = (ATTENUATION_DB - 7.95) / (2.285 * math.pi * (1 - PASS_BAND)) / 2

_GROUP = 64  # outputs a matrix product, measured: fewer make poor products, more multiply more zeros


def ratio(source_rate: int, target_rate: int = 16_000) -> tuple[int, int]:
    """``(up, down)`` in lowest terms, rates in Hz: ``ratio(48_000) == (1, 3)``."""
    if source_rate < 1 or target_rate < 1:
        raise ValueError(f"resampling from {source_rate} Hz to {target_rate} Hz: rates must be positive")
    divisor = math.gcd(source_rate, target_rate)
    return target_rate // divisor, source_rate // divisor


def resample(
    x: Tensor, lengths: Sequence[int], up: int, down: int, backend: str = "auto"
) -> tuple[Tensor, list[int]]:
    """Recordings ``[sum(lengths)]`` at ``up / down`` times their rate, and their new lengths.

    float32 in and out, or float64 (the truth that float32 is measured against). ``n`` samples become
    ``n * up / down``, rounded half up. Sample 0 stays at time 0: the filter has no delay; beyond both
    ends there is silence. Empty recordings are allowed. Frequencies up to 0.9 of the lower Nyquist
    frequency keep their level within 0.0001 dB, those from 1 on are 100 dB down.
    A NaN or an infinity spoils the outputs within the filter's reach, on a CPU also some near by.

    Raises TypeError for another dtype, ValueError for lengths that do not add up and for ``up`` or
    ``down`` below 1.
    """
    if x.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"resample takes float32 or float64, not {x.dtype}")
    if up < 1 or down < 1:
        raise ValueError(f"resampling by {up}/{down}: both must be at least 1")
    if x.dim() != 1 or any(n < 0 for n in lengths) or sum(lengths) != len(x):
        raise ValueError(f"lengths add up to {sum(lengths)} samples, x is {list(x.shape)}")
    divisor = math.gcd(up, down)
    up, down = up // divisor, down // divisor
    new_lengths = [num_resampled(n, up, down) for n in lengths]
    if up == down:
        return x.clone(), new_lengths
    if resolve(backend, x.device) == "triton":
        from cuda_kernels.resample import kernel

        return kernel.resample(x, lengths, new_lengths, _bank(up, down, x.dtype, x.device), down), new_lengths
    out = x.new_empty(sum(new_lengths))
    for samples, resampled in zip(x.split(list(lengths)), out.split(new_lengths), strict=True):
        if len(resampled):
            resampled.copy_(_resample_one(samples, len(resampled), up, down))
    return out, new_lengths


def num_resampled(num_samples: int, up: int, down: int) -> int:
    """Samples that ``num_samples`` become: ``num_samples * up / down``, rounded half up."""
    return (2 * num_samples * up + down) // (2 * down)


def half_width(up: int, down: int) -> int:
    """Input samples on either side of an output's time that it is made of."""
    return math.ceil(HALF_WIDTH * max(1.0, down / up))


def filter_bank(up: int, down: int) -> Tensor:
    """float64 ``[up, taps]``: row ``j`` makes the outputs ``m`` with ``m % up == j``.

    Output ``m`` lies at the input's time ``m * down / up`` and is the product of its row with the
    ``taps = 2 * half_width`` samples from ``m * down // up - half_width + 1`` on. ``up`` and ``down``
    have no common divisor. A row sums to 1: a constant stays itself, in every phase.
    """
    half = half_width(up, down)
    phase = torch.arange(up) * down % up
    time = (phase.double() / up)[:, None] - torch.arange(1 - half, half + 1)  # [up, taps], input samples
    cutoff = (1 + PASS_BAND) / 2 * min(1.0, up / down)  # of the input's Nyquist frequency
    angle = math.pi * cutoff * time
    sinc = angle.sin() / angle
    sinc[angle == 0] = 1
    bank = sinc * _kaiser(time / half)
    return bank / bank.sum(dim=1, keepdim=True)


def _kaiser(x: Tensor) -> Tensor:
    """``I0(BETA * sqrt(1 - x**2))`` within -1 < x < 1, else 0.

    By the power series of I0, which is one in ``1 - x**2`` and three times as fast here as
    `torch.special.i0`: a pitch shift by a new ratio waits for it. Its 28 terms reach float64's end.
    """
    inside = 1 - x.square()
    # Open: where a phase of 0 has a sample at the one end of the window, it has none at the other.
    inside.mul_(inside > 0)
    square = inside * (BETA / 2) ** 2
    total = torch.zeros_like(x)
    for k in reversed(range(28)):
        torch.addcmul(total.new_tensor(1 / math.factorial(k) ** 2), total, square, out=total)
    return total.mul_(inside > 0)


@lru_cache(maxsize=32)
def _bank(up: int, down: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``[taps, up]``, as the kernel reads it."""
    return filter_bank(up, down).t().to(dtype).contiguous().to(device)


def _resample_one(samples: Tensor, num_out: int, up: int, down: int) -> Tensor:
    """``[n] -> [num_out]`` by matrix products.

    Outputs recur with a period of ``up`` per ``down`` inputs. One matrix holds the filters of a group
    of consecutive outputs, each shifted to its place, with zeros around them; its product with a
    matrix of the group's inputs in every period is the group in every period. The zeros cost less
    than gathering each output's taps does.
    """
    half = half_width(up, down)
    period_out, period_in, groups = _groups(up, down, samples.dtype, samples.device)
    num_periods = -(-num_out // period_out)
    width = max(offset + len(matrix) for offset, matrix in groups)
    padded = samples.new_zeros(max((num_periods - 1) * period_in + width, half - 1 + len(samples)))
    padded[half - 1 : half - 1 + len(samples)] = samples
    out = samples.new_empty(num_periods, period_out)
    first = 0
    for offset, matrix in groups:
        rows = -(-(num_out - first) // period_out)  # periods in which the group has a wanted output
        if rows <= 0:
            break
        inputs = padded.as_strided((rows, len(matrix)), (period_in, 1), offset)
        out[:rows, first : first + matrix.shape[1]] = inputs @ matrix
        first += matrix.shape[1]
    return out.view(-1)[:num_out]


@lru_cache(maxsize=32)
def _groups(
    up: int, down: int, dtype: torch.dtype, device: torch.device
) -> tuple[int, int, list[tuple[int, Tensor]]]:
    """Outputs and inputs of a period, and its groups: first input, and matrix ``[inputs, outputs]``."""
    bank = filter_bank(up, down)
    taps = bank.shape[1]
    repeats = -(-_GROUP // up)  # several short periods make one
    period_out, period_in = repeats * up, repeats * down
    groups = []
    for start in range(0, period_out, _GROUP):
        m = torch.arange(start, min(start + _GROUP, period_out))
        first = m * down // up
        shift = first - first[0]
        matrix = torch.zeros(len(m), int(shift[-1]) + taps, dtype=torch.float64)
        matrix.scatter_(1, shift[:, None] + torch.arange(taps), bank[m % up])
        matrix = matrix.t().to(dtype).contiguous().to(device)
        groups.append((int(first[0]), matrix))
    return period_out, period_in, groups
