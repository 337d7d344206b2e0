"""The headers of many recordings at once, and how long each utterance is by them. Nothing is decoded."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import BinaryIO, TypeVar

from extractor.audio.headers import At, check, read_header
from extractor.errors import DecodeError, why_unusable
from extractor.types import MIN_SAMPLES, SAMPLE_RATE, Failure, Header, Seconds, Utterance

HEAD_BYTES = 4096  # one read that holds nearly every header whole
FILES_PER_TASK = 64  # a task of a thread pool costs about as much as one header
END_SLACK: Seconds = 0.1  # a segment may end this much behind the recording: rounded time stamps

# Absent flags are those that a system does not need: without waiting for a pipe's other end; as bytes.
OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)

T = TypeVar("T")


def probe(utterances: Sequence[Utterance], workers: int = 8) -> list[Header | Failure]:
    """The header of each utterance's recording, aligned with ``utterances``; a Failure where none is.

    A recording that many segments name is read once.
    """
    found = of_each_path(_read_header, [u.path for u in utterances], workers, FILES_PER_TASK)
    return [_of_utterance(utterance, found[utterance.path]) for utterance in utterances]


def of_each_path(
    read: Callable[[str], T],
    paths: Iterable[str],
    workers: int,
    per_task: int,
    tell: Callable[[int], None] | None = None,
) -> dict[str, T]:
    """What ``read`` gives of each path, once each, in threads. ``tell`` is told how many are done."""
    paths = list(dict.fromkeys(paths))
    tasks = [paths[i : i + per_task] for i in range(0, len(paths), per_task)]
    found: dict[str, T] = {}
    pool = ThreadPoolExecutor(workers, thread_name_prefix="files")
    try:
        for task, some in zip(tasks, pool.map(lambda task: [*map(read, task)], tasks), strict=True):
            found.update(zip(task, some, strict=True))
            if tell is not None:
                tell(len(found))
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C must not wait for a million files
    return found


def open_recording(path: str) -> BinaryIO:
    """Opens a regular file, unbuffered. Opening a pipe would block for ever, reading a device never end."""
    try:
        file = io.FileIO(path, opener=lambda name, _flags: os.open(name, OPEN_FLAGS))
    except ValueError:  # a NUL in it
        raise DecodeError("not a path that a file can have") from None
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # a folder is refused by FileIO
        file.close()
        raise DecodeError("not a regular file")
    return file  # what open(buffering=0) gives


def bytes_of(file: BinaryIO) -> tuple[At, int]:
    """Random access to a file's bytes, the first `HEAD_BYTES` of them read once; and its size."""
    size = file.seek(0, 2)
    file.seek(0)
    head = file.read(HEAD_BYTES)

    def at(offset: int, count: int) -> bytes:
        if offset + count <= len(head) or len(head) == size:
            return head[offset : offset + count]
        file.seek(offset)
        return file.read(count)

    return at, size


def bytes_in(buffer: memoryview) -> tuple[At, int]:
    """The same for a file that is in memory already."""
    return lambda offset, count: bytes(buffer[offset : offset + count]), len(buffer)


def _read_header(path: str) -> Header | str:
    """The header, or the reason why there is none."""
    try:
        with open_recording(path) as file:
            at, size = bytes_of(file)
            header = read_header(at, size)
            if header.length == "unknown":
                from extractor.audio.readers import open_reader  # numpy and the decoders: few files need them

                with closing(open_reader(file, header.container)) as reader:
                    header = check(reader.header(header.container, size), size)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever one file makes a library raise is that file's fault
        return why_unusable(error)
    return header


def _of_utterance(utterance: Utterance, found: Header | str) -> Header | Failure:
    if isinstance(found, str):
        return Failure(utterance.id, utterance.path, "probe", found)
    try:
        segment(utterance, found.sample_rate)  # in order, whatever the length
        if found.length == "exact":
            clip_segment(utterance, found.sample_rate, found.num_frames)
            long_enough(num_samples_16k(found, utterance))
    except DecodeError as error:
        return Failure(utterance.id, utterance.path, "probe", str(error))
    return found


# --- How many samples an utterance has ----------------------------------------------------------


def num_samples_16k(header: Header, utterance: Utterance) -> int:
    """Samples at 16 kHz that decoding will give, after the segment's cut. Exact where the header is."""
    start, stop = segment(utterance, header.sample_rate)
    stop = header.num_frames if stop is None else min(stop, header.num_frames)
    return resampled(max(0, stop - start), header.sample_rate)


def resampled(num_frames: int, sample_rate: int) -> int:
    """Samples that soxr gives at 16 kHz: the exact ratio, rounded half up (tested)."""
    return (2 * num_frames * SAMPLE_RATE + sample_rate) // (2 * sample_rate)


def segment(utterance: Utterance, sample_rate: int) -> tuple[int, int | None]:
    """First sample and the one behind the last, at the source rate; ``None`` is the file's own end."""
    start = 0.0 if utterance.start is None else utterance.start
    end = utterance.end
    if not 0 <= start < float("inf") or (end is not None and not start < end < float("inf")):
        raise DecodeError(f"the segment {start} s to {end} s is empty or runs backwards")
    return round(start * sample_rate), None if end is None else round(end * sample_rate)


def clip_segment(utterance: Utterance, sample_rate: int, num_frames: int) -> tuple[int, int]:
    """The segment within a recording of ``num_frames``. Raises where it lies beyond the end."""
    start, stop = segment(utterance, sample_rate)
    duration = round(num_frames / sample_rate, 3)
    if start > 0 and start >= num_frames:
        raise DecodeError(f"the segment starts at {utterance.start} s, the recording lasts {duration} s")
    if stop is not None and stop > num_frames + END_SLACK * sample_rate:
        raise DecodeError(f"the segment ends at {utterance.end} s, the recording lasts {duration} s")
    return start, num_frames if stop is None else min(stop, num_frames)


def long_enough(num_samples: int) -> None:
    """Raises where an encoder's first frame already needs more than these samples at 16 kHz."""
    if num_samples < MIN_SAMPLES:
        raise DecodeError(
            f"too short: {num_samples} samples at 16 kHz, at least {MIN_SAMPLES} "
            f"({1000 * MIN_SAMPLES // SAMPLE_RATE} ms) are needed"
        )
