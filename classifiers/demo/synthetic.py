"""Synthetic speech, not recordings of people: a small corpus for demonstrations and tests.

    sentence -> phones -> one segment a hop (formants, voicing, hiss)  ─┐
    emotion, speaker -> F0, loudness, voice quality                    ─┴> harmonics and noise, shaped

The voice is a sum of harmonics of F0, each as strong as the source (a glottal pulse, tilted) and the vocal
tract make it at its own frequency and moment; breath and hiss are noise, shaped hop by hop. The tract is a
cascade of formant resonances that glide between the phones' targets (Klatt 1980, J. Acoust. Soc. Am. 67:971).
Vowel formants are the means that Peterson and Barney (1952, 24:175) measured in men.

Emotions differ in the *directions* in which reviews of vocal expression agree (Scherer 2003, Speech
Communication 40:227; Juslin and Laukka 2003, Psychological Bulletin 129:770): anger is fast, loud,
high, wide in F0 and bright; happiness the same, higher and less bright; sadness is slow, soft, low,
narrow, dull and breathy. The *values* are our own choice. So nothing about real emotional speech can be
learned from this corpus.

A clip depends on (speaker, emotion, sentence) alone, never on other clips or the order.
"""

from __future__ import annotations

import csv
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from extractor.types import SAMPLE_RATE, Seconds

if TYPE_CHECKING:
    import numpy as np

HOP_SAMPLES = 80  # 5 ms: one segment of a score
HIGHEST_HARMONIC = 7600.0  # Hz; harmonics fade out below this, so nothing aliases
GLIDE: Seconds = 0.050  # in which formants and amplitudes move from one target to the next
UPPER_FORMANTS = (3500.0, 4500.0, 5500.0, 6500.0, 7500.0)  # Hz, those of a 17.5 cm tube
BANDWIDTHS = (70.0, 90.0, 130.0, 220.0, 280.0, 340.0, 400.0, 460.0)  # Hz, F1 to F8
LEVEL_DB = -27.0  # dB of full scale, RMS of neutral speech while it is voiced
ROOM_NOISE_DB = -72.0
TILT_HZ = 3000.0  # where `Prosody.tilt_db` holds
ACCENT_SEMITONES, ACCENT_WIDTH = 3.2, 0.075  # of a stressed vowel at neutral range; seconds
DECLINATION_SEMITONES = 3.0  # from the start to the end of a sentence at neutral range


class Prosody(NamedTuple):
    """How an emotion sounds, against neutral."""

    semitones: float  # mean F0
    f0_range: float  # factor on accents and declination
    rate: float
    level_db: float
    tilt_db: float  # fall of the glottal spectrum at TILT_HZ, beyond the pulse's own
    breath: float  # noise in the voice, relative to its harmonics


EMOTIONS = {
    "anger": Prosody(4.0, 1.60, 1.15, 6.0, 2.0, 0.003),
    "happiness": Prosody(5.0, 1.80, 1.10, 3.5, 5.0, 0.005),
    "neutral": Prosody(0.0, 1.00, 1.00, 0.0, 9.0, 0.007),
    "sadness": Prosody(-2.5, 0.45, 0.80, -6.0, 16.0, 0.012),
}


class Segment(NamedTuple):
    """A stretch of a phone with one set of targets. Amplitudes are relative to a full vowel's."""

    duration: Seconds
    formants: tuple[float, float, float]  # Hz, F1 to F3
    voicing: float = 1.0
    hiss: float = 0.0
    centre: float = 5000.0  # Hz, of the hiss


def _stop(f2: float, f3: float, centre: float, voiced: bool) -> tuple[Segment, ...]:
    """A closed mouth, which has a low F1, and its burst."""
    closed = Segment(0.06, (200.0, f2, f3), 0.15 if voiced else 0.0)
    return closed, Segment(0.02, (350.0, f2, f3), 0.3 if voiced else 0.0, 0.25 if voiced else 0.4, centre)


# ARPABET. Consonants' formants are those that the neighbouring vowels move towards (their loci).
PHONES: dict[str, tuple[Segment, ...]] = {
    "IY": (Segment(0.110, (270.0, 2290.0, 3010.0)),),
    "IH": (Segment(0.085, (390.0, 1990.0, 2550.0)),),
    "EH": (Segment(0.100, (530.0, 1840.0, 2480.0)),),
    "AE": (Segment(0.120, (660.0, 1720.0, 2410.0)),),
    "AH": (Segment(0.085, (640.0, 1190.0, 2390.0)),),
    "AA": (Segment(0.125, (730.0, 1090.0, 2440.0)),),
    "AO": (Segment(0.125, (570.0, 840.0, 2410.0)),),
    "UH": (Segment(0.085, (440.0, 1020.0, 2240.0)),),
    "UW": (Segment(0.115, (300.0, 870.0, 2240.0)),),
    "ER": (Segment(0.110, (490.0, 1350.0, 1690.0)),),
    "EY": (Segment(0.068, (480.0, 1900.0, 2500.0)), Segment(0.068, (310.0, 2200.0, 2850.0))),
    "AY": (Segment(0.075, (720.0, 1150.0, 2430.0)), Segment(0.075, (390.0, 2000.0, 2600.0))),
    "OW": (Segment(0.068, (540.0, 1000.0, 2350.0)), Segment(0.068, (350.0, 850.0, 2240.0))),
    "AW": (Segment(0.075, (720.0, 1250.0, 2440.0)), Segment(0.075, (430.0, 950.0, 2240.0))),
    "W": (Segment(0.060, (290.0, 650.0, 2200.0), 0.55),),
    "L": (Segment(0.060, (360.0, 1050.0, 2750.0), 0.60),),
    "R": (Segment(0.060, (330.0, 1150.0, 1500.0), 0.60),),
    "M": (Segment(0.070, (280.0, 950.0, 2250.0), 0.45),),
    "N": (Segment(0.065, (280.0, 1700.0, 2600.0), 0.45),),
    "B": _stop(950.0, 2300.0, 900.0, voiced=True),
    "D": _stop(1750.0, 2650.0, 4500.0, voiced=True),
    "G": _stop(1950.0, 2350.0, 2200.0, voiced=True),
    "T": _stop(1750.0, 2650.0, 4500.0, voiced=False),
    "K": _stop(1950.0, 2350.0, 2200.0, voiced=False),
    "F": (Segment(0.095, (340.0, 1100.0, 2080.0), 0.0, 0.07, 6500.0),),
    "S": (Segment(0.105, (320.0, 1600.0, 2600.0), 0.0, 0.30, 5600.0),),
    "SH": (Segment(0.110, (320.0, 1850.0, 2600.0), 0.0, 0.25, 3000.0),),
    "V": (Segment(0.060, (260.0, 1100.0, 2080.0), 0.35, 0.03, 6500.0),),
    "DH": (Segment(0.045, (280.0, 1300.0, 2540.0), 0.40, 0.03, 6200.0),),
    "Z": (Segment(0.080, (280.0, 1600.0, 2600.0), 0.30, 0.17, 5600.0),),
    "HH": (Segment(0.060, (500.0, 1500.0, 2500.0), 0.0, 0.03, 1500.0),),
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


class Voice(NamedTuple):
    """A speaker: even numbers have low voices and long tracts, odd ones high voices and short."""

    f0: float  # Hz, mean in neutral speech
    tract: float  # factor on all formants: 17.5 cm by the length of the vocal tract
    rate: float
    f0_range: float
    tilt_db: float  # on top of the emotion's
    level_db: float


def voice(speaker: int) -> Voice:
    """The voice of a speaker: the same in all emotions and sentences."""
    rng = _generator(speaker, "voice")
    low = speaker % 2 == 0
    semitones = rng.uniform(-3.0, 3.0)
    f0 = (115.0 if low else 205.0) * 2 ** (semitones / 12)
    tract = (1.0 if low else 1.16) * (1 + 0.006 * semitones + rng.uniform(-0.02, 0.02))
    low_to_high = ((0.93, 1.07), (0.85, 1.15), (-1.5, 1.5), (-1.0, 1.0))
    return Voice(f0, tract, *(rng.uniform(*ends) for ends in low_to_high))


def synthesise(speaker: int, emotion: str, sentence: int) -> np.ndarray:
    """One clip of synthetic speech: float32 ``[num_samples]`` in [-1, 1] at `SAMPLE_RATE`.

    ``speaker`` is any number from 0 (see `Voice`), ``emotion`` a name of `EMOTIONS`, ``sentence`` a number of
    `SENTENCES`.
    """
    import numpy as np

    rng = _generator(speaker, emotion, sentence)
    who, how = voice(speaker), EMOTIONS[emotion]
    segments, stress = _score(SENTENCES[sentence][1], how.rate * who.rate * rng.uniform(0.95, 1.05), rng)
    targets = np.array([segment.formants for segment in segments])  # [hops, 3]
    fixed = np.broadcast_to(UPPER_FORMANTS, (len(segments), len(UPPER_FORMANTS)))
    formants = who.tract * np.concatenate([_smooth(targets), fixed], axis=1)  # [hops, 8]
    voicing, hiss = (_smooth(np.array([getattr(s, name) for s in segments])) for name in ("voicing", "hiss"))
    spoken = np.flatnonzero([segment.duration > 0 for segment in segments])
    voicing *= _smooth(np.where(stress > 0, 1.0, 0.7)) * np.linspace(1.0, 0.7, len(segments))
    f0 = _f0(stress, spoken, how, who, rng)

    tilt = 10 ** ((how.tilt_db + who.tilt_db) / 10) - 1
    hz = np.outer(f0, np.arange(1, int(HIGHEST_HARMONIC / f0.min()) + 1))  # [hops, harmonics]
    # A glottal pulse falls by 12 dB an octave; what is radiated from the mouth rises by 6.
    source = 1 / hz / np.sqrt(1 + max(tilt, 0.1) * (hz / TILT_HZ) ** 2)
    strength = source * _tract(hz, formants) * np.clip((HIGHEST_HARMONIC - hz) / 300.0, 0.0, 1.0)
    strength *= (voicing / np.sqrt((strength**2).sum(axis=1).mean()))[:, None]
    turn = np.exp(2j * np.pi * np.cumsum(_to_samples(f0)) / SAMPLE_RATE)
    power, speech = turn.copy(), np.zeros(len(turn))
    for harmonic in strength.T:
        speech += _to_samples(harmonic) * power.imag
        power *= turn

    bins = np.fft.rfftfreq(4 * HOP_SAMPLES, 1 / SAMPLE_RATE)
    through = _tract(np.broadcast_to(bins, (len(segments), len(bins))), formants)
    centre = np.array([min(segment.centre * np.sqrt(who.tract), 7300.0) for segment in segments])
    peak = np.exp(-0.5 * ((bins - centre[:, None]) / 1200.0) ** 2)  # one broad peak, and no low rumble
    breath = how.breath * voicing[:, None] * through / through.mean()
    speech += _shaped_noise(breath + 1.6 * hiss[:, None] * peak, rng)

    level_db = LEVEL_DB + how.level_db + who.level_db + rng.uniform(-1.0, 1.0)
    speech *= 10 ** (level_db / 20) / np.sqrt(np.mean(speech[_to_samples(voicing) > 0.1] ** 2))
    speech += 10 ** (ROOM_NOISE_DB / 20) * rng.standard_normal(len(speech))
    speech /= max(1.0, np.abs(speech).max() / 0.99)  # a take that is too loud is turned down, not clipped
    return speech.astype(np.float32)


def write_corpus(folder: Path, num_speakers: int, sentences: Sequence[int]) -> Path:
    """Write clips of every speaker, emotion and sentence as 16-bit WAV, one folder an emotion.

    Returns ``folder/manifest.csv`` (path, emotion, speaker, text), which is written last: where it
    is, the corpus is complete.
    """
    import soundfile

    rows = [("path", "emotion", "speaker", "text")]
    for emotion in EMOTIONS:
        (folder / emotion).mkdir(parents=True, exist_ok=True)
        for speaker in range(num_speakers):
            for sentence in sentences:
                path = f"{emotion}/spk{speaker:02}_{emotion}_s{sentence:02}.wav"
                clip = synthesise(speaker, emotion, sentence)
                soundfile.write(folder / path, clip, SAMPLE_RATE, subtype="PCM_16")
                rows.append((path, emotion, f"spk{speaker:02}", SENTENCES[sentence][0]))
    manifest = folder / "manifest.csv"
    with manifest.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(rows)
    return manifest


def _generator(speaker: int, what: str, sentence: int = 0) -> np.random.Generator:
    import numpy as np

    return np.random.default_rng([speaker, zlib.crc32(what.encode()), sentence])


def _score(phones: str, rate: float, rng: np.random.Generator) -> tuple[list[Segment], np.ndarray]:
    """A segment and a stress (0 of consonants) a hop: longer when stressed and at the end."""
    import numpy as np

    names = phones.split()
    last_vowel = max(i for i, name in enumerate(names) if name[-1].isdigit())
    silence = Segment(0.0, (500.0, 1500.0, 2500.0), 0.0)
    hop: Seconds = HOP_SAMPLES / SAMPLE_RATE
    score = [(silence, 0)] * round(rng.uniform(0.10, 0.20) / hop)
    for i, name in enumerate(names):
        vowel, stress = name[-1].isdigit(), int(name[-1] == "1")
        stretch = rng.uniform(0.9, 1.1) / rate * ((1.35 if stress else 0.85) if vowel else 1.0)
        stretch *= 1.5 if i >= last_vowel else 1.0
        for segment in PHONES[name.rstrip("012")]:
            score += [(segment, stress)] * max(1, round(segment.duration * stretch / hop))
    score += [(silence, 0)] * round(rng.uniform(0.15, 0.25) / hop)
    return [segment for segment, _ in score], np.array([stress for _, stress in score])


def _f0(
    stress: np.ndarray, spoken: np.ndarray, how: Prosody, who: Voice, rng: np.random.Generator
) -> np.ndarray:
    """Hz, one a hop: declination and an accent on each stressed vowel."""
    import numpy as np

    t = np.arange(len(stress)) * HOP_SAMPLES / SAMPLE_RATE
    start, end = t[spoken[0]], t[spoken[-1]]
    contour = DECLINATION_SEMITONES * (0.5 - (t - start) / (end - start))
    for first, beyond in np.flatnonzero(np.diff(stress, prepend=0, append=0)).reshape(-1, 2):
        size = ACCENT_SEMITONES * rng.uniform(0.75, 1.25)
        contour += size * np.exp(-0.5 * ((t - (t[first] + t[beyond - 1]) / 2) / ACCENT_WIDTH) ** 2)
    shift = how.semitones + rng.uniform(-0.7, 0.7)
    return who.f0 * 2 ** ((how.f0_range * who.f0_range * contour + shift) / 12)


def _smooth(track: np.ndarray) -> np.ndarray:
    """Steps between targets become glides; ``track [hops]`` or ``[hops, n]``, edges held."""
    import numpy as np

    half = round(GLIDE * SAMPLE_RATE / HOP_SAMPLES / 2)
    kernel = np.hanning(2 * half + 3)[1:-1]
    padded = np.pad(track, [(half, half)] + [(0, 0)] * (track.ndim - 1), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, len(kernel), axis=0)
    return windows @ (kernel / kernel.sum())


def _to_samples(track: np.ndarray) -> np.ndarray:
    import numpy as np

    samples = np.arange(len(track) * HOP_SAMPLES)
    return np.interp(samples, (np.arange(len(track)) + 0.5) * HOP_SAMPLES, track)


def _tract(hz: np.ndarray, formants: np.ndarray) -> np.ndarray:
    """Gain ``[hops, n]`` at ``hz [hops, n]`` of a cascade of resonances ``[hops, 8]``, which is 1 at 0 Hz."""
    import numpy as np

    gain = np.ones(hz.shape)
    for centre, bandwidth in zip(formants.T, BANDWIDTHS, strict=True):
        pole = np.hypot(centre, bandwidth / 2)[:, None]
        gain *= pole**2 / np.hypot(pole**2 - hz**2, bandwidth * hz)
    return gain


def _shaped_noise(gain: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Noise whose spectrum is ``gain [hops, bins]``: each hop's under a window of two hops, added up."""
    import numpy as np

    hops, size = len(gain), 4 * HOP_SAMPLES
    # Squares of these windows add up to one, as powers of independent noise do.
    window = np.sin(np.pi * (np.arange(2 * HOP_SAMPLES) + 0.5) / (2 * HOP_SAMPLES))
    spectra = np.fft.rfft(rng.standard_normal((hops, 2 * HOP_SAMPLES)) * window, size)
    out = np.zeros((hops + 4) * HOP_SAMPLES)
    for hop, piece in enumerate(np.fft.irfft(spectra * gain, size)):
        out[hop * HOP_SAMPLES : hop * HOP_SAMPLES + size] += piece
    return out[HOP_SAMPLES // 2 :][: hops * HOP_SAMPLES]  # a window's middle is its hop's
