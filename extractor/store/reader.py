"""``Store``: read a run, while it is written or after.

A run folder is read from its finished files, batches and parts alike; ``embeddings.h5`` is not
needed, so a run that was killed reads as well as one that ended. What is read at any time is one
layer of one chunk of rows, beside the array that is returned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import h5py
import numpy as np

from extractor.augment.copies import COLUMNS as COPY_COLUMNS
from extractor.errors import SettingsError, StoreError, unknown
from extractor.store.edition import read_edition
from extractor.store.hdf5 import (
    NO_POOLING,
    TEXT,
    column_kinds,
    decode_text,
    encode_text,
    label_dataset,
    open_part,
    read_rows,
)
from extractor.store.run_folder import (
    AGAIN,
    MANIFEST,
    RUN,
    RunInfo,
    count_manifest,
    read_run,
)
from extractor.store.sources import StoredFile, failures_of, list_sources, read_source
from extractor.types import SAMPLE_RATE, Failure

_ORIGINAL, _COPY, _ = COPY_COLUMNS
_T = TypeVar("_T")
Layers: TypeAlias = "int | Sequence[int] | None"


class Store:
    """The rows of a run, in manifest order, as they were when the store was opened.

    Of a run that was edited (`edition.py`) these are its rows that are not dropped, with the labels and
    paths that its manifest has now.

    ``path`` is a run folder, the ``embeddings.h5`` in it, or a file made by ``hser-store pack``.
    Layers are named by the model's own numbers (0 is the encoder's input); a negative one counts
    from the end of the layers that are stored: -1 is the last of them.

    Raises ``StoreError`` when it is none of these or a file of it is damaged.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self.path = Path(path)
        self._packed = False
        self.info = self._open()
        self._cache: dict[str, Any] = {}
        self._edition = None if self._packed else read_edition(self.path)
        if self._edition is not None:
            self.info = replace(self.info, columns=self._edition.columns)
        self._sources = self._list_sources()
        positions = [source.positions for source in self._sources]
        self._positions = np.sort(np.concatenate([np.zeros(0, np.int64), *positions]))
        if (np.diff(self._positions) == 0).any():
            raise StoreError(f"{self.path}: rows are there twice; `hser-store verify` names them")
        if self._edition is not None:
            self._positions = self._positions[self._edition.live(self._positions)]
        self._locate()

    def _open(self) -> RunInfo:
        if self.path.is_dir():
            return read_run(self.path)
        if not self.path.exists():
            raise StoreError(f"{self.path}: no such run folder or file")
        with open_part(self.path) as h5:
            kind, provenance = h5.attrs.get("kind"), h5.attrs.get("provenance")
        if kind == "contents" and (self.path.parent / RUN).exists():
            self.path = self.path.parent
            return read_run(self.path)
        if kind != "packed":
            raise StoreError(f"{self.path}: not a run; name its folder, or a file made by `hser-store pack`")
        self._packed = True
        return RunInfo.from_json(provenance, self.path)

    def _list_sources(self) -> list[StoredFile]:
        return [read_source(self.path)] if self._packed else list_sources(self.path)

    def _locate(self) -> None:
        """Note, for each row, the file it is in and its index there; -1 where it is in none."""
        self._source_of = np.full(len(self), -1, np.int32)
        self._local = np.zeros(len(self), np.int64)
        for number, source in enumerate(self._sources):
            if not len(self):
                break
            rows = np.minimum(np.searchsorted(self._positions, source.positions), len(self) - 1)
            # Rows that are dropped, or were committed after this store was opened, are not its own.
            known = np.flatnonzero(self._positions[rows] == source.positions)
            self._source_of[rows[known]] = number
            self._local[rows[known]] = known

    # What there is

    def __len__(self) -> int:
        return len(self._positions)

    def __repr__(self) -> str:
        return f"Store({str(self.path)!r}: {len(self)} rows, layers {self.layers}, poolings {self.poolings})"

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the labels."""
        return self.info.columns

    @property
    def layers(self) -> list[int]:
        """The model's numbers of the layers that are stored."""
        return list(self.info.layers)

    @property
    def settings(self) -> dict[str, Any]:
        return self.info.settings

    @property
    def environment(self) -> dict[str, Any]:
        return self.info.environment

    @property
    def shapes(self) -> dict[str, int]:
        """D' of each pooling: as the run says, or else as its first rows have it."""
        if self.info.dim:
            return dict(self.info.dim)
        if "shapes" not in self._cache and len(self):

            def read(h5: h5py.File, _: np.ndarray) -> dict[str, int]:
                return {name: data.shape[2] for name, data in h5["embeddings"].items()}

            ((_, self._cache["shapes"]),) = self._by_file(np.zeros(1, np.int64), read)
        return dict(self._cache.get("shapes", {}))

    @property
    def poolings(self) -> list[str]:
        return list(self.shapes)

    @property
    def pooled(self) -> list[str]:
        """The poolings that give a row one vector: all but `none`, which keeps its frames."""
        return [name for name in self.shapes if name != NO_POOLING]

    def resolve(
        self, layers: Layers = None, pooling: str | None = None, *, frames: bool = False, hint: str = ""
    ) -> tuple[list[int], str]:
        """Which layers, by the model's own numbers, and which pooling are meant.

        Negative layers count from the last one that is stored; None are all of them. A ``pooling`` that
        is None is the only one. ``frames``: the pooling `none` may be meant as well, which is the only
        one where nothing is pooled. ``hint``: where a pooling is named, for the message.
        Raises ``SettingsError`` for a layer or a pooling that is not there, or a choice that is open.
        """
        there, known = self.layers, self.poolings if frames else self.pooled
        if pooling is None:
            choices = self.pooled or known
            if len(choices) != 1:
                shown = ", ".join(choices) or "none"
                raise SettingsError(f"{self.path}: name a pooling{hint}; there are: {shown}")
            pooling = choices[0]
        if pooling == NO_POOLING and not frames:
            raise SettingsError("frames are of different length: read them with frames(row)")
        if pooling not in known:
            raise SettingsError(f"{self.path}: {unknown('pooling', pooling, known)}")
        asked = there if layers is None else [layers] if isinstance(layers, int | np.integer) else layers
        numbers = [there[number] if -len(there) <= number < 0 else int(number) for number in asked]
        for number in numbers:
            if number not in there:
                raise SettingsError(f"{self.path}: layer {number} is not stored; there are: {there}")
        return numbers, pooling

    @property
    def batches(self) -> list[int]:
        """Of the plan, those that were committed when the store was opened."""
        return sorted(batch for source in self._sources for batch in source.batches)

    @property
    def edition(self) -> int:
        """How often its labels, paths and dropped rows were changed after it was written; 0 for never."""
        return 0 if self._edition is None else self._edition.number

    @property
    def num_dropped(self) -> int:
        """Lines of the manifest that count no more."""
        return 0 if self._edition is None else int(self._edition.dropped.sum())

    @property
    def num_bytes(self) -> int:
        """Size on the disk."""
        files = [self.path] if self._packed else self.path.rglob("*")
        return sum(file.stat().st_size for file in files if file.is_file())

    @property
    def positions(self) -> np.ndarray:
        """int64 [N]: each row's place in the manifest. Ascending; failed and dropped ones leave gaps."""
        return self._positions

    @property
    def ids(self) -> list[str]:
        return self._values("id").tolist()

    @property
    def paths(self) -> list[str]:
        return self._values("path").tolist()

    @property
    def checksums(self) -> list[str]:
        """Of the audio that gave each row (``Decoded.checksum``)."""
        return self._values("checksum").tolist()

    @property
    def precisions(self) -> list[str]:
        """Of the forward pass that gave each row."""
        return self._values("precision").tolist()

    @property
    def starts(self) -> np.ndarray:
        """float64 [N], seconds; NaN where the row is not a segment."""
        return self._values("start")

    @property
    def ends(self) -> np.ndarray:
        """float64 [N], seconds; NaN where the row is not a segment."""
        return self._values("end")

    @property
    def num_samples(self) -> np.ndarray:
        """int64 [N], at 16 kHz."""
        return self._values("num_samples")

    @property
    def num_frames(self) -> np.ndarray:
        """int64 [N]."""
        return self._values("num_frames")

    @property
    def durations(self) -> np.ndarray:
        """float64 [N], seconds."""
        return self.num_samples / SAMPLE_RATE

    @property
    def has_copies(self) -> bool:
        """Whether its rows say what they are augmented copies of, as `--augment` and `hser-augment` do."""
        return {_ORIGINAL, _COPY} <= set(self.columns)

    @property
    def clean(self) -> np.ndarray:
        """bool [N]: false for augmented copies. A row that says nothing of it is a recording as it is."""
        if not self.has_copies:
            return np.ones(len(self), bool)
        return np.array([number in ("", "0") for number in self.labels(_COPY)], bool)

    @property
    def originals(self) -> list[str]:
        """Of every row the id of the recording that it is, or is a copy of."""
        if not self.has_copies:
            return self.ids
        return [name or own for name, own in zip(self.labels(_ORIGINAL), self.ids, strict=True)]

    def labels(self, name: str) -> list[str]:
        """One label of every row; ``""`` where it is not known."""
        if name not in self.columns:
            raise SettingsError(f"{self.path}: {unknown('label', name, self.columns)}")
        return self._values(label_dataset(name)).tolist()

    @property
    def num_planned(self) -> int | None:
        """Utterances of the manifest; None where it is not written yet, or was not when a file was packed."""
        if "planned" not in self._cache:
            if self._packed:
                with open_part(self.path) as h5:
                    planned = int(h5.attrs["num_utterances"])
            else:
                planned = count_manifest(self.path / MANIFEST) - self.num_dropped
            self._cache["planned"] = planned
        return self._cache["planned"] if self._cache["planned"] >= 0 else None

    @property
    def num_missing(self) -> int | None:
        """Utterances that have neither a row nor a failure; None where nobody knows how many there are."""
        planned = self.num_planned
        return None if planned is None else max(0, planned - len(self) - len(self.errors))

    @property
    def unfinished(self) -> str:
        """What is not done yet, in words; empty for a run that is whole."""
        again = "when it was packed; pack the whole run" if self._packed else f"yet; {AGAIN}"
        if self.num_missing is None:
            return f"its recordings were not listed {again}"
        return f"{self.num_missing:,} of {self.num_planned:,} not done {again}" if self.num_missing else ""

    @property
    def errors(self) -> list[Failure]:
        """Recordings without a row: first those whose header could not be read, then by batch.

        One that failed in one batch and succeeded or failed again in a later one counts as the
        later says.
        """
        if "errors" not in self._cache:
            edition = self._edition
            failures = failures_of(None if self._packed else self.path, self._sources, edition)
            if edition is None:
                names, done = encode_text(list(failures)), set()
                if failures:  # found without making a str of every id
                    for _, ids in self._by_file(np.arange(len(self)), lambda h5, _: h5["id"][:]):
                        done.update(decode_text(ids[np.isin(ids, names)]))
                errors = [failure for key, failure in failures.items() if key not in done]
            else:
                now, paths, rows = edition.text("id"), edition.text("path"), set(self._positions.tolist())
                errors = [replace(f, id=now[k], path=paths[k]) for k, f in failures.items() if k not in rows]
            self._cache["errors"] = errors
        return list(self._cache["errors"])

    # Embeddings

    def load(self, layer: Layers = None, pooling: str | None = None) -> np.ndarray:
        """float32 ``[N, D']`` of one layer; ``[N, layers, D']`` of several, or of all with None.

        ``pooling`` may be left out where the run has one. Raises ``SettingsError`` for a layer or
        a pooling that is not there.
        """
        return self.load_rows(np.arange(len(self)), layer, pooling)

    def load_rows(
        self, rows: Sequence[int] | np.ndarray, layer: Layers = None, pooling: str | None = None
    ) -> np.ndarray:
        """``load`` for some rows, in the order given; of the file, their chunks alone are read."""
        layers, pooling = self.resolve(layer, pooling)
        rows = self._row_indices(rows)
        out = np.empty((len(rows), len(layers), self.shapes[pooling]), np.float32)
        for k, number in enumerate(layers):
            index = self.layers.index(number)

            def read(h5: h5py.File, local: np.ndarray, index: int = index) -> np.ndarray:
                return read_rows(h5["embeddings"][pooling], local, index)

            for group, values in self._by_file(rows, read):
                out[group, k] = values
        return out[:, 0] if isinstance(layer, int | np.integer) else out

    def iter_rows(
        self, layer: Layers = None, pooling: str | None = None, block_rows: int = 1024
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """All rows as they lie on the disk, a block at a time: for a store that does not fit in memory.

        Yields row indices int64 ``[n]`` and their embeddings as ``load_rows`` gives them.
        """
        on_disk = np.lexsort((self._local, self._source_of))
        for start in range(0, len(on_disk), block_rows):
            rows = on_disk[start : start + block_rows]
            yield rows, self.load_rows(rows, layer, pooling)

    def frames(self, row: int | str, layer: int | None = None) -> np.ndarray:
        """Frame-level output of one row (index or id): float32 ``[T, D]``, or ``[T, L, D]`` of all layers."""
        if NO_POOLING not in self.shapes:
            raise SettingsError(f"{self.path}: no frames are stored; extract with --pooling {NO_POOLING}")
        if isinstance(row, str):
            if "rows" not in self._cache:
                self._cache["rows"] = {value: number for number, value in enumerate(self.ids)}
            if row not in self._cache["rows"]:
                raise SettingsError(f"{self.path}: no row has the id {row!r}")
            row = self._cache["rows"][row]
        numbers, _ = self.resolve(layer, NO_POOLING, frames=True)
        index = slice(None) if layer is None else self.layers.index(numbers[0])

        def read(h5: h5py.File, local: np.ndarray) -> np.ndarray:
            start, stop = h5["frame_offsets"][local[0] : local[0] + 2]
            return np.asarray(h5["embeddings"][NO_POOLING][start:stop, index], np.float32)

        ((_, frames),) = self._by_file(self._row_indices([int(row)]), read)
        return frames

    def close(self) -> None:
        """Drop what was cached. No file is held open between calls."""
        self._cache.clear()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # How it is read

    def _by_file(
        self, rows: np.ndarray, read: Callable[[h5py.File, np.ndarray], _T]
    ) -> Iterator[tuple[np.ndarray, _T]]:
        """For each file with some of the ``rows``: which of them, and what ``read`` makes of them there.

        A batch file may be merged into a part while it is read: then the files are listed anew
        and the rows still missing are looked up where they are now.
        """
        pending = np.arange(len(rows))
        while len(pending):
            numbers = self._source_of[rows[pending]]
            order = np.argsort(numbers, kind="stable")
            pending, numbers, done = pending[order], numbers[order], 0
            if numbers[0] < 0:
                raise StoreError(f"{self.path}: rows that were there are gone; open the run again")
            for group in np.split(pending, np.flatnonzero(np.diff(numbers)) + 1):
                try:
                    with open_part(self._sources[numbers[done]].path) as h5:
                        found = read(h5, self._local[rows[group]])
                except FileNotFoundError:
                    if self._packed:
                        raise
                    self._sources = self._list_sources()
                    self._locate()
                    break
                yield group, found
                done += len(group)
            pending = pending[done:]

    def column(self, name: str) -> np.ndarray | list[str]:
        """A per-row dataset by its name in the file (``hdf5.ROW_COLUMNS``, ``labels/<column>``)."""
        values = self._values(name)
        return values.tolist() if values.dtype == object else values

    def _values(self, name: str) -> np.ndarray:
        """float or int64 [N]; texts as str in an array of objects."""
        if name not in self._cache:
            if self._edition is not None and (name in ("id", "path") or name.startswith("labels/")):
                self._cache[name] = self._edition.text(name)[self._positions]
            else:
                kind = column_kinds(self.columns)[name]
                out = np.empty(len(self), object if kind is TEXT else kind)
                for group, found in self._by_file(np.arange(len(self)), lambda h5, rows: h5[name][:][rows]):
                    out[group] = decode_text(found) if kind is TEXT else found
                self._cache[name] = out
        values: np.ndarray = self._cache[name]
        return values

    def _row_indices(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        indices = np.asarray(rows, np.int64)
        if len(indices) and (indices.min() < -len(self) or indices.max() >= len(self)):
            raise SettingsError(f"{self.path}: row {indices.max()} asked for, there are {len(self)}")
        return indices % len(self) if len(indices) else indices
