"""The plan of a run: which recordings, in which batches. Made once, kept in the run folder.

A run that is resumed keeps its batches, so that it gives the same bits as one that was never
interrupted; recordings that were added to the input since, or are others now, are planned behind them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from extractor.audio.files import stamps
from extractor.plan.batches import Planner
from extractor.plan.changes import ChangeOptions, Comparison
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
    planner = Planner(budget_samples, streams, options.decoding.workers, progress, copies)
    rows = writer.manifest()
    if not rows:
        there = stamps((u.path for u in manifest.utterances), progress)
        rows = planner.rows_of_all(manifest, there)
        writer.write_manifest(rows)
        return _as_plan(rows)

    comparison = Comparison(writer, rows, manifest, planner, options)
    return _as_plan(comparison.level(), comparison.changes)


def plan_without_run(
    manifest: Manifest, budget_samples: int, workers: int, progress: Progress, copies: Copies
) -> tuple[RunPlan, list[Failure]]:
    """A plan that is kept nowhere, and the recordings that are not in it."""
    rows = Planner(budget_samples, 1, workers, progress, copies).rows_of_all(manifest, {})
    return _as_plan(rows), [row.failure for row in rows if row.failure is not None]


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
