"""A run as one self-contained HDF5 file, rows in manifest order; the layout is that of a part."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

import numpy as np

from extractor.errors import StoreError
from extractor.store.hdf5 import NO_POOLING, PartInfo, column_kinds, decode_text, open_part
from extractor.store.parts import STORAGE_DTYPES, Embeddings, Part, write_part
from extractor.store.reader import Store
from extractor.store.run_folder import QUIET, read_quiet

_QUIET = "quiet"  # a column beside those of a run: 1 where nothing is to be heard
FRAME_BUFFER_BYTES = 1 << 30  # frame-level output of one layer can be larger than memory


def pack(run: str | PathLike[str], path: str | PathLike[str], *, force: bool = False) -> PartInfo:
    """Write the run ``run`` into the one file ``path``, one layer in memory at a time.

    Raises ``StoreError`` when ``path`` exists and ``force`` is not set, ``StoreUnwritable``.
    """
    path = Path(path)
    if path.exists() and not force:
        raise StoreError(f"{path}: exists; name another file, or overwrite it with --force")
    if not path.parent.is_dir():
        raise StoreError(f"{path}: there is no folder {path.parent}; create it first")
    store = Store(run)
    info = store.info
    dtype = STORAGE_DTYPES[info.storage_dtype]
    shapes = store.shapes if len(store) else {}
    embeddings = {
        name: _pooled(store, name, width, dtype) for name, width in shapes.items() if name != NO_POOLING
    }
    offsets = None
    if NO_POOLING in shapes:
        offsets = np.cumsum([0, *store.num_frames.tolist()], dtype="<i8")
        embeddings[NO_POOLING] = _frames(store, offsets, shapes[NO_POOLING], dtype)
    quiet = quiet_checksums(store.path)
    columns = {name: store.column(name) for name in column_kinds(info.columns)}
    part = Part(
        batches=store.batches,
        layers=info.layers,
        columns=columns | {_QUIET: np.array([each in quiet for each in store.checksums], "u1")},
        embeddings=embeddings,
        frame_offsets=offsets,
        failures=[(0, failure) for failure in store.errors],  # superseded ones are gone: no order is left
    )
    attributes = {
        "provenance": info.to_json(),
        "hser": str(info.environment.get("hser", "")),
        "layers": list(info.layers),
        "poolings": list(shapes),
        "row_order": "rows are in manifest order; `position` is each row's place in the manifest",
        # Of the manifest: readers of the file, too, are to know what an unfinished run lacks.
        "num_utterances": -1 if store.num_planned is None else store.num_planned,
    }
    layer_bytes = max((len(store) * width * dtype.itemsize for width in shapes.values()), default=1)
    return write_part(path, part, "packed", attributes, max(layer_bytes, FRAME_BUFFER_BYTES // 4))


def quiet_checksums(path: Path) -> set[str]:
    """Checksums of the recordings in which nothing was heard, of a run folder or a packed file."""
    if path.is_dir():
        return read_quiet(*path.glob(QUIET.format("*", "*")))
    with open_part(path) as h5:
        if _QUIET not in h5:  # packed before it was noted
            return set()
        return set(decode_text(h5["checksum"][:][h5[_QUIET][:] == 1]))


def _pooled(store: Store, pooling: str, width: int, dtype: np.dtype) -> Embeddings:
    layers = store.layers

    def read(rows: slice, indices: slice) -> np.ndarray:
        # Stored halves come back from float32 as they were.
        values = store.load_rows(np.arange(rows.start, rows.stop), layers[indices], pooling)
        return values.astype(dtype, copy=False)

    return Embeddings((len(store), len(layers), width), dtype, read)


def _frames(store: Store, offsets: np.ndarray, width: int, dtype: np.dtype) -> Embeddings:
    layers = store.layers

    def read(frames: slice, indices: slice) -> np.ndarray:
        block = np.empty((frames.stop - frames.start, indices.stop - indices.start, width), dtype)
        first = int(np.searchsorted(offsets, frames.start, side="right")) - 1
        last = int(np.searchsorted(offsets, frames.stop, side="left"))
        for row in range(first, last):
            low, high = max(frames.start, int(offsets[row])), min(frames.stop, int(offsets[row + 1]))
            for k, layer in enumerate(layers[indices]):
                values = store.frames(row, layer)[low - int(offsets[row]) : high - int(offsets[row])]
                block[low - frames.start : high - frames.start, k] = values
        return block

    return Embeddings((int(offsets[-1]), len(layers), width), dtype, read)
