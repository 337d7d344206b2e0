"""Pictures of recordings: waveform and log-mel spectrogram, before and after an augmentation."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from extractor.types import SAMPLE_RATE

if TYPE_CHECKING:
    import numpy as np

TITLE_WIDTH = 110  # characters of a recipe in a line
DECIBELS = 80.0  # below the loudest: what the spectrogram shows


def before_and_after(path: Path, before: np.ndarray, after: np.ndarray, title: str, recipe: str) -> None:
    """Write a PNG with two columns: the recording as it is, and as the recipe made it.

    Both have the same scales, so that a stretch is longer and a gain is louder to the eye.
    ``before``, ``after``: float32 ``[n]`` at 16 kHz.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{title}\n{textwrap.fill(recipe, TITLE_WIDTH)}", fontsize=9)
    axes = figure.subplots(2, 2, sharex=True, sharey="row", height_ratios=(1, 1.6))
    spectrograms = [_log_mel(waveform) for waveform in (before, after)]
    top = max(float(mel.max()) for mel in spectrograms)
    columns = zip(("before", "after"), (before, after), spectrograms, axes.T, strict=True)
    for name, waveform, mel, (upper, lower) in columns:
        _draw_waveform(upper, waveform, name)
        lower.imshow(
            mel.T,
            origin="lower",
            aspect="auto",
            extent=(0.0, len(waveform) / SAMPLE_RATE, 0, mel.shape[1]),
            vmin=top - DECIBELS,
            vmax=top,
            cmap="magma",
            interpolation="nearest",
        )
        lower.set_xlabel("seconds")
    axes[0, 0].set_ylabel("amplitude")
    axes[1, 0].set_ylabel("mel channel")
    axes[0, 0].set_xlim(0.0, max(len(before), len(after)) / SAMPLE_RATE)
    figure.savefig(path, dpi=110)


def _draw_waveform(axes: Any, waveform: np.ndarray, name: str) -> None:
    import numpy as np

    axes.plot(np.arange(len(waveform)) / SAMPLE_RATE, waveform, linewidth=0.4, color="#2b5c8a")
    axes.set_title(f"{name}: {len(waveform) / SAMPLE_RATE:.2f} s", fontsize=9)


def _log_mel(waveform: np.ndarray) -> np.ndarray:
    """Decibels, ``[T, 80]``."""
    import numpy as np
    import torch

    from extractor.encoders.spectral import SpectralEncoder

    encoder, kept = SpectralEncoder("logmel", torch.device("cpu")), _Kept()
    encoder.forward([torch.from_numpy(np.ascontiguousarray(waveform))], kept)
    return kept.frames * (10.0 / np.log(10.0))


class _Kept:
    """Keeps the one layer of a spectral encoder."""

    frames: np.ndarray

    def add(self, layer: int, hidden: Any) -> None:
        self.frames = hidden.numpy()
