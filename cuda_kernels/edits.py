"""What is done to one recording: to its waveform (`waveform`), or to its spectrogram (`spectral`)."""

from __future__ import annotations

import math
from dataclasses import dataclass

EPS = 1e-7  # added to the variance by wav2vec 2.0's feature extractor
MAX_SNR = 300.0  # dB either way: the weaker is then far below the other's last bit, even in float64


@dataclass(frozen=True, slots=True)
class WaveformEdit:
    """What is done to one recording. Raises ValueError for a value out of its range."""

    gain: float = 1.0  # a factor, on signal and noise
    snr_db: float | None = None  # None: no noise
    noise_key: int | None = None  # of philox.white_noise; None: the noise given to `edit_waveforms`
    masks: tuple[tuple[int, int], ...] = ()  # samples [first, last) set to zero, behind the noise

    def __post_init__(self) -> None:
        if not math.isfinite(self.gain):
            raise ValueError(f"gain {self.gain}: must be finite")
        if self.snr_db is not None and not abs(self.snr_db) <= MAX_SNR:
            raise ValueError(f"snr_db {self.snr_db}: must be within -{MAX_SNR:g} to {MAX_SNR:g} dB")
        if self.noise_key is not None and self.snr_db is None:
            raise ValueError("a noise_key without an snr_db: there is no noise to draw")
        if self.noise_key is not None and not 0 <= self.noise_key < 2**64:
            raise ValueError(f"noise_key {self.noise_key}: must be within 0 to 2^64 - 1")
        for first, last in self.masks:
            if not 0 <= first <= last:
                raise ValueError(f"mask [{first}, {last}): must be in order and from sample 0 on")


@dataclass(frozen=True, slots=True)
class SpectralEdit:
    """What is done to one recording's spectrogram. Counts are in frames and bins, ranges ``[first, last)``.

    Output frame ``t`` is read from the source position ``t * rates[0]`` up to the output frame ``knee``
    (which may lie between two frames), from there on at ``knee * rates[0] + (t - knee) * rates[1]``. Above
    1 is faster. Rates of ``(1, 1)`` copy frames bit for bit, whatever the knee, and no phase is touched.
    """

    num_frames: int  # of the result; the source's where the rates are (1, 1)
    rates: tuple[float, float] = (1.0, 1.0)
    knee: float = 0.0
    bands: tuple[tuple[int, int], ...] = ()  # bins set to zero in every frame of the result
    spans: tuple[tuple[int, int], ...] = ()  # frames of the result set to zero

    @property
    def copies(self) -> bool:
        """Whether frames are copied as they are."""
        return self.rates == (1.0, 1.0)

    @property
    def origin(self) -> float:
        """Where the map's second piece, drawn on backwards, meets source position 0.

        It turns that piece into ``(t - origin) * rates[1]``: a difference, then a product, which a
        compiler cannot fuse. Every backend thus rounds positions alike; where one sits on a whole number,
        one rounding decides which frames' phase advance is taken.
        """
        return self.knee * (1.0 - self.rates[0] / self.rates[1])

    def check(self, num_source_frames: int, num_bins: int) -> None:
        """ValueError for what no spectrogram of this size can be edited to."""
        if self.num_frames < 0 or (self.num_frames and not num_source_frames):
            raise ValueError(f"{self.num_frames} frames from {num_source_frames}")
        if not all(rate > 0 and math.isfinite(rate) for rate in self.rates):
            raise ValueError(f"rates {self.rates}: each must be above 0")
        if not (self.knee >= 0 and math.isfinite(self.knee)):
            raise ValueError(f"knee {self.knee}: must be an output frame, 0 or later")
        if self.copies and self.num_frames != num_source_frames:
            raise ValueError(
                f"rates of (1, 1) keep the {num_source_frames} frames: {self.num_frames} asked for"
            )
        for name, ranges, end in (("band", self.bands, num_bins), ("span", self.spans, self.num_frames)):
            for first, last in ranges:
                if not 0 <= first <= last <= end:
                    raise ValueError(f"{name} [{first}, {last}) is no part of [0, {end})")
