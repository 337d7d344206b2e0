"""Resampling of packed recordings by a ratio of whole numbers.

The filter (`reference.filter_bank`) is designed once a ratio and kept for the latest ratios.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cuda_kernels.backend import resolve
from cuda_kernels.resample import reference

__all__ = ["ratio", "resample"]


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
    frequency keep their level within 0.0001 dB, those from 1 on are 100 dB down (see `reference`).
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
    new_lengths = [reference.num_resampled(n, up, down) for n in lengths]
    if up == down:
        return x.clone(), new_lengths
    if resolve(backend, x.device) == "triton":
        from cuda_kernels.resample import kernel

        return kernel.resample(x, lengths, up, down), new_lengths
    return reference.resample(x, lengths, up, down), new_lengths
