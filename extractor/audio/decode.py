"""Recordings to float32 waveforms, mono at 16 kHz, ahead of the model.

Short WAV, FLAC and Ogg go through DALI in batches, everything else is streamed block by block, so
that a two-hour recording costs little more memory than its waveform. Whichever backend decodes
(`backends.BACKENDS`), mixing, resampling (soxr) and checking are the same (`waveform`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import BinaryIO, NamedTuple, TypeVar

import numpy as np

from extractor.audio import flac
from extractor.audio.cut import Cut, Longest, checked, complete, mix, resample, still_planned
from extractor.audio.headers import Stated, bytes_in, bytes_of, check_format, open_recording, read_header
from extractor.audio.readers import (
    Reader,
    SoundfileReader,
    Unreadable,
    able,
    backends,
    decode_dali,
    most_informative,
    open_reader,
)
from extractor.audio.room import NoRoom, Room, Stopped, machine_room, size_text
from extractor.audio.segments import clip_segment
from extractor.errors import DecodeError, SettingsError, why_unusable
from extractor.types import SAMPLE_RATE, Decoded, Failure, Header, Seconds, Utterance

__all__ = ["DecodeOptions", "backends", "decode_batch"]

DALI_MAX_SECONDS: Seconds = 60.0  # longer recordings are streamed: DALI holds them whole
DALI_MAX_BYTES = 64 << 20  # of one recording, as a file and as float32 at the source rate
DALI_BATCH = 64  # recordings in one call
DALI_BATCH_BYTES = 64 << 20  # float32 at the source rate in one call
BESIDE_AUDIO_BYTES = 1 << 20  # of tags and pictures, in a file that DALI is to hold whole
ARENA_BYTES = 32 << 20  # of encoded files, kept by each thread
MAX_HOURS = 24.0  # of one utterance


@dataclass(frozen=True, slots=True)
class DecodeOptions:
    """``channel``: None averages the channels, else the one to take, from 0.
    ``backend``: "auto" by the table in `backends`, or the name of the one to use.
    ``checksum``: False leaves it empty; it costs about as much as decoding a WAV.
    ``resample``: False leaves the audio at the recording's own rate (`Decoded.sample_rate`), for the
    device to resample; the checksum is then of that.
    ``max_hours``: what is longer is a Failure; so is what ``room``, the memory for all that is being
    decoded, cannot hold alone."""

    channel: int | None = None
    backend: str = "auto"
    workers: int = 2
    checksum: bool = True
    resample: bool = True
    max_hours: float = MAX_HOURS
    room: Room = field(default_factory=machine_room, compare=False)

    def __post_init__(self) -> None:
        if self.channel is not None and self.channel < 0:
            raise SettingsError(f"channel {self.channel}: channels count from 0")
        if self.workers < 1:
            raise SettingsError(f"{self.workers} decoding threads: at least 1 is needed")
        if not self.max_hours > 0:
            raise SettingsError(f"at most {self.max_hours} hours: must be more than 0")

    def longest(self, sample_rate: int) -> Longest:
        """The most samples of an utterance that comes out at ``sample_rate``, and why no more."""
        by_time, by_memory = int(self.max_hours * 3600 * sample_rate), self.room.budget // 4
        if by_time <= by_memory:
            return Longest(by_time, f"longer than {self.max_hours:g} h (--max-hours)")
        hours = by_memory / sample_rate / 3600
        return Longest(
            by_memory,
            f"longer than {hours:.3g} h, which is what the memory for decoding holds:"
            f" {size_text(self.room.budget)} (--decode-memory)",
        )


@dataclass(slots=True)
class _Recording:
    """One file of a batch, and the utterances that are cut from it."""

    path: str
    header: Header
    utterances: list[tuple[int, Utterance]]  # with their places in the batch


_Results = list[tuple[int, Decoded | Failure]]
T = TypeVar("T")


def decode_batch(
    utterances: Sequence[Utterance],
    headers: Sequence[Header],
    options: DecodeOptions,
    pool: ThreadPoolExecutor | None = None,
    stop: threading.Event | None = None,
) -> list[Decoded | Failure]:
    """Decodes a batch, aligned with ``utterances``. A bad recording is a Failure, never an exception.

    A file that several utterances name is opened once. What an utterance decodes to depends on
    its own file and segment alone. The waveforms of one batch may share memory.
    """
    if pool is None:
        with ThreadPoolExecutor(options.workers, thread_name_prefix="decode") as own:
            return decode_batch(utterances, headers, options, own, stop)
    stop = stop or threading.Event()
    recordings: dict[tuple[str, Header], _Recording] = {}
    for place, (utterance, header) in enumerate(zip(utterances, headers, strict=True)):
        recording = recordings.setdefault((utterance.path, header), _Recording(utterance.path, header, []))
        recording.utterances.append((place, utterance))

    for_dali = [r for r in recordings.values() if _fits_dali(r, options)]
    dali_keys = {(r.path, r.header) for r in for_dali}
    streamed = [r for key, r in recordings.items() if key not in dali_keys]
    futures = [pool.submit(_stream, r, options, stop) for r in streamed]
    chunks = _dali_chunks(for_dali, options.workers)
    futures += [pool.submit(_decode_chunk, chunk, options, stop) for chunk in chunks]
    decoded: dict[int, Decoded | Failure] = {}
    for future in futures:
        decoded.update(future.result())
    return [decoded[place] for place in range(len(utterances))]


# --- Whole recordings, through DALI -------------------------------------------------------------


def _one_file(recording: _Recording, decode: Callable[[], T | _Results]) -> T | _Results:
    """What ``decode`` gives, or a Failure for each utterance of this file, whatever it raises."""
    try:
        return decode()
    except MemoryError:
        raise
    except FileNotFoundError:
        reason = "no such file: it is gone since planning"
    except Exception as error:  # noqa: BLE001 - what one file makes a library raise is that file's fault
        reason = why_unusable(error)
    return [(place, Failure(u.id, u.path, "decode", reason)) for place, u in recording.utterances]


def _decoded_bytes(recording: _Recording) -> int:
    """What DALI allocates: the file whole, at its own rate."""
    return 4 * recording.header.num_frames * recording.header.num_channels


def _fits_dali(recording: _Recording, options: DecodeOptions) -> bool:
    header = recording.header
    if "dali" not in able(header.container, options.backend):
        return False
    fits = _decoded_bytes(recording) <= options.room.budget and header.duration <= 3600 * options.max_hours
    short = header.duration <= DALI_MAX_SECONDS and _decoded_bytes(recording) <= DALI_MAX_BYTES
    return fits and (short or options.backend == "dali")


def _dali_chunks(recordings: list[_Recording], workers: int) -> Iterator[list[_Recording]]:
    """Equal shares for the threads, as few as the limits allow: a call costs as much as many a WAV."""
    most = min(DALI_BATCH, -(-len(recordings) // workers))
    chunk: list[_Recording] = []
    chunk_bytes = 0
    for recording in recordings:
        num_bytes = _decoded_bytes(recording)
        if chunk and (len(chunk) == most or chunk_bytes + num_bytes > DALI_BATCH_BYTES):
            yield chunk
            chunk, chunk_bytes = [], 0
        chunk.append(recording)
        chunk_bytes += num_bytes
    if chunk:
        yield chunk


def _decode_chunk(chunk: list[_Recording], options: DecodeOptions, stop: threading.Event) -> _Results:
    if stop.is_set():
        raise Stopped
    arena = _arena_of_this_thread()
    files = [_load(arena, recording) for recording in chunk]
    results: _Results = []
    left_over = [recording for recording, file in zip(chunk, files, strict=True) if file is None]
    loaded = [(recording, file) for recording, file in zip(chunk, files, strict=True) if file is not None]
    with options.room.take(sum(_decoded_bytes(recording) for recording, _ in loaded), stop):
        samples = decode_dali([file.data for _, file in loaded]) if loaded else []
        for (recording, file), decoded in zip(loaded, samples, strict=True):
            finished = None
            if decoded is not None:
                finished = _one_file(recording, partial(_finish_whole, recording, file, *decoded, options))
            if finished is None:
                left_over.append(recording)
            else:
                results += finished
    for recording in left_over:  # what cannot be read at all, too: that path finds the reason
        results += _stream(recording, options, stop)
    return results


class _Arena:
    """Memory for a chunk's files, used again for the next: fresh pages cost more than reading a WAV."""

    def __init__(self) -> None:
        self._bytes = np.empty(0, np.uint8)
        self._used = 0

    def clear(self) -> None:
        if len(self._bytes) < self._used:
            self._bytes = np.empty(min(2 * self._used, ARENA_BYTES), np.uint8)
        self._used = 0

    def take(self, num_bytes: int) -> np.ndarray:
        start = self._used
        self._used += num_bytes
        fits = self._used <= len(self._bytes)
        return self._bytes[start : self._used] if fits else np.empty(num_bytes, np.uint8)


_local = threading.local()


def _arena_of_this_thread() -> _Arena:
    # DALI has read a chunk's files when it returns, so the thread's next chunk may overwrite them.
    if not hasattr(_local, "arena"):
        _local.arena = _Arena()
    _local.arena.clear()
    return _local.arena


class _File(NamedTuple):
    data: np.ndarray  # its bytes, uint8
    stated: Stated  # its header, read again


def _load(arena: _Arena, recording: _Recording) -> _File | None:
    """None where the file is not for DALI after all, or cannot be read."""
    try:
        with open_recording(recording.path) as file:
            size = file.seek(0, 2)
            # Much more than its audio takes in any coding is something else, not to be held in memory.
            if size > min(DALI_MAX_BYTES, 2 * _decoded_bytes(recording) + BESIDE_AUDIO_BYTES):
                return None
            file.seek(0)
            data = arena.take(size)
            if file.readinto(data.data) != size:  # type: ignore[attr-defined]
                return None
        stated = read_header(*bytes_in(data.data))
        still_planned(stated, recording.header)
    except Exception:  # noqa: BLE001 - whatever it is, it is met again where the reason is found
        return None
    # The length of an Ogg file of several streams is a guess, which DALI would allocate.
    return None if stated.length == "estimate" else _File(data, stated)


def _finish_whole(
    recording: _Recording,
    file: _File,
    samples: np.ndarray,
    sample_rate: int,
    options: DecodeOptions,
) -> _Results | None:
    """Cuts, mixes, resamples and checks what DALI decoded, float32 ``[num_frames, num_channels]``.

    None where it may not be all there: to be streamed, which tells.
    """
    stated = file.stated
    miscounted = len(samples) != stated.num_frames and sample_rate == stated.sample_rate
    if miscounted or (stated.container == "flac" and not flac.intact(samples, stated, file.data)):
        return None
    check_format(sample_rate, samples.shape[1])

    def waveform_of(utterance: Utterance) -> np.ndarray:
        first, last = clip_segment(utterance, sample_rate, len(samples))
        mono = mix(samples[first:last], options.channel)
        return resample(mono, sample_rate) if options.resample else mono

    rate = SAMPLE_RATE if options.resample else sample_rate
    return [
        (place, checked(utterance, partial(waveform_of, utterance), options.checksum, rate))
        for place, utterance in recording.utterances
    ]


# --- Streams, through soundfile and PyAV --------------------------------------------------------


def _stream(recording: _Recording, options: DecodeOptions, stop: threading.Event) -> _Results:
    """Every utterance of a recording, by the first backend but DALI that can open it."""

    def decode() -> _Results:
        with open_recording(recording.path) as file:
            try:
                return _decode_stream(file, recording, options, stop)
            except NoRoom:
                return _decode_stream(file, recording, options, stop, alone=True)

    return _one_file(recording, decode)


def _decode_stream(
    file: BinaryIO,
    recording: _Recording,
    options: DecodeOptions,
    stop: threading.Event,
    alone: bool = False,
) -> _Results:
    at, size = bytes_of(file)
    stated = read_header(at, size)
    still_planned(stated, recording.header)
    names = [name for name in able(stated.container, options.backend) if name != "dali"]
    reasons = [] if names else [f"the backend {options.backend} cannot decode it"]
    for name in names:
        try:
            reader = open_reader(name, file, stated.container)
        except Unreadable as error:
            reasons.append(str(error))
            continue
        with closing(reader):
            check_format(reader.sample_rate, reader.num_channels)
            if stated.length == "unknown":
                stated = reader.stated(stated.container, size)
                still_planned(stated, recording.header)
            return _read(reader, recording, stated, options, stop, alone)
    raise DecodeError(most_informative(reasons, stated.container))


def _read(
    reader: Reader,
    recording: _Recording,
    stated: Stated,
    options: DecodeOptions,
    stop: threading.Event,
    alone: bool,
) -> _Results:
    """Raises NoRoom, unless ``alone``: nothing else is decoded meanwhile."""
    rate = SAMPLE_RATE if options.resample else reader.sample_rate
    longest = options.longest(rate)
    cuts = []
    results: _Results = []
    for place, utterance in recording.utterances:
        try:
            cuts.append((place, Cut(utterance, reader.sample_rate, stated, rate, longest)))
        except DecodeError as error:  # a segment that runs backwards, a recording that is too long
            results.append((place, Failure(utterance.id, utterance.path, "decode", str(error))))
    claim = sum(cut.claimed_bytes for _, cut in cuts)
    with options.room.take(options.room.budget if alone else claim, stop) as taken:
        # soundfile seeks to the very sample, so each cut is read by itself; FFmpeg does not: one pass.
        by_itself = isinstance(reader, SoundfileReader)
        for group in [[cut] for _, cut in cuts] if by_itself else [[cut for _, cut in cuts]]:
            _feed(reader, group, options.channel, stop, lambda: taken.need(sum(c.num_bytes for _, c in cuts)))

        def waveform_of(cut: Cut) -> np.ndarray:
            waveform = _finished(cut, reader, stated)
            options.room.keep(waveform, cut.num_bytes - cut.claimed_bytes)
            return waveform

        results += [
            (place, checked(cut.utterance, partial(waveform_of, cut), options.checksum, rate))
            for place, cut in cuts
        ]
    return results


def _feed(
    reader: Reader, cuts: list[Cut], channel: int | None, stop: threading.Event, grown: Callable[[], None]
) -> None:
    """One pass over the source. A cut that is complete is not touched by what comes behind it.

    ``grown`` is called when the cuts have grown; what it raises is their damage, too.
    """
    position = 0
    try:
        for block in reader.blocks(min((cut.start for cut in cuts), default=0)):
            if stop.is_set():
                raise Stopped
            position = reader.position
            for cut in cuts:
                cut.add(block, position - len(block), channel)
            if all(cut.damage or cut.stop <= position for cut in cuts):
                return
            grown()
    except DecodeError as error:
        for cut in cuts:
            if cut.stop > position:
                cut.fail(error)
    for cut in cuts:
        cut.end = reader.position if cut.stop > reader.position else None


def _finished(cut: Cut, reader: Reader, stated: Stated) -> np.ndarray:
    if cut.damage is not None:
        raise cut.damage
    if cut.end is not None:
        complete(cut.end, reader.sample_rate, stated)
        clip_segment(cut.utterance, reader.sample_rate, cut.end)
    return cut.finish()
