"""What a recording's own bytes say of it: container, sample rate, channels, length. Nothing is decoded.

The libraries that decode shorten a cut recording without a word, and some allocate what a header
claims before they look at the file. So the headers are read here first, and a claim that the file's
size cannot bear is refused. The commonest containers have a parser (`PARSERS`). The rest are left to the
libraries; where they say how many bytes they have (`ENDS`), that is held against the file.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple, TypeAlias

from extractor.errors import DecodeError
from extractor.types import Header

At: TypeAlias = Callable[[int, int], bytes]  # at(offset, count): those bytes of a file, fewer at its end

MIN_SAMPLE_RATE = 1_000  # Hz; below it, nothing that a person said is left
MAX_SAMPLE_RATE = 1_000_000  # Hz; the highest in use is 768 kHz
MAX_CHANNELS = 255  # the most that FFmpeg or Ogg can name; microphone arrays have up to 128
TAIL_BYTES = 2 * 65_307  # the end of an Ogg file that is sure to hold the start of a page
SCAN_BYTES = 128 * 1024  # how far behind the tags an MPEG audio frame is looked for
MAX_CHUNKS = 10_000  # walked before giving up

# A header that claims more samples per byte than the codec can pack is a damaged one.
MAX_FRAMES_PER_BYTE = {"flac": 65_535 / 9, "opus": 5760, "mp3": 48}
MAX_FRAMES_PER_BYTE_ELSE = 8192  # Vorbis' longest block in one byte
# Data sizes that programs write to a pipe because they cannot come back and correct them.
STREAMED_SIZES = {0xFFFFFFFF, 0x80000000, 0x7FFFFFFF, 0x7FFFF000}


def sniff(at: At, size: int) -> str:
    """The container's name, from the bytes alone: suffixes lie. "unknown" where no row fits."""
    head = at(0, 16)
    for offset, magic, container in MAGIC:
        if head[offset : offset + len(magic)] == magic:
            if container in {"riff", "form"}:
                return FORM_TYPES.get(head[8:12], "unknown")
            return _ogg_codec(at) if container == "ogg" else container
    offset = _id3_end(at)
    if at(offset, 4) == b"fLaC":
        return "flac"
    if offset > 0 or (head[:1] == b"\xff" and len(head) > 1 and head[1] >= 0xE0):
        sync = at(offset, 2)
        adts = len(sync) == 2 and sync[0] == 0xFF and sync[1] & 0xF6 == 0xF0  # layer 0: AAC
        return "aac" if adts else "mp3"
    return "unknown"


def read_header(at: At, size: int) -> Header:
    """The header; of unknown length where the container has no parser here.

    Raises DecodeError with a reason for a person: empty, cut short, no samples, absurd.
    """
    if size == 0:
        raise DecodeError("empty file")
    container = sniff(at, size)
    if container in PARSERS:
        try:
            return check(PARSERS[container](at, size), size)
        except (struct.error, IndexError):
            raise DecodeError(f"cut short: the file ends inside its {container} header") from None
    try:
        end = ENDS[container](at, size) if container in ENDS else 0
    except (struct.error, IndexError, ValueError):
        end = 0  # cut inside its header, or no header: the library's to refuse
    if end > size:
        raise DecodeError(f"cut short: the header declares {end:,} bytes, the file holds {size:,}")
    return Header(container, length="unknown")


def check(header: Header, size: int) -> Header:
    """Refuses a header that no recording of this size can have."""
    if header.length == "unknown":
        return header
    check_format(header.sample_rate, header.num_channels)
    if header.num_frames <= 0:
        raise DecodeError("the header declares no samples")
    bound = MAX_FRAMES_PER_BYTE.get(header.container, MAX_FRAMES_PER_BYTE_ELSE)
    if header.num_frames > bound * size + 65_536:
        raise DecodeError(
            f"damaged or cut short: the header declares {header.duration:,.0f} s of audio, "
            f"more than {size:,} bytes can hold"
        )
    return header


def check_format(sample_rate: int, num_channels: int) -> None:
    """Refuses what no recording has, whether a header says so or the library that has opened the file."""
    if not MIN_SAMPLE_RATE <= sample_rate <= MAX_SAMPLE_RATE:
        raise DecodeError(f"the header declares a sample rate of {sample_rate:,} Hz")
    if not 1 <= num_channels <= MAX_CHANNELS:
        raise DecodeError(f"the header declares {num_channels:,} channels")


def _cut_short(declared: int, present: int) -> DecodeError:
    return DecodeError(
        f"cut short: the header declares {declared:,} bytes of audio, the file holds {max(0, present):,}"
    )


# --- RIFF (WAV, RF64) and AIFF -----------------------------------------------------------------

LINEAR = {1, 3, 6, 7}  # PCM, float, A-law, mu-law: a sample's place follows from its number
MPEG_IN_WAV = {0x50, 0x55}
EXTENSIBLE = 0xFFFE
AIFF_SAMPLE_BYTES = {b"fl32": 4, b"FL32": 4, b"fl64": 8, b"FL64": 8, b"ulaw": 1, b"alaw": 1}


def _chunks(at: At, layout: str) -> Iterator[tuple[bytes, int, int]]:
    """Name, declared size and place of the contents of each chunk behind the form's own head."""
    offset = 12
    for _ in range(MAX_CHUNKS):
        head = at(offset, 8)
        if len(head) < 8:
            return
        name, num_bytes = struct.unpack(layout, head)
        yield name, num_bytes, offset + 8
        offset += 8 + num_bytes + num_bytes % 2


def _wav(at: At, size: int) -> Header:
    codec = channels = rate = block_bytes = bits = fact = ds64_bytes = 0
    for name, num_bytes, body in _chunks(at, "<4sI"):
        if name == b"ds64":
            _riff_bytes, ds64_bytes = struct.unpack("<QQ", at(body, 16))
        elif name == b"fmt ":
            codec, channels, rate, _byte_rate, block_bytes, bits = struct.unpack("<HHIIHH", at(body, 16))
            if codec == EXTENSIBLE:
                (codec,) = struct.unpack("<H", at(body + 24, 2))  # the first field of the sub-format
        elif name == b"fact" and num_bytes >= 4:
            (fact,) = struct.unpack("<I", at(body, 4))
        elif name == b"data":
            break
    else:
        raise DecodeError("cut short: the WAV header is there, the audio data is not")
    declared = ds64_bytes if num_bytes == 0xFFFFFFFF and ds64_bytes else num_bytes
    data_bytes = _wav_data_bytes(at, body, declared, size)
    if rate == 0 and channels == 0:
        raise DecodeError("the WAV header gives neither a sample rate nor channels")
    if codec not in LINEAR:
        if data_bytes == 0:
            raise DecodeError("the header declares no samples")
        return Header("wav-mp3" if codec in MPEG_IN_WAV else "wav-coded", rate, channels, fact, "unknown")
    packed = channels * ((bits + 7) // 8)
    frame_bytes = block_bytes if packed and block_bytes % channels == 0 and block_bytes >= packed else packed
    # Only FFmpeg reads on where the header says that there is nothing.
    container = "wav-unfinished" if data_bytes and not declared else "wav"
    return Header(container, rate, channels, data_bytes // frame_bytes if frame_bytes else 0)


def _wav_data_bytes(at: At, body: int, declared: int, size: int) -> int:
    """Bytes of audio that the data chunk truly holds; raises where it declares more."""
    present = size - body
    if declared in STREAMED_SIZES:
        return present
    if declared == 0 and present > 0:
        # A recorder that died before it could write the size, unless a whole chunk follows.
        follows = at(body, 8)
        whole = len(follows) == 8 and body + 8 + struct.unpack("<4xI", follows)[0] <= size
        return 0 if whole and follows[:4].isalnum() else present
    if declared > present:
        raise _cut_short(declared, present)
    return declared


def _aiff(at: At, size: int) -> Header:
    header, frame_bytes = Header("aiff"), 0
    compressed = at(8, 4) == b"AIFC"
    for name, num_bytes, body in _chunks(at, ">4sI"):
        if name == b"COMM":
            channels, num_frames, bits, exponent, mantissa = struct.unpack(">HIHHQ", at(body, 18))
            rate = int(mantissa * 2.0 ** ((exponent & 0x7FFF) - 16_446)) if exponent < 0x4020 else 1 << 33
            codec = at(body + 18, 4) if compressed else b"NONE"
            linear = codec in AIFF_SAMPLE_BYTES or codec in {b"NONE", b"sowt", b"twos", b"in24", b"in32"}
            frame_bytes = channels * AIFF_SAMPLE_BYTES.get(codec, (bits + 7) // 8) if linear else 0
            header = Header("aiff", rate, channels, num_frames, "exact" if linear else "unknown")
        elif name == b"SSND":
            needed, present = header.num_frames * frame_bytes, min(size - body - 8, num_bytes)
            if body + num_bytes > size or needed > present:
                raise _cut_short(max(needed, num_bytes - 8), present)
            return header
    if header.num_channels and header.num_frames == 0:
        raise DecodeError("the header declares no samples")
    raise DecodeError("cut short: the AIFF header is there, the audio data is not")


# --- FLAC, Ogg ----------------------------------------------------------------------------------


def _flac(at: At, size: int) -> Header:
    offset = _id3_end(at)
    block = at(offset + 4, 4)
    if block[0] & 0x7F or int.from_bytes(block[1:]) < 34:
        raise DecodeError("damaged: the FLAC header (STREAMINFO) is malformed")
    info = at(offset + 8, 34)
    if len(info) < 34:
        raise DecodeError("cut short: the file ends inside its flac header")
    smallest, largest = struct.unpack(">HH", info[:4])
    packed = int.from_bytes(info[10:18])  # rate 20 bits, channels - 1 in 3, bits - 1 in 5, samples 36
    rate, channels, bits = packed >> 44, (packed >> 41 & 7) + 1, (packed >> 36 & 31) + 1
    num_frames = packed & (1 << 36) - 1
    if num_frames == 0:  # streamed: the encoder did not know; about half of PCM's size is usual
        guess = max(1, 2 * size * 8 // (channels * bits))
        return Header("flac-unfinished", rate, channels, guess, "estimate")  # libsndfile cannot seek in it
    block_frames = smallest if smallest == largest else 0
    md5 = info[18:34] if bits == 16 and any(info[18:34]) else b""
    return Header("flac", rate, channels, num_frames, "exact", block_frames, md5)


OGG_CODECS = ((b"\x01vorbis", "ogg"), (b"OpusHead", "opus"))  # others (FLAC, Speex): the libraries


def _ogg_codec(at: At) -> str:
    segments = at(26, 1)
    packet = at(27 + segments[0], 8) if segments else b""
    if len(packet) < 8:
        return "ogg"  # whose parser finds that it is cut short
    return next((name for magic, name in OGG_CODECS if packet.startswith(magic)), "ogg-other")


def _ogg(at: At, size: int) -> Header:
    """Length from the last page's granule position (RFC 3533, RFC 7845)."""
    packet = at(27 + at(26, 1)[0], 19)
    if packet.startswith(b"OpusHead"):
        # Opus is decoded at 48 kHz whatever rate the header remembers of the encoder's input.
        container, channels, rate = "opus", packet[9], 48_000
        (pre_skip,) = struct.unpack("<H", packet[10:12])
    else:
        container, pre_skip = "ogg", 0
        channels, rate = struct.unpack("<BI", packet[11:16])
    serial, granule = at(14, 4), -1
    tail_at = max(0, size - TAIL_BYTES)
    tail = at(tail_at, size - tail_at)
    page = tail.rfind(b"OggS")
    segments = tail[page + 26 : page + 27]
    table = tail[page + 27 : page + 27 + segments[0]] if segments else b""
    if page >= 0 and (
        not segments or len(table) < segments[0] or page + 27 + len(table) + sum(table) > len(tail)
    ):
        raise DecodeError("cut short: the file ends inside an Ogg page")
    while page >= 0 and granule < 0:  # pages on which no packet ends have the position -1
        (granule,) = struct.unpack("<q", tail[page + 6 : page + 14])
        chained = tail[page + 14 : page + 18] != serial
        page = tail.rfind(b"OggS", 0, page)
    if granule < 0:
        return Header(container, length="unknown")
    return Header(container, rate, channels, granule - pre_skip, "estimate" if chained else "stated")


# --- MPEG audio (MP3) ---------------------------------------------------------------------------

_KBPS = {  # by (MPEG-1?, layer); the index is four bits of the frame header
    (True, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_HZ = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}


class _Frame(NamedTuple):
    rate: int
    channels: int
    num_bytes: int
    samples: int
    side_bytes: int  # header and side information: the Xing tag lies behind them


def _mpeg_frame(head: bytes) -> _Frame | None:
    if len(head) < 4 or head[0] != 0xFF or head[1] < 0xE0:
        return None
    version, layer = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3)
    kbps_index, rate_index, padding = head[2] >> 4, head[2] >> 2 & 3, head[2] >> 1 & 1
    if version == 1 or layer == 4 or rate_index == 3 or kbps_index in {0, 15}:
        return None
    mpeg1, mono = version == 3, head[3] >> 6 == 3
    rate, bit_rate = _HZ[version][rate_index], 1000 * _KBPS[mpeg1, layer][kbps_index]
    samples = 384 if layer == 1 else 1152 if layer == 2 or mpeg1 else 576
    slot = 4 if layer == 1 else 1
    num_bytes = (samples // 8 // slot * bit_rate // rate + padding) * slot
    side = (17 if mono else 32) if mpeg1 else (9 if mono else 17)
    return _Frame(rate, 1 if mono else 2, num_bytes, samples, 4 + side)


def _id3_end(at: At) -> int:
    """Where an ID3v2 tag ends; 0 without one."""
    head = at(0, 10)
    if head[:3] != b"ID3" or len(head) < 10:
        return 0
    num_bytes = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
    return 10 + num_bytes + (10 if head[5] & 0x10 else 0)


def _mp3(at: At, size: int) -> Header:
    begin = _id3_end(at)
    if begin >= size:
        raise DecodeError("holds tags and no audio, or is cut short inside them")
    window = at(begin, SCAN_BYTES)
    place = window.find(b"\xff")
    while place >= 0:
        frame = _mpeg_frame(window[place : place + 4])
        first = begin + place
        if frame and (first + frame.num_bytes >= size or _mpeg_frame(at(first + frame.num_bytes, 4))):
            return _mp3_header(frame, at(first, 200), first, size)
        place = window.find(b"\xff", place + 1)
    if begin + len(window) >= size:
        raise DecodeError("holds no MPEG audio frames")
    return Header("mp3", length="unknown")


def _mp3_header(frame: _Frame, head: bytes, first: int, size: int) -> Header:
    """Length by the Xing or Info tag, else by the first frame's bit rate."""
    tag = head[frame.side_bytes :]
    flags = int.from_bytes(tag[4:8])
    estimate = Header("mp3", frame.rate, frame.channels, 0, "estimate")
    if tag[:4] not in {b"Xing", b"Info"} or not flags & 1:
        num_frames = max(1, (size - first) // frame.num_bytes) * frame.samples
        return replace(estimate, num_frames=num_frames)
    count = int.from_bytes(tag[8:12])
    declared_bytes = int.from_bytes(tag[12:16]) if flags & 2 else 0
    if declared_bytes > size - first:
        raise _cut_short(declared_bytes, size - first)
    # LAME's extension: samples that the encoder put before and behind the audio, 12 bits each.
    lame = 8 + sum(width for bit, width in ((1, 4), (2, 4), (4, 100), (8, 4)) if flags & bit)
    delays = int.from_bytes(tag[lame + 21 : lame + 24]) if tag[lame : lame + 4].isalpha() else 0
    num_frames = count * frame.samples - (delays >> 12) - (delays & 0xFFF)
    return replace(estimate, num_frames=max(num_frames, 1), length="stated")


# --- Containers whose samples are the libraries' to find: where the file ends by its own account ---

SPHERE_LINEAR = {"pcm", "ulaw", "alaw", "mu-law"}  # codings whose size follows from the number of samples


def _au(at: At, size: int) -> Header:
    offset, num_bytes = struct.unpack(">4xII", at(0, 12))
    if num_bytes != 0xFFFFFFFF and offset + num_bytes > size:
        raise _cut_short(num_bytes, size - offset)
    return Header("au", length="unknown")


def _w64(at: At, _size: int) -> int:
    """Sony Wave64: the riff chunk's size counts the whole file, its own 24 bytes too."""
    (num_bytes,) = struct.unpack("<Q", at(16, 8))
    return 0 if num_bytes >= 1 << 63 else num_bytes


def _caf(at: At, size: int) -> int:
    """Apple's Core Audio Format: chunks of a 64-bit size, -1 for audio data to the end."""
    offset = 8
    for _ in range(MAX_CHUNKS):
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
    lines = [line.split(None, 2) for line in head.partition("\nend_head")[0].splitlines()[2:]]
    fields = {words[0]: words[2].strip() for words in lines if len(words) == 3}
    coding = fields.get("sample_coding", "pcm").split(",")
    if len(coding) > 1 or coding[0] not in SPHERE_LINEAR:  # shortened
        return 0
    samples, width = int(fields["sample_count"]), int(fields.get("sample_n_bytes", 1 + (coding[0] == "pcm")))
    return int(head[8:16]) + samples * width * int(fields.get("channel_count", 1))


def _matroska(at: At, _size: int) -> int:
    """Matroska and WebM (RFC 8794): the header, then one segment; a browser's recorder knows no size."""

    def number(offset: int) -> tuple[int, int]:  # its width in bytes, and its value
        (first,) = at(offset, 1)
        width = 9 - first.bit_length()
        return width, int.from_bytes(at(offset, width)) & ((1 << 7 * width) - 1)

    segment = 4 + sum(number(4))
    if at(segment, 4) != b"\x18\x53\x80\x67":
        return 0
    width, num_bytes = number(segment + 4)
    return 0 if num_bytes == (1 << 7 * width) - 1 else segment + 4 + width + num_bytes


def _avi(at: At, _size: int) -> int:
    (num_bytes,) = struct.unpack("<I", at(4, 4))
    return 0 if num_bytes in {0, 0xFFFFFFFF} else 8 + num_bytes


# --- Tables -------------------------------------------------------------------------------------

MAGIC: tuple[tuple[int, bytes, str], ...] = (
    (0, b"RIFF", "riff"),
    (0, b"RF64", "riff"),
    (0, b"FORM", "form"),
    (0, b"fLaC", "flac"),
    (0, b"OggS", "ogg"),
    (0, b"riff\x2e\x91\xcf\x11", "w64"),
    (0, b"NIST_1A", "sphere"),
    (0, b".snd", "au"),
    (0, b"caff", "caf"),
    (4, b"ftyp", "mp4"),
    (4, b"moov", "mp4"),
    (0, b"\x1aE\xdf\xa3", "matroska"),
    (0, b"\x30\x26\xb2\x75", "asf"),
    (0, b"FLV\x01", "flv"),
    (0, b"#!AMR", "amr"),
    (0, b"wvpk", "wavpack"),
)
FORM_TYPES = {b"WAVE": "wav", b"AVI ": "avi", b"AIFF": "aiff", b"AIFC": "aiff"}
PARSERS: dict[str, Callable[[At, int], Header]] = {
    "wav": _wav,
    "flac": _flac,
    "ogg": _ogg,
    "opus": _ogg,
    "mp3": _mp3,
    "aiff": _aiff,
    "au": _au,
}
# The end of a file by its own account; 0 where it was streamed, or does not say.
ENDS: dict[str, Callable[[At, int], int]] = {
    "w64": _w64,
    "caf": _caf,
    "sphere": _sphere,
    "matroska": _matroska,
    "avi": _avi,
}
