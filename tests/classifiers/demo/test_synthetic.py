"""Synthetic speech: reproducible bit for bit, clean audio, and the physics that it claims."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import soundfile

from classifiers.demo import synthetic
from classifiers.demo.synthetic import EMOTIONS, SENTENCES, synthesise, voice, write_corpus
from extractor.inputs.manifest import read_manifest
from extractor.types import SAMPLE_RATE

SPEAKERS = range(4)
Clips = dict[tuple[int, str, int], np.ndarray]

FRAME, HOP = 640, 160  # samples: 40 ms hold two periods of the lowest voice
LOWEST_F0, HIGHEST_F0 = 60, 500  # Hz


@pytest.fixture(scope="module")
def clips() -> Clips:
    """The default corpus."""
    numbers = range(len(SENTENCES))
    return {(k, e, n): synthesise(k, e, n) for k in SPEAKERS for e in EMOTIONS for n in numbers}


def f0_track(clip: np.ndarray) -> np.ndarray:
    """Hz, of the frames that are voiced: loud, and like themselves one period later."""
    loud = np.lib.stride_tricks.sliding_window_view(clip.astype(np.float64), FRAME)[::HOP]
    power = (loud**2).mean(axis=1)
    loud = loud[power > 0.05 * power.max()]
    loud = loud - loud.mean(axis=1, keepdims=True)
    correlation = np.fft.irfft(np.abs(np.fft.rfft(loud, 2 * FRAME)) ** 2)[:, :FRAME]
    # over the samples that two shifted frames share: else short periods always win
    correlation = correlation / correlation[:, :1] * FRAME / (FRAME - np.arange(FRAME))
    shortest, longest = SAMPLE_RATE // HIGHEST_F0, SAMPLE_RATE // LOWEST_F0
    within = correlation[:, shortest : longest + 1]
    # the first lag that is nearly as good as the best: two periods fit as well as one
    period = (within > 0.9 * within.max(axis=1, keepdims=True)).argmax(axis=1)
    climbs = np.array([row[p : p + 20].argmax() for row, p in zip(within, period, strict=True)])
    return SAMPLE_RATE / (shortest + period + climbs)[within.max(axis=1) > 0.6]


def mean_f0(clip: np.ndarray) -> float:
    """The geometric mean: F0 is heard, and modelled, on a logarithmic scale."""
    return float(np.exp(np.log(f0_track(clip)).mean()))


def level_db(clip: np.ndarray) -> float:
    return float(10 * np.log10((clip.astype(np.float64) ** 2).mean()))


def balance_db(clip: np.ndarray, low: tuple[int, int], high: tuple[int, int]) -> float:
    """How much stronger a band of frequencies is than another."""
    power = np.abs(np.fft.rfft(clip.astype(np.float64))) ** 2
    hz = np.fft.rfftfreq(len(clip), 1 / SAMPLE_RATE)
    a, b = (power[(hz >= first) & (hz < last)].sum() for first, last in (low, high))
    return float(10 * np.log10(a / b))


def said(monkeypatch: pytest.MonkeyPatch, phones: str, speaker: int = 0) -> np.ndarray:
    monkeypatch.setattr(synthetic, "SENTENCES", ((phones, phones),))
    return synthesise(speaker, "neutral", 0)


def formants_of(clip: np.ndarray) -> np.ndarray:
    """Resonances in Hz by linear prediction over the middle of a clip (order 18, pre-emphasis)."""
    middle = clip[len(clip) // 3 : -len(clip) // 3].astype(np.float64)
    middle = np.append(middle[0], middle[1:] - 0.97 * middle[:-1]) * np.hamming(len(middle))
    order = 18
    correlation = np.fft.irfft(np.abs(np.fft.rfft(middle, 2 * len(middle))) ** 2)[: order + 1]
    matrix = correlation[np.abs(np.subtract.outer(np.arange(order), np.arange(order)))]
    roots = np.roots(np.concatenate([[1.0], -np.linalg.solve(matrix, correlation[1:])]))
    roots = roots[roots.imag > 0]
    hz = np.angle(roots) * SAMPLE_RATE / (2 * np.pi)
    width = -np.log(np.abs(roots)) * SAMPLE_RATE / np.pi
    return hz[(width < 400) & (hz > 150)]


# Reproducible


def test_a_clip_is_the_same_bit_for_bit_whatever_was_made_before() -> None:
    first = synthesise(1, "anger", 2)
    synthesise(3, "sadness", 0)
    assert synthesise(1, "anger", 2).tobytes() == first.tobytes()


def test_every_part_of_the_key_changes_the_clip() -> None:
    keys = [(0, "neutral", 0), (2, "neutral", 0), (0, "sadness", 0), (0, "neutral", 1)]
    assert len({synthesise(*key).tobytes() for key in keys}) == 4


# Clean audio


def test_clips_are_finite_float32_within_range_and_not_clipped(clips: Clips) -> None:
    others = [synthesise(k, e, 5) for k in (4, 17) for e in EMOTIONS]
    for clip in [*clips.values(), *others]:
        assert clip.dtype == np.float32 and clip.ndim == 1 and np.isfinite(clip).all()
        assert 0.02 < np.abs(clip).max() < 0.95  # audible as 16-bit, and never turned down or clipped
        assert abs(clip.mean()) < 1e-3  # no constant offset
        for edge in (clip[:800], clip[-800:]):
            assert -76 < level_db(edge) < -66  # not digital silence, which no microphone gives


def test_durations_spread_as_those_of_sentences_do(clips: Clips) -> None:
    durations = np.array([len(clip) / SAMPLE_RATE for clip in clips.values()])
    assert 1.0 < durations.min() and durations.max() < 4.6 and durations.std() > 0.5


# Physics


def test_measured_f0_is_the_speakers_own() -> None:
    for speaker in SPEAKERS:
        measured = np.mean([mean_f0(synthesise(speaker, "neutral", s)) for s in range(3)])
        # within 2 semitones: accents raise it, declination and the take's own shift move it
        assert abs(12 * np.log2(measured / voice(speaker).f0)) < 2, speaker


def test_speakers_differ() -> None:
    voices = [voice(speaker) for speaker in SPEAKERS]
    assert len({v.f0 for v in voices}) == len(voices)
    low, high = voices[0::2], voices[1::2]
    assert max(v.f0 for v in low) < min(v.f0 for v in high)
    assert max(v.tract for v in low) < min(v.tract for v in high)


@pytest.mark.parametrize("speaker", SPEAKERS)
def test_emotions_go_in_the_directions_of_the_literature(clips: Clips, speaker: int) -> None:
    for sentence in range(len(SENTENCES)):
        anger, happiness, neutral, sadness = (clips[speaker, e, sentence] for e in EMOTIONS)
        assert mean_f0(anger) > mean_f0(neutral) > mean_f0(sadness)
        assert mean_f0(happiness) > mean_f0(neutral)
        assert level_db(anger) > level_db(neutral) > level_db(sadness)
        assert max(len(anger), len(neutral)) < len(sadness)
        tilt = [balance_db(clip, (0, 1000), (2000, 3500)) for clip in (anger, sadness)]
        assert tilt[0] < tilt[1]  # anger is brighter


def test_f0_range_is_wide_in_anger_and_happiness_and_narrow_in_sadness(clips: Clips) -> None:
    def spread(emotion: str) -> float:  # semitones
        tracks = (f0_track(clips[0, emotion, s]) for s in range(len(SENTENCES)))
        return float(np.mean([np.log2(track).std() * 12 for track in tracks]))

    anger, happiness, neutral, sadness = map(spread, EMOTIONS)
    assert min(anger, happiness) > neutral > sadness


@pytest.mark.parametrize("vowel", ["IY", "EH", "AA", "ER"])
@pytest.mark.parametrize("speaker", [0, 2])
def test_vowels_have_their_formants(monkeypatch: pytest.MonkeyPatch, vowel: str, speaker: int) -> None:
    measured = formants_of(said(monkeypatch, f"{vowel}1", speaker))
    for wanted in np.multiply(synthetic.PHONES[vowel][0].formants[:2], voice(speaker).tract):
        # half the distance between two harmonics: what is between them cannot be measured
        assert np.abs(measured - wanted).min() < max(0.10 * wanted, 65), (vowel, wanted, measured)


def test_a_short_tract_has_higher_formants(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [formants_of(said(monkeypatch, "AA1", speaker)) for speaker in (0, 1)]
    third, shorter = (hz[np.abs(hz - 2440 * f).argmin()] for hz, f in zip(found, (1, 1.16), strict=True))
    assert 1.05 < shorter / third < 1.3


def test_hisses_are_high_and_hums_are_low(monkeypatch: pytest.MonkeyPatch) -> None:
    clips = [said(monkeypatch, phones) for phones in ("S AH1 S", "SH AH1 SH", "M AH1 M")]
    s, sh, m = (balance_db(clip, (4000, 8000), (0, 1000)) for clip in clips)
    assert s > sh > m


def test_pulses_do_not_alias(monkeypatch: pytest.MonkeyPatch) -> None:
    """A vowel at a steady F0 has its power on its harmonics alone."""
    hz = 203  # does not divide the sample rate, or harmonics would fold onto harmonics
    monkeypatch.setattr(synthetic, "_f0", lambda stress, *_: np.full(len(stress), float(hz)))
    hop = synthetic.HOP_SAMPLES
    monkeypatch.setattr(synthetic, "_shaped_noise", lambda gain, _: np.zeros(len(gain) * hop))
    middle = said(monkeypatch, "AA1 " * 9)[6000 : 6000 + SAMPLE_RATE].astype(np.float64)
    power = np.abs(np.fft.rfft(middle * np.hanning(len(middle)))) ** 2  # 1 Hz bins
    near = np.abs((np.arange(len(power)) + hz // 2) % hz - hz // 2) <= 4
    assert power[~near].sum() < 1e-4 * power.sum()  # the room's noise, and the level that falls


# On the disk


def test_the_folder_is_recognised_with_its_emotions(tmp_path: Path) -> None:
    written = write_corpus(tmp_path / "c", 2, (0, 2))
    manifest = read_manifest(tmp_path / "c")
    assert (manifest.corpus, written) == ("folders", tmp_path / "c" / "manifest.csv")
    emotion = manifest.columns.index("emotion")
    assert [u.labels[emotion] for u in manifest.utterances] == [e for e in EMOTIONS for _ in range(4)]


def test_the_manifest_has_speakers_and_texts(tmp_path: Path) -> None:
    manifest = read_manifest(write_corpus(tmp_path, 2, (0, 2)))
    labels = [dict(zip(manifest.columns, u.labels, strict=True)) for u in manifest.utterances]
    assert len(labels) == 16
    found = [{row[name] for row in labels} for name in ("speaker", "emotion", "text")]
    assert found == [{"spk00", "spk01"}, set(EMOTIONS), {SENTENCES[0][0], SENTENCES[2][0]}]
    assert all(Path(u.path).is_file() for u in manifest.utterances)


def test_files_hold_the_clips_as_16_bit(tmp_path: Path) -> None:
    with write_corpus(tmp_path, 1, (1,)).open(encoding="utf-8") as stream:
        row = next(csv.DictReader(stream))
    assert row["path"] == "anger/spk00_anger_s01.wav"
    info = soundfile.info(tmp_path / row["path"])
    assert (info.samplerate, info.channels, info.subtype) == (SAMPLE_RATE, 1, "PCM_16")
    read, _ = soundfile.read(tmp_path / row["path"], dtype="float32")
    assert np.abs(read - synthesise(0, "anger", 1)).max() <= 2**-15  # one step of 16 bits


def test_all_sentences_are_of_known_phones_with_stressed_vowels() -> None:
    for text, phones in SENTENCES:
        names = phones.split()
        assert all(name.rstrip("012") in synthetic.PHONES for name in names), text
        assert any(name.endswith("1") for name in names)
        assert all(name[-1].isdigit() == (name[0] in "AEIOU") for name in names), text
