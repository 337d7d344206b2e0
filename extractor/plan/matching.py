"""Which recordings of a run are which of its input now: by path and span, by name and stamp, by audio.

What is found keeps its id for good, unless a manifest gives it another; what is new gets one that is
free.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from extractor.audio.files import Stamp
from extractor.errors import InputError
from extractor.store.pairing import Pairing
from extractor.store.run_folder import BY_HAND, ManifestRow
from extractor.types import Manifest, Utterance

if TYPE_CHECKING:
    from extractor.augment.copies import Copies


@dataclass(frozen=True, slots=True)
class RunRecording:
    """A recording of the run: its line of the manifest, or those of its copies."""

    id: str
    rows: list[ManifestRow]

    @property
    def utterance(self) -> Utterance:
        """Any of its rows': they have one path and span."""
        return self.rows[0].utterance

    @property
    def live(self) -> list[ManifestRow]:
        return [row for row in self.rows if not row.dropped]

    @property
    def stamp(self) -> tuple[int | None, int | None] | None:
        """Of its file, as all its rows have it; None where they differ."""
        stamps = {(row.size, row.mtime_ns) for row in self.rows}
        return stamps.pop() if len(stamps) == 1 else None


def recordings_of(rows: Iterable[ManifestRow], copies: Copies | None) -> list[RunRecording]:
    """Of the lines that count, and of those that were dropped by hand and stay out."""
    kept = [row for row in rows if not row.dropped or row.dropped == BY_HAND]
    if copies is None:
        return [RunRecording(row.utterance.id, [row]) for row in kept]
    found: dict[Hashable, RunRecording] = {}
    for row in kept:
        name = copies.original(row.utterance)
        place = (name, row.utterance.path, row.utterance.span)
        found.setdefault(place, RunRecording(name, [])).rows.append(row)
    return list(found.values())


class Matching(Pairing[RunRecording, Utterance]):
    """The recordings of a run beside its input of now."""

    def __init__(self, known: Sequence[RunRecording], manifest: Manifest) -> None:
        super().__init__(known, manifest.utterances)
        self.is_given = manifest.is_given

    def by_places(self) -> None:
        """What lies where it lay, cut as it was; of several rows of one place by id, then in their order."""
        self.pair(lambda k: (k.id, k.utterance.path, k.utterance.span), lambda i, u: (u.id, u.path, u.span))
        self.pair(lambda k: (k.utterance.path, k.utterance.span), lambda i, u: (u.path, u.span))

    def by_names(self, stamps: Mapping[str, Stamp | None], stored: set[int]) -> None:
        """What lies elsewhere now under its id and file name: of the same size and time, or not yet stored.

        And what a manifest cuts at other times out of its file, under the id that it gave it.
        """

        def name(id_: str, utterance: Utterance) -> Hashable:
            return id_, utterance.file_name, utterance.span

        def waits(k: RunRecording) -> bool:
            return all(not row.dropped and row.position not in stored for row in k.rows)

        self.pair(
            lambda k: (name(k.id, k.utterance), k.stamp) if k.stamp else None,
            lambda i, u: (name(u.id, u), stamps.get(u.path)),
        )
        self.pair(lambda k: name(k.id, k.utterance) if waits(k) else None, lambda i, u: name(u.id, u))
        self.pair(
            lambda k: (k.id, k.utterance.path),
            lambda i, u: (u.id, u.path) if self.is_given(i) else None,
        )

    def by_audio(self, was: Mapping[int, str], now: Mapping[int, str]) -> None:
        """What lies elsewhere now under another name. ``was``: checksums by position, ``now``: by index.

        Of several with the same audio, the one that was called so; then one that is not dropped.
        """

        def audio(k: RunRecording, *more: Hashable) -> Hashable:
            found = {was[row.position] for row in k.live or k.rows if row.position in was}
            return (found.pop(), k.utterance.span, *more) if len(found) == 1 else None

        def audio_of_new(i: int, u: Utterance, *more: Hashable) -> Hashable:
            return (now[i], u.span, *more) if i in now else None

        self.pair(lambda k: audio(k, k.id), lambda i, u: audio_of_new(i, u, u.id))
        self.pair(lambda k: audio(k, k.utterance.file_name), lambda i, u: audio_of_new(i, u, u.file_name))
        self.pair(lambda k: audio(k) if k.live else None, audio_of_new)
        self.pair(audio, audio_of_new)


def ids_of(
    found: Sequence[RunRecording | None], manifest: Manifest, left: Mapping[str, str], out: Iterable[str]
) -> list[str]:
    """The id of each utterance: what a manifest gives, what the run gave it, or one that is free.

    ``left``: ids of the run's recordings that are not in the input, with their paths. ``out``: of those
    that were dropped by hand, which no new recording gets unless it is given. A new recording's
    is its shortest form that nothing else in the input could be called by, nor is; where the run's are
    all of the longer form that the input needs, so is that. Raises InputError where there is none.
    """
    utterances, given = manifest.utterances, manifest.given or (False,) * len(manifest)
    ids = [
        u.id if k is None or by_manifest else k.id
        for u, k, by_manifest in zip(utterances, found, given, strict=True)
    ]
    new = [i for i, k in enumerate(found) if k is None and not given[i]]
    fixed = [i for i, k in enumerate(found) if (given[i] if k is None else k.live)]
    taken = {*left, *(ids[i] for i in fixed)}
    if len(taken) < len(left) + len(fixed):
        raise _clash(ids, fixed, utterances, left)
    taken.update(out)
    # Whether the ids that the input gives to what is new are of the form that the run's have.
    known = [i for i, k in enumerate(found) if k is not None]
    shortest = not manifest.names or all(ids[i] == manifest.names[i][0] for i in new)
    as_in_run = shortest or (
        all(ids[i] == utterances[i].id for i in known) and any(ids[i] != manifest.names[i][0] for i in known)
    )
    if as_in_run and taken.isdisjoint(ids[i] for i in new):
        return ids
    most = max((len(manifest.names[i]) for i in new), default=0) if manifest.names else 0
    for form in range(most):
        if not new:
            break
        named = [names[min(form, len(names) - 1)] for names in manifest.names]
        count = Counter(named)
        for i in new:
            ids[i] = named[i]
        free = {i for i in new if count[named[i]] == 1 and named[i] not in taken}
        taken.update(named[i] for i in free)
        new = [i for i in new if i not in free]
    if new:
        raise _clash(ids, new, utterances, dict.fromkeys(taken, "of a recording of this run") | {**left})
    return ids


def _clash(
    ids: Sequence[str], which: Sequence[int], utterances: Sequence[Utterance], left: Mapping[str, str]
) -> InputError:
    """Of an id that would be two recordings', the first that there is."""
    seen = dict(left)
    for i in which:
        if ids[i] in left:
            return InputError(
                f"id {ids[i]!r} is {utterances[i].path} now and was {left[ids[i]]} when this run began; name"
                " another --out, give the recordings ids of their own in a manifest, or drop what left"
                " the input with --prune"
            )
        if ids[i] in seen:
            return InputError(
                f"id {ids[i]!r} would be {seen[ids[i]]} and {utterances[i].path}: a manifest gives it to one,"
                " the other has it in this run; give both an id"
            )
        seen[ids[i]] = utterances[i].path
    raise AssertionError("no id is there twice")
