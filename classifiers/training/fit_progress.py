"""Progress in fits, since fits are what takes the time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from extractor.progress import LOG_INTERVAL, clock_time

Say = Callable[[str], None]


class FitProgress:
    """Counts fits against how many there will be; says a line now and then, and when told to."""

    def __init__(
        self, say: Say | None = None, total: int = 0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.total, self.done = total, 0
        self._say, self._clock = say, clock
        self._began = self._said = clock()
        self._doing = ""

    def expect(self, fits: int) -> None:
        """That many more are to come."""
        self.total += fits

    def doing(self, what: str) -> None:
        """What the lines are about from now on."""
        self._doing = what

    def fitted(self) -> None:
        """One more is done."""
        self.done += 1
        self._say_now_and_then()

    def epoch(self, row: Mapping[str, float]) -> None:
        """Of a network's history: a fit of many minutes is not silent."""
        self._say_now_and_then(f", epoch {row['epoch']:.0f} of this one")

    def _say_now_and_then(self, more: str = "") -> None:
        if self._clock() - self._said >= LOG_INTERVAL:
            self.say(f"{self._doing}: {self.done:,}/{self.total:,} fits{more}")

    def say(self, line: str) -> None:
        """A line, with the time that is left."""
        if self._say is None:
            return
        self._said = self._clock()
        left = self.total - self.done
        if self.done and left > 0:
            per_fit = (self._said - self._began) / self.done
            line += f", {clock_time(per_fit * left)} left"
        self._say(line)
