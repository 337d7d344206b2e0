"""A row's own recording, as a browser plays it.

The path is the store's, never the request's; and what no header parser knows as audio is not sent,
so that a store from elsewhere cannot make the page hand out other files.
"""

from __future__ import annotations

import io
import re

import soundfile
from starlette.responses import FileResponse, Response

from extractor.audio.decode import DecodeOptions, decode_batch
from extractor.audio.probe import num_samples_16k, probe
from extractor.errors import InputError
from extractor.types import SAMPLE_RATE, Failure, Seconds, Utterance

# Containers that every browser plays, and what they are called there. Others are decoded here.
PLAYED: dict[str, str] = {
    "wav": "audio/wav",
    "flac": "audio/flac",
    "ogg": "audio/ogg",
    "opus": "audio/ogg",
    "mp3": "audio/mpeg",
}
MAX_DECODED: Seconds = 1800.0  # 58 MB as WAV


def audio_of(utterance: Utterance, channel: int | None = None, byte_range: str | None = None) -> Response:
    """The recording's own bytes, or for a segment, or what browsers do not play, a WAV at 16 kHz.

    ``channel``: that such a WAV is of; None: the average. ``byte_range``: the request's ``Range``.
    Raises InputError where there is nothing to play.
    """
    (header,) = probe([utterance], workers=1)
    if isinstance(header, Failure):
        raise InputError(f"{utterance.id}: {header.reason}")
    whole = utterance.start is None and utterance.end is None
    if whole and header.container in PLAYED:
        return FileResponse(utterance.path, media_type=PLAYED[header.container])
    duration = num_samples_16k(header, utterance) / SAMPLE_RATE
    if duration > MAX_DECODED:
        raise InputError(
            f"{utterance.id}: {duration / 60:.0f} min; of segments and of {header.container} up to"
            f" {MAX_DECODED / 60:.0f} min are played"
        )
    (decoded,) = decode_batch([utterance], [header], DecodeOptions(channel, workers=1, checksum=False))
    if isinstance(decoded, Failure):
        raise InputError(f"{utterance.id}: {decoded.reason}")
    wav = io.BytesIO()
    soundfile.write(wav, decoded.waveform, SAMPLE_RATE, format="WAV", subtype="PCM_16")
    return _part(wav.getvalue(), byte_range)


def _part(data: bytes, byte_range: str | None) -> Response:
    """Those bytes of a WAV that were asked for (RFC 9110, 14.2); without ranges Chromium does not seek."""
    headers = {"Accept-Ranges": "bytes"}
    match = re.fullmatch(r"bytes=(\d{0,15})-(\d{0,15})", byte_range or "", re.ASCII)
    if match is None or not any(match.groups()):  # of another form: may be ignored
        return Response(data, media_type="audio/wav", headers=headers)
    first, last = match.groups()
    start = int(first) if first else max(0, len(data) - int(last))
    stop = min(int(last) + 1 if first and last else len(data), len(data))
    if start >= stop:
        return Response(status_code=416, headers={**headers, "Content-Range": f"bytes */{len(data)}"})
    headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
    return Response(data[start:stop], 206, headers, media_type="audio/wav")
