"""The memory that all decoders of a process take together.

A recording takes what its header claims before it is decoded, and waits until that is there. What a
header claims may be wrong: one that outgrows its claim while others hold the rest lets go of all it
holds and is decoded again when it can have everything. Nobody waits while holding, so nobody waits
for ever.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np

from extractor.errors import DecodeError
from extractor.types import Seconds

SHARE = 1 / 4  # of the machine's memory, where nothing else is asked for
POLL: Seconds = 0.1  # how soon a blocked thread sees that the other side has gone
CGROUPS = Path("/sys/fs/cgroup")


class Stopped(BaseException):
    """The consumer has gone; what is being decoded is of no use. No fault of a file: never caught as one."""


class NoRoom(Exception):
    """A recording has outgrown its claim, and others hold the rest."""


class Room:
    """``budget`` bytes, taken in the order of asking. Safe to use from several threads.

    ``excess``: what decoded waveforms may hold together beyond their headers' claims, on which the plan
    has counted; by default a quarter of the machine's memory.
    """

    def __init__(self, budget: int, excess: int | None = None) -> None:
        self.budget = budget
        self._excess = int(SHARE * machine_bytes()) if excess is None else excess
        self._held = 0  # by recordings that are being decoded
        self._kept = 0  # by decoded ones, beyond their claims
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()

    @contextmanager
    def take(self, num_bytes: int, stop: threading.Event) -> Iterator[Claim]:
        """Holds so much, or all of it where that is less. Raises Stopped."""
        ticket, claim = object(), min(num_bytes, self.budget)
        with self._changed:
            self._waiting.append(ticket)
            try:
                while self._waiting[0] is not ticket or self._held + claim > self.budget:
                    if stop.is_set():
                        raise Stopped
                    self._changed.wait(POLL)
                self._held += claim
            finally:
                self._waiting.remove(ticket)
                self._changed.notify_all()
        taken = Claim(self, claim)
        try:
            yield taken
        finally:
            self.change(-taken.num_bytes)

    def change(self, num_bytes: int) -> bool:
        """Takes so much more, or gives it back; False where it is not there."""
        with self._changed:
            if self._held + num_bytes > self.budget:
                return False
            self._held += num_bytes
            self._changed.notify_all()
            return True

    def keep(self, waveform: np.ndarray, excess: int) -> None:
        """Counts what a waveform holds beyond its header's claim, for as long as it is there.

        Waiting would not help: what holds the rest may be of the same batch. Raises DecodeError.
        """
        if excess <= 0:
            return
        with self._changed:
            if self._kept + excess > self._excess:
                raise DecodeError(
                    f"unpacks to {excess:,} bytes more than its header leads to expect, and others like it"
                    " fill the memory for decoding; write its length into its header, or try it again with"
                    " --retry-failed"
                )
            self._kept += excess
        # What a view is of, or else an array's slices could outlive it.
        weakref.finalize(waveform if waveform.base is None else waveform.base, self._let_go, excess)

    def _let_go(self, excess: int) -> None:
        with self._changed:  # reentrant: a waveform may be collected anywhere
            self._kept -= excess


class Claim:
    """What one recording holds of the room."""

    def __init__(self, room: Room, num_bytes: int) -> None:
        self._room, self.num_bytes = room, num_bytes

    def need(self, num_bytes: int) -> None:
        """Raises NoRoom where others hold the rest, DecodeError where there is no more than it holds."""
        more = num_bytes - self.num_bytes
        if more <= 0:
            return
        if num_bytes > self._room.budget:
            raise DecodeError(
                f"needs more memory than decoding may take, {size_text(self._room.budget)}"
                " (--decode-memory); cut it with start and end in a manifest"
            )
        if not self._room.change(more):
            raise NoRoom
        self.num_bytes = num_bytes


def size_text(num_bytes: int) -> str:
    """``5.8 GiB`` or ``20 MiB``."""
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.3g} MiB"


@cache
def machine_room() -> Room:
    """The one that all decoders of this process share unless they are given another."""
    return Room(int(SHARE * machine_bytes()))


def room_of(gib: float | None) -> Room:
    """So many GiB, or the process's own room."""
    return machine_room() if gib is None else Room(int(gib * 2**30))


def machine_bytes() -> int:
    """Memory that this process may use: the machine's, or what its cgroup allows where that is less."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([physical, *_cgroup_limits(Path("/proc/self/cgroup"), CGROUPS)])


def _cgroup_limits(own: Path, root: Path) -> Iterator[int]:
    """The limits of the groups that this process is in, and of those around them."""
    try:
        groups = own.read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        # Version 1 has a tree for each controller. Inside a container the path may be the host's.
        top, name = (root / "memory", "memory.limit_in_bytes") if controllers else (root, "memory.max")
        inside = top / path.lstrip("/")
        for folder in (inside, *inside.parents):
            if folder.is_relative_to(top):
                try:
                    yield int((folder / name).read_text())
                except (OSError, ValueError):  # no such group here, or "max"
                    continue
