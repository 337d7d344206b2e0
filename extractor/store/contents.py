"""``embeddings.h5``, the run's table of contents: HDF5 virtual datasets over the parts.

Anybody with plain h5py opens the run as one file; nothing is copied but ``frame_offsets``. It
names the parts relative to itself, so a run folder can be moved, and it names ``part-*`` files
only, which are never deleted, so an old table is always a valid one. Where a part is missing,
readers see NaN. Of an edited run it shows the rows that are not dropped, and their labels of now: what
is not an embedding is then copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np

from extractor.store.aside import aside, interrupt_later
from extractor.store.edition import Edition, read_edition, write_text_column
from extractor.store.hdf5 import LIBVER, NO_POOLING, TEXT, column_kinds, decode_text, open_part
from extractor.store.parts import STORAGE_DTYPES
from extractor.store.run_folder import CONTENTS, FORMAT, PARTS, RunInfo, list_files

ROW_ORDER = "rows are in the order in which they were written; `position` is each row's place in the manifest"

_FILL = {"f": np.nan, "i": -1, "S": None}  # by numpy kind: what shows where a part is missing


def write_contents(run: Path, info: RunInfo) -> None:
    """(Re)write the table over all parts there are. Raises ``StoreUnwritable``, ``BrokenPart``."""
    edition = read_edition(run)
    if edition is not None:
        info = replace(info, columns=edition.columns)
    parts = [part for path in list_files(run)[1] if len((part := _ShownPart(path, edition)).rows)]
    with (
        aside(run / CONTENTS) as file,
        interrupt_later(),
        h5py.File(file, "w", libver=LIBVER) as h5,
    ):
        for name, kind in column_kinds(info.columns).items():
            if edition is None:
                _write_rows(h5, name, parts, (0,), "S1" if kind is TEXT else kind)
            else:
                _copy_rows(h5, name, kind, parts, edition)
        poolings = parts[0].poolings if parts else [*info.dim]
        for pooling in poolings:
            empty = (0, len(info.layers), info.dim.get(pooling, 0))
            _write_rows(h5, f"embeddings/{pooling}", parts, empty, STORAGE_DTYPES[info.storage_dtype])
        if NO_POOLING in poolings:
            counts = [np.diff(part.frame_offsets)[part.rows] for part in parts]
            h5["frame_offsets"] = np.cumsum(np.concatenate([[0], *counts]), dtype="<i8")
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
                "edition": 0 if edition is None else edition.number,
            }
        )


class _ShownPart:
    """What the table says about one part. ``rows``: indices of those that it shows."""

    def __init__(self, path: Path, edition: Edition | None) -> None:
        self.path = path
        self.source = f"{PARTS}/{path.name}"
        self.datasets: dict[str, tuple[tuple[int, ...], np.dtype]] = {}

        def note(name: str, item: h5py.Group | h5py.Dataset) -> None:
            if isinstance(item, h5py.Dataset):
                self.datasets[name] = (item.shape, item.dtype)

        with open_part(path) as h5:
            self.positions = h5["position"][:]
            self.poolings = [*h5.get("embeddings", {})]
            self.frame_offsets = h5["frame_offsets"][:] if "frame_offsets" in h5 else np.zeros(1, "<i8")
            h5.visititems(note)
        live = np.ones(len(self.positions), bool) if edition is None else edition.live(self.positions)
        self.rows = np.flatnonzero(live)

    def stretches(self, name: str) -> list[tuple[int, int]]:
        """Where in the dataset ``name`` the rows are: [first, last) of each stretch of neighbours."""
        cuts = np.flatnonzero(np.diff(self.rows) != 1) + 1
        spans = [(int(some[0]), int(some[-1]) + 1) for some in np.split(self.rows, cuts)]
        if name != f"embeddings/{NO_POOLING}":
            return spans
        return [(int(self.frame_offsets[first]), int(self.frame_offsets[last])) for first, last in spans]


def _copy_rows(h5: h5py.File, name: str, kind: str, parts: Sequence[_ShownPart], edition: Edition) -> None:
    if name in ("id", "path") or name.startswith("labels/"):
        values = edition.text(name)
        write_text_column(h5, name, [value for part in parts for value in values[part.positions[part.rows]]])
        return
    columns = []
    for part in parts:
        with open_part(part.path) as stored:
            columns.append(stored[name][:][part.rows])
    if kind is TEXT:
        write_text_column(h5, name, [value for column in columns for value in decode_text(column)])
    else:
        h5.create_dataset(name, data=np.concatenate([np.zeros(0, kind), *columns]))


def _write_rows(
    h5: h5py.File, name: str, parts: Sequence[_ShownPart], empty: tuple[int, ...], dtype: str | np.dtype
) -> None:
    """One virtual dataset over ``parts``; without any, a plain one of shape ``empty``."""
    if not parts:
        h5.create_dataset(name, empty, dtype)
        return
    described = [part.datasets[name] for part in parts]
    # Strings are of each part's own width; HDF5 converts to the widest.
    dtype = max((dtype for _, dtype in described), key=lambda dtype: dtype.itemsize)
    stretches = [part.stretches(name) for part in parts]
    num_rows = sum(last - first for some in stretches for first, last in some)
    layout = h5py.VirtualLayout((num_rows, *described[0][0][1:]), dtype)
    row = 0
    for part, (shape, part_dtype), some in zip(parts, described, stretches, strict=True):
        source = h5py.VirtualSource(part.source, name, shape=shape, dtype=part_dtype)
        for first, last in some:
            layout[row : row + last - first] = source[first:last]
            row += last - first
    h5.create_virtual_dataset(name, layout, fillvalue=_FILL[dtype.kind])
