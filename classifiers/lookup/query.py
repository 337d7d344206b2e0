"""Recordings to query vectors, made by the same recipe as the run's rows (`extractor.run.recipe`).

A model that is not the run's is refused by name of what differs, before anything is encoded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from extractor.run.recipe import RECORDINGS_AT_ONCE, RowEncoder
from extractor.types import Failure, Utterance

if TYPE_CHECKING:
    from extractor.store import Store


@dataclass(frozen=True, slots=True)
class Query:
    """Something to look up."""

    name: str
    vector: np.ndarray  # float32 [D'], as the store has its rows
    path: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    checksum: str | None = None  # of its audio (``Decoded.checksum``)
    row: int | None = None  # where it is a row of the store


class QueryEncoder:
    """Embeds recordings as ``store`` has them, for one layer and pooling. Safe to call from threads.

    The model is loaded at the first recording. ``model`` names it where the run's own name for it
    does not reach it from here.
    """

    def __init__(
        self, store: Store, layer: int, pooling: str, device: str = "auto", model: str | None = None
    ) -> None:
        self.store, self.layer, self.pooling = store, layer, pooling
        self._encode = RowEncoder(store, [layer], [pooling], device, model)

    def warm_up(self) -> None:
        """Load the model now. Raises ModelError, SettingsDiffer or StoreError where it cannot be had."""
        self._encode.warm_up()

    def embed(
        self, utterances: Sequence[Utterance], columns: Sequence[str] = ()
    ) -> Iterator[Query | Failure]:
        """One each, in order; a recording that cannot be embedded is a Failure that says why.

        ``columns`` names the utterances' labels. Raises ModelError, SettingsDiffer or StoreError
        where the run's model cannot be had.
        """
        self._encode.load()
        for start in range(0, len(utterances), RECORDINGS_AT_ONCE):
            yield from self._embed(utterances[start : start + RECORDINGS_AT_ONCE], columns)

    def _embed(self, utterances: Sequence[Utterance], columns: Sequence[str]) -> list[Query | Failure]:
        result = self._encode(utterances, self._encode.recipe.decode(utterances))
        found: dict[str, Query | Failure] = {failure.id: failure for failure in result.failures}
        for row, vector in zip(result.rows, result.pooled[self.pooling][:, 0], strict=True):
            utterance = row.utterance
            if not vector.any():
                reason = "its embedding is zero: it has no direction to compare"
                found[utterance.id] = Failure(utterance.id, utterance.path, "encode", reason)
                continue
            labels = dict(zip(columns, utterance.labels, strict=False))
            found[utterance.id] = Query(utterance.path, vector, utterance.path, labels, row.checksum)
        return [found[utterance.id] for utterance in utterances]
