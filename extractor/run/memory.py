"""How much audio one forward pass may take: by the device's free memory, and by what did not fit."""

from __future__ import annotations

import threading
from collections.abc import Callable

from extractor.types import SAMPLE_RATE, Seconds

# What a frame takes in a transformer layer at its widest, in model widths: the layer's input and what it
# is added to, queries, keys and values, attention's output, the feed-forward's four before and four
# behind its activation; and as much again for what is freed and not yet used again.
WIDTHS_A_FRAME = 28
# The CNN goes in blocks, whatever the batch: three of its widest rows, 4096 frames * 64 * 512 values.
CNN_VALUES = 3 * 4096 * 64 * 512
STATISTICS = 4  # float32 values for each layer, utterance and channel, while it is pooled
FREE_SHARE = 0.6  # of the free memory; the rest is for the next batch's audio and what fragments
ITEM_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


def fitting_seconds(
    free_bytes: int, dim: int, num_layers: int, dtype: str, frames_a_second: float
) -> Seconds:
    """Audio whose forward pass fits in so much memory, weights loaded; 0 where nothing does.

    Reckoned with recordings of one second, where the ``num_layers`` layers that are pooled weigh most.
    """
    item = ITEM_BYTES[dtype]
    a_second = dim * (WIDTHS_A_FRAME * frames_a_second * item + STATISTICS * num_layers * 4)
    return max(0.0, (FREE_SHARE * free_bytes - CNN_VALUES * item) / a_second)


class Memory:
    """What a run learns of its device's memory as it goes. Safe to use from several threads.

    ``say`` is told when something does not fit for the first time.
    """

    def __init__(self, say: Callable[[str], None] | None = None) -> None:
        self._say = say
        self._limit: int | None = None
        self._lock = threading.Lock()

    @property
    def limit(self) -> Seconds | None:
        """Seconds of audio that a forward pass may still take; None while all fitted."""
        return None if self._limit is None else self._limit / SAMPLE_RATE

    def left_of(self, budget_samples: int) -> int:
        """Of a budget, what a forward pass may still take."""
        return budget_samples if self._limit is None else min(self._limit, budget_samples)

    def did_not_fit(self, num_samples: int) -> None:
        """A forward pass over so many samples ran out of memory: from now on at most half of it."""
        with self._lock:
            first = self._limit is None
            # One that was begun before the limit fell may fail after it, and says nothing new.
            self._limit = min(num_samples // 2, self._limit or num_samples)
        if first and self._say is not None:
            tried = num_samples / SAMPLE_RATE
            self._say(
                f"out of memory: {tried:.0f} s of audio do not fit in one forward pass; going on with half"
                " of it, or what fits then (--batch-seconds sets it; embeddings do not depend on it)"
            )
