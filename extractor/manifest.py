# ruff: noqa: PTH100, PTH112, PTH119, PTH120, PTH122, PTH207
# A path is a str here: a Path a row would cost more than all the rest.
"""Inputs -> Manifest: which recordings, under which ids, with which labels.

    folders, files, globs ─┐                        ┌─ corpora: labels from names and side files
                           ├─> sources ─> once each ─┤
    .csv .tsv .jsonl ──────┘                        └─ ids ─> Manifest

A manifest file has a row a recording: ``path`` (relative to the file's own folder), optional ``id
emotion speaker split text start end`` (seconds), and any further column, kept as a label. Everything
that is wrong with it is refused here, with line numbers (the header is line 1); a recording that does
not exist is not: it becomes an error row of the run.

A million rows must read in seconds, so there is no ``Path`` per row, and repeated labels are one string.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from sys import intern

from extractor.corpora import CORPORA, Corpus, Labels, Spare, recognise
from extractor.errors import InputError, unknown
from extractor.ids import Names
from extractor.manifest_file import (
    BASE_COLUMNS,
    LONGEST_SHARED,
    NO_CORPUS,
    WHOLE,
    Source,
    read_table,
)
from extractor.types import Manifest, Utterance

# fmt: off
AUDIO_SUFFIXES = frozenset((
    ".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".m4a", ".aac", ".mp4", ".m4v", ".mkv", ".mov",
    ".avi", ".webm", ".aif", ".aiff", ".aifc", ".sph", ".au", ".snd", ".wma", ".amr", ".caf", ".w64",
    ".rf64", ".3gp", ".gsm", ".nist", ".raw",
))
# fmt: on
MANIFEST_SUFFIXES = (".csv", ".tsv", ".jsonl")
# Extra columns come in this order wherever they are from; others follow in order of appearance.
EXTRA_COLUMNS = (
    *("session", "gender", "age", "split", "text", "sentence", "intensity", "repetition"),
    *("modality", "vocal_channel", "valence", "arousal", "dominance", "dialogue", "utterance"),
    *("sentiment", "season", "episode"),
)
_MOST_SHARED = 65_536  # different rows of labels: more than that, and they are hardly the same again


def read_manifest(
    inputs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], corpus: str | None = None
) -> Manifest:
    """The recordings that ``inputs`` name, in their order, each once.

    ``inputs``: folders (searched recursively for audio suffixes; hidden files left out), files (taken
    whatever their suffix), glob patterns, and manifest files. ``corpus``: a name of ``CORPORA``, or
    ``"files"`` for no labels from names; ``None`` recognises it, for all inputs together or else for
    each of them (then speakers carry their corpus's name). Labels of a manifest file win over those of
    a corpus. Raises ``InputError``.
    """
    if isinstance(inputs, (str, os.PathLike)):
        inputs = [inputs]
    if corpus is not None and corpus not in CORPORA and corpus != NO_CORPUS:
        raise InputError(unknown("corpus", corpus, [*CORPORA, NO_CORPUS]))
    sources = _once_each(_sources([os.fspath(name) for name in inputs]))
    if corpus is None:
        _recognise(sources)
    elif corpus != NO_CORPUS:
        _force(CORPORA[corpus], sources)
    columns = _columns(sources)
    names = Names(sources)
    ids = names.ids()
    utterances: list[Utterance] = []
    for source in sources:
        first = len(utterances)
        for i, labels in enumerate(_aligned(source, columns)):
            start, end = source.span(i)
            utterances.append(Utterance(ids[first + i], source.paths[i], start, end, labels))
    corpora = dict.fromkeys(source.corpus for source in sources if source.corpus != NO_CORPUS)
    notes = tuple(note for source in sources for note in source.notes)
    return Manifest(utterances, columns, "+".join(corpora) or NO_CORPUS, notes, names, names.given())


# --- inputs -> sources


def _sources(names: Sequence[str]) -> list[Source]:
    if not names:
        raise InputError(f"no input was named; {_ACCEPTED}")
    sources: list[Source] = []
    loose: list[str] = []  # files named one by one in a row are one source: recognised together

    def flush() -> None:
        if loose:
            root = _common_folder({os.path.dirname(path) for path in loose})
            sources.append(Source(loose[0], root, list(loose)))
            loose.clear()

    for name in names:
        for place in _places(name):
            if os.path.isdir(place):
                flush()
                sources.append(_read_folder(place))
            elif place.lower().endswith(MANIFEST_SUFFIXES):
                flush()
                sources.append(read_table(place))
            else:
                loose.append(os.path.abspath(place))
    flush()
    return sources


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
    found = sorted(glob.glob(name, recursive=True))
    last = os.path.basename(name)
    suffix = os.path.splitext(last)[1]
    # "data/*" names no kind of file, so it does not make recordings of a README; "data/*.raw" does.
    # "**" descends by itself: searching the folders that it matches would find all twice.
    any_file, search = suffix != "" and not glob.has_magic(suffix), "**" not in name
    matched = [place for place in found if (search if os.path.isdir(place) else any_file or _is_audio(place))]
    if not matched:
        raise InputError(f"the pattern {name!r} matches no recording; {_ACCEPTED}")
    return matched


def _is_audio(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in AUDIO_SUFFIXES


def _read_folder(name: str) -> Source:
    root = os.path.abspath(name)
    try:
        paths = list(_walk(root, frozenset({os.path.realpath(root)})))
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read: {error.strerror}") from error
    if not paths:
        suffixes = " ".join(sorted(AUDIO_SUFFIXES))
        raise InputError(f"no audio in the folder {name!r}, nor below it; searched for {suffixes}")
    return Source(name, root, paths, searched=True)


def _walk(folder: str, above: frozenset[str]) -> Iterator[str]:
    """Audio files in a fixed order. Links are followed; ``above`` (real paths) stops a loop of them."""
    with os.scandir(folder) as entries:
        listed = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda e: e.name)
    for entry in listed:
        if entry.is_dir():
            real = os.path.realpath(entry.path)
            if real not in above:
                yield from _walk(entry.path, above | {real})
        elif _is_audio(entry.name):
            yield entry.path


def _once_each(sources: list[Source]) -> list[Source]:
    """Leaves out files that were named before, by a path or by a row of a manifest file."""
    seen = {
        path
        for source in sources
        if source.is_manifest and len(sources) > 1  # alone, it has nothing to be compared with
        for i, path in enumerate(source.paths)
        if source.span(i) == WHOLE
    }
    for source in sources:
        if not source.is_manifest:
            source.paths = [path for path in dict.fromkeys(source.paths) if path not in seen]
            if len(sources) > 1:
                seen.update(source.paths)
    return [source for source in sources if source.paths]


def _common_folder(folders: Iterable[str]) -> str:
    try:
        return os.path.commonpath(folders)
    except ValueError:  # several drives
        return os.sep


# --- corpora -> labels


def _recognise(sources: list[Source]) -> None:
    """One corpus for all the sources without labels of their own, else one for each that has one."""
    bare = [source for source in sources if not set(BASE_COLUMNS).intersection(source.columns)]
    corpus = recognise([(path, source.root) for source in bare for path in source.paths])
    if corpus is not None:
        for source in bare:
            _label(corpus, source)
        return
    if len(bare) < 2:
        return
    for source in bare:
        corpus = recognise([(path, source.root) for path in source.paths])
        if corpus is not None:
            _label(corpus, source)
    if len({source.corpus for source in bare} - {NO_CORPUS}) > 1:
        _part_speakers(bare)


def _part_speakers(sources: list[Source]) -> None:
    """Speaker 03 of one corpus is not speaker 03 of another: nothing that groups them may think so."""
    for source in sources:
        if "speaker" in source.columns:
            at = source.columns.index("speaker")
            source.labels = [
                (*row[:at], intern(f"{source.corpus}-{row[at]}") if row[at] else "", *row[at + 1 :])
                for row in source.labels
            ]


def _force(corpus: Corpus, sources: list[Source]) -> None:
    strangers = [
        path for source in sources for path in source.paths if corpus.parse(path, source.root) is None
    ]
    if strangers:
        raise InputError(
            f"{len(strangers)} of {sum(len(source.paths) for source in sources)} files are not named as in "
            f"{corpus.name} ({corpus.title}): {', '.join(strangers[:5])}"
            f"{', ...' if len(strangers) > 5 else ''}; leave them out, or leave the corpus to be recognised"
        )
    for source in sources:
        _label(corpus, source)


def _label(corpus: Corpus, source: Source) -> None:
    """Adds the corpus's labels; those that the source has already win."""
    if source.searched and corpus.spare is not None:
        _leave_out(corpus.spare, source)
    rows = corpus.label(source.paths, source.root)
    own = {name: i for i, name in enumerate(source.columns)}
    columns = [*BASE_COLUMNS, *corpus.columns]
    columns += [name for name in own if name not in columns]
    given = source.labels or [()] * len(rows)
    nothing: Labels = {}
    source.labels = [
        tuple([_either(labels, own.get(name), row or nothing, name) for name in columns])
        for row, labels in zip(rows, given, strict=True)
    ]
    source.corpus_ids = [(row or nothing).get("id", "") for row in rows]
    source.columns = columns
    source.corpus = corpus.name


def _leave_out(spare: Spare, source: Source) -> None:
    """Recordings of a searched folder that the corpus has otherwise; not if there are no others."""
    kept = [path for path in source.paths if not spare.pattern.search(path.replace(os.sep, "/"))]
    if kept and len(kept) < len(source.paths):
        count, example = len(source.paths) - len(kept), next(p for p in source.paths if p not in set(kept))
        source.notes.append(
            f"{source.name}: {count:,} files left out: {spare.reason};"
            f" name {os.path.dirname(example)} to take them"
        )
        source.paths = kept


def _either(labels: tuple[str, ...], at: int | None, row: Labels, name: str) -> str:
    if at is not None and labels[at]:
        return labels[at]
    value = row.get(name, "")
    return intern(value) if len(value) <= LONGEST_SHARED else value


# --- sources -> columns, labels


def _columns(sources: list[Source]) -> tuple[str, ...]:
    there = dict.fromkeys(name for source in sources for name in source.columns)
    known = [name for name in EXTRA_COLUMNS if name in there]
    return (*BASE_COLUMNS, *known, *(n for n in there if n not in BASE_COLUMNS and n not in EXTRA_COLUMNS))


def _aligned(source: Source, columns: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The source's labels in the order of ``columns``."""
    unlabelled = ("",) * len(columns)
    if not source.labels:
        for _ in source.paths:
            yield unlabelled
        return
    at = [source.columns.index(name) if name in source.columns else -1 for name in columns]
    shared: dict[tuple[str, ...], tuple[str, ...]] = {}
    for labels in source.labels:
        row = tuple([labels[i] if i >= 0 else "" for i in at])
        yield shared.setdefault(row, row) if len(shared) < _MOST_SHARED else shared.get(row, row)
