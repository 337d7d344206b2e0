"""The run folder: its names, and its text files ``run.json``, ``manifest.jsonl``, ``errors.jsonl``.

    run.json        what the run was asked for (compared on resume) and where it ran (not compared)
    manifest.jsonl  one line an utterance, line k is position k: what the run says now (``edition.py``)
    rows.h5         of an edited run: the same for quick readers; derived, may be deleted
    errors.jsonl    one line a recording that could not be embedded
    quiet-*.txt     checksums of silent recordings, a line each
    embeddings.h5   table of contents over the parts (``contents.py``)
    parts/          batch-N.h5: one committed batch; part-N.h5: merged, N the lowest batch inside

A part is named after its lowest batch. A batch is in one part only, so names cannot collide,
whoever writes, and the shard that owns a file can be told from its name.
JSON is ASCII: file names that are no valid UTF-8 survive, and every reader can read it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from extractor.errors import SettingsDiffer, StoreError
from extractor.store.aside import TMP, aside
from extractor.types import Failure, Utterance

FORMAT = 1  # of the folder and of its HDF5 files

RUN = "run.json"
MANIFEST = "manifest.jsonl"
ROWS = "rows.h5"
ERRORS = "errors.jsonl"
CONTENTS = "embeddings.h5"
PARTS = "parts"
LOCK = "lock"

QUIET = "quiet-{}-of-{}.txt"  # by shard: checksums of recordings in which nothing is to be heard
NOTES = ("notes", "model_notes")  # of the environment: what a person should know of the input and the model
CORPUS = "corpus"  # of the environment: `Manifest.corpus`
AGAIN = "run the same command again"  # the remedy for whatever a run lacks
# Why a line of the manifest is dropped (``ManifestRow.dropped``).
REPLACED = "replaced"  # its audio changed: the recording is a later line, under the same id
LEFT_INPUT = "left the input"  # pruned: should the recording come back, it is a new line
BY_HAND = "by hand"  # `hser-store drop`: the recording stays out while it is in the input

_FILES = (RUN, MANIFEST, ROWS, ERRORS, CONTENTS, LOCK)
_DATA_FILE = re.compile(r"(batch|part)-(\d{8,})\.h5")
_BYTES_A_WRITE = 1 << 20
_READINGS = 100  # of a manifest, before one gives up on one that changes all the time

to_json = json.JSONEncoder(separators=(",", ":")).encode


@dataclass(frozen=True, slots=True)
class RunInfo:
    """``run.json``. ``dim`` is D' of each pooling; empty when the run did not say."""

    settings: dict[str, Any]
    environment: dict[str, Any]
    columns: tuple[str, ...]
    layers: tuple[int, ...]
    dim: dict[str, int]
    storage_dtype: str
    format: int = FORMAT

    @property
    def augmented(self) -> bool:
        """Whether the run makes augmented copies: then their own columns are the last of its labels."""
        return bool(self.settings.get("augmentation", "none") != "none")

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str | bytes, path: Path) -> RunInfo:
        """``path`` is named in the message when the text is not of this format."""
        try:
            values = json.loads(text)
            version = values["format"]
            if version == FORMAT:
                values |= {"columns": tuple(values["columns"]), "layers": tuple(values["layers"])}
                return cls(**values)
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{path}: not readable as a run's description ({error})") from error
        raise StoreError(f"{path}: format {version}, this hser reads {FORMAT}; use the hser that wrote it")


@dataclass(frozen=True, slots=True)
class ManifestRow:
    """One line of ``manifest.jsonl``.

    ``batch`` is the plan's batch that holds the utterance; -1, with ``failure``, when its header
    could not be read and it was never planned.
    ``dropped`` says why the line counts no more (``REPLACED``, ``LEFT_INPUT`` or ``BY_HAND``), and is
    empty while it does. Its position is never used again, and its line never comes back: a recording
    that does is a new line. Ids are unique among the lines that count.
    ``former`` are ids that it had before, each with its batch then: failures in parts carry them.
    ``size`` (bytes) and ``mtime_ns`` are the recording's file when it was planned; None where nobody looked.
    """

    position: int
    utterance: Utterance
    num_samples: int
    batch: int
    failure: Failure | None = None
    dropped: str = ""
    former: tuple[tuple[str, int], ...] = ()
    size: int | None = None
    mtime_ns: int | None = None


def differences(old: RunInfo, new: RunInfo) -> list[tuple[str, str, str]]:
    """Why rows of the two cannot be in one run: name, the old value, the new one, as they are shown."""
    found = _differences(old.settings, new.settings)
    # Follows from the settings; asked again, so that rows of two shapes can never meet in a run.
    for name in ("layers", "dim", "storage_dtype"):
        was, now = getattr(old, name), getattr(new, name)
        if was != now and (name != "dim" or (was and now)) and name not in new.settings:
            found.append((name, _shown(was), _shown(now)))
    return found


def _differences(
    old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = ""
) -> list[tuple[str, str, str]]:
    found: list[tuple[str, str, str]] = []
    for key in dict.fromkeys([*old, *new]):
        was, now = old.get(key), new.get(key)
        if isinstance(was, dict) and isinstance(now, dict):
            found += _differences(was, now, f"{prefix}{key}.")
        elif not same_setting(key, was, now) or (key in old) != (key in new):
            found.append((f"{prefix}{key}", _shown(was), _shown(now)))
    return found


def same_setting(name: str, was: Any, now: Any) -> bool:
    """Whether two values make the same rows.

    `normalisation` says behind its value, in parentheses, where it was read: that alone makes no other row.
    """
    if name == "normalisation" and isinstance(was, str) and isinstance(now, str):
        return was.partition(" (")[0] == now.partition(" (")[0]
    return bool(was == now)


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, list | tuple):
        return ",".join(map(str, value)) or "nothing"
    return value if isinstance(value, str) and value else json.dumps(value)


def agree(path: Path, asked: RunInfo) -> RunInfo:
    """The description of the run at ``path``, written when there is none. Raises ``SettingsDiffer``.

    Labels are no part of an embedding: other columns are no other settings. What there is to say of
    the input and of the model is said anew.
    """
    if not (path / RUN).exists():
        if any((path / PARTS).iterdir()):
            raise StoreError(f"{path}: has parts but no {RUN}; put it back, or name another --out")
        now = asked
    else:
        there = read_run(path)
        found = [f"{name}: the run has {a}, you asked for {b}" for name, a, b in differences(there, asked)]
        if found:
            raise SettingsDiffer(
                f"{path}: made with other settings. " + "; ".join(found) + ". "
                "Name another --out, or ask for the run's own settings to resume it"
            )
        said = {key: asked.environment.get(key) for key in (*NOTES, CORPUS)}
        if said == {key: there.environment.get(key) for key in said}:
            return there
        kept = {key: value for key, value in there.environment.items() if key not in said}
        now = replace(there, environment=kept | {key: value for key, value in said.items() if value})
    write_text(path / RUN, [now.to_json(), "\n"])
    return now


def batch_path(run: Path, batch: int) -> Path:
    return run / PARTS / f"batch-{batch:08d}.h5"


def part_path(run: Path, lowest_batch: int) -> Path:
    return run / PARTS / f"part-{lowest_batch:08d}.h5"


def lowest_batch(name: str) -> int | None:
    """The number in a data file's name (complete or ``.tmp``); None for any other file."""
    match = _DATA_FILE.fullmatch(name.removesuffix(TMP))
    return int(match[2]) if match else None


def list_files(run: Path) -> tuple[list[Path], list[Path]]:
    """Batch files and part files, each by number.

    Batches are listed first: one that a merge removed in between is in a part that the second
    listing sees. The other way round it could be missed in both.
    """

    def listed(kind: str) -> list[Path]:
        with os.scandir(run / PARTS) as entries:
            numbers = [
                int(match[2])
                for entry in entries
                if (match := _DATA_FILE.fullmatch(entry.name)) and match[1] == kind and _is_regular(entry)
            ]
        return [run / PARTS / f"{kind}-{number:08d}.h5" for number in sorted(numbers)]

    batches = listed("batch")
    return batches, listed("part")


def read_quiet(*files: Path) -> set[str]:
    """Checksums of silent recordings in such files (``QUIET``). What is damaged there is no checksum."""
    texts = (path.read_text("ascii", errors="replace") for path in files if path.exists())
    return {checksum for text in texts for checksum in text.split()}


def write_text(path: Path, lines: Iterable[str]) -> None:
    """Write a text file aside and rename it; ``lines`` bring their own line ends."""
    with aside(path) as file:
        block: list[str] = []
        size = 0
        for line in lines:
            block.append(line)
            size += len(line)
            if size >= _BYTES_A_WRITE:
                file.write("".join(block).encode())
                block, size = [], 0
        file.write("".join(block).encode())


def _is_regular(entry: os.DirEntry[str]) -> bool:
    """Raises StoreError: a pipe would be waited for without end, a device read without end."""
    if entry.is_symlink() and not Path(entry.path).exists():
        return True  # opening it says so
    if entry.is_file():
        return True
    raise StoreError(f"{entry.path}: must be a file, and is a folder, a pipe or a device; move it away")


def read_run(run: Path) -> RunInfo:
    path = run / RUN
    try:
        with os.scandir(run) as entries:
            for entry in entries:
                if entry.name in _FILES or fnmatch(entry.name, QUIET.format("*", "*")):
                    _is_regular(entry)
        text = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StoreError(f"{run}: not a run folder (no {RUN}); name the --out of a run") from error
    return RunInfo.from_json(text, path)


@dataclass(frozen=True, slots=True)
class Lines:
    """A manifest as it was read. ``identity`` is that of the file: it is only ever replaced whole."""

    rows: list[ManifestRow]
    columns: tuple[str, ...]
    edition: int | None
    identity: tuple[int, ...]


def write_manifest(
    run: Path, rows: Sequence[ManifestRow], columns: Sequence[str], edition: int | None = None
) -> None:
    """(Re)write the manifest; its line 0 has the edition of one that was edited."""
    write_text(run / MANIFEST, _manifest_lines(rows, columns, edition))


def _manifest_lines(
    rows: Sequence[ManifestRow], columns: Sequence[str], edition: int | None
) -> Iterator[str]:
    for row in rows:
        utterance = row.utterance
        line: dict[str, Any] = {
            "position": row.position,
            "id": utterance.id,
            "path": utterance.path,
            "start": utterance.start,
            "end": utterance.end,
            "labels": dict(zip(columns, utterance.labels, strict=True)),
            "num_samples": row.num_samples,
            "batch": row.batch,
        }
        if (row.failure is None) == (row.batch < 0):
            raise ValueError(f"utterance {utterance.id!r}: batch {row.batch} with failure {row.failure}")
        if row.failure is not None:
            line |= {"stage": row.failure.stage, "reason": row.failure.reason}
        if row.dropped:
            line["dropped"] = row.dropped
        if row.former:
            line["former"] = row.former
        if row.size is not None:
            line |= {"size": row.size, "mtime_ns": row.mtime_ns}
        if edition is not None and row is rows[0]:
            line["edition"] = edition
        yield to_json(line) + "\n"


def read_lines(run: Path, written: Sequence[str]) -> Lines:
    """The whole manifest, of one moment. ``written``: the run's columns, for one that was never edited."""
    path = run / MANIFEST
    for _ in range(_READINGS):
        before = identity(path)
        columns, edition = read_head(path)
        columns = tuple(written) if edition is None else columns
        with path.open(encoding="ascii") as lines:
            try:
                rows = [_manifest_row(values, columns) for values in _parsed(path, lines)]
            except (KeyError, TypeError, AttributeError) as error:
                raise _damaged(path, repr(error)) from error
        if identity(path) == before:
            return Lines(rows, columns, edition, before)
    raise StoreError(f"{path}: changes as it is read")


def identity(path: Path) -> tuple[int, ...]:
    there = path.stat()
    return (there.st_ino, there.st_mtime_ns, there.st_size)


def count_manifest(path: Path) -> int:
    """Utterances of the manifest, without parsing its lines (millions, maybe); -1 where there is none."""
    try:
        with path.open("rb") as file:
            return sum(block.count(b"\n") for block in iter(lambda: file.read(_BYTES_A_WRITE), b""))
    except FileNotFoundError:
        return -1


def read_head(path: Path) -> tuple[tuple[str, ...], int | None]:
    """Columns and edition (``edition.py``) of a manifest, from its first line alone."""
    with path.open("rb") as lines:
        (values,) = _parsed(path, [lines.readline() or b"{}"])
    if not isinstance(values, dict):
        raise _damaged(path, f"{values!r:.40}")
    return tuple(values.get("labels", ())), values.get("edition")


def probe_failures(path: Path) -> list[Failure]:
    """Failures of the lines that count, without parsing those (millions, maybe) that have none."""
    with path.open(encoding="ascii") as lines:
        # A quote inside a JSON string is escaped, so this text cannot be part of an id or a path.
        failed = _parsed(path, (line for line in lines if '"batch":-1,' in line))
        return [Failure(v["id"], v["path"], v["stage"], v["reason"]) for v in failed if not v.get("dropped")]


def failure_json(failure: Failure) -> str:
    return to_json(asdict(failure))


def failure_from_json(text: str | bytes) -> Failure:
    return Failure(**json.loads(text))


def _damaged(path: Path, what: str) -> StoreError:
    return StoreError(f"{path}: a line is not one of hser's ({what}); the file is damaged")


def _parsed(path: Path, lines: Iterable[str | bytes]) -> Iterator[Mapping[str, Any]]:
    try:
        yield from map(json.loads, lines)
    except (ValueError, UnicodeError) as error:
        raise StoreError(f"{path}: a line is not JSON ({error}); the file is damaged") from error


def _manifest_row(values: Mapping[str, Any], columns: Sequence[str]) -> ManifestRow:
    labels = values["labels"]
    named = tuple([labels[name] for name in columns])
    utterance = Utterance(values["id"], values["path"], values["start"], values["end"], named)
    failure = None
    if values["batch"] < 0:
        failure = Failure(utterance.id, utterance.path, values["stage"], values["reason"])
    return ManifestRow(
        position=values["position"],
        utterance=utterance,
        num_samples=values["num_samples"],
        batch=values["batch"],
        failure=failure,
        dropped=values.get("dropped", ""),
        former=tuple([(name, batch) for name, batch in values.get("former", ())]),
        size=values.get("size"),
        mtime_ns=values.get("mtime_ns"),
    )
