"""A recording that was sent: bounded in bytes, length and time, looked up, and never kept.

Bytes are counted as they come in. The length is read from the header, and where a header cannot be
trusted, from the audio: a few hundred kilobytes can hold hours. It is a file only while it is decoded.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from extractor.audio.decode import DecodeOptions, decode_batch
from extractor.audio.headers import sniff
from extractor.audio.probe import bytes_in, probe
from extractor.errors import InputError
from extractor.types import Decoded, Failure, Seconds, Utterance

NAME = "recording"  # of the upload, wherever a name is needed
_BEYOND: Seconds = 0.05  # of audio past the limit: enough for a decoder to show that there is more

_Answer = TypeVar("_Answer")


@dataclass(frozen=True, slots=True)
class Limits:
    """What an upload may cost."""

    num_bytes: int = 32 << 20  # two minutes of 24-bit stereo at 44.1 kHz
    held_bytes: int = 256 << 20  # of all uploads that are being received or looked up
    duration: Seconds = 120.0
    head: Seconds = 10.0  # for any request's line and headers to come
    body: Seconds = 30.0  # and for what follows them
    time: Seconds = 60.0  # from its last byte to the answer
    at_once: int = 4  # uploads that are looked up, or wait for it
    workers: int = 2  # of which so many are looked up


class Refusal(Exception):
    """An upload that is not answered: ``status`` of HTTP, and the reason for a person."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


class Uploads(Generic[_Answer]):
    """Gives uploads to ``answer(path)`` in threads of its own.

    A thread that runs past the time limit cannot be stopped: its place is taken until it ends, so
    that hanging uploads never add up to more than ``at_once``.
    """

    def __init__(self, answer: Callable[[Path], _Answer], limits: Limits) -> None:
        self._answer, self.limits = answer, limits
        self._pool = ThreadPoolExecutor(limits.workers, thread_name_prefix="upload")
        self._taken = 0  # places; touched in the event loop alone, as is
        self._held = 0  # bytes

    async def take(self, chunks: AsyncIterator[bytes]) -> _Answer:
        """The answer to one upload. Raises Refusal, InputError, or what ``answer`` raises.

        One that is still being received takes no place: a slow sender is in nobody's way.
        """
        self._refuse_if_busy()  # rather than behind all of its bytes
        data = bytearray()
        try:
            await self._receive(chunks, data)
            self._refuse_if_busy()
            return await self._answered(data)
        finally:
            self._held -= len(data)

    def _refuse_if_busy(self) -> None:
        if self._taken >= self.limits.at_once or self._held > self.limits.held_bytes:
            raise Refusal(503, "busy with other recordings; try again in a moment")

    async def _answered(self, data: bytearray) -> _Answer:
        self._taken += 1
        working: Future[_Answer] = self._pool.submit(self._look_up, data)
        try:
            async with asyncio.timeout(self.limits.time):
                # Shielded: a place is free when the thread ends, not when nobody waits any more.
                return await asyncio.shield(asyncio.wrap_future(working))
        except TimeoutError:
            raise Refusal(504, f"took longer than {self.limits.time:g} s; try a shorter one") from None
        finally:
            if working.cancel() or working.done():
                self._taken -= 1
            else:
                loop = asyncio.get_running_loop()
                working.add_done_callback(lambda _: loop.call_soon_threadsafe(self._leave))

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _leave(self) -> None:
        self._taken -= 1

    async def _receive(self, chunks: AsyncIterator[bytes], data: bytearray) -> None:
        async for chunk in chunks:
            data += chunk
            self._held += len(chunk)
            if len(data) > self.limits.num_bytes:
                raise Refusal(413, f"larger than {self.limits.num_bytes / 2**20:g} MB")
            self._refuse_if_busy()

    def _look_up(self, data: bytearray) -> _Answer:
        if not data:
            raise InputError("empty file")
        # FFmpeg would guess at what has no signature: playlists, texts, pictures.
        if sniff(*bytes_in(memoryview(data))) == "unknown":
            raise InputError("not a recording in a format that is known here")
        with tempfile.TemporaryDirectory(prefix="hser-") as folder:
            path = Path(folder) / NAME
            path.write_bytes(data)
            refuse_long(path, self.limits.duration)
            return self._answer(path)


def refuse_long(path: Path, limit: Seconds) -> None:
    """Raises InputError for a recording that lasts longer, or whose header cannot be read."""
    header = probe([Utterance(NAME, str(path))], workers=1)[0]
    if isinstance(header, Failure):
        raise InputError(header.reason)
    refusal = f"longer than {limit:g} s, the most that this page takes; hser-lookup takes any length"
    if header.duration > limit:
        raise InputError(refusal)
    if header.length == "exact":
        return
    # Only a recording that is longer than it says has anything there; what precedes is not kept.
    behind = Utterance(NAME, str(path), limit, limit + _BEYOND)
    (found,) = decode_batch([behind], [header], DecodeOptions(workers=1, checksum=False))
    if isinstance(found, Decoded):
        raise InputError(refusal)
