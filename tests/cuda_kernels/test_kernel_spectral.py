"""A stretch keeps pitch and time's map, masks zero what they name alone, and no recording sees another."""

from __future__ import annotations

import math

import pytest
import torch
import torchaudio
from conftest import BACKENDS, DEVICE, relative_error
from torch import Tensor

from cuda_kernels import spectral
from cuda_kernels.spectral import SpectralEdit, edit_by_spectrogram, edit_spectrogram, stft
from cuda_kernels.spectral.stft import HOP, N_FFT, NUM_BINS, analyse, synthesise

SAMPLE_RATE = 16_000

# Largest error of fp32 against float64, in shares of the largest magnitude (LARGEST). A skipped or repeated
# frame takes two arc tangents with it, each up to 3e-8 turns (2e-7 rad) off and of either sign: 2e-7 times
# the root of twice the 250 jumps that the fastest map here makes in its 1000 frames.
FP32 = 5e-6
LARGEST = 5.0  # magnitude in `spectrogram`, and sample in `white_noise`
# A transform there and back: a dozen roundings of 6e-8 on the way, over divisors of 1/4 and more.
ROUND_TRIP = 2e-6
# float64 against torchaudio, which sums phases of up to 1e5 rad, each rounded to 1.5e-11.
TORCHAUDIO = 1e-8


def spectrogram(*lengths: int, num_bins: int = 37, dtype: torch.dtype = torch.complex64) -> Tensor:
    generator = torch.Generator().manual_seed(sum(lengths))
    return torch.randn(sum(lengths), num_bins, dtype=dtype, generator=generator).to(DEVICE)


def white_noise(*lengths: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """White noise, packed."""
    generator = torch.Generator().manual_seed(sum(lengths))
    return torch.randn(sum(lengths), generator=generator, dtype=dtype).to(DEVICE)


def stretch(rate: float, num_source: int, **changes: object) -> SpectralEdit:
    return SpectralEdit(math.ceil(num_source / rate), (rate, rate), **changes)  # type: ignore[arg-type]


def tone(frequency: float, num_samples: int) -> Tensor:
    return torch.sin(2 * torch.pi * frequency / SAMPLE_RATE * torch.arange(num_samples)).to(DEVICE)


@pytest.mark.parametrize("rate", [0.8, 0.9, 1.1, 1.25, 1.3])
@pytest.mark.parametrize("num_frames", [1, 63, 500])
def test_the_definition_is_the_phase_vocoder(rate: float, num_frames: int) -> None:
    source = spectrogram(num_frames, num_bins=NUM_BINS, dtype=torch.complex128).cpu()
    advance = torch.arange(NUM_BINS, dtype=torch.float64)[:, None] * (2 * torch.pi * HOP / N_FFT)
    expected = torchaudio.functional.phase_vocoder(source.T, rate, advance).T
    actual = edit_spectrogram(source, [num_frames], [stretch(rate, num_frames)])
    assert relative_error(actual, expected) < TORCHAUDIO
    transform = torchaudio.transforms.TimeStretch(HOP, NUM_BINS, fixed_rate=rate)
    assert relative_error(actual, transform(source.T).T) < TORCHAUDIO


@pytest.mark.parametrize("backend", BACKENDS)
def test_strides_and_conjugate_views_do_not_matter(backend: str) -> None:
    source = spectrogram(63)
    edits = [stretch(1.1, 63)]
    expected = edit_spectrogram(source, [63], edits, backend)
    conjugated = source.conj().resolve_conj().conj()
    assert conjugated.is_conj()
    assert torch.equal(edit_spectrogram(conjugated, [63], edits, backend), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_masks_zero_what_they_name_and_leave_the_rest_bit_equal(backend: str) -> None:
    lengths = [63, 200]
    bands, spans = ((0, 3), (10, 11), (36, 37)), ((5, 9), (40, 41))
    plain = [stretch(1.2, 63), SpectralEdit(200)]
    masked = [SpectralEdit(e.num_frames, e.rates, e.knee, bands, spans) for e in plain]
    source = spectrogram(*lengths)
    source[100:102] = torch.tensor([-0.0, math.nan], device=DEVICE)[:, None]  # a copy copies any bits
    sizes = [edit.num_frames for edit in plain]
    results = (edit_spectrogram(source, lengths, edits, backend).split(sizes) for edits in (plain, masked))
    for whole, cut in zip(*results, strict=True):
        gone = torch.zeros(cut.shape, dtype=torch.bool, device=DEVICE)
        for first, last in bands:
            gone[:, first:last] = True
        for first, last in spans:
            gone[first:last] = True
        bits, expected = (torch.view_as_real(x).view(torch.int32) for x in (cut, whole))
        assert not bits[gone].any()
        assert torch.equal(bits[~gone], expected[~gone])
    assert torch.equal(bits[~gone], torch.view_as_real(source[63:]).view(torch.int32)[~gone])


@pytest.mark.parametrize("backend", BACKENDS)
def test_frames_are_read_where_the_map_says(backend: str) -> None:
    # Magnitudes that rise by one a frame read back as positions: 0.8 up to frame 50.5, 1.4 from there.
    num_source, knee = 120, 50.5
    source = torch.arange(num_source, device=DEVICE)[:, None] * torch.exp(1j * spectrogram(1).real).cfloat()
    edit = SpectralEdit(140, (0.8, 1.4), knee)
    positions = edit_spectrogram(source, [num_source], [edit], backend).abs().double().cpu()
    t = torch.arange(140, dtype=torch.float64)
    expected = torch.where(t < knee, 0.8 * t, 0.8 * knee + 1.4 * (t - knee))
    last = num_source - 1
    fade = (last * (num_source - expected)).clamp(min=0)  # behind the last frame all is zero
    expected = torch.where(expected > last, fade, expected)
    assert expected[-1] == 0
    # fp32: a magnitude of 120 is rounded a few times to 2^-24 of itself.
    assert (positions - expected[:, None]).abs().max() < 120 * 4 * 2**-24 + 120 * 2**-24


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_no_magnitude_is_too_small_or_too_large(backend: str, scale: float) -> None:
    source = spectrogram(63)
    edits = [stretch(0.9, 63)]
    expected = edit_spectrogram(source, [63], edits, backend)
    actual = edit_spectrogram(source * scale, [63], edits, backend)
    assert relative_error(actual / scale, expected) < FP32


@pytest.mark.parametrize("backend", BACKENDS)
def test_silence_stays_silent_and_phases_come_through_it(backend: str) -> None:
    source = spectrogram(90)
    source[30:60] = 0
    # Frame by frame through other code than a copy's: the knee, where the rate doubles, is never reached.
    edit = SpectralEdit(90, (1.0, 2.0), knee=90.0)
    actual = edit_spectrogram(source, [90], [edit], backend)
    assert not actual[30:60].any()
    assert relative_error(actual, source) < FP32


@pytest.fixture
def large_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter takes as long for a large block as for a small one; a GPU compiles what it runs."""
    from cuda_kernels.spectral import kernel

    if DEVICE.type == "cpu":
        monkeypatch.setattr(kernel, "BLOCK_FRAMES", 4096)
        monkeypatch.setattr(kernel, "BLOCK_BINS", 4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_phases_do_not_drift(backend: str, large_blocks: None) -> None:
    # Where no frame is skipped or repeated the advances telescope: after 100,000 frames a phase must be its
    # source's as exactly as after one, to an arc tangent, a rounding of the phase and a cosine (2e-7 rad
    # each). A running sum in fp32 is off by 100,000 roundings of 1e-7 rad: 3e-5.
    num_frames = 100_000
    source = torch.exp(2j * torch.pi * spectrogram(num_frames, num_bins=3).real).cfloat()
    edit = SpectralEdit(num_frames, (1.0, 2.0), knee=num_frames)
    actual = edit_spectrogram(source, [num_frames], [edit], backend)
    assert (actual - source).abs().max() < 6e-7


@pytest.mark.parametrize("backend", BACKENDS)
def test_errors_of_long_stretches_are_those_of_the_arc_tangents(backend: str, large_blocks: None) -> None:
    # One frame in eleven is skipped, with two arc tangents, each up to 2e-7 rad off, of either sign: after
    # n frames of the result their sum has a spread below 2e-7 * sqrt(2 n / 10).
    num_frames = 100_000
    source = spectrogram(num_frames, num_bins=4)
    edit = stretch(1.1, num_frames)
    truth = edit_spectrogram(source.cpu().to(torch.complex128), [num_frames], [edit])
    actual = edit_spectrogram(source, [num_frames], [edit], backend).cpu()
    error = (actual / actual.abs() - truth / truth.abs()).abs()
    for n in (100, 1000, 10_000, len(error)):
        assert error[n - 100 : n].max() < 3 * 2e-7 * math.sqrt(0.2 * n)


def test_frames_are_those_of_torch() -> None:
    lengths = [1, 63, 400, 500, 1000, 16_001]
    waveforms = white_noise(*lengths, dtype=torch.float64)
    frames, counts = analyse(waveforms, lengths), [1 + n // HOP for n in lengths]
    window = torch.hann_window(N_FFT, dtype=torch.float64, device=DEVICE)
    for x, actual in zip(waveforms.split(lengths), frames.split(counts), strict=True):
        expected = torch.stft(x, N_FFT, HOP, window=window, pad_mode="constant", return_complex=True).T
        assert torch.allclose(actual, expected, rtol=0, atol=1e-12)  # |x| sums to 300: 300 * 2^-53 a term


def test_the_inverse_is_that_of_torch_for_frames_of_no_waveform() -> None:
    lengths = [63, 100]
    edited = spectrogram(*lengths, num_bins=NUM_BINS, dtype=torch.complex128)
    num_samples = [(n - 1) * HOP for n in lengths]
    window = torch.hann_window(N_FFT, dtype=torch.float64, device=DEVICE)
    actual = synthesise(edited, lengths, num_samples).split(num_samples)
    for frames, wanted, y in zip(edited.split(lengths), num_samples, actual, strict=True):
        expected = torch.istft(frames.T, N_FFT, HOP, window=window, length=wanted)
        assert torch.allclose(y, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("lengths", [[1, 63, 0, 400, 500, 1000, 16_001], [0], []])
def test_what_is_not_edited_comes_back(lengths: list[int]) -> None:
    waveforms = white_noise(*lengths)
    edits = [SpectralEdit(1 + n // HOP) for n in lengths]
    actual = edit_by_spectrogram(waveforms, lengths, edits, lengths)
    assert actual.dtype == torch.float32
    assert actual.shape == waveforms.shape
    assert torch.allclose(actual, waveforms, rtol=0, atol=ROUND_TRIP * LARGEST)


def test_a_waveform_does_not_depend_on_its_batch_mates() -> None:
    lengths = [16_001, 1, 5000, 63, 4000]
    edits = [stretch(r, 1 + n // HOP) for r, n in zip((1.1, 0.9, 1.3, 0.8, 1.0), lengths, strict=True)]
    num_samples = [round(n / edit.rates[0]) for n, edit in zip(lengths, edits, strict=True)]
    waveforms = white_noise(*lengths)
    together = edit_by_spectrogram(waveforms, lengths, edits, num_samples).split(num_samples)
    for x, n, edit, wanted, y in zip(
        waveforms.split(lengths), lengths, edits, num_samples, together, strict=True
    ):
        assert torch.equal(edit_by_spectrogram(x, [n], [edit], [wanted]), y)


def test_recordings_in_one_signal_do_not_reach_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    # A GPU transforms all recordings together, in groups of frames: here, small groups.
    monkeypatch.setattr(stft, "FRAMES_A_TRANSFORM", 7)
    lengths = [1, 1000, 0, 63, 5000, 400]
    waveforms = white_noise(*lengths, dtype=torch.float64)
    counts = [1 + n // HOP for n in lengths]
    frames = analyse(waveforms, lengths)
    sounds = synthesise(frames * 1j, counts, lengths)
    for x, T, y, z in zip(
        waveforms.split(lengths), counts, frames.split(counts), sounds.split(lengths), strict=True
    ):
        assert torch.allclose(y, analyse(x, [len(x)]), rtol=0, atol=1e-12)
        assert torch.allclose(z, synthesise(y * 1j, [T], [len(x)]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("rate", [0.8, 1.1, 1.25])
@pytest.mark.parametrize("frequency", [110.0, 437.0, 3010.0])
def test_a_stretched_tone_keeps_its_frequency_and_level(rate: float, frequency: float) -> None:
    num_samples = 4 * SAMPLE_RATE
    wanted = round(num_samples / rate)
    edit = SpectralEdit(1 + wanted // HOP, (rate, rate))
    y = edit_by_spectrogram(tone(frequency, num_samples), [num_samples], [edit], [wanted]).cpu().double()
    assert y.shape == (wanted,)
    middle = y[SAMPLE_RATE // 2 : -SAMPLE_RATE // 2]
    spectrum = torch.fft.rfft(
        middle * torch.hann_window(len(middle), dtype=torch.float64), n=16 * SAMPLE_RATE
    )
    assert abs(spectrum.abs().argmax().item() / 16 - frequency) < 1
    # A tone lies in three or four bins, which keep their magnitudes; but each goes by its own phase. Slowed
    # down, the first advance, from a frame half of which lies before the tone, is taken twice and parts
    # them for good: 0.85 dB, under the 1 dB that a listener needs. Sped up, they stay together.
    level_db = 20 * math.log10(middle.square().mean().sqrt().item() / math.sqrt(0.5))
    assert abs(level_db) < (1.0 if rate < 1 else 0.05)


def test_a_click_at_the_knee_moves_with_it() -> None:
    # A time warp of equal length: what was at frame 40 goes to frame 60 of 101.
    num_samples, source, target, last = SAMPLE_RATE, 40, 60, 100
    x = torch.zeros(num_samples)
    x[source * HOP] = 1.0
    edit = SpectralEdit(last + 1, (source / target, (last - source) / (last - target)), knee=float(target))
    y = edit_by_spectrogram(x.to(DEVICE), [num_samples], [edit], [num_samples]).cpu()
    power = y.square() / y.square().sum()
    # Where in its 40 ms a frame holds the click, phases say, and those are not the source's: to half a frame.
    assert abs(float((power * torch.arange(num_samples)).sum()) - target * HOP) <= N_FFT // 2
    assert power[target * HOP - N_FFT : target * HOP + N_FFT].sum() == pytest.approx(1)


def test_blocks_do_not_show_in_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    source, edits = spectrogram(500).to(torch.complex128), [stretch(0.9, 500)]
    expected = edit_spectrogram(source, [500], edits, "torch")
    monkeypatch.setattr(spectral, "BLOCK_FRAMES", 7)
    # Phases within one turn, a hundred roundings of 1e-16.
    assert relative_error(edit_spectrogram(source, [500], edits, "torch"), expected) < 1e-12


def test_kernel_blocks_do_not_show_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    from cuda_kernels.spectral import kernel

    source, edits = spectrogram(200), [stretch(0.9, 200)]
    expected = edit_spectrogram(source, [200], edits, "triton")
    monkeypatch.setattr(kernel, "BLOCK_FRAMES", 16)
    monkeypatch.setattr(kernel, "BLOCK_BINS", 4)
    assert torch.equal(edit_spectrogram(source, [200], edits, "triton"), expected)
