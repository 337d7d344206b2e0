"""Decoded samples to what the encoders take: cut, mixed to mono, resampled to 16 kHz, checked.

The same for every backend: what a recording comes to does not depend on who decoded it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from extractor.audio.probe import long_enough, resampled, segment
from extractor.errors import DecodeError
from extractor.types import SAMPLE_RATE, Decoded, Failure, Header, Utterance

RESAMPLING_QUALITY = "HQ"  # soxr's default, 20 bits; VHQ (28 bits) is beyond what 16-bit speech holds
PREALLOCATED_SAMPLES = 8 * 3600 * SAMPLE_RATE  # trusted to a header; untouched pages cost nothing
LENGTH_SLACK_FRAMES = 4096  # codec blocks that decoders may leave off a length that is not exact
LENGTH_SLACK = 0.01  # and the share by which such a length may be wrong
# Two steps of 16-bit audio, 84 dB below full scale: channels that cancel leave the rounding of each, and
# silence has the last bit's dither. The softest speech is a thousand times as loud.
QUIET = 2.0**-14


class Longest(NamedTuple):
    """The most samples that a waveform may have."""

    num_samples: int
    why: str  # what one with more is


class Cut:
    """One utterance on its way out of a stream: samples ``[start, stop)`` of the source."""

    def __init__(
        self, utterance: Utterance, sample_rate: int, header: Header, rate: int, longest: Longest
    ) -> None:
        """``rate``: what it is to come out at, 16 kHz or the source's own. Raises DecodeError."""
        import soxr

        self.utterance, self.rate = utterance, rate
        self.start, stop = segment(utterance, sample_rate)
        self.stop = float("inf") if stop is None else stop
        self.end: int | None = None  # the source's, where it came before `stop`
        self.damage: DecodeError | None = None
        self._resampler = None
        if sample_rate != rate:
            self._resampler = soxr.ResampleStream(
                sample_rate, SAMPLE_RATE, 1, dtype="float32", quality=RESAMPLING_QUALITY
            )
        planned = max(0, int(min(self.stop, header.num_frames)) - self.start)
        expected = resampled(planned, sample_rate) if rate != sample_rate else planned
        self._longest = longest
        if expected > longest.num_samples:
            if header.length != "estimate":  # of which the stream itself tells
                raise DecodeError(longest.why)
            expected = longest.num_samples
        self.claimed_bytes = 4 * expected
        self._waveform = np.empty(min(expected, PREALLOCATED_SAMPLES * rate // SAMPLE_RATE), np.float32)
        self._filled = 0

    @property
    def num_bytes(self) -> int:
        return 4 * self._filled

    def fail(self, damage: DecodeError) -> None:
        """It takes no more, and lets go of what it has."""
        self.damage, self._waveform, self._filled = damage, np.empty(0, np.float32), 0

    def add(self, block: np.ndarray, position: int, channel: int | None) -> None:
        """Takes what is its own of a block ``[num_frames, num_channels]`` that starts at ``position``."""
        first = max(0, self.start - position)
        last = int(min(len(block), self.stop - position))
        if first >= last or self.damage is not None:
            return
        try:
            mono = mix(block[first:last], channel)
            self._append(mono if self._resampler is None else self._resampler.resample_chunk(mono))
        except DecodeError as error:
            self.fail(error)

    def finish(self) -> np.ndarray:
        if self._resampler is not None:
            self._append(self._resampler.resample_chunk(np.empty(0, np.float32), last=True))
        return self._waveform[: self._filled]

    def _append(self, samples: np.ndarray) -> None:
        end = self._filled + len(samples)
        if end > self._longest.num_samples:
            raise DecodeError(self._longest.why)
        if end > len(self._waveform):  # the header's length was an estimate
            self._waveform.resize(end + end // 2, refcheck=False)
        self._waveform[self._filled : end] = samples
        self._filled = end


def still_planned(found: Header, planned: Header) -> None:
    """Raises where a file is another than the one whose header was probed."""
    if found.length == "unknown":  # a library has to tell; asked again once it is open
        return
    exact = found.length == planned.length == "exact"
    slack = 0.0 if exact else LENGTH_SLACK_FRAMES + LENGTH_SLACK * planned.num_frames
    if (found.sample_rate, found.num_channels) != (planned.sample_rate, planned.num_channels) or abs(
        found.num_frames - planned.num_frames
    ) > slack:
        was, now = (
            f"{header.duration:.3f} s of {header.num_channels} channels at {header.sample_rate:,} Hz"
            for header in (planned, found)
        )
        raise DecodeError(f"changed since planning: was {was}, is {now}")


def complete(num_frames: int, sample_rate: int, header: Header) -> None:
    """Raises where a decoder met the end at another place than the header states."""
    if num_frames == 0 and (header.length == "estimate" or header.num_frames == 0):
        raise DecodeError("holds no audio")
    if header.length == "estimate":
        return
    expected = header.num_frames * sample_rate / header.sample_rate
    slack = 0.0
    if header.length != "exact" or sample_rate != header.sample_rate:
        slack = LENGTH_SLACK_FRAMES + LENGTH_SLACK * expected
    if num_frames < expected - slack or (header.length == "exact" and num_frames > expected + slack):
        raise DecodeError(
            f"damaged or cut short: the header declares {expected / sample_rate:.3f} s of audio, "
            f"{num_frames / sample_rate:.3f} s could be decoded"
        )


def mix(block: np.ndarray, channel: int | None) -> np.ndarray:
    """float32 ``[num_frames, num_channels]`` -> ``[num_frames]``."""
    num_channels = block.shape[1]
    if channel is not None:
        if channel >= num_channels:
            raise DecodeError(f"has no channel {channel}: it has {num_channels}, counted from 0")
        return np.ascontiguousarray(block[:, channel])
    if num_channels == 1:
        return block[:, 0]
    with np.errstate(over="ignore", invalid="ignore"):  # Inf and NaN are found by `checked`
        mono = block[:, 0] + block[:, 1]  # column by column: numpy is slow along a short axis
        for k in range(2, num_channels):
            mono += block[:, k]
        mono /= num_channels
    return mono


def resample(mono: np.ndarray, sample_rate: int) -> np.ndarray:
    """``[num_samples]`` to 16 kHz; the same bits as `Cut` gives block by block (tested)."""
    import soxr

    if sample_rate == SAMPLE_RATE:
        return mono
    return soxr.resample(mono, sample_rate, SAMPLE_RATE, quality=RESAMPLING_QUALITY)


def checked(
    utterance: Utterance,
    waveform_of: Callable[[], np.ndarray],
    checksum: bool,
    sample_rate: int = SAMPLE_RATE,
) -> Decoded | Failure:
    """What ``waveform_of`` gives, with its checksum; a Failure where it raises DecodeError."""
    try:
        waveform = waveform_of()
        long_enough(resampled(len(waveform), sample_rate))
        peak = _peak(waveform)
    except DecodeError as error:
        return Failure(utterance.id, utterance.path, "decode", str(error))
    digest = hashlib.sha256(waveform.data).hexdigest() if checksum else ""
    return Decoded(waveform, digest, sample_rate, peak <= QUIET)


def _peak(waveform: np.ndarray) -> float:
    # By the extremes, since NaN is one: `isfinite` of the whole would allocate a quarter of it.
    high, low = float(waveform.max()), float(waveform.min())
    if not (np.isfinite(high) and np.isfinite(low)):
        raise DecodeError("contains NaN or infinite samples")
    return max(high, -low)
