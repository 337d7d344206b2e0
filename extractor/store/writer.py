"""``RunWriter``: the writing side of a run folder. Open or resume, commit batches, close.

    commit -> parts/batch-N.h5 -> merge of many -> parts/part-N.h5 -> embeddings.h5 over the parts
       several batches together, where they are large enough -/

Every step is one rename, so the folder is whole after each of them, whenever the process dies:
at worst the batches being committed are lost, a ``.tmp`` is left over, or a batch is there both
alone and in a part. Opening the run again clears that up.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

from extractor.errors import StoreError, StoreUnwritable
from extractor.store.aside import TMP, sync_folder, writable
from extractor.store.contents import write_contents
from extractor.store.edition import RunManifest
from extractor.store.hdf5 import NO_POOLING, BrokenPart, PartInfo, read_info
from extractor.store.locks import FileLock, folder_lock, lock_shard, unlock_shard
from extractor.store.parts import joined, part_of_batch, refuse_overflow, stored_part, write_part
from extractor.store.reader import Store
from extractor.store.run_folder import (
    CONTENTS,
    ERRORS,
    PARTS,
    ManifestRow,
    RunInfo,
    agree,
    batch_path,
    failure_json,
    list_files,
    lowest_batch,
    part_path,
    read_run,
    write_text,
)
from extractor.types import BatchResult, Failure

MERGE_BYTES = 128 << 20
MERGE_BATCHES = 512
# A reader of embeddings.h5 holds every part open, and HDF5 gives NaN, not an error, for those
# beyond the limit of open files (256 on some systems). So the size of a part doubles with every
# so many parts: 200 parts hold 250 GB, 300 hold 4 TB.
PARTS_A_SIZE = 32
MOST_PIECES = 32  # that the last merge is done in where there is no space for it as a whole
FREE_MARGIN_BYTES = 16 << 20  # disk space left to others when a merge is considered
REFRESH_SECONDS = 60.0
REFRESH_SHARE = 0.05  # of the time that refreshing may take, when a run is so large that it is slow


class RunWriter:
    """The only writer of a run folder, or of its shard of it. Make one with ``open``.

    ``repaired``: what opening found damaged, and removed to be computed again.
    ``warnings``: what went less well than hoped since, for the user to read.
    """

    def __init__(self, path: Path, info: RunInfo, shard: tuple[int, int], lock: FileLock) -> None:
        self.path = path
        self.info = info
        self._manifest = RunManifest(path, info.columns)
        self.shard = shard
        self.repaired: list[str] = []
        self.warnings: list[str] = []
        self._lock: FileLock | None = lock
        self._known: dict[Path, PartInfo] = {}
        self._pending: dict[int, PartInfo] = {}  # own batch files by lowest batch: not yet in a part
        self._group: list[BatchResult] | None = None  # inside `together`: to be written when it ends
        self._committed: set[int] = set()
        self._num_parts = 0
        self._merge_factor = 1  # grows when a merge fails, so that it is not tried at every commit
        self._next_refresh = time.monotonic() + REFRESH_SECONDS

    @classmethod
    def open(
        cls,
        path: str | PathLike[str],
        settings: Mapping[str, Any],
        environment: Mapping[str, Any],
        columns: Sequence[str],
        layers: Sequence[int],
        dim: Mapping[str, int] | None = None,
        shard: tuple[int, int] = (0, 1),
        storage_dtype: str = "fp32",
    ) -> RunWriter:
        """Start a run, or take up the one that is there.

        ``settings`` (JSON values) are compared with the run's, ``environment`` is only stored.
        ``dim``: D' of each pooling, with ``none`` for frame-level output; None when not known.
        ``columns``: names of the labels, for a new run; one that is there keeps those of its manifest
        until ``edit_manifest``. Parts are written with the columns that the run began with.
        ``shard`` (i, n): this process commits the batches with ``index % n == i``.

        Raises ``SettingsDiffer``, ``StoreLocked``, ``StoreUnwritable``, ``StoreError``.
        """
        path = Path(path)
        asked = RunInfo(
            settings=json.loads(json.dumps(settings)),
            environment=json.loads(json.dumps(environment)),
            columns=tuple(columns),
            layers=tuple(int(layer) for layer in layers),
            dim=dict(dim or {}),
            storage_dtype=storage_dtype,
        )
        with writable(path):
            (path / PARTS).mkdir(parents=True, exist_ok=True)
        with folder_lock(path):
            lock = lock_shard(path, *shard)
            try:
                writer = cls(path, agree(path, asked), shard, lock)
                with writable(path):
                    removed_part = writer._repair()
                stale = writer._manifest.repair(asked.columns)
                if not lock.supported:
                    writer.warnings.append(
                        f"{path}: this file system has no locks; see to it that no other process writes there"
                    )
                if removed_part or stale:  # or embeddings.h5 would name a part, or labels, of the past
                    writer._write_contents()
            except BaseException:
                lock.release()
                raise
        return writer

    @classmethod
    def resume(cls, path: Path) -> RunWriter:
        """Take up the run that is there, with its own settings. Raises as ``open`` does."""
        info = read_run(path)
        return cls.open(
            path,
            info.settings,
            info.environment,
            info.columns,
            info.layers,
            info.dim,
            storage_dtype=info.storage_dtype,
        )

    # Manifest

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the labels, as the manifest has them; of a new run, as they were asked for."""
        return self._manifest.columns

    def manifest(self) -> list[ManifestRow] | None:
        """The run's manifest as it is now, dropped lines too, labels in the order of ``columns``; None when
        the run is new."""
        return self._manifest.read()

    def write_manifest(self, rows: Iterable[ManifestRow]) -> None:
        """Write a new run's manifest; row k has position k.

        Another shard may have written it first: then the two must agree, or ``StoreError``.
        """
        with folder_lock(self.path):
            self._manifest.write(list(rows))

    def append_manifest(self, rows: Iterable[ManifestRow]) -> None:
        """Let the manifest grow: new positions follow the last one. Labels are in the order of ``columns``.

        A row whose position is there already replaces it: the same utterance, planned once more in
        a new batch after it had failed. What another shard has appended already is left as it is.
        """
        with folder_lock(self.path):
            self._manifest.append(list(rows), None if self.shard[1] == 1 else self.done())

    def edit_manifest(self, rows: Sequence[ManifestRow], columns: Sequence[str]) -> None:
        """Replace the whole manifest: other labels, columns, paths, stamps, lines dropped or appended.

        ``rows`` are all of its lines, those of ``manifest()`` first, with labels in the order of
        ``columns``. It is a new edition only where readers see something new: other stamps alone, or
        lines appended to a run that was never edited, are none. Before or after, never between,
        whatever happens.

        Raises ValueError for rows out of order, a position with another span, a dropped line
        that comes back, an id of two lines that are not dropped; ``StoreError`` when the manifest was
        changed since ``manifest()`` and is not what is asked for now.
        """
        with folder_lock(self.path):
            if self._manifest.edit(rows, columns) and (self.path / CONTENTS).exists():
                self._write_contents()

    # Batches

    def done(self) -> set[int]:
        """Batches that are committed, by any shard."""
        done = set(self._committed)
        for files in list_files(self.path):
            for path in files:
                try:
                    done.update(self._read_info(path).batches)
                except (BrokenPart, FileNotFoundError):
                    continue  # another shard's: it is repairing or has just merged it
        return done

    def commit(self, result: BatchResult) -> list[Failure]:
        """Make a batch permanent. When this returns, the batch survives a power cut; inside
        ``together``, when that ends.

        Returns the recordings that the storage dtype cannot hold; they are stored as failures.
        Raises ``StoreUnwritable``; then the batch is not committed and all others still are.
        """
        self._check(result)
        result, refused = refuse_overflow(result, self.info.layers, self.info.storage_dtype)
        if self._group is None:
            self._write([result])
        else:
            self._group.append(result)
        return refused

    @contextmanager
    def together(self) -> Iterator[None]:
        """Batches committed inside are written as one file when the block ends: all of them or none.

        One file of many batches costs one sync, and from `MERGE_BYTES` on it is a part at once,
        which is not written again. When the block ends by an exception, what was committed before
        it is still written.
        """
        if self._group is not None:
            raise ValueError("batches are being committed together already")
        self._group = []
        try:
            yield
        finally:
            group, self._group = self._group, None
            if group:
                self._write(group)

    def _write(self, group: Sequence[BatchResult]) -> None:
        group = sorted(group, key=lambda result: result.batch)
        parts_before = self._num_parts
        of_batch = partial(part_of_batch, info=self.info, given=self.columns)
        part = joined([*map(of_batch, group)])
        lowest = group[0].batch
        if sum(array.num_bytes for array in part.embeddings.values()) >= self._part_bytes():
            write_part(part_path(self.path, lowest), part, kind="part")
            self._num_parts += 1
        else:
            self._pending[lowest] = write_part(batch_path(self.path, lowest), part, kind="batch")
        self._committed.update(part.batches)
        waiting = sum(batch.num_bytes for batch in self._pending.values())
        most = (MERGE_BATCHES << (self._num_parts // PARTS_A_SIZE)) * self._merge_factor
        due = waiting >= self._part_bytes() * self._merge_factor or len(self._pending) >= most
        if due and self._unmergeable(self._unmerged()) is not None:  # they stay until `close`
            self._merge_factor *= 2
        if self._num_parts > parts_before and time.monotonic() >= self._next_refresh:
            began = time.monotonic()
            try:
                self.refresh()
            except StoreUnwritable as error:  # the batch is committed; close() will try again
                self.warnings.append(str(error))
            now = time.monotonic()
            self._next_refresh = now + max(REFRESH_SECONDS, (now - began) / REFRESH_SHARE)

    def close(self) -> None:
        """Merge what is left, write ``embeddings.h5`` and ``errors.jsonl``, let go of the run.

        Safe to call twice. Raises ``StoreUnwritable`` when batches cannot be merged or the table
        cannot be written; the run is let go of and reads well all the same.
        """
        if self._lock is None:
            return
        lock, self._lock = self._lock, None
        try:
            try:
                self._merge_the_rest()
            finally:
                self.refresh()
        finally:
            with writable(self.path):
                unlock_shard(self.path, lock)

    def refresh(self) -> None:
        """Rewrite ``embeddings.h5`` and ``errors.jsonl`` from what is committed."""
        with folder_lock(self.path):
            self._write_contents()

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            self.close()
        except StoreError as second:
            if error is None:
                raise
            error.add_note(f"and then: {second}")  # what ended the run matters more

    # How it is done

    def _owns(self, batch: int) -> bool:
        index, count = self.shard
        return batch % count == index

    def _read_info(self, path: Path) -> PartInfo:
        if path not in self._known:
            self._known[path] = read_info(path, self.info.columns, len(self.info.layers))
        return self._known[path]

    def _repair(self) -> bool:
        """Clear up after a writer that was killed. True when a part had to go.

        Only files of this shard are touched: another's ``.tmp`` may be growing at this moment.
        """
        for path in [*self.path.glob(f"*{TMP}"), *(self.path / PARTS).glob(f"*{TMP}")]:
            number = lowest_batch(path.name)
            if path.parent == self.path or (number is not None and self._owns(number)):
                path.unlink(missing_ok=True)
        batches, parts = list_files(self.path)
        whole = [info for path in parts if (info := self._checked(path))]
        self._num_parts = len(whole)
        self._committed = {batch for info in whole for batch in info.batches}
        for path in batches:
            number = lowest_batch(path.name)
            if number is None or not self._owns(number):
                continue
            if number in self._committed:  # killed between writing the part and deleting its batches
                path.unlink()
            elif info := self._checked(path):
                self._pending[number] = info
        self._committed |= {batch for info in self._pending.values() for batch in info.batches}
        return len(whole) < len(parts)

    def _checked(self, path: Path) -> PartInfo | None:
        number = lowest_batch(path.name)
        try:
            return self._read_info(path)
        except BrokenPart as error:
            if number is not None and self._owns(number):
                path.unlink()
                sync_folder(path.parent)
                self.repaired.append(f"{error}; removed, its recordings are computed again")
            return None

    def _check(self, result: BatchResult) -> None:
        """What is wrong here is a bug of the caller's."""
        if self._lock is None:
            raise ValueError("the run is closed")
        waiting = [each.batch for each in self._group or ()]
        if not self._owns(result.batch) or result.batch in self._committed or result.batch in waiting:
            raise ValueError(f"batch {result.batch} is committed, or not of shard {self.shard}")
        num_rows, num_layers = len(result.rows), len(self.info.layers)
        for name, values in result.pooled.items():
            if num_rows and values.shape != (num_rows, num_layers, self.info.dim.get(name, values.shape[-1])):
                raise ValueError(
                    f"pooled[{name!r}] is {values.shape} for {num_rows} rows, {num_layers} layers"
                )
        if result.frames and [len(frames) for frames in result.frames] != [r.num_frames for r in result.rows]:
            raise ValueError("frames do not agree with num_frames of the rows")
        given = {*result.pooled} | ({NO_POOLING} if result.frames else set())
        if num_rows and self.info.dim and given != {*self.info.dim}:
            raise ValueError(f"poolings {sorted(given)}, the run has {sorted(self.info.dim)}")

    def _part_bytes(self) -> int:
        """Size from which a file is a part."""
        return MERGE_BYTES << (self._num_parts // PARTS_A_SIZE)

    def _merge_the_rest(self) -> None:
        """Make parts of all batch files: one, or as many as what is free asks for.

        A merge gives back the space of what it merged, so halves may fit where the whole does not, and
        a file alone needs none. Raises ``StoreUnwritable`` where that would leave more than
        `MOST_PIECES`, each of which a reader holds open.
        """
        pieces, made = [self._unmerged()] if self._pending else [], 0
        while pieces:
            piece = pieces.pop(0)
            error = self._unmergeable(piece)
            if error is None:
                made += 1
            elif len(piece) > 1 and made + len(pieces) + 2 <= MOST_PIECES:
                half = len(piece) // 2
                pieces[:0] = [piece[:half], piece[half:]]
            else:
                left = f"{len(self._pending)} batch files were left unmerged: Store reads them, {CONTENTS}"
                again = "does not show them; free space and run the same command again"
                raise StoreUnwritable(f"{error} - {left} {again}") from error

    def _unmerged(self) -> list[PartInfo]:
        return [self._pending[number] for number in sorted(self._pending)]

    def _unmergeable(self, batches: Sequence[PartInfo]) -> StoreUnwritable | None:
        """Make one part of batch files; without the space for it they stay, and it says why."""
        path = part_path(self.path, batches[0].batches[0])
        alone = len(batches) == 1  # then it is a part in all but name, and needs no space
        try:
            if alone:
                with writable(path):
                    batches[0].path.replace(path)
            else:
                _check_space(path, sum(batch.num_bytes for batch in batches))
                whole = joined([stored_part(batch.path, self.info.columns) for batch in batches])
                write_part(path, whole, kind="part")
        except StoreUnwritable as error:
            return error
        # From here on the part counts. A batch file that cannot be deleted is deleted by the next open.
        for batch in batches:
            del self._pending[batch.batches[0]]
        self._num_parts += 1
        with writable(path.parent):
            for batch in [] if alone else batches:
                batch.path.unlink()
            sync_folder(path.parent)
        return None

    def _write_contents(self) -> None:
        write_contents(self.path, self.info)
        write_text(self.path / ERRORS, (failure_json(failure) + "\n" for failure in Store(self.path).errors))


def _check_space(path: Path, num_bytes: int) -> None:
    if shutil.disk_usage(path.parent).free < num_bytes + FREE_MARGIN_BYTES:
        raise StoreUnwritable(f"{path}: merging needs {num_bytes >> 20} MiB that the disk does not have")
