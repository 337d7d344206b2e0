# ruff: noqa: PTH100, PTH112, PTH117, PTH118, PTH119, PTH120, PTH122, PTH123, PTH207
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

import csv
import difflib
import glob
import json
import math
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from sys import intern
from typing import TypeAlias

from extractor.corpora import CORPORA, Corpus, Labels, common_emotion, recognise
from extractor.errors import InputError, unknown
from extractor.types import Manifest, Seconds, Utterance

# fmt: off
AUDIO_SUFFIXES = frozenset((
    ".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".m4a", ".aac", ".mp4", ".m4v", ".mkv", ".mov",
    ".avi", ".webm", ".aif", ".aiff", ".aifc", ".sph", ".au", ".snd", ".wma", ".amr", ".caf", ".w64",
    ".rf64", ".3gp", ".gsm", ".nist", ".raw",
))
# fmt: on
MANIFEST_SUFFIXES = (".csv", ".tsv", ".jsonl")
NO_CORPUS = "files"  # `Manifest.corpus` of plain files; as the wanted corpus: read no labels from names

BASE_COLUMNS = ("emotion", "emotion_raw", "speaker")
# Extra columns come in this order wherever they are from; others follow in order of appearance.
EXTRA_COLUMNS = (
    *("session", "gender", "age", "split", "text", "sentence", "intensity", "repetition"),
    *("modality", "vocal_channel", "valence", "arousal", "dominance", "dialogue", "utterance"),
    *("sentiment", "season", "episode"),
)
_NOT_LABELS = ("path", "id", "start", "end")
_KNOWN = (*_NOT_LABELS, *BASE_COLUMNS, "split", "text")  # found in a header whatever their case
_PATH_LIKE = ("file", "filename", "filepath", "file_path", "file_name", "wav", "wav_path", "audio")
_MAX_PROBLEMS = 10
_MOST_SHARED = 65_536  # different rows of labels: more than that, and they are hardly the same again
_LONGEST_SHARED = 40  # characters: longer labels are texts, which seldom repeat

Span: TypeAlias = tuple[Seconds | None, Seconds | None]
WHOLE: Span = (None, None)


@dataclass
class _Source:
    """Recordings that came in together. The lists are aligned; an empty one says nothing of any."""

    name: str  # the input as it was given
    root: str  # folder that ids and labels from folder names are relative to
    paths: list[str]
    spans: list[Span] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)  # given by the user; "" where not
    corpus_ids: list[str] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    labels: list[tuple[str, ...]] = field(default_factory=list)
    lines: array[int] = field(default_factory=lambda: array("q"))  # in a manifest file
    corpus: str = NO_CORPUS

    @property
    def is_manifest(self) -> bool:
        return bool(self.lines)

    def span(self, i: int) -> Span:
        return self.spans[i] if self.spans else WHOLE

    def given_id(self, i: int) -> str:
        return self.ids[i] if self.ids else ""

    def origin(self, i: int) -> str:
        return f"{self.name}, line {self.lines[i]}" if self.is_manifest else self.paths[i]


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
    ids = _ids(sources)
    utterances: list[Utterance] = []
    for source in sources:
        first = len(utterances)
        for i, labels in enumerate(_aligned(source, columns)):
            start, end = source.span(i)
            utterances.append(Utterance(ids[first + i], source.paths[i], start, end, labels))
    names = dict.fromkeys(source.corpus for source in sources if source.corpus != NO_CORPUS)
    return Manifest(utterances, columns, "+".join(names) or NO_CORPUS)


# --- inputs -> sources


def _sources(names: Sequence[str]) -> list[_Source]:
    if not names:
        raise InputError(f"no input was named; {_ACCEPTED}")
    sources: list[_Source] = []
    loose: list[str] = []  # files named one by one in a row are one source: recognised together

    def flush() -> None:
        if loose:
            root = _common_folder({os.path.dirname(path) for path in loose})
            sources.append(_Source(loose[0], root, list(loose)))
            loose.clear()

    for name in names:
        for place in _places(name):
            if os.path.isdir(place):
                flush()
                sources.append(_read_folder(place))
            elif place.lower().endswith(MANIFEST_SUFFIXES):
                flush()
                sources.append(_read_table(place))
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


def _read_folder(name: str) -> _Source:
    root = os.path.abspath(name)
    try:
        paths = list(_walk(root, frozenset({os.path.realpath(root)})))
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read: {error.strerror}") from error
    if not paths:
        suffixes = " ".join(sorted(AUDIO_SUFFIXES))
        raise InputError(f"no audio in the folder {name!r}, nor below it; searched for {suffixes}")
    return _Source(name, root, paths)


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


def _once_each(sources: list[_Source]) -> list[_Source]:
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


# --- manifest files


class _Problems:
    """What is wrong with a manifest file: a user mends ten lines at a time, not one."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.found: list[str] = []

    def add(self, line: int, what: str) -> None:
        self.found.append(f"line {line}: {what}")
        if len(self.found) >= _MAX_PROBLEMS:
            self.found.append("there may be more")
            self.stop()

    def stop(self) -> None:
        if self.found:
            raise InputError("\n  ".join([f"{self.file}: not a usable manifest", *self.found]))


# line, path, id, start, end, labels
_Record: TypeAlias = tuple[int, str, str, object, object, list[str]]


def _read_table(name: str) -> _Source:
    file = os.path.abspath(name)
    source = _Source(name, os.path.dirname(file), [])
    problems = _Problems(name)
    names: list[str] = []
    records = _json_records if name.lower().endswith(".jsonl") else _csv_records
    try:
        _take(records(file, names, problems), source, problems)
    except UnicodeDecodeError:
        problems.add(_undecodable_line(file), "not UTF-8; save the file as UTF-8")
    except OSError as error:
        raise InputError(f"{name}: cannot be read: {error.strerror}") from error
    problems.stop()
    if not source.paths:
        raise InputError(f"{name}: not a usable manifest\n  line 1: no recording in it")
    _read_emotions(source, names)
    return source


def _take(records: Iterator[_Record], source: _Source, problems: _Problems) -> None:
    """Checks each record and appends it to ``source``."""
    folder = os.path.join(source.root, "")
    first_line: dict[str, int] = {}
    for line, path, name, start, end, labels in records:
        if not path.strip():
            problems.add(line, "'path' is empty")
            continue
        span = WHOLE
        if start not in ("", None) or end not in ("", None):
            try:
                span = _span(start, end)
            except ValueError as error:
                problems.add(line, str(error))
                continue
        if name:
            before = first_line.setdefault(name, line)
            if before != line:
                problems.add(line, f"the id {name!r} is taken by line {before}")
                continue
        source.paths.append(_absolute(folder, path))
        source.ids.append(name)
        source.spans.append(span)
        source.lines.append(line)
        source.labels.append(tuple([intern(x) if len(x) <= _LONGEST_SHARED else x for x in labels]))


def _absolute(folder: str, path: str) -> str:
    """``os.path.abspath`` without its cost where the path has nothing to resolve."""
    if not os.path.isabs(path):
        path = folder + path
    return os.path.abspath(path) if os.sep != "/" or "//" in path or "/." in path or path[-1] == "/" else path


def _span(start: object, end: object) -> Span:
    first, last = _seconds("start", start), _seconds("end", end)
    if last is not None and last <= (first or 0.0):
        raise ValueError(f"'end' ({last:g}) is not after 'start' ({first or 0:g})")
    return first, last


def _seconds(name: str, value: object) -> Seconds | None:
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        number = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{name!r} is not a number of seconds: {value!r}") from None
    if not math.isfinite(number) or number < 0:
        raise ValueError(f"{name!r} must be zero or more seconds, not {value!r}")
    return number


def _header(cells: list[str]) -> list[str]:
    """Column names; those that mean something are found in any case, "Emotion" as "emotion"."""
    names = [cell.strip() for cell in cells]
    return [intern(name.lower() if name.lower() in _KNOWN else name) for name in names]


def _csv_records(file: str, names: list[str], problems: _Problems) -> Iterator[_Record]:
    delimiter = "\t" if file.lower().endswith(".tsv") else ","
    with open(file, encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(_without_nul(stream, problems), delimiter=delimiter, strict=True)
        line = 0
        try:
            header = _header(next(reader, []))
            if not _usable_header(header, delimiter, problems):
                return
            column = {name: header.index(name) for name in _NOT_LABELS if name in header}
            path_at, id_at = column["path"], column.get("id", -1)
            start_at, end_at = column.get("start", -1), column.get("end", -1)
            # a column without a name is a table's row number, as pandas writes it
            labels_at = [i for i, name in enumerate(header) if name and name not in _NOT_LABELS]
            names.extend(header[i] for i in labels_at)
            line = reader.line_num
            for cells in reader:
                line, after = reader.line_num, line + 1  # a quoted cell may span lines: `after` is its first
                if len(cells) != len(header):
                    if cells and any(map(str.strip, cells)):
                        problems.add(after, f"{len(cells)} cells where the header has {len(header)}")
                    continue
                yield (
                    after,
                    cells[path_at],
                    cells[id_at].strip() if id_at >= 0 else "",
                    cells[start_at] if start_at >= 0 else "",
                    cells[end_at] if end_at >= 0 else "",
                    [cells[i].strip() for i in labels_at],
                )
        except csv.Error as error:
            problems.add(line + 1, f"cannot be read as a table: {error}")


def _without_nul(lines: Iterable[str], problems: _Problems) -> Iterator[str]:
    """The lines up to one with a NUL, which neither a path nor the store can hold."""
    for line, text in enumerate(lines, 1):
        if "\0" in text:
            problems.add(line, "contains a NUL byte; is this a text file?")
            return
        yield text


def _usable_header(header: list[str], delimiter: str, problems: _Problems) -> bool:
    if not header:
        problems.add(1, "no header; a manifest begins with the names of its columns, 'path' among them")
        return False
    twice = sorted({name for name in header if name and header.count(name) > 1})
    if twice:
        problems.add(1, f"more than one column {', '.join(map(repr, twice))}")
        return False
    if "path" in header:
        return True
    problems.add(1, f"no column 'path' (found: {', '.join(header)}){_near_path(header)}")
    other = {",": ";\t", "\t": ",;"}[delimiter]
    if len(header) == 1 and any(character in header[0] for character in other):
        problems.add(1, "cells are parted by commas in .csv and by tabs in .tsv")
    return False


def _near_path(names: Sequence[str]) -> str:
    near = [name for name in names if name.lower() in _PATH_LIKE]
    near += [name for name in difflib.get_close_matches("path", names, cutoff=0.5) if name not in near]
    return f"; rename {' or '.join(map(repr, near))} to 'path'" if near else ""


def _json_records(file: str, names: list[str], problems: _Problems) -> Iterator[_Record]:
    position: dict[str, int] = {}  # of a label; lines may bring new ones
    with open(file, encoding="utf-8-sig") as stream:
        for line, text in enumerate(_without_nul(stream, problems), 1):
            if not text.strip():
                continue
            try:
                record = json.loads(text)
            except (json.JSONDecodeError, RecursionError) as error:
                problems.add(line, f"not JSON: {error.msg if isinstance(error, ValueError) else error}")
                continue
            if not isinstance(record, dict):
                problems.add(line, 'not a JSON object such as {"path": "a.wav"}')
                continue
            if isinstance(record.get("labels"), dict):
                # a run's own manifest.jsonl: what is beside "labels" is the run's, not the recording's
                record = record["labels"] | {key: record[key] for key in _NOT_LABELS if key in record}
            record = dict(zip(_header(list(record)), record.values(), strict=True))
            if not isinstance(record.get("path"), str) or "\0" in record["path"]:
                found = ", ".join(record) or "none"
                problems.add(line, f"no 'path' with a text (found: {found}){_near_path(list(record))}")
                continue
            cells = [""] * len(names)
            for name, value in record.items():
                if name in _NOT_LABELS or not name:
                    continue
                if name not in position:
                    position[name] = len(names)
                    names.append(name)
                    cells.append("")
                cells[position[name]] = _cell(line, name, value, problems)
            name = _cell(line, "id", record.get("id"), problems)
            yield line, record["path"], name, record.get("start"), record.get("end"), cells


def _cell(line: int, name: str, value: object, problems: _Problems) -> str:
    if isinstance(value, str):
        if not _is_storable(value):
            problems.add(line, f"{name!r} holds a character that cannot be written as UTF-8, or a NUL")
            return ""
        return value.strip()
    if value is None:
        return ""
    if isinstance(value, dict | list):
        problems.add(line, f"{name!r} must be a text or a number, not a {type(value).__name__}")
        return ""
    return json.dumps(value)


def _is_storable(text: str) -> bool:
    """False for what only JSON's escapes can bring: lone surrogates and NULs."""
    return "\0" not in text and (text.isascii() or not any("\ud800" <= c <= "\udfff" for c in text))


def _undecodable_line(file: str) -> int:
    with open(file, "rb") as stream:
        for line, data in enumerate(stream, 1):
            try:
                data.decode("utf-8")
            except UnicodeDecodeError:
                return line
    return 1


def _read_emotions(source: _Source, names: list[str]) -> None:
    """``emotion`` in the common set, ``emotion_raw`` as written: from either column, or from both."""
    width = len(names)
    labels = [row if len(row) == width else (*row, *[""] * (width - len(row))) for row in source.labels]
    source.columns, source.labels = names, labels
    at = next((names.index(name) for name in ("emotion", "emotion_raw") if name in names), None)
    if at is None:
        return
    common = {raw: intern(common_emotion(raw)) for raw in {row[at] for row in labels}}
    if "emotion" in names and "emotion_raw" in names:
        source.labels = [(*row[:at], common[row[at]], *row[at + 1 :]) for row in labels]
    else:
        source.columns = [*names[:at], "emotion_raw", *names[at + 1 :], "emotion"]
        source.labels = [(*row, common[row[at]]) for row in labels]


# --- corpora -> labels


def _recognise(sources: list[_Source]) -> None:
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


def _part_speakers(sources: list[_Source]) -> None:
    """Speaker 03 of one corpus is not speaker 03 of another: nothing that groups them may think so."""
    for source in sources:
        if "speaker" in source.columns:
            at = source.columns.index("speaker")
            source.labels = [
                (*row[:at], intern(f"{source.corpus}-{row[at]}") if row[at] else "", *row[at + 1 :])
                for row in source.labels
            ]


def _force(corpus: Corpus, sources: list[_Source]) -> None:
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


def _label(corpus: Corpus, source: _Source) -> None:
    """Adds the corpus's labels; those that the source has already win."""
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


def _either(labels: tuple[str, ...], at: int | None, row: Labels, name: str) -> str:
    if at is not None and labels[at]:
        return labels[at]
    value = row.get(name, "")
    return intern(value) if len(value) <= _LONGEST_SHARED else value


# --- sources -> columns, labels, ids


def _columns(sources: list[_Source]) -> tuple[str, ...]:
    there = dict.fromkeys(name for source in sources for name in source.columns)
    known = [name for name in EXTRA_COLUMNS if name in there]
    return (*BASE_COLUMNS, *known, *(n for n in there if n not in BASE_COLUMNS and n not in EXTRA_COLUMNS))


def _aligned(source: _Source, columns: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
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


def _ids(sources: list[_Source]) -> list[str]:
    """Ids, unique over all: as given, else the shortest of these forms that tells all apart.

    The corpus's own id or the stem; the path below the common folder without its suffix; with it.
    A segment's carries its times: ``stem@1.5-4``.
    """
    ids: list[str] = []
    for form in (_stem, _below, _below_with_suffix):
        prefix = "" if form is _stem else _common_prefix(sources)
        ids = [name for source in sources for name in _source_ids(source, form, prefix)]
        if len(set(ids)) == len(ids):
            return ids
    first: dict[str, str] = {}
    problems: list[str] = []
    origins = (source.origin(i) for source in sources for i in range(len(source.paths)))
    for name, origin in zip(ids, origins, strict=True):
        if name in first and len(problems) < _MAX_PROBLEMS:
            problems.append(f"{name!r}: {first[name]} and {origin}")
        first.setdefault(name, origin)
    raise InputError("\n  ".join(["recordings with the same id; give each row its own 'id'", *problems]))


def _source_ids(source: _Source, form: Callable[[str, str], str], prefix: str) -> Iterator[str]:
    for i, path in enumerate(source.paths):
        name = source.given_id(i)
        if not name:
            name = source.corpus_ids[i] if source.corpus_ids else ""
            name = name or form(path, prefix)
            if source.span(i) != WHOLE:
                name = f"{name}@{_times(source.span(i))}"
            if not name.isascii():
                # bytes of a file name that are no UTF-8 are surrogates, which no store can write
                name = name.encode("utf-8", "backslashreplace").decode("utf-8")
        yield name


def _stem(path: str, prefix: str) -> str:
    return os.path.splitext(os.path.basename(path))[0]


def _below(path: str, prefix: str) -> str:
    return os.path.splitext(_below_with_suffix(path, prefix))[0]


def _below_with_suffix(path: str, prefix: str) -> str:
    return path.removeprefix(prefix).replace(os.sep, "/")


def _times(span: Span) -> str:
    start, end = span
    return f"{start or 0:.10g}-{'end' if end is None else f'{end:.10g}'}"


def _common_prefix(sources: list[_Source]) -> str:
    folders: set[str] = set()
    for source in sources:
        folders |= {os.path.dirname(path) for path in source.paths} if source.is_manifest else {source.root}
    return os.path.join(_common_folder(folders), "")
