# ruff: noqa: PTH120
# A path is a str here: a Path a row would cost more than all the rest.
"""Labels of the recordings that came in: read from the corpora's names and files, then said in common words.

input ─> corpora, each with its recordings ─> labels, where the input has none of its own
       ─> `emotion` in the common set, by the corpus's codes and ``--map``; notes on what is not
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from itertools import zip_longest
from sys import intern

from extractor.errors import InputError, some
from extractor.inputs.corpora.recognise import Piece, recognise
from extractor.inputs.corpora.side_files import Labels
from extractor.inputs.corpora.table import Corpus
from extractor.inputs.corpora.words import Renamer, Renames, common_emotion, is_missing, plain
from extractor.inputs.table import BASE_COLUMNS, LONGEST_SHARED, Input
from extractor.types import EMOTIONS

_LISTED = 20  # labels that a note names


def recognise_each(inputs: list[Input]) -> None:
    """Each input by itself. One that has labels is recognised for their codes alone."""
    bare: list[Input] = []
    for each in inputs:
        if not set(BASE_COLUMNS).intersection(each.columns):
            bare.append(each)
            each.pieces = recognise(each.paths, each.root)
            _label(each)
        elif any(common_emotion(value) not in ("", *EMOTIONS) for value in set(each.values("emotion"))):
            found = recognise(each.paths, each.root)
            each.pieces = [piece for piece in found if _has_its_codes(each, piece)]
    if len({name for each in bare for name in each.corpora}) > 1:
        # Speaker 03 of one corpus is not speaker 03 of another: nothing that groups them may think so.
        for each in bare:
            speakers = zip(each.values("speaker"), each.corpus_of_rows(), strict=False)
            each.replace(
                "speaker", [intern(f"{of.name}-{name}") if of and name else name for name, of in speakers]
            )


def _has_its_codes(source: Input, piece: Piece) -> bool:
    """Whether the labels given are the corpus's codes: those that the recordings' own names hold.

    EmoDB's F is happiness; someone's own table of it may mean fear.
    """
    codes, written = {plain(code) for code in piece.corpus.emotions}, source.values("emotion")
    alike = []
    for row in piece.rows:
        given = plain(written[row])
        if given in codes:
            found = piece.corpus.parse(source.paths[row], piece.root) or {}
            alike.append(plain(found.get("emotion_raw", "")) == given)
    return bool(alike) and all(alike)


def force(corpus: Corpus, inputs: list[Input]) -> None:
    """All recordings are of ``corpus``; only those with labels of their own may be named otherwise."""
    strangers = [
        path
        for each in inputs
        for path, emotion in zip_longest(each.paths, each.values("emotion"))
        if not emotion and corpus.parse(path, each.root) is None
    ]
    if strangers:
        raise InputError(
            f"{len(strangers)} of {sum(len(each.paths) for each in inputs)} files are not named as in "
            f"{corpus.name} ({corpus.title}): {some(strangers)}; leave them out, or leave the corpus to be"
            " recognised"
        )
    for each in inputs:
        each.pieces = [Piece(corpus, each.root, list(range(len(each.paths))))]
        _label(each)


def _label(source: Input) -> None:
    """Adds the labels of the source's corpora; those that it has already win."""
    if not source.pieces:
        return
    if source.searched:
        _leave_out(source)
    rows: list[Labels] = [{}] * len(source.paths)
    columns = list(BASE_COLUMNS)
    for piece in source.pieces:
        paths = [source.paths[row] for row in piece.rows]
        found = [piece.corpus.parse(path, piece.root) for path in paths]
        if piece.corpus.annotate is not None:
            piece.corpus.annotate(paths, found, piece.root)
        for row, labels in zip(piece.rows, found, strict=True):
            # As the corpus codes it, until `name_emotions` says it in the common words.
            rows[row] = {} if labels is None else {**labels, "emotion": labels.get("emotion_raw", "")}
        without = sum(not rows[row].get("emotion_raw") for row in piece.rows)
        if without and piece.corpus.annotate is not None:
            source.notes.append(
                f"{source.name}: {without:,} of {len(found):,} recordings of {piece.corpus.name} have no"
                " emotion: they are in none of its label files, or these are not beside them"
            )
        columns += [name for name in piece.corpus.columns if name not in columns]
    own = {name: i for i, name in enumerate(source.columns)}
    columns += [name for name in own if name not in columns]

    def either(given: tuple[str, ...], found: Labels, name: str) -> str:
        written, read = given[own[name]] if name in own else "", found.get(name, "")
        if written and not (read and is_missing(written)):
            return written
        return intern(read) if len(read) <= LONGEST_SHARED else read

    source.labels = [
        tuple([either(given, found, name) for name in columns])
        for found, given in zip(rows, source.labels or [()] * len(rows), strict=True)
    ]
    source.corpus_ids = [row.get("id", "") for row in rows]
    source.columns = columns


def _leave_out(source: Input) -> None:
    """Recordings of a searched folder that a corpus has otherwise; not if there are no others."""
    out: set[int] = set()
    for piece in source.pieces:
        if piece.corpus.spare is None:
            continue
        pattern, reason = piece.corpus.spare
        of_piece = [row for row in piece.rows if pattern.search(source.paths[row].replace(os.sep, "/"))]
        if of_piece and len(of_piece) < len(piece.rows):
            source.notes.append(
                f"{source.name}: {len(of_piece):,} files left out: {reason}"
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


def name_emotions(inputs: list[Input], renames: Renames) -> None:
    """``emotion`` in the common set, by the codes of each row's corpus, then by ``renames``."""
    emotions: list[list[str]] = []
    for each in inputs:
        common: dict[tuple[str, str], str] = {}
        of_input = []
        for value, corpus in zip(each.values("emotion"), each.corpus_of_rows(), strict=False):
            key = (corpus.name if corpus else "", value)
            if key not in common:
                common[key] = intern(corpus.emotion(value) if corpus else common_emotion(value))
            of_input.append(common[key])
        emotions.append(of_input)
    if renames:
        raw = {value for each in inputs for value in each.values("emotion_raw")}
        rename = Renamer(renames, raw.union(*emotions))
        for each, of_input in zip(inputs, emotions, strict=True):
            for i, value in enumerate(each.values("emotion_raw")):
                new = rename(value) if value and rename(value) != value else rename(of_input[i])
                of_input[i] = intern(common_emotion(new))
    for each, of_input in zip(inputs, emotions, strict=True):
        if of_input:
            notes = label_notes(of_input, each.values("emotion_raw"))
            each.label_notes = [f"{each.name}: {note}" for note in notes]
            each.replace("emotion", of_input)


def label_notes(emotions: Sequence[str], raw: Sequence[str]) -> list[str]:
    """Labels that are classes of their own, and what was taken for no label, with their counts."""
    own: Counter[str] = Counter()
    nothing: Counter[str] = Counter()
    for (written, emotion), count in Counter(zip(raw, emotions, strict=True)).items():
        if emotion and emotion not in EMOTIONS:
            own[written if not written or written == emotion else f"{written} as {emotion}"] += count
        elif written and not emotion:
            nothing[written] += count

    def listed(counts: Counter[str]) -> str:
        shown = ", ".join(f"{label} ({count:,})" for label, count in counts.most_common(_LISTED))
        return shown + (f" and {len(counts) - _LISTED:,} more" if len(counts) > _LISTED else "")

    notes = []
    if own:
        notes.append(
            f"labels outside the common set stay classes of their own: {listed(own)};"
            " --map OLD=NEW counts one as another"
        )
    if nothing:
        notes.append(f"taken for no emotion: {listed(nothing)}")
    return notes
