"""How many samples an utterance has: its segment of the recording, and its length at 16 kHz."""

from __future__ import annotations

from extractor.errors import DecodeError
from extractor.types import MIN_SAMPLES, SAMPLE_RATE, Seconds, Utterance

END_SLACK: Seconds = 0.1  # a segment may end this much behind the recording: rounded time stamps


def resampled(num_frames: int, sample_rate: int) -> int:
    """Samples that soxr gives at 16 kHz: the exact ratio, rounded half up (tested)."""
    return (2 * num_frames * SAMPLE_RATE + sample_rate) // (2 * sample_rate)


def segment(utterance: Utterance, sample_rate: int) -> tuple[int, int | None]:
    """First sample and the one behind the last, at the source rate; ``None`` is the file's own end."""
    start = 0.0 if utterance.start is None else utterance.start
    end = utterance.end
    if not 0 <= start < float("inf") or (end is not None and not start < end < float("inf")):
        raise DecodeError(f"the segment {start} s to {end} s is empty or runs backwards")
    return round(start * sample_rate), None if end is None else round(end * sample_rate)


def clip_segment(utterance: Utterance, sample_rate: int, num_frames: int) -> tuple[int, int]:
    """The segment within a recording of ``num_frames``. Raises where it lies beyond the end."""
    start, stop = segment(utterance, sample_rate)
    duration = round(num_frames / sample_rate, 3)
    if start > 0 and start >= num_frames:
        raise DecodeError(f"the segment starts at {utterance.start} s, the recording lasts {duration} s")
    if stop is not None and stop > num_frames + END_SLACK * sample_rate:
        raise DecodeError(f"the segment ends at {utterance.end} s, the recording lasts {duration} s")
    return start, num_frames if stop is None else min(stop, num_frames)


def long_enough(num_samples: int) -> None:
    """Raises where an encoder's first frame already needs more than these samples at 16 kHz."""
    if num_samples < MIN_SAMPLES:
        raise DecodeError(
            f"too short: {num_samples} samples at 16 kHz, at least {MIN_SAMPLES} "
            f"({1000 * MIN_SAMPLES // SAMPLE_RATE} ms) are needed"
        )
