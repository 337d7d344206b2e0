"""Synthetic speech: reproducible bit for bit, clean audio, and the physics that it claims."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import soundfile

from classifiers.demo import synthetic
from classifiers.demo.synthetic import EMOTIONS, SENTENCES, synthesise, voice, write_corpus
from extractor.errors import SettingsError
from extractor.inputs.manifest import read_manifest
from extractor.types import SAMPLE_RATE

CORPUS_EMOTIONS = ("anger", "happiness", "neutral", "sadness")
SPEAKERS = range(4)

FRAME, HOP = 640, 160  # samples: 40 ms hold two periods of the lowest voice
LOWEST_F0, HIGHEST_F0 = 60, 500  # Hz


@pytest.fixture(scope="module")
def clips() -> dict[tuple[int, str, int], np.ndarray]:
    """The default corpus."""
    return {
        (speaker, emotion, sentence): synthesise(speaker, emotion, sentence)
        for speaker in SPEAKERS
        for emotion in CORPUS_EMOTIONS
        for sentence in range(len(SENTENCES))
    }


def frames(clip: np.ndarray) -> np.ndarray:
    return np.lib.stride_tricks.sliding_window_view(clip.astype(np.float64), FRAME)[::HOP]


def f0_track(clip: np.ndarray) -> np.ndarray:
    """Hz, of the frames that are voiced: loud, and like themselves one period later."""
    loud = frames(clip)
    power = (loud**2).mean(axis=1)
    loud = loud[power > 0.05 * power.max()]
    loud = loud - loud.mean(axis=1, keepdims=True)
    spectra = np.abs(np.fft.rfft(loud, 2 * FRAME)) ** 2
    correlation = np.fft.irfft(spectra)[:, :FRAME]
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


def band_db(clip: np.ndarray, low: float, high: float) -> float:
    power = np.abs(np.fft.rfft(clip.astype(np.float64))) ** 2
    hz = np.fft.rfftfreq(len(clip), 1 / SAMPLE_RATE)
    return float(10 * np.log10(power[(hz >= low) & (hz < high)].sum()))


def formants_of(clip: np.ndarray) -> list[float]:
    """Resonances in Hz by linear prediction over the middle of a clip (order 18, pre-emphasis)."""
    middle = clip[len(clip) // 3 : -len(clip) // 3].astype(np.float64)
    middle = np.append(middle[0], middle[1:] - 0.97 * middle[:-1]) * np.hamming(len(middle))
    order = 18
    correlation = np.fft.irfft(np.abs(np.fft.rfft(middle, 2 * len(middle))) ** 2)[: order + 1]
    matrix = correlation[np.abs(np.subtract.outer(np.arange(order), np.arange(order)))]
    prediction = np.linalg.solve(matrix, correlation[1:])
    roots = np.roots(np.concatenate([[1.0], -prediction]))
    roots = roots[roots.imag > 0]
    hz = np.angle(roots) * SAMPLE_RATE / (2 * np.pi)
    width = -np.log(np.abs(roots)) * SAMPLE_RATE / np.pi
    return sorted(hz[(width < 400) & (hz > 150)].tolist())


# Reproducible


def test_a_clip_is_the_same_bit_for_bit_whatever_was_made_before() -> None:
    first = synthesise(1, "anger", 2)
    for emotion in EMOTIONS:
        synthesise(3, emotion, 0, seed=5)
    assert synthesise(1, "anger", 2).tobytes() == first.tobytes()


def test_every_part_of_the_key_changes_the_clip() -> None:
    base = synthesise(0, "neutral", 0)
    others = [
        synthesise(2, "neutral", 0),
        synthesise(0, "sadness", 0),
        synthesise(0, "neutral", 1),
        synthesise(0, "neutral", 0, seed=1),
    ]
    assert len({clip.tobytes() for clip in [base, *others]}) == 5


# Clean audio


def test_clips_are_finite_float32_within_range_and_not_clipped(
    clips: dict[tuple[int, str, int], np.ndarray],
) -> None:
    for clip in clips.values():
        assert clip.dtype == np.float32
        assert clip.ndim == 1
        assert np.isfinite(clip).all()
        peak = np.abs(clip).max()
        assert 0.03 < peak < 0.95  # audible as 16-bit, and never turned down or clipped
        assert abs(clip.mean()) < 1e-3  # no constant offset


def test_durations_spread_as_those_of_sentences_do(clips: dict[tuple[int, str, int], np.ndarray]) -> None:
    durations = np.array([len(clip) / SAMPLE_RATE for clip in clips.values()])
    assert durations.min() > 1.0
    assert durations.max() < 4.6
    assert durations.std() > 0.5


def test_clips_begin_and_end_in_a_quiet_room(clips: dict[tuple[int, str, int], np.ndarray]) -> None:
    for clip in clips.values():
        for edge in (clip[:800], clip[-800:]):
            assert -76 < level_db(edge) < -66  # not digital silence, which no microphone gives


@pytest.mark.parametrize("emotion", EMOTIONS)
@pytest.mark.parametrize("seed", [1, 2])
def test_other_speakers_and_seeds_are_clean_too(emotion: str, seed: int) -> None:
    for speaker in (4, 17):
        clip = synthesise(speaker, emotion, 5, seed)
        assert np.isfinite(clip).all()
        assert np.abs(clip).max() < 0.95


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
def test_emotions_go_in_the_directions_of_the_literature(
    clips: dict[tuple[int, str, int], np.ndarray], speaker: int
) -> None:
    for sentence in range(len(SENTENCES)):
        anger, happiness, neutral, sadness = (clips[speaker, e, sentence] for e in CORPUS_EMOTIONS)
        assert mean_f0(anger) > mean_f0(neutral) > mean_f0(sadness)
        assert mean_f0(happiness) > mean_f0(neutral)
        assert level_db(anger) > level_db(neutral) > level_db(sadness)
        assert len(anger) < len(sadness)
        assert len(neutral) < len(sadness)
        tilt = [band_db(x, 0, 1000) - band_db(x, 2000, 3500) for x in (anger, neutral, sadness)]
        assert tilt[0] < tilt[2]  # anger is brighter


def test_f0_range_is_wide_in_anger_and_happiness_and_narrow_in_sadness(
    clips: dict[tuple[int, str, int], np.ndarray],
) -> None:
    spread = {
        emotion: np.mean(
            [np.log2(f0_track(clips[0, emotion, s])).std() * 12 for s in range(len(SENTENCES))]
        )  # semitones
        for emotion in CORPUS_EMOTIONS
    }
    assert min(spread["anger"], spread["happiness"]) > spread["neutral"] > spread["sadness"]


@pytest.mark.parametrize("vowel", ["IY", "EH", "AA", "ER"])
@pytest.mark.parametrize("speaker", [0, 2])
def test_vowels_have_their_formants(monkeypatch: pytest.MonkeyPatch, vowel: str, speaker: int) -> None:
    monkeypatch.setattr(synthetic, "SENTENCES", ((vowel, f"{vowel}1"),))
    measured = np.array(formants_of(synthesise(speaker, "neutral", 0)))
    for wanted in synthetic.PHONES[vowel][0].formants[:2]:
        wanted *= voice(speaker).tract
        # half the distance between two harmonics: what is between them cannot be measured
        assert np.abs(measured - wanted).min() < max(0.10 * wanted, 65), (vowel, wanted, measured)


def test_a_short_tract_has_higher_formants(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "SENTENCES", (("a", "AA1"),))
    low, high = (formants_of(synthesise(speaker, "neutral", 0)) for speaker in (0, 1))
    third, shorter = (min(found, key=lambda hz: abs(hz - 2440 * f)) for found, f in ((low, 1), (high, 1.16)))
    assert 1.05 < shorter / third < 1.3


def test_hisses_are_high_and_hums_are_low(monkeypatch: pytest.MonkeyPatch) -> None:
    def balance(phones: str) -> float:
        monkeypatch.setattr(synthetic, "SENTENCES", ((phones, phones),))
        clip = synthesise(0, "neutral", 0)
        return band_db(clip, 4000, 8000) - band_db(clip, 0, 1000)

    assert balance("S AH1 S") > balance("SH AH1 SH") > balance("M AH1 M")


def test_pulses_do_not_alias(monkeypatch: pytest.MonkeyPatch) -> None:
    """A vowel at a steady F0 has its power on its harmonics alone."""
    hz = 203  # does not divide the sample rate, or harmonics would fold onto harmonics
    monkeypatch.setattr(synthetic, "SENTENCES", (("a", "AA1 AA1 AA1 AA1 AA1 AA1 AA1 AA1 AA1"),))
    monkeypatch.setattr(synthetic, "_f0", lambda stress, *_: np.full(len(stress), float(hz)))
    monkeypatch.setattr(synthetic, "_shaped_noise", lambda gain, _: np.zeros(len(gain) * synthetic.HOP_SAMPLES))
    middle = synthesise(0, "neutral", 0)[6000 : 6000 + SAMPLE_RATE].astype(np.float64)
    power = np.abs(np.fft.rfft(middle * np.hanning(len(middle)))) ** 2  # 1 Hz bins
    near = np.abs((np.arange(len(power)) + hz // 2) % hz - hz // 2) <= 4
    assert power[~near].sum() < 1e-4 * power.sum()  # the room's noise, and the level that falls


# On the disk


def test_the_folder_is_recognised_with_its_emotions(tmp_path: Path) -> None:
    manifest_csv = write_corpus(tmp_path / "c", num_speakers=2, sentences=(0, 2))
    manifest = read_manifest(tmp_path / "c")
    assert manifest.corpus == "folders"
    emotion = manifest.columns.index("emotion")
    assert [u.labels[emotion] for u in manifest.utterances] == [e for e in CORPUS_EMOTIONS for _ in range(4)]
    assert manifest_csv == tmp_path / "c" / "manifest.csv"


def test_the_manifest_has_speakers_and_texts(tmp_path: Path) -> None:
    manifest = read_manifest(write_corpus(tmp_path, num_speakers=2, sentences=(0, 2)))
    labels = [dict(zip(manifest.columns, u.labels, strict=True)) for u in manifest.utterances]
    assert len(labels) == 16
    assert {row["speaker"] for row in labels} == {"spk00", "spk01"}
    assert {row["emotion"] for row in labels} == set(CORPUS_EMOTIONS)
    assert {row["text"] for row in labels} == {SENTENCES[0][0], SENTENCES[2][0]}
    assert all(Path(u.path).is_file() for u in manifest.utterances)


def test_files_hold_the_clips_as_16_bit(tmp_path: Path) -> None:
    manifest = write_corpus(tmp_path, num_speakers=1, emotions=("fear",), sentences=(1,), seed=3)
    with manifest.open(encoding="utf-8") as stream:
        (row,) = csv.DictReader(stream)
    assert row["path"] == "fear/spk00_fear_s01.wav"
    info = soundfile.info(tmp_path / row["path"])
    assert (info.samplerate, info.channels, info.subtype) == (SAMPLE_RATE, 1, "PCM_16")
    read, _ = soundfile.read(tmp_path / row["path"], dtype="float32")
    assert np.abs(read - synthesise(0, "fear", 1, seed=3)).max() <= 2**-15  # one step of 16 bits


def test_writing_again_gives_the_same_bytes(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write_corpus(tmp_path / folder, num_speakers=1, sentences=(2,))
    first, second = (
        {f.relative_to(tmp_path / name): f.read_bytes() for f in (tmp_path / name).rglob("*.*")}
        for name in ("a", "b")
    )
    assert first == second
    assert len(first) == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, "hapiness", 0), "unknown emotion 'hapiness'; known: happiness"),
        ((0, "anger", 6), "sentence 6: there are 0 to 5"),
        ((-1, "anger", 0), "count from 0"),
    ],
)
def test_what_does_not_exist_is_refused(arguments: tuple[int, str, int], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        synthesise(*arguments)


def test_all_sentences_are_of_known_phones_with_stressed_vowels() -> None:
    for text, phones in SENTENCES:
        names = phones.split()
        assert all(name.rstrip("012") in synthetic.PHONES for name in names), text
        assert any(name.endswith("1") for name in names)
        for name in names:
            assert name[-1].isdigit() == (name[0] in "AEIOU"), name
