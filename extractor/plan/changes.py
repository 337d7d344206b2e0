"""What changed between a run and its input since: labels, places, audio, what came and what left.

    manifest of the run ─┐ places, names, audio ┌─ labels, ids, paths  -> the same rows, described anew
    input of now ────────┘ (`matching`)         ├─ other audio         -> dropped; a new row, same id
                                                ├─ new                 -> a new row
                                                └─ not there any more  -> named; dropped with --prune

A row's audio is the same while its file has the size and time that it had; where it has not, or nobody
looked then, it is decoded and its checksum compared (`files`). What is to be written is one edit of the
manifest, so that a kill leaves the run before it or behind it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from extractor.audio.files import Stamp, checksums, lengths, stamps
from extractor.augment.copies import COLUMNS as COPY_COLUMNS
from extractor.errors import InputError, some
from extractor.plan.batches import Planner, stamped
from extractor.plan.matching import Matching, RunRecording, ids_of, recordings_of
from extractor.progress import Changes
from extractor.store import Store
from extractor.store.run_folder import LEFT_INPUT, REPLACED, ManifestRow
from extractor.store.sources import checksums_at
from extractor.types import Failure, Manifest, Seconds, Utterance

if TYPE_CHECKING:
    from extractor.audio.decode import DecodeOptions
    from extractor.augment.copies import Copies
    from extractor.store.writer import RunWriter

SAVE_SECONDS: Seconds = 30.0  # between two notes of how far a comparison of audio has come
SAVE_SHARE = 0.05  # of the time that noting may take, when the run is so large that it is slow


@dataclass(frozen=True, slots=True)
class ChangeOptions:
    """How a run is to be brought level with its input."""

    decoding: DecodeOptions  # as the run decodes: checksums are of that
    retry_failed: bool = False
    prune: bool = False  # drop what left the input
    alone: bool = True  # no other shard writes to the run
    stop: threading.Event = field(default_factory=threading.Event)


class Comparison:
    """A run beside its input of now."""

    def __init__(
        self,
        writer: RunWriter,
        rows: Sequence[ManifestRow],
        manifest: Manifest,
        planner: Planner,
        options: ChangeOptions,
    ) -> None:
        self.writer, self.rows, self.manifest, self.planner = writer, rows, manifest, planner
        self.options, self.progress, self.copies = options, planner.progress, planner.copies
        self.utterances = manifest.utterances
        self.done = writer.done()
        with Store(writer.path) as store:
            self.stored = set(store.positions.tolist())
        self.known = recordings_of(rows, planner.copies)
        self.matching = Matching(self.known, manifest)
        self.found = self.matching.found  # aligned with the input
        self.stamps: dict[str, Stamp | None] = {}
        self.replaced: set[int] = set()  # positions that are to be encoded again
        self.again: set[int] = set()  # positions of failed recordings that are to be tried again
        self.not_decoded: set[int] = set()  # indices of the input that were not compared: it was stopped
        self.changes = Changes()

    def level(self) -> list[ManifestRow]:
        """All lines of the manifest, written, with what there is to do planned behind all others."""
        self.stamps = stamps((u.path for u in self.utterances), self.progress)
        self.matching.by_places()
        self.matching.by_names(self.stamps, self.stored)
        self._compare_audio()
        self._find_moved()
        replaced = self.replaced & self.stored
        other_audio = [k.id for _, k in self._both() if any(row.position in replaced for row in k.live)]
        left = [k for k in self.matching.left.values() if k.live]
        prune = self._may_prune(left)
        staying = [] if prune else left
        out = [k.id for k in self.known if not k.live]
        ids = ids_of(self.found, self.manifest, {k.id: k.utterance.path for k in staying}, out)
        columns = self._columns(staying)
        more = len(columns) - len(self.manifest.columns)
        unknown = ("",) * (more if self.copies is None else more - len(COPY_COLUMNS))
        originals = [
            u if u.id == name and not unknown else replace(u, id=name, labels=u.labels + unknown)
            for u, name in zip(self.utterances, ids, strict=True)
        ]
        rows = self._with_columns(columns)
        if self.copies is not None and self.copies.needs_partners:
            self._redraw(self.copies, originals, rows, {k.id for k in left} if prune else set())
        edited = self._describe(rows, originals, columns) | (columns != self.writer.columns)
        for row in [row for k in left for row in k.live] if prune else []:
            rows[row.position] = replace(rows[row.position], dropped=LEFT_INPUT)
            edited = True
        self._say(other_audio, left, prune)
        again = [(i, rows[i].utterance) for i in sorted(self.again) if not rows[i].dropped]
        pending = again + list(enumerate(self._new(originals), len(rows)))
        num_batches = 1 + max(row.batch for row in self.rows)
        made = self.planner.rows(pending, originals, self.stamps, num_batches) if pending else []
        for row in made:
            rows[row.position : row.position + 1] = [row]
        if edited:
            self.writer.edit_manifest(rows, columns)
        elif made:
            self.writer.append_manifest(made)
        return rows

    def _both(self) -> list[tuple[int, RunRecording]]:
        """What is in the run and in the input, by its index there."""
        return [(i, k) for i, k in enumerate(self.found) if k is not None]

    # Audio

    def _compare_audio(self) -> None:
        """Is what was found what it was? Where size and time of its file do not say so, ask the file."""
        missing: list[str] = []
        to_decode: list[tuple[int, RunRecording]] = []
        planned: list[tuple[int, ManifestRow]] = []  # not encoded yet
        for i, k in self._both():
            if not (live := k.live):
                continue
            u, stamp = self.utterances[i], self.stamps[self.utterances[i].path]
            if self.options.retry_failed:
                self.again.update(row.position for row in live if self._has_failed(row))
            if k.utterance.span != u.span:  # cut at other times
                self.replaced.update(row.position for row in live)
            elif stamp is None:
                missing.append(k.id)
            elif k.stamp != stamp:
                unsure = False  # where nobody noted what it was, it has to be decoded
                for row in [row for row in live if (row.size, row.mtime_ns) != stamp]:
                    failed = self._has_failed(row)
                    if failed and row.size is not None:
                        self.again.add(row.position)
                    elif failed or row.position in self.stored:
                        unsure = True
                    else:
                        planned.append((i, row))
                if unsure:
                    to_decode.append((i, k))
        self.changes.missing = len(missing)
        if missing:
            self.progress.note(
                f"{len(missing):,} recordings of the input are not there: {some(missing)}; what is stored of"
                " them stays"
            )
        if planned:  # anew where it has another length now
            now, unreadable = self._lengths([i for i, _ in planned])
            for n, (_, row) in enumerate(planned):
                length = int(now[n])
                if self.copies is not None and n not in unreadable:
                    length = self.copies.recipe(row.utterance).num_samples(length)
                if n not in unreadable and length != row.num_samples:
                    self.replaced.add(row.position)
        if to_decode:
            self._decode(to_decode)

    def _has_failed(self, row: ManifestRow) -> bool:
        return row.failure is not None or (row.batch in self.done and row.position not in self.stored)

    def _decode(self, to_decode: Sequence[tuple[int, RunRecording]]) -> None:
        """Compare what may be another recording now with what was encoded.

        How far that has come is noted in the manifest, so that one that is killed goes on from there.
        """
        unstamped = sum(k.live[0].size is None for _, k in to_decode)
        if unstamped:
            self.progress.note(
                f"{unstamped:,} recordings were stored before sizes and times were noted: their audio is"
                " compared, this once"
            )
        positions = {row.position for _, k in to_decode for row in k.live}
        was = checksums_at(self.writer.path, self.stored & positions)
        which = [i for i, _ in to_decode]
        same: dict[int, Stamp] = {}
        due = time.monotonic() + SAVE_SECONDS
        decoded = 0
        for n, found in self._checksums(
            which, [max(row.num_samples for row in k.live) for _, k in to_decode]
        ):
            decoded += 1
            live, stamp = to_decode[n][1].live, self.stamps[self.utterances[which[n]].path]
            changed = False
            for row in live:
                decoded_then = row.failure is not None and row.failure.stage not in ("probe", "decode")
                if row.position in was:
                    if found != was[row.position]:
                        self.replaced.add(row.position)
                elif (
                    row.size is None and isinstance(found, str) and self._has_failed(row) and not decoded_then
                ):
                    self.again.add(row.position)
                changed |= row.position in self.replaced or row.position in self.again
            if stamp is not None and not changed:
                same.update((row.position, stamp) for row in live)
            # Other shards may compare the same at this moment, and write what they find.
            if self.options.alone and same and time.monotonic() >= due:
                began = time.monotonic()
                rows = [stamped(row, same.get(row.position)) for row in self.rows]
                self.writer.edit_manifest(rows, self.writer.columns)
                due = time.monotonic() + max(SAVE_SECONDS, (time.monotonic() - began) / SAVE_SHARE)
        self.not_decoded.update(which[decoded:])

    def _lengths(self, which: Sequence[int]) -> tuple[Sequence[int], Mapping[int, Failure]]:
        samples, unreadable = lengths(
            [self.utterances[i] for i in which], self.options.decoding.workers, self.progress
        )
        return samples.tolist(), unreadable

    def _checksums(
        self, which: Sequence[int], num_samples: Sequence[int]
    ) -> Iterator[tuple[int, str | Failure]]:
        utterances = [self.utterances[i] for i in which]
        return checksums(utterances, num_samples, self.options.decoding, self.progress, self.options.stop)

    # Elsewhere now

    def _find_moved(self) -> None:
        """What left its place and is new elsewhere: the same audio is the same recording."""
        # What was dropped by hand stays out wherever it lies now.
        left = [
            k
            for k in self.matching.left.values()
            if not k.live or any(row.position in self.stored for row in k.live)
        ]
        new = [i for i, k in enumerate(self.found) if k is None and self.stamps[self.utterances[i].path]]
        if not left or not new:
            return
        num_samples, unreadable = self._lengths(new)
        # A copy has another length than its recording, so without the clean ones any may be it.
        copies = self.copies
        of_left = {
            row.num_samples
            for k in left
            for row in k.rows
            if copies is None or not copies.number(row.utterance)
        }
        any_length = copies is not None and not copies.config.clean
        readable = [n for n in range(len(new)) if n not in unreadable]
        possible = [n for n in readable if any_length or num_samples[n] in of_left]
        if not possible:
            return
        which = [new[n] for n in possible]
        decoded = [*self._checksums(which, [num_samples[n] for n in possible])]
        self.not_decoded.update(which[len(decoded) :])
        now = {which[n]: checksum for n, checksum in decoded if isinstance(checksum, str)}
        was = checksums_at(self.writer.path, {row.position for k in left for row in k.live or k.rows})
        self.matching.by_audio(was, now)

    def _may_prune(self, left: Sequence[RunRecording]) -> bool:
        """Whether what left the input is dropped. Raises InputError where that would be everything."""
        if not self.options.prune or not left or self.not_decoded:
            return False
        if not any(k.live for _, k in self._both()):
            raise InputError(
                f"--prune: none of the {len(left):,} recordings of {self.writer.path} is in the input, so all"
                " would go; is it the input of this run? To begin anew, name another --out"
            )
        return True

    # Augmented copies

    def _redraw(
        self,
        copies: Copies,
        originals: Sequence[Utterance],
        rows: Sequence[ManifestRow],
        pruned: set[str],
    ) -> None:
        """Make again what takes in a recording that is another now, and what is drawn by labels that are."""
        both = self._both()
        before = self.replaced.copy()
        changed = {k.id for _, k in both if any(row.position in self.replaced for row in k.live)}
        tried = {k.id for _, k in both if any(row.position in self.again for row in k.live)}
        for row in [row for _, k in both for row in k.live]:
            taken = copies.partners(row.utterance)
            if self._has_failed(row):
                if taken & (changed | tried):
                    self.again.add(row.position)
            elif taken & changed or (row.position not in self.stored and taken & pruned):
                self.replaced.add(row.position)
        now = [originals[i] for i, _ in both]
        was = [
            replace(u, id=k.id, labels=copies.own_labels(rows[k.rows[0].position].utterance))
            for u, (_, k) in zip(now, both, strict=True)
        ]
        if [copies.drawn_by(u) for u in was] != [copies.drawn_by(u) for u in now]:
            num_samples, unreadable = self._lengths([i for i, _ in both])
            good = [n for n in range(len(now)) if n not in unreadable]
            pools = [copies.pool({us[n].id: (us[n], num_samples[n]) for n in good}) for us in (was, now)]
            for n in good:
                for row in both[n][1].live:
                    number = copies.number(row.utterance)
                    drawn = [
                        copies.outcome(us[n], number, num_samples[n], pool)
                        for us, pool in zip((was, now), pools, strict=True)
                    ]
                    if drawn[0] != drawn[1]:
                        (self.again if self._has_failed(row) else self.replaced).add(row.position)
        self.changes.redrawn = len(self.replaced - before)

    # The lines of the manifest

    def _columns(self, staying: Iterable[RunRecording]) -> tuple[str, ...]:
        """Labels of the input, and those that only recordings have which are not in it any more."""
        own = COPY_COLUMNS if self.copies is not None else ()
        now, was = self.manifest.columns, self.writer.columns
        rows = [row for k in staying for row in k.live]
        kept = [
            name
            for i, name in enumerate(was)
            if name not in (*now, *own) and any(row.utterance.labels[i] for row in rows)
        ]
        return (*now, *kept, *own)

    def _with_columns(self, columns: tuple[str, ...]) -> list[ManifestRow]:
        """The lines as they are, with labels in the order of ``columns``."""
        was = self.writer.columns
        if was == columns:
            return list(self.rows)
        at = [was.index(name) if name in was else -1 for name in columns]

        def moved(u: Utterance) -> Utterance:
            return replace(u, labels=tuple([u.labels[i] if i >= 0 else "" for i in at]))

        return [replace(row, utterance=moved(row.utterance)) for row in self.rows]

    def _describe(
        self, rows: list[ManifestRow], originals: Sequence[Utterance], columns: Sequence[str]
    ) -> bool:
        """Bring the lines of what is in the input up to date; whether any was not."""
        edited = False
        lost = [i for i, name in enumerate(self.writer.columns) if name not in columns]
        for i, k in self._both():
            u, stamp = originals[i], None if i in self.not_decoded else self.stamps[originals[i].path]
            for there in k.rows:
                row = rows[there.position]
                now = u if self.copies is None else self.copies.like(row.utterance, u)
                if now.id != row.utterance.id and row.position not in self.stored and not row.dropped:
                    self.replaced.add(row.position)  # failures are known by the id that they had
                if row.position in self.replaced:
                    rows[row.position], edited = replace(row, dropped=REPLACED), True
                    continue
                if now.span != row.utterance.span:
                    continue  # dropped by hand, as it was cut then
                other = self._labels(now) != self._labels(row.utterance)
                other = other or any(there.utterance.labels[i] for i in lost)
                self.changes.relabelled += other and not row.dropped
                if now != row.utterance:
                    row, edited = replace(row, utterance=now), True
                if stamp is not None and (row.size, row.mtime_ns) != stamp:
                    row, edited = stamped(row, stamp), True
                rows[there.position] = row
            if any(row.position not in self.replaced for row in k.live):
                self.changes.moved += k.utterance.path != u.path
                self.changes.renamed += k.id != u.id
        return edited

    def _labels(self, utterance: Utterance) -> tuple[str, ...]:
        return utterance.labels if self.copies is None else self.copies.own_labels(utterance)

    def _new(self, originals: Sequence[Utterance]) -> list[Utterance]:
        """What is to be planned behind all others: what the run has not, or has of other audio."""
        new: list[Utterance] = []
        for i, k in enumerate(self.found):
            if k is None and i in self.not_decoded:
                continue  # it may be a recording that the run has: the next command compares them
            there = [] if k is None else [row for row in k.rows if row.position not in self.replaced]
            if self.copies is None:
                new += [] if there else [originals[i]]
            elif k is None or len(there) < self.copies.each:
                numbers = {self.copies.number(row.utterance) for row in there}
                new += [u for u in self.copies.expand([originals[i]]) if self.copies.number(u) not in numbers]
        return new

    def _say(self, other_audio: Sequence[str], left: Sequence[RunRecording], prune: bool) -> None:
        changes, both = self.changes, self._both()
        changes.replaced, changes.left = len(other_audio), len(left)
        changes.pruned = len(left) if prune else 0
        moved = [k.id for i, k in both if k.live and k.utterance.path != self.utterances[i].path]
        new = sum(k is None and i not in self.not_decoded for i, k in enumerate(self.found))
        out = [k.id for _, k in both if not k.live]
        gone = some([k.id for k in left])
        what = "dropped" if prune else "what is stored of them stays (--prune drops it)"
        for count, said in (
            (changes.relabelled, "rows have other labels now"),
            (changes.replaced, f"recordings have other audio now and are encoded again: {some(other_audio)}"),
            (changes.redrawn, "augmented copies are made again: what they are drawn by changed"),
            (changes.moved, f"recordings lie elsewhere now and keep their rows: {some(moved)}"),
            (changes.renamed, "recordings have another id now, as the manifest gives it"),
            (new, "recordings are new in the input and are added to the run"),
            (len(self.again), "failed recordings are tried again"),
            (len(out), f"recordings stay out, which were dropped by hand: {some(out)}"),
            (changes.left, f"recordings of this run are not in the input any more: {gone}; {what}"),
        ):
            if count:
                self.progress.note(f"{count:,} {said}")
