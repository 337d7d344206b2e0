"""The index of a layer: the one that was built, or the rows of a small store in memory, searched exactly."""

from __future__ import annotations

from typing import TYPE_CHECKING

from extractor.errors import SettingsError, StoreError
from extractor.store import Store

if TYPE_CHECKING:
    from extractor.index import Index

MAX_ROWS = 200_000  # of 1,024 values 0.8 GB in float32; beyond, an index is to be built once


def choose(store: Store, layer: int | None, pooling: str | None) -> tuple[int, str]:
    """Which layer and pooling: as asked, or the only index, or the only ones that are stored."""
    from extractor.index import list_indexes

    poolings = store.pooled if pooling is None else [pooling]
    if not poolings:
        raise StoreError(f"{store.path}: only frames are stored; extract with a pooling to look things up")
    layers, _ = store.resolve(layer, poolings[0])
    stored = [(name, number) for name in poolings for number in layers]
    indexed = [each[:2] for each in list_indexes(store.path) if each[:2] in stored]  # none of a packed file
    choices = indexed or stored
    if len(choices) > 1:
        shown = ", ".join(f"{name}:{number}" for name, number in choices)
        what = "indexes" if indexed else "poolings and layers"
        raise SettingsError(f"{store.path}: name a --layer and --pooling; there are {what} {shown}")
    return choices[0][1], choices[0][0]


def open_index(store: Store, layer: int, pooling: str) -> tuple[Index, list[str]]:
    """The index, and what a person should know of it."""
    from extractor.index import Index, IndexMissing, in_memory

    if store.path.is_dir():
        try:
            return Index.open(store.path, layer, pooling), []
        except IndexMissing:
            if len(store) > MAX_ROWS:
                raise
    elif len(store) > MAX_ROWS:
        raise StoreError(
            f"{store.path}: {len(store):,} rows need an index, and a packed file has none; use the run folder"
        )
    note = f"no index of {pooling}:{layer}: all {len(store):,} rows are searched, in memory"
    return in_memory(store, layer, pooling), [note]
