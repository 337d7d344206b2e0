"""Flipped and cut bytes never kill or hang the process, and never pass for another recording.

The inputs are decoded in a process of their own, so that a crash inside a C library is seen as a
failed test that names the input, and its memory can be measured.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path
from time import perf_counter

import numpy as np
import pytest
from audio_cases import damaged, decode_one, header_of, only, probe_one, reason_of, write
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from extractor.audio.readers import backends
from extractor.types import Decoded, Failure, Header

EXAMPLES = 70  # a format: about a second
SLOWEST = 10.0  # s for one input of a second: far above what a busy machine takes
TOLERANCE = 1e-6  # libvorbis in DALI and in libsndfile are built differently; WAV and FLAC are equal
GROWTH_MB = 600  # of resident memory over all inputs: an allocation by an absurd header is gigabytes
TIME_LIMIT = 150  # s for one format

FORMATS = {  # name -> container, coding and rate
    "wav": ("WAV", "PCM_16", 16_000),
    "wav48": ("WAVEX", "FLOAT", 48_000),
    "flac": ("FLAC", "PCM_16", 16_000),
    "flac24": ("FLAC", "PCM_24", 44_100),
    "ogg": ("OGG", "VORBIS", 16_000),
    "opus": ("OGG", "OPUS", 48_000),
    "mp3": ("MP3", "MPEG_LAYER_III", 16_000),
    "aiff": ("AIFF", "PCM_16", 22_050),
    "m4a": ("mp4", "aac", 16_000),
    "webm": ("webm", "libopus", 48_000),
}
DALI = {"wav", "flac", "ogg"}
INTACT_OR_REFUSED = {"flac", "flac24"}  # checksums inside: damage of the audio never goes unseen
NO_RATE = [("repeat", 0, 15)]  # of flac24: libsndfile reports a sample rate of 0


@pytest.mark.parametrize("names", ["wav wav48", "flac flac24", "ogg opus", "mp3 aiff", "m4a webm"])
def test_damaged_bytes_never_kill_or_hang(names: str, tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-W", "error", __file__, str(tmp_path), *names.split()],
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT,
        check=False,
    )
    killed = f"killed by signal {-run.returncode}; the input is in {tmp_path}" if run.returncode < 0 else ""
    assert run.returncode == 0, killed + run.stdout[-2000:] + run.stderr[-4000:]
    assert run.stderr == "", "the libraries print nothing"


def test_flac_for_which_libsndfile_reports_no_rate_is_an_error_row(tmp_path: Path) -> None:
    path = tmp_path / "damaged.flac"
    whole = synthetic(path, "flac24")
    header = header_of(path)
    path.write_bytes(damaged(whole, NO_RATE))
    assert FORMATS["flac24"][2] == header.sample_rate
    for backend in ("auto", "soundfile", "pyav"):
        with only(backend):
            assert isinstance(decode_one(path, header), Failure), backend


def synthetic(path: Path, name: str) -> bytes:
    container, coding, rate = FORMATS[name]
    t = np.arange(rate) / rate
    speechlike = 0.4 * np.sin(2 * np.pi * 180 * t) * (1 + np.sin(2 * np.pi * 3 * t)) / 2
    speechlike += 0.01 * np.random.default_rng(0).standard_normal(len(t))
    speechlike[len(t) // 3 : len(t) // 2] = 0  # digital silence, as recordings have it
    return write(path, container, coding, rate, speechlike[:, None]).read_bytes()


def damages(size: int) -> st.SearchStrategy[list[tuple[str, int, int]]]:
    """Flips and overwrites, half of them in the header, and cuts and repetitions."""
    place = st.one_of(st.integers(0, min(200, size - 1)), st.integers(0, size - 1))
    one = st.one_of(
        st.tuples(st.just("flip"), place, st.integers(0, 7)),
        st.tuples(st.just("set"), place, st.sampled_from([0x00, 0x01, 0x7F, 0x80, 0xFF])),
        st.tuples(st.just("set4"), place, st.sampled_from([0x00, 0x7F, 0xFF])),
        st.tuples(st.just("cut"), place, st.just(0)),
        st.tuples(st.just("drop"), place, st.integers(1, 64)),
        st.tuples(st.just("repeat"), place, st.integers(1, 64)),
    )
    return st.lists(one, min_size=1, max_size=6)


def outcome(path: Path, header: Header, backend: str) -> np.ndarray | None:
    """The waveform, or None for a Failure that is fit to be shown."""
    with only(backend):
        result = decode_one(path, header)
    if isinstance(result, Failure):
        assert reason_of(result)
        return None
    assert isinstance(result, Decoded) and result.waveform.dtype == np.float32
    assert np.isfinite(result.waveform).all() and result.waveform.ndim == 1
    return result.waveform


def same(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    if one is None or other is None or len(one) != len(other):
        return one is None and other is None
    return bool(np.abs(one - other).max() <= TOLERANCE)


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def fuzz(name: str, folder: Path) -> None:
    """Runs in the other process."""
    path = folder / f"input.{name}"
    data = synthetic(path, name)
    header = header_of(path)
    whole = outcome(path, header, "auto")
    assert whole is not None
    assert header.sample_rate == FORMATS[name][2] and abs(header.duration - 1) < 0.1
    outcome(path, header, "pyav")  # loads the libraries before memory is measured
    before = peak_mb()

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(damages(len(data)))
    @example(NO_RATE)
    def one(what: list[tuple[str, int, int]]) -> None:
        path.write_bytes(damaged(data, what))
        began = perf_counter()
        found = probe_one(path)
        planned = found if isinstance(found, Header) else header
        auto, pyav = (outcome(path, planned, backend) for backend in ("auto", "pyav"))
        if isinstance(found, Failure):
            # what the header's parser refuses at probing it refuses at decoding
            assert reason_of(found) and auto is None and pyav is None, found
        if planned.container in DALI and "dali" in backends():  # it must not pass over damage
            dali = outcome(path, planned, "dali")
            assert dali is None or same(dali, outcome(path, planned, "soundfile"))
        if name in INTACT_OR_REFUSED and auto is not None and len(data) == path.stat().st_size:
            assert planned != header or same(auto, whole)
        assert perf_counter() - began < SLOWEST

    one()
    assert peak_mb() - before < GROWTH_MB, f"{peak_mb() - before:.0f} MB"


if __name__ == "__main__":
    for name in sys.argv[2:]:
        fuzz(name, Path(sys.argv[1]))
