# ruff: noqa: PTH100, PTH112, PTH119, PTH120, PTH122
# A path is a str here: a Path a row would cost more than all the rest.
"""Inputs -> Manifest: which recordings, under which ids, with which labels.

    folders, files, globs ─┐                         ┌─ corpora: labels from names and side files
                           ├─> inputs ──> once each ─┤
    .csv .tsv .jsonl ──────┘                         └─ ids ─> Manifest

A million rows must read in seconds, so there is no ``Path`` per row, and repeated labels are one string.
"""

from __future__ import annotations

import glob
import itertools
import os
from collections.abc import Iterator, Sequence

from extractor.errors import InputError, unknown
from extractor.inputs.corpora.table import CORPORA
from extractor.inputs.corpora.words import NO_RENAMES, Renames
from extractor.inputs.ids import Names
from extractor.inputs.labels import force, name_emotions, recognise_each
from extractor.inputs.table import (
    BASE_COLUMNS,
    NO_CORPUS,
    WHOLE,
    Input,
    read_table,
)
from extractor.inputs.walk import AUDIO_SUFFIXES, Search, expand, recordings, suffix_of
from extractor.types import Manifest, Utterance

MANIFEST_SUFFIXES = (".csv", ".tsv", ".jsonl")
# Extra columns come in this order wherever they are from; others follow in order of appearance.
EXTRA_COLUMNS = (
    *("session", "gender", "age", "split", "text", "sentence", "intensity", "repetition"),
    *("modality", "vocal_channel", "valence", "arousal", "dominance", "dialogue", "utterance"),
    *("sentiment", "season", "episode"),
)
_MOST_SHARED = 65_536  # different rows of labels: more than that, and they are hardly the same again


def read_manifest(
    inputs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    corpus: str | None = None,
    renames: Renames = NO_RENAMES,
) -> Manifest:
    """The recordings that ``inputs`` name, in their order, each once.

    ``inputs``: folders (searched recursively for audio suffixes; hidden files left out), files (taken
    whatever their suffix), glob patterns, and manifest files. ``corpus``: a name of ``CORPORA``, or
    ``"files"`` for no labels from names; ``None`` recognises it, for each input by itself and for the
    folders in it (speakers carry their corpus's name where there are several). Labels of a manifest
    file win over those of a corpus. ``renames``: what a label, as it is written or in the common set,
    counts as. Raises ``InputError``, and ``SettingsError`` for a rename of a label that is not there.
    """
    if isinstance(inputs, (str, os.PathLike)):
        inputs = [inputs]
    if corpus is not None and corpus not in CORPORA and corpus != NO_CORPUS:
        raise InputError(unknown("corpus", corpus, [*CORPORA, NO_CORPUS]))
    found = _once_each(_inputs([os.fspath(name) for name in inputs]))
    if corpus is None:
        recognise_each(found)
    elif corpus != NO_CORPUS:
        force(CORPORA[corpus], found)
    name_emotions(found, renames)
    there = dict.fromkeys(name for each in found for name in each.columns)
    known = [name for name in EXTRA_COLUMNS if name in there]
    columns = (
        *BASE_COLUMNS,
        *known,
        *(name for name in there if name not in (*BASE_COLUMNS, *EXTRA_COLUMNS)),
    )
    names = Names(found)
    ids = iter(names.ids())
    utterances = [
        Utterance(next(ids), path, *each.span(i), labels)
        for each in found
        for i, (path, labels) in enumerate(zip(each.paths, _aligned(each, columns), strict=True))
    ]
    label_notes = tuple(note for each in found for note in each.label_notes)
    notes = (*(note for each in found for note in each.notes), *label_notes)
    name = "+".join(dict.fromkeys(name for each in found for name in each.corpora)) or NO_CORPUS
    return Manifest(utterances, columns, name, notes, names, names.given(), label_notes)


def _aligned(source: Input, columns: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The labels of each recording in the order of ``columns``; alike ones are one tuple."""
    at = [source.columns.index(name) if name in source.columns else -1 for name in columns]
    shared: dict[tuple[str, ...], tuple[str, ...]] = {}
    for labels in source.labels or itertools.repeat((), len(source.paths)):
        row = tuple([labels[i] if i >= 0 else "" for i in at])
        yield shared.setdefault(row, row) if len(shared) < _MOST_SHARED else shared.get(row, row)


# --- what was named -> inputs


def _inputs(names: Sequence[str]) -> list[Input]:
    if not names:
        raise InputError(f"no input was named; {_ACCEPTED}")
    inputs: list[Input] = []
    loose: list[str] = []  # files named one by one in a row are one input: recognised together

    def flush() -> None:
        if loose:
            try:
                root = os.path.commonpath({os.path.dirname(path) for path in loose})
            except ValueError:  # several drives
                root = os.sep
            inputs.append(Input(loose[0], root, list(loose)))
            loose.clear()

    for place in [place for name in names for place in _places(name)]:
        if os.path.isdir(place):
            flush()
            inputs.append(_read_folder(place))
        elif place.lower().endswith(MANIFEST_SUFFIXES):
            flush()
            inputs.append(read_table(place))
        else:
            loose.append(os.path.abspath(place))
    flush()
    return inputs


_ACCEPTED = (
    "accepted are folders, audio files, glob patterns in quotes, and .csv, .tsv or .jsonl manifests "
    "with a 'path' column"
)


def _places(name: str) -> list[str]:
    """What ``name`` names: itself if it is there, else what it matches as a pattern."""
    if name and os.path.lexists(name):
        return [name]
    if not glob.has_magic(name):
        raise InputError(f"{name!r} does not exist; {_ACCEPTED}")
    found = expand(name)
    last = os.path.basename(name)
    suffix = os.path.splitext(last)[1]
    # "data/*" names no kind of file, so it does not make recordings of a README; "data/*.raw" does.
    # "**" descends by itself: searching the folders that it matches would find all twice.
    any_file, search = suffix != "" and not glob.has_magic(suffix), "**" not in name
    matched = [
        place
        for place in found
        if (search if os.path.isdir(place) else any_file or suffix_of(place) in AUDIO_SUFFIXES)
    ]
    if not matched:
        raise InputError(f"the pattern {name!r} matches no recording; {_ACCEPTED}")
    return matched


def _read_folder(name: str) -> Input:
    root, found = os.path.abspath(name), Search()
    try:
        paths = recordings(root, found)
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read: {error.strerror}") from error
    notes = found.notes(name)
    if not paths:
        suffixes = " ".join(sorted(AUDIO_SUFFIXES))
        raise InputError(
            "\n  ".join([f"no audio in the folder {name!r}, nor below it; searched for {suffixes}", *notes])
        )
    return Input(name, root, paths, searched=True, notes=notes)


def _once_each(inputs: list[Input]) -> list[Input]:
    """Leaves out files that were named before, by a path or by a row of a manifest file."""
    several = len(inputs) > 1  # alone, one has nothing to be compared with
    seen = {
        path
        for each in inputs
        if each.is_manifest and several
        for i, path in enumerate(each.paths)
        if each.span(i) == WHOLE
    }
    for each in inputs:
        if not each.is_manifest:
            each.paths = [path for path in dict.fromkeys(each.paths) if path not in seen]
            if several:
                seen.update(each.paths)
    return [each for each in inputs if each.paths]
