"""Which recordings of a run are which of its input now: by path and span, by name and stamp, by audio.

What is found keeps its id for good, unless a manifest gives it another; what is new gets one that is
free.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from extractor.audio.files import Stamp
from extractor.errors import InputError
from extractor.store.run_folder import BY_HAND, ManifestRow
from extractor.types import Manifest, Seconds, Utterance

if TYPE_CHECKING:
    from extractor.augment.copies import Copies


@dataclass(slots=True)
class RunRecording:
    """A recording of the run: its line of the manifest, or those of its copies."""

    id: str
    rows: list[ManifestRow]
    at: int = -1  # its place in the input of now; -1 where it is not there

    @property
    def utterance(self) -> Utterance:
        """Any of its rows': they have one path and span."""
        return self.rows[0].utterance

    @property
    def live(self) -> list[ManifestRow]:
        return [row for row in self.rows if not row.dropped]

    def has_stamp(self, stamp: Stamp | None) -> bool:
        return stamp is not None and all((row.size, row.mtime_ns) == stamp for row in self.rows)


def known_recordings(rows: Iterable[ManifestRow], copies: Copies | None) -> list[RunRecording]:
    """Of the lines that count, and of those that were dropped by hand and stay out."""
    kept = [row for row in rows if not row.dropped or row.dropped == BY_HAND]
    if copies is None:
        return [RunRecording(row.utterance.id, [row]) for row in kept]
    found: dict[tuple[object, ...], RunRecording] = {}
    for row in kept:
        name = copies.original(row.utterance)
        found.setdefault((name, _place(row.utterance)), RunRecording(name, [])).rows.append(row)
    return list(found.values())


def match_places(known: Sequence[RunRecording], utterances: Sequence[Utterance]) -> list[RunRecording | None]:
    """What lies where it lay, cut as it was, aligned with ``utterances``; `RunRecording.at` is set."""
    exact = {(_place(k.utterance), k.id): k for k in known}
    found = [exact.get((_place(u), u.id)) for u in utterances]
    for i, k in enumerate(found):
        if k is not None:
            k.at = i
    if len(exact) > sum(k is not None for k in found):
        # Several rows may cut the same of one file: then in their order.
        places: dict[tuple[object, ...], deque[RunRecording]] = defaultdict(deque)
        for k in known:
            if k.at < 0:
                places[_place(k.utterance)].append(k)
        for i, u in enumerate(utterances):
            if found[i] is None and (there := places.get(_place(u))):
                _join(found, i, there.popleft())
    return found


def match_names(
    found: list[RunRecording | None],
    known: Sequence[RunRecording],
    manifest: Manifest,
    stamps: Mapping[str, Stamp | None],
    stored: set[int],
) -> None:
    """What lies elsewhere now under its id and file name: of the same size and time, or not yet stored.

    And what a manifest cuts at other times out of its file, under the id that it gave it.
    """
    left = {k.id: k for k in known if k.at < 0}
    for i, u in enumerate(manifest.utterances):
        k = left.get(u.id) if left and found[i] is None else None
        if k is None:
            continue
        was = k.utterance
        same_name = _file(was) == _file(u)
        same_span = _place(was)[1:] == _place(u)[1:]
        unstored = all(not row.dropped and row.position not in stored for row in k.rows)
        moved = same_span and same_name and (unstored or k.has_stamp(stamps.get(u.path)))
        recut = not same_span and was.path == u.path and manifest.is_given(i)
        if moved or recut:
            _join(found, i, left.pop(u.id))


def match_audio(
    found: list[RunRecording | None],
    left: Mapping[str, Sequence[RunRecording]],
    checksums: Mapping[int, str],
    utterances: Sequence[Utterance],
) -> None:
    """What lies elsewhere now under another name, by its audio.

    ``left``: what is not where it was, by checksum. ``checksums``: of new utterances, by their index.
    """
    for i, checksum in checksums.items():
        u = utterances[i]
        same = [k for k in left.get(checksum, ()) if k.at < 0 and _place(k.utterance)[1:] == _place(u)[1:]]
        if same:
            # Of several with the same audio, the one that was called so; then one that is not dropped.
            best = max(same, key=lambda k: (k.id == u.id, _file(k.utterance) == _file(u), bool(k.live)))
            _join(found, i, best)


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
    if taken.isdisjoint(ids[i] for i in new) and _is_form_of_run(ids, found, manifest, new):
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


def _is_form_of_run(
    ids: Sequence[str], found: Sequence[RunRecording | None], manifest: Manifest, new: Sequence[int]
) -> bool:
    """Whether the ids that the input gives to what is new are of the form that the run's have."""
    if not manifest.names or all(ids[i] == manifest.names[i][0] for i in new):
        return True
    known = [i for i, k in enumerate(found) if k is not None]
    return all(ids[i] == manifest.utterances[i].id for i in known) and any(
        ids[i] != manifest.names[i][0] for i in known
    )


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


def _join(found: list[RunRecording | None], i: int, k: RunRecording) -> None:
    found[i], k.at = k, i


def _place(utterance: Utterance) -> tuple[str, Seconds | None, Seconds | None]:
    return utterance.path, utterance.start, utterance.end


def _file(utterance: Utterance) -> str:
    return os.path.basename(utterance.path)  # noqa: PTH119
