"""Decode ahead -> encode and pool, some batches at once -> commit: the stages of a run, overlapping."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING

from extractor.progress import Counts, Progress, Summary, showing
from extractor.types import SAMPLE_RATE, BatchResult, Failure, Seconds, Utterance

if TYPE_CHECKING:
    from extractor.batch import BatchEncoder, Job
    from extractor.decode import DecodeAhead, DecodeOptions
    from extractor.run_plan import RunPlan
    from extractor.store.writer import RunWriter
    from extractor.types import Header

Request = tuple[Sequence[Utterance], "Sequence[Header]"]

DECODED_AHEAD = 3  # batches that wait for the encoder at most
AUDIO_AHEAD: Seconds = 3600.0  # and this much audio, 230 MB, if several batches are to wait at all


def num_cores() -> int:
    """Cores that this process may use, which containers and job schedulers limit."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def num_streams(device: str, num_batches: int) -> tuple[int, int]:
    """Batches to encode at once, and threads for each.

    On a CPU one thread a batch wastes nothing on waiting for other threads; past eight cores the
    memory that batches take counts for more. It depends on the machine and the plan alone, not on
    what is left to do: another number of threads could round differently.
    """
    cores = num_cores()
    if device != "cpu":
        return 1, cores
    streams = max(1, min(cores, 8, num_batches))
    return streams, max(1, cores // streams)


def _unchanged(utterance: Utterance, header: Header | Failure, planned: int) -> Header | Failure:
    """The header, or a failure where the recording's length is not what it was when it was planned."""
    from extractor.probe import num_samples_16k

    if isinstance(header, Failure) or not header.exact or num_samples_16k(header, utterance) == planned:
        return header
    reason = (
        f"changed since planning: {num_samples_16k(header, utterance) / SAMPLE_RATE:.2f} s long now,"
        f" {planned / SAMPLE_RATE:.2f} s then; run again with --retry-failed to take it as it is"
    )
    return Failure(utterance.id, utterance.path, "decode", reason)


class Stages:
    """Decode ahead -> encode and pool, some batches at once -> commit, in the calling thread."""

    def __init__(
        self,
        plan: RunPlan,
        encode: BatchEncoder,
        writer: RunWriter,
        decoding: DecodeOptions,
        streams: tuple[int, int],
    ) -> None:
        self.plan, self.encode, self.writer, self.decoding = plan, encode, writer, decoding
        self.streams, self.threads = streams
        # By batch: what the header already says cannot be decoded, by index in the batch.
        self.unreadable: dict[int, dict[int, Failure]] = {}

    def run(self, todo: Sequence[int], progress: Progress, summary: Summary, stop: threading.Event) -> None:
        """Do the batches of ``todo``; a failed recording is a row, anything else ends the run."""
        import torch

        from extractor.decode import DecodeAhead

        audio = self.plan.audio(todo)
        recordings = sum(len(self.plan.batches[b]) for b in todo)
        progress.note(
            f"{len(self.plan.utterances):,} recordings planned; to do: {recordings:,} of them,"
            f" {audio / 3600:.2f} h, in batches: {len(todo):,}, padding {summary.padding_share:.1%}"
        )
        began = time.perf_counter()
        threads_before = torch.get_num_threads()
        pool = ThreadPoolExecutor(
            self.streams, "encode", initializer=torch.set_num_threads, initargs=(self.threads,)
        )
        longest = max((self.plan.audio([b]) for b in todo), default=0.0)
        batches = max(1, min(DECODED_AHEAD, int(AUDIO_AHEAD // max(longest, 1.0))))
        ahead = DecodeAhead(self._requests(todo), self.decoding, ahead=batches)
        try:
            with showing(progress, "embedding", recordings, audio, summary.padding_share), ahead, pool:
                finished = self._flow(todo, ahead, pool, progress, summary, stop)
        finally:
            torch.set_num_threads(threads_before)
        summary.seconds = time.perf_counter() - began
        summary.stopped = finished < recordings

    def _flow(
        self,
        todo: Sequence[int],
        ahead: DecodeAhead,
        pool: ThreadPoolExecutor,
        progress: Progress,
        summary: Summary,
        stop: threading.Event,
    ) -> int:
        """Recordings that were done: all, unless it was stopped."""
        jobs = self._jobs(todo, ahead)
        flying: set[Future[tuple[BatchResult, Seconds]]] = set()
        finished, audio, more = 0, 0.0, True
        while more or flying:
            # One batch more than streams: a stream that ends finds the next one waiting.
            while more and len(flying) <= self.streams and not stop.is_set():
                idle, asked = len(flying) < self.streams, time.perf_counter()
                job = next(jobs, None)
                summary.decode_wait += (time.perf_counter() - asked) if idle else 0.0
                more = job is not None
                if job is not None:
                    flying.add(pool.submit(self._timed, job))
            more = more and not stop.is_set()
            ready, flying = wait(flying, timeout=None, return_when=FIRST_COMPLETED)
            for future in ready:
                result, busy = future.result()
                summary.encode_seconds += busy / self.streams
                asked = time.perf_counter()
                refused = self.writer.commit(result)
                summary.write_seconds += time.perf_counter() - asked
                summary.embedded += len(result.rows) - len(refused)
                summary.rerun_in_fp32 += sum(r.precision != self.encode.model.dtype for r in result.rows)
                summary.audio += sum(r.num_samples for r in result.rows) / SAMPLE_RATE
                finished += len(self.plan.batches[result.batch])
                audio += self.plan.audio([result.batch])
                progress.update(Counts(finished, audio))
        return finished

    def _timed(self, job: Job) -> tuple[BatchResult, Seconds]:
        began = time.perf_counter()
        return self.encode(job), time.perf_counter() - began

    def _requests(self, todo: Sequence[int]) -> Iterator[Request]:
        """What to decode. Headers are read again right before: a million need not be kept, and a
        recording that changed or vanished since planning is noticed."""
        from extractor.probe import probe

        for b in todo:
            positions = self.plan.batches[b]
            utterances = [self.plan.utterances[p] for p in positions]
            found = probe(utterances, self.decoding.workers)
            planned = self.plan.num_samples[positions].tolist()
            headers = [_unchanged(*each) for each in zip(utterances, found, planned, strict=True)]
            self.unreadable[b] = {i: h for i, h in enumerate(headers) if isinstance(h, Failure)}
            readable = [
                (u, h) for u, h in zip(utterances, headers, strict=True) if not isinstance(h, Failure)
            ]
            yield [u for u, _ in readable], [h for _, h in readable]

    def _jobs(self, todo: Sequence[int], ahead: DecodeAhead) -> Iterator[Job]:
        from extractor.batch import Job

        for b, decoded in zip(todo, ahead, strict=True):
            positions = self.plan.batches[b]
            utterances = [self.plan.utterances[p] for p in positions]
            failures, good = self.unreadable.pop(b), iter(decoded)
            whole = [failures[i] if i in failures else next(good) for i in range(len(positions))]
            yield Job(b, positions.tolist(), utterances, whole)
