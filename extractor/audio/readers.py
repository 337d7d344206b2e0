"""The libraries that decode, and which takes what. Used by `probe` (headers) and `decode` (audio).

Every reader gives float32 ``[num_frames, num_channels]`` at the source rate and nothing else: mixing,
resampling and checking are the same for all, in `cut`. 16-bit audio comes out as ``int16 / 32768``
from each of them, bit for bit.

Conventions that differ between the libraries, and what is chosen here:

- MP3: libsndfile (mpg123) and FFmpeg agree to 3e-6 where the file has LAME's delay and padding. Where
  it has none, mpg123 drops 529 samples at the start and stops at the first damaged frame, and it prints
  warnings to stderr. FFmpeg is taken, for MP3 inside WAV too.
- Opus: libsndfile, and DALI with it, decodes at the rate that the encoder's input had, FFmpeg at 48 kHz
  as RFC 7845 says. They are up to 17 % apart (24 kHz input). FFmpeg is taken, and is faster.
- Vorbis: FFmpeg drops the last 128 samples of some files; libsndfile keeps to the granule position.
"""

from __future__ import annotations

import errno
import os
import warnings
from collections.abc import Iterator
from functools import cache
from types import ModuleType
from typing import Any, BinaryIO, Protocol

import numpy as np

from extractor.errors import DecodeError
from extractor.types import Header

BLOCK_FRAMES = 1 << 16  # samples per channel in one block of a long file: 1.4 s at 48 kHz
PYAV_BITS_PER_SECOND = 64_000  # for planning, where a stream states neither its length nor its rate

LIBSNDFILE = ("wav", "flac", "ogg", "aiff", "au", "caf", "w64", "sphere", "wav-coded", "ogg-other", "unknown")
FFMPEG = (
    *("opus", "mp3", "wav-mp3", "wav-unfinished", "flac-unfinished"),
    *("aac", "mp4", "matroska", "avi", "asf", "flv", "amr", "wavpack"),
)
# The containers that each is chosen for; in order of preference.
BACKENDS = {"dali": ("wav", "flac", "ogg"), "soundfile": LIBSNDFILE, "pyav": (*LIBSNDFILE, *FFMPEG)}


@cache
def dali_library() -> ModuleType | None:
    """DALI; None where it is not installed, or its shared libraries do not load here."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the import itself warns, of nothing that concerns us
            import nvidia.dali.experimental.dynamic as ndd
    except (ImportError, OSError):
        return None
    return ndd


def backends() -> list[str]:
    """The backends in use, in order of preference. DALI is missing where it cannot be imported."""
    return [name for name in BACKENDS if name != "dali" or dali_library() is not None]


def able(container: str) -> list[str]:
    """Those to try on a container, in order."""
    return [name for name in backends() if container in BACKENDS[name]]


class Unreadable(Exception):
    """This library cannot open the recording; another one may."""


class Reader(Protocol):
    """An open recording."""

    sample_rate: int
    num_channels: int
    position: int  # samples per channel: where the next block starts

    def header(self, container: str, size: int) -> Header:
        """What the library says of a container that has no parser in `headers`."""
        ...

    def blocks(self, start: int) -> Iterator[np.ndarray]:
        """float32 ``[num_frames, num_channels]`` from sample ``start`` on, to the end."""
        ...

    def close(self) -> None: ...


# --- soundfile (libsndfile) ---------------------------------------------------------------------

PCM_LIKE = ("PCM", "FLOAT", "DOUBLE", "ULAW", "ALAW")  # subtypes whose length follows from the bytes


class SoundfileReader:
    def __init__(self, file: BinaryIO) -> None:
        import soundfile

        # By descriptor: libsndfile would judge a path by its suffix (".raw").
        os.lseek(file.fileno(), 0, os.SEEK_SET)
        try:
            self._sound = soundfile.SoundFile(file.fileno(), closefd=False)
        except soundfile.LibsndfileError as error:
            raise Unreadable(plain(error.error_string)) from None
        self._damaged = soundfile.LibsndfileError
        self.sample_rate: int = self._sound.samplerate
        self.num_channels: int = self._sound.channels
        self.position = 0

    def header(self, container: str, size: int) -> Header:
        length = "exact" if self._sound.subtype.startswith(PCM_LIKE) else "stated"
        return Header(container, self.sample_rate, self.num_channels, self._sound.frames, length)

    def blocks(self, start: int) -> Iterator[np.ndarray]:
        try:
            start = min(start, self._sound.frames)  # libsndfile refuses to seek further
            if start != self.position:
                self._sound.seek(start)
                self.position = start
            # soundfile seeks after each block, which loses what MP3 carries over from frame to frame.
            num_frames = -1 if self._sound.format == "MP3" else BLOCK_FRAMES
            while len(block := self._sound.read(num_frames, dtype="float32", always_2d=True)):
                self.position += len(block)
                yield block
        except self._damaged as error:
            raise DecodeError(plain(error.error_string)) from None

    def close(self) -> None:
        self._sound.close()


# --- PyAV (FFmpeg) ------------------------------------------------------------------------------

# Offset and scale that take FFmpeg's sample formats to [-1, 1], as libsndfile does.
PYAV_SCALE = {"u8": (128, 2.0**7), "s16": (0, 2.0**15), "s32": (0, 2.0**31)}
PYAV_FLOAT = {"flt", "dbl"}
# FFmpeg guesses plain text and pictures to be these; they hold no recording.
PYAV_NOT_AUDIO = {"tty", "hls", "concat", "ffmetadata", "srt", "webvtt", "ass", "subviewer"}


class _Bytes:
    """A file as FFmpeg reads it. It never raises: PyAV keeps what a file object raises inside FFmpeg for
    its next call in this thread, for whatever recording that is, and prints it when it raises again."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.tell = file.tell
        self.unreadable: OSError | None = None
        file.seek(0)

    def read(self, count: int) -> bytes:
        try:
            return self._file.read(count)
        except OSError as error:
            self.unreadable = error
            return b""

    def check(self) -> None:
        """Raises what reading has met: FFmpeg was told that the file ends there."""
        if self.unreadable is not None:
            raise self.unreadable

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        try:
            return self._file.seek(offset, whence)
        except (OSError, ValueError, OverflowError):  # a place before the file, or beyond what it could hold
            return -errno.EINVAL


class PyavReader:
    def __init__(self, file: BinaryIO, container: str) -> None:
        import av

        self._damaged = av.error.FFmpegError
        self._bytes = _Bytes(file)
        try:
            # A file object and no protocols: a playlist must not make FFmpeg open other addresses.
            self._container = av.open(
                self._bytes, metadata_errors="replace", container_options={"protocol_whitelist": "none"}
            )
        except self._damaged as error:
            self._bytes.check()
            raise Unreadable(plain(str(error.strerror))) from None
        kind = self._container.format.name.split(",")[0]
        audio = self._container.streams.audio
        if not audio:
            self._container.close()
            # FFmpeg takes many a text or picture for a video.
            known = container != "unknown" and kind not in PYAV_NOT_AUDIO
            raise DecodeError("has no audio stream") if known else Unreadable(NOT_AUDIO)
        self._stream = self._container.streams.best("audio") or audio[0]
        codec = self._stream.codec_context
        if codec is None:
            self._container.close()
            raise Unreadable("FFmpeg has no decoder for its audio")
        codec.thread_count = 1  # the recordings are decoded in parallel already
        if codec.name == "flac":
            codec.options = {"err_detect": "crccheck+explode"}  # else damage passes as audio
        if container == "unknown" and not codec.sample_rate:  # guessed from the suffix
            raise Unreadable(NOT_AUDIO)
        self.sample_rate: int = codec.sample_rate or 0
        self.num_channels: int = codec.channels or 0
        self.position = 0

    def header(self, container: str, size: int) -> Header:
        stream, rate = self._stream, self.sample_rate
        if stream.duration is not None and stream.time_base is not None:
            num_frames, length = round(stream.duration * stream.time_base * rate), "stated"
        elif self._container.duration:  # of the longest stream, in microseconds: often the picture's
            num_frames, length = self._container.duration * rate // 1_000_000, "estimate"
        else:
            num_frames = size * 8 * rate // (stream.bit_rate or PYAV_BITS_PER_SECOND)
            length = "estimate"
        return Header(container, rate, self.num_channels, num_frames, length)

    def blocks(self, start: int) -> Iterator[np.ndarray]:
        # From the beginning, whatever `start` is: FFmpeg's seeking is to packets, and inexact in
        # MP3 and in what has no time stamps.
        waiting: list[np.ndarray] = []
        end = 0  # of the frames so far
        try:
            for frame in self._container.decode(self._stream):
                if frame.sample_rate != self.sample_rate:
                    raise DecodeError(f"changes its sample rate after {end / self.sample_rate:.1f} s")
                samples = _float32(frame)
                wider = waiting and samples.shape[1] != waiting[0].shape[1]
                if wider or end - self.position >= BLOCK_FRAMES:
                    self.position = end
                    yield np.concatenate(waiting)
                    waiting = []
                waiting.append(samples)
                end += len(samples)
            self._bytes.check()
        except self._damaged as error:
            self._bytes.check()
            where = f"after {end / self.sample_rate:.1f} s" if end else "at its start"
            said = plain(str(error.strerror))
            raise DecodeError(f"damaged {where}" + (f" ({said})" if said != DAMAGED else "")) from None
        if waiting:
            self.position = end
            yield np.concatenate(waiting)

    def close(self) -> None:
        self._container.close()


def _float32(frame: Any) -> np.ndarray:
    kind = frame.format.packed.name
    if kind not in (*PYAV_SCALE, *PYAV_FLOAT):
        raise DecodeError(f"its samples are in a form that cannot be read ({kind})")
    samples = frame.to_ndarray()
    samples = samples.T if frame.format.is_planar else samples.reshape(-1, frame.layout.nb_channels)
    if kind in PYAV_FLOAT:
        return samples.astype(np.float32, copy=False)
    offset, scale = PYAV_SCALE[kind]
    return (samples.astype(np.float32) - np.float32(offset)) / np.float32(scale)


# --- Both ---------------------------------------------------------------------------------------

NOT_AUDIO = "not audio in a format that can be read"
DAMAGED = "damaged, or not audio"
PLAIN = {  # what the libraries say -> what it means
    "Format not recognised": NOT_AUDIO,
    "unimplemented format": "encoded in a way that cannot be read",
    "File does not exist or is not a regular file": "holds no audio that can be decoded",
    "flac decoder": "damaged: the FLAC data does not match its checksums, or ends too early",
    "Invalid data found": DAMAGED,
    "Operation not permitted": DAMAGED,  # how FFmpeg says that a size of MP4 cannot be
    "Error number": DAMAGED,  # FFmpeg has no words for it
    "psf_fseek": DAMAGED,
    "chunk marker": "damaged: the header is malformed",
    "bad header": "damaged: the header is malformed",
    "Channel count is zero": "the header declares 0 channels",
    "unsupported encoding": "encoded in a way that cannot be read",
    "Not yet implemented": "encoded in a way that cannot be read",
    "End of file": "holds no audio that can be decoded",
    "malformed": "damaged: the header is malformed",
    "Malformed": "damaged: the header is malformed",
}


def plain(message: str) -> str:
    """A library's message in words for a person: one line, no addresses, no error numbers."""
    for part, words in PLAIN.items():
        if part in message:
            return words
    return " ".join(message.split())[:200].removeprefix("Error : ").rstrip(".") or "cannot be decoded"


def open_reader(file: BinaryIO, container: str) -> Reader:
    """By the first library that can open it as a stream. Raises DecodeError with the reason to show."""
    reasons = []
    for name in able(container):
        try:
            if name != "dali":
                return SoundfileReader(file) if name == "soundfile" else PyavReader(file, container)
        except Unreadable as error:
            reasons.append(str(error))
    said = [reason for reason in reasons if reason != NOT_AUDIO]
    raise DecodeError(said[0] if said and container != "unknown" else NOT_AUDIO)
