"""Recordings in every container, whole, damaged and lying, and what becomes of them in a run."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any
from unittest import mock

import av
import numpy as np
import soundfile

from extractor.audio import readers
from extractor.audio.decode import DecodeOptions, decode_batch
from extractor.audio.probe import probe
from extractor.types import SAMPLE_RATE, Decoded, Failure, Header, Utterance

PIECE = 4096  # frames that FFmpeg is given at once: its FLAC takes no more than a block of its own
LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1"}


def noise(num_frames: int, channels: int = 1) -> np.ndarray:
    return 0.1 * np.random.default_rng(num_frames).standard_normal((num_frames, channels))


def wav_bytes(data: bytes, declared: int | None = None, channels: int = 1, rate: int = SAMPLE_RATE) -> bytes:
    """A 16-bit WAV whose data chunk declares ``declared`` bytes."""
    declared = len(data) if declared is None else declared
    form = struct.pack(
        "<HHIIHH", 1, channels, rate, rate * 2 * channels & 0xFFFFFFFF, 2 * channels & 0xFFFF, 16
    )
    head = b"WAVEfmt " + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", declared)
    return b"RIFF" + struct.pack("<I", (len(head) + declared) & 0xFFFFFFFF) + head + data


def sparse_wav(path: Path, num_frames: int, channels: int, rate: int) -> Path:
    """Silence that takes no disk, 16-bit."""
    num_bytes = 2 * channels * num_frames
    with path.open("wb") as file:
        file.write(wav_bytes(b"", num_bytes, channels, rate))
        file.truncate(44 + num_bytes)
    return path


def write(path: Path, container: str, coding: str, rate: int, samples: np.ndarray, **options: str) -> Path:
    """``samples``: ``[num_frames, num_channels]``. By FFmpeg where the container is in small letters."""
    if container.isupper():
        soundfile.write(path, samples, rate, format=container, subtype=coding)
        return path
    layout = LAYOUTS[samples.shape[1]]
    with av.open(str(path), "w", format=container, options=options) as file:
        stream = file.add_stream(coding, rate=rate, layout=layout)
        for start in range(0, len(samples), PIECE):
            packed = samples[start : start + PIECE].astype(np.float32).reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(packed, format="flt", layout=layout)
            frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
            file.mux(stream.encode(frame))
        if len(samples):
            file.mux(stream.encode(None))
    return path


def good(folder: Path, name: str = "good.wav", num_frames: int = 3000) -> Path:
    path = folder / name
    soundfile.write(path, noise(num_frames), SAMPLE_RATE)
    return path


def damaged(data: bytes, what: Sequence[tuple[str, int, int]]) -> bytes:
    """Each of ``what``: a kind of damage, its place, and a value or a length."""
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


def probe_one(path: Path, **segment: float) -> Header | Failure:
    (found,) = probe([Utterance("u", str(path), **segment)], workers=1)
    return found


def header_of(path: Path) -> Header:
    found = probe_one(path)
    assert isinstance(found, Header), found
    return found


def decode_one(path: Path, header: Header, **options: Any) -> Decoded | Failure:
    (result,) = decode_batch([Utterance("u", str(path))], [header], DecodeOptions(**options))
    return result


def outcomes(paths: Sequence[Path], **options: Any) -> list[Decoded | Failure]:
    """Probed and decoded in one batch, as a run does it."""
    utterances = [Utterance(str(k), str(path)) for k, path in enumerate(paths)]
    found = probe(utterances, workers=2)
    readable = [(u, h) for u, h in zip(utterances, found, strict=True) if isinstance(h, Header)]
    decoded = iter(decode_batch([u for u, _ in readable], [h for _, h in readable], DecodeOptions(**options)))
    return [each if isinstance(each, Failure) else next(decoded) for each in found]


def reason_of(result: object) -> str:
    """Why it failed: one line for a person."""
    assert isinstance(result, Failure), result
    assert result.reason and "\n" not in result.reason and "0x" not in result.reason
    return result.reason


# What each library is able to take, more than a run gives it.
TAKES = {
    "dali": (*readers.BACKENDS["dali"], "opus"),
    "soundfile": (*readers.LIBSNDFILE, "opus", "mp3", "wav-mp3"),
    "pyav": readers.BACKENDS["pyav"],
}


@contextmanager
def only(backend: str) -> Iterator[None]:
    """Decoding by this library alone; "auto": as a run does it."""
    table = readers.BACKENDS if backend == "auto" else {backend: TAKES[backend]}
    with mock.patch.object(readers, "BACKENDS", table):
        yield
