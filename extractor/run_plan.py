"""The plan of a run: which recordings, in which batches. Made once, kept in the run folder.

A run that is resumed keeps its batches, so that it gives the same bits as one that was never
interrupted; recordings that were added to the input since are planned behind them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import TYPE_CHECKING

import numpy as np

from extractor.errors import InputError
from extractor.plan import plan_batches
from extractor.probe import num_samples_16k, probe
from extractor.progress import Counts, Progress, showing
from extractor.store import Store
from extractor.store.run_folder import ManifestRow
from extractor.types import SAMPLE_RATE, Failure, Manifest, Utterance

if TYPE_CHECKING:
    from extractor.copies import Copies
    from extractor.encoders import Encoder
    from extractor.store.writer import RunWriter

PROBED_AT_ONCE = 4096  # headers between two updates of the progress
PADDING_SAMPLE = 10_000  # recordings from which the padding share is computed, evenly spaced


@dataclass(frozen=True, slots=True)
class RunPlan:
    """Utterances by position; batches by index, each an array of positions, longest first."""

    utterances: Sequence[Utterance]
    num_samples: np.ndarray  # int64 [N], planned; 0 where the header could not be read
    batches: Sequence[np.ndarray]

    def audio(self, batches: Sequence[int]) -> float:
        """Seconds of audio in some of the batches."""
        return float(sum(self.num_samples[self.batches[b]].sum() for b in batches)) / SAMPLE_RATE

    def padding_share(self, encoder: Encoder) -> float:
        """Share of all arithmetic that is spent on padding, over at most `PADDING_SAMPLE` recordings."""
        lengths = self.num_samples[self.num_samples >= encoder.min_samples]
        step = max(1, len(lengths) // PADDING_SAMPLE)
        spent = [encoder.operations(int(n)) for n in lengths[::step]]
        useful, padded = (sum(part) for part in zip(*spent, strict=True)) if spent else (0.0, 0.0)
        return padded / (useful + padded) if useful else 0.0


def make_plan(
    writer: RunWriter,
    manifest: Manifest,
    budget_samples: int,
    workers: int,
    retry_failed: bool,
    progress: Progress,
    copies: Copies | None = None,
    streams: int = 1,
) -> RunPlan:
    """The run's plan, from its folder as far as it is there; what is new is probed, planned, stored.

    With ``copies``, each recording is planned as it is and as its augmented copies. ``streams``:
    batches that are to be worked on at once.
    """
    rows = writer.manifest() or []
    known = {row.utterance.id: row for row in rows}
    originals = _with_known_ids(rows, manifest.utterances, copies)
    utterances = originals if copies is None else copies.expand(originals)
    _same_recordings(known, utterances)
    # Paths of now: the recordings may have moved since.
    now = {u.id: u for u in utterances}
    rows = [_moved(row, now.get(row.utterance.id, row.utterance)) for row in rows]

    gone = len(rows) - sum(row.utterance.id in now for row in rows)
    if gone:
        progress.note(f"{gone:,} recordings of this run are not in the input any more; what is stored stays")
    new = [u for u in utterances if u.id not in known]
    if rows and new:
        progress.note(f"{len(new):,} recordings are new in the input and are added to the run")
    retry = _failed(writer) & now.keys() if retry_failed and rows else set()
    if retry:
        progress.note(f"{len(retry):,} failed recordings are tried again")

    pending = [(row.position, row.utterance) for row in rows if row.utterance.id in retry]
    pending += [(len(rows) + i, u) for i, u in enumerate(new)]
    if pending:
        num_batches = 1 + max((row.batch for row in rows), default=-1)
        made = _plan_rows(pending, budget_samples, streams, num_batches, workers, progress, copies, originals)
        (writer.append_manifest if rows else writer.write_manifest)(made)
        by_position = {row.position: row for row in rows} | {row.position: row for row in made}
        rows = [by_position[position] for position in range(len(by_position))]
    return _as_plan(rows)


def plan_without_run(
    manifest: Manifest, budget_samples: int, workers: int, progress: Progress, copies: Copies
) -> tuple[RunPlan, list[Failure]]:
    """A plan that is kept nowhere, and the recordings that are not in it."""
    utterances = copies.expand(manifest.utterances)
    rows = _plan_rows(
        list(enumerate(utterances)), budget_samples, 1, 0, workers, progress, copies, manifest.utterances
    )
    return _as_plan(rows), [row.failure for row in rows if row.failure is not None]


def _failed(writer: RunWriter) -> set[str]:
    """Ids of the recordings that failed so far."""
    with Store(writer.path) as store:
        return {failure.id for failure in store.errors}


def _with_known_ids(
    rows: Sequence[ManifestRow], utterances: Sequence[Utterance], copies: Copies | None
) -> Sequence[Utterance]:
    """Recordings keep the ids that the run gave them.

    Ids that are made from file names become longer when a new file has the name of an old one.
    """
    if not rows:
        return utterances
    known = {
        (u.path, u.start, u.end): u.id if copies is None else copies.original(u)
        for u in (row.utterance for row in rows)
    }
    ids = [known.get((u.path, u.start, u.end), u.id) for u in utterances]
    return [u if u.id == name else replace(u, id=name) for u, name in zip(utterances, ids, strict=True)]


def _moved(row: ManifestRow, now: Utterance) -> ManifestRow:
    # Seldom: copying a million rows takes seconds.
    if row.utterance.path == now.path:
        return row
    return replace(row, utterance=replace(row.utterance, path=now.path))


def _same_recordings(known: dict[str, ManifestRow], utterances: Sequence[Utterance]) -> None:
    """Refuse an id that now names another recording: its row would be silently the old one's."""
    for utterance in utterances:
        row = known.get(utterance.id)
        if row is None:
            continue
        old = row.utterance
        same_name = PurePath(old.path).name == PurePath(utterance.path).name
        if not same_name or (old.start, old.end) != (utterance.start, utterance.end):
            raise InputError(
                f"id {utterance.id!r} is {utterance.path} now and was {old.path} when this run began;"
                " name another --out, or give the recordings ids of their own in a manifest"
            )


def _plan_rows(
    pending: Sequence[tuple[int, Utterance]],
    budget_samples: int,
    streams: int,
    num_batches: int,
    workers: int,
    progress: Progress,
    copies: Copies | None,
    originals: Sequence[Utterance],
) -> list[ManifestRow]:
    """Probe and plan utterances, given with their positions; batches count from ``num_batches``."""
    samples, failures = _measure([u for _, u in pending], workers, progress)
    if copies is not None:
        pending = _draw(pending, samples, failures, copies, originals, workers, progress)
    planned = np.array([i for i in range(len(pending)) if i not in failures], dtype=np.int64)
    batch_of = np.full(len(pending), -1, dtype=np.int64)
    batches = plan_batches(samples[planned], budget_samples, streams=streams)
    for b, members in enumerate(batches, num_batches):
        batch_of[planned[members]] = b
    return [
        ManifestRow(position, utterance, int(samples[i]), int(batch_of[i]), failures.get(i))
        for i, (position, utterance) in enumerate(pending)
    ]


def _measure(
    utterances: Sequence[Utterance], workers: int, progress: Progress
) -> tuple[np.ndarray, dict[int, Failure]]:
    """Lengths at 16 kHz, int64 ``[N]``, and what cannot be read, by index."""
    samples = np.zeros(len(utterances), dtype=np.int64)
    failures: dict[int, Failure] = {}
    with showing(progress, "reading headers", len(utterances)):
        for start in range(0, len(utterances), PROBED_AT_ONCE):
            some = utterances[start : start + PROBED_AT_ONCE]
            for i, found in enumerate(probe(some, workers), start):
                if isinstance(found, Failure):
                    failures[i] = found
                else:
                    samples[i] = num_samples_16k(found, utterances[i])
            progress.update(Counts(min(start + PROBED_AT_ONCE, len(utterances)), 0.0))
    return samples, failures


def _draw(
    pending: Sequence[tuple[int, Utterance]],
    samples: np.ndarray,
    failures: dict[int, Failure],
    copies: Copies,
    originals: Sequence[Utterance],
    workers: int,
    progress: Progress,
) -> list[tuple[int, Utterance]]:
    """What to do to each copy: the pending ones with their recipes; ``samples`` and ``failures`` follow.

    What is drawn from is always the whole input, so that it is the same when a run grows or is resumed.
    """
    lengths = {
        copies.original(u): (u, int(samples[i])) for i, (_, u) in enumerate(pending) if i not in failures
    }
    if copies.needs_partners:
        asked = {copies.original(u) for _, u in pending}
        others = [u for u in originals if u.id not in asked]
        other_samples, unreadable = _measure(others, workers, progress)
        lengths |= {u.id: (u, int(other_samples[i])) for i, u in enumerate(others) if i not in unreadable}
    pool = copies.pool(lengths)
    drawn = []
    for i, (position, utterance) in enumerate(pending):
        if i not in failures:
            utterance, samples[i], failure = copies.draw(utterance, int(samples[i]), pool)
            if failure is not None:
                failures[i] = failure
        drawn.append((position, utterance))
    return drawn


def _as_plan(rows: Sequence[ManifestRow]) -> RunPlan:
    """Batches from the batch index that each row carries: longest first, ties in manifest order."""
    num_samples = np.array([row.num_samples for row in rows], dtype=np.int64)
    batch_of = np.array([row.batch for row in rows], dtype=np.int64)
    order = np.lexsort((np.arange(len(rows)), -num_samples, batch_of))
    order = order[np.searchsorted(batch_of[order], 0) :]
    num_batches = 1 + int(batch_of.max(initial=-1))
    bounds = np.searchsorted(batch_of[order], np.arange(num_batches + 1))
    batches = [order[bounds[b] : bounds[b + 1]] for b in range(num_batches)]
    return RunPlan([row.utterance for row in rows], num_samples, batches)
