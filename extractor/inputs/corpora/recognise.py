# ruff: noqa: PTH118, PTH120
# A path is a str here: there may be millions of them.
"""Which corpora some recordings are of, by the names of files and folders."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from extractor.inputs.corpora.table import CORPORA, FOLDERS, NAMED, Corpus
from extractor.inputs.corpora.words import common_emotion
from extractor.types import EMOTIONS

_SAMPLES = (20, 1000)  # files looked at before all are: rules most corpora out at no cost
_DEPTH = 3  # folders below the input that a corpus is looked for in: data/speech/urdu
_MOST_CORPORA = 64  # folders side by side that may be corpora; more are speakers or sessions of one


@dataclass(frozen=True, slots=True)
class Piece:
    """Recordings of one corpus among those of an input."""

    corpus: Corpus
    root: str  # the corpus's own folder
    rows: list[int]  # positions in the paths that were given


def recognise(paths: Sequence[str], root: str) -> list[Piece]:
    """The corpora whose naming ``paths`` (absolute, found under the folder ``root``) follow; none twice.

    What a corpus of its names holds may be one folder among others, or lie among the files of another
    corpus. Of the recordings in no piece nothing is known.
    """
    pieces = _pieces(paths, list(range(len(paths))), root, 0)
    together: dict[tuple[str, str], Piece] = {}
    for piece in pieces:
        together.setdefault((piece.corpus.name, piece.root), Piece(piece.corpus, piece.root, []))
        together[piece.corpus.name, piece.root].rows.extend(piece.rows)
    return [Piece(piece.corpus, piece.root, sorted(piece.rows)) for piece in together.values()]


def _pieces(paths: Sequence[str], rows: list[int], root: str, depth: int) -> list[Piece]:
    """Of ``rows`` of ``paths``, all of them below ``root``, which is ``depth`` folders below the input."""
    named = _by_name(paths, rows, root)
    if sum(len(piece.rows) for piece in named) == len(rows):
        return named
    below = _below(paths, rows, root) if depth < _DEPTH else {}
    parts: list[Piece] = []
    for folder, members in below.items():
        if folder != root:
            parts += _pieces(paths, members, folder, depth + 1)
    parts = _without_lookalikes(parts, paths, rows, root)
    more = {piece.corpus.name for piece in parts} - {piece.corpus.name for piece in named}
    if not more and named:
        return named  # one corpus with strays
    if more <= {FOLDERS.name} and not named and (whole := _by_folder(paths, rows, root, depth == 0)):
        return whole
    taken = {row for piece in parts for row in piece.rows}
    rest = [row for row in rows if row not in taken]
    return parts + (_by_name(paths, rest, root) or _by_folder(paths, rest, root, depth == 0))


def _below(paths: Sequence[str], rows: Sequence[int], root: str) -> dict[str, list[int]]:
    """Rows by the folder of ``root`` that they are in, its own files under ``root``; empty if too many."""
    start = os.path.join(root, "")
    folders: dict[str, list[int]] = {}
    for row in rows:
        inside, slash, _ = paths[row].removeprefix(start).partition(os.sep)
        known = slash and paths[row].startswith(start)
        folders.setdefault(start + inside if known else root, []).append(row)
        if len(folders) > _MOST_CORPORA:
            return {}
    return folders


def _by_name(paths: Sequence[str], rows: Sequence[int], root: str) -> list[Piece]:
    """Corpora whose file names nearly all ``rows`` have, each recording the first that it fits; else none."""
    for looked_at in _looked_at(rows):
        found: dict[str, list[int]] = {}
        last = NAMED[0]  # most often the next is of the same corpus
        for row in looked_at:
            if last.parse(paths[row], root) is None:
                corpus = next((each for each in NAMED if each.parse(paths[row], root) is not None), None)
                if corpus is None:
                    continue
                last = corpus
            found.setdefault(last.name, []).append(row)
        least = min((CORPORA[name].share for name in found), default=1.0)
        # Of few files the share says little: most of them must fit.
        least = least if looked_at is rows else least - 0.2
        if not rows or sum(map(len, found.values())) < least * len(looked_at):
            return []
    return [Piece(CORPORA[name], root, members) for name, members in found.items()]


def _by_folder(paths: Sequence[str], rows: list[int], root: str, top: bool) -> list[Piece]:
    """All ``rows`` as recordings in a folder an emotion, or nothing.

    One folder of a larger input (not ``top``) is such a corpus if the emotions' folders are inside it,
    two at least: "Anger" beside "recordings" is none.
    """

    def emotion(folder: str) -> str | None:
        found = FOLDERS.parse(os.path.join(folder, "x"), root)
        return None if found is None else common_emotion(found["emotion_raw"])

    for some in _looked_at(rows):
        emotions = {emotion(folder) for folder in {os.path.dirname(paths[row]) for row in some}}
        if None in emotions:
            return []
    # "other" alone says nothing: any folder might be called so
    known = emotions & {*EMOTIONS} - {"other"}
    if not known or (not top and (len(emotions) < 2 or emotion(root) is not None)):
        return []
    return [Piece(FOLDERS, root, rows)]


def _looked_at(rows: Sequence[int]) -> Iterator[Sequence[int]]:
    """Ever more of the rows, evenly spaced, at last all."""
    for count in _SAMPLES:
        if count < len(rows):
            yield rows[:: len(rows) // count]
    yield rows


def _without_lookalikes(
    parts: list[Piece], paths: Sequence[str], rows: Sequence[int], root: str
) -> list[Piece]:
    """Leaves out corpora of which as much is spread over other folders: names that are only like theirs."""
    inside = Counter(piece.corpus.name for piece in parts for _ in piece.rows)
    taken = {row for piece in parts for row in piece.rows}
    rest = [row for row in rows if row not in taken]
    outside = {
        name: sum(CORPORA[name].parse(paths[row], root) is not None for row in rest)
        for name in inside
        if name != FOLDERS.name
    }
    return [
        piece
        for piece in parts
        if outside.get(piece.corpus.name, 0) <= (1 - piece.corpus.share) * inside[piece.corpus.name]
    ]
