"""Spectral encoders: log-mel and MFCC with deltas, through torchaudio, as one layer each.

Frames are 25 ms long and 10 ms apart, and lie wholly within the recording: nothing is padded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from extractor.types import SAMPLE_RATE, FrameSink, LatentMask

FRAME_SAMPLES = 400  # 25 ms
HOP_SAMPLES = 160  # 10 ms
NUM_MELS = 80
NUM_CEPSTRA = 40
LOG_FLOOR = 1e-10  # power that counts as silence

_MEL = {
    "n_fft": FRAME_SAMPLES,
    "hop_length": HOP_SAMPLES,
    "n_mels": NUM_MELS,
    "center": False,
    # Slaney's mel scale: with HTK's, 80 mels of 400 points leave some filters without a bin.
    "mel_scale": "slaney",
    "norm": "slaney",
}

Transform = Callable[[Tensor], Tensor]  # [num_samples] -> [T, D]


def _log_mel() -> Transform:
    from torchaudio.transforms import MelSpectrogram

    mel = MelSpectrogram(SAMPLE_RATE, **_MEL)
    return lambda waveform: mel(waveform).clamp(min=LOG_FLOOR).log().t()


def _mfcc() -> Transform:
    from torchaudio.functional import compute_deltas
    from torchaudio.transforms import MFCC

    # log_mels: natural log of the power. The alternative, decibels cut 80 below the recording's
    # peak, would make a frame depend on frames far away.
    mfcc = MFCC(SAMPLE_RATE, n_mfcc=NUM_CEPSTRA, log_mels=True, melkwargs=_MEL)

    def transform(waveform: Tensor) -> Tensor:
        cepstra = mfcc(waveform)  # [C, T]
        deltas = compute_deltas(cepstra)  # regression over 5 frames, edges repeated
        return torch.cat([cepstra, deltas, compute_deltas(deltas)]).t()

    return transform


SPECTRAL: dict[str, tuple[Callable[[], Transform], int]] = {
    "logmel": (_log_mel, NUM_MELS),
    "mfcc": (_mfcc, 3 * NUM_CEPSTRA),
}


class SpectralEncoder:
    """A spectral transform with an encoder's face: one layer, number 0, in fp32."""

    num_layers = 1
    min_samples = FRAME_SAMPLES
    max_samples: int | None = None
    stride = HOP_SAMPLES
    can_mask = False  # there is no CNN whose output could be masked

    def __init__(self, name: str, device: torch.device) -> None:
        make, self.dim = SPECTRAL[name]
        self.device = device
        # torchaudio's transforms are modules; their window and filter bank follow the device.
        with torch.device(device):
            self.transform = make()

    def num_frames(self, num_samples: int) -> int:
        return (num_samples - FRAME_SAMPLES) // HOP_SAMPLES + 1

    def operations(self, num_samples: int) -> tuple[float, float]:
        """Useful and padded floating-point operations: the FFT and the filter bank; none padded."""
        per_frame = 5 * FRAME_SAMPLES * 8.6 + 2 * NUM_MELS * (FRAME_SAMPLES // 2 + 1)  # log2(400) = 8.6
        return self.num_frames(num_samples) * per_frame, 0.0

    def normalise(self, waveforms: Sequence[Tensor]) -> list[Tensor]:
        return list(waveforms)

    @torch.inference_mode()
    def forward(
        self,
        waveforms: Sequence[Tensor],
        sink: FrameSink,
        last_layer: int | None = None,
        masks: Sequence[LatentMask | None] = (),
    ) -> None:
        sink.add(0, torch.cat([self.transform(w.to(self.device)) for w in waveforms]))
