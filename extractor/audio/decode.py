"""Recordings to float32 waveforms, mono at 16 kHz, ahead of the model.

Short WAV, FLAC and Ogg go through DALI in batches, everything else is streamed block by block, so
that a two-hour recording costs little more memory than its waveform. Whichever backend decodes
(`readers.BACKENDS`), mixing, resampling (soxr) and checking are the same (`cut`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import BinaryIO, TypeVar

import numpy as np

from extractor.audio import dali
from extractor.audio.cut import Cut, Longest, checked, complete, mix, resample, still_planned
from extractor.audio.headers import check_format, read_header
from extractor.audio.probe import bytes_of, clip_segment, open_recording
from extractor.audio.readers import Reader, SoundfileReader, able, open_reader
from extractor.audio.room import NoRoom, Room, Stopped, machine_room, size_text
from extractor.errors import DecodeError, SettingsError, why_unusable
from extractor.types import SAMPLE_RATE, Decoded, Failure, Header, Utterance

MAX_HOURS = 24.0  # of one utterance


@dataclass(frozen=True, slots=True)
class DecodeOptions:
    """``channel``: None averages the channels, else the one to take, from 0.
    ``checksum``: False leaves it empty; it costs about as much as decoding a WAV.
    ``resample``: False leaves the audio at the recording's own rate (`Decoded.sample_rate`), for the
    device to resample; the checksum is then of that.
    ``max_hours``: what is longer is a Failure; so is what ``room``, the memory for all that is being
    decoded, cannot hold alone."""

    channel: int | None = None
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
class _File:
    """One file of a batch, and the utterances that are cut from it."""

    path: str
    header: Header
    utterances: list[tuple[int, Utterance]]  # with their places in the batch


_Results = list[tuple[int, Decoded | Failure]]
T = TypeVar("T")


def decode_batch(
    utterances: Sequence[Utterance],
    headers: Sequence[Header | Failure],
    options: DecodeOptions,
    pool: ThreadPoolExecutor | None = None,
    stop: threading.Event | None = None,
) -> list[Decoded | Failure]:
    """Decodes a batch, aligned with ``utterances``. A bad recording is a Failure, never an exception.

    A Failure among the headers stays what it is. A file that several utterances name is opened once. What
    an utterance decodes to depends on its own file and segment alone. The waveforms of one batch may share
    memory.
    """
    if pool is None:
        with ThreadPoolExecutor(options.workers, thread_name_prefix="decode") as own:
            return decode_batch(utterances, headers, options, own, stop)
    stop = stop or threading.Event()
    files: dict[tuple[str, Header], _File] = {}
    decoded: dict[int, Decoded | Failure] = {}
    for place, (utterance, header) in enumerate(zip(utterances, headers, strict=True)):
        if isinstance(header, Failure):
            decoded[place] = header
            continue
        file = files.setdefault((utterance.path, header), _File(utterance.path, header, []))
        file.utterances.append((place, utterance))

    whole: list[_File] = []
    streamed: list[_File] = []
    for file in files.values():
        (whole if _fits_dali(file.header, options) else streamed).append(file)
    futures = [pool.submit(_stream, file, options, stop) for file in streamed]
    # Equal shares for the threads, as few as the limits allow: a call costs as much as many a WAV.
    most = min(dali.BATCH, -(-len(whole) // options.workers))
    futures += [
        pool.submit(_decode_whole, [whole[i] for i in share], options, stop)
        for share in shares([dali.decoded_bytes(file.header) for file in whole], most, dali.BATCH_BYTES)
    ]
    for future in futures:
        decoded.update(future.result())
    return [decoded[place] for place in range(len(utterances))]


def shares(sizes: Sequence[int], most: int, most_size: int) -> Iterator[range]:
    """Consecutive indices, at most ``most`` of them and together of ``most_size``; a larger one is alone."""
    start = filled = 0
    for i, size in enumerate(sizes):
        if i > start and (i - start == most or filled + size > most_size):
            yield range(start, i)
            start, filled = i, 0
        filled += size
    if start < len(sizes):
        yield range(start, len(sizes))


def _one_file(file: _File, decode: Callable[[], T | _Results]) -> T | _Results:
    """What ``decode`` gives, or a Failure for each utterance of this file, whatever it raises."""
    try:
        return decode()
    except MemoryError:
        raise
    except FileNotFoundError:
        reason = "no such file: it is gone since planning"
    except Exception as error:  # noqa: BLE001 - what one file makes a library raise is that file's fault
        reason = why_unusable(error)
    return [(place, Failure(u.id, u.path, "decode", reason)) for place, u in file.utterances]


# --- Whole recordings, through DALI -------------------------------------------------------------


def _fits_dali(header: Header, options: DecodeOptions) -> bool:
    num_bytes, hours = dali.decoded_bytes(header), header.duration / 3600
    return (
        "dali" in able(header.container)
        and num_bytes <= min(dali.MAX_BYTES, options.room.budget)
        and header.duration <= dali.MAX_SECONDS
        and hours <= options.max_hours
    )


def _decode_whole(files: list[_File], options: DecodeOptions, stop: threading.Event) -> _Results:
    if stop.is_set():
        raise Stopped
    dali.arena.clear()
    left_over: list[_File] = []  # what cannot be read at all, too: streaming it finds the reason
    loaded: list[tuple[_File, np.ndarray, Header]] = []
    for file in files:
        found = dali.load(file.path, file.header)
        if found is None:
            left_over.append(file)
        else:
            loaded.append((file, *found))
    results: _Results = []
    with options.room.take(sum(dali.decoded_bytes(file.header) for file, _, _ in loaded), stop):
        decoded = dali.decode([data for _, data, _ in loaded]) if loaded else []
        for (file, _, header), audio in zip(loaded, decoded, strict=True):
            finished = None
            if audio is not None:
                finished = _one_file(file, partial(_finish_whole, file, header, *audio, options))
            if finished is None:
                left_over.append(file)
            else:
                results += finished
    for file in left_over:
        results += _stream(file, options, stop)
    return results


def _finish_whole(
    file: _File, header: Header, samples: np.ndarray, sample_rate: int, options: DecodeOptions
) -> _Results | None:
    """Cuts, mixes, resamples and checks what DALI decoded, float32 ``[num_frames, num_channels]``.

    None where it may not be all there: to be streamed, which tells.
    """
    miscounted = len(samples) != header.num_frames and sample_rate == header.sample_rate
    if miscounted or (header.container == "flac" and not dali.intact(samples, header)):
        return None
    check_format(sample_rate, samples.shape[1])

    def waveform_of(utterance: Utterance) -> np.ndarray:
        first, last = clip_segment(utterance, sample_rate, len(samples))
        mono = mix(samples[first:last], options.channel)
        return resample(mono, sample_rate) if options.resample else mono

    rate = SAMPLE_RATE if options.resample else sample_rate
    return [
        (place, checked(utterance, partial(waveform_of, utterance), options.checksum, rate))
        for place, utterance in file.utterances
    ]


# --- Streams, through soundfile and PyAV --------------------------------------------------------


def _stream(file: _File, options: DecodeOptions, stop: threading.Event) -> _Results:
    """Every utterance of a file, by the first backend but DALI that can open it."""

    def decode() -> _Results:
        with open_recording(file.path) as opened:
            try:
                return _decode_stream(opened, file, options, stop)
            except NoRoom:
                return _decode_stream(opened, file, options, stop, alone=True)

    return _one_file(file, decode)


def _decode_stream(
    opened: BinaryIO, file: _File, options: DecodeOptions, stop: threading.Event, alone: bool = False
) -> _Results:
    """Raises NoRoom, unless ``alone``: nothing else is decoded meanwhile."""
    at, size = bytes_of(opened)
    header = read_header(at, size)
    still_planned(header, file.header)
    with closing(open_reader(opened, header.container)) as reader:
        check_format(reader.sample_rate, reader.num_channels)
        if header.length == "unknown":
            header = reader.header(header.container, size)
            still_planned(header, file.header)
        rate = SAMPLE_RATE if options.resample else reader.sample_rate
        longest = options.longest(rate)
        cuts: list[tuple[int, Cut]] = []
        results: _Results = []
        for place, utterance in file.utterances:
            try:
                cuts.append((place, Cut(utterance, reader.sample_rate, header, rate, longest)))
            except DecodeError as error:  # a segment that runs backwards, a recording that is too long
                results.append((place, Failure(utterance.id, utterance.path, "decode", str(error))))
        claim = sum(cut.claimed_bytes for _, cut in cuts)
        with options.room.take(options.room.budget if alone else claim, stop) as taken:

            def grown() -> None:
                taken.need(sum(cut.num_bytes for _, cut in cuts))

            # soundfile seeks to the very sample, so each cut is read by itself; FFmpeg does not: one pass.
            by_itself = isinstance(reader, SoundfileReader)
            for group in [[cut] for _, cut in cuts] if by_itself else [[cut for _, cut in cuts]]:
                _feed(reader, group, options.channel, stop, grown)

            def waveform_of(cut: Cut) -> np.ndarray:
                if cut.damage is not None:
                    raise cut.damage
                if cut.end is not None:
                    complete(cut.end, reader.sample_rate, header)
                    clip_segment(cut.utterance, reader.sample_rate, cut.end)
                waveform = cut.finish()
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
