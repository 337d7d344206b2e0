"""How long recordings are: fixed lengths, and those of real corpora; and recordings of such lengths.

Speed depends on lengths and not on what is said, so where a corpus is not at hand, noise of its lengths
stands in; the result says which it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from benchmarks.common import SHARED_DATA
from benchmarks.stand_ins import write_clips
from extractor.errors import SettingsError, unknown
from extractor.types import SAMPLE_RATE, Seconds


@dataclass(frozen=True, slots=True)
class Lengths:
    """One row of the table."""

    what: str
    quantiles: tuple[Seconds, ...]  # evenly spaced ones, from the shortest to the longest
    files: str | None = None  # where the recordings lie in the data folder, a glob


# Every twentieth quantile of the lengths that the files' headers state.
_EMODB: tuple[Seconds, ...] = (1.431, 1.619, 1.730, 1.811, 1.929, 2.044, 2.135, 2.222, 2.362, 2.450, 2.589)
_EMODB += (2.683, 2.833, 2.976, 3.167, 3.317, 3.554, 3.753, 3.932, 5.039, 8.978)
_RAVDESS: tuple[Seconds, ...] = (2.936, 3.203, 3.303, 3.403, 3.437, 3.470, 3.503, 3.537, 3.570, 3.637, 3.670)
_RAVDESS += (3.704, 3.737, 3.770, 3.837, 3.871, 3.971, 4.037, 4.138, 4.306, 5.272)

CORPORA: dict[str, Lengths] = {
    "emodb": Lengths("EmoDB: 339 of anger, happiness, neutral, sadness", _EMODB, "emodb/wav/*.wav"),
    "ravdess": Lengths("RAVDESS: all 1,440 speech recordings", _RAVDESS, "ravdess/*/*.flac"),
}


def lengths_of(name: str) -> Lengths:
    """A corpus of the table, or a number of seconds. Raises SettingsError for anything else."""
    if name in CORPORA:
        return CORPORA[name]
    try:
        seconds = float(name)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 60.0:  # longer ones are encoded in windows
        raise SettingsError(unknown("length", name, [*CORPORA, "1", "4", "10", "30"]) + ", 0.1 to 60 s")
    return Lengths(f"{seconds:g} s", (seconds, seconds))


def label(name: str) -> str:
    """As tables show it: ``4 s``, ``emodb``."""
    return name if name in CORPORA else lengths_of(name).what


@dataclass(frozen=True, slots=True)
class Recordings:
    """What is encoded."""

    files: list[str]
    content: str  # what it is, for the result file

    def few(self, seconds: Seconds) -> list[str]:
        """Evenly spaced ones, of about that much audio in all; at least one."""
        return thinned(self.files, seconds)


def find(name: str, seconds: Seconds, scratch: Path, data: Path = SHARED_DATA) -> Recordings:
    """About so many seconds of audio: the corpus's own files where they suffice, else noise.

    A corpus that holds less than ``seconds`` is not repeated: noise of its lengths is taken instead.
    """
    lengths = lengths_of(name)
    files = sorted(map(str, data.glob(lengths.files))) if lengths.files else []
    if files and sum(soundfile.info(file).duration for file in files) >= 0.9 * seconds:
        return Recordings(thinned(files, seconds), f"recordings of {lengths.what}")
    durations = draw(lengths, seconds)
    return Recordings(write_clips(scratch / f"noise-{name}", durations), f"noise, lengths of {lengths.what}")


def draw(lengths: Lengths, seconds: Seconds) -> list[Seconds]:
    """Durations whose distribution is ``lengths``, of about ``seconds`` in all, in a mixed order.

    They are the distribution's quantiles, so that nothing is left to chance but the order.
    """
    at = np.linspace(0, 1, len(lengths.quantiles))
    mean = np.trapezoid(lengths.quantiles, at)
    count = max(1, round(seconds / mean))
    durations = np.interp((np.arange(count) + 0.5) / count, at, lengths.quantiles)
    return np.random.default_rng(0).permutation(durations).tolist()


def thinned(files: Sequence[str], seconds: Seconds) -> list[str]:
    """Every so-many-th file, so that about ``seconds`` of audio remain; at least one file."""
    total = sum(soundfile.info(file).duration for file in files)
    return list(files[:: max(1, round(total / seconds))])


def read(files: Sequence[str]) -> list[np.ndarray]:
    """float32 ``[num_samples]`` each; all are at 16 kHz."""
    return [soundfile.read(f, dtype="float32")[0] for f in files]


def audio_seconds(waveforms: Sequence[np.ndarray]) -> Seconds:
    return sum(len(w) for w in waveforms) / SAMPLE_RATE
