"""Some rows of a finished file, under other positions, ids and labels, as a file of another run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from extractor.store.parts import (
    NO_POOLING,
    ROW_COLUMNS,
    Column,
    Contents,
    Embeddings,
    PartInfo,
    label_dataset,
    open_part,
    read_column,
    write_part,
)
from extractor.store.run_folder import ManifestRow, failure_json, lowest_batch
from extractor.types import Failure


@dataclass(frozen=True, slots=True)
class Selection:
    """What becomes of a run's rows. A position that is not in ``rows`` is left out."""

    rows: Mapping[int, ManifestRow]  # by old position
    batches: Mapping[int, int]  # by old number
    failures: Mapping[int, Sequence[Failure]]  # by old batch
    columns: Sequence[str]


def copy_file(source: Path, target: Path, selection: Selection) -> PartInfo:
    """Write what is selected of a batch or part ``source`` as ``target``, a bufferful at a time."""
    with open_part(source) as h5:
        positions, inside = h5["position"][:].tolist(), h5["batches"][:].tolist()
        local = np.array([k for k, position in enumerate(positions) if position in selection.rows], np.int64)
        columns = {name: _selected(read_column(h5, name), local) for name in ROW_COLUMNS}
        offsets = h5["frame_offsets"][:] if "frame_offsets" in h5 and len(local) else None
        arrays = {name: (data.shape, data.dtype) for name, data in h5.get("embeddings", {}).items()}
        layers = h5["layers"][:].tolist()
    rows = [selection.rows[positions[k]] for k in local]
    columns["position"] = np.array([row.position for row in rows], np.int64)
    columns["id"] = [row.utterance.id for row in rows]
    columns["path"] = [row.utterance.path for row in rows]
    for k, name in enumerate(selection.columns):
        columns[label_dataset(name)] = [row.utterance.labels[k] for row in rows]
    embeddings = {}
    for name, (shape, dtype) in arrays.items() if len(local) else ():
        wanted = local if name != NO_POOLING or offsets is None else _frames_of(local, offsets)
        embeddings[name] = _embeddings(source, name, wanted, shape, dtype)
    contents = Contents(
        batches=sorted(selection.batches[batch] for batch in inside),
        layers=layers,
        columns=columns,
        embeddings=embeddings,
        frame_offsets=None if offsets is None else np.cumsum([0, *np.diff(offsets)[local]], dtype="<i8"),
        failures=[failure_json(f) for batch in inside for f in selection.failures.get(batch, ())],
        failure_batches=[
            selection.batches[batch] for batch in inside for _ in selection.failures.get(batch, ())
        ],
    )
    return write_part(target, contents, kind="batch" if source.name.startswith("batch") else "part")


def name_of_copy(source: Path, batches: Mapping[int, int]) -> str:
    """A file is named after its lowest batch."""
    number = lowest_batch(source.name)
    assert number is not None
    return f"{source.name.partition('-')[0]}-{batches[number]:08d}.h5"


def _selected(values: Column, local: np.ndarray) -> Column:
    return [values[k] for k in local] if isinstance(values, list) else values[local]


def _frames_of(local: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Indices of the frames of some rows."""
    return np.concatenate([np.arange(offsets[k], offsets[k + 1]) for k in local])


def _embeddings(
    path: Path, name: str, local: np.ndarray, shape: tuple[int, int, int], dtype: np.dtype
) -> Embeddings:
    """Rows ``local`` (ascending) of a stored array, of which a chunk is read at a time."""

    def read(rows: slice, layers: slice) -> np.ndarray:
        wanted = local[rows]
        block = np.empty((len(wanted), layers.stop - layers.start, shape[2]), dtype)
        with open_part(path) as h5:
            data: h5py.Dataset = h5["embeddings"][name]
            rows_a_chunk = data.chunks[0]
            chunks = wanted // rows_a_chunk
            for group in np.split(np.arange(len(wanted)), np.flatnonzero(np.diff(chunks)) + 1):
                start = int(chunks[group[0]]) * rows_a_chunk
                block[group] = data[start : start + rows_a_chunk, layers][wanted[group] - start]
        return block

    return Embeddings((len(local), shape[1], shape[2]), dtype, read)
