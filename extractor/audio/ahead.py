"""Batches decoded in threads while the model works, and what hands them from thread to thread."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Generic, TypeVar

from extractor.audio.decode import DecodeOptions, decode_batch
from extractor.audio.room import Stopped
from extractor.types import Decoded, Failure, Header, Utterance

T = TypeVar("T")


class Channel(Generic[T]):
    """From one thread to another, in order, no more at once than there is room for.

    ``fits(held, item)``: whether an item may come to those that are held. Held is what waits, and what
    was taken until the next is taken.
    """

    def __init__(self, fits: Callable[[Sequence[T], T], bool]) -> None:
        self._fits = fits
        self._waiting: deque[T] = deque()
        self._taken: Sequence[T] = ()
        self._ended = False  # nothing more comes
        self._closed = False  # nothing more is taken
        self._changed = threading.Condition()

    def put(self, item: T) -> bool:
        """Wait for room. False where nobody takes anything any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._fits([*self._taken, *self._waiting], item))
            if not self._closed:
                self._waiting.append(item)
                self._changed.notify_all()
            return not self._closed

    def take(self, enough: Callable[[Sequence[T]], bool] = bool) -> Sequence[T]:
        """What waits, until it is ``enough``, by default one; empty at the end."""
        with self._changed:
            self._taken = ()
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._waiting or self._ended or self._closed)
            taken: list[T] = []
            while self._waiting and not enough(taken):
                taken.append(self._waiting.popleft())
            self._taken = taken
            return taken

    def end(self, drop: bool = False) -> None:
        """Nothing more is put. ``drop``: what waits is not taken either."""
        with self._changed:
            self._ended = True
            if drop:
                self._waiting.clear()
            self._changed.notify_all()

    def close(self) -> None:
        """Nothing more is taken."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify_all()


class DecodeAhead(AbstractContextManager["DecodeAhead[T]"], Generic[T]):
    """Decodes batches in threads while the model works; at most ``ahead`` decoded ones wait.

    >>> with DecodeAhead(batches, DecodeOptions()) as decoded:
    ...     for tag, results in decoded:  # in the order of `batches`

    ``batches``, each with a tag that it comes out with, is iterated in another thread. What is raised
    there, or by a bug in decoding, is raised again in the consumer.
    """

    def __init__(
        self,
        batches: Iterable[tuple[T, Sequence[Utterance], Sequence[Header | Failure]]],
        options: DecodeOptions,
        ahead: int = 2,
    ) -> None:
        self._batches, self._options = batches, options
        # The one that the consumer has taken is held beside those that wait.
        self._decoded = Channel[tuple[T, list[Decoded | Failure]]](lambda held, _: len(held) <= ahead)
        self._stop = threading.Event()
        self._producer = ThreadPoolExecutor(1, thread_name_prefix="decode-ahead")

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[tuple[T, list[Decoded | Failure]]]:
        done = self._producer.submit(self._produce)
        try:
            while batch := self._decoded.take():
                yield batch[0]
            if not self._stop.is_set():
                done.result()  # raises what was raised in the thread
        finally:
            self.close()

    def close(self) -> None:
        """Ends the threads. What is being decoded is given up at its next block."""
        self._stop.set()
        self._decoded.close()
        self._producer.shutdown(cancel_futures=True)

    def _produce(self) -> None:
        pool = ThreadPoolExecutor(self._options.workers, thread_name_prefix="decode")
        try:
            for tag, utterances, headers in self._batches:
                if self._stop.is_set():
                    return
                decoded = decode_batch(utterances, headers, self._options, pool, self._stop)
                self._decoded.put((tag, decoded))
        except Stopped:
            return
        finally:
            pool.shutdown(cancel_futures=True)
            self._decoded.end()
