"""Batches decoded in threads while the model works."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from time import perf_counter

from extractor.audio.decode import DecodeOptions, decode_batch
from extractor.audio.room import POLL, Stopped
from extractor.types import Decoded, Failure, Header, Seconds, Utterance

_END = None


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
                    return self._ready.get(timeout=POLL)
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
        except Stopped:
            return
        finally:
            pool.shutdown(cancel_futures=True)
            self._put(_END)

    def _put(self, results: list[Decoded | Failure] | None) -> None:
        while not self._stop.is_set():
            try:
                self._ready.put(results, timeout=POLL)
            except queue.Full:
                continue
            return
