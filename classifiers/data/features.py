"""Rows to learn from: one or several stores, joined by recording, read one layer at a time.

    features = Features.open([Source("runs/emodb", "mean", "all")])
    x = features.matrix(layer=3)      # float32 [N, D]
    y = features.y                    # int64 [N], codes of ``features.classes``

Rows that cannot be learned from (no label, not in every store, not finite) are left out, and
``notes`` say which and why. Augmented copies are rows of their own; ``originals`` ties them to the
recording they come from and ``clean`` tells them apart.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from classifiers.data.label_maps import as_classes
from classifiers.data.runs import augmentations_of, missing_notes, open_run, tested_rows
from classifiers.data.source import CLEAN, COPIES, FRAMES, OPEN_LAYERS, Labelling, Source
from classifiers.data.standardise import standardise
from extractor.errors import InputError, SettingsError, some, unknown
from extractor.inputs.corpora.words import is_missing, known
from extractor.store import Store

KEPT_BYTES = 1 << 30  # of frames in memory: six hours of 120 dimensions, a hundred a second
_AS_WRITTEN = ("original", "copy", "augmentation", "text")  # ids and texts, which may read "none"


@dataclass(slots=True)
class SourceRows:
    """One source, opened; its pooling and layers by name. ``rows[i]`` is the store's row of row i."""

    source: Source
    store: Store
    rows: np.ndarray  # int64 [N]

    @property
    def is_open(self) -> bool:
        """Whether its layers are to be chosen from."""
        return isinstance(self.source.layers, str)

    @property
    def layers(self) -> list[int]:
        layers = self.source.layers
        return list(self.store.layers if isinstance(layers, str) else layers)

    def read(self, layers: int | list[int]) -> np.ndarray:
        """float32 ``[N, D]`` of a layer, ``[N, L, D]`` of several."""
        return self.store.load_rows(self.rows, layers, self.source.pooling)

    def chosen(self, layer: int | None) -> list[int]:
        """The layers that are fixed, or else ``layer``."""
        if self.is_open and layer is None:
            raise SettingsError(f"{self.source.path}: name a layer; there are: {self.store.layers}")
        return [layer] if self.is_open and layer is not None else self.layers


class Features:
    """Rows of one or several stores joined by id, in the order of the first store.

    ids, labels, originals: list[str] of N rows. y: int64 [N], codes of ``classes``. clean: bool [N],
    false for augmented copies; augmentations: list[str], theirs. notes: what was left out and why.
    trainable: bool [N], false for copies that are there to be tested on only. standardised: whether
    `matrix` and `tensor` give every dimension with mean 0 and deviation 1 over these rows, without
    their labels (``--normalise corpus``); false unless set.
    """

    standardised = False

    def __init__(self, parts: Sequence[SourceRows], labels: list[str], notes: list[str], copies: str) -> None:
        self._parts, self._copies = list(parts), copies
        self.labels, self.notes = labels, notes
        self._look()

    def _look(self) -> None:
        """All that follows from the parts' rows and their labels."""
        self._memory: tuple[Hashable, np.ndarray] | None = None  # what was read last
        self._columns: dict[str, list[str]] = {}
        self._code_labels()
        first = self._parts[0].store
        self.ids, self.originals, self.augmentations = (
            [values[row] for row in self.store_rows.tolist()]
            for values in (first.ids, first.originals, augmentations_of(first))
        )
        self.clean = first.clean[self.store_rows]
        self.trainable = self.clean | (self._copies != "none")

    def _code_labels(self) -> None:
        self.classes = tuple(sorted(set(self.labels)))
        code = {name: k for k, name in enumerate(self.classes)}
        self.y = np.array([code[name] for name in self.labels], np.int64)

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
        parts = [_resolved(source, store) for source, store in zip(sources, stores, strict=True)]
        notes = [note for store in stores for note in missing_notes(store)]
        notes += _join(parts)
        labels = _label(parts, labelling, notes)
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
        free = [part for part in self._parts if part.is_open] or self._parts[:1]
        common = set.intersection(*(set(part.layers) for part in free))
        if not common:
            paths = ", ".join(part.source.path for part in free)
            raise SettingsError(f"{paths}: no layer is stored in all of them; name one for each")
        return [layer for layer in free[0].layers if layer in common]

    @property
    def is_open(self) -> bool:
        """Whether a layer is to be named in `matrix` and `frame_rows`."""
        return any(part.is_open for part in self._parts)

    @property
    def has_frames(self) -> bool:
        return self._parts[0].source.pooling == FRAMES

    def column(self, name: str) -> list[str]:
        """A label, ``id`` or ``path`` of every row, from the first store; "nan" and the like are ""."""
        if name not in self._columns:
            store = self._parts[0].store
            if name in ("id", "path"):
                values = store.ids if name == "id" else store.paths
            else:
                values = store.labels(name)
                if name not in _AS_WRITTEN:
                    values = [known(value) for value in values]
            self._columns[name] = [values[row] for row in self.store_rows.tolist()]
        return self._columns[name]

    def provenance(self) -> dict[str, Any]:
        """Where the embeddings came from: settings and environment of every store, by source."""
        return {
            str(part.source): {"settings": part.store.settings, "environment": part.store.environment}
            for part in self._parts
        }

    def only(self, number: int) -> Features:
        """The same rows, with the labels of the first source, of one of the sources: of a late fusion."""
        one = copy(self)
        one._parts, one.notes, one._columns, one._memory = [self._parts[number]], [], {}, None
        return one

    # Embeddings

    def matrix(self, layer: int | None = None) -> np.ndarray:
        """float32 ``[N, D]``: the sources' embeddings side by side; of open sources, layer ``layer``.

        A source of several fixed layers gives them side by side as well. One layer of all rows is
        kept until another is asked for.
        """

        def read() -> np.ndarray:
            blocks = [part.read(number) for part in self._parts for number in part.chosen(layer)]
            return blocks[0] if len(blocks) == 1 else np.hstack(blocks)

        return self._remembered(("matrix", layer), read)

    def tensor(self) -> np.ndarray:
        """float32 ``[N, L, D]``: all layers of the only source, or those that were fixed."""
        part = self._only_part("all layers together")
        return self._remembered("tensor", lambda: part.read(part.layers))

    def frame_rows(self, layer: int | None = None) -> FrameRows:
        """Frames of every row, read when asked for: float32 ``[T, D]`` of one layer.

        ``[T, L, D]`` of all layers, or of several that were fixed.
        """
        if self.standardised:
            raise SettingsError("--normalise corpus: of pooled embeddings only")
        part = self._only_part("frames")
        every = layer is None and part.source.layers == "all"
        numbers = part.layers if every else part.chosen(layer)

        def read(row: int) -> np.ndarray:
            if len(numbers) == 1 and not every:
                return part.store.frames(int(part.rows[row]), numbers[0])
            frames = part.store.frames(int(part.rows[row]))
            return frames if every else frames[:, [part.store.layers.index(number) for number in numbers]]

        return FrameRows(read, np.arange(len(self)))

    def _remembered(self, what: Hashable, read: Callable[[], np.ndarray]) -> np.ndarray:
        if self._memory is None or self._memory[0] != what:
            self._memory = None  # two layers are never in memory together
            # Standardised in place: a store may fill half of the memory.
            self._memory = (what, standardise(read()) if self.standardised else read())
        return self._memory[1]

    def _only_part(self, what: str) -> SourceRows:
        if len(self._parts) > 1:
            raise SettingsError(f"{what}: of one run only; fuse several with --fusion average or gate")
        return self._parts[0]

    # Rows that cannot be used

    def _drop_not_finite(self) -> None:
        """Leave out rows with NaN or infinity in a layer that may be used; a layer in memory at a time."""
        finite = np.ones(len(self), bool)
        for part in self._parts:
            if part.source.pooling == FRAMES:
                fine = [np.isfinite(part.store.frames(row)).all() for row in part.rows.tolist()]
                of_part = np.array(fine, bool)
            else:
                of_part = np.ones(len(self), bool)
                for layer in part.layers:
                    of_part &= np.isfinite(part.read(layer)).all(axis=1)
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
        self.labels = [self.labels[i] for i in rows.tolist()]
        self._look()


class FrameRows:
    """A sequence. Element k: float32 ``[T, D]`` or ``[T, L, D]``, as ``read(rows[k])`` gives it.

    What is read is kept until ``kept_bytes`` are full, by all sequences that were taken from one.
    """

    def __init__(
        self, read: Callable[[int], np.ndarray], rows: np.ndarray, kept_bytes: int = KEPT_BYTES
    ) -> None:
        self._read, self.rows = read, rows
        self._kept: dict[int, np.ndarray] = {}
        self._room = [kept_bytes]  # shared, as `_kept` is

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> np.ndarray:
        row = int(self.rows[index])
        found = self._kept.get(row)
        if found is None:
            found = self._read(row)
            if found.nbytes <= self._room[0]:
                self._room[0] -= found.nbytes
                self._kept[row] = found
        return found

    def take(self, index: np.ndarray) -> FrameRows:
        """Some of the elements, by index, as a sequence of the same memory."""
        taken = copy(self)
        taken.rows = self.rows[index]
        return taken


# Rows of several runs, joined by id; what is left out, and why


def named(ids: Sequence[str]) -> str:
    """How many recordings, and the first of them by name."""
    return f"{len(ids):,} {'recording' if len(ids) == 1 else 'recordings'} ({some(ids)})"


def _resolved(source: Source, store: Store) -> SourceRows:
    """A source with its pooling and layers by name. Raises SettingsError for one that is not there."""
    layers = source.layers
    if isinstance(layers, str) and layers not in OPEN_LAYERS:
        raise SettingsError(f"--layer {layers!r}: write a number, 6,12, all, best or each")
    fixed = None if isinstance(layers, str) else layers
    numbers, pooling = store.resolve(fixed, source.pooling, frames=True, hint=" (RUN:pooling)")
    if fixed is not None or len(numbers) == 1:
        layers = tuple(numbers)
    return SourceRows(replace(source, pooling=pooling, layers=layers), store, np.arange(len(store)))


def _join(parts: Sequence[SourceRows]) -> list[str]:
    """Keep of every part the rows whose id all have, in the order of the first. Returns notes."""
    ids = [part.store.ids for part in parts]
    common = set.intersection(*map(set, ids))
    if not common:
        paths = " and ".join(part.source.path for part in parts)
        example = "; ".join(f"{part.source.path}: {named(of)}" for part, of in zip(parts, ids, strict=True))
        raise InputError(f"{paths}: no recording is in all of them, by id. {example}")
    notes = []
    order = [name for name in ids[0] if name in common]
    for part, of in zip(parts, ids, strict=True):
        lost = [name for name in of if name not in common]
        if lost:
            notes.append(f"{part.source.path}: {named(lost)} not in every run: left out")
        row = {name: k for k, name in enumerate(of)}
        part.rows = np.array([row[name] for name in order], np.int64)
    _refuse_contradictions(parts, order, "augmentation")
    return notes


def _refuse_contradictions(parts: Sequence[SourceRows], ids: Sequence[str], column: str) -> None:
    """Rows of one id that are labelled differently are not the same recording."""
    have = [part for part in parts if column in part.store.columns]
    values = [np.array(part.store.labels(column), object)[part.rows] for part in have]
    for part, other in zip(have[1:], values[1:], strict=True):
        unequal = np.flatnonzero(other != values[0])
        if len(unequal):
            at = int(unequal[0])
            raise InputError(
                f"{have[0].source.path} and {part.source.path} contradict each other in {column!r} of"
                f" {named([ids[i] for i in unequal.tolist()])}: {values[0][at]!r} and {other[at]!r}"
            )


def _label(parts: Sequence[SourceRows], labelling: Labelling, notes: list[str]) -> list[str]:
    """Labels of the rows that have one that counts; the parts keep these rows only."""
    rows, store, path = parts[0].rows, parts[0].store, parts[0].source.path
    every_id = store.ids
    ids = [every_id[row] for row in rows.tolist()]
    _refuse_contradictions(parts, ids, labelling.column)
    every = store.labels(labelling.column)
    given = [every[row] for row in rows.tolist()]
    labels, found = as_classes(path, labelling.column, given, labelling.rename, labelling.classes)
    kept = np.array([name != "" for name in labels], bool)
    unlabelled = [name for name, label in zip(ids, given, strict=True) if is_missing(label)]
    if unlabelled:
        notes.append(f"{path}: {named(unlabelled)} without {labelling.column}: left out")
    notes += found
    if labelling.copies == "none":
        used = store.clean
        if labelling.test_on != CLEAN:
            used = used | tested_rows(used, augmentations_of(store), labelling.test_on, str(store.path))
        if not used[rows].all():
            notes.append(f"{path}: {int((~used[rows]).sum()):,} augmented copies: left out")
            kept &= used[rows]
    for part in parts:
        part.rows = part.rows[kept]
    return [name for name, keep in zip(labels, kept.tolist(), strict=True) if keep]
