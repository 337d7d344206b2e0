"""Decode ahead -> encode and pool, some batches at once -> commit behind: a run's stages, overlapping."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, TypeVar

from extractor.progress import Counts, Progress, Summary, showing
from extractor.types import SAMPLE_RATE, BatchResult, Failure, Seconds

if TYPE_CHECKING:
    from extractor.audio.decode import DecodeOptions
    from extractor.augment.copies import Copies
    from extractor.plan.run_plan import RunPlan
    from extractor.run.batch import BatchEncoder
    from extractor.run.committing import Committer
    from extractor.run.indexing import Indexes
    from extractor.run.jobs import Jobs
    from extractor.run.staging import Job, Staged
    from extractor.store.writer import RunWriter

EMBEDDING = "embedding"  # what a run's progress is called while its batches are done

T = TypeVar("T")
R = TypeVar("R")


def num_cores() -> int:
    """Cores that this process may use, which containers and job schedulers limit."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def most_streams(device: str) -> int:
    """Batches to encode at once where there are enough.

    On a CPU one thread a batch wastes nothing on waiting for other threads; past eight cores the
    memory that batches take counts for more.
    """
    return min(num_cores(), 8) if device == "cpu" else 1


def num_streams(device: str, num_batches: int) -> int:
    """Batches of a plan to encode at once."""
    return max(1, min(most_streams(device), num_batches))


def threads_of(batch: int, num_batches: int, streams: int) -> int:
    """Threads for a batch: those left over when each stream had as many share all cores.

    It depends on the machine and the plan alone, not on what is left to do: another number of
    threads could round differently.
    """
    left_over = num_batches % streams
    sharing = left_over if batch >= num_batches - left_over else streams
    return max(1, num_cores() // sharing)


class Stages:
    """Decode ahead -> move to the device -> encode and pool, some batches at once -> commit behind.

    Decoding, encoding and committing have threads of their own; the calling thread hands batches on.
    """

    def __init__(
        self,
        plan: RunPlan,
        encode: BatchEncoder,
        writer: RunWriter,
        decoding: DecodeOptions,
        streams: int,
        copies: Copies | None = None,
        indexes: Indexes | None = None,
    ) -> None:
        self.plan, self.encode, self.writer, self.decoding = plan, encode, writer, decoding
        self.streams = streams
        self.copies, self.indexes = copies, indexes

    def run(self, todo: Sequence[int], progress: Progress, summary: Summary, stop: threading.Event) -> None:
        """Do the batches of ``todo``; a failed recording is a row, anything else ends the run."""
        import torch

        from extractor.run.committing import Committer
        from extractor.run.jobs import Jobs

        audio = self.plan.audio(todo)
        recordings = sum(len(self.plan.batches[b]) for b in todo)
        progress.note(
            f"{self.plan.num_recordings:,} recordings planned; to do: {recordings:,} of them,"
            f" {audio / 3600:.2f} h, in batches: {len(todo):,}, padding {summary.padding_share:.1%}"
        )
        began = time.perf_counter()
        threads_before = torch.get_num_threads()
        # On CUDA one more, which launches a batch while the one before is waited for.
        num_threads = self.streams + (self.encode.model.device.type == "cuda")
        pool = ThreadPoolExecutor(num_threads, "encode")
        jobs = Jobs(self.plan, todo, self.decoding, self.copies)
        busy = Busy(self.streams)
        tally = _Tally(self.plan, self.encode.model.dtype, self.indexes, progress, summary)
        committer = Committer(self.writer, tally)
        try:
            with (
                showing(progress, EMBEDDING, recordings, audio, summary.padding_share),
                jobs,
                pool,
                committer,
            ):
                self._flow(jobs, pool, num_threads, busy, committer, summary, stop)
        finally:
            torch.set_num_threads(threads_before)
        summary.encode_seconds = busy.seconds
        summary.write_seconds, summary.commit_wait = committer.write_seconds, committer.wait_seconds
        summary.smallest_pass = self.encode.memory.limit
        if self.encode.model.device.type == "cuda":
            summary.warm_up = busy.first + self.encode.model.recording_seconds
        summary.seconds = time.perf_counter() - began
        summary.stopped = tally.finished < recordings

    def _flow(
        self,
        jobs: Jobs,
        pool: ThreadPoolExecutor,
        num_threads: int,
        busy: Busy,
        committer: Committer,
        summary: Summary,
        stop: threading.Event,
    ) -> None:
        """Hand on batches until all are done or it is stopped."""
        from extractor.run.remarks import remember_quiet

        waiting, move = iter(jobs), self._mover()
        flying: set[Future[BatchResult]] = set()
        more = True
        while more or flying:
            # One batch more than threads: one that ends finds the next one waiting, on the device.
            while more and len(flying) <= num_threads and not stop.is_set():
                idle, asked = len(flying) < self.streams, time.perf_counter()
                job = next(waiting, None)
                summary.decode_wait += (time.perf_counter() - asked) if idle else 0.0
                more = job is not None
                if job is not None:
                    remember_quiet(self.writer.path, self.writer.shard, job.decoded)
                    flying.add(pool.submit(busy.during, self._encode, move(job)))
            more = more and not stop.is_set()
            ready, flying = wait(flying, timeout=None, return_when=FIRST_COMPLETED)
            for future in ready:
                committer.put(future.result())

    def _encode(self, staged: Staged) -> BatchResult:
        import torch

        # Of this thread alone.
        torch.set_num_threads(threads_of(staged.job.batch, len(self.plan.batches), self.streams))
        return self.encode(staged)

    def _mover(self) -> Callable[[Job], Staged]:
        """What begins to move a job's audio to the device: on CUDA beside the computing."""
        import torch

        from extractor.run.staging import stage

        device = self.encode.model.device
        stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        return lambda job: stage(job, device, stream)


class _Tally:
    """Counts what was committed, and feeds it to the indexes. Called in the committing thread."""

    def __init__(
        self, plan: RunPlan, dtype: str, indexes: Indexes | None, progress: Progress, summary: Summary
    ) -> None:
        self.plan, self.dtype, self.indexes = plan, dtype, indexes
        self.progress, self.summary = progress, summary
        self.finished, self.audio = 0, 0.0

    def __call__(self, result: BatchResult, refused: Sequence[Failure]) -> None:
        if self.indexes is not None:
            self.indexes.add(result, refused)
        self.summary.embedded += len(result.rows) - len(refused)
        self.summary.rerun_in_fp32 += sum(row.precision != self.dtype for row in result.rows)
        self.summary.audio += sum(row.num_samples for row in result.rows) / SAMPLE_RATE
        self.finished += len(self.plan.batches[result.batch])
        self.audio += self.plan.audio([result.batch])
        self.progress.update(Counts(self.finished, self.audio))


class Busy:
    """How long something was at work: ``seconds``, a full one where all ``streams`` were.

    More than ``streams`` at once count as full: on CUDA one waits while another is computed.
    """

    def __init__(self, streams: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self.streams, self.clock = streams, clock
        self.seconds: Seconds = 0.0
        self.first: Seconds = 0.0  # that the first work took: on CUDA kernels are compiled in it
        self._begun = False
        self._running, self._since = 0, clock()
        self._lock = threading.Lock()

    def during(self, work: Callable[[T], R], argument: T) -> R:
        """Do the work, and count it."""
        began = self._change(1)
        with self._lock:
            is_first, self._begun = not self._begun, True
        try:
            return work(argument)
        finally:
            ended = self._change(-1)
            if is_first:
                self.first = ended - began

    def _change(self, by: int) -> Seconds:
        """The time."""
        with self._lock:
            now = self.clock()
            self.seconds += (now - self._since) * min(self._running, self.streams) / self.streams
            self._running, self._since = self._running + by, now
        return now
