"""The definition of the waveform chain in PyTorch, and its path on CPUs.

Recording by recording, so that none can depend on another. In float64 from the first product to the last
rounding: a large offset then leaves the variance, and sums over minutes the mean, as they are, and on a CPU
it costs a tenth of what drawing the noise does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cuda_kernels.philox import white_noise

EPS = 1e-7  # added to the variance by wav2vec 2.0's feature extractor


MAX_SNR = 300.0  # dB either way: the weaker is then far below the other's last bit, even in float64


@dataclass(frozen=True, slots=True)
class WaveformEdit:
    """What is done to one recording. Raises ValueError for a value out of its range."""

    gain: float = 1.0  # a factor, on signal and noise
    snr_db: float | None = None  # None: no noise
    noise_key: int | None = None  # of philox.white_noise; None: the noise given to `edit_waveforms`
    masks: tuple[tuple[int, int], ...] = ()  # samples [first, last) set to zero, behind the noise

    def __post_init__(self) -> None:
        if not math.isfinite(self.gain):
            raise ValueError(f"gain {self.gain}: must be finite")
        if self.snr_db is not None and not abs(self.snr_db) <= MAX_SNR:
            raise ValueError(f"snr_db {self.snr_db}: must be within -{MAX_SNR:g} to {MAX_SNR:g} dB")
        if self.noise_key is not None and self.snr_db is None:
            raise ValueError("a noise_key without an snr_db: there is no noise to draw")
        if self.noise_key is not None and not 0 <= self.noise_key < 2**64:
            raise ValueError(f"noise_key {self.noise_key}: must be within 0 to 2^64 - 1")
        for first, last in self.masks:
            if not 0 <= first <= last:
                raise ValueError(f"mask [{first}, {last}): must be in order and from sample 0 on")


def edit_waveform(x: Tensor, edit: WaveformEdit, noise: Tensor | None, normalise: bool) -> Tensor:
    """One recording ``[n]`` and its noise ``[n]`` -> ``[n]``, float64 (float32 on devices without it)."""
    wide = torch.float32 if x.device.type == "mps" else torch.float64
    signal = x.to(wide)
    y = signal * edit.gain
    if edit.snr_db is not None:
        if edit.noise_key is not None:
            noise = white_noise(edit.noise_key, len(x), x.device, x.dtype)
        assert noise is not None  # edit_waveforms has seen to it
        noise = noise.to(wide)
        y += noise_scale(signal, noise, edit) * noise
    for first, last in edit.masks:
        y[first:last] = 0.0
    if normalise:
        y -= y.mean()
        y *= torch.rsqrt(y.square().mean() + EPS)
    return y


def noise_scale(x: Tensor, noise: Tensor, edit: WaveformEdit) -> Tensor:
    """The factor on the noise (a scalar) that gives gain x the SNR asked for; 0 where none can be had.

    SNR = 10 log10(sum (gain x)^2 / sum (s noise)^2), so s = gain sqrt(sum x^2 / sum noise^2) 10^(-SNR / 20).
    """
    assert edit.snr_db is not None
    power, noise_power = torch.dot(x, x), torch.dot(noise, noise)
    ratio = torch.where(noise_power > 0, power / noise_power, 0.0)
    return ratio.sqrt() * (edit.gain * 10 ** (-edit.snr_db / 20))
