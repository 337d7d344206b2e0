"""Short WAV, FLAC and Ogg recordings whole, in batches, through DALI; and whether that was all of them.

DALI does not look at libsndfile's error flag: what it gives for a damaged file is only to be trusted
together with the count of samples and, for FLAC, `intact`. libFLAC puts silence in place of a block whose
checksum is wrong, so silent blocks have to prove that silence is what the file holds: a third of RAVDESS
has some.
"""

from __future__ import annotations

import hashlib
import queue
import threading
from functools import lru_cache
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
    except Exception:  # noqa: BLE001
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


def intact(samples: np.ndarray, header: Header, data: np.ndarray) -> bool:
    """``samples``: float32 ``[num_frames, num_channels]``; ``data``: the file's bytes, uint8.

    False is "not sure": soundfile, which reads the flag, is to decide.
    """
    if not header.block_frames:
        return False
    silent = _silent_blocks(samples, header.block_frames)
    if not silent:
        return True
    if not header.pcm_md5:  # not 16-bit, or an encoder that leaves it out
        return False
    if header.num_channels == 1 and _holds_silent_frames(data.tobytes(), silent, header.block_frames):
        return True
    pcm = np.multiply(samples, 2.0**15, dtype=np.float32).astype("<i2")
    return hashlib.md5(pcm.data, usedforsecurity=False).digest() == header.pcm_md5


def _silent_blocks(samples: np.ndarray, block_frames: int) -> dict[int, int]:
    """Number -> size of each block that is nothing but zeros; the last one may be shorter."""
    num_whole = len(samples) // block_frames
    blocks = samples[: num_whole * block_frames].reshape(num_whole, block_frames * samples.shape[1])
    probed = blocks[:, :: max(1, block_frames // PROBES_PER_BLOCK)].any(axis=1)
    silent = {int(k): block_frames for k in np.flatnonzero(~probed) if not blocks[k].any()}
    tail = samples[num_whole * block_frames :]
    if len(tail) and not tail.any():
        silent[num_whole] = len(tail)
    return silent


def _holds_silent_frames(data: bytes, silent: dict[int, int], block_frames: int) -> bool:
    """Whether the file holds, checksums and all, the frame that codes each block as constant zero."""
    offset = data.find(b"fLaC") + 4
    last = False
    while not last and offset + 4 <= len(data):  # over the metadata to the first audio frame
        last = data[offset] >= 0x80
        offset += 4 + int.from_bytes(data[offset + 1 : offset + 4])
    head = data[offset : offset + 4]
    return len(head) == 4 and all(
        _silent_frame(head, k, size if size < block_frames else 0) in data for k, size in silent.items()
    )


@lru_cache(maxsize=4096)
def _silent_frame(head: bytes, number: int, size: int) -> bytes:
    """A mono 16-bit frame of constant zero (RFC 9639, section 9).

    ``head``: the first four bytes of the file's first frame: sync code, block size and rate, channels
    and bits, the same in all frames but for the ``size`` of a shorter last one (0: not shorter).
    """
    explicit = b""
    if size:
        wide = size > 256
        head = head[:2] + bytes([(0x70 if wide else 0x60) | head[2] & 0x0F]) + head[3:]
        explicit = (size - 1).to_bytes(2 if wide else 1)
    frame = head + chr(number).encode("utf-8", "surrogatepass") + explicit
    frame += bytes([_crc(frame, 8, 0x07)])
    frame += b"\0\0\0"  # subframe: constant, no wasted bits; then its value
    return frame + _crc(frame, 16, 0x8005).to_bytes(2)


def _crc(data: bytes, bits: int, polynomial: int) -> int:
    crc, top = 0, 1 << bits - 1
    for byte in data:
        crc ^= byte << bits - 8
        for _ in range(8):
            crc = (crc << 1 ^ (polynomial if crc & top else 0)) & (1 << bits) - 1
    return crc
