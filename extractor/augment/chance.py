"""Random numbers for drawing: functions of what they are drawn for, never of a state.

A draw depends on the run's seed, the recording's id, the number of the copy and the place in the
augmentation that asks, and on nothing else: not on order, batch mates, workers or a resume.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from extractor.augment.parameters import Range

_BLOCK = 4  # numbers at a time: most draws need no more
DECIMALS = 6  # of a drawn parameter: below what can be heard, and texts stay short


class Random:
    """The numbers of one place, from Philox4x32-10 under a key made of ``parts``.

    ``parts`` are what the draw may depend on: seed, recording, copy, place in the augmentation.
    """

    def __init__(self, *parts: str | int) -> None:
        self._parts = parts
        self._key: int | None = None
        self._block: list[float] = []
        self._used = 0

    def inside(self, place: int) -> Random:
        """The numbers of the ``place``-th augmentation inside this one."""
        return Random(*self._parts, place)

    def key(self) -> int:
        """64 bits for noise or spans that are made later."""
        from cuda_kernels.philox import derive_key

        return derive_key(*self._parts, "samples")

    def uniform(self) -> float:
        """Uniform in [0, 1)."""
        from cuda_kernels.philox import derive_key, uniforms

        if self._key is None:
            self._key = derive_key(*self._parts)
        if self._used % _BLOCK == 0:
            self._block = uniforms(self._key, _BLOCK, first=self._used).tolist()
        self._used += 1
        return self._block[(self._used - 1) % _BLOCK]

    def number(self, low: float, high: float) -> float:
        """Uniform in [low, high], of six decimals."""
        drawn = round(low + self.uniform() * (high - low), DECIMALS)
        return min(max(drawn, low), high)

    def within(self, interval: Range) -> float:
        return self.number(*interval)

    def index(self, count: int) -> int:
        """Uniform in 0 .. count - 1."""
        # u < 1, but u * count may be rounded up to count itself when count is large.
        return min(int(self.uniform() * count), count - 1)

    def whole(self, low: int, high: int) -> int:
        """Uniform in low .. high, both included."""
        return low + self.index(high - low + 1)

    def weighted(self, weights: Sequence[float]) -> int:
        """An index, with a probability proportional to its weight."""
        sums = list(accumulate(weights))
        point = self.uniform() * sums[-1]
        return next((i for i, total in enumerate(sums) if point < total), len(sums) - 1)

    def distinct(self, count: int, below: int) -> list[int]:
        """``count`` different whole numbers of 0 .. below - 1, sorted (Floyd's sampling).

        Robert Floyd, "A sample of brilliance", CACM 30(9), 1987: one draw for each number.
        """
        chosen: set[int] = set()
        for last in range(below - count, below):
            drawn = self.whole(0, last)
            chosen.add(last if drawn in chosen else drawn)
        return sorted(chosen)
