"""Coloured noise by key: white noise of that key with its spectrum shaped."""

from __future__ import annotations

import torch

from cuda_kernels.philox import white_noise

FLAT_BELOW = 20.0  # Hz, the lower end of hearing: without it most of brown noise would be slow drift
MAX_EXPONENT = 10.0  # either way: 400^5, at 8 kHz, is still well within float32
SHORTEST = 2048  # samples the spectrum is shaped over at least: bins of 7.8 Hz at 16 kHz


def coloured_noise(
    key: int,
    num_samples: int,
    exponent: float,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    sample_rate: int = 16_000,
) -> torch.Tensor:
    """Noise ``[num_samples]`` with power ~ 1 / f^exponent: 0 white, 1 pink, 2 brown; float32 or float64.

    ``philox.white_noise(key, N)``, N the power of two that holds ``num_samples`` (``SHORTEST`` at least), is
    weighted by ``max(f, FLAT_BELOW)^(-exponent / 2)`` in the frequency domain, f in Hz, without its DC, and
    cut to its first ``num_samples``; their mean square is then made 1. Raises ValueError for an exponent
    beyond ``MAX_EXPONENT`` and for a negative length.
    """
    if not abs(exponent) <= MAX_EXPONENT:
        raise ValueError(f"exponent {exponent}: must be within {-MAX_EXPONENT:g} to {MAX_EXPONENT:g}")
    if num_samples < 0:
        raise ValueError(f"num_samples {num_samples}: must not be negative")
    n_fft = max(SHORTEST, 1 << max(num_samples - 1, 0).bit_length())
    spectrum = torch.fft.rfft(white_noise(key, n_fft, device, dtype))  # [n_fft / 2 + 1]
    hertz = torch.arange(len(spectrum), device=device, dtype=dtype) * (sample_rate / n_fft)
    weights = (hertz / FLAT_BELOW).clamp_(min=1.0).pow_(-exponent / 2)
    weights[0] = 0.0
    noise = torch.fft.irfft(spectrum.mul_(weights), n=n_fft)[:num_samples]
    return noise / noise.square().mean().sqrt() if num_samples else noise
