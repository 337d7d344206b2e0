"""Decode ahead -> encode and pool, some batches at once -> commit behind: a run's stages, overlapping."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain, repeat
from typing import TYPE_CHECKING, TypeVar

from extractor.audio.ahead import Channel, DecodeAhead
from extractor.progress import Counts, Progress, Summary, showing
from extractor.types import SAMPLE_RATE, BatchResult, Failure, Header, Seconds, Utterance

if TYPE_CHECKING:
    from extractor.audio.decode import DecodeOptions
    from extractor.augment import Recipe
    from extractor.augment.copies import Copies
    from extractor.plan.run_plan import RunPlan
    from extractor.run.batch import BatchEncoder, DecodedBatch, DeviceBatch
    from extractor.run.indexing import Indexes
    from extractor.store.writer import RunWriter

EMBEDDING = "embedding"  # what a run's progress is called while its batches are done

DECODED_AHEAD = 3  # batches that wait at most
AUDIO_AHEAD: Seconds = 3600.0  # and this much audio, 230 MB, if several batches are to wait at all

# What a kill loses is what waits or is being written, at most so many bytes of rows, beside the batches
# that are being decoded and encoded; they are computed again by the next run.
MAX_BYTES = 256 << 20
MAX_BATCHES = 64
GROUP_BYTES = 128 << 20  # written as one file, which is then a part: `store.writer.MERGE_BYTES`

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


# Decoding ahead


@contextmanager
def decoded_batches(
    plan: RunPlan, todo: Sequence[int], decoding: DecodeOptions, copies: Copies | None = None
) -> Iterator[Iterator[DecodedBatch]]:
    """Some batches of a plan in their order, decoded ahead of whoever works on them."""
    longest = max((plan.audio([b]) for b in todo), default=0.0)
    most = max(1, min(DECODED_AHEAD, int(AUDIO_AHEAD // max(longest, 1.0))))
    with DecodeAhead(_requests(plan, todo, decoding.workers, copies), decoding, most) as ahead:
        yield (batch_of(decoded=decoded) for batch_of, decoded in ahead)


def _requests(
    plan: RunPlan, todo: Sequence[int], workers: int, copies: Copies | None
) -> Iterator[tuple[Callable[..., DecodedBatch], Sequence[Utterance], Sequence[Header | Failure]]]:
    """What to decode, and what makes a batch of it.

    Headers are read again right before: a million need not be kept, and a recording that changed or
    vanished since planning is noticed.
    """
    from extractor.audio.probe import probe
    from extractor.augment.drawing import RECORDING
    from extractor.run.batch import DecodedBatch

    recordings: dict[str, Utterance] = {}  # that may be taken in by copies of others
    if copies is not None and copies.needs_partners:
        recordings = {copies.original(u): u for u in plan.live_utterances}
    for b in todo:
        positions = plan.batches[b].tolist()
        utterances = [plan.utterances[p] for p in positions]
        recipes = [] if copies is None else [copies.recipe(utterance) for utterance in utterances]
        clips = list(dict.fromkeys(clip for recipe in recipes for clip in recipe.clips))
        # Noise is named by its path; a recording that left the input is gone.
        others = (recordings.get(clip.id) if clip.kind == RECORDING else None for clip in clips)
        taken = [u or Utterance(clip.id, clip.id) for u, clip in zip(others, clips, strict=True)]
        wanted = [*utterances, *taken]
        # A clip of noise has no planned length: any will do.
        planned = [*plan.num_samples[positions].tolist(), *(clip.num_samples for clip in clips)]
        found = zip(wanted, probe(wanted, workers), planned, chain(recipes, repeat(None)), strict=False)
        headers = [_unchanged(*each) for each in found]
        batch_of = partial(DecodedBatch.of, b, positions, utterances, recipes=recipes, clips=clips)
        yield batch_of, wanted, headers


def _unchanged(
    utterance: Utterance, header: Header | Failure, planned: int, recipe: Recipe | None
) -> Header | Failure:
    """The header, or a failure where the recording's length is not what it was when it was planned.

    ``planned``: the length of what the recipe, if there is one, makes of it; 0 is unknown.
    """
    from extractor.audio.probe import num_samples_16k

    if isinstance(header, Failure) or header.length != "exact" or planned == 0:
        return header
    now = num_samples_16k(header, utterance)
    now = now if recipe is None else recipe.num_samples(now)
    if now == planned:
        return header
    reason = (
        f"changed since planning: {now / SAMPLE_RATE:.2f} s long now,"
        f" {planned / SAMPLE_RATE:.2f} s then; run the same command again to take it as it is"
    )
    return Failure(utterance.id, utterance.path, "decode", reason)


# Committing behind


def num_bytes(result: BatchResult) -> int:
    """What a result takes in memory, but for its names and labels."""
    return sum(a.nbytes for a in result.pooled.values()) + sum(a.nbytes for a in result.frames)


def _fits(held: Sequence[BatchResult], result: BatchResult) -> bool:
    if len(held) >= MAX_BATCHES:
        return False
    return not held or sum(map(num_bytes, held)) + num_bytes(result) <= MAX_BYTES


class Committer(AbstractContextManager["Committer"]):
    """Commits results in the order in which they are put, in a thread of its own: all that wait as one file.

    >>> with Committer(writer, committed) as committer:
    ...     committer.put(result)

    ``committed(result, refused)`` is called in the committing thread once a result is permanent;
    ``refused`` are its recordings that the store could not hold. What is raised there or by the
    writer is raised again by `put` or at the end of the block, and nothing is committed after it.
    When the block ends by an error of the caller's, what waits is committed all the same; by
    Ctrl-C, what is being written is ended and the rest is dropped.

    ``wait_seconds`` is the time that callers have waited, ``write_seconds`` that of committing.
    """

    def __init__(
        self, writer: RunWriter, committed: Callable[[BatchResult, Sequence[Failure]], None]
    ) -> None:
        self.wait_seconds: Seconds = 0.0
        self.write_seconds: Seconds = 0.0
        self._writer, self._committed = writer, committed
        self._results = Channel(_fits)
        self._pool = ThreadPoolExecutor(1, "commit")
        self._thread: Future[None] = self._pool.submit(self._work)

    def put(self, result: BatchResult) -> None:
        """Hand over a result; waits for room. A result that is larger than all room goes alone."""
        began = time.perf_counter()
        goes_on = self._results.put(result)
        self.wait_seconds += time.perf_counter() - began
        if not goes_on:
            self._thread.result()  # raises what ended it

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        began = time.perf_counter()
        self._results.end(drop=error is not None and not isinstance(error, Exception))
        try:
            second = self._thread.exception()
        finally:
            self._pool.shutdown()
            self.wait_seconds += time.perf_counter() - began
        if second is not None and error is None:
            raise second
        if second is not None and error is not None and second is not error:
            error.add_note(f"and then: {second}")  # what ended the run matters more

    def _work(self) -> None:
        try:
            while self._write_next():
                pass
        finally:
            self._results.close()

    def _write_next(self) -> bool:
        """Whether there was anything. Nothing of it is kept while the next is waited for."""
        group = self._results.take(lambda taken: sum(map(num_bytes, taken)) >= GROUP_BYTES)
        began = time.perf_counter()
        with self._writer.together():
            refused = [self._writer.commit(result) for result in group]
        for result, failures in zip(group, refused, strict=True):
            self._committed(result, failures)
        self.write_seconds += time.perf_counter() - began
        return bool(group)


# All of it


@dataclass(frozen=True, slots=True)
class Stages:
    """Decode ahead -> move to the device -> encode and pool, some batches at once -> commit behind.

    Decoding, encoding and committing have threads of their own; the calling thread hands batches on.
    """

    plan: RunPlan
    encode: BatchEncoder
    writer: RunWriter
    decoding: DecodeOptions
    streams: int
    indexes: Indexes
    copies: Copies | None = None

    @property
    def num_threads(self) -> int:
        # On CUDA one more, which launches a batch while the one before is waited for.
        return self.streams + (self.encode.model.device.type == "cuda")

    def run(self, todo: Sequence[int], progress: Progress, summary: Summary, stop: threading.Event) -> None:
        """Do the batches of ``todo``; a failed recording is a row, anything else ends the run."""
        import torch

        plan, model = self.plan, self.encode.model
        audio = plan.audio(todo)
        recordings = sum(len(plan.batches[b]) for b in todo)
        finished = Counts(0, 0.0)

        def committed(result: BatchResult, refused: Sequence[Failure]) -> None:
            nonlocal finished
            self.indexes.add(result, refused)
            summary.embedded += len(result.rows) - len(refused)
            summary.rerun_in_fp32 += sum(row.precision != model.dtype for row in result.rows)
            summary.audio += sum(row.num_samples for row in result.rows) / SAMPLE_RATE
            finished = Counts(
                finished.recordings + len(plan.batches[result.batch]),
                finished.audio + plan.audio([result.batch]),
            )
            progress.update(finished)

        progress.note(
            f"{plan.num_recordings:,} recordings planned; to do: {recordings:,} of them,"
            f" {audio / 3600:.2f} h, in batches: {len(todo):,}, padding {summary.padding_share:.1%}"
        )
        began = time.perf_counter()
        threads_before = torch.get_num_threads()
        clock = StreamClock(self.streams)
        try:
            with (
                showing(progress, EMBEDDING, recordings, audio, summary.padding_share),
                decoded_batches(plan, todo, self.decoding, self.copies) as batches,
                ThreadPoolExecutor(self.num_threads, "encode") as pool,
                Committer(self.writer, committed) as committer,
            ):
                self._flow(batches, pool, clock, committer, summary, stop)
        finally:
            torch.set_num_threads(threads_before)
        summary.encode_seconds = clock.seconds
        summary.write_seconds, summary.commit_wait = committer.write_seconds, committer.wait_seconds
        summary.smallest_pass = self.encode.memory.limit
        if model.device.type == "cuda":
            summary.warm_up = clock.first + model.recording_seconds
        summary.seconds = time.perf_counter() - began
        summary.stopped = finished.recordings < recordings

    def _flow(
        self,
        batches: Iterator[DecodedBatch],
        pool: ThreadPoolExecutor,
        clock: StreamClock,
        committer: Committer,
        summary: Summary,
        stop: threading.Event,
    ) -> None:
        """Hand on batches until all are done or it is stopped."""
        import torch

        from extractor.run.batch import stage
        from extractor.run.remarks import remember_quiet

        device = self.encode.model.device
        stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        flying: set[Future[BatchResult]] = set()
        more = True
        while more or flying:
            # One batch more than threads: one that ends finds the next one waiting, on the device.
            while more and len(flying) <= self.num_threads and not stop.is_set():
                idle, began = len(flying) < self.streams, time.perf_counter()
                batch = next(batches, None)
                summary.decode_wait += (time.perf_counter() - began) if idle else 0.0
                more = batch is not None
                if batch is not None:
                    remember_quiet(self.writer.path, self.writer.shard, [row.decoded for row in batch.rows])
                    flying.add(pool.submit(clock.during, self._encode, stage(batch, device, stream)))
            more = more and not stop.is_set()
            ready, flying = wait(flying, timeout=None, return_when=FIRST_COMPLETED)
            for future in ready:
                committer.put(future.result())

    def _encode(self, there: DeviceBatch) -> BatchResult:
        import torch

        # PyTorch keeps the number for each thread of the pool.
        torch.set_num_threads(threads_of(there.batch.index, len(self.plan.batches), self.streams))
        return self.encode(there)


class StreamClock:
    """How long streams were at work: ``seconds``, a full one where all of them were.

    More than ``streams`` at once count as full: on CUDA one waits while another is computed.
    """

    def __init__(self, streams: int) -> None:
        self.streams = streams
        self.seconds: Seconds = 0.0
        self.first: Seconds = 0.0  # that the first work took: on CUDA kernels are compiled in it
        self._begun = False
        self._running, self._since = 0, time.perf_counter()
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
            now = time.perf_counter()
            self.seconds += (now - self._since) * min(self._running, self.streams) / self.streams
            self._running, self._since = self._running + by, now
        return now
