"""Gain, noise at a signal-to-noise ratio, time masks and normalisation of waveforms, in one pass.

    y = gain x + s noise    s = gain sqrt(sum x^2 / sum noise^2) 10^(-SNR / 20): it holds as measured
    y = 0 in the masks
    z = (y - mean y) / sqrt(var y + 1e-7)                                    with ``normalise`` only

Power, mean and (population) variance are a recording's own. Noise is either white, by key
(`philox.white_noise`), and then need not exist in memory, or given.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cuda_kernels.backend import resolve
from cuda_kernels.edits import EPS, WaveformEdit
from cuda_kernels.philox import white_noise

__all__ = ["WaveformEdit", "edit_waveforms", "silent"]


def edit_waveforms(
    x: Tensor,
    lengths: Sequence[int],
    edits: Sequence[WaveformEdit],
    noise: Tensor | None = None,
    normalise: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Packed waveforms ``[sum of lengths]`` edited, recording by recording; a new tensor like ``x``.

    ``noise`` is packed like ``x`` and read where an edit asks for it only. Lengths may be 0. float32;
    float64 is computed in float64 throughout, by the reference on any device, and is the truth to measure
    errors against. Where a recording or its noise is silent no SNR can be had and no noise is added: ask
    `silent` beforehand. Raises ValueError for shapes, lengths and masks that do not fit, and for an edit
    that wants noise where none is given; TypeError for other dtypes.
    """
    if x.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"waveforms are float32 (or float64), not {x.dtype}")
    _check_lengths(x, lengths)
    if len(edits) != len(lengths):
        raise ValueError(f"{len(edits)} edits for {len(lengths)} recordings")
    for i, (n, edit) in enumerate(zip(lengths, edits, strict=True)):
        if edit.snr_db is not None and edit.noise_key is None and noise is None:
            raise ValueError(f"recording {i}: snr_db {edit.snr_db} with neither a noise_key nor noise given")
        for first, last in edit.masks:
            if last > n:
                raise ValueError(f"recording {i}: mask [{first}, {last}) of {n} samples")
    if noise is not None and (noise.shape, noise.dtype, noise.device) != (x.shape, x.dtype, x.device):
        raise ValueError(
            f"noise {tuple(noise.shape)}, {noise.dtype}, on {noise.device} must be like the waveforms: "
            f"{tuple(x.shape)}, {x.dtype}, on {x.device}"
        )
    if backend == "auto" and x.dtype == torch.float64:
        backend = "torch"
    if resolve(backend, x.device) == "triton":
        if x.dtype == torch.float64:
            raise TypeError("the Triton path takes float32; float64 goes with backend='torch'")
        from cuda_kernels.waveform import kernel

        return kernel.edit_waveforms(x, lengths, edits, noise, normalise)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    sizes = list(lengths)
    noises = [None] * len(sizes) if noise is None else noise.split(sizes)
    for edited, samples, own, edit in zip(out.split(sizes), x.split(sizes), noises, edits, strict=True):
        if len(samples):
            edited.copy_(_edit_waveform(samples, edit, own, normalise))
    return out


def _edit_waveform(x: Tensor, edit: WaveformEdit, noise: Tensor | None, normalise: bool) -> Tensor:
    """One recording ``[n]`` and its noise ``[n]`` -> ``[n]``, float64 (float32 on devices without it).

    It is so from the first product to the last rounding: a large offset then leaves the variance, and sums
    over minutes the mean, as they are, and on a CPU it costs a tenth of what drawing the noise does.
    """
    wide = torch.float32 if x.device.type == "mps" else torch.float64
    signal = x.to(wide)
    y = signal * edit.gain
    if edit.snr_db is not None:
        if edit.noise_key is not None:
            noise = white_noise(edit.noise_key, len(x), x.device, x.dtype)
        assert noise is not None  # edit_waveforms has seen to it
        noise = noise.to(wide)
        # SNR = 10 log10(sum (gain x)^2 / sum (s noise)^2), solved for s; 0 where none can be had.
        power, noise_power = torch.dot(signal, signal), torch.dot(noise, noise)
        ratio = torch.where(noise_power > 0, power / noise_power, 0.0)
        y += ratio.sqrt() * (edit.gain * 10 ** (-edit.snr_db / 20)) * noise
    for first, last in edit.masks:
        y[first:last] = 0.0
    if normalise:
        y -= y.mean()
        y *= torch.rsqrt(y.square().mean() + EPS)
    return y


def silent(x: Tensor, lengths: Sequence[int]) -> list[bool]:
    """For each recording of the packed ``x`` ``[sum of lengths]`` whether all its samples are zero.

    An SNR to such a signal or such noise does not exist. A recording without samples is silent.
    """
    _check_lengths(x, lengths)
    # counts of whole numbers, exact in any order: one read for all, and one copy to the host
    heard = torch.cumsum(x != 0, dim=0, dtype=torch.int64)
    ends = torch.tensor(list(lengths), dtype=torch.int64).cumsum(0)
    until = torch.cat([heard.new_zeros(1), heard])[torch.cat([ends.new_zeros(1), ends]).to(x.device)]
    return [count == 0 for count in until.diff().tolist()]


def _check_lengths(x: Tensor, lengths: Sequence[int]) -> None:
    if x.ndim != 1:
        raise ValueError(f"waveforms are packed [sum of lengths], not {tuple(x.shape)}")
    if any(n < 0 for n in lengths) or sum(lengths) != len(x):
        raise ValueError(f"lengths must be from 0 on and sum to {len(x)}, not {sum(lengths)}")
