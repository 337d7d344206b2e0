"""Rows of several corpora, one below the other: what a classifier of many corpora is trained on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from classifiers.data.features import Features, FrameRows
from extractor.errors import SettingsError, StoreError

# Settings that say nothing about what the numbers of an embedding mean.
DATA_SETTINGS = frozenset([
    *("layers", "pooling", "dtype", "channel", "window_seconds", "storage_dtype"),
    *("augmentation", "copies", "seed", "clean"),
])  # fmt: skip


class Stacked(Features):
    """`Features` of several runs of one model. Ids and speakers carry the name of their corpus.

    Raises StoreError where the runs are of different models, SettingsError where they are not read
    in the same way.
    """

    def __init__(self, corpora: Mapping[str, Features]) -> None:
        self._names, self._members = tuple(corpora), list(corpora.values())
        refuse_different_models(self._members)
        # What is told of the parts is told of the first corpus, and holds for all.
        self._parts = self._members[0]._parts
        self._memory = None
        self.labels = [label for each in self._members for label in each.labels]
        self._code_labels()
        self.ids = self._named(each.ids for each in self._members)
        self.originals = self._named(each.originals for each in self._members)
        self.notes = [note for each in self._members for note in each.notes]
        self.augmentations = [each for member in self._members for each in member.augmentations]
        self.clean = np.concatenate([each.clean for each in self._members])
        self.trainable = np.concatenate([each.trainable for each in self._members])

    def _named(self, values: Iterable[Sequence[str]]) -> list[str]:
        return [
            f"{corpus}/{value}" if value else ""
            for corpus, of in zip(self._names, values, strict=True)
            for value in of
        ]

    @property
    def columns(self) -> tuple[str, ...]:
        """Labels that all have, and ``corpus``."""
        common = [name for name in self._members[0].columns if all(name in m.columns for m in self._members)]
        return (*common, "corpus")

    @property
    def layers(self) -> list[int]:
        return [layer for layer in self._members[0].layers if all(layer in m.layers for m in self._members)]

    def column(self, name: str) -> list[str]:
        if name == "corpus":
            return [of for of, each in zip(self._names, self._members, strict=True) for _ in range(len(each))]
        values = [each.column(name) for each in self._members]
        return self._named(values) if name in ("speaker", "session") else [v for of in values for v in of]

    def provenance(self) -> dict[str, Any]:
        return {key: value for each in self._members for key, value in each.provenance().items()}

    def only(self, number: int) -> Features:
        raise SettingsError("--fusion average and gate: of one corpus")

    def matrix(self, layer: int | None = None) -> np.ndarray:
        return self._remembered(
            ("matrix", layer), lambda: np.concatenate([each.matrix(layer) for each in self._members])
        )

    def tensor(self) -> np.ndarray:
        return np.concatenate([each.tensor() for each in self._members])

    def frame_rows(self, layer: int | None = None) -> FrameRows:
        sequences = [each.frame_rows(layer) for each in self._members]
        starts = np.cumsum([0, *map(len, sequences)])

        def read(row: int) -> np.ndarray:
            of = int(np.searchsorted(starts, row, side="right")) - 1
            return sequences[of][row - int(starts[of])]

        # What the members keep is not kept again.
        return FrameRows(read, np.arange(len(self)), kept_bytes=0)


def refuse_different_models(corpora: Sequence[Features]) -> None:
    """Numbers of two models have nothing to do with each other. Raises StoreError, by name."""
    first = corpora[0]
    for other in corpora[1:]:
        if len(other.stores) != len(first.stores):
            raise SettingsError("every corpus must have the same number of runs")
        for a, b in zip(first.stores, other.stores, strict=True):
            differences = different_settings(a.settings, b.settings)
            if differences:
                raise StoreError(
                    f"{a.path} and {b.path} are of different models: {'; '.join(differences)}."
                    " Extract both with the same model"
                )
        for mine, theirs in zip(first.sources, other.sources, strict=True):
            if (mine.pooling, mine.layers) != (theirs.pooling, theirs.layers):
                raise SettingsError(f"{mine} and {theirs}: name the same pooling and layers")


def different_settings(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """What tells two runs' models apart, in words."""
    ignored = DATA_SETTINGS
    if a.get("weights", "none") != "none" and a["weights"] == b.get("weights"):
        ignored = ignored | {"model", "source", "revision"}  # the same weights by another name
    names = [name for name in dict.fromkeys([*a, *b]) if name not in ignored]
    return [f"{name}: {a.get(name)!r} and {b.get(name)!r}" for name in names if a.get(name) != b.get(name)]
