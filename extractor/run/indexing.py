"""Indexes that are built while a run extracts: fed with each batch once it is committed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import numpy as np

from extractor.encoders import parse_layers
from extractor.errors import SettingsError, unknown
from extractor.progress import Progress
from extractor.store.hdf5 import NO_POOLING
from extractor.store.parts import rounded
from extractor.types import BatchResult, Failure


class IndexOption(NamedTuple):
    """An index that ``--index`` names."""

    pooling: str
    layer: int
    kind: str


def parse_indexes(
    specs: str | Sequence[str], layers: Sequence[int], num_layers: int, poolings: Sequence[str]
) -> list[IndexOption]:
    """``mean:12``, ``mean:-1:ivf``, several with commas: pooling, layer and kind of each index.

    ``layers``, ``poolings``: what the run stores; ``num_layers``: of the model, for negative numbers.
    Raises SettingsError.
    """
    from extractor.index.kinds import KINDS

    texts = [specs] if isinstance(specs, str) else list(specs)
    found: dict[tuple[str, int], IndexOption] = {}
    for text in [part.strip() for each in texts for part in each.split(",")]:
        pooling, colon, rest = text.partition(":")
        number, _, kind = rest.partition(":")
        if not colon or not number.removeprefix("-").isdigit():
            raise SettingsError(f"--index {text!r}: write pooling:layer, such as mean:12, or mean:-1:ivf")
        if pooling not in poolings or pooling == NO_POOLING:
            stored = [name for name in poolings if name != NO_POOLING]
            raise SettingsError(f"--index {text!r}: {unknown('pooling', pooling, stored)} (see --pooling)")
        (layer,) = parse_layers(int(number), num_layers)
        if layer not in layers:
            raise SettingsError(f"--index {text!r}: layer {layer} is not among the --layers that are stored")
        if kind and kind not in ("auto", *KINDS):
            raise SettingsError(f"--index {text!r}: {unknown('kind', kind, ['auto', *KINDS])}")
        if (pooling, layer) in found:
            raise SettingsError(f"--index {','.join(texts)}: name each pooling and layer once")
        found[pooling, layer] = IndexOption(pooling, layer, kind or "auto")
    return list(found.values())


class Indexes(AbstractContextManager["Indexes"]):
    """The indexes of a run. Closed without an error, each is level with the store.

    After an error they are left as they are: whoever opens them next adds what is missing.
    """

    def __init__(
        self,
        run: str | os.PathLike[str],
        options: Sequence[IndexOption],
        layers: Sequence[int],
        storage_dtype: str,
        expected_rows: int,
        progress: Progress,
    ) -> None:
        self._slot = {layer: i for i, layer in enumerate(layers)}
        self._storage_dtype, self._progress = storage_dtype, progress
        self._writers = {}
        if options:
            from extractor.index import IndexWriter

            self._writers = {o: IndexWriter(run, o.layer, o.pooling, expected_rows, o.kind) for o in options}

    def add(self, result: BatchResult, refused: Sequence[Failure]) -> None:
        """The rows of a batch that was committed, less those that the store refused."""
        if not self._writers or not result.rows:
            return
        gone = {failure.id for failure in refused}
        kept = [i for i, row in enumerate(result.rows) if row.utterance.id not in gone]
        positions = np.array([result.rows[i].position for i in kept], np.int64)
        for option, writer in self._writers.items():
            values = result.pooled[option.pooling][kept, self._slot[option.layer]]
            # As the store has them: an index that is built from it later must be the same.
            writer.add(positions, rounded(values, self._storage_dtype))

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        for option, writer in self._writers.items() if error is None else ():
            index = writer.close()
            self._progress.note(
                f"index {option.pooling}:{option.layer}: {len(index):,} rows, {index.kind}; try hser-lookup"
            )
