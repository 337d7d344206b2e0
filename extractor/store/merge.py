"""Several runs of the same settings become one new run: their rows and errors, one after the other.

    runs  ->  same settings?  ids kept apart, columns united  ->  manifest  ->  parts, file by file
    OUT.tmp, whole  ->  rename to OUT

Dropped lines are left behind. What is planned and not done (with ``incomplete``) stays planned: the new
run goes on as any other does. Its ``environment`` says of which runs it is made.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path

import numpy as np

from extractor.augment.copies import COLUMNS as COPY_COLUMNS
from extractor.errors import SettingsDiffer, SettingsError, StoreError, some
from extractor.inputs.table import NO_CORPUS
from extractor.store import Store
from extractor.store.aside import TMP, sync_folder, writable
from extractor.store.hdf5 import label_dataset
from extractor.store.locks import folder_lock, lock_shard, unlock_shard
from extractor.store.parts import stored_part, write_part
from extractor.store.run_folder import (
    CORPUS,
    LOCK,
    MANIFEST,
    NOTES,
    PARTS,
    QUIET,
    RUN,
    Lines,
    ManifestRow,
    RunInfo,
    batch_path,
    differences,
    part_path,
    read_lines,
    read_quiet,
    read_run,
    write_manifest,
    write_text,
)
from extractor.store.sources import StoredFile, list_sources
from extractor.store.writer import RunWriter
from extractor.types import Failure, Utterance


@dataclass(frozen=True, slots=True)
class MergeResult:
    """What came of a merge. ``renamed``: ids of rows whose id another run has, as they are now."""

    num_rows: int
    num_failed: int
    renamed: Sequence[str]


@dataclass(frozen=True, slots=True)
class _Run:
    path: Path
    info: RunInfo
    lines: Lines
    sources: Sequence[StoredFile]
    failures: Sequence[Failure]
    missing: Sequence[str]  # ids of lines with neither a row nor a failure
    num_rows: int

    @property
    def live(self) -> list[ManifestRow]:
        return [row for row in self.lines.rows if not row.dropped]

    @property
    def corpus(self) -> str:
        return str(self.info.environment.get(CORPUS, ""))


def merge(
    runs: Sequence[str | PathLike[str]], out: str | PathLike[str], incomplete: bool = False
) -> MergeResult:
    """Write the live rows and errors of ``runs`` as the new run ``out``. They are left as they are.

    An id that an earlier run has gets the later run's folder name before it, for its copies too.
    Raises ``SettingsDiffer`` by name of what differs; ``StoreError`` for an ``out`` that exists, and
    for a run with recordings that are not done yet unless ``incomplete``.
    """
    out = Path(out)
    if out.exists():
        raise StoreError(f"{out}: exists; name another --out")
    paths = [Path(run) for run in runs]
    if len({path.resolve() for path in paths}) < len(paths) or len(paths) < 2:
        raise SettingsError("merge: name two runs or more, each once")
    opened = [_open(path) for path in paths]
    first = opened[0]
    for run in opened:
        found = differences(first.info, run.info)
        if found:
            listed = "; ".join(f"{name}: {was} and {now}" for name, was, now in found)
            raise SettingsDiffer(f"{first.path} and {run.path} were made with other settings. {listed}")
        if run.missing and not incomplete:
            raise StoreError(
                f"{run.path}: {len(run.missing)} of its recordings are not done yet ({some(run.missing)});"
                " run its hser-extract again, or merge with --incomplete"
            )
    aside = out.with_name(out.name + TMP)
    with writable(out):
        aside.mkdir(exist_ok=True)
    with folder_lock(aside):
        lock = lock_shard(aside, 0, 1)  # or another process is merging to it
    try:
        with writable(aside):
            for path in aside.iterdir():  # what a merge that was killed has left
                if path.is_dir():
                    shutil.rmtree(path)
                elif not path.name.startswith(LOCK):
                    path.unlink()
            (aside / PARTS).mkdir()
        renamed = _write(opened, aside)
    finally:
        with writable(aside):
            unlock_shard(aside, lock)
    RunWriter.resume(aside).close()  # merges batch files, writes the table of contents
    with Store(aside) as store:
        merged = MergeResult(len(store), len(store.errors), renamed)
    with writable(out):
        aside.replace(out)
        sync_folder(out.parent)
    return merged


def _open(path: Path) -> _Run:
    if path.is_file():
        raise StoreError(f"{path}: not a run folder; name the --out of a run")
    info = read_run(path)
    if not (path / MANIFEST).exists():
        raise StoreError(f"{path}: has no {MANIFEST} yet; run its hser-extract again")
    lines, store = read_lines(path, info.columns), Store(path)
    failures = store.errors
    known = {*store.ids, *(failure.id for failure in failures)}
    missing = [row.utterance.id for row in lines.rows if not row.dropped and row.utterance.id not in known]
    return _Run(path, info, lines, list_sources(path), failures, missing, len(store))


def _write(runs: Sequence[_Run], out: Path) -> list[str]:
    """Everything but the table of contents. Returns the ids that are others now."""
    first = runs[0].info
    copies_own = COPY_COLUMNS if first.augmented else ()  # the last of the columns
    united = dict.fromkeys(name for run in runs for name in run.lines.columns if name not in copies_own)
    columns = (*united, *copies_own)
    named = (name for run in runs for name in run.corpus.split("+"))
    corpora = list(dict.fromkeys(name for name in named if name not in ("", NO_CORPUS)))
    environment = first.environment | {
        "merged": [
            {"run": run.path.resolve().name, "rows": run.num_rows, "environment": run.info.environment}
            for run in runs
        ],
        CORPUS: "+".join(corpora) or NO_CORPUS,
    }
    for key in NOTES:  # of all runs, each once
        notes = list(dict.fromkeys(note for run in runs for note in run.info.environment.get(key, ())))
        environment |= {key: notes} if notes else {}
    dim = next((run.info.dim for run in runs if run.info.dim), {})
    info = replace(first, environment=environment, columns=columns, dim=dim)
    write_text(out / RUN, [info.to_json(), "\n"])
    manifest: list[ManifestRow] = []
    taken: set[str] = set()
    renamed: list[str] = []
    num_batches = 0
    for run in runs:
        ids = _ids(run, taken)
        speakers_of = run.corpus if len(corpora) > 1 and run.corpus in corpora else ""
        committed = {batch for source in run.sources for batch in source.batches}
        used = sorted(committed | {row.batch for row in run.live if row.batch >= 0})
        batches = {batch: number for number, batch in enumerate(used, num_batches)}
        rows = {
            row.position: replace(
                row,
                position=position,
                utterance=_renamed(row.utterance, ids, run.lines.columns, columns, speakers_of),
                batch=batches.get(row.batch, -1),
                failure=None if row.failure is None else replace(row.failure, id=ids[row.utterance.id]),
                former=(),
            )
            for position, row in enumerate(run.live, len(manifest))
        }
        _copy_files(run, out, rows, ids, batches, columns)
        manifest += rows.values()
        taken.update(ids.values())
        renamed += [new for old, new in ids.items() if new != old]
        num_batches += len(batches)
    write_manifest(out, manifest, columns)
    files = [path for run in runs for path in run.path.glob(QUIET.format("*", "*"))]
    if files:
        write_text(out / QUIET.format(0, 1), (f"{checksum}\n" for checksum in sorted(read_quiet(*files))))
    return renamed


def _ids(run: _Run, taken: set[str]) -> dict[str, str]:
    """New id of each live line. A recording and its copies are renamed together."""
    at = run.lines.columns.index(COPY_COLUMNS[0]) if run.info.augmented else None
    utterances = [row.utterance for row in run.live]
    originals = {u.id: u.id if at is None else u.labels[at] for u in utterances}
    clashing = {originals[name] for name in originals if name in taken or originals[name] in taken}
    own, prefix, number = set(originals), run.path.resolve().name, 1
    while any(f"{prefix}/{name}" in taken | own for name, key in originals.items() if key in clashing):
        number += 1
        prefix = f"{run.path.resolve().name}-{number}"
    return {name: f"{prefix}/{name}" if key in clashing else name for name, key in originals.items()}


def _renamed(
    utterance: Utterance, ids: Mapping[str, str], own: Sequence[str], columns: Sequence[str], speakers_of: str
) -> Utterance:
    """``speakers_of``: the run's corpus, which its speakers are to be named after; "" for as they are."""
    labels = dict(zip(own, utterance.labels, strict=True))
    if speakers_of and labels.get("speaker"):
        # As where several corpora are read together: 03 of one is not 03 of another.
        labels["speaker"] = f"{speakers_of}-{labels['speaker']}"
    if columns[-len(COPY_COLUMNS) :] == COPY_COLUMNS:
        prefix = ids[utterance.id].removesuffix(utterance.id)  # of the recording and of its copies
        labels[COPY_COLUMNS[0]] = prefix + labels[COPY_COLUMNS[0]]
    return replace(utterance, id=ids[utterance.id], labels=tuple([labels.get(name, "") for name in columns]))


def _copy_files(
    run: _Run,
    out: Path,
    rows: Mapping[int, ManifestRow],
    ids: Mapping[str, str],
    batches: Mapping[int, int],
    columns: Sequence[str],
) -> None:
    """Every file with the rows that stay. ``rows`` and ``batches`` are by what they were, ``ids`` too."""
    planned_in = {row.utterance.id: row.batch for row in run.live}
    committed = {batch for source in run.sources for batch in source.batches}
    failures: dict[int, list[Failure]] = {}
    for failure in run.failures:
        batch = planned_in[failure.id]
        if batch >= 0:  # else the manifest has it
            # One that is to be tried again has failed in an earlier batch.
            batch = batch if batch in committed else min(committed)
            failures.setdefault(batch, []).append(replace(failure, id=ids[failure.id]))
    for source in run.sources:
        local = np.flatnonzero([position in rows for position in source.positions.tolist()])
        kept = [rows[position] for position in source.positions[local].tolist()]
        is_batch = source.path.name.startswith("batch")
        number = batches[min(source.batches)]  # a file is named after its lowest batch
        try:
            part = stored_part(source.path, (), local)
            part = replace(
                part,
                batches=sorted(batches[batch] for batch in source.batches),
                columns={
                    **part.columns,
                    "position": np.array([row.position for row in kept], np.int64),
                    "id": [row.utterance.id for row in kept],
                    "path": [row.utterance.path for row in kept],
                    **{
                        label_dataset(name): [row.utterance.labels[k] for row in kept]
                        for k, name in enumerate(columns)
                    },
                },
                failures=[(batches[b], failure) for b in source.batches for failure in failures.get(b, ())],
            )
            target = (batch_path if is_batch else part_path)(out, number)
            write_part(target, part, kind="batch" if is_batch else "part")
        except FileNotFoundError as error:
            raise StoreError(f"{run.path}: is being written to; merge it when that is done") from error
