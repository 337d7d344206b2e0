"""Batches under a budget of audio, planned from headers before the first sample is decoded."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from extractor.audio.files import Stamp, lengths
from extractor.progress import Progress
from extractor.store.run_folder import ManifestRow
from extractor.types import Failure, Manifest, Utterance

if TYPE_CHECKING:
    from extractor.augment.copies import Copies

# Recordings are sorted by length within stretches of this many, so that a plan for any number of
# them is made in one pass; the first batch of a stretch is its largest.
LOOK_AHEAD = 65_536


def plan_batches(num_samples: np.ndarray, budget_samples: int, streams: int = 1) -> list[np.ndarray]:
    """Cut recordings into batches, longest first.

    For one stream batches are as full as the budget allows. Several finish together: there are as
    many batches for each, of about the same audio, so that the last one is not worked on alone.

    Args:
        num_samples: int64 ``[N]``, planned length of each recording.
        budget_samples: most samples in a batch; a longer recording is a batch of its own.
        streams: batches that are worked on at once.

    Returns:
        Indices into ``num_samples``, an int64 array a batch; every index occurs exactly once. The
        same input gives the same batches: ties keep their order.
    """
    batches: list[np.ndarray] = []
    for start in range(0, len(num_samples), LOOK_AHEAD):
        stretch = num_samples[start : start + LOOK_AHEAD]
        order = np.argsort(-stretch, kind="stable")
        ends = np.cumsum(stretch[order])
        cuts = _cut(ends, budget_samples)
        if streams > 1:
            cuts = _level(ends, cuts, budget_samples, streams)
        batches += [order[first:last] + start for first, last in itertools.pairwise([0, *cuts])]
    return batches


def _cut(ends: np.ndarray, most: int) -> list[int]:
    """Where batches of at most ``most`` samples end; ``ends`` is the running total of the samples."""
    cuts: list[int] = []
    first, filled = 0, 0
    while first < len(ends):
        # Recordings that fit are found by one search in the running total.
        first = max(first + 1, int(np.searchsorted(ends, filled + most, side="right")))
        filled = int(ends[first - 1])
        cuts.append(first)
    return cuts


def _level(ends: np.ndarray, cuts: list[int], budget: int, streams: int) -> list[int]:
    """The most even batches: the smallest ones of which no more are needed than streams can share."""
    num_batches = -(-len(cuts) // streams) * streams
    least, most = int(ends[-1]) // num_batches, budget
    while least < most:
        middle = (least + most) // 2
        tried = _cut(ends, middle)
        if len(tried) > num_batches:
            least = middle + 1
        else:
            most, cuts = middle, tried
    return cuts


@dataclass(frozen=True, slots=True)
class Planner:
    """Probes and plans. ``there`` is size and time of files, from before they are read: what changes
    meanwhile is noticed later."""

    budget_samples: int
    streams: int
    workers: int
    progress: Progress
    copies: Copies | None

    def rows_of_all(self, manifest: Manifest, there: Mapping[str, Stamp | None]) -> list[ManifestRow]:
        originals = manifest.utterances
        pending = originals if self.copies is None else self.copies.expand(originals)
        return self.rows(list(enumerate(pending)), originals, there, 0)

    def rows(
        self,
        pending: Sequence[tuple[int, Utterance]],
        originals: Sequence[Utterance],
        there: Mapping[str, Stamp | None],
        num_batches: int,
    ) -> list[ManifestRow]:
        """Of utterances, given with their positions; batches count from ``num_batches``."""
        samples, failures = lengths([u for _, u in pending], self.workers, self.progress)
        if self.copies is not None:
            pending = self._draw(self.copies, pending, originals, samples, failures)
        planned = np.array([i for i in range(len(pending)) if i not in failures], dtype=np.int64)
        batch_of = np.full(len(pending), -1, dtype=np.int64)
        batches = plan_batches(samples[planned], self.budget_samples, self.streams)
        for b, members in enumerate(batches, num_batches):
            batch_of[planned[members]] = b
        return [
            stamped(
                ManifestRow(position, utterance, int(samples[i]), int(batch_of[i]), failures.get(i)),
                there.get(utterance.path),
            )
            for i, (position, utterance) in enumerate(pending)
        ]

    def _draw(
        self,
        copies: Copies,
        pending: Sequence[tuple[int, Utterance]],
        originals: Sequence[Utterance],
        samples: np.ndarray,
        failures: dict[int, Failure],
    ) -> list[tuple[int, Utterance]]:
        """What to do to each copy: the pending ones with their recipes; ``samples`` and ``failures`` follow.

        What is drawn from is always the whole input, so that it is the same when a run grows or is resumed.
        """
        known = {
            copies.original(u): (u, int(samples[i])) for i, (_, u) in enumerate(pending) if i not in failures
        }
        if copies.needs_partners:
            asked = {copies.original(u) for _, u in pending}
            others = [u for u in originals if u.id not in asked]
            other_samples, unreadable = lengths(others, self.workers, self.progress)
            known |= {u.id: (u, int(other_samples[i])) for i, u in enumerate(others) if i not in unreadable}
        pool = copies.pool(known)
        drawn = []
        for i, (position, utterance) in enumerate(pending):
            if i not in failures:
                utterance, samples[i], failure = copies.draw(utterance, int(samples[i]), pool)
                if failure is not None:
                    failures[i] = failure
            drawn.append((position, utterance))
        return drawn


def stamped(row: ManifestRow, stamp: Stamp | None) -> ManifestRow:
    """The row with size and time of its recording's file, which tell later that it is what it was."""
    if stamp is None or (row.size, row.mtime_ns) == stamp:
        return row
    return replace(row, size=stamp[0], mtime_ns=stamp[1])
