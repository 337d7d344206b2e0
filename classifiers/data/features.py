"""Rows to learn from: one or several stores, joined by recording, read one layer at a time.

    features = Features.open([Source("runs/emodb", "mean", "all")])
    x = features.matrix(layer=3)      # float32 [N, D]
    y = features.y                    # int64 [N], codes of ``features.classes``

Rows that cannot be learned from (no label, not in every store, not finite) are left out, and
``notes`` say which and why. Augmented copies are rows of their own; ``originals`` ties them to the
recording they come from and ``clean`` tells them apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from classifiers.data.frame_rows import FrameRows
from classifiers.data.joining import Part, join, labelled, named, resolved
from classifiers.data.runs import (
    augmentations_of,
    missing_notes,
    open_run,
    tested_rows,
)
from classifiers.data.source import COPIES, FRAMES, Labelling, Source
from extractor.errors import InputError, SettingsError, unknown
from extractor.inputs.corpora.words import known
from extractor.store import Store

_AS_WRITTEN = ("original", "copy", "augmentation", "text")  # ids and texts, which may read "none"


class Features:
    """Rows of one or several stores joined by id, in the order of the first store.

    ids, labels, originals: list[str] of N rows. y: int64 [N], codes of ``classes``. clean: bool [N],
    false for augmented copies; augmentations: list[str], theirs. notes: what was left out and why.
    standardised: whether `matrix` and `tensor` give every dimension with mean 0 and deviation 1 over
    these rows, without their labels (``--normalise corpus``); false unless set.
    """

    def __init__(
        self, parts: Sequence[Part], labels: Sequence[str], notes: Iterable[str], copies: str = COPIES[0]
    ) -> None:
        self._parts, self._copies = list(parts), copies
        self._kept: tuple[object, np.ndarray] | None = None  # the layer that was read last
        self._columns: dict[str, list[str]] = {}
        self.labels = list(labels)
        self.notes = list(notes)
        self.standardised = False
        first = self._parts[0]
        names = first.store.ids
        self.ids = [names[row] for row in first.rows.tolist()]
        self._index()

    def _index(self) -> None:
        self.classes = tuple(sorted(set(self.labels)))
        code = {name: k for k, name in enumerate(self.classes)}
        self.y = np.array([code[name] for name in self.labels], np.int64)
        first = self._parts[0]
        rows = first.rows
        originals, augmentations = first.store.originals, augmentations_of(first.store)
        self.originals = [originals[row] for row in rows.tolist()]
        self.augmentations = [augmentations[row] for row in rows.tolist()]
        self.clean = first.store.clean[rows]

    @classmethod
    def open(
        cls, sources: Sequence[Source], labelling: Labelling | None = None, incomplete: bool = False
    ) -> Features:
        """Join the sources' rows. ``incomplete``: runs that are not finished are taken as they are.

        Raises:
            StoreError: a run that is none, or is not finished.
            SettingsError: an unknown label column, class, pooling or layer.
            InputError: no row in common, rows that contradict each other, fewer than two classes.
        """
        labelling = labelling or Labelling()
        if not sources:
            raise SettingsError("name a run")
        if labelling.copies not in COPIES:
            raise SettingsError(unknown("choice of --copies", labelling.copies, COPIES))
        stores = [open_run(source.path, incomplete) for source in sources]
        parts = [resolved(source, store) for source, store in zip(sources, stores, strict=True)]
        notes = [note for store in stores for note in missing_notes(store)]
        notes += join(parts)
        labels = labelled(parts, labelling, notes)
        features = cls(parts, labels, notes, labelling.copies)
        features._drop_not_finite()
        if len(features.classes) < 2:
            only = f"only {features.classes[0]!r}" if features.classes else "none"
            raise InputError(
                f"{sources[0].path}: recordings of at least two classes of {labelling.column!r} are needed,"
                f" there is {only}. {'; '.join(features.notes)}"
            )
        return features

    # What there is

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def sources(self) -> tuple[Source, ...]:
        """As they are used: poolings and negative layers by name, single layers fixed."""
        return tuple(part.source for part in self._parts)

    @property
    def stores(self) -> tuple[Store, ...]:
        return tuple(part.store for part in self._parts)

    @property
    def store_rows(self) -> np.ndarray:
        """int64 [N]: each row's number in the first store."""
        return self._parts[0].rows

    @property
    def unfinished(self) -> list[str]:
        """Runs that lack recordings, and how many."""
        return [f"{store.path}: {store.unfinished}" for store in self.stores if store.unfinished]

    @property
    def trainable(self) -> np.ndarray:
        """bool [N]: false for copies that are there to be tested on only."""
        return self.clean | (self._copies != "none")

    @property
    def selectable(self) -> np.ndarray:
        """bool [N]: rows that layers and parameters are selected on: clean ones where there are any."""
        return self.clean if self.clean.any() else np.ones(len(self), bool)

    def tested(self, test_on: str) -> np.ndarray:
        """bool [N], see `runs.tested_rows`."""
        return tested_rows(self.clean, self.augmentations, test_on, self.sources[0].path)

    @property
    def columns(self) -> tuple[str, ...]:
        """Labels of the first store."""
        return self._parts[0].store.columns

    @property
    def layers(self) -> list[int]:
        """Layers to choose from: those that every source has whose layers are open.

        Where none is open, the fixed ones of the first source.
        """
        free = [part for part in self._parts if isinstance(part.source.layers, str)]
        if not free:
            return list(self._parts[0].source.layers)  # type: ignore[arg-type]
        common = set.intersection(*(set(part.store.layers) for part in free))
        if not common:
            paths = ", ".join(part.source.path for part in free)
            raise SettingsError(f"{paths}: no layer is stored in all of them; name one for each")
        return [layer for layer in free[0].store.layers if layer in common]

    @property
    def is_open(self) -> bool:
        """Whether a layer is to be named in `matrix` and `frame_rows`."""
        return any(isinstance(part.source.layers, str) for part in self._parts)

    @property
    def has_frames(self) -> bool:
        return self._parts[0].pooling == FRAMES

    def column(self, name: str) -> list[str]:
        """A label, ``id`` or ``path`` of every row, from the first store; "nan" and the like are ""."""
        if name not in self._columns:
            part = self._parts[0]
            if name in ("id", "path"):
                values = part.store.ids if name == "id" else part.store.paths
            else:
                values = part.store.labels(name)
                if name not in _AS_WRITTEN:
                    values = [known(value) for value in values]
            self._columns[name] = [values[row] for row in part.rows.tolist()]
        return self._columns[name]

    def provenance(self) -> dict[str, Any]:
        """Where the embeddings came from: settings and environment of every store, by source."""
        return {
            str(part.source): {"settings": part.store.settings, "environment": part.store.environment}
            for part in self._parts
        }

    def only(self, number: int) -> Features:
        """The same rows of one of the sources: a member of a late fusion."""
        features = Features([self._parts[number]], self.labels, (), self._copies)
        features._columns = {}
        # Labels of rows and copies are the first store's for every member.
        features.originals, features.clean = self.originals, self.clean
        features.augmentations = self.augmentations
        return features

    # Embeddings

    def matrix(self, layer: int | None = None, rows: np.ndarray | None = None) -> np.ndarray:
        """float32 ``[N, D]``: the sources' embeddings side by side; of open sources, layer ``layer``.

        A source of several fixed layers gives them side by side as well. One layer of all rows is
        kept until another is asked for.
        """
        if self._kept is None or self._kept[0] != ("matrix", layer):
            self._kept = None  # two layers are never in memory together
            blocks = [self._block(part, self._layers_of(part, layer)) for part in self._parts]
            whole = blocks[0] if len(blocks) == 1 else np.hstack(blocks)
            self._kept = (("matrix", layer), self._own_scale(whole))
        whole = self._kept[1]
        return whole if rows is None else whole[rows]

    def tensor(self, rows: np.ndarray | None = None) -> np.ndarray:
        """float32 ``[N, L, D]``: all layers of the only source, or those that were fixed."""
        part = self._only_part("all layers together")
        layers = part.store.layers if isinstance(part.source.layers, str) else list(part.source.layers)
        if self._kept is None or self._kept[0] != "tensor":
            self._kept = None
            whole = part.store.load_rows(part.rows, layers, part.pooling)
            self._kept = ("tensor", self._own_scale(whole))
        whole = self._kept[1]
        return whole if rows is None else whole[rows]

    def frames(self, row: int, layer: int | None = None) -> np.ndarray:
        """float32 ``[T, D]`` of one layer; ``[T, L, D]`` where several are asked for."""
        part = self._only_part("frames")
        if part.source.layers == "all" and layer is None:
            return part.store.frames(int(part.rows[row]))
        layers = self._layers_of(part, layer)
        if len(layers) == 1:
            return part.store.frames(int(part.rows[row]), layers[0])
        every = part.store.frames(int(part.rows[row]))
        return every[:, [part.store.layers.index(number) for number in layers]]

    def frame_rows(self, layer: int | None = None) -> FrameRows:
        """`frames` of every row as a sequence that reads what is asked for."""
        if self.standardised:
            raise SettingsError("--normalise corpus: of pooled embeddings only")
        return FrameRows(lambda row: self.frames(row, layer), np.arange(len(self)))

    def _own_scale(self, x: np.ndarray) -> np.ndarray:
        """[N, ...]; what does not vary becomes 0. In place: a store may fill half of the memory."""
        if not self.standardised:
            return x
        mean = x.mean(axis=0, dtype=np.float64).astype(np.float32)
        x -= mean
        deviation = np.sqrt(np.square(x).mean(axis=0, dtype=np.float64)).astype(np.float32)
        varies = deviation > 1e-6 * np.abs(mean)  # float32 cannot tell less from rounding
        x /= np.where(varies, deviation, np.inf)
        return x

    def _only_part(self, what: str) -> Part:
        if len(self._parts) > 1:
            raise SettingsError(f"{what}: of one run only; fuse several with --fusion average or gate")
        return self._parts[0]

    def _layers_of(self, part: Part, layer: int | None) -> tuple[int, ...]:
        if not isinstance(part.source.layers, str):
            return part.source.layers
        if layer is None:
            raise SettingsError(f"{part.source.path}: name a layer; there are: {part.store.layers}")
        return (layer,)

    def _block(self, part: Part, layers: Sequence[int]) -> np.ndarray:
        blocks = [part.store.load_rows(part.rows, layer, part.pooling) for layer in layers]
        return blocks[0] if len(blocks) == 1 else np.hstack(blocks)

    # Rows that cannot be used

    def _drop_not_finite(self) -> None:
        """Leave out rows with NaN or infinity in a layer that may be used; a layer in memory at a time."""
        finite = np.ones(len(self), bool)
        for part in self._parts:
            of_part = np.ones(len(self), bool)
            if part.pooling == FRAMES:
                for i, row in enumerate(part.rows.tolist()):
                    of_part[i] = np.isfinite(part.store.frames(row)).all()
            else:
                layers = part.source.layers
                for layer in part.store.layers if isinstance(layers, str) else layers:
                    of_part &= np.isfinite(part.store.load_rows(part.rows, layer, part.pooling)).all(axis=1)
            if not of_part.all():
                lost = [self.ids[i] for i in np.flatnonzero(~of_part).tolist()]
                self.notes.append(f"{part.source.path}: NaN or infinity in {named(lost)}: left out")
            finite &= of_part
        if not finite.all():
            self.keep(np.flatnonzero(finite))

    def keep(self, rows: np.ndarray) -> None:
        """Leave out all but these rows. int64, ascending."""
        for part in self._parts:
            part.rows = part.rows[rows]
        kept = rows.tolist()
        self.ids, self.labels = [self.ids[i] for i in kept], [self.labels[i] for i in kept]
        self._columns, self._kept = {}, None
        self._index()
