"""A run is edited by hand: other labels, rows dropped. Needs neither its audio nor its model.

    manifest's recordings  ->  matched with the run's: path and span, id, file name and span  ->  labels
    condition              ->  rows that are dropped, for good

What is written is the run's manifest (`RunWriter.edit_manifest`): before or after, never between.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path, PurePath

from extractor.augment.copies import COLUMNS as COPY_COLUMNS
from extractor.errors import InputError, StoreError, some
from extractor.store import Store
from extractor.store.pairing import Pairing
from extractor.store.run_folder import BY_HAND, MANIFEST, ManifestRow, read_lines, read_run
from extractor.store.where import factor, parse_where
from extractor.store.writer import RunWriter
from extractor.types import Manifest, Utterance

_DRAWN_BY = ("emotion", "speaker")  # labels that the draw of a copy may read
_WHERE_COLUMNS = ("id", "path")  # beside the labels, what a condition can name


@dataclass(frozen=True, slots=True)
class RelabelResult:
    """What ``relabel`` found and did. Ids, in the order of the run or of the manifest."""

    changed: Sequence[str]  # rows with other labels now
    num_rows: int
    not_named: Sequence[str]  # recordings of the run that the manifest does not have: as they were
    not_stored: Sequence[str]  # recordings of the manifest that the run does not have
    kept_columns: Sequence[str]  # labels of the run of which the manifest says nothing: as they were


def relabel(run: str | PathLike[str], manifest: Manifest) -> RelabelResult:
    """Give the rows of a run the labels that a manifest has for them, new columns too.

    Copies take their original's. A column that is empty in the whole manifest says nothing.
    Raises ``StoreError`` where copies were drawn by labels that change: they have to be made again.
    """
    with RunWriter.resume(_folder(run)) as writer:
        rows, columns = writer.manifest() or [], writer.columns
        copied = writer.info.augmented
        own = columns[: -len(COPY_COLUMNS)] if copied else columns  # a copy's own columns are the last
        taken = [name for name in COPY_COLUMNS if copied and name in manifest.columns]
        if taken:
            raise InputError(
                f"the manifest has a column {taken[0]!r}, which the run's copies have; rename it"
            )

        def recording(row: ManifestRow) -> str:
            """The id of the recording that a row is of, as it is or as a copy."""
            return row.utterance.labels[len(own)] if copied else row.utterance.id

        stored: dict[str, Utterance] = {}
        for row in rows:
            if not row.dropped:
                stored.setdefault(recording(row), row.utterance)
        found, not_stored = _match(stored, manifest.utterances)
        said = [k for k in range(len(manifest.columns)) if any(u.labels[k] for u in manifest.utterances)]
        at = {manifest.columns[k]: k for k in said}
        new_columns = (*own, *(name for name in at if name not in own), *columns[len(own) :])
        new_rows = []
        for row in rows:
            labels = dict(zip(columns, row.utterance.labels, strict=True))
            utterance = None if row.dropped else found.get(recording(row))
            if utterance is not None:
                labels |= {name: utterance.labels[k] for name, k in at.items()}
            values = tuple([labels.get(name, "") for name in new_columns])
            same = values == row.utterance.labels
            new_rows.append(row if same else replace(row, utterance=replace(row.utterance, labels=values)))
        labels_of = [
            (new.utterance.id, _known(old, columns), _known(new, new_columns))
            for old, new in zip(rows, new_rows, strict=True)
        ]
        changed = [each for each in labels_of if each[1] != each[2]]
        if copied:
            _refuse_redraw(writer, changed)
        writer.edit_manifest(new_rows, new_columns)
    return RelabelResult(
        changed=[name for name, *_ in changed],
        num_rows=sum(not row.dropped for row in rows),
        not_named=[name for name in stored if name not in found],
        not_stored=not_stored,
        kept_columns=[name for name in own if name not in at],
    )


def drop(run: str | PathLike[str], where: str, dry_run: bool = False) -> list[str]:
    """Drop the rows of a run that satisfy a condition over its labels, ``id`` and ``path``.

    Returns their ids. They stay out when the run goes on; what their parts hold stays where it is.
    Raises ``SettingsError`` for a condition that cannot be read, ``StoreError`` when nothing would be left.
    """
    if dry_run:
        path = _folder(run)
        if not (path / MANIFEST).exists():
            return []
        lines = read_lines(path, read_run(path).columns)
        return [row.utterance.id for row in _satisfying(path, lines.rows, lines.columns, where)]
    with RunWriter.resume(_folder(run)) as writer:
        rows = writer.manifest() or []
        gone = _satisfying(writer.path, rows, writer.columns, where)
        positions = {row.position for row in gone}
        writer.edit_manifest(
            [replace(row, dropped=BY_HAND) if row.position in positions else row for row in rows],
            writer.columns,
        )
    return [row.utterance.id for row in gone]


def _folder(run: str | PathLike[str]) -> Path:
    path = Path(run)
    if path.is_file():
        path = Store(path).path
        if path.is_file():
            raise StoreError(f"{path}: a packed run is not edited; edit its run folder and pack it anew")
    return path


def _match(
    stored: Mapping[str, Utterance], given: Sequence[Utterance]
) -> tuple[dict[str, Utterance], list[str]]:
    """For each stored recording that is among the given ones, that one; and the ids of the rest of these.

    By path and span; then by id and span; then, where no other has it, by file name and span.
    """
    pairing = Pairing([*stored.items()], given)

    def by(key: Callable[[Utterance], Hashable], among: Callable[[Utterance], bool] = bool) -> None:
        pairing.pair(lambda known: key(known[1]) if among(known[1]) else None, lambda _, u: key(u))

    by(lambda u: (u.id, u.path, u.span))
    by(lambda u: (u.path, u.span))
    if None in pairing.found:  # seldom: a million file names take seconds
        names = Counter((u.file_name, u.span) for u in stored.values())
        given_names = Counter((u.file_name, u.span) for u in given)
        # Of several recordings of one file name the ids, if made of it, say too little.
        by(lambda u: (u.id, u.span), lambda u: names[u.file_name, u.span] == 1)
        by(lambda u: (u.id, u.span, PurePath(u.path).parent.name))
        by(
            lambda u: (u.file_name, u.span),
            lambda u: names[u.file_name, u.span] == 1 == given_names[u.file_name, u.span],
        )
    both = list(zip(pairing.found, given, strict=True))
    return {known[0]: u for known, u in both if known}, [u.id for known, u in both if not known]


def _known(row: ManifestRow, columns: Sequence[str]) -> dict[str, str]:
    """Labels that are known of a row; none of a line that is dropped."""
    labels = zip(columns, row.utterance.labels, strict=True)
    return {} if row.dropped else {name: value for name, value in labels if value}


def _refuse_redraw(
    writer: RunWriter, changed: Iterable[tuple[str, Mapping[str, str], Mapping[str, str]]]
) -> None:
    """Refuse labels by which copies were drawn: other recordings would be drawn for them now.

    ``changed``: id, labels that were known and labels that are now.
    """
    from extractor.augment import parse

    augmentation = writer.info.settings["augmentation"]
    if not parse(augmentation).needs_partners:
        return
    redrawn = [
        name for name, was, now in changed if any(was.get(label) != now.get(label) for label in _DRAWN_BY)
    ]
    if redrawn:
        raise StoreError(
            f"{writer.path}: its copies were drawn by {' and '.join(_DRAWN_BY)} ({augmentation}),"
            f" which would change for {len(redrawn)} rows: {some(redrawn)}; run hser-extract again on the"
            " recordings with these labels: it makes the copies anew"
        )


def _satisfying(
    run: Path, rows: Sequence[ManifestRow], columns: Sequence[str], where: str
) -> list[ManifestRow]:
    live = [row for row in rows if not row.dropped]
    at = {name: k for k, name in enumerate(columns)}

    def values(name: str) -> Iterable[str]:
        if name in at:  # a label wins over what the store calls so
            return (row.utterance.labels[at[name]] for row in live)
        return (getattr(row.utterance, name) for row in live)

    condition = parse_where(where, (*columns, *_WHERE_COLUMNS))
    mask = condition(lambda name: factor(values(name)))
    if live and mask.all():
        raise StoreError(
            f"{run}: --where {where!r} is true of all its {len(live)} rows, and none would be left; to be rid"
            " of the run delete its folder"
        )
    return [row for row, gone in zip(live, mask.tolist(), strict=True) if gone]
