"""Recordings to float32 waveforms, mono at 16 kHz, ahead of the model.

Short WAV, FLAC and Ogg go through DALI in batches, everything else is streamed block by block, so
that a two-hour recording costs little more memory than its waveform. Whichever backend decodes
(`backends.BACKENDS`), mixing, resampling (soxr) and checking are the same (`waveform`).
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import BinaryIO, NamedTuple

import numpy as np

from extractor import flac
from extractor.backends import (
    Reader,
    SoundfileReader,
    Unreadable,
    able,
    backends,
    decode_dali,
    most_informative,
    open_reader,
)
from extractor.errors import DecodeError, SettingsError
from extractor.formats import (
    Stated,
    bytes_in,
    bytes_of,
    open_recording,
    read_header,
    unreadable,
)
from extractor.segments import clip_segment
from extractor.types import SAMPLE_RATE, Decoded, Failure, Header, Seconds, Utterance
from extractor.waveform import Cut, checked, complete, mix, resample, still_planned

__all__ = ["DecodeAhead", "DecodeOptions", "backends", "decode_batch"]

DALI_MAX_SECONDS: Seconds = 60.0  # longer recordings are streamed: DALI holds them whole
DALI_MAX_BYTES = 64 << 20  # of one recording, as a file and as float32 at the source rate
DALI_BATCH = 64  # recordings in one call
DALI_BATCH_BYTES = 64 << 20  # float32 at the source rate in one call
ARENA_BYTES = 32 << 20  # of encoded files, kept by each thread


@dataclass(frozen=True, slots=True)
class DecodeOptions:
    """``channel``: None averages the channels, else the one to take, from 0.
    ``backend``: "auto" by the table in `backends`, or the name of the one to use.
    ``checksum``: False leaves it empty; it costs about as much as decoding a WAV.
    ``resample``: False leaves the audio at the recording's own rate (`Decoded.sample_rate`), for the
    device to resample; the checksum is then of that."""

    channel: int | None = None
    backend: str = "auto"
    workers: int = 2
    checksum: bool = True
    resample: bool = True

    def __post_init__(self) -> None:
        if self.channel is not None and self.channel < 0:
            raise SettingsError(f"channel {self.channel}: channels count from 0")
        if self.workers < 1:
            raise SettingsError(f"{self.workers} decoding threads: at least 1 is needed")


class _Stopped(Exception):
    """The consumer has gone; what is being decoded is of no use."""


@dataclass(slots=True)
class _Recording:
    """One file of a batch, and the utterances that are cut from it."""

    path: str
    header: Header
    utterances: list[tuple[int, Utterance]]  # with their places in the batch


_Results = list[tuple[int, Decoded | Failure]]


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

    for_dali = [r for r in recordings.values() if _fits_dali(r.header, options)]
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


def _fits_dali(header: Header, options: DecodeOptions) -> bool:
    if "dali" not in able(header.container, options.backend):
        return False
    decoded_bytes = 4 * header.num_frames * header.num_channels
    short = header.duration <= DALI_MAX_SECONDS and decoded_bytes <= DALI_MAX_BYTES
    return short or options.backend == "dali"


def _dali_chunks(recordings: list[_Recording], workers: int) -> Iterator[list[_Recording]]:
    """Equal shares for the threads, as few as the limits allow: a call costs as much as many a WAV."""
    most = min(DALI_BATCH, -(-len(recordings) // workers))
    chunk: list[_Recording] = []
    chunk_bytes = 0
    for recording in recordings:
        num_bytes = 4 * recording.header.num_frames * recording.header.num_channels
        if chunk and (len(chunk) == most or chunk_bytes + num_bytes > DALI_BATCH_BYTES):
            yield chunk
            chunk, chunk_bytes = [], 0
        chunk.append(recording)
        chunk_bytes += num_bytes
    if chunk:
        yield chunk


def _decode_chunk(chunk: list[_Recording], options: DecodeOptions, stop: threading.Event) -> _Results:
    if stop.is_set():
        raise _Stopped
    arena = _arena_of_this_thread()
    files = [_load(arena, recording) for recording in chunk]
    samples = iter(decode_dali([file.data for file in files if file]) if any(files) else [])
    results: _Results = []
    for recording, file in zip(chunk, files, strict=True):
        decoded = next(samples) if file else None
        if file and decoded:
            results += _finish_whole(recording, file, *decoded, options, stop)
        else:  # what DALI cannot do is streamed; for what cannot be read, that path finds the reason
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
            if size > DALI_MAX_BYTES:
                return None
            file.seek(0)
            data = arena.take(size)
            if file.readinto(data.data) != size:  # type: ignore[attr-defined]
                return None
        stated = read_header(*bytes_in(data.data))
        still_planned(stated, recording.header)
    except (DecodeError, OSError):
        return None
    # The length of an Ogg file of several streams is a guess, which DALI would allocate.
    return None if stated.length == "estimate" else _File(data, stated)


def _finish_whole(
    recording: _Recording,
    file: _File,
    samples: np.ndarray,
    sample_rate: int,
    options: DecodeOptions,
    stop: threading.Event,
) -> _Results:
    """Cuts, mixes, resamples and checks what DALI decoded, float32 ``[num_frames, num_channels]``."""
    stated = file.stated
    miscounted = len(samples) != stated.num_frames and sample_rate == stated.sample_rate
    if miscounted or (stated.container == "flac" and not flac.intact(samples, stated, file.data)):
        return _stream(recording, options, stop)

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
    try:
        with open_recording(recording.path) as file:
            return _decode_stream(file, recording, options, stop)
    except DecodeError as error:
        reason = str(error)
    except FileNotFoundError:
        reason = "no such file: it is gone since planning"
    except OSError as error:
        reason = unreadable(error)
    return [(place, Failure(u.id, u.path, "decode", reason)) for place, u in recording.utterances]


def _decode_stream(
    file: BinaryIO, recording: _Recording, options: DecodeOptions, stop: threading.Event
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
            if stated.length == "unknown":
                stated = reader.stated(stated.container, size)
                still_planned(stated, recording.header)
            return _read(reader, recording, stated, options, stop)
    raise DecodeError(most_informative(reasons, stated.container))


def _read(
    reader: Reader, recording: _Recording, stated: Stated, options: DecodeOptions, stop: threading.Event
) -> _Results:
    cuts = []
    results: _Results = []
    for place, utterance in recording.utterances:
        try:
            target = SAMPLE_RATE if options.resample else reader.sample_rate
            cuts.append((place, Cut(utterance, reader.sample_rate, stated.num_frames, target)))
        except DecodeError as error:  # a segment that runs backwards
            results.append((place, Failure(utterance.id, utterance.path, "decode", str(error))))
    # soundfile seeks to the very sample, so each cut is read by itself; FFmpeg does not: one pass.
    together = [[cut] for _, cut in cuts] if isinstance(reader, SoundfileReader) else [[c for _, c in cuts]]
    for group in together:
        _feed(reader, group, options.channel, stop)
    results += [
        (place, checked(cut.utterance, partial(_finished, cut, reader, stated), options.checksum, cut.rate))
        for place, cut in cuts
    ]
    return results


def _feed(reader: Reader, cuts: list[Cut], channel: int | None, stop: threading.Event) -> None:
    """One pass over the source. A cut that is complete is not touched by what comes behind it."""
    position = 0
    last = max((cut.stop for cut in cuts), default=0.0)
    try:
        for block in reader.blocks(min((cut.start for cut in cuts), default=0)):
            if stop.is_set():
                raise _Stopped
            position = reader.position
            for cut in cuts:
                cut.add(block, position - len(block), channel)
            if position >= last:
                return
    except DecodeError as error:
        for cut in cuts:
            cut.damage = error if cut.stop > position else None
    for cut in cuts:
        cut.end = reader.position if cut.stop > reader.position else None


def _finished(cut: Cut, reader: Reader, stated: Stated) -> np.ndarray:
    if cut.damage is not None:
        raise cut.damage
    if cut.end is not None:
        complete(cut.end, reader.sample_rate, stated)
        clip_segment(cut.utterance, reader.sample_rate, cut.end)
    return cut.finish()


# --- Ahead of the model -------------------------------------------------------------------------

_END = None
_POLL: Seconds = 0.1  # how soon a blocked thread sees that the other side has gone


class DecodeAhead:
    """Decodes batches in threads while the model works; at most ``ahead`` decoded ones wait.

    >>> with DecodeAhead(batches, DecodeOptions()) as decoded:
    ...     for results in decoded:  # in the order of `batches`

    ``batches`` is iterated in another thread. What is raised there, or by a bug in decoding, is
    raised again in the consumer. ``wait_seconds`` is the time that the consumer has waited.
    """

    def __init__(
        self,
        batches: Iterable[tuple[Sequence[Utterance], Sequence[Header]]],
        options: DecodeOptions,
        ahead: int = 2,
    ) -> None:
        able("wav", options.backend)  # an absent backend is refused here, not in a thread
        self.wait_seconds: Seconds = 0.0
        self._batches = batches
        self._options = options
        self._ready: queue.Queue[list[Decoded | Failure] | None] = queue.Queue(maxsize=max(1, ahead))
        self._stop = threading.Event()
        self._producer = ThreadPoolExecutor(1, thread_name_prefix="decode-ahead")
        self._done: Future[None] | None = None

    def __enter__(self) -> DecodeAhead:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[list[Decoded | Failure]]:
        if self._done is not None:
            raise RuntimeError("these batches are being decoded already")
        self._done = self._producer.submit(self._produce)
        try:
            while (results := self._next()) is not _END:
                yield results
            if not self._stop.is_set():
                self._done.result()  # raises what was raised in the thread
        finally:
            self.close()

    def close(self) -> None:
        """Ends the threads. What is being decoded is given up at its next block."""
        self._stop.set()
        self._producer.shutdown(cancel_futures=True)

    def _next(self) -> list[Decoded | Failure] | None:
        began = perf_counter()
        try:
            while not self._stop.is_set():
                try:
                    return self._ready.get(timeout=_POLL)
                except queue.Empty:
                    continue
            return _END
        finally:
            self.wait_seconds += perf_counter() - began

    def _produce(self) -> None:
        pool = ThreadPoolExecutor(self._options.workers, thread_name_prefix="decode")
        try:
            for utterances, headers in self._batches:
                if self._stop.is_set():
                    return
                self._put(decode_batch(utterances, headers, self._options, pool, self._stop))
        except _Stopped:
            return
        finally:
            pool.shutdown(cancel_futures=True)
            self._put(_END)

    def _put(self, results: list[Decoded | Failure] | None) -> None:
        while not self._stop.is_set():
            try:
                self._ready.put(results, timeout=_POLL)
            except queue.Full:
                continue
            return
