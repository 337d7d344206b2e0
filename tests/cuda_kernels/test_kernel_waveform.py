"""Noise has the level asked for as measured, masks cover what was asked, and no recording sees another."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from conftest import BACKENDS, DEVICE, relative_error
from test_kernels import EDITS
from test_philox import words
from torch import Tensor

from cuda_kernels.backend import interpreted
from cuda_kernels.philox import white_noise
from cuda_kernels.waveform import WaveformEdit, edit_waveforms, kernel, silent

# Both paths compute in float64 and round once, to float32 (6e-8), but for the noise: that is drawn in
# float32, where logarithm, root and angle of two libraries each differ by a rounding or two (1e-7).
KERNEL = 3e-7
# A power measured on float32 samples: their roundings are independent of what is measured.
DECIBELS = 0.001


def waveform(num_samples: int, seed: int = 0, offset: float = 0.0, scale: float = 0.1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(num_samples, generator=generator) * scale + offset).to(DEVICE)


def power(x: Tensor) -> float:
    return x.double().square().mean().item()


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks, several chunks and several steps a chunk at lengths the interpreter can do."""
    monkeypatch.setattr(kernel, "BLOCK", 256)
    monkeypatch.setattr(kernel, "MAX_CHUNKS", 4)


@triton.jit
def _words_kernel(out_ptr, key, first, N: tl.constexpr):
    counter = first + tl.arange(0, N)
    w0, w1, w2, w3 = kernel.philox_words(key, counter.to(tl.int64))
    lanes = tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3))
    tl.store(out_ptr + tl.arange(0, 4 * N), lanes.to(tl.int64))


@pytest.mark.parametrize("first", [0, 2**32 - 7])
@pytest.mark.parametrize("key", [0, 3, 2**63 + 2**31, 2**64 - 1])
def test_words_on_the_device_are_those_of_philox_bit_for_bit(key: int, first: int) -> None:
    out = torch.empty(64, dtype=torch.int64, device=DEVICE)
    _words_kernel[(1,)](out, int(np.uint64(key).view(np.int64)), first, N=16)
    np.testing.assert_array_equal(out.cpu().numpy().reshape(16, 4), words(key, first, 16))


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("backend", BACKENDS)
def test_16001_samples_in_steps_of_several_blocks(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "BLOCK", 1024)
    x, edit = waveform(16_001), WaveformEdit(0.7, 5.0, 11, ((1, 2000), (15_000, 16_001)))
    y = edit_waveforms(x, [16_001], [edit], normalise=True, backend=backend)
    truth = edit_waveforms(x.double(), [16_001], [edit], normalise=True)
    assert relative_error(y, truth) < KERNEL


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_mate_of_nans_spoils_nothing(backend: str) -> None:
    lengths = [500, 63, 1000]
    x, noise = waveform(sum(lengths)), waveform(sum(lengths), 1)
    edits = [EDITS["given"], EDITS["all"], EDITS["white"]]
    clean = edit_waveforms(x, lengths, edits, noise, True, backend)
    x[500:563] = math.nan
    noise[500:] = math.nan  # nor is noise read where none is asked for
    spoilt = edit_waveforms(x, lengths, edits, noise, True, backend)
    assert torch.equal(spoilt[:500], clean[:500])
    assert torch.equal(spoilt[563:], clean[563:])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("snr_db", [-10.0, 0.0, 13.7, 40.0])
@pytest.mark.parametrize("color", ["white", "given"])
def test_the_snr_is_the_one_asked_for_as_measured(backend: str, snr_db: float, color: str) -> None:
    """At a second and at a tenth of one: the level is set by the noise drawn, not by its expectation."""
    lengths = [1600, 16_000] if not (backend == "triton" and interpreted()) else [1600]
    key = 8 if color == "white" else None
    edits = [WaveformEdit(0.25, snr_db, key)] * len(lengths)
    x, noise = waveform(sum(lengths)), waveform(sum(lengths), 2, offset=1.0)
    y = edit_waveforms(x, lengths, edits, noise, backend=backend)
    for own, samples in zip(y.split(lengths), x.split(lengths), strict=True):
        signal = 0.25 * samples.double()
        measured = 10 * math.log10(power(signal) / power(own.double() - signal))
        assert abs(measured - snr_db) < DECIBELS


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_noise_added_is_white_noise_of_the_key(backend: str) -> None:
    x, n = waveform(1000), 1000
    added = edit_waveforms(x, [n], [WaveformEdit(1.0, -40.0, 5)], backend=backend) - x
    expected = white_noise(5, n, DEVICE)
    # The signal, 40 dB below, is taken away up to its sum's rounding.
    assert relative_error(added / added.norm(), expected / expected.norm()) < 1e-6


@pytest.mark.parametrize("backend", BACKENDS)
def test_masks_cover_exactly_what_was_asked_for(backend: str) -> None:
    n, masks = 1000, ((0, 3), (250, 260), (255, 300), (512, 512), (999, 1000))
    x = waveform(n, offset=1.0)
    for edit in (WaveformEdit(0.5, 0.0, 3), WaveformEdit(0.5)):
        plain = edit_waveforms(x, [n], [edit], backend=backend)
        edit = WaveformEdit(edit.gain, edit.snr_db, edit.noise_key, masks)
        masked = edit_waveforms(x, [n], [edit], backend=backend)
        inside = torch.zeros(n, dtype=torch.bool, device=DEVICE)
        for first, last in masks:
            inside[first:last] = True
        assert (masked[inside] == 0).all()
        assert torch.equal(masked[~inside], plain[~inside])
        assert (plain != 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_gain_is_a_factor_and_no_edit_changes_nothing(backend: str) -> None:
    x = waveform(500)
    assert torch.equal(edit_waveforms(x, [500], [WaveformEdit()], backend=backend), x)
    assert torch.equal(edit_waveforms(x, [500], [WaveformEdit(-0.25)], backend=backend), -0.25 * x)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("offset", [0.0, 10.0])  # 100 times the deviation
@pytest.mark.parametrize("name", ["nothing", "gain", "white", "all"])
def test_a_normalised_recording_has_mean_0_and_variance_1(backend: str, offset: float, name: str) -> None:
    n = 2500
    y = edit_waveforms(
        waveform(n, offset=offset), [n], [EDITS[name]], normalise=True, backend=backend
    ).double()
    # eps lowers the variance by 1e-7 of it: 1e-5 at a deviation of 0.1, 1e-4 with the gain of -0.3 on it
    assert abs(y.mean().item()) < 1e-6
    assert abs(y.square().mean().item() - 1) < 2e-4


@pytest.mark.parametrize("backend", BACKENDS)
def test_normalising_is_that_of_wav2vec_2(backend: str) -> None:
    from transformers import Wav2Vec2FeatureExtractor

    x = waveform(2500, offset=0.01)
    expected = Wav2Vec2FeatureExtractor(do_normalize=True)(x.cpu().double().numpy(), sampling_rate=16_000)
    y = edit_waveforms(x, [2500], [WaveformEdit()], normalise=True, backend=backend)
    # the extractor normalises in float32: a mean and a square of 2,500 samples
    assert relative_error(y.cpu(), torch.from_numpy(expected["input_values"][0])) < 1e-6


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("normalise", [False, True])
def test_silence_stays_finite(backend: str, normalise: bool) -> None:
    """A silent signal or silent noise gets no noise; a constant is normalised to zeros."""
    x = torch.cat([torch.zeros(400), torch.full((300,), 0.5), torch.ones(1)]).to(DEVICE)
    lengths, edits = [400, 300, 1], [WaveformEdit(1.0, 5.0, 1), WaveformEdit(1.0, 5.0), WaveformEdit()]
    y = edit_waveforms(x, lengths, edits, torch.zeros_like(x), normalise, backend)
    assert torch.equal(y, torch.zeros_like(x) if normalise else x)


def test_silent_finds_the_silent_recordings() -> None:
    x = torch.zeros(1000, device=DEVICE)
    x[100] = -1e-40  # not even a normal number, and yet a sample
    x[999] = math.nan  # refused elsewhere, but not silence
    assert silent(x, [100, 1, 0, 898, 1]) == [True, False, True, True, False]
    assert silent(x[:0], []) == []
    assert silent(x[:0], [0]) == [True]


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_input_is_left_as_it_was(backend: str) -> None:
    x, noise = waveform(500), waveform(500, 1)
    before = x.clone(), noise.clone()
    edit_waveforms(x, [500], [EDITS["all given"]], noise, True, backend)
    assert torch.equal(x, before[0])
    assert torch.equal(noise, before[1])
