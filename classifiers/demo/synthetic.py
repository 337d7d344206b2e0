"""Synthetic speech, not recordings of people: a small corpus for demonstrations and tests.

    sentence -> phones -> timing -> tracks (formants, voicing, noise)  ─┐
    emotion, speaker -> F0, loudness, voice quality                     ─┴> source -> tract -> level

The source is a glottal pulse train with jitter, shimmer and flutter, and noise where air hisses; the
tract is a cascade of formant resonators that move between the phones' targets (Klatt 1980, J. Acoust.
Soc. Am. 67:971; Klatt and Klatt 1990, 87:820). Vowel formants are the means that Peterson and Barney
(1952, 24:175) measured in men.

Emotions differ in the *directions* in which reviews of vocal expression agree (Scherer 2003, Speech
Communication 40:227; Juslin and Laukka 2003, Psychological Bulletin 129:770): anger is fast, loud,
high, wide in F0 and bright; happiness the same, higher and less bright; sadness is slow, soft, low,
narrow, dull and breathy; fear is fast and high with little range; boredom is slow and flat. The
*values* are our own choice. So nothing about real emotional speech can be learned from this corpus.

A clip depends on (seed, speaker, emotion, sentence) alone, never on other clips or the order.
"""

from __future__ import annotations

import csv
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from extractor.errors import SettingsError, unknown
from extractor.types import SAMPLE_RATE, Seconds

if TYPE_CHECKING:
    import numpy as np

HOP_SAMPLES = 80  # 5 ms: one value of a track, and one step of the moving filter
FFT_SAMPLES = 1024  # a windowed piece of source (10 ms) and the 54 ms that the tract rings on
HIGHEST_HARMONIC = 7600.0  # Hz; harmonics fade out below this, so nothing aliases
FORMANT_GLIDE: Seconds = 0.070  # in which formants move from one target to the next
AMPLITUDE_GLIDE: Seconds = 0.020
UPPER_FORMANTS = (3500.0, 4500.0, 5500.0, 6500.0, 7500.0)  # Hz, those of a 17.5 cm tube
BANDWIDTHS = (70.0, 90.0, 130.0, 220.0, 280.0, 340.0, 400.0, 460.0)  # Hz, F1 to F8
NASAL_POLE, NASAL_ZERO = 270.0, 480.0  # Hz; both at NASAL_POLE, and so nothing, in other phones
NEUTRAL_VOWEL = (500.0, 1500.0, 2500.0)  # Hz: where weak articulation stays near
NEUTRAL_LEVEL_DB = -27.0  # dB of full scale, RMS while speaking
ROOM_NOISE_DB = -72.0
TILT_HZ = 3000.0  # where `Prosody.tilt_db` holds
ACCENT_SEMITONES = 3.2  # of a stressed syllable at neutral range
ACCENT_WIDTH: Seconds = 0.075
DECLINATION_SEMITONES = 3.0  # from the start to the end of a sentence at neutral range


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of a phone with one set of targets. Amplitudes are relative to a full vowel's."""

    duration: Seconds
    formants: tuple[float, float, float]  # Hz, F1 to F3
    voicing: float = 1.0
    aspiration: float = 0.0  # noise at the glottis, through the tract
    frication: float = 0.0  # noise at a narrow place in the mouth
    noise: tuple[float, float] = (0.0, 0.0)  # Hz, centre and bandwidth of the frication
    nasal: float = 0.0
    vowel: bool = False


@dataclass(frozen=True, slots=True)
class Prosody:
    """How an emotion sounds, against neutral."""

    semitones: float  # mean F0
    f0_range: float  # factor on accents and declination
    final_semitones: float  # over the last quarter of a second
    rate: float
    level_db: float
    tilt_db: float  # fall of the glottal spectrum at TILT_HZ, beyond the pulse's own
    open_quotient: float  # share of a glottal cycle in which the glottis is open
    breath: float  # noise in the voice, relative to the pulses
    jitter: float  # standard deviation of cycle lengths
    shimmer: float  # of cycle amplitudes
    articulation: float  # 1: formants reach their targets
    formants: float  # factor: a smile shortens the tract


# fmt: off
EMOTIONS: dict[str, Prosody] = {
    #                    semitones range final  rate level  tilt  open breath jitter shimmer artic. formants
    "anger":     Prosody( 4.0,     1.60, -3.0, 1.15,  6.0,  2.0, 0.45, 0.010, 0.012, 0.05,   1.06,  1.02),
    "happiness": Prosody( 5.0,     1.80,  2.5, 1.10,  3.5,  5.0, 0.52, 0.015, 0.007, 0.03,   1.03,  1.04),
    "neutral":   Prosody( 0.0,     1.00, -2.0, 1.00,  0.0,  9.0, 0.58, 0.020, 0.006, 0.03,   1.00,  1.00),
    "sadness":   Prosody(-2.5,     0.45, -2.5, 0.80, -6.0, 16.0, 0.72, 0.060, 0.009, 0.05,   0.85,  0.99),
    "fear":      Prosody( 6.0,     0.70,  1.0, 1.20, -1.0,  8.0, 0.62, 0.050, 0.020, 0.08,   0.95,  1.01),
    "boredom":   Prosody(-1.5,     0.35, -1.0, 0.88, -3.0, 12.0, 0.62, 0.025, 0.006, 0.03,   0.88,  1.00),
}
# fmt: on


def _vowel(duration: Seconds, *targets: tuple[float, float, float]) -> tuple[Segment, ...]:
    return tuple(Segment(duration / len(targets), target, vowel=True) for target in targets)


def _stop(
    formants: tuple[float, float, float], burst: tuple[float, float], voiced: bool
) -> tuple[Segment, ...]:
    low = (200.0, *formants[1:])  # a closed mouth has a low F1
    if voiced:
        return (
            Segment(0.055, low, voicing=0.15),
            Segment(0.010, formants, voicing=0.3, frication=0.25, noise=burst),
        )
    return (
        Segment(0.065, low, voicing=0.0),
        Segment(0.015, formants, voicing=0.0, frication=0.4, noise=burst),
        Segment(0.030, formants, voicing=0.0, aspiration=0.15, frication=0.04, noise=burst),
    )


def _fricative(
    duration: Seconds,
    formants: tuple[float, float, float],
    frication: float,
    noise: tuple[float, float],
    voicing: float = 0.0,
) -> tuple[Segment, ...]:
    return (Segment(duration, formants, voicing=voicing, frication=frication, noise=noise),)


def _sonorant(
    duration: Seconds, formants: tuple[float, float, float], voicing: float, nasal: float = 0.0
) -> tuple[Segment, ...]:
    return (Segment(duration, formants, voicing=voicing, nasal=nasal),)


_LIPS, _TEETH, _VELUM = (350.0, 950.0, 2300.0), (350.0, 1750.0, 2650.0), (320.0, 1950.0, 2350.0)
_LIPS_BURST, _TEETH_BURST, _VELUM_BURST = (900.0, 1500.0), (4500.0, 2500.0), (2200.0, 900.0)

# ARPABET. Consonants' formants are those that the neighbouring vowels move towards (their loci).
PHONES: dict[str, tuple[Segment, ...]] = {
    "IY": _vowel(0.110, (270.0, 2290.0, 3010.0)),
    "IH": _vowel(0.085, (390.0, 1990.0, 2550.0)),
    "EH": _vowel(0.100, (530.0, 1840.0, 2480.0)),
    "AE": _vowel(0.120, (660.0, 1720.0, 2410.0)),
    "AH": _vowel(0.085, (640.0, 1190.0, 2390.0)),
    "AA": _vowel(0.125, (730.0, 1090.0, 2440.0)),
    "AO": _vowel(0.125, (570.0, 840.0, 2410.0)),
    "UH": _vowel(0.085, (440.0, 1020.0, 2240.0)),
    "UW": _vowel(0.115, (300.0, 870.0, 2240.0)),
    "ER": _vowel(0.110, (490.0, 1350.0, 1690.0)),
    "EY": _vowel(0.135, (480.0, 1900.0, 2500.0), (310.0, 2200.0, 2850.0)),
    "AY": _vowel(0.150, (720.0, 1150.0, 2430.0), (390.0, 2000.0, 2600.0)),
    "OW": _vowel(0.135, (540.0, 1000.0, 2350.0), (350.0, 850.0, 2240.0)),
    "AW": _vowel(0.150, (720.0, 1250.0, 2440.0), (430.0, 950.0, 2240.0)),
    "W": _sonorant(0.060, (290.0, 650.0, 2200.0), 0.55),
    "Y": _sonorant(0.055, (270.0, 2250.0, 3000.0), 0.55),
    "L": _sonorant(0.060, (360.0, 1050.0, 2750.0), 0.60),
    "R": _sonorant(0.060, (330.0, 1150.0, 1500.0), 0.60),
    "M": _sonorant(0.070, (280.0, 950.0, 2250.0), 0.45, nasal=1.0),
    "N": _sonorant(0.065, (280.0, 1700.0, 2600.0), 0.45, nasal=1.0),
    "B": _stop(_LIPS, _LIPS_BURST, voiced=True),
    "D": _stop(_TEETH, _TEETH_BURST, voiced=True),
    "G": _stop(_VELUM, _VELUM_BURST, voiced=True),
    "P": _stop(_LIPS, _LIPS_BURST, voiced=False),
    "T": _stop(_TEETH, _TEETH_BURST, voiced=False),
    "K": _stop(_VELUM, _VELUM_BURST, voiced=False),
    "F": _fricative(0.095, (340.0, 1100.0, 2080.0), 0.07, (6500.0, 5000.0)),
    "TH": _fricative(0.090, (320.0, 1300.0, 2540.0), 0.06, (6200.0, 4000.0)),
    "S": _fricative(0.105, (320.0, 1600.0, 2600.0), 0.30, (5600.0, 1800.0)),
    "SH": _fricative(0.110, (320.0, 1850.0, 2600.0), 0.35, (3000.0, 1300.0)),
    "V": _fricative(0.060, (260.0, 1100.0, 2080.0), 0.03, (6500.0, 5000.0), voicing=0.35),
    "DH": _fricative(0.045, (280.0, 1300.0, 2540.0), 0.03, (6200.0, 4000.0), voicing=0.40),
    "Z": _fricative(0.080, (280.0, 1600.0, 2600.0), 0.17, (5600.0, 1800.0), voicing=0.30),
    "HH": (Segment(0.060, (500.0, 1500.0, 2500.0), voicing=0.0, aspiration=0.22),),
}

# What is said, and how: the digit behind a vowel is its stress.
SENTENCES: tuple[tuple[str, str], ...] = (
    ("We never saw the moon.", "W IY0 N EH1 V ER0 S AO1 DH AH0 M UW1 N"),
    ("The boats came in at noon.", "DH AH0 B OW1 T S K EY1 M IH0 N AE0 T N UW1 N"),
    ("Give it to me now.", "G IH1 V IH0 T T AH0 M IY1 N AW1"),
    (
        "Nobody told me it would rain today.",
        "N OW1 B AH0 D IY0 T OW1 L D M IY0 IH0 T W UH0 D R EY1 N T AH0 D EY1",
    ),
    (
        "My sister left her shoes outside the door.",
        "M AY0 S IH1 S T ER0 L EH1 F T HH ER0 SH UW1 Z AW0 T S AY1 D DH AH0 D AO1 R",
    ),
    (
        "Leave the keys on the table by the window and go.",
        "L IY1 V DH AH0 K IY1 Z AA0 N DH AH0 T EY1 B AH0 L B AY0 DH AH0 W IH1 N D OW0 AE0 N D G OW1",
    ),
)


@dataclass(frozen=True, slots=True)
class Voice:
    """A speaker: even numbers have low voices and long tracts, odd ones high voices and short."""

    f0: float  # Hz, mean in neutral speech
    tract: float  # factor on all formants: 17.5 cm by the length of the vocal tract
    rate: float
    f0_range: float
    tilt_db: float  # on top of the emotion's
    level_db: float


def voice(speaker: int, seed: int = 0) -> Voice:
    """The voice of a speaker: the same in all emotions and sentences."""
    rng = _generator(seed, speaker, "voice")
    low = speaker % 2 == 0
    semitones = rng.uniform(-3.0, 3.0)
    return Voice(
        f0=(115.0 if low else 205.0) * 2 ** (semitones / 12),
        tract=(1.0 if low else 1.16) * (1 + 0.006 * semitones + rng.uniform(-0.02, 0.02)),
        rate=rng.uniform(0.93, 1.07),
        f0_range=rng.uniform(0.85, 1.15),
        tilt_db=rng.uniform(-1.5, 1.5),
        level_db=rng.uniform(-1.0, 1.0),
    )


def synthesise(speaker: int, emotion: str, sentence: int, seed: int = 0) -> np.ndarray:
    """One clip of synthetic speech: float32 ``[num_samples]`` in [-1, 1] at `SAMPLE_RATE`.

    Args:
        speaker: any number from 0; see `Voice`.
        emotion: a name of `EMOTIONS`.
        sentence: a number of `SENTENCES`.
        seed: another seed gives other speakers and other takes.

    Raises:
        SettingsError: no such emotion, sentence or speaker.
    """
    import numpy as np

    _check([speaker], [emotion], [sentence], seed)
    rng = _generator(seed, speaker, emotion, sentence)
    who, how = voice(speaker, seed), EMOTIONS[emotion]
    score = _timing(SENTENCES[sentence][1], how.rate * who.rate * rng.uniform(0.95, 1.05), rng)
    num_samples = len(score) * HOP_SAMPLES
    f0 = _f0(score, who, how, rng)
    voicing, aspiration = (_amplitude(score, name) for name in ("voicing", "aspiration"))

    pulses, opening = _pulses(f0, how, rng)
    pulses = _tilted(pulses, max(0.5, how.tilt_db + who.tilt_db))
    voicing *= _loudness(score)
    pulses *= voicing / np.sqrt(np.mean(pulses**2))
    # Breath is turbulence behind the open glottis: it comes in bursts, once a cycle.
    breath = (aspiration + how.breath * voicing * opening) * rng.standard_normal(num_samples)
    speech = _through_tract(pulses + breath, *_formants(score, who.tract * how.formants, how.articulation))
    speech /= np.sqrt(np.mean(speech[voicing > 0.5] ** 2))
    speech += _frication(score, who.tract, rng)

    level_db = NEUTRAL_LEVEL_DB + how.level_db + who.level_db + rng.uniform(-1.0, 1.0)
    speech *= 10 ** (level_db / 20) / np.sqrt(np.mean(speech[voicing > 0.1] ** 2))
    speech += 10 ** (ROOM_NOISE_DB / 20) * rng.standard_normal(num_samples)
    speech /= max(1.0, np.abs(speech).max() / 0.99)  # a take that is too loud is turned down, not clipped
    return speech.astype(np.float32)


def write_corpus(
    folder: str | os.PathLike[str],
    num_speakers: int = 4,
    emotions: Sequence[str] = ("anger", "happiness", "neutral", "sadness"),
    sentences: Sequence[int] = tuple(range(len(SENTENCES))),
    seed: int = 0,
) -> Path:
    """Write clips of every speaker, emotion and sentence as 16-bit WAV, one folder an emotion.

    Returns ``folder/manifest.csv`` (path, emotion, speaker, text), which is written last: where it
    is, the corpus is complete. Raises ``SettingsError`` for emotions or sentences that are not there.
    """
    import soundfile

    _check(range(num_speakers), emotions, sentences, seed)
    folder = Path(folder)
    rows = []
    for emotion in emotions:
        (folder / emotion).mkdir(parents=True, exist_ok=True)
        for speaker in range(num_speakers):
            for sentence in sentences:
                path = f"{emotion}/spk{speaker:02}_{emotion}_s{sentence:02}.wav"
                clip = synthesise(speaker, emotion, sentence, seed)
                soundfile.write(folder / path, clip, SAMPLE_RATE, subtype="PCM_16")
                rows.append((path, emotion, f"spk{speaker:02}", SENTENCES[sentence][0]))
    manifest = folder / "manifest.csv"
    with manifest.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("path", "emotion", "speaker", "text"), *rows])
    return manifest


def _check(speakers: Sequence[int], emotions: Sequence[str], sentences: Sequence[int], seed: int) -> None:
    for emotion in emotions:
        if emotion not in EMOTIONS:
            raise SettingsError(unknown("emotion", emotion, EMOTIONS))
    for sentence in sentences:
        if not 0 <= sentence < len(SENTENCES):
            raise SettingsError(f"sentence {sentence}: there are 0 to {len(SENTENCES) - 1}")
    if not len(speakers) or min(speakers) < 0 or seed < 0:
        raise SettingsError("synthetic speech needs a speaker; speakers and seeds count from 0")


def _generator(seed: int, speaker: int, what: str, sentence: int = 0) -> np.random.Generator:
    import numpy as np

    return np.random.default_rng([seed, speaker, zlib.crc32(what.encode()), sentence])


# Timing and tracks: one value every HOP_SAMPLES. A score is one (segment, stress) a hop.

_Score = list[tuple[Segment, int]]


def _timing(phones: str, rate: float, rng: np.random.Generator) -> _Score:
    """How long each segment takes: a rate, some variation, longer when stressed and at the end."""
    names = phones.split()
    last_vowel = max(i for i, name in enumerate(names) if name[-1].isdigit())
    silence = Segment(0.0, NEUTRAL_VOWEL, voicing=0.0)
    hop: Seconds = HOP_SAMPLES / SAMPLE_RATE
    score: _Score = [(silence, 0)] * round(rng.uniform(0.10, 0.20) / hop)
    for i, name in enumerate(names):
        stress = int(name[-1]) if name[-1].isdigit() else 0
        stretch = rng.uniform(0.9, 1.1) / rate
        if name[-1].isdigit():
            stretch *= 1.35 if stress else 0.85
        if i >= last_vowel:
            stretch *= 1.5
        for segment in PHONES[name.rstrip("012")]:
            score += [(segment, stress)] * max(1, round(segment.duration * stretch / hop))
    return score + [(silence, 0)] * round(rng.uniform(0.15, 0.25) / hop)


def _smooth(track: np.ndarray, glide: Seconds) -> np.ndarray:
    """Steps between targets become glides; ``track [hops]`` or ``[hops, n]``, edges held."""
    import numpy as np

    half = round(glide * SAMPLE_RATE / HOP_SAMPLES / 2)
    kernel = np.hanning(2 * half + 3)[1:-1]
    padded = np.pad(track, [(half, half)] + [(0, 0)] * (track.ndim - 1), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, len(kernel), axis=0)
    return windows @ (kernel / kernel.sum())


def _to_samples(track: np.ndarray) -> np.ndarray:
    import numpy as np

    samples = np.arange(len(track) * HOP_SAMPLES)
    return np.interp(samples, (np.arange(len(track)) + 0.5) * HOP_SAMPLES, track)


def _amplitude(score: _Score, name: str) -> np.ndarray:
    import numpy as np

    return _to_samples(_smooth(np.array([getattr(segment, name) for segment, _ in score]), AMPLITUDE_GLIDE))


def _loudness(score: _Score) -> np.ndarray:
    """Stressed syllables are louder, and a sentence gets softer."""
    import numpy as np

    stress = np.array([1.0 if stress else 0.7 for _, stress in score])
    return _to_samples(_smooth(stress, FORMANT_GLIDE) * np.linspace(1.0, 0.7, len(score)))


def _f0(score: _Score, who: Voice, how: Prosody, rng: np.random.Generator) -> np.ndarray:
    """Hz, one a sample: declination, an accent on each stressed vowel, a final rise or fall, flutter."""
    import numpy as np

    t = np.arange(len(score)) * HOP_SAMPLES / SAMPLE_RATE
    spoken = np.flatnonzero([segment.duration > 0 for segment, _ in score])
    start, end = t[spoken[0]], t[spoken[-1]]
    width = how.f0_range * who.f0_range
    contour = width * DECLINATION_SEMITONES * (0.5 - (t - start) / (end - start))
    stressed = np.array([segment.vowel and stress > 0 for segment, stress in score])
    edges = np.flatnonzero(np.diff(stressed.astype(int), prepend=0, append=0)).reshape(-1, 2)
    for first, beyond in edges:
        centre = (t[first] + t[beyond - 1]) / 2
        size = width * ACCENT_SEMITONES * rng.uniform(0.75, 1.25)
        contour += size * np.exp(-0.5 * ((t - centre) / ACCENT_WIDTH) ** 2)
    contour += how.final_semitones * np.clip((t - end) / 0.25 + 1, 0, 1)
    phases = rng.uniform(0, 2 * np.pi, 3)
    for hz, phase in zip((12.7, 7.1, 4.7), phases, strict=True):  # flutter: Klatt and Klatt, eq. 1
        contour += 0.06 * np.sin(2 * np.pi * hz * t + phase)
    contour += how.semitones + rng.uniform(-0.7, 0.7)
    return _to_samples(who.f0 * 2 ** (contour / 12))


def _pulses(f0: np.ndarray, how: Prosody, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Derivative of the glottal flow, and 1 where the glottis is open; ``[num_samples]`` each.

    The pulse is that of KLGLOTT88: flow t^2 - t^3 while open, closing at once. It is summed from its
    harmonics, since sampling its corner would alias.
    """
    import numpy as np

    cycle = np.cumsum(f0 / SAMPLE_RATE).astype(int)
    lengths = 1 + how.jitter * rng.standard_normal(cycle[-1] + 2)
    phase = np.cumsum(f0 / SAMPLE_RATE / lengths[cycle])  # in cycles
    cycle = phase.astype(int)
    x = np.arange(8192) / 8192 / how.open_quotient
    harmonics = np.fft.rfft(np.where(x < 1, 2 * x - 3 * x**2, 0.0)) / 8192
    turn = np.exp(2j * np.pi * (phase - cycle))
    power, pulses = turn.copy(), np.zeros_like(f0)
    for k in range(1, int(HIGHEST_HARMONIC / f0.min()) + 1):
        fade = np.clip((HIGHEST_HARMONIC - k * f0) / 300.0, 0.0, 1.0)
        pulses += fade * (harmonics[k] * power).real
        power *= turn
    shimmer = 1 + how.shimmer * rng.standard_normal(cycle[-1] + 1)
    return pulses * shimmer[cycle], (phase - cycle < how.open_quotient).astype(float)


def _tilted(source: np.ndarray, tilt_db: float) -> np.ndarray:
    """A one-pole low-pass that takes ``tilt_db`` away at TILT_HZ."""
    import numpy as np

    corner = TILT_HZ / np.sqrt(10 ** (tilt_db / 10) - 1)
    hz = np.fft.rfftfreq(2 * len(source), 1 / SAMPLE_RATE)
    response = 1 / (1 + 1j * hz / corner)
    return np.fft.irfft(np.fft.rfft(source, 2 * len(source)) * response)[: len(source)]


# The vocal tract


def _formants(score: _Score, scale: float, articulation: float) -> tuple[np.ndarray, np.ndarray]:
    """Formant frequencies ``[hops, 8]`` and the nasal zero's ``[hops]``, in Hz."""
    import numpy as np

    neutral = np.array(NEUTRAL_VOWEL)
    targets = neutral + articulation * (np.array([segment.formants for segment, _ in score]) - neutral)
    moving = _smooth(np.maximum(targets, 200.0), FORMANT_GLIDE)  # [hops, 3]
    fixed = np.broadcast_to(UPPER_FORMANTS, (len(score), len(UPPER_FORMANTS)))
    nasality = _smooth(np.array([segment.nasal for segment, _ in score]), AMPLITUDE_GLIDE)
    return scale * np.concatenate([moving, fixed], axis=1), NASAL_POLE + nasality * (NASAL_ZERO - NASAL_POLE)


def _through_tract(source: np.ndarray, formants: np.ndarray, nasal_zero: np.ndarray) -> np.ndarray:
    """Filter with a cascade of resonators that changes every hop.

    Each hop's piece of source, under a Hann window of two hops (they add up to one), goes through
    that hop's own tract; what comes out is overlapped and added.
    """
    import numpy as np

    hops = len(formants)
    window = np.hanning(2 * HOP_SAMPLES + 1)[:-1]
    padded = np.pad(source, HOP_SAMPLES // 2 + HOP_SAMPLES)
    starts = np.arange(hops) * HOP_SAMPLES + HOP_SAMPLES  # the window's middle is the hop's middle
    pieces = padded[starts[:, None] + np.arange(2 * HOP_SAMPLES)] * window
    spectra = np.fft.rfft(pieces, FFT_SAMPLES)  # [hops, bins]
    delay = np.exp(-2j * np.pi * np.fft.rfftfreq(FFT_SAMPLES))  # z^-1
    for i, bandwidth in enumerate(BANDWIDTHS):
        if formants[0, i] < 0.49 * SAMPLE_RATE:  # a short tract has fewer formants below Nyquist
            moving = np.ptp(formants[:, i]) > 0  # the upper ones do not, so one response is enough
            spectra *= _resonator(formants[:, i] if moving else formants[:1, i], bandwidth, delay)
    spectra *= _resonator(np.array([NASAL_POLE]), 100.0, delay)
    spectra /= _resonator(nasal_zero, 100.0, delay)
    ringing = np.fft.irfft(spectra, FFT_SAMPLES)
    out = np.zeros((hops + 1) * HOP_SAMPLES + FFT_SAMPLES)
    for start, piece in zip(range(0, hops * HOP_SAMPLES, HOP_SAMPLES), ringing, strict=True):
        out[start : start + FFT_SAMPLES] += piece
    return out[HOP_SAMPLES // 2 : HOP_SAMPLES // 2 + len(source)]


def _resonator(hz: np.ndarray, bandwidth: float, delay: np.ndarray) -> np.ndarray:
    """Responses ``[len(hz), bins]`` of Klatt's digital resonator, which passes 0 Hz unchanged."""
    import numpy as np

    radius = np.exp(-np.pi * bandwidth / SAMPLE_RATE)
    b = 2 * radius * np.cos(2 * np.pi * hz / SAMPLE_RATE)[:, None]
    c = -(radius**2)
    return (1 - b - c) / (1 - b * delay - c * delay**2)


def _frication(score: _Score, tract: float, rng: np.random.Generator) -> np.ndarray:
    """Noise of fricatives and bursts: of each kind one resonance, its amplitude following the score."""
    import numpy as np

    num_samples = len(score) * HOP_SAMPLES
    noise = np.fft.rfft(rng.standard_normal(num_samples))
    delay = np.exp(-2j * np.pi * np.fft.rfftfreq(num_samples))
    out = np.zeros(num_samples)
    for centre, width in sorted({segment.noise for segment, _ in score if segment.frication}):
        hz = np.array([min(centre * np.sqrt(tract), 0.46 * SAMPLE_RATE)])
        # less its gain at 0 Hz: there is no low rumble in a hiss
        response = _resonator(hz, width, delay)[0] * (1 - delay)
        hiss = np.fft.irfft(noise * response, num_samples)
        amplitude = np.array([s.frication if s.noise == (centre, width) else 0.0 for s, _ in score])
        out += hiss / hiss.std() * _to_samples(_smooth(amplitude, AMPLITUDE_GLIDE / 2))
    return out
