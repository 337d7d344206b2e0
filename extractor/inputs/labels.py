# ruff: noqa: PTH120
# A path is a str here: a Path a row would cost more than all the rest.
"""Labels of the recordings that came in: read from the corpora's names and files, then said in common words.

source ─> corpora, each with its recordings ─> labels, where the source has none of its own
       ─> `emotion` in the common set, by the corpus's codes and ``--map``; notes on what is not
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from sys import intern

from extractor.errors import InputError
from extractor.inputs.corpora.recognise import Piece, recognise
from extractor.inputs.corpora.side_files import Labels
from extractor.inputs.corpora.table import Corpus
from extractor.inputs.corpora.words import Renamer, Renames, common_emotion, is_missing, plain
from extractor.inputs.table import BASE_COLUMNS, LONGEST_SHARED, Source
from extractor.types import EMOTIONS

_LISTED = 20  # labels that a note names


def recognise_each(sources: list[Source]) -> None:
    """Each source by itself. One that has labels is recognised for their codes alone."""
    bare: list[Source] = []
    for source in sources:
        if not set(BASE_COLUMNS).intersection(source.columns):
            bare.append(source)
            source.pieces = recognise(source.paths, source.root)
            _label(source)
        elif any(common_emotion(value) not in ("", *EMOTIONS) for value in _values(source, "emotion")):
            found = recognise(source.paths, source.root)
            source.pieces = [piece for piece in found if _has_its_codes(source, piece)]
    if len({name for source in bare for name in source.corpora}) > 1:
        _part_speakers(bare)


def _has_its_codes(source: Source, piece: Piece) -> bool:
    """Whether the labels given are the corpus's codes: those that the recordings' own names hold.

    EmoDB's F is happiness; someone's own table of it may mean fear.
    """
    codes = {plain(code) for code in piece.corpus.emotions}
    at = source.columns.index("emotion")
    alike = []
    for row in piece.rows:
        given = plain(source.labels[row][at])
        if given in codes:
            found = piece.corpus.parse(source.paths[row], piece.root) or {}
            alike.append(plain(found.get("emotion_raw", "")) == given)
    return bool(alike) and all(alike)


def _values(source: Source, column: str) -> set[str]:
    if column not in source.columns:
        return set()
    at = source.columns.index(column)
    return {row[at] for row in source.labels}


def _corpus_of_rows(source: Source) -> list[Corpus | None]:
    of_row: list[Corpus | None] = [None] * len(source.paths)
    for piece in source.pieces:
        for row in piece.rows:
            of_row[row] = piece.corpus
    return of_row


def _part_speakers(sources: list[Source]) -> None:
    """Speaker 03 of one corpus is not speaker 03 of another: nothing that groups them may think so."""
    for source in sources:
        if "speaker" in source.columns:
            at = source.columns.index("speaker")
            source.labels = [
                (*row[:at], intern(f"{corpus.name}-{row[at]}"), *row[at + 1 :]) if corpus and row[at] else row
                for row, corpus in zip(source.labels, _corpus_of_rows(source), strict=True)
            ]


def force(corpus: Corpus, sources: list[Source]) -> None:
    """All recordings are of ``corpus``; only those with labels of their own may be named otherwise."""
    strangers = []
    for source in sources:
        at = source.columns.index("emotion") if "emotion" in source.columns else -1
        strangers += [
            path
            for i, path in enumerate(source.paths)
            if not (at >= 0 and source.labels[i][at]) and corpus.parse(path, source.root) is None
        ]
    if strangers:
        raise InputError(
            f"{len(strangers)} of {sum(len(source.paths) for source in sources)} files are not named as in "
            f"{corpus.name} ({corpus.title}): {', '.join(strangers[:5])}"
            f"{', ...' if len(strangers) > 5 else ''}; leave them out, or leave the corpus to be recognised"
        )
    for source in sources:
        source.pieces = [Piece(corpus, source.root, list(range(len(source.paths))))]
        _label(source)


def _label(source: Source) -> None:
    """Adds the labels of the source's corpora; those that it has already win."""
    if not source.pieces:
        return
    if source.searched:
        _leave_out(source)
    rows: list[Labels] = [{}] * len(source.paths)
    columns = list(BASE_COLUMNS)
    for piece in source.pieces:
        found = piece.corpus.label([source.paths[row] for row in piece.rows], piece.root)
        for row, labels in zip(piece.rows, found, strict=True):
            rows[row] = labels or {}
        without = sum(not (labels or {}).get("emotion_raw") for labels in found)
        if without and piece.corpus.annotate is not None:
            source.notes.append(
                f"{source.name}: {without:,} of {len(found):,} recordings of {piece.corpus.name} have no"
                " emotion: they are in none of its label files, or these are not beside them"
            )
        columns += [name for name in piece.corpus.columns if name not in columns]
    own = {name: i for i, name in enumerate(source.columns)}
    columns += [name for name in own if name not in columns]
    given = source.labels or [()] * len(rows)
    source.labels = [
        tuple([_either(labels, own.get(name), row, name) for name in columns])
        for row, labels in zip(rows, given, strict=True)
    ]
    source.corpus_ids = [row.get("id", "") for row in rows]
    source.columns = columns


def _leave_out(source: Source) -> None:
    """Recordings of a searched folder that a corpus has otherwise; not if there are no others."""
    out: set[int] = set()
    for piece in source.pieces:
        spare = piece.corpus.spare
        if spare is None:
            continue
        of_piece = [row for row in piece.rows if spare.pattern.search(source.paths[row].replace(os.sep, "/"))]
        if of_piece and len(of_piece) < len(piece.rows):
            source.notes.append(
                f"{source.name}: {len(of_piece):,} files left out: {spare.reason}"
                f" ({len(piece.rows) - len(of_piece):,} taken);"
                f" name {os.path.dirname(source.paths[of_piece[0]])} to take them"
            )
            out.update(of_piece)
    if not out:
        return
    kept = [row for row in range(len(source.paths)) if row not in out]
    place = {row: i for i, row in enumerate(kept)}
    source.paths = [source.paths[row] for row in kept]
    source.pieces = [
        Piece(piece.corpus, piece.root, [place[row] for row in piece.rows if row in place])
        for piece in source.pieces
    ]


def _either(labels: tuple[str, ...], at: int | None, row: Labels, name: str) -> str:
    value = row.get(name, "")
    if at is not None and labels[at] and not (value and is_missing(labels[at])):
        return labels[at]
    return intern(value) if len(value) <= LONGEST_SHARED else value


def name_emotions(sources: list[Source], renames: Renames) -> None:
    """``emotion`` in the common set, by the codes of each row's corpus, then by ``renames``."""
    named: list[list[str]] = []
    for source in sources:
        written = _column(source, "emotion")
        common: dict[tuple[str, str], str] = {}
        of_source = []
        for value, corpus in zip(written, _corpus_of_rows(source), strict=bool(written)):
            key = (corpus.name if corpus else "", value)
            if key not in common:
                common[key] = intern(corpus.emotion(value) if corpus else common_emotion(value))
            of_source.append(common[key])
        named.append(of_source)
    if renames:
        raw = {value for source in sources for value in _values(source, "emotion_raw")}
        rename = Renamer(renames, raw.union(*named))
        for source, of_source in zip(sources, named, strict=True):
            for i, value in enumerate(_column(source, "emotion_raw")):
                new = rename(value) if value and rename(value) != value else rename(of_source[i])
                of_source[i] = intern(common_emotion(new))
    for source, of_source in zip(sources, named, strict=True):
        if not of_source:
            continue
        notes = label_notes(of_source, _column(source, "emotion_raw"))
        source.label_notes = [f"{source.name}: {note}" for note in notes]
        at = source.columns.index("emotion")
        source.labels = [
            row if row[at] == new else (*row[:at], new, *row[at + 1 :])
            for row, new in zip(source.labels, of_source, strict=True)
        ]


def label_notes(emotions: Sequence[str], raw: Sequence[str]) -> list[str]:
    """Labels that are classes of their own, and what was taken for no label, with their counts."""
    own: Counter[str] = Counter()
    nothing: Counter[str] = Counter()
    for (written, emotion), count in Counter(zip(raw, emotions, strict=True)).items():
        if emotion and emotion not in EMOTIONS:
            own[written if not written or written == emotion else f"{written} as {emotion}"] += count
        elif written and not emotion:
            nothing[written] += count
    notes = []
    if own:
        notes.append(
            f"labels outside the common set stay classes of their own: {_listed(own)};"
            " --map OLD=NEW counts one as another"
        )
    if nothing:
        notes.append(f"taken for no emotion: {_listed(nothing)}")
    return notes


def _listed(counts: Counter[str]) -> str:
    most = counts.most_common()
    shown = ", ".join(f"{label} ({count:,})" for label, count in most[:_LISTED])
    return shown + (f" and {len(most) - _LISTED:,} more" if len(most) > _LISTED else "")


def _column(source: Source, name: str) -> list[str]:
    if name not in source.columns:
        return []
    at = source.columns.index(name)
    return [row[at] for row in source.labels]
