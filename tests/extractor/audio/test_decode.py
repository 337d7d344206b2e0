"""Decoding: every backend gives the same audio, physics holds, and what is missing is never passed over."""

from __future__ import annotations

import hashlib
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import soxr
from audio_cases import (
    damaged,
    decode_one,
    header_of,
    noise,
    only,
    outcomes,
    probe_one,
    reason_of,
    wav_bytes,
    write,
)
from conftest import SHARED_DATA, shared

from extractor.audio import dali, readers
from extractor.audio.decode import DecodeOptions, decode_batch
from extractor.audio.probe import num_samples_16k, probe
from extractor.audio.readers import able, backends
from extractor.types import SAMPLE_RATE, Decoded, Failure, Header, Utterance

# Lossy codecs are decoded by other programs with other arithmetic; PCM and FLAC are equal bit for bit.
LOSSY_TOLERANCE = 1e-5
# Files on which FFmpeg, the reference here, and libsndfile, which decodes Vorbis, differ at the end:
# FFmpeg leaves off a half-block (128 samples) that the granule position counts in.
FFMPEG_VORBIS_LOSS = 128


def planned(utterances: Sequence[Utterance]) -> list[Header]:
    headers = probe(utterances)
    assert all(isinstance(header, Header) for header in headers), headers
    return [header for header in headers if isinstance(header, Header)]


def waveform(path: Path, backend: str = "auto", channel: int | None = None, **segment: float) -> np.ndarray:
    utterance = Utterance("u", str(path), **segment)
    with only(backend):
        (result,) = decode_batch([utterance], planned([utterance]), DecodeOptions(channel))
    assert isinstance(result, Decoded), result
    assert result.waveform.dtype == np.float32 and result.waveform.ndim == 1
    assert result.checksum == hashlib.sha256(result.waveform.tobytes()).hexdigest()
    return result.waveform


def reference(path: Path) -> np.ndarray:
    """FFmpeg's decoding of the whole file, averaged, resampled in one piece by soxr."""
    scale = {"u8": 2**7, "s16": 2**15, "s32": 2**31, "flt": 1, "dbl": 1}
    parts = []
    with av.open(str(path), metadata_errors="ignore") as container:
        for frame in container.decode(container.streams.audio[0]):
            samples = frame.to_ndarray()
            if not frame.format.is_planar:
                samples = samples.reshape(-1, frame.layout.nb_channels).T
            kind = frame.format.name.rstrip("p")
            parts.append((samples.astype(np.float64) - (128 if kind == "u8" else 0)) / scale[kind])
    mono = np.concatenate(parts, axis=1).mean(axis=0).astype(np.float32)
    return soxr.resample(mono, frame.sample_rate, SAMPLE_RATE)


def sine(path: Path, rate: int, seconds: float = 1.0, hz: float = 1000.0, **how: str) -> Path:
    t = np.arange(round(rate * seconds)) / rate
    soundfile.write(path, 0.5 * np.sin(2 * np.pi * hz * t), rate, **how)
    return path


ODD = sorted(p for p in (SHARED_DATA / "odd").rglob("*") if p.is_file()) if SHARED_DATA.is_dir() else []


@pytest.mark.parametrize("path", ODD or [None], ids=lambda p: p.name if p else "absent")
def test_odd_recordings_match_ffmpeg_or_fail_with_a_reason(path: Path | None) -> None:
    if path is None:
        pytest.skip("no real recordings at hand (odd)")
    header = probe_one(path)
    result = decode_one(path, header) if isinstance(header, Header) else header
    if isinstance(header, Failure) or isinstance(result, Failure):
        assert reason_of(result)
        return
    expected = reference(path)
    missing = len(result.waveform) - len(expected)
    if header.container == "ogg":
        assert 0 <= missing <= FFMPEG_VORBIS_LOSS * SAMPLE_RATE / header.sample_rate + 1
        # without what FFmpeg leaves off, the resampler's last few milliseconds differ
        expected, got = expected[:-100], result.waveform[: len(expected) - 100]
        assert np.abs(got - expected).max() <= LOSSY_TOLERANCE
    else:
        assert missing == 0
        assert np.abs(result.waveform - expected).max() <= LOSSY_TOLERANCE


@pytest.mark.parametrize("backend", ["auto", "dali", "soundfile", "pyav"])
@pytest.mark.parametrize("corpus", ["emodb/wav", "librispeech", "fsdd", "ravdess_48k"])
def test_backends_agree_bit_for_bit_on_real_recordings(corpus: str, backend: str) -> None:
    if backend not in ("auto", *backends()):
        pytest.skip(f"{backend} is not installed")
    paths = sorted(shared(corpus).rglob("*.*"))
    paths = paths[:: max(1, len(paths) // 20)]
    stereo = [p for p in paths if soundfile.info(str(p)).channels == 2]
    with only(backend):
        results = outcomes([*paths, *stereo])
    for path, result in zip([*paths, *stereo], results, strict=True):
        samples, rate = soundfile.read(path, dtype="int16", always_2d=True)
        mono = (samples / np.float32(32768)).astype(np.float32)
        mono = mono[:, 0] if mono.shape[1] == 1 else mono.mean(axis=1)
        expected = mono if rate == SAMPLE_RATE else soxr.resample(mono, rate, SAMPLE_RATE)
        assert isinstance(result, Decoded), result
        assert np.array_equal(result.waveform, expected), path


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "AIFF"])
@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 24_414, 44_100, 48_000, 96_000])
def test_a_tone_stays_the_tone_it_was(rate: int, kind: str, tmp_path: Path) -> None:
    path = sine(tmp_path / "tone", rate, format=kind, subtype="PCM_16")
    heard = waveform(path)
    assert len(heard) == SAMPLE_RATE == num_samples_16k(header_of(path), Utterance("u", str(path)))
    t = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    middle = slice(800, -800)  # the filter rings at the ends, where the tone begins and stops
    # 16-bit rounding, and the resampler's 20 bits
    assert np.abs(heard - 0.5 * np.sin(2 * np.pi * 1000 * t))[middle].max() < 1e-4


def test_tones_above_8_khz_do_not_fold_back(tmp_path: Path) -> None:
    path = sine(tmp_path / "high.wav", 48_000, hz=11_000.0)
    assert np.abs(waveform(path)[800:-800]).max() < 1e-4


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "AIFF", "CAF"])
@pytest.mark.parametrize("channels", [2, 3, 8])
def test_channels_are_averaged_or_picked(kind: str, channels: int, tmp_path: Path) -> None:
    path = tmp_path / "many"
    soundfile.write(path, noise(8000, channels), SAMPLE_RATE, format=kind)
    samples = soundfile.read(path, dtype="float32")[0]
    assert np.allclose(waveform(path), samples.mean(axis=1), atol=2e-7)
    for k in range(channels):
        assert np.allclose(waveform(path, channel=k), samples[:, k], atol=2e-7)
    assert f"it has {channels}" in reason_of(decode_one(path, header_of(path), channel=channels))


def test_float_recordings_are_not_clipped(tmp_path: Path) -> None:
    path = tmp_path / "loud.wav"
    samples = np.linspace(-3, 3, 1000, dtype=np.float32)
    soundfile.write(path, samples, SAMPLE_RATE, subtype="FLOAT")
    for backend in backends():
        assert np.array_equal(waveform(path, backend), samples)


def test_silence_is_a_recording(tmp_path: Path) -> None:
    for kind in ("WAV", "FLAC", "OGG"):
        soundfile.write(tmp_path / kind, np.zeros(20_000), SAMPLE_RATE, format=kind)
        assert not waveform(tmp_path / kind).any()


@pytest.mark.parametrize(
    "coding", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"]
)
def test_backends_agree_bit_for_bit_on_every_wav_coding(coding: str, tmp_path: Path) -> None:
    path = write(tmp_path / "coded.wav", "WAV", coding, SAMPLE_RATE, noise(5000, 2))
    expected = waveform(path, "soundfile")
    for backend in backends():
        assert np.array_equal(waveform(path, backend), expected), backend


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS", "MPEG_LAYER_III"])
def test_backends_agree_on_lossy_codecs(subtype: str, tmp_path: Path) -> None:
    path = tmp_path / "lossy"
    kind = "MP3" if subtype == "MPEG_LAYER_III" else "OGG"
    sine(path, 48_000, 2.0, format=kind, subtype=subtype)
    expected = waveform(path)
    for backend in ["soundfile", "pyav"] if kind == "MP3" else backends():
        heard = waveform(path, backend)
        assert abs(len(heard) - len(expected)) <= FFMPEG_VORBIS_LOSS
        both = min(len(heard), len(expected)) - 100
        assert np.abs(heard[:both] - expected[:both]).max() < LOSSY_TOLERANCE, backend


def test_opus_is_decoded_at_48_khz_whatever_its_header_remembers(tmp_path: Path) -> None:
    path = sine(tmp_path / "speech.opus", 24_000, format="OGG", subtype="OPUS")
    header = header_of(path)
    assert (header.container, header.sample_rate) == ("opus", 48_000)
    assert np.abs(waveform(path) - reference(path)).max() < LOSSY_TOLERANCE


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "AIFF", "OGG", "MP3"])
def test_segments_are_slices_of_the_whole(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "long"
    soundfile.write(path, noise(30 * SAMPLE_RATE), SAMPLE_RATE, format=kind)
    whole = waveform(path)
    cuts = [(0.0, 1.0), (1.5, 2.25), (0.03125, 29.0), (7.77, 7.88), (7.8, 9.0), (29.0, 30.0), (20.0, None)]
    utterances = [Utterance(f"{k}", str(path), start, end) for k, (start, end) in enumerate(cuts)]
    together = decode_batch(utterances, planned(utterances), DecodeOptions())
    # Vorbis and MP3 blocks lean on the ones before: where libsndfile seeks to, rounding may differ
    tolerance = 1e-6 if kind in ("OGG", "MP3") else 0
    for utterance, result in zip(utterances, together, strict=True):
        assert isinstance(result, Decoded), result
        end = len(whole) if utterance.end is None else round(utterance.end * SAMPLE_RATE)
        expected = whole[round((utterance.start or 0) * SAMPLE_RATE) : end]
        assert len(result.waveform) == len(expected) == num_samples_16k(planned([utterance])[0], utterance)
        assert np.abs(result.waveform - expected).max() <= tolerance
        (alone,) = decode_batch([utterance], planned([utterance]), DecodeOptions())
        assert isinstance(alone, Decoded)
        assert alone.checksum == result.checksum, "a segment depends on no other of its batch"


@pytest.mark.parametrize("seconds", [30.0, 70.0])  # through DALI, and streamed
def test_segments_of_other_rates_are_cut_before_resampling(seconds: float, tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    soundfile.write(path, noise(round(seconds * 44_100), 2), 44_100)
    samples = soundfile.read(path, dtype="float32")[0].mean(axis=1)
    start, end = 3.3333, 5.0001
    cut = samples[round(start * 44_100) : round(end * 44_100)]
    assert np.array_equal(waveform(path, start=start, end=end), soxr.resample(cut, 44_100, SAMPLE_RATE))


def test_a_wav_cut_anywhere_is_never_taken(tmp_path: Path) -> None:
    whole = wav_bytes((noise(4000) * 32767).astype("<i2").tobytes())
    path = tmp_path / "cut.wav"
    path.write_bytes(whole)
    header = header_of(path)
    for size in [*range(60), *range(60, len(whole), 97), len(whole) - 2, len(whole) - 1]:
        path.write_bytes(whole[:size])
        reason_of(probe_one(path))
        for backend in ("auto", "soundfile", "pyav"):
            with only(backend):
                said = reason_of(decode_one(path, header))
            assert "cut short" in said or "empty" in said or "not audio" in said


@pytest.mark.parametrize("kind", ["FLAC", "AIFF", "AU", "OGG", "RF64"])
def test_other_cut_recordings_are_never_taken(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "cut"
    soundfile.write(path, noise(40_000), SAMPLE_RATE, format=kind)
    whole = path.read_bytes()
    header = header_of(path)
    for share in (0.3, 0.5, 0.9, 0.99):
        path.write_bytes(whole[: int(len(whole) * share)])
        reason_of(decode_one(path, header))


@pytest.mark.parametrize("silence", [False, True])
def test_damaged_flac_blocks_are_never_taken(silence: bool, tmp_path: Path) -> None:
    """DALI gives silence for them, so true silence beside them must not hide them."""
    samples = noise(20 * 4096)
    if silence:
        samples[4 * 4096 : 9 * 4096] = 0
    path = tmp_path / "damaged.flac"
    soundfile.write(path, samples, SAMPLE_RATE)
    whole = path.read_bytes()
    header = header_of(path)
    waveform(path)
    rng = np.random.default_rng(0)
    for place in rng.integers(200, len(whole), 40):
        path.write_bytes(damaged(whole, [("flip", place, 4)]))
        reason_of(decode_one(path, header))


def test_bad_recordings_fail_alone(tmp_path: Path) -> None:
    paths = [sine(tmp_path / f"{k}.wav", SAMPLE_RATE) for k in range(6)]
    utterances = [Utterance(p.stem, str(p)) for p in paths]
    headers = planned(utterances)
    paths[1].unlink()
    paths[3].write_bytes(paths[3].read_bytes()[:1000])
    paths[4].write_bytes(b"RIFF\xff\xff\xff\xffWAVE" + bytes(100))
    results = decode_batch(utterances, headers, DecodeOptions())
    assert [isinstance(result, Decoded) for result in results] == [True, False, True, False, False, True]
    assert "no such file" in reason_of(results[1]) and "cut short" in reason_of(results[3])
    assert [r.id for r in results if isinstance(r, Failure)] == ["1", "3", "4"]


def test_a_file_replaced_since_planning_fails(tmp_path: Path) -> None:
    for kind in ("WAV", "FLAC", "CAF"):
        path = sine(tmp_path / f"it.{kind}", SAMPLE_RATE, 1.0, format=kind)
        header = header_of(path)
        sine(path, SAMPLE_RATE, 1.5, format=kind)
        assert "changed since planning" in reason_of(decode_one(path, header))
        sine(path, 22_050, 1.0, format=kind)
        assert "changed since planning" in reason_of(decode_one(path, header))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rate", [SAMPLE_RATE, 44_100])
def test_nan_and_infinity_are_refused(value: float, rate: int, tmp_path: Path) -> None:
    samples = np.ones(rate, np.float32)
    samples[rate // 2] = value
    for kind, channels in (("WAV", 1), ("WAV", 2), ("AIFF", 1)):
        path = tmp_path / f"{kind}{channels}"
        soundfile.write(path, np.stack([samples] * channels, axis=1), rate, format=kind, subtype="FLOAT")
        for backend in ("auto", "soundfile", "pyav"):
            with only(backend):
                assert "NaN" in reason_of(decode_one(path, header_of(path)))


def test_399_samples_are_too_short(tmp_path: Path) -> None:
    path = tmp_path / "short.wav"
    path.write_bytes(wav_bytes(b"\1\0" * 400))
    assert len(waveform(path)) == 400
    path.write_bytes(wav_bytes(b"\1\0" * 399))
    assert "too short: 399" in reason_of(decode_one(path, Header("wav", SAMPLE_RATE, 1, 399)))


def test_absurd_headers_allocate_nothing(tmp_path: Path) -> None:
    path = tmp_path / "absurd.flac"
    soundfile.write(path, noise(8000), SAMPLE_RATE)
    # STREAMINFO's 36 bits for the number of samples
    claims = [*(("flip", 21, bit) for bit in range(4)), ("set4", 22, 0xFF)]
    path.write_bytes(damaged(path.read_bytes(), claims))
    tracemalloc.start()
    for num_frames in (8000, (1 << 36) - 1):
        header = Header("flac", SAMPLE_RATE, 1, num_frames)
        assert "more than" in reason_of(decode_one(path, header))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


def test_a_video_without_sound_says_so(tmp_path: Path) -> None:
    path = tmp_path / "mute.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 16
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame(16, 16, "yuv420p")))
        container.mux(stream.encode(None))
    assert reason_of(probe_one(path)) == "has no audio stream"


def test_without_dali_soundfile_takes_its_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = sine(tmp_path / "tone.wav", SAMPLE_RATE)
    expected = waveform(path)
    monkeypatch.setattr(readers, "dali_library", lambda: None)
    assert backends() == ["soundfile", "pyav"]
    assert able("wav") == ["soundfile", "pyav"]
    assert np.array_equal(waveform(path), expected)


@pytest.mark.skipif("dali" not in backends(), reason="DALI is not installed")
def test_one_bad_file_does_not_cost_dali_the_batch(tmp_path: Path) -> None:
    good = np.fromfile(sine(tmp_path / "a.wav", SAMPLE_RATE), np.uint8)
    results = dali.decode([good, np.zeros(100, np.uint8), good])
    assert [result is not None for result in results] == [True, False, True]
