"""The band-pass: a linear-phase FIR filter applied without its delay, by FFT.

A sinc under a Kaiser window (Oppenheim and Schafer, Discrete-Time Signal Processing, section 7.5.3), 80 dB
down from half a transition width outside an edge on, flat within 0.001 dB from half of one inside it on;
at the edge itself 6 dB down. 100 Hz of transition take 401 samples, 25 ms, on either side.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from extractor.types import SAMPLE_RATE

ATTENUATION_DB = 80.0
TRANSITION = 100.0  # Hz
# Kaiser's formulas for the window's shape and for its half width in samples.
BETA = 0.1102 * (ATTENUATION_DB - 8.7)
HALF_WIDTH = math.ceil((ATTENUATION_DB - 7.95) / (2.285 * 2 * math.pi * TRANSITION / SAMPLE_RATE) / 2)


def band_pass(x: Tensor, low: float, high: float) -> Tensor:
    """``[n] -> [n]``, float32 or float64, with what lies outside ``low`` to ``high`` Hz removed.

    Zero phase: nothing moves in time. Beyond both ends there is silence. 0 and 8000 Hz are no edges.
    """
    n = len(x)
    n_fft = _fft_size(n + HALF_WIDTH)  # behind x as many zeros as the filter reaches: nothing wraps around
    response = _response(low, high, n_fft).to(x.device, x.dtype)
    return torch.fft.irfft(torch.fft.rfft(x, n=n_fft).mul_(response), n=n_fft)[:n]


def impulse_response(low: float, high: float) -> Tensor:
    """float64 ``[2 * HALF_WIDTH + 1]``, symmetric about its middle, which is time 0."""
    time = torch.arange(-HALF_WIDTH, HALF_WIDTH + 1, dtype=torch.float64)
    window = torch.special.i0(BETA * (1 - (time / HALF_WIDTH).square()).sqrt())
    return (_low_pass(time, high) - _low_pass(time, low)) * (window / window.max())


def _low_pass(time: Tensor, edge: float) -> Tensor:
    """The ideal low-pass at ``edge`` Hz; at half the sample rate it is exactly the identity."""
    if edge == SAMPLE_RATE / 2:
        return (time == 0).to(time.dtype)
    share = 2 * edge / SAMPLE_RATE
    return share * torch.sinc(share * time)


@lru_cache(maxsize=16)
def _response(low: float, high: float, n_fft: int) -> Tensor:
    """float64 ``[n_fft / 2 + 1]``: the filter's gain at each frequency, real because it has no delay."""
    circular = torch.zeros(max(n_fft, 2 * HALF_WIDTH + 1), dtype=torch.float64)
    filter_ = impulse_response(low, high)
    circular[: HALF_WIDTH + 1] = filter_[HALF_WIDTH:]
    circular[-HALF_WIDTH:] = filter_[:HALF_WIDTH]
    return torch.fft.rfft(circular).real


def _fft_size(least: int) -> int:
    """A size of at least ``least`` that FFTs are fast at: 17 to 32 times a power of two.

    At least the filter's own width; few sizes, so that responses are found again.
    """
    least = max(least, 2 * HALF_WIDTH + 1)
    step = 1 << max(least.bit_length() - 5, 0)
    return -(-least // step) * step
