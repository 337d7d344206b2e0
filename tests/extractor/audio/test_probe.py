"""Headers: what is stated is what decoding gives; what cannot be a recording is refused with a reason."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import shared

from extractor.audio.headers import HEAD_BYTES, bytes_of, open_recording, sniff
from extractor.audio.probe import num_samples_16k, probe
from extractor.types import Failure, Header, Utterance

RATE = 16_000


def noise(num_frames: int, channels: int = 1) -> np.ndarray:
    return 0.1 * np.random.default_rng(0).standard_normal((num_frames, channels))


def wav_bytes(data: bytes, declared: int | None = None, channels: int = 1, rate: int = RATE) -> bytes:
    """A 16-bit WAV whose data chunk declares ``declared`` bytes."""
    declared = len(data) if declared is None else declared
    form = struct.pack(
        "<HHIIHH", 1, channels, rate, rate * 2 * channels & 0xFFFFFFFF, 2 * channels & 0xFFFF, 16
    )
    head = b"WAVEfmt " + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", declared)
    return b"RIFF" + struct.pack("<I", (len(head) + declared) & 0xFFFFFFFF) + head + data


def probe_one(path: Path, **segment: float) -> Header | Failure:
    (found,) = probe([Utterance("u", str(path), **segment)])
    return found


def reason(path: Path, **segment: float) -> str:
    found = probe_one(path, **segment)
    assert isinstance(found, Failure), found
    assert (found.id, found.path, found.stage) == ("u", str(path), "probe")
    assert found.reason and "\n" not in found.reason
    return found.reason


CONTAINERS = [
    # file format, subtype, container as sniffed, exact
    ("WAV", "PCM_16", "wav", True),
    ("WAV", "PCM_U8", "wav", True),
    ("WAV", "PCM_24", "wav", True),
    ("WAV", "PCM_32", "wav", True),
    ("WAV", "DOUBLE", "wav", True),
    ("WAV", "ULAW", "wav", True),
    ("WAVEX", "FLOAT", "wav", True),
    ("RF64", "PCM_16", "wav", True),
    ("WAV", "MS_ADPCM", "wav-coded", False),
    ("W64", "PCM_16", "w64", True),
    ("AIFF", "PCM_24", "aiff", True),
    ("AIFF", "FLOAT", "aiff", True),
    ("AU", "PCM_16", "au", True),
    ("CAF", "PCM_16", "caf", True),
    ("NIST", "PCM_16", "sphere", True),
    ("FLAC", "PCM_16", "flac", True),
    ("FLAC", "PCM_24", "flac", True),
    ("OGG", "VORBIS", "ogg", False),
    ("OGG", "OPUS", "opus", False),
    ("MP3", "MPEG_LAYER_III", "mp3", False),
]


@pytest.mark.parametrize(("kind", "subtype", "container", "exact"), CONTAINERS)
@pytest.mark.parametrize("channels", [1, 2])
def test_header_states_what_was_written(
    kind: str, subtype: str, container: str, exact: bool, channels: int, tmp_path: Path
) -> None:
    path = tmp_path / "misnamed.dat"
    rate = 48_000 if subtype == "OPUS" else 44_100
    soundfile.write(path, noise(50_001, channels), rate, format=kind, subtype=subtype)
    header = probe_one(path)
    assert isinstance(header, Header), header
    assert (header.container, header.exact) == (container, exact)
    assert (header.sample_rate, header.num_channels) == (rate, channels)
    # codecs work in blocks: MP3's are 1,152 samples, MS ADPCM's 4,084
    assert header.num_frames == 50_001 if exact else abs(header.num_frames - 50_001) < 4_084


@pytest.mark.parametrize(
    ("contents", "expected"),
    [
        (b"", "empty file"),
        (b"not a recording, but a text of some length", "not audio"),
        (b"\xff\xfb\xf0 I only look like MP3", "no MPEG audio frames"),
        (b"ID3\x04\x00\x00\x00\x00\x7f\x7f", "tags and no audio"),
        (wav_bytes(b"\0\0" * 800, declared=1602), "cut short"),
        (wav_bytes(b"\0\0" * 800, declared=1602)[:44], "cut short"),
        (wav_bytes(b"\0\0" * 800)[:30], "cut short"),
        (wav_bytes(b""), "declares no samples"),
        (wav_bytes(b"\0\0" * 800, channels=0), "declares 0 channels"),
        (wav_bytes(b"\0\0" * 80_000, channels=10_000), "declares 10,000 channels"),
        (wav_bytes(b"\0\0" * 800, rate=0), "sample rate of 0 Hz"),
        (wav_bytes(b"\0\0" * 800, rate=10**9), "sample rate of 1,000,000,000 Hz"),
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
    assert expected in reason(path)


def test_wav_of_399_samples_is_too_short_and_400_is_not(tmp_path: Path) -> None:
    path = tmp_path / "short.wav"
    path.write_bytes(wav_bytes(b"\0\0" * 400))
    assert isinstance(probe_one(path), Header)


@pytest.mark.parametrize(
    ("declared", "trailing"),
    [
        (0xFFFFFFFF, b""),  # FFmpeg into a pipe
        (0x7FFFF000, b""),  # SoX into a pipe
        (0, b""),  # a recorder that died before it wrote the length
        (2000, b"LIST\x04\0\0\0INFO"),  # tags behind the audio
        (2000, b"\0\0garbage"),
        (2000, b"LIST\xff\0\0\0INFO"),  # tags that are cut short: the audio is whole
    ],
)
def test_whole_wavs_with_odd_lengths_are_taken(declared: int, trailing: bytes, tmp_path: Path) -> None:
    path = tmp_path / "odd.wav"
    path.write_bytes(wav_bytes(b"\1\0" * 1000, declared) + trailing)
    header = probe_one(path)
    assert isinstance(header, Header) and header.num_frames == 1000 and header.exact


def test_odd_sized_chunks_are_padded(tmp_path: Path) -> None:
    whole = wav_bytes(b"\1\0" * 1000)
    path = tmp_path / "padded.wav"
    path.write_bytes(whole[:12] + b"LIST\x05\0\0\0INFOx\0" + whole[12:])
    header = probe_one(path)
    assert isinstance(header, Header) and header.num_frames == 1000


def test_unreadable_paths_are_named(tmp_path: Path) -> None:
    assert reason(tmp_path / "missing.wav") == "no such file"
    assert reason(tmp_path) == "a folder, not a file"
    os.mkfifo(tmp_path / "pipe.wav")  # opening it would wait for ever
    assert reason(tmp_path / "pipe.wav") == "not a regular file"
    assert "path" in reason(Path("a\0b.wav"))
    locked = tmp_path / "locked.wav"
    locked.write_bytes(wav_bytes(b"\0\0" * 800))
    locked.chmod(0)
    if not os.access(locked, os.R_OK):  # root may read everything
        assert "permission" in reason(locked)


def test_segments_beyond_the_end_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "two_seconds.wav"
    path.write_bytes(wav_bytes(b"\0\0" * 2 * RATE))
    assert "starts at 2.0 s" in reason(path, start=2.0)
    assert "ends at 2.5 s" in reason(path, start=1.0, end=2.5)
    assert "empty or runs backwards" in reason(path, start=1.5, end=1.5)
    assert "empty or runs backwards" in reason(path, start=-1.0)
    assert "too short" in reason(path, start=1.99)
    assert isinstance(probe_one(path, start=1.0, end=2.05), Header), "time stamps are rounded"


def test_results_are_aligned_and_each_file_is_read_once(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.wav", tmp_path / "bad.wav"
    good.write_bytes(wav_bytes(b"\0\0" * RATE))
    bad.write_bytes(b"")
    utterances = [Utterance(f"{k}", str(good if k % 3 else bad), start=k / 1000, end=0.9) for k in range(300)]
    progress: list[int] = []
    found = probe(utterances, workers=3, on_progress=progress.append)
    assert sum(progress) == 2
    for k, header in enumerate(found):
        assert isinstance(header, Header if k % 3 else Failure)
        assert k % 3 or header.id == f"{k}"
    assert probe([]) == []


def test_planned_length_counts_the_segment(tmp_path: Path) -> None:
    header = Header("wav", 44_100, 2, 441_000)
    assert num_samples_16k(header, Utterance("u", "p")) == 160_000
    assert num_samples_16k(header, Utterance("u", "p", start=2.0)) == 128_000
    assert num_samples_16k(header, Utterance("u", "p", start=2.0, end=2.5)) == 8_000
    assert num_samples_16k(header, Utterance("u", "p", start=9.5, end=10.05)) == 8_000


def test_import_is_cheap() -> None:
    heavy = "('numpy', 'torch', 'soundfile', 'av')"
    code = f"import sys, extractor.audio.probe; print([m for m in {heavy} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_odd_files_have_a_header_or_a_reason() -> None:
    paths = [path for path in sorted(shared("odd").rglob("*")) if path.is_file()]
    found = probe([Utterance(path.name, str(path)) for path in paths])
    assert all(isinstance(f, Header) or (f.reason and "\n" not in f.reason) for f in found)
    headers = [f for f in found if isinstance(f, Header)]
    assert len(headers) >= 85
    assert {h.container for h in headers} >= {
        "wav",
        "flac",
        "ogg",
        "opus",
        "mp3",
        "mp4",
        "matroska",
        "aiff",
        "sphere",
    }


def test_containers_are_told_from_bytes_not_suffixes() -> None:
    with (shared("odd") / "pydub/wrong_extension.aac").open("rb") as file:
        assert sniff(*bytes_of(file)) == "mp4"
    with (shared("odd") / "tinytag/with_padded_id3_header2.flac").open("rb") as file:
        assert sniff(*bytes_of(file)) == "flac"


def test_a_corpus_is_probed_by_one_read_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    utterances = [Utterance(p.name, str(p)) for p in sorted(shared("ravdess").rglob("*.flac"))][::20]
    opened = []

    class Counted:
        """A file that counts what is read of it."""

        def __init__(self, path: str) -> None:
            self.file, self.read_bytes = open_recording(path), 0
            self.seek = self.file.seek
            opened.append(self)

        def __enter__(self) -> Counted:
            return self

        def __exit__(self, *_exc: object) -> None:
            self.file.close()

        def read(self, count: int) -> bytes:
            self.read_bytes += count
            return self.file.read(count)

    monkeypatch.setattr("extractor.audio.probe.open_recording", Counted)
    headers = probe(utterances)
    assert [file.read_bytes for file in opened] == [HEAD_BYTES] * len(utterances)
    for utterance, header in zip(utterances, headers, strict=True):
        assert isinstance(header, Header)
        info = soundfile.info(utterance.path)
        assert (header.num_frames, header.sample_rate) == (info.frames, info.samplerate)
