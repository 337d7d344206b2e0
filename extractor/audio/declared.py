"""What a file says of its own bytes, where its samples are left to a library: whether it was cut short.

The libraries shorten a cut recording without a word. Where a container of no parser in `formats` says how
many bytes it has, that is held against the file; one that was streamed, and does not say, is taken as it is.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import TypeAlias

At: TypeAlias = Callable[[int, int], bytes]  # at(offset, count): those bytes, fewer at the end

SPHERE_LINEAR = {"pcm", "ulaw", "alaw", "mu-law"}  # codings whose size follows from the number of samples
UNKNOWN_SIZE = (1 << 64) - 1
MAX_BLOCKS = 10_000  # walked before giving up


def declared_end(container: str, at: At, size: int) -> int:
    """Where the file ends by its own account; 0 where it does not say."""
    if container not in ENDS:
        return 0
    try:
        return max(ENDS[container](at, size), 0)
    except (struct.error, IndexError, ValueError):
        return 0  # cut inside its header, or no header: the library's to refuse


def _w64(at: At, _size: int) -> int:
    """Sony Wave64: the riff chunk's size counts the whole file, its own 24 bytes too."""
    (num_bytes,) = struct.unpack("<Q", at(16, 8))
    return 0 if num_bytes >= 1 << 63 else num_bytes


def _caf(at: At, size: int) -> int:
    """Apple's Core Audio Format: chunks of a 64-bit size, -1 for audio data to the end."""
    offset = 8
    for _ in range(MAX_BLOCKS):
        if offset >= size:
            break
        name, num_bytes = struct.unpack(">4sq", at(offset, 12))
        if num_bytes < 0:
            return 0
        offset += 12 + num_bytes
        if name == b"data":
            break
    return offset


def _sphere(at: At, _size: int) -> int:
    """NIST SPHERE: a text header, lines of name, type and value."""
    head = at(0, 1024).decode("latin-1")
    fields = dict(_sphere_fields(head))
    coding = fields.get("sample_coding", "pcm").split(",")
    if len(coding) > 1 or coding[0] not in SPHERE_LINEAR:  # shortened
        return 0
    samples, width = int(fields["sample_count"]), int(fields.get("sample_n_bytes", 1 + (coding[0] == "pcm")))
    return int(head[8:16]) + samples * width * int(fields.get("channel_count", 1))


def _sphere_fields(head: str) -> Iterator[tuple[str, str]]:
    for line in head.splitlines()[2:]:
        words = line.split(None, 2)
        if words and words[0] == "end_head":
            return
        if len(words) == 3:
            yield words[0], words[2].strip()


def _matroska(at: At, _size: int) -> int:
    """Matroska and WebM (RFC 8794): the header, then one segment; a browser's recorder knows no size."""
    offset = 4
    width, num_bytes = _vint(at, offset)
    offset += width + num_bytes
    if at(offset, 4) != b"\x18\x53\x80\x67":
        return 0
    width, num_bytes = _vint(at, offset + 4)
    unknown = num_bytes == (1 << 7 * width) - 1
    return 0 if unknown else offset + 4 + width + num_bytes


def _vint(at: At, offset: int) -> tuple[int, int]:
    """Its width in bytes, and its value."""
    (first,) = at(offset, 1)
    width = 9 - first.bit_length()
    return width, int.from_bytes(at(offset, width)) & ((1 << 7 * width) - 1)


def _avi(at: At, _size: int) -> int:
    (num_bytes,) = struct.unpack("<I", at(4, 4))
    return 0 if num_bytes in {0, 0xFFFFFFFF} else 8 + num_bytes


ENDS: dict[str, Callable[[At, int], int]] = {
    "w64": _w64,
    "caf": _caf,
    "sphere": _sphere,
    "matroska": _matroska,
    "avi": _avi,
}
