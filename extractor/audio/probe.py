"""Reads the headers of many recordings in parallel. No audio is decoded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from extractor.audio.headers import bytes_of, check, open_recording, read_header
from extractor.audio.segments import clip_segment, long_enough, resampled, segment
from extractor.errors import DecodeError, why_unusable
from extractor.types import Failure, Header, Utterance

FILES_PER_TASK = 64  # a task of a thread pool costs about as much as one header


def probe(
    utterances: Sequence[Utterance],
    workers: int = 8,
    on_progress: Callable[[int], None] | None = None,
) -> list[Header | Failure]:
    """The header of each utterance's recording, aligned with ``utterances``; a Failure where none is.

    A recording that many segments name is read once. ``on_progress`` is called from this thread
    with the number of recordings read since the last call.
    """
    paths = list(dict.fromkeys(utterance.path for utterance in utterances))
    chunks = [paths[i : i + FILES_PER_TASK] for i in range(0, len(paths), FILES_PER_TASK)]
    found: dict[str, Header | str] = {}
    pool = ThreadPoolExecutor(workers, thread_name_prefix="probe")
    try:
        for chunk, headers in zip(chunks, pool.map(_read_headers, chunks), strict=True):
            found.update(zip(chunk, headers, strict=True))
            if on_progress is not None:
                on_progress(len(chunk))
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C must not wait for a million files
    return [_of_utterance(utterance, found[utterance.path]) for utterance in utterances]


def num_samples_16k(header: Header, utterance: Utterance) -> int:
    """Samples at 16 kHz that decoding will give, after the segment's cut. Exact where the header is."""
    start, stop = segment(utterance, header.sample_rate)
    stop = header.num_frames if stop is None else min(stop, header.num_frames)
    return resampled(max(0, stop - start), header.sample_rate)


def _read_headers(paths: Iterable[str]) -> list[Header | str]:
    return [_read_header(path) for path in paths]


def _read_header(path: str) -> Header | str:
    """The header, or the reason why there is none."""
    try:
        with open_recording(path) as file:
            at, size = bytes_of(file)
            stated = read_header(at, size)
            if stated.length == "unknown":
                from extractor.audio.readers import describe  # numpy and the decoders: few files need them

                stated = check(describe(file, size, stated.container), size)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever one file makes a library raise is that file's fault
        return why_unusable(error)
    return stated.header()


def _of_utterance(utterance: Utterance, found: Header | str) -> Header | Failure:
    if isinstance(found, str):
        return Failure(utterance.id, utterance.path, "probe", found)
    try:
        segment(utterance, found.sample_rate)  # in order, whatever the length
        if found.exact:
            clip_segment(utterance, found.sample_rate, found.num_frames)
            long_enough(num_samples_16k(found, utterance))
    except DecodeError as error:
        return Failure(utterance.id, utterance.path, "probe", str(error))
    return found
