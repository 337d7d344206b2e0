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
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from extractor.audio.files import Stamp, checksums, lengths, stamps
from extractor.augment.copies import COLUMNS as COPY_COLUMNS
from extractor.errors import InputError
from extractor.plan.matching import (
    Known,
    ids_of,
    known_recordings,
    match_audio,
    match_names,
    match_places,
)
from extractor.plan.stamping import Noted, stamped
from extractor.progress import Changes, Progress, some
from extractor.store import Store
from extractor.store.run_folder import LEFT_INPUT, REPLACED, ManifestRow
from extractor.store.sources import checksums_at
from extractor.types import Failure, Manifest, Utterance

if TYPE_CHECKING:
    from extractor.audio.decode import DecodeOptions
    from extractor.augment.copies import Copies
    from extractor.store.writer import RunWriter


@dataclass(frozen=True, slots=True)
class ChangeOptions:
    """How a run is to be brought level with its input."""

    decoding: DecodeOptions  # as the run decodes: checksums are of that
    retry_failed: bool = False
    prune: bool = False  # drop what left the input
    alone: bool = True  # no other shard writes to the run
    stop: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True, slots=True)
class Level:
    """A run as it is to be, level with its input."""

    rows: list[ManifestRow]  # all lines of its manifest
    columns: tuple[str, ...]
    edited: bool  # whether a line of them is another than before
    again: list[tuple[int, Utterance]]  # failed, to be planned once more at their positions
    new: list[Utterance]  # to be planned behind all others
    originals: Sequence[Utterance]  # what there is in the input, under the ids of the run
    stamps: Mapping[str, Stamp | None]  # of all files of the input
    changes: Changes


class Comparison:
    """A run beside its input of now."""

    def __init__(
        self,
        writer: RunWriter,
        rows: Sequence[ManifestRow],
        manifest: Manifest,
        copies: Copies | None,
        options: ChangeOptions,
        progress: Progress,
    ) -> None:
        self.writer, self.rows, self.manifest, self.copies = writer, rows, manifest, copies
        self.options, self.progress = options, progress
        self.utterances = manifest.utterances
        self.done = writer.done()
        with Store(writer.path) as store:
            self.stored = set(store.positions.tolist())
        self.known = known_recordings(rows, copies)
        self.found: list[Known | None] = []  # aligned with the input
        self.stamps: dict[str, Stamp | None] = {}
        self.replaced: set[int] = set()  # positions that are to be encoded again
        self.again: set[int] = set()  # positions of failed recordings that are to be tried again
        self.unheard: set[int] = set()  # indices of the input that were not listened to: it was stopped
        self._lost: set[int] = set()  # positions that have a label of a column that is no more
        self.changes = Changes()

    def level(self) -> Level:
        self.stamps = stamps((u.path for u in self.utterances), self.progress)
        self.found = match_places(self.known, self.utterances)
        match_names(self.found, self.known, self.manifest, self.stamps, self.stored)
        self._compare_audio()
        self._find_moved()
        replaced = self.replaced & self.stored
        other_audio = [
            k.id for k in self.found if k is not None and any(row.position in replaced for row in k.live)
        ]
        left = [k for k in self.known if k.at < 0 and k.live]
        prune = self._may_prune(left)
        staying = {} if prune else {k.id: k.utterance.path for k in left}
        out = [k.id for k in self.known if not k.live]
        ids = ids_of(self.found, self.manifest, staying, out)
        columns = self._columns([] if prune else left)
        more = len(columns) - len(self.manifest.columns)
        unknown = ("",) * (more if self.copies is None else more - len(COPY_COLUMNS))
        originals = [
            u if u.id == name and not unknown else replace(u, id=name, labels=u.labels + unknown)
            for u, name in zip(self.utterances, ids, strict=True)
        ]
        rows = self._with_columns(columns)
        if self.copies is not None and self.copies.needs_partners:
            self._redraw(self.copies, originals, rows, [k.id for k in left] if prune else [])
        edited = self._describe(rows, originals) | (columns != self.writer.columns)
        for k in left if prune else []:
            for row in k.live:
                rows[row.position] = replace(rows[row.position], dropped=LEFT_INPUT)
                edited = True
        self._say(other_audio, left, prune)
        again = [
            (position, rows[position].utterance)
            for position in sorted(self.again)
            if not rows[position].dropped
        ]
        new = self._new(originals)
        return Level(rows, columns, edited, again, new, originals, self.stamps, self.changes)

    # Audio

    def _compare_audio(self) -> None:
        """Is what was found what it was? Where size and time of its file do not say so, ask the file."""
        missing: list[str] = []
        to_hear: list[int] = []
        planned: list[tuple[int, ManifestRow]] = []  # not encoded yet
        for i, k in enumerate(self.found):
            if k is None or not (live := k.live):
                continue
            u, stamp = self.utterances[i], self.stamps[self.utterances[i].path]
            if self.options.retry_failed:
                self.again.update(row.position for row in live if self._has_failed(row))
            if (k.utterance.start, k.utterance.end) != (u.start, u.end):  # cut at other times
                self.replaced.update(row.position for row in live)
            elif stamp is None:
                missing.append(k.id)
            elif not k.has_stamp(stamp):
                changed = [row for row in live if (row.size, row.mtime_ns) != stamp]
                failed = [row for row in changed if self._has_failed(row)]
                # Where nobody noted what it was, it has to be decoded.
                self.again.update(row.position for row in failed if row.size is not None)
                if any(row.position in self.stored for row in changed) or any(
                    row.size is None for row in failed
                ):
                    to_hear.append(i)
                planned += [
                    (i, row)
                    for row in changed
                    if row.position not in self.stored and not self._has_failed(row)
                ]
        self.changes.missing = len(missing)
        if missing:
            self.progress.note(
                f"{len(missing):,} recordings of the input are not there: {some(missing)}; what is stored of"
                " them stays"
            )
        if planned:
            self._measure(planned)
        if to_hear:
            self._listen(to_hear)

    def _has_failed(self, row: ManifestRow) -> bool:
        return row.failure is not None or (row.batch in self.done and row.position not in self.stored)

    def _measure(self, planned: Sequence[tuple[int, ManifestRow]]) -> None:
        """What is planned and not encoded yet is planned anew where it has another length now."""
        utterances = [self.utterances[i] for i, _ in planned]
        now, unreadable = lengths(utterances, self.options.decoding.workers, self.progress)
        for n, (_, row) in enumerate(planned):
            length = int(now[n])
            if self.copies is not None and n not in unreadable:
                length = self.copies.recipe(row.utterance).num_samples(length)
            if n not in unreadable and length != row.num_samples:
                self.replaced.add(row.position)

    def _listen(self, to_hear: Sequence[int]) -> None:
        """Decode what may be another recording now, and compare it with what was encoded."""
        known = [self._at(i) for i in to_hear]
        unstamped = sum(k.live[0].size is None for k in known)
        if unstamped:
            self.progress.note(
                f"{unstamped:,} recordings were stored before sizes and times were noted: their audio is"
                " compared, this once"
            )
        was = self._checksums(row.position for k in known for row in k.live)
        noted = Noted(self.writer, self.rows, self.options.alone)
        num_samples = [max(row.num_samples for row in k.live) for k in known]
        heard = 0
        for n, found in self._hear(to_hear, num_samples):
            heard += 1
            for row in known[n].live:
                self._judge(row, found, was)
            kept = [row for row in known[n].live if row.position not in self.replaced | self.again]
            stamp = self.stamps[self.utterances[to_hear[n]].path]
            if stamp is not None and len(kept) == len(known[n].live):
                noted.add(kept, stamp)
        self.unheard.update(to_hear[heard:])

    def _hear(self, which: Sequence[int], num_samples: Sequence[int]) -> Iterator[tuple[int, str | Failure]]:
        utterances = [self.utterances[i] for i in which]
        return checksums(utterances, num_samples, self.options.decoding, self.progress, self.options.stop)

    def _judge(self, row: ManifestRow, found: str | Failure, was: Mapping[int, str]) -> None:
        """Whether a row is of another recording, by what its file gives now."""
        if row.position in was:
            if found != was[row.position]:
                self.replaced.add(row.position)
            return
        decoded_then = row.failure is not None and row.failure.stage not in ("probe", "decode")
        if row.size is None and self._has_failed(row) and isinstance(found, str) and not decoded_then:
            self.again.add(row.position)

    def _checksums(self, positions: Iterable[int]) -> dict[int, str]:
        """Of the audio that gave these rows; of those of them that are stored."""
        wanted = self.stored.intersection(positions)
        if not wanted:
            return {}
        with Store(self.writer.path) as store:
            there = zip(store.positions.tolist(), store.checksums, strict=True)
            return {position: checksum for position, checksum in there if position in wanted}

    def _at(self, i: int) -> Known:
        k = self.found[i]
        assert k is not None
        return k

    # Elsewhere now

    def _find_moved(self) -> None:
        """What left its place and is new elsewhere: the same audio is the same recording."""
        # What was dropped by hand stays out wherever it lies now.
        left = [
            k
            for k in self.known
            if k.at < 0 and (not k.live or any(row.position in self.stored for row in k.live))
        ]
        new = [i for i, k in enumerate(self.found) if k is None and self.stamps[self.utterances[i].path]]
        if not left or not new:
            return
        num_samples, unreadable = lengths(
            [self.utterances[i] for i in new], self.options.decoding.workers, self.progress
        )
        # A copy has another length than its recording, so without the clean ones any may be it.
        clean = [
            r for k in left for r in k.rows if self.copies is None or not self.copies.number(r.utterance)
        ]
        of_left = {row.num_samples for row in clean}
        any_length = self.copies is not None and not self.copies.config.clean
        possible = [
            n
            for n in range(len(new))
            if n not in unreadable and (any_length or int(num_samples[n]) in of_left)
        ]
        which = [new[n] for n in possible]
        if which:
            heard = [*self._hear(which, num_samples[possible].tolist())]
            self.unheard.update(which[len(heard) :])
            found = {which[n]: checksum for n, checksum in heard if isinstance(checksum, str)}
            match_audio(self.found, self._by_audio(left), found, self.utterances)

    def _by_audio(self, known: Sequence[Known]) -> dict[str, list[Known]]:
        was = self._checksums(row.position for k in known for row in k.live)
        was |= checksums_at(self.writer.path, {r.position for k in known if not k.live for r in k.rows})
        by_audio: dict[str, list[Known]] = defaultdict(list)
        for k in known:
            found = {was[row.position] for row in k.live or k.rows if row.position in was}
            if len(found) == 1:
                by_audio[found.pop()].append(k)
        return by_audio

    # What left

    def _may_prune(self, left: Sequence[Known]) -> bool:
        """Whether what left the input is dropped. Raises InputError where that would be everything."""
        if not self.options.prune or not left or self.unheard:
            return False
        if not any(k is not None and k.live for k in self.found):
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
        pruned: Iterable[str],
    ) -> None:
        """Make again what takes in a recording that is another now, and what is drawn by labels that are."""
        both = [(self._at(i), u) for i, u in enumerate(originals) if self.found[i] is not None]
        before = self.replaced.copy()
        changed = {k.id for k, _ in both if any(row.position in self.replaced for row in k.live)}
        tried = {k.id for k, _ in both if any(row.position in self.again for row in k.live)}
        gone = set(pruned)
        for k, _ in both:
            for row in k.live:
                taken = copies.partners(row.utterance)
                if self._has_failed(row):
                    if taken & (changed | tried):
                        self.again.add(row.position)
                elif taken & changed or (row.position not in self.stored and taken & gone):
                    self.replaced.add(row.position)
        was = [
            replace(u, id=k.id, labels=copies.own_labels(rows[k.rows[0].position].utterance)) for k, u in both
        ]
        now = [u for _, u in both]
        if [copies.drawn_by(u) for u in was] != [copies.drawn_by(u) for u in now]:
            num_samples, unreadable = lengths(now, self.options.decoding.workers, self.progress)
            good = [n for n in range(len(now)) if n not in unreadable]
            pools = [copies.pool({us[n].id: (us[n], int(num_samples[n])) for n in good}) for us in (was, now)]
            for n in good:
                for row in both[n][0].live:
                    number = copies.number(row.utterance)
                    drawn = [
                        copies.outcome(us[n], number, int(num_samples[n]), pool)
                        for us, pool in zip((was, now), pools, strict=True)
                    ]
                    if drawn[0] != drawn[1]:
                        (self.again if self._has_failed(row) else self.replaced).add(row.position)
        self.changes.redrawn = len(self.replaced - before)

    # The lines of the manifest

    def _columns(self, staying: Iterable[Known]) -> tuple[str, ...]:
        """Labels of the input, and those that only recordings have which are not in it any more."""
        own = COPY_COLUMNS if self.copies is not None else ()
        now = self.manifest.columns
        more = [name for name in self.writer.columns if name not in now and name not in own]
        at = {name: self.writer.columns.index(name) for name in more}
        rows = [row for k in staying for row in k.live] if more else []
        kept = [name for name in more if any(row.utterance.labels[at[name]] for row in rows)]
        return (*now, *kept, *own)

    def _with_columns(self, columns: tuple[str, ...]) -> list[ManifestRow]:
        """The lines as they are, with labels in the order of ``columns``."""
        was = self.writer.columns
        if was == columns:
            return list(self.rows)
        at = [was.index(name) if name in was else -1 for name in columns]
        lost = [i for i, name in enumerate(was) if name not in columns]
        self._lost = {row.position for row in self.rows if any(row.utterance.labels[i] for i in lost)}
        return [
            replace(row, utterance=replace(u, labels=tuple([u.labels[i] if i >= 0 else "" for i in at])))
            for row in self.rows
            for u in [row.utterance]
        ]

    def _describe(self, rows: list[ManifestRow], originals: Sequence[Utterance]) -> bool:
        """Bring the lines of what is in the input up to date; whether any was not."""
        edited = False
        for i, k in enumerate(self.found):
            if k is None:
                continue
            u, stamp = originals[i], None if i in self.unheard else self.stamps[originals[i].path]
            for there in k.rows:
                row = rows[there.position]
                now = u if self.copies is None else self.copies.like(row.utterance, u)
                if now.id != row.utterance.id and row.position not in self.stored and not row.dropped:
                    self.replaced.add(row.position)  # failures are known by the id that they had
                if row.position in self.replaced:
                    rows[row.position], edited = replace(row, dropped=REPLACED), True
                    continue
                if (now.start, now.end) != (row.utterance.start, row.utterance.end):
                    continue  # dropped by hand, as it was cut then
                other = self._labels(now) != self._labels(row.utterance) or row.position in self._lost
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
            if k is None and i in self.unheard:
                continue  # it may be a recording that the run has: the next command listens
            there = [] if k is None else [row for row in k.rows if row.position not in self.replaced]
            if self.copies is None:
                new += [] if there else [originals[i]]
            elif k is None or len(there) < self.copies.each:
                numbers = {self.copies.number(row.utterance) for row in there}
                new += [u for u in self.copies.expand([originals[i]]) if self.copies.number(u) not in numbers]
        return new

    def _say(self, other_audio: Sequence[str], left: Sequence[Known], prune: bool) -> None:
        changes, note = self.changes, self.progress.note
        changes.replaced = len(other_audio)
        found = [(u, k) for u, k in zip(self.utterances, self.found, strict=True) if k is not None]
        if changes.relabelled:
            note(f"{changes.relabelled:,} rows have other labels now")
        if other_audio:
            note(
                f"{len(other_audio):,} recordings have other audio now and are encoded again:"
                f" {some(other_audio)}"
            )
        if changes.redrawn:
            note(f"{changes.redrawn:,} augmented copies are made again: what they are drawn by changed")
        if changes.moved:
            names = [k.id for u, k in found if k.live and k.utterance.path != u.path]
            note(f"{changes.moved:,} recordings lie elsewhere now and keep their rows: {some(names)}")
        if changes.renamed:
            note(f"{changes.renamed:,} recordings have another id now, as the manifest gives it")
        new = sum(k is None and i not in self.unheard for i, k in enumerate(self.found))
        if new:
            note(f"{new:,} recordings are new in the input and are added to the run")
        if self.again:
            note(f"{len(self.again):,} failed recordings are tried again")
        out = [k.id for _, k in found if not k.live]
        if out:
            note(f"{len(out):,} recordings stay out, which were dropped by hand: {some(out)}")
        changes.left, changes.pruned = len(left), len(left) if prune else 0
        if left:
            what = "dropped" if prune else "what is stored of them stays (--prune drops it)"
            note(
                f"{len(left):,} recordings of this run are not in the input any more:"
                f" {some([k.id for k in left])}; {what}"
            )
