"""A picture of an augmented copy: waveform and log-mel spectrogram, before and after."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from extractor.types import SAMPLE_RATE

if TYPE_CHECKING:
    import numpy as np

    from extractor.run.render import Copy

TITLE_WIDTH = 110  # characters of a recipe in a line
DECIBELS = 80.0  # below the loudest: what the spectrogram shows


def draw_copy(copy: Copy, wav: Path) -> None:
    """Write a PNG beside ``wav`` with two columns: the recording as it is, and as the recipe made it.

    Both have the same scales, so that a stretch is longer and a gain is louder to the eye.
    """
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{copy.utterance.id}\n{textwrap.fill(copy.recipe, TITLE_WIDTH)}", fontsize=9)
    axes = figure.subplots(2, 2, sharex=True, sharey="row", height_ratios=(1, 1.6))
    waveforms = {"before": copy.before, "after": copy.after}
    spectrograms = [_log_mel(waveform) for waveform in waveforms.values()]
    top = max(float(mel.max()) for mel in spectrograms)
    for (name, waveform), mel, (upper, lower) in zip(waveforms.items(), spectrograms, axes.T, strict=True):
        seconds = len(waveform) / SAMPLE_RATE
        upper.plot(np.arange(len(waveform)) / SAMPLE_RATE, waveform, linewidth=0.4, color="#2b5c8a")
        upper.set_title(f"{name}: {seconds:.2f} s", fontsize=9)
        lower.imshow(
            mel.T,
            origin="lower",
            aspect="auto",
            extent=(0.0, seconds, 0, mel.shape[1]),
            vmin=top - DECIBELS,
            vmax=top,
            cmap="magma",
            interpolation="nearest",
        )
        lower.set_xlabel("seconds")
    axes[0, 0].set_ylabel("amplitude")
    axes[1, 0].set_ylabel("mel channel")
    axes[0, 0].set_xlim(0.0, max(map(len, waveforms.values())) / SAMPLE_RATE)
    figure.savefig(wav.with_suffix(".png"), dpi=110)


class _OneLayer:
    """Keeps the one layer of a spectral encoder."""

    frames: np.ndarray

    def add(self, layer: int, hidden: Any) -> None:
        self.frames = hidden.numpy()


def _log_mel(waveform: np.ndarray) -> np.ndarray:
    """float32 ``[num_samples]`` at 16 kHz -> decibels, ``[T, 80]``."""
    import numpy as np
    import torch

    from extractor.encoders.spectral import SpectralEncoder

    encoder, kept = SpectralEncoder("logmel", torch.device("cpu")), _OneLayer()
    encoder.forward([torch.from_numpy(np.ascontiguousarray(waveform))], kept)
    return kept.frames * (10.0 / np.log(10.0))
