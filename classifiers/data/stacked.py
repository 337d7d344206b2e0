"""Rows of several corpora, one below the other: what a classifier of many corpora is trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from classifiers.data.features import Features
from classifiers.data.frame_rows import FrameRows
from classifiers.data.source import Source
from extractor.errors import SettingsError, StoreError

# Settings that say nothing about what the numbers of an embedding mean.
DATA_SETTINGS = (
    "layers",
    "pooling",
    "dtype",
    "channel",
    "window_seconds",
    "storage_dtype",
    "augmentation",
    "copies",
    "seed",
    "clean",
)


class Stacked(Features):
    """`Features` of several runs of one model. Ids and speakers carry the name of their corpus.

    Raises StoreError where the runs are of different models, SettingsError where they are not read
    in the same way.
    """

    def __init__(self, corpora: Mapping[str, Features]) -> None:
        self._corpora = dict(corpora)
        members = list(self._corpora.values())
        refuse_different_models(members)
        self.labels = [label for each in members for label in each.labels]
        self.ids = self._named([each.ids for each in members])
        self.notes = [note for each in members for note in each.notes]
        self.classes = tuple(sorted(set(self.labels)))
        code = {name: k for k, name in enumerate(self.classes)}
        self.y = np.array([code[label] for label in self.labels], np.int64)
        self.originals = self._named([each.originals for each in members])
        self.clean = np.concatenate([each.clean for each in members])
        self.augmentations = [each for member in members for each in member.augmentations]
        self._kept = None

    def _named(self, values: Sequence[Sequence[str]]) -> list[str]:
        return [
            f"{corpus}/{value}" if value else ""
            for corpus, of in zip(self._corpora, values, strict=True)
            for value in of
        ]

    @property
    def _members(self) -> list[Features]:
        return list(self._corpora.values())

    @property
    def trainable(self) -> np.ndarray:
        return np.concatenate([each.trainable for each in self._members])

    @property
    def sources(self) -> tuple[Source, ...]:
        return self._members[0].sources

    @property
    def columns(self) -> tuple[str, ...]:
        """Labels that all have, and ``corpus``."""
        common = [name for name in self._members[0].columns if all(name in m.columns for m in self._members)]
        return (*common, "corpus")

    @property
    def layers(self) -> list[int]:
        return [layer for layer in self._members[0].layers if all(layer in m.layers for m in self._members)]

    @property
    def is_open(self) -> bool:
        return self._members[0].is_open

    @property
    def has_frames(self) -> bool:
        return self._members[0].has_frames

    def column(self, name: str) -> list[str]:
        if name == "corpus":
            return [corpus for corpus, each in self._corpora.items() for _ in range(len(each))]
        values = [each.column(name) for each in self._members]
        return self._named(values) if name in ("speaker", "session") else [v for of in values for v in of]

    def provenance(self) -> dict[str, Any]:
        return {key: value for each in self._members for key, value in each.provenance().items()}

    def only(self, number: int) -> Features:
        raise SettingsError("--fusion average and gate: of one corpus")

    def matrix(self, layer: int | None = None, rows: np.ndarray | None = None) -> np.ndarray:
        if self._kept is None or self._kept[0] != ("matrix", layer):
            self._kept = None
            self._kept = (("matrix", layer), np.concatenate([each.matrix(layer) for each in self._members]))
        whole = self._kept[1]
        return whole if rows is None else whole[rows]

    def tensor(self, rows: np.ndarray | None = None) -> np.ndarray:
        whole = np.concatenate([each.tensor() for each in self._members])
        return whole if rows is None else whole[rows]

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
    ignored = set(DATA_SETTINGS)
    if a.get("weights", "none") != "none" and a["weights"] == b.get("weights"):
        ignored |= {"model", "source", "revision"}  # the same weights by another name
    names = [name for name in dict.fromkeys([*a, *b]) if name not in ignored]
    return [f"{name}: {a.get(name)!r} and {b.get(name)!r}" for name in names if a.get(name) != b.get(name)]
