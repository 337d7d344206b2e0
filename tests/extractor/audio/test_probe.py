"""Headers: what is stated is what decoding gives; what cannot be a recording is refused with a reason."""

from __future__ import annotations

import io
import os
import socket
from pathlib import Path

import numpy as np
import pytest
import soundfile
from audio_cases import decode_one, header_of, noise, probe_one, reason_of, wav_bytes, write
from conftest import shared

from extractor.audio.headers import sniff
from extractor.audio.probe import HEAD_BYTES, bytes_of, num_samples_16k, open_recording, probe
from extractor.audio.readers import plain
from extractor.types import Decoded, Failure, Header, Utterance

RATE = 16_000


ZEROS = b"\0\0" * 800


@pytest.mark.parametrize(
    ("contents", "expected"),
    [
        (b"", "empty file"),
        (b"not a recording, but a text of some length", "not audio"),
        (b"\xff\xfb\xf0 I only look like MP3", "no MPEG audio frames"),
        (b"ID3\x04\x00\x00\x00\x00\x7f\x7f", "tags and no audio"),
        (wav_bytes(ZEROS, declared=1602), "cut short"),
        (wav_bytes(ZEROS, declared=1602)[:44], "cut short"),
        (wav_bytes(ZEROS)[:30], "cut short"),
        (wav_bytes(b""), "declares no samples"),
        (wav_bytes(ZEROS, channels=0), "declares 0 channels"),
        (wav_bytes(ZEROS * 100, channels=10_000), "declares 10,000 channels"),
        (wav_bytes(ZEROS, rate=0), "sample rate of 0 Hz"),
        (wav_bytes(ZEROS, rate=10**9), "sample rate of 1,000,000,000 Hz"),
        (wav_bytes(b"\0\0" * 399), "too short: 399 samples"),
        (b"fLaC\0\0\0\x10" + bytes(40), "damaged: the FLAC header"),
        (
            b"fLaC\0\0\0\x22" + b"\x10\0\x10\0" + bytes(6) + b"\x03\xe8\x00\xff\xff\xff\xff\xff" + bytes(16),
            "declares",
        ),
        (b"OggS\0\x02" + bytes(20) + b"\x01\x1e", "cut short"),
        (b"OggS", "cut short"),
        (b"fLaC", "cut short"),
        (b"RIFF\0\0\0\0WAVE", "cut short"),
        (b"FORM\0\0\0\0AIFF", "cut short"),
        (b"\x00\x00\x00\x18ftypmp42" + bytes(64), "damaged"),
    ],
)
def test_what_is_no_recording_is_refused_with_a_reason(
    contents: bytes, expected: str, tmp_path: Path
) -> None:
    path = tmp_path / "recording.wav"
    path.write_bytes(contents)
    found = probe_one(path)
    assert expected in reason_of(found)
    assert isinstance(found, Failure) and (found.id, found.path, found.stage) == ("u", str(path), "probe")


WHOLE = wav_bytes(b"\1\0" * 1000)


@pytest.mark.parametrize(
    "contents",
    [
        wav_bytes(b"\1\0" * 1000, 0xFFFFFFFF),  # FFmpeg into a pipe
        wav_bytes(b"\1\0" * 1000, 0x7FFFF000),  # SoX into a pipe
        wav_bytes(b"\1\0" * 1000, 0),  # a recorder that died before it wrote the length
        WHOLE + b"LIST\x04\0\0\0INFO",  # tags behind the audio
        WHOLE + b"\0\0garbage",
        WHOLE + b"LIST\xff\0\0\0INFO",  # tags that are cut short: the audio is whole
        WHOLE[:12] + b"LIST\x05\0\0\0INFOx\0" + WHOLE[12:],  # a chunk of odd size is padded
    ],
)
def test_whole_wavs_with_odd_lengths_are_taken(contents: bytes, tmp_path: Path) -> None:
    path = tmp_path / "odd.wav"
    path.write_bytes(contents)
    header = header_of(path)
    assert (header.num_frames, header.length) == (1000, "exact")
    result = decode_one(path, header)
    assert isinstance(result, Decoded) and np.array_equal(
        result.waveform, np.full(1000, 1 / 32768, np.float32)
    )


BY_ENDING = {
    ".w64": ("W64", "PCM_16", RATE),
    ".caf": ("CAF", "PCM_16", RATE),
    ".sph": ("NIST", "PCM_16", RATE),
    ".webm": ("webm", "libopus", 48_000),
    ".mkv": ("matroska", "flac", RATE),
    ".mka": ("matroska", "pcm_s16le", RATE),
    ".avi": ("avi", "pcm_s16le", RATE),
}


def written(folder: Path, name: str, **options: str) -> Path:
    container, coding, rate = BY_ENDING[Path(name).suffix]
    return write(folder / name, container, coding, rate, noise(rate), **options)


@pytest.mark.parametrize("suffix", BY_ENDING)
def test_a_recording_that_is_cut_anywhere_is_no_row(suffix: str, tmp_path: Path) -> None:
    path = written(tmp_path, f"x{suffix}")
    whole = path.read_bytes()
    header_of(path)
    for twentieth in range(1, 20):
        path.write_bytes(whole[: len(whole) * twentieth // 20])
        reason = reason_of(probe_one(path))
    assert "cut short" in reason
    path.write_bytes(whole + b"more")  # what lies behind it is nobody's
    header_of(path)


@pytest.mark.parametrize("name", ["live.webm", "live.mka"])
def test_what_was_streamed_has_no_size_to_be_held_to(name: str, tmp_path: Path) -> None:
    header_of(written(tmp_path, name, live="1"))


def test_audio_to_the_end_of_a_caf_is_taken(tmp_path: Path) -> None:
    path = written(tmp_path, "x.caf")
    data = bytearray(path.read_bytes())
    place = data.index(b"data") + 4
    data[place : place + 8] = b"\xff" * 8
    path.write_bytes(bytes(data))
    found = probe_one(path)
    assert isinstance(found, Failure) or found.num_frames >= RATE, "never called cut short"
    assert "cut short" not in str(found)


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


def test_unreadable_paths_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket may not be long
    os.mkfifo("pipe.wav")  # opening it would wait for ever
    Path("loop.wav").symlink_to("loop.wav")
    said = {
        "missing.wav": "no such file",
        ".": "a folder, not a file",
        "pipe.wav": "not a regular file",
        "socket.wav": "not a regular file",
        "loop.wav": "a link that leads back to itself",
        "a\0b.wav": "not a path that a file can have",
    }
    locked = Path("locked.wav")
    locked.write_bytes(wav_bytes(ZEROS))
    locked.chmod(0)
    if not os.access(locked, os.R_OK):  # root may read everything
        said["locked.wav"] = "no permission to read the file"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket.wav")
        assert {name: reason_of(probe_one(Path(name))) for name in said} == said


def test_segments_beyond_the_end_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "two_seconds.wav"
    path.write_bytes(wav_bytes(b"\0\0" * 2 * RATE))
    for says, segment in [
        ("starts at 2.0 s", {"start": 2.0}),
        ("ends at 2.5 s", {"start": 1.0, "end": 2.5}),
        ("empty or runs backwards", {"start": 1.5, "end": 1.5}),
        ("empty or runs backwards", {"start": -1.0}),
        ("too short", {"start": 1.99}),
    ]:
        assert says in reason_of(probe_one(path, **segment))
    assert isinstance(probe_one(path, start=1.0, end=2.05), Header), "time stamps are rounded"


def test_results_are_aligned_and_each_file_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = tmp_path / "good.wav", tmp_path / "bad.wav"
    good.write_bytes(wav_bytes(b"\0\0" * RATE))
    bad.write_bytes(b"")
    utterances = [Utterance(f"{k}", str(good if k % 3 else bad), start=k / 1000, end=0.9) for k in range(300)]
    opened: list[str] = []

    def counted(path: str) -> object:
        opened.append(path)
        return open_recording(path)

    monkeypatch.setattr("extractor.audio.probe.open_recording", counted)
    found = probe(utterances, workers=3)
    assert sorted(opened) == [str(bad), str(good)]
    for k, header in enumerate(found):
        assert isinstance(header, Header if k % 3 else Failure)
        assert k % 3 or header.id == f"{k}"
    assert probe([]) == []


def test_planned_length_counts_the_segment() -> None:
    header = Header("wav", 44_100, 2, 441_000)
    assert num_samples_16k(header, Utterance("u", "p")) == 160_000
    assert num_samples_16k(header, Utterance("u", "p", start=2.0)) == 128_000
    assert num_samples_16k(header, Utterance("u", "p", start=2.0, end=2.5)) == 8_000
    assert num_samples_16k(header, Utterance("u", "p", start=9.5, end=10.05)) == 8_000


def test_odd_files_have_a_header_or_a_reason() -> None:
    paths = [path for path in sorted(shared("odd").rglob("*")) if path.is_file()]
    found = probe([Utterance(path.name, str(path)) for path in paths])
    headers = [each for each in found if isinstance(each, Header) or not reason_of(each)]
    assert len(headers) >= 85
    assert {header.container for header in headers} >= {
        *("wav", "flac", "ogg", "opus", "mp3", "mp4", "matroska", "aiff", "sphere")
    }


def test_containers_are_told_from_bytes_not_suffixes() -> None:
    for name, container in (
        ("pydub/wrong_extension.aac", "mp4"),
        ("tinytag/with_padded_id3_header2.flac", "flac"),
    ):
        with (shared("odd") / name).open("rb") as file:
            assert sniff(*bytes_of(file)) == container


def test_a_corpus_is_probed_by_one_read_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    utterances = [Utterance(p.name, str(p)) for p in sorted(shared("ravdess").rglob("*.flac"))][::20]
    counts = []

    class Counted(io.FileIO):
        def read(self, count: int = -1) -> bytes:
            counts.append(count)
            return super().read(count) or b""

    monkeypatch.setattr("extractor.audio.probe.open_recording", Counted)
    headers = probe(utterances)
    assert counts == [HEAD_BYTES] * len(utterances)
    for utterance, header in zip(utterances, headers, strict=True):
        assert isinstance(header, Header)
        info = soundfile.info(utterance.path)
        assert (header.num_frames, header.sample_rate) == (info.frames, info.samplerate)
