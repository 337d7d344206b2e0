"""Whatever one file holds, and whatever a library makes of it, is that file's row or its error row."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
from audio_cases import damaged, good, header_of, noise, outcomes, reason_of, wav_bytes, write

from extractor import extract
from extractor.audio import dali, decode, headers, readers
from extractor.audio.probe import resampled
from extractor.audio.readers import PyavReader
from extractor.types import MIN_SAMPLES, SAMPLE_RATE, Decoded, Failure

LENGTHS = (0, 1, 63, 399, 400, 401, 575, 1151, 1153, 2047, 2881, 4095, 4096, 4097, 4999)
CHANNELS = (1, 2, 6)

# Container, coding and rate; how far a codec's blocks move the end, in frames; the container as sniffed.
WAVS = ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW")
CODINGS = [
    *(("WAV", subtype, 16_000, 0, "wav") for subtype in WAVS),
    *(("WAV", "PCM_16", rate, 0, "wav") for rate in (8_000, 44_100)),
    ("WAV", "IMA_ADPCM", 16_000, 1017, "wav-coded"),
    ("WAV", "MS_ADPCM", 16_000, 1012, "wav-coded"),
    *((name, "PCM_16", 16_000, 0, name.lower()) for name in ("W64", "AIFF", "AU", "CAF", "FLAC")),
    *((name, coding, 16_000, 0, "wav") for name in ("WAVEX", "RF64") for coding in ("PCM_16", "FLOAT")),
    ("NIST", "PCM_16", 16_000, 0, "sphere"),
    *(("AIFF", coding, 44_100, 0, "aiff") for coding in ("PCM_24", "FLOAT")),
    ("FLAC", "PCM_24", 44_100, 0, "flac"),
    ("FLAC", "PCM_S8", 8_000, 0, "flac"),
    ("OGG", "VORBIS", 16_000, 128, "ogg"),
    ("OGG", "OPUS", 48_000, 960, "opus"),
    ("MP3", "MPEG_LAYER_III", 16_000, 1152, "mp3"),
    ("mp4", "aac", 16_000, 2048, "mp4"),
    ("matroska", "aac", 16_000, 2048, "matroska"),
    ("matroska", "flac", 16_000, 0, "matroska"),
    ("webm", "libopus", 48_000, 960, "matroska"),
    ("mp3", "libmp3lame", 44_100, 1152, "mp3"),
    ("adts", "aac", 16_000, 3072, "aac"),
    ("avi", "pcm_s16le", 16_000, 0, "avi"),
    ("wv", "wavpack", 16_000, 0, "wavpack"),
]
EXACT = {"wav", "w64", "aiff", "au", "caf", "sphere", "flac"}  # their headers say how long they are


def written(folder: Path, *how: Any) -> list[tuple[Path, int]]:
    """A file of each length and number of channels that this container takes, with its frames."""
    made = []
    for channels in CHANNELS:
        for num_frames in LENGTHS:
            path = folder / f"{channels}-{num_frames}"
            try:
                write(path, *how, noise(num_frames, channels))
            except (soundfile.LibsndfileError, av.error.FFmpegError, ValueError):
                continue  # some codings have no six channels, some muxers no file without a packet
            made.append((path, num_frames))
    assert len(made) >= len(LENGTHS) - 1
    return made


@pytest.mark.parametrize(("container", "coding", "rate", "slack", "sniffed"), CODINGS)
def test_every_length_in_every_container_is_a_row_or_an_error_row(
    container: str, coding: str, rate: int, slack: int, sniffed: str, tmp_path: Path
) -> None:
    """And its header states what was written; the files' names tell nothing."""
    files = written(tmp_path, container, coding, rate)
    beside = [good(tmp_path, f"good{k}.wav") for k in range(2)]
    results = outcomes([*beside, *(path for path, _ in files)])
    assert [len(result.waveform) for result in results[:2] if isinstance(result, Decoded)] == [3000, 3000]
    for (path, num_frames), result in zip(files, results[2:], strict=True):
        expected, room = resampled(num_frames, rate), -(-slack * SAMPLE_RATE // rate)
        if isinstance(result, Decoded):
            assert abs(len(result.waveform) - expected) <= room, path
            header = header_of(path)
            assert (header.container, header.length == "exact") == (sniffed, sniffed in EXACT)
            assert (header.sample_rate, header.num_channels) == (rate, int(path.name[0]))
            # Codecs work in blocks: the largest are MS ADPCM's, of 4,084 frames.
            assert abs(header.num_frames - num_frames) <= (0 if sniffed in EXACT else 4_084)
            if (sniffed, coding, num_frames) == ("flac", "PCM_16", 4999):
                assert (header.block_frames, len(header.pcm_md5)) == (4096, 16)
        else:
            assert "Error" not in reason_of(result), "no library's own exception, but a reason"
            assert expected < MIN_SAMPLES + room, (path, result.reason)


def test_flac_shorter_than_its_block_is_a_row(tmp_path: Path) -> None:
    paths = [tmp_path / f"{n}.flac" for n in (400, 1600, 4095)]
    for path in paths:
        soundfile.write(path, noise(int(path.stem)), SAMPLE_RATE)
    results = outcomes([*paths, good(tmp_path)])
    assert [len(r.waveform) for r in results if isinstance(r, Decoded)] == [400, 1600, 4095, 3000]


class Unheard(Exception):
    """What no library is known to raise."""


@pytest.mark.parametrize(
    ("module", "name", "suffix"),
    [
        (headers, "sniff", "wav"),
        (decode, "open_reader", "aiff"),
        (decode, "check_format", "wav"),
        (decode, "resample", "wav"),
        (dali, "intact", "flac"),
        (readers, "open_reader", "caf"),
        (decode, "complete", "aiff"),
    ],
)
def test_what_nobody_expected_is_the_error_row_of_its_file(
    module: Any, name: str, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = tmp_path / f"odd.{suffix}"
    soundfile.write(odd, noise(3001), 8_000)
    paths = [good(tmp_path, "a.wav"), odd, good(tmp_path, "b.wav")]

    assert all(isinstance(result, Decoded) for result in outcomes(paths))
    original, contents = getattr(module, name), odd.read_bytes()

    def instead(*args: Any, **kwargs: Any) -> Any:
        its_bytes = name == "sniff" and args[0](0, args[1]) == contents
        its_rate = any(isinstance(each, int) and each == 8_000 for each in args)
        if its_bytes or its_rate or name not in ("sniff", "check_format", "resample"):
            raise Unheard("at 0x7f00beef\nof something")
        return original(*args, **kwargs)

    monkeypatch.setattr(module, name, instead)
    first, failed, last = outcomes(paths)
    assert isinstance(first, Decoded) and isinstance(last, Decoded)
    assert isinstance(failed, Failure)
    assert failed.reason == "cannot be decoded: Unheard: at ? of something"
    assert failed.stage == ("probe" if module in (headers, readers) else "decode")


@pytest.mark.parametrize("error", [MemoryError("ours"), KeyboardInterrupt()])
def test_the_pipeline_s_own_faults_end_the_run(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def instead(*args: Any, **kwargs: Any) -> Any:
        raise error

    path = tmp_path / "a.aiff"
    soundfile.write(path, noise(3000), 16_000)
    monkeypatch.setattr(decode, "open_reader", instead)
    with pytest.raises(type(error)):
        outcomes([path])


def test_two_bad_files_of_a_batch_are_two_error_rows(tmp_path: Path) -> None:
    """Their headers are whole, so that decoding is where they are found out."""
    folder = tmp_path / "in"
    folder.mkdir()
    for k in range(6):
        soundfile.write(folder / f"{k}.flac", noise(20_000), SAMPLE_RATE)
    for k in (1, 3, 4):
        path = folder / f"{k}.flac"
        path.write_bytes(damaged(path.read_bytes(), [("flip", path.stat().st_size // 2, 4)]))
    results = outcomes(sorted(folder.iterdir()))
    assert [isinstance(result, Decoded) for result in results] == [True, False, True, False, False, True]
    with extract(folder, model="mfcc", out=tmp_path / "run") as store:
        assert store.ids == ["0", "2", "5"]
        assert [(failure.id, failure.stage) for failure in store.errors] == [(k, "decode") for k in "134"]


@pytest.mark.skipif("dali" not in readers.backends(), reason="DALI is not installed")
def test_members_of_a_batch_that_dali_fails_are_tried_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [np.fromfile(good(tmp_path, f"{k}.wav", 2000 + k), np.uint8) for k in range(4)]
    tried: list[int] = []
    original = dali._decode_at_once

    def instead(some: list[np.ndarray]) -> Any:
        tried.append(len(some))
        if any(file is files[1] or file is files[3] for file in some):
            raise Unheard
        return original(some)

    monkeypatch.setattr(dali, "_decode_at_once", instead)
    assert [result and len(result[0]) for result in dali.decode(files)] == [2000, None, 2002, None]
    assert tried == [4, 1, 1, 1, 1]


def test_ffmpeg_prints_no_tracebacks(tmp_path: Path) -> None:
    """Sizes in a header that lead before the file or beyond what any file could hold."""
    path = tmp_path / "odd.caf"
    write(path, "caf", "pcm_s16le", 48_000, noise(20_000))
    whole = path.read_bytes()
    first = whole.index(b"chan") if b"chan" in whole else whole.index(b"data")
    code = f"""
import sys
from pathlib import Path
from extractor.audio.readers import PyavReader, Unreadable
from extractor.errors import DecodeError
path, whole = Path({str(path)!r}), Path({str(path)!r}).read_bytes()
for at in range({first}, {first} + 16):
    for value in (0x7F, 0x80, 0xFF, 0x40):
        path.write_bytes(whole[:at] + bytes([value] * 8) + whole[at + 8 :])
        with path.open("rb", buffering=0) as file:
            try:
                reader = PyavReader(file, "caf")
                list(reader.blocks(0))
                reader.close()
            except (DecodeError, Unreadable) as error:
                pass
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")


def test_a_disk_that_fails_midway_is_an_error_not_the_end_of_the_recording(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(wav_bytes(noise(200_000).astype("<i2").tobytes()))

    class Failing(io.FileIO):
        def read(self, count: int = -1) -> bytes:
            if self.tell() > 100_000:
                raise OSError(5, "Input/output error")
            return super().read(count) or b""

    with Failing(path) as file:
        reader = PyavReader(file, "wav")
        with pytest.raises(OSError, match="Input/output"):
            list(reader.blocks(0))
        reader.close()
