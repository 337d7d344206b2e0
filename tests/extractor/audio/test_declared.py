"""What was cut short is an error row, also where a library would read what is left without a word."""

import socket
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from extractor.audio.probe import probe
from extractor.audio.readers import plain
from extractor.types import Failure, Header, Utterance

RATE = 16_000
WAVE = (0.1 * np.sin(np.arange(RATE) / 9)).astype(np.float32)


def written(folder: Path, name: str) -> Path:
    path = folder / name
    formats = {".w64": "W64", ".caf": "CAF", ".sph": "NIST"}
    if path.suffix in formats:
        soundfile.write(path, WAVE, RATE, format=formats[path.suffix], subtype="PCM_16")
        return path
    live = {"live": "1"} if path.stem == "live" else {}
    codec = {".webm": "libopus", ".mkv": "flac", ".mka": "pcm_s16le", ".avi": "pcm_s16le"}[path.suffix]
    form = "matroska" if path.suffix == ".mka" else None
    with av.open(str(path), "w", format=form, options=live) as container:
        rate = 48_000 if codec == "libopus" else RATE
        stream = container.add_stream(codec, rate=rate, layout="mono")
        resampler = av.AudioResampler(stream.format, stream.layout, rate)
        frame = av.AudioFrame.from_ndarray(WAVE[None], format="flt", layout="mono")
        frame.sample_rate = RATE
        frames = [*resampler.resample(frame), *resampler.resample(None)]
        size = stream.codec_context.frame_size or RATE
        fifo = av.AudioFifo()
        for each in frames:
            each.pts = None
            fifo.write(each)
        while (each := fifo.read(size, partial=True)) is not None:
            container.mux(stream.encode(each))
        container.mux(stream.encode(None))
    return path


def header(path: Path) -> Header | str:
    (found,) = probe([Utterance("a", str(path))])
    return found.reason if isinstance(found, Failure) else found


@pytest.mark.parametrize("name", ["x.w64", "x.caf", "x.sph", "x.webm", "x.mkv", "x.mka", "x.avi"])
def test_a_recording_that_is_cut_anywhere_is_no_row(name: str, tmp_path: Path) -> None:
    path = written(tmp_path, name)
    whole = path.read_bytes()
    assert isinstance(header(path), Header)
    for twentieth in range(1, 20):
        path.write_bytes(whole[: len(whole) * twentieth // 20])
        assert isinstance(header(path), str), twentieth
    assert "cut short" in str(header(path))
    path.write_bytes(whole + b"more")  # what lies behind it is nobody's
    assert isinstance(header(path), Header)


@pytest.mark.parametrize("name", ["live.webm", "live.mka"])
def test_what_was_streamed_has_no_size_to_be_held_to(name: str, tmp_path: Path) -> None:
    assert isinstance(header(written(tmp_path, name)), Header)


def test_audio_to_the_end_of_a_caf_is_taken(tmp_path: Path) -> None:
    path = written(tmp_path, "x.caf")
    data = bytearray(path.read_bytes())
    place = data.index(b"data") + 4
    data[place : place + 8] = b"\xff" * 8
    path.write_bytes(bytes(data))
    found = header(path)
    assert isinstance(found, str) or found.num_frames >= RATE, "never called cut short"
    assert "cut short" not in str(found)


def test_what_is_no_file_is_said_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket may not be long
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket.wav")
        Path("loop.wav").symlink_to("loop.wav")
        assert header(Path("socket.wav")) == "not a regular file"
        assert header(Path("loop.wav")) == "a link that leads back to itself"


@pytest.mark.parametrize(
    "said",
    [
        "Internal psf_fseek() failed.",
        "Error in W64 file. No 'data' chunk marker.",
        "Error in NIST file, bad header.",
        "Supported file format but unsupported encoding.",
        "Not yet implemented in FFmpeg, patches welcome",
        "Error number -541478725 occurred",
        "Channel count is zero.",
    ],
)
def test_what_a_library_says_of_itself_is_put_in_words(said: str) -> None:
    assert plain(said).startswith(("damaged", "encoded in a way", "the header declares"))
