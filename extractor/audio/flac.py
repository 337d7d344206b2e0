"""Whether a FLAC that DALI decoded is whole.

libFLAC puts silence in place of a block whose checksum is wrong, and raises a flag that DALI does not
read. So silent blocks have to prove that silence is what the file holds: a third of RAVDESS has some.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np

from extractor.audio.headers import Stated

PROBES_PER_BLOCK = 16  # samples looked at before a block is looked through


def intact(samples: np.ndarray, stated: Stated, data: np.ndarray) -> bool:
    """``samples``: float32 ``[num_frames, num_channels]``; ``data``: the file's bytes, uint8.

    False is "not sure": soundfile, which reads the flag, is to decide.
    """
    if not stated.block_frames:
        return False
    silent = _silent_blocks(samples, stated.block_frames)
    if not silent:
        return True
    if not stated.pcm_md5:  # not 16-bit, or an encoder that leaves it out
        return False
    if stated.num_channels == 1 and _holds_silent_frames(data.tobytes(), silent, stated.block_frames):
        return True
    pcm = np.multiply(samples, 2.0**15, dtype=np.float32).astype("<i2")
    return hashlib.md5(pcm.data, usedforsecurity=False).digest() == stated.pcm_md5


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
