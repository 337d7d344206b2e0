"""The files of many recordings at once: size and time, length by the header, checksum of the audio."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias

import numpy as np

from extractor.audio.ahead import DecodeAhead
from extractor.audio.decode import DecodeOptions, shares
from extractor.audio.probe import num_samples_16k, of_each_path, probe
from extractor.progress import Counts, Progress, Silent, showing
from extractor.types import SAMPLE_RATE, Failure, Header, Seconds, Utterance

Stamp: TypeAlias = tuple[int, int]  # of a file: size in bytes, time of its last change in ns

STAT_THREADS = 16  # a file server answers many questions at once; a disk of one's own needs no more
STATS_PER_TASK = 1024
PROBED_AT_ONCE = 4096  # headers between two updates of the progress
BLOCK: Seconds = 600.0  # of audio that is decoded between two looks at the progress
BLOCK_RECORDINGS = 256


def stamps(paths: Iterable[str], progress: Progress) -> dict[str, Stamp | None]:
    """Size and time of each file; None where there is none that this process can see."""
    paths = list(dict.fromkeys(paths))
    # As many as take no time are not worth a line.
    shown = progress if len(paths) > PROBED_AT_ONCE else Silent()
    with showing(shown, "looking at files", len(paths)):
        return of_each_path(
            _stamp, paths, STAT_THREADS, STATS_PER_TASK, lambda done: shown.update(Counts(done, 0.0))
        )


def _stamp(path: str) -> Stamp | None:
    try:
        there = os.stat(path)  # noqa: PTH116 - a Path a file would cost more than all the rest
    except (OSError, ValueError):  # ValueError: a NUL in the path
        return None
    return there.st_size, there.st_mtime_ns


def lengths(
    utterances: Sequence[Utterance], workers: int, progress: Progress
) -> tuple[np.ndarray, dict[int, Failure]]:
    """Of each utterance at 16 kHz, int64 ``[N]``, as its header says, and what cannot be read, by index."""
    samples = np.zeros(len(utterances), dtype=np.int64)
    failures: dict[int, Failure] = {}
    with showing(progress, "reading headers", len(utterances)):
        for start in range(0, len(utterances), PROBED_AT_ONCE):
            some = utterances[start : start + PROBED_AT_ONCE]
            for i, found in enumerate(probe(some, workers), start):
                if isinstance(found, Failure):
                    failures[i] = found
                else:
                    samples[i] = num_samples_16k(found, utterances[i])
            progress.update(Counts(min(start + PROBED_AT_ONCE, len(utterances)), 0.0))
    return samples, failures


def checksums(
    utterances: Sequence[Utterance],
    num_samples: Sequence[int],
    decoding: DecodeOptions,
    progress: Progress,
    stop: threading.Event,
) -> Iterator[tuple[int, str | Failure]]:
    """Decode utterances, in their order: index and checksum of each, or why it has none.

    ``num_samples``: at 16 kHz, what the time left is told by. Once ``stop`` is set, no more come.
    """

    def requests() -> Iterator[tuple[Sequence[int], Sequence[Utterance], Sequence[Header | Failure]]]:
        for block in shares(num_samples, BLOCK_RECORDINGS, round(BLOCK * SAMPLE_RATE)):
            some = [utterances[i] for i in block]
            yield block, some, probe(some, decoding.workers)

    done, audio = 0, 0.0
    total = sum(num_samples) / SAMPLE_RATE
    with (
        showing(progress, "comparing audio", len(utterances), total),
        DecodeAhead(requests(), decoding) as ahead,
    ):
        for block, decoded in ahead:
            for i, found in zip(block, decoded, strict=True):
                yield i, found if isinstance(found, Failure) else found.checksum
            done += len(block)
            audio += sum(num_samples[i] for i in block) / SAMPLE_RATE
            progress.update(Counts(done, audio))
            if stop.is_set():
                return
