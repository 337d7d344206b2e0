"""Windows over recordings that are too long for one forward pass. Bottom level: arithmetic only."""

from __future__ import annotations

from extractor.types import SAMPLE_RATE, Piece, Seconds

# What two windows share, so that the frames at a cut have context on both sides. A multiple of
# every encoder's stride, as windows are.
OVERLAP: Seconds = 4.0
STEP: Seconds = 0.02  # windows are whole multiples of it: the longest stride of an encoder


def split_windows(
    num_samples: int, window_samples: int, stride: int, field: int, utterance: int = 0
) -> list[Piece]:
    """Cut a recording so that every one of its frames is kept from exactly one window.

    Args:
        num_samples: length of the recording.
        window_samples: longest stretch to encode at once, a multiple of ``stride`` and more than
            twice the overlap.
        stride, field: of the encoder: ``n`` samples give ``(n - field) // stride + 1`` frames.
        utterance: its index in the batch.

    Returns:
        One window with all frames for a recording that fits; else windows of ``window_samples``
        that overlap by `OVERLAP`, each frame kept from the window in which it is farther from the cut.
    """

    def frames(n: int) -> int:
        return (n - field) // stride + 1

    if num_samples <= window_samples:
        return [Piece(utterance, 0, num_samples, frames(num_samples), slice(0, frames(num_samples)))]
    overlap = round(OVERLAP * SAMPLE_RATE)
    hop = window_samples - overlap
    count = -(-(num_samples - overlap) // hop)
    windows = []
    for k in range(count):
        start, stop = k * hop, min(k * hop + window_samples, num_samples)
        first = 0 if k == 0 else overlap // 2 // stride
        end = frames(stop - start) if k == count - 1 else (hop + overlap // 2) // stride
        windows.append(Piece(utterance, start, stop, frames(stop - start), slice(first, end)))
    return windows
