"""Short WAV, FLAC and Ogg recordings whole, in batches, through DALI; and whether that was all of them.

DALI does not look at libsndfile's error flag: what it gives for a damaged file is only to be trusted
together with the count of samples and, for FLAC, `intact`. libFLAC puts silence in place of a block whose
checksum is wrong, so where a block is silent the checksum of all has to prove that silence is what the
file holds: a third of RAVDESS has some.
"""

from __future__ import annotations

import hashlib
import queue
import threading
from typing import Any

import numpy as np

from extractor.audio.cut import still_planned
from extractor.audio.headers import read_header
from extractor.audio.probe import bytes_in, open_recording
from extractor.audio.readers import dali_library
from extractor.types import Header, Seconds

MAX_SECONDS: Seconds = 60.0  # longer recordings are streamed: DALI holds them whole
MAX_BYTES = 64 << 20  # of one recording, as a file and as float32 at the source rate
BATCH = 64  # recordings in one call
BATCH_BYTES = 64 << 20  # float32 at the source rate in one call
BESIDE_AUDIO_BYTES = 1 << 20  # of tags and pictures, in a file that DALI is to hold whole
ARENA_BYTES = 32 << 20  # of encoded files, kept by each thread
PROBES_PER_BLOCK = 16  # samples looked at before a block is looked through


def decoded_bytes(header: Header) -> int:
    """What DALI allocates: the file whole, at its own rate."""
    return 4 * header.num_frames * header.num_channels


# --- Files in memory ----------------------------------------------------------------------------


class _Arena(threading.local):
    """Memory for a batch's files, used again for the thread's next: fresh pages cost more than reading a
    WAV. DALI has read a batch's files when it returns, so they may be overwritten."""

    def __init__(self) -> None:
        self._bytes = np.empty(0, np.uint8)
        self._used = 0

    def clear(self) -> None:
        if len(self._bytes) < self._used:
            self._bytes = np.empty(min(2 * self._used, ARENA_BYTES), np.uint8)
        self._used = 0

    def take(self, num_bytes: int) -> np.ndarray:
        start = self._used
        self._used += num_bytes
        fits = self._used <= len(self._bytes)
        return self._bytes[start : self._used] if fits else np.empty(num_bytes, np.uint8)


arena = _Arena()


def load(path: str, planned: Header) -> tuple[np.ndarray, Header] | None:
    """A file's bytes, uint8, in the thread's `arena`, and its header, read again.

    None where it is not for DALI after all, or cannot be read. Whatever is wrong with it is met again where
    it is streamed, which finds the reason.
    """
    try:
        with open_recording(path) as file:
            size = file.seek(0, 2)
            # Much more than its audio takes in any coding is something else, not to be held in memory.
            if size > min(MAX_BYTES, 2 * decoded_bytes(planned) + BESIDE_AUDIO_BYTES):
                return None
            file.seek(0)
            data = arena.take(size)
            if file.readinto(data.data) != size:  # type: ignore[attr-defined]
                return None
        header = read_header(*bytes_in(data.data))
        still_planned(header, planned)
    except Exception:  # noqa: BLE001 - this one file's fault, of which the streaming reader says what it is
        return None
    # The length of an Ogg file of several streams is a guess, which DALI would allocate.
    return None if header.length in ("estimate", "unknown") else (data, header)


# --- DALI itself --------------------------------------------------------------------------------

_idle_contexts: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()  # one to a thread at a time


def decode(files: list[np.ndarray]) -> list[tuple[np.ndarray, int] | None]:
    """Whole files in memory (uint8) -> samples and rate of each; ``None`` where DALI cannot.

    One bad file fails DALI's whole batch, whatever it raises, so then each is tried alone; another library
    says what is wrong with one that fails by itself.
    """
    try:
        return list(_decode_at_once(files))
    except Exception:  # noqa: BLE001 - of one of these files; nothing but they went in
        pass
    if len(files) == 1:
        return [None]
    return [decode([file])[0] for file in files]


def _decode_at_once(files: list[np.ndarray]) -> list[tuple[np.ndarray, int]]:
    ndd = dali_library()
    assert ndd is not None
    try:
        device, context = _idle_contexts.get_nowait()
    except queue.Empty:
        # The CPU by name: by default DALI takes a GPU where there is one, and memory on it. One thread:
        # the threads that call decode in parallel, and none waits for the slowest of a batch.
        device = ndd.Device("cpu")
        with device:
            context = ndd.EvalContext(thread_pool=ndd.ThreadPool(1))
    try:
        # Synchronous: errors are raised here, with their message, and no thread is left behind.
        with device, context, ndd.EvalMode.sync_cpu:
            samples, rates = ndd.decoders.audio(ndd.as_batch(files), dtype=ndd.float32)
            rates = [int(rate) for rate in np.asarray(ndd.as_tensor(rates)).ravel()]
            return list(zip([np.asarray(tensor) for tensor in samples.tensors], rates, strict=True))
    finally:
        _idle_contexts.put((device, context))


# --- Whether a FLAC is whole --------------------------------------------------------------------


def intact(samples: np.ndarray, header: Header) -> bool:
    """``samples``: float32 ``[num_frames, num_channels]``.

    False is "not sure": soundfile, which reads the flag, is to decide.
    """
    size = header.block_frames
    if not size:
        return False
    num_whole = len(samples) // size
    blocks = samples[: num_whole * size].reshape(num_whole, size * samples.shape[1])
    seemingly = np.flatnonzero(~blocks[:, :: max(1, size // PROBES_PER_BLOCK)].any(axis=1))
    tail = samples[num_whole * size :]
    if not (len(tail) and not tail.any()) and all(blocks[k].any() for k in seemingly):
        return True
    if not header.pcm_md5:  # not 16-bit, or an encoder that leaves it out
        return False
    pcm = np.multiply(samples, 2.0**15, dtype=np.float32).astype("<i2")
    return hashlib.md5(pcm.data, usedforsecurity=False).digest() == header.pcm_md5
