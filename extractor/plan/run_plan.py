"""The plan of a run: which recordings, in which batches. Made once, kept in the run folder.

A run that is resumed keeps its batches, so that it gives the same bits as one that was never
interrupted; recordings that were added to the input since, or are others now, are planned behind them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from extractor.audio.files import Stamp, lengths, stamps
from extractor.plan.batches import plan_batches
from extractor.plan.changes import ChangeOptions, Comparison, stamped
from extractor.progress import Changes, Progress
from extractor.store.run_folder import ManifestRow
from extractor.types import SAMPLE_RATE, Failure, Manifest, Utterance

if TYPE_CHECKING:
    from extractor.augment.copies import Copies
    from extractor.encoders import Encoder
    from extractor.store.writer import RunWriter

PADDING_SAMPLE = 10_000  # recordings from which the padding share is computed, evenly spaced


@dataclass(frozen=True, slots=True)
class RunPlan:
    """Utterances by position; batches by index, each an array of positions, longest first."""

    utterances: Sequence[Utterance]
    num_samples: np.ndarray  # int64 [N], planned; 0 where the header could not be read
    batches: Sequence[np.ndarray]
    live: np.ndarray  # bool [N]: not dropped
    changes: Changes = field(default_factory=Changes)  # what the run was brought level with

    @property
    def num_recordings(self) -> int:
        return int(self.live.sum())

    @property
    def live_utterances(self) -> list[Utterance]:
        return [self.utterances[i] for i in np.flatnonzero(self.live).tolist()]

    def audio(self, batches: Sequence[int]) -> float:
        """Seconds of audio in some of the batches."""
        return float(sum(self.num_samples[self.batches[b]].sum() for b in batches)) / SAMPLE_RATE

    def padding_share(self, encoder: Encoder) -> float:
        """Share of all arithmetic that is spent on padding, over at most `PADDING_SAMPLE` recordings."""
        planned = self.num_samples[self.live & (self.num_samples >= encoder.min_samples)]
        step = max(1, len(planned) // PADDING_SAMPLE)
        spent = [encoder.operations(int(n)) for n in planned[::step]]
        useful, padded = (sum(part) for part in zip(*spent, strict=True)) if spent else (0.0, 0.0)
        return padded / (useful + padded) if useful else 0.0


def make_plan(
    writer: RunWriter,
    manifest: Manifest,
    budget_samples: int,
    options: ChangeOptions,
    progress: Progress,
    copies: Copies | None = None,
    streams: int = 1,
) -> RunPlan:
    """The run's plan, from its folder as far as it is there, level with the input of now (`changes`).

    What is new is probed, planned, stored. With ``copies``, each recording is planned as it is and as its
    augmented copies. ``streams``: batches that are to be worked on at once.
    """
    planner = _Planner(budget_samples, streams, options.decoding.workers, progress, copies)
    rows = writer.manifest()
    if not rows:
        there = stamps((u.path for u in manifest.utterances), progress)
        rows = planner.rows_of_all(manifest, there)
        writer.write_manifest(rows)
        return _as_plan(rows)

    level = Comparison(writer, rows, manifest, copies, options, progress).level()
    pending = level.again + list(enumerate(level.new, len(rows)))
    num_batches = 1 + max(row.batch for row in rows)
    made = planner.rows(pending, level.originals, level.stamps, num_batches) if pending else []
    rows = level.rows
    for row in made:
        rows[row.position : row.position + 1] = [row]
    if level.edited:
        writer.edit_manifest(rows, level.columns)
    elif made:
        writer.append_manifest(made)
    return _as_plan(rows, level.changes)


def plan_without_run(
    manifest: Manifest, budget_samples: int, workers: int, progress: Progress, copies: Copies
) -> tuple[RunPlan, list[Failure]]:
    """A plan that is kept nowhere, and the recordings that are not in it."""
    rows = _Planner(budget_samples, 1, workers, progress, copies).rows_of_all(manifest, {})
    return _as_plan(rows), [row.failure for row in rows if row.failure is not None]


@dataclass(frozen=True, slots=True)
class _Planner:
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


def _as_plan(rows: Sequence[ManifestRow], changes: Changes | None = None) -> RunPlan:
    """Batches from the batch index that each row carries: longest first, ties in manifest order.

    What is dropped is in none of them: a batch may be empty.
    """
    num_samples = np.array([row.num_samples for row in rows], dtype=np.int64)
    batch_of = np.array([-1 if row.dropped else row.batch for row in rows], dtype=np.int64)
    order = np.lexsort((np.arange(len(rows)), -num_samples, batch_of))
    order = order[np.searchsorted(batch_of[order], 0) :]
    num_batches = 1 + int(batch_of.max(initial=-1))
    bounds = np.searchsorted(batch_of[order], np.arange(num_batches + 1))
    batches = [order[bounds[b] : bounds[b + 1]] for b in range(num_batches)]
    live = np.array([not row.dropped for row in rows], dtype=bool)
    return RunPlan([row.utterance for row in rows], num_samples, batches, live, changes or Changes())
