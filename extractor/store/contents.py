"""``embeddings.h5``, the run's table of contents: HDF5 virtual datasets over the parts.

Anybody with plain h5py opens the run as one file; nothing is copied but ``frame_offsets``. It
names the parts relative to itself, so a run folder can be moved, and it names ``part-*`` files
only, which are never deleted, so an old table is always a valid one. Where a part is missing,
readers see NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np

from extractor.store.aside import aside, interrupt_later
from extractor.store.parts import (
    LIBVER,
    NO_POOLING,
    STORAGE_DTYPES,
    TEXT,
    column_kinds,
    join_offsets,
    open_part,
)
from extractor.store.run_folder import CONTENTS, FORMAT, PARTS, RunInfo, list_files

ROW_ORDER = "rows are in the order in which they were written; `position` is each row's place in the manifest"

_FILL = {"f": np.nan, "i": -1, "S": None}  # by numpy kind: what shows where a part is missing


def write_contents(run: Path, info: RunInfo) -> None:
    """(Re)write the table over all parts there are. Raises ``StoreUnwritable``, ``BrokenPart``."""
    parts = [part for part in map(_describe, list_files(run)[1]) if part.num_rows]
    with (
        aside(run / CONTENTS) as file,
        interrupt_later(),
        h5py.File(file, "w", libver=LIBVER) as h5,
    ):
        for name, kind in column_kinds(info.columns).items():
            _write_rows(h5, name, parts, (0,), "S1" if kind is TEXT else kind)
        poolings = parts[0].poolings if parts else [*info.dim]
        for pooling in poolings:
            empty = (0, len(info.layers), info.dim.get(pooling, 0))
            _write_rows(h5, f"embeddings/{pooling}", parts, empty, STORAGE_DTYPES[info.storage_dtype])
        if NO_POOLING in poolings:
            h5["frame_offsets"] = join_offsets([part.frame_offsets for part in parts])
        h5["layers"] = np.array(info.layers, dtype="<i8")
        h5.attrs.update(
            {
                "format": FORMAT,
                "kind": "contents",
                "provenance": info.to_json(),
                "hser": str(info.environment.get("hser", "")),
                "layers": list(info.layers),
                "poolings": poolings,
                "row_order": ROW_ORDER,
                "num_parts": len(parts),
            }
        )


class _Part:
    """What the table says about one part."""

    def __init__(self, path: Path, h5: h5py.File) -> None:
        self.source = f"{PARTS}/{path.name}"
        self.num_rows = int(h5.attrs["num_rows"])
        self.poolings = [*h5.get("embeddings", {})]
        self.frame_offsets = h5["frame_offsets"][:] if "frame_offsets" in h5 else np.zeros(1, "<i8")
        self.datasets: dict[str, tuple[tuple[int, ...], np.dtype]] = {}
        h5.visititems(self._visit)

    def _visit(self, name: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset):
            self.datasets[name] = (item.shape, item.dtype)


def _describe(path: Path) -> _Part:
    with open_part(path) as h5:
        return _Part(path, h5)


def _write_rows(
    h5: h5py.File, name: str, parts: Sequence[_Part], empty: tuple[int, ...], dtype: str | np.dtype
) -> None:
    """One virtual dataset over ``parts``; without any, a plain one of shape ``empty``."""
    if not parts:
        h5.create_dataset(name, empty, dtype)
        return
    described = [part.datasets[name] for part in parts]
    # Strings are of each part's own width; HDF5 converts to the widest.
    dtype = max((dtype for _, dtype in described), key=lambda dtype: dtype.itemsize)
    num_rows = sum(shape[0] for shape, _ in described)
    layout = h5py.VirtualLayout((num_rows, *described[0][0][1:]), dtype)
    row = 0
    for part, (shape, part_dtype) in zip(parts, described, strict=True):
        layout[row : row + shape[0]] = h5py.VirtualSource(part.source, name, shape=shape, dtype=part_dtype)
        row += shape[0]
    h5.create_virtual_dataset(name, layout, fillvalue=_FILL[dtype.kind])
