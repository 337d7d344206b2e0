"""Results to the store in a thread of their own: the encoder goes on while the disk writes.

    put -> waiting, bounded in bytes and batches -> one file of all that waits -> ``committed``

What a kill loses is what waits or is being written, at most `MAX_BYTES` of rows, beside the batches
that are being decoded and encoded; they are computed again by the next run.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING

from extractor.types import BatchResult, Failure, Seconds

if TYPE_CHECKING:
    from extractor.store.writer import RunWriter

MAX_BYTES = 256 << 20  # of results in memory: waiting, and being written
MAX_BATCHES = 64
GROUP_BYTES = 128 << 20  # written as one file, which is then a part: `store.writer.MERGE_BYTES`

Committed = Callable[[BatchResult, Sequence[Failure]], None]


class Committer:
    """Commits results in the order in which they are put.

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
        self,
        writer: RunWriter,
        committed: Committed,
        max_bytes: int | None = None,
        max_batches: int | None = None,
    ) -> None:
        """``max_bytes``, ``max_batches``: None is `MAX_BYTES`, `MAX_BATCHES`."""
        self.wait_seconds: Seconds = 0.0
        self.write_seconds: Seconds = 0.0
        self._writer, self._committed = writer, committed
        self._max_bytes, self._max_batches = max_bytes or MAX_BYTES, max_batches or MAX_BATCHES
        self._waiting: deque[BatchResult] = deque()
        self._writing: Sequence[BatchResult] = ()
        self._ending = False
        self._changed = threading.Condition()
        self._pool = ThreadPoolExecutor(1, "commit")
        self._thread: Future[None] = self._pool.submit(self._work)
        self._thread.add_done_callback(lambda _: self._notify())

    def put(self, result: BatchResult) -> None:
        """Hand over a result; waits for room. A result that is larger than all room goes alone."""
        asked = time.perf_counter()
        with self._changed:
            self._changed.wait_for(lambda: self._has_room(result) or self._thread.done())
            if not self._thread.done():
                self._waiting.append(result)
                self._changed.notify_all()
        self.wait_seconds += time.perf_counter() - asked
        if self._thread.done():
            self._thread.result()  # raises what ended it

    def close(self) -> None:
        """Wait until all is committed. Raises what committing raised. Safe to call twice."""
        asked = time.perf_counter()
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        try:
            self._thread.result()
        finally:
            self._pool.shutdown()
            self.wait_seconds += time.perf_counter() - asked

    def __enter__(self) -> Committer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        if not isinstance(error, Exception):
            with self._changed:
                self._waiting.clear()
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        self._pool.shutdown()
        second = self._thread.exception()
        if second is not None and second is not error:
            error.add_note(f"and then: {second}")  # what ended the run matters more

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _has_room(self, result: BatchResult) -> bool:
        held = [*self._waiting, *self._writing]
        if len(held) >= self._max_batches:
            return False
        return not held or sum(map(num_bytes, held)) + num_bytes(result) <= self._max_bytes

    def _work(self) -> None:
        while self._write_next():
            pass

    def _write_next(self) -> bool:
        """Whether there was anything. Nothing of it is kept while the next is waited for."""
        group = self._next()
        began = time.perf_counter()
        with self._writer.together():
            refused = [self._writer.commit(result) for result in group]
        for result, failures in zip(group, refused, strict=True):
            self._committed(result, failures)
        self.write_seconds += time.perf_counter() - began
        with self._changed:
            self._writing = ()
            self._changed.notify_all()
        return bool(group)

    def _next(self) -> Sequence[BatchResult]:
        """What waits, as much of it as one file is to hold; empty at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._ending)
            group, size = [], 0
            while self._waiting and size < GROUP_BYTES:
                group.append(self._waiting.popleft())
                size += num_bytes(group[-1])
            self._writing = group
            return group


def num_bytes(result: BatchResult) -> int:
    """What a result takes in memory, but for its names and labels."""
    return sum(a.nbytes for a in result.pooled.values()) + sum(a.nbytes for a in result.frames)
