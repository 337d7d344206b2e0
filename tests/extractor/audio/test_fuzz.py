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

import av
import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from extractor.audio.decode import DecodeOptions, backends, decode_batch
from extractor.audio.probe import probe
from extractor.types import Decoded, Failure, Header, Utterance

EXAMPLES = 70  # a format: about a second
SLOWEST = 10.0  # s for one input of a second: far above what a busy machine takes
TOLERANCE = 1e-6  # libvorbis in DALI and in libsndfile are built differently; WAV and FLAC are equal
GROWTH_MB = 600  # of resident memory over all inputs: an allocation by an absurd header is gigabytes
TIME_LIMIT = 150  # s for one format

FORMATS = {  # name -> format, subtype and rate for soundfile
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


def synthetic(path: Path, name: str) -> bytes:
    kind, subtype, sample_rate = FORMATS[name]
    rng = np.random.default_rng(0)
    t = np.arange(sample_rate) / sample_rate
    speechlike = 0.4 * np.sin(2 * np.pi * 180 * t) * (1 + np.sin(2 * np.pi * 3 * t)) / 2
    speechlike += 0.01 * rng.standard_normal(len(t))
    speechlike[len(t) // 3 : len(t) // 2] = 0  # digital silence, as recordings have it
    if kind in ("mp4", "webm"):
        write_with_ffmpeg(path, speechlike, kind, subtype, sample_rate)
    else:
        soundfile.write(path, speechlike, sample_rate, format=kind, subtype=subtype)
    return path.read_bytes()


def write_with_ffmpeg(path: Path, samples: np.ndarray, kind: str, codec: str, sample_rate: int) -> None:
    with av.open(str(path), "w", format=kind) as container:
        stream = container.add_stream(codec, rate=sample_rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples.astype(np.float32)[None], format="flt", layout="mono")
        frame.sample_rate = sample_rate
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)


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


def damaged(data: bytes, what: list[tuple[str, int, int]]) -> bytes:
    out = bytearray(data)
    for kind, place, value in what:
        if place >= len(out):
            continue
        if kind == "flip":
            out[place] ^= 1 << value
        elif kind == "set":
            out[place] = value
        elif kind == "set4":
            out[place : place + 4] = bytes([value] * 4)
        elif kind == "cut":
            del out[place:]
        elif kind == "drop":
            del out[place : place + value]
        else:
            out[place:place] = out[place : place + value]
    return bytes(out)


def outcome(utterance: Utterance, header: Header, backend: str) -> np.ndarray | None:
    """The waveform, or None for a Failure that is fit to be shown."""
    (result,) = decode_batch([utterance], [header], DecodeOptions(backend=backend))
    if isinstance(result, Failure):
        assert result.reason and "\n" not in result.reason and "0x" not in result.reason, result
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
    utterance = Utterance("fuzzed", str(path))
    (header,) = probe([utterance], workers=1)
    assert isinstance(header, Header)
    whole = outcome(utterance, header, "auto")
    assert whole is not None
    assert header.sample_rate == FORMATS[name][2] and abs(header.duration - 1) < 0.1
    outcome(utterance, header, "pyav")  # loads the libraries before memory is measured
    before = peak_mb()

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(damages(len(data)))
    @example([("repeat", 0, 15)])  # of flac24: libsndfile reports a sample rate of 0
    def one(what: list[tuple[str, int, int]]) -> None:
        path.write_bytes(damaged(data, what))
        began = perf_counter()
        (found,) = probe([utterance], workers=1)
        planned = found if isinstance(found, Header) else header
        auto, pyav = (outcome(utterance, planned, backend) for backend in ("auto", "pyav"))
        if isinstance(found, Failure):
            assert found.reason and "\n" not in found.reason
            # what the header's parser refuses at probing it refuses at decoding
            assert auto is None and pyav is None, found
        if planned.container in DALI and "dali" in backends():  # it must not pass over damage
            dali = outcome(utterance, planned, "dali")
            assert dali is None or same(dali, outcome(utterance, planned, "soundfile"))
        if name in INTACT_OR_REFUSED and auto is not None and len(data) == path.stat().st_size:
            assert planned != header or same(auto, whole)
        assert perf_counter() - began < SLOWEST

    one()
    assert peak_mb() - before < GROWTH_MB, f"{peak_mb() - before:.0f} MB"


if __name__ == "__main__":
    for name in sys.argv[2:]:
        fuzz(name, Path(sys.argv[1]))
