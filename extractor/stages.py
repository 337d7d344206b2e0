"""Decode ahead -> encode and pool, some batches at once -> commit: the stages of a run, overlapping."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING

from extractor.progress import Counts, Progress, Summary, showing
from extractor.types import SAMPLE_RATE, BatchResult, Seconds

if TYPE_CHECKING:
    from extractor.batch import BatchEncoder, Job
    from extractor.copies import Copies
    from extractor.decode import DecodeOptions
    from extractor.indexing import Indexes
    from extractor.jobs import Jobs
    from extractor.run_plan import RunPlan
    from extractor.store.writer import RunWriter


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


class Stages:
    """Decode ahead -> encode and pool, some batches at once -> commit, in the calling thread."""

    def __init__(
        self,
        plan: RunPlan,
        encode: BatchEncoder,
        writer: RunWriter,
        decoding: DecodeOptions,
        streams: tuple[int, int],
        copies: Copies | None = None,
        indexes: Indexes | None = None,
    ) -> None:
        self.plan, self.encode, self.writer, self.decoding = plan, encode, writer, decoding
        self.streams, self.threads = streams
        self.copies, self.indexes = copies, indexes

    def run(self, todo: Sequence[int], progress: Progress, summary: Summary, stop: threading.Event) -> None:
        """Do the batches of ``todo``; a failed recording is a row, anything else ends the run."""
        import torch

        from extractor.jobs import Jobs

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
        jobs = Jobs(self.plan, todo, self.decoding, self.copies)
        try:
            with showing(progress, "embedding", recordings, audio, summary.padding_share), jobs, pool:
                finished = self._flow(jobs, pool, progress, summary, stop)
        finally:
            torch.set_num_threads(threads_before)
        summary.seconds = time.perf_counter() - began
        summary.stopped = finished < recordings

    def _flow(
        self,
        jobs: Jobs,
        pool: ThreadPoolExecutor,
        progress: Progress,
        summary: Summary,
        stop: threading.Event,
    ) -> int:
        """Recordings that were done: all, unless it was stopped."""
        waiting = iter(jobs)
        flying: set[Future[tuple[BatchResult, Seconds]]] = set()
        finished, audio, more = 0, 0.0, True
        while more or flying:
            # One batch more than streams: a stream that ends finds the next one waiting.
            while more and len(flying) <= self.streams and not stop.is_set():
                idle, asked = len(flying) < self.streams, time.perf_counter()
                job = next(waiting, None)
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
                if self.indexes is not None:
                    self.indexes.add(result, refused)
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
