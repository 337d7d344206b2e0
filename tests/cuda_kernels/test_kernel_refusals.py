"""Arguments that do not go together are refused, by what is wrong with them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import DEVICE

from cuda_kernels.add_norm import add_norm, norm_rows
from cuda_kernels.attention import GatedBias, attend_packed
from cuda_kernels.edits import MAX_SNR
from cuda_kernels.norm_gelu import group_norm_gelu
from cuda_kernels.packing import pack
from cuda_kernels.pool import pool_rows, row_starts
from cuda_kernels.positional_conv import positional_conv
from cuda_kernels.resample import ratio, resample
from cuda_kernels.spectral import SpectralEdit, edit_by_spectrogram, edit_spectrogram
from cuda_kernels.spectral.stft import HOP, N_FFT, NUM_BINS, analyse, synthesise
from cuda_kernels.waveform import WaveformEdit, edit_waveforms

X, ONES, MEAN = torch.zeros(10, 4), torch.ones(4), ("mean",)
PACKED, WAVE = pack([4, 6], torch.device("cpu")), torch.zeros(100)


def refused(message: str, function: Callable[..., Any], *args: Any, **options: Any) -> None:
    """By a TypeError where a dtype is named, else by a ValueError."""
    error = TypeError if any(kind in message for kind in ("int", "float", "complex", "same")) else ValueError
    with pytest.raises(error, match=message):
        function(*args, **options)


def test_what_does_not_go_together_is_refused() -> None:
    for x, weight, residual in ((X, ONES, X[1:]), (X, ONES[1:], X), (X[0], ONES, None)):
        refused("must be", norm_rows, x, weight, ONES, 1e-5, residual)
    refused("must be the same", add_norm, X, X.double(), ONES, ONES, 1e-5)
    refused("floating-point", norm_rows, X.long(), ONES, ONES, 1e-5)
    for out in (X[1:], X.double(), torch.empty(4, 10).t()):
        refused("out must be", norm_rows, X, ONES, ONES, 1e-5, out=out)

    weight = torch.zeros(2, 3, 2, 2)  # groups, taps, in, out
    refused("do not fit", positional_conv, X[1:], PACKED, weight, ONES, X)
    refused("do not fit", positional_conv, X, pack([4], torch.device("cpu")), weight, ONES, X)
    refused("do not fit", positional_conv, X, PACKED, weight, ONES[1:], X)
    refused("do not fit", positional_conv, X, PACKED, weight[:, :, :, 1:], ONES, X)
    refused("must be the same", positional_conv, X, PACKED, weight.double(), ONES, X)
    refused("floating-point", positional_conv, X.long(), PACKED, weight, ONES, X)

    qkv, bias = torch.zeros(10, 96), GatedBias(torch.zeros(2, 19), torch.zeros(10, 4), torch.zeros(2))
    refused(r"must be \[N, 3 D\]", attend_packed, qkv[1:], PACKED, 2)
    refused(r"must be \[N, 3 D\]", attend_packed, qkv[:, :95], PACKED, 2)
    refused(r"not torch\.int64", attend_packed, qkv.long(), PACKED, 2)
    distances, logits, const = bias
    for wrong in ((distances[:, 5:-5], logits, const), (distances[:, 1:], logits, const),
                  (distances, logits[1:], const), (distances, logits, const[:1])):  # fmt: skip
        refused("must be", attend_packed, qkv, PACKED, 2, GatedBias(*wrong))
    wide, packing = torch.zeros(10, 480, device=DEVICE), pack([10], DEVICE)
    refused("heads of 160 channels", attend_packed, wide, packing, 1, None, "triton")


def test_what_cannot_be_normalised_is_refused() -> None:
    refused("int64", group_norm_gelu, X.long(), [0], [10], ONES, ONES)
    for starts, lengths in (([0, 4], [5, 5]), ([1], [10]), ([-1], [5]), ([3], [-1]), ([0, 2], [10, 0])):
        refused("overlap others or lie outside", group_norm_gelu, X, starts, lengths, ONES, ONES)
    refused("weight", group_norm_gelu, X, [0], [10], ONES[:3], ONES)
    refused("bias", group_norm_gelu, X, [0], [10], ONES, ONES[:3])
    refused("backend 'cuda'", group_norm_gelu, X, [0], [10], ONES, ONES, backend="cuda")


def test_what_cannot_be_pooled_is_refused() -> None:
    refused("int64", pool_rows, X.long(), [10], MEAN)
    refused(r"\[N, D\]", pool_rows, X[0], [4], MEAN)
    for lengths in ([9], [11], [0, 10], [-1, 11], []):
        refused("10 rows in runs of", pool_rows, X, lengths, MEAN)
    refused("unknown statistic 'median'; known: mean", pool_rows, X, [10], ("median",))
    refused("once", pool_rows, X, [10], ("mean", "mean"))
    refused("backend 'cuda'", pool_rows, X, [10], MEAN, backend="cuda")
    for starts in (row_starts([4, 6], DEVICE), row_starts([10], DEVICE).short()):
        refused("starts of 1 runs", pool_rows, X.to(DEVICE), [10], MEAN, "triton", starts)


def test_what_cannot_be_resampled_is_refused() -> None:
    refused("float16", resample, WAVE.half(), [100], 1, 3)
    refused("1/0", resample, WAVE, [100], 1, 0)
    for x, lengths in ((WAVE, [99]), (WAVE, [101]), (WAVE, [-1, 101]), (WAVE[None], [100])):
        refused("lengths add up", resample, x, lengths, 1, 3)
    refused("backend 'cuda'", resample, WAVE, [100], 1, 3, backend="cuda")
    refused("positive", ratio, 0)


def test_wrong_arguments_are_refused() -> None:
    frames, same = torch.zeros(10, 37, dtype=torch.complex64), SpectralEdit(10)
    for lengths in ([9], [11, -1], [5, 4]):
        edits = [SpectralEdit(n) for n in lengths]
        refused("lengths that add up", edit_spectrogram, frames, lengths, edits)
    refused("2 edits for 1 recordings", edit_spectrogram, frames, [10], [same] * 2)
    refused("1 frames from 0", edit_spectrogram, frames[:0], [0], [SpectralEdit(1, (2.0, 2.0))])
    refused("float32", edit_spectrogram, frames.real, [10], [same])
    refused("complex128", edit_spectrogram, frames.to(torch.complex128), [10], [same], "triton")
    refused("int16", analyse, torch.zeros(10, dtype=torch.int16), [10])
    refused("lengths that add up to 9", analyse, torch.zeros(10), [9])
    frames, reach = torch.zeros(10, NUM_BINS, dtype=torch.complex64), 9 * HOP + N_FFT // 2
    assert len(synthesise(frames, [10], [reach])) == reach
    refused("recording 0: 1761 samples from 10 frames, which reach 1760", synthesise, frames, [10], [1761])
    refused("2 numbers of samples", synthesise, frames, [10], [5, 5])
    x, one, sizes = torch.zeros(20), SpectralEdit(1), [10, 10]
    refused("edits for", edit_by_spectrogram, x, sizes, [one], sizes)
    refused("recording 1: rates", edit_by_spectrogram, x, sizes, [one, SpectralEdit(2)], sizes)
    refused("recording 1: 321 samples from 1 frames", edit_by_spectrogram, x, sizes, [one] * 2, [10, 321])

    edit = WaveformEdit()
    for lengths in ([99], [101], [-1, 101]):
        refused("lengths", edit_waveforms, WAVE, lengths, [edit] * len(lengths))
    refused("1 edits for 2 recordings", edit_waveforms, WAVE, [50, 50], [edit])
    refused("packed", edit_waveforms, WAVE.view(2, 50), [50, 50], [edit] * 2)
    masked = [edit, WaveformEdit(masks=((3, 51),))]
    refused(r"recording 1: mask \[3, 51\)", edit_waveforms, WAVE, [50, 50], masked)
    refused("recording 0: snr_db", edit_waveforms, WAVE, [100], [WaveformEdit(snr_db=3.0)])
    for noise in (WAVE[:-1], WAVE.double()):
        refused("like the waveforms", edit_waveforms, WAVE, [100], [edit], noise)
    refused("float16", edit_waveforms, WAVE.half(), [100], [edit])
    refused("float64", edit_waveforms, WAVE.double(), [100], [edit], backend="triton")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (SpectralEdit(9), r"recording 1: rates of \(1, 1\) keep the 10 frames: 9 asked for"),
        (SpectralEdit(-1, (2.0, 2.0)), "recording 1: -1 frames"),
        (SpectralEdit(5, (0.0, 1.0)), "rates"),
        (SpectralEdit(5, (1.0, math.nan)), "rates"),
        (SpectralEdit(5, (math.inf, 1.0)), "rates"),
        (SpectralEdit(5, (2.0, 2.0), knee=-1.0), "knee"),
        (SpectralEdit(5, (2.0, 2.0), knee=math.nan), "knee"),
        (SpectralEdit(10, bands=((0, 38),)), r"band \[0, 38\)"),
        (SpectralEdit(10, bands=((5, 4),)), r"band \[5, 4\)"),
        (SpectralEdit(5, (2.0, 2.0), spans=((0, 2), (4, 6))), r"span \[4, 6\)"),
        (SpectralEdit(10, spans=((-1, 2),)), r"span \[-1, 2\)"),
    ],
)
def test_edits_that_do_not_fit_are_refused(edit: SpectralEdit, message: str) -> None:
    frames = torch.zeros(13, 37, dtype=torch.complex64)
    with pytest.raises(ValueError, match=message):
        edit_spectrogram(frames, [3, 10], [SpectralEdit(3), edit])


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"gain": math.inf}, "gain"),
        ({"gain": math.nan}, "gain"),
        ({"snr_db": math.nan}, "snr_db"),
        ({"snr_db": MAX_SNR + 1}, "snr_db"),
        ({"noise_key": 1}, "snr_db"),
        ({"snr_db": 1.0, "noise_key": -1}, "noise_key"),
        ({"snr_db": 1.0, "noise_key": 2**64}, "noise_key"),
        ({"masks": ((5, 4),)}, "mask"),
        ({"masks": ((-1, 4),)}, "mask"),
    ],
)
def test_wrong_edits_are_refused_by_name(values: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        WaveformEdit(**values)
