"""The files of an index, and what can be wrong with them.

``index.json`` is renamed last and names the generation that is valid.

    write N+1.faiss, N+1.npz aside and rename  ->  rename index.json  ->  delete all other files

Killed before the second step, the old index is there and whole; after it, the new one. What a kill
leaves over is deleted by the next that writes. Readers take no lock: one whose generation is
deleted under its hands reads ``index.json`` anew. Each message ends with the command that puts it right.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from extractor.errors import StoreError
from extractor.index.kinds import Effort, Parameters, load_faiss
from extractor.index.normalisation import Normalisation
from extractor.store import Store
from extractor.store.aside import aside, interrupt_later, sync_folder, writable
from extractor.store.locks import FileLock
from extractor.store.run_folder import read_run, write_text

FORMAT = 1
INDEX = "index"  # folder of a run
HEAD = "index.json"
LOCK = "lock"

EDGE_BYTES = 1 << 20  # of a file's start and end, which are checked always
WHOLE_BYTES = 64 << 20  # a file of no more is checked whole, even when it is mapped
_READINGS = 100  # before one gives up on generations that vanish
_NAME = re.compile(r"(.+?)-(\d+)")


class IndexMissing(StoreError):
    """There is no index of this layer and pooling."""


class IndexStale(StoreError):
    """The index is of other rows or settings than its store has now."""


class BrokenIndex(StoreError):
    """The index's files are not what was written."""


def remedy(run: Path, layer: int, pooling: str, normalisation: str = "none") -> str:
    """The command that (re)builds an index, as the end of a message."""
    given = "" if normalisation == "none" else f" --normalisation {normalisation}"
    where = f"--layer {layer} --pooling {pooling}{given}"
    return f"build it with `hser-lookup build {shlex.quote(str(run))} {where}`"


@dataclass(frozen=True, slots=True)
class FileCheck:
    """What a file was when it was written. ``edges`` is of its first and last ``EDGE_BYTES``."""

    num_bytes: int
    sha256: str
    edges: str


@dataclass(frozen=True, slots=True)
class Head:
    """``index.json``."""

    layer: int
    pooling: str
    kind: str
    dim: int
    rows: int
    normalisation: str
    parameters: Parameters
    effort: Effort
    recall_at_10: float  # of stored rows as queries, themselves left out, when it was built
    zero_rows: int  # rows without a direction: similar to nothing
    settings: str = ""  # digest of the run's
    speakers: str = ""  # digest of those that the normalisation was fitted on; "" for none, or not known
    seed: int = 0
    generation: int = 0
    files: Mapping[str, FileCheck] = field(default_factory=dict)
    format: int = FORMAT


@dataclass(frozen=True, slots=True)
class Content:
    """An index in memory. Row k of ``faiss_index`` is the embedding at manifest position ``order[k]``."""

    head: Head
    faiss_index: Any
    order: np.ndarray  # int64 [rows]
    normalisation: Normalisation


def folder_of(run: Path, layer: int, pooling: str) -> Path:
    return run / INDEX / f"{pooling}-{layer}"


def resolve(store: Store, layer: int, pooling: str | None) -> tuple[int, str]:
    """The model's number of a layer, and the pooling's name. Raises ``SettingsError`` as Store does."""
    if store.path.is_file():
        raise StoreError(f"{store.path}: a packed run has no index; name the run folder it was made from")
    (number,), pooling = store.resolve(layer, pooling)
    return number, pooling


def settings_digest(store: Store) -> str:
    """Of what makes a run's rows; its columns are those it began with, whatever labels it has now."""
    info = read_run(store.path)
    text = json.dumps([info.settings, info.storage_dtype, info.columns], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def speakers_digest(store: Store) -> str:
    """Of every row's speaker: what the normalisation `speaker` is fitted on beside the embeddings."""
    return hashlib.sha256(json.dumps(store.labels("speaker")).encode()).hexdigest()


def list_indexes(run: str | Path) -> list[tuple[str, int, str, int]]:
    """(pooling, layer, kind, rows) of each index of a run, whether or not it still fits its store."""
    found = []
    for path in sorted(Path(run).glob(f"{INDEX}/*/{HEAD}")):
        match = _NAME.fullmatch(path.parent.name)
        if match:
            head = read_head(Path(run), int(match[2]), match[1])
            found.append((head.pooling, head.layer, head.kind, head.rows))
    return sorted(found)


@contextlib.contextmanager
def locked(store: Store, layer: int, pooling: str) -> Iterator[None]:
    """Be the only one that writes this index; waits for its turn."""
    folder = folder_of(store.path, layer, pooling)
    with writable(folder):
        folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, wait=True)
    try:
        yield
    finally:
        lock.release()


# Writing


def save(store: Store, content: Content) -> Content:
    """Make ``content`` the valid generation. To be called under ``locked``. Raises ``StoreUnwritable``."""
    folder = folder_of(store.path, content.head.layer, content.head.pooling)
    numbers = [int(path.stem) for path in folder.iterdir() if path.stem.isdigit()]
    generation = max(numbers, default=0) + 1
    faiss_path, arrays_path = (folder / f"{generation}{suffix}" for suffix in (".faiss", ".npz"))
    faiss = load_faiss()
    with aside(faiss_path) as file, interrupt_later():
        faiss.write_index(content.faiss_index, faiss.PyCallbackIOWriter(file.write, EDGE_BYTES))
    arrays = {f"normalisation_{name}": values for name, values in content.normalisation.arrays.items()}
    with aside(arrays_path) as file:
        np.savez(file, order=content.order, **arrays)  # type: ignore[arg-type]
    files = {path.suffix: _check_of(path) for path in (faiss_path, arrays_path)}
    head = replace(
        content.head,
        settings=settings_digest(store),
        speakers=speakers_digest(store) if content.normalisation.needs_speakers else "",
        generation=generation,
        files=files,
    )
    write_text(folder / HEAD, [json.dumps(asdict(head), indent=1), "\n"])
    keep = {HEAD, LOCK, faiss_path.name, arrays_path.name}
    with writable(folder):
        for path in folder.iterdir():
            if path.name not in keep:
                path.unlink(missing_ok=True)
        sync_folder(folder)
    return replace(content, head=head)


def _check_of(path: Path) -> FileCheck:
    with path.open("rb") as file:
        whole = hashlib.file_digest(file, "sha256").hexdigest()
    return FileCheck(path.stat().st_size, whole, _edges(path))


def _edges(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256(file.read(EDGE_BYTES))
        file.seek(max(0, path.stat().st_size - EDGE_BYTES))
        digest.update(file.read())
    return digest.hexdigest()


# Reading


def read_head(run: Path, layer: int, pooling: str) -> Head:
    """Raises ``IndexMissing`` and ``BrokenIndex``."""
    path = folder_of(run, layer, pooling) / HEAD
    if path.exists() and not path.is_file():  # a pipe would be waited for without end
        raise BrokenIndex(f"{path}: must be a file, and is a folder, a pipe or a device; move it away")
    again = remedy(run, layer, pooling)
    try:
        values = json.loads(path.read_bytes())
        if values["format"] != FORMAT:
            problem = f"format {values['format']}, this hser reads {FORMAT}"
            raise BrokenIndex(f"{path}: {problem}; {again}")
        values["parameters"] = Parameters(**values["parameters"])
        values["files"] = {suffix: FileCheck(**check) for suffix, check in values["files"].items()}
        return Head(**values)
    except FileNotFoundError as error:
        raise IndexMissing(f"{run}: has no index of layer {layer}, pooling {pooling}; {again}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        cause = str(error) if isinstance(error, ValueError) else repr(error)
        raise BrokenIndex(f"{path}: damaged ({cause}); {again}") from error


def load(run: Path, layer: int, pooling: str, mapped: bool) -> Content:
    """Read the valid generation. Raises ``IndexMissing`` and ``BrokenIndex``.

    ``mapped``: vectors stay on the disk, and of files above ``WHOLE_BYTES`` only the edges are
    checked. Else all is read into memory and every byte is checked.
    """
    for _ in range(_READINGS):
        head = read_head(run, layer, pooling)
        try:
            return _load(run, head, mapped)
        except FileNotFoundError as error:
            if read_head(run, layer, pooling).generation == head.generation:
                raise BrokenIndex(f"{error.filename}: missing; {remedy(run, layer, pooling)}") from error
    raise StoreError(f"{folder_of(run, layer, pooling)}: its files vanish as they are read")


def _load(run: Path, head: Head, mapped: bool) -> Content:
    folder = folder_of(run, head.layer, head.pooling)
    for suffix, check in head.files.items():
        path = folder / f"{head.generation}{suffix}"
        whole = not mapped or check.num_bytes <= WHOLE_BYTES or suffix != ".faiss"
        if path.stat().st_size != check.num_bytes or (
            _check_of(path) != check if whole else _edges(path) != check.edges
        ):
            raise BrokenIndex(f"{path}: is not what was written; {remedy(run, head.layer, head.pooling)}")
    with np.load(folder / f"{head.generation}.npz", allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    prefix = "normalisation_"
    fitted = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    faiss, path = load_faiss(), folder / f"{head.generation}.faiss"
    try:
        # Mapped, whatever is large (vectors, codes, inverted lists, links) stays on the disk.
        faiss_index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC if mapped else 0)
    except RuntimeError as error:  # FAISS's only kind of error
        if not path.exists():
            raise FileNotFoundError(errno.ENOENT, "deleted", str(path)) from error
        raise
    return Content(head, faiss_index, arrays["order"], Normalisation(head.normalisation, fitted))


def check_fits(store: Store, content: Content) -> None:
    """Raises ``IndexStale`` when the index is not of the rows, settings and speakers of the store."""
    head = content.head
    what = f"{store.path}: the index of layer {head.layer}, pooling {head.pooling}"
    again = remedy(store.path, head.layer, head.pooling, head.normalisation)
    if head.settings != settings_digest(store):
        raise IndexStale(f"{what} was built of a run with other settings; {again}")
    missing = np.setdiff1d(store.positions, content.order)
    surplus = np.setdiff1d(content.order, store.positions)
    if len(missing) or len(surplus):
        raise IndexStale(
            f"{what} has {head.rows:,} rows; {len(missing):,} of the store's {len(store):,} are missing from "
            f"it and {len(surplus):,} of its own are no longer there; {again}"
        )
    if head.normalisation == "speaker":
        # One from before says nothing of its speakers: they are those of a run that was never edited.
        same = head.speakers == speakers_digest(store) if head.speakers else store.edition == 0
        if not same:
            raise IndexStale(f"{what} is normalised by speaker, and the speakers are others now; {again}")
