"""Resampling keeps what both rates can hold, drops the rest, and moves nothing in time."""

from __future__ import annotations

import pytest
import soxr
import torch
import torchaudio
from conftest import relative_error
from torch import Tensor

from cuda_kernels.resample import filter_bank, half_width, ratio, resample
from extractor.audio.probe import resampled

RATES = (8_000, 11_025, 22_050, 24_000, 32_000, 44_100, 48_000, 96_000)
TARGET = 16_000
RATIOS = [ratio(rate) for rate in RATES]
PITCHES = [(401, 500), (500, 401), (512, 511), (1, 512), (512, 1), (3, 2)]

# What the filter may do to a tone of the pass band (0.0001 dB) and leave of one of the stop band (-100 dB).
RIPPLE = 10 ** (0.0001 / 20) - 1
STOPPED = 10 ** (-100 / 20)


def tone(frequency: float, rate: int, num_samples: int) -> Tensor:
    return torch.sin(2 * torch.pi * frequency / rate * torch.arange(num_samples, dtype=torch.float64) + 0.3)


def noise(rate: int, limit: float) -> Tensor:
    """One second in float64 with all that lies above ``limit`` Hz cut away."""
    spectrum = torch.fft.rfft(
        torch.randn(rate, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    )
    spectrum[torch.arange(len(spectrum)) > limit] = 0
    return torch.fft.irfft(spectrum, rate)


def middle(y: Tensor) -> Tensor:
    """Without the ends, where the filter sees the silence around the recording."""
    return y[200:-200]


def level(y: Tensor) -> float:
    return y.square().mean().sqrt().item()


@pytest.mark.parametrize("rate", RATES)
def test_tones_of_the_pass_band_keep_their_level_and_place_and_gain_no_images(rate: int) -> None:
    for share in (0.01, 0.3, 0.6, 0.85, 0.9):
        frequency = share * min(rate, TARGET) / 2
        y, _ = resample(tone(frequency, rate, rate), [rate], *ratio(rate))
        expected = tone(frequency, TARGET, TARGET)
        assert level(middle(y - expected)) < RIPPLE * level(expected), f"{frequency} Hz"


@pytest.mark.parametrize("rate", [r for r in RATES if r > TARGET])
def test_tones_beyond_the_lower_nyquist_frequency_are_100_db_down(rate: int) -> None:
    for share in (1.0, 1.02, 1.1, 0.9 * rate / TARGET, rate / TARGET):
        x = tone(share * TARGET / 2, rate, rate)
        y, _ = resample(x, [rate], *ratio(rate))
        assert level(middle(y)) < STOPPED * level(x), f"{share} of the Nyquist frequency"


@pytest.mark.parametrize(("up", "down"), RATIOS + PITCHES)
def test_the_whole_response_is_flat_to_0_9_and_100_db_down_from_1(up: int, down: int) -> None:
    """All phases interleaved are the filter at ``up`` times the input's rate."""
    bank = filter_bank(up, down)
    taps = bank.shape[1]
    delay = torch.arange(up) * down % up + up * (taps - 1 - torch.arange(taps))[:, None]
    filtered = torch.zeros(up * taps, dtype=torch.float64)
    filtered[delay.t()] = bank / up
    # Symmetric about a centre, the last of its zeros: no frequency is delayed.
    torch.testing.assert_close(filtered[1:], filtered[1:].flip(0), rtol=0, atol=1e-15)
    size = 1 << (16 * len(filtered)).bit_length()  # 16 points and more a side lobe
    response = torch.fft.rfft(filtered, size).abs()
    frequency = torch.arange(len(response)) / size * up * 2 / min(1.0, up / down)  # of the lower Nyquist
    assert (response[frequency <= 0.9] - 1).abs().max() < RIPPLE
    assert response[frequency >= 1].max() < STOPPED


@pytest.mark.parametrize("rate", RATES)
def test_band_limited_noise_equals_that_of_other_resamplers(rate: int) -> None:
    x = noise(rate, limit=0.9 * min(rate, TARGET) / 2)
    y, _ = resample(x, [rate], *ratio(rate))
    theirs = torch.from_numpy(soxr.resample(x.numpy(), rate, TARGET, quality="HQ"))
    # soxr's HQ is as flat as ours where it resamples in whole steps; at the other ratios its pass band
    # sags, by 1e-3 at 0.9 (measured with tones; ours stays within 1e-5).
    tolerance = 2 * RIPPLE if TARGET % rate == 0 or rate % 8_000 == 0 else 1e-3
    assert relative_error(middle(y), middle(theirs)) < tolerance
    theirs = torchaudio.functional.resample(
        x,
        rate,
        TARGET,
        lowpass_filter_width=64,
        rolloff=0.95,
        resampling_method="sinc_interp_kaiser",
        beta=10.0,
    )
    assert relative_error(middle(y), middle(theirs[: len(y)])) < 2 * RIPPLE


@pytest.mark.parametrize(("up", "down"), [(1, 3), (2, 1), (160, 441), (401, 500), (500, 401)])
def test_an_impulse_stays_in_its_place_and_rings_alike_on_both_sides(up: int, down: int) -> None:
    periods = half_width(up, down) // down + 2
    x = torch.zeros((2 * periods - 1) * down, dtype=torch.float64)
    x[periods * down] = 1
    y, _ = resample(x, [len(x)], up, down)
    centre = periods * up
    assert y.argmax() == centre
    after = y[centre:]
    torch.testing.assert_close(after, y[: centre + 1].flip(0)[: len(after)], rtol=0, atol=1e-15)


@pytest.mark.parametrize(("up", "down"), RATIOS + PITCHES)
def test_a_constant_stays_itself(up: int, down: int) -> None:
    half = half_width(up, down)
    x = torch.ones(3 * half, dtype=torch.float64)
    y, _ = resample(x, [len(x)], up, down)
    whole = y[half * up // down + 1 : 2 * half * up // down - 1]  # outputs that see no end
    torch.testing.assert_close(whole, torch.ones_like(whole), rtol=0, atol=1e-12)


def test_up_and_back_down_again_is_the_recording() -> None:
    x = noise(TARGET, limit=0.9 * TARGET / 2)
    up, _ = resample(x, [len(x)], 401, 320)
    back, lengths = resample(up, [len(up)], 320, 401)
    assert lengths == [len(x)]
    assert relative_error(middle(back), middle(x)) < 2 * RIPPLE


@pytest.mark.parametrize("rate", RATES)
def test_new_lengths_are_those_that_were_planned(rate: int) -> None:
    lengths = [0, 1, 2, 63, 400, 500, 1000, 16_001]
    y, new_lengths = resample(torch.ones(sum(lengths)), lengths, *ratio(rate))
    assert new_lengths == [resampled(n, rate) for n in lengths]
    assert len(y) == sum(new_lengths)


def test_the_result_is_the_callers_own_even_where_nothing_is_resampled() -> None:
    x = torch.ones(10)
    y, _ = resample(x, [10], 5, 5)
    y.zero_()
    assert x.eq(1).all()
