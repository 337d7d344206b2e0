"""Trained on some corpora, tested on others.

Every run trains a classifier that every other run tests; the diagonal is the run's own protocol, with
the same classes and settings. A model that is there already is tested by `transfer`.

Labels are compared in the common emotion set, after ``--map``; what has no class on the other side is
left out and counted by name. ``normalise``: "none", or "corpus": every corpus to mean 0 and deviation 1
by its own rows, without labels, which takes the microphone and the level away (Schuller et al. 2010,
"Cross-corpus acoustic emotion recognition", corpus normalisation).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from classifiers.data.features import Features
from classifiers.data.label_maps import LabelMap, common_classes, map_labels, restricted
from classifiers.data.overlap import overlap, training_set_of
from classifiers.data.source import Source
from classifiers.data.stacked import Stacked, refuse_different_models
from classifiers.results.files import write_file, write_json
from classifiers.results.metrics import (
    Predictions,
    augmentation_lines,
    bootstrap_intervals,
    drop,
    scores,
    scores_by,
)
from classifiers.training.conditions import Conditions, conditions, resolved_config, used_values
from classifiers.training.config import CONCAT, Experiment
from classifiers.training.experiment import (
    check_protocol,
    open_features,
    run_experiment,
    train_on_all,
)
from classifiers.training.learner import Say, aligned, inputs_of, take
from extractor.errors import InputError, SettingsError, unknown

NORMALISATIONS = ("none", "corpus")
OTHERS = "all others"  # as training corpus of a row of the matrix


@dataclass(frozen=True, slots=True)
class Cell:
    """One training corpus, one tested."""

    train: str
    test: str
    within: bool  # tested on unseen speakers of the training corpus itself
    figures: dict[str, Any]  # as `metrics.scores`
    interval: tuple[float, float]  # of UA, 95 %, over rows
    selected: str  # layer and parameters, of a diagonal cell empty: they differ by fold
    speaker_dependent: bool = False  # speakers were trained on and tested
    heard: int = 0  # recordings tested that were heard in training, or whose speakers were
    by_augmentation: dict[str, dict[str, Any]] = field(default_factory=dict)  # of copies that were tested


@dataclass(frozen=True, slots=True)
class Matrix:
    """Every corpus against every other."""

    names: tuple[str, ...]
    classes: tuple[str, ...]
    normalise: str
    config: dict[str, Any]
    labels: tuple[LabelMap, ...]
    cells: tuple[Cell, ...]
    notes: tuple[str, ...]
    used: dict[str, Any] = field(default_factory=dict)  # see `conditions.used_values`

    def cell(self, train: str, test: str) -> Cell | None:
        return next((cell for cell in self.cells if (cell.train, cell.test) == (train, test)), None)

    def drop(self, cell: Cell) -> float | None:
        """See `metrics.drop`; None on the diagonal, for a training corpus that is no tested one, and where
        what was trained on is tested."""
        own = self.cell(cell.train, cell.train)
        no_other = cell.within or cell.heard
        return None if own is None or no_other else drop(own.figures["UA"], cell.figures["UA"])

    @property
    def conditions(self) -> Conditions:
        """Of all its figures; layer and parameters of a cell are in `Cell.selected`."""
        return conditions(self.config, self.used, normalise=self.normalise)

    @property
    def rows(self) -> list[str]:
        """Training corpora."""
        return list(dict.fromkeys(cell.train for cell in self.cells))

    def save(self, folder: str | PathLike[str]) -> None:
        """``cross_corpus.json`` and ``cross_corpus.png``. Raises StoreUnwritable."""
        from classifiers.charts import plots

        path = Path(folder)
        cells = [asdict(cell) | {"drop": self.drop(cell)} for cell in self.cells]
        write_json(path / "cross_corpus.json", asdict(self) | {"cells": cells})
        found = [[self.cell(train, test) for test in self.names] for train in self.rows]
        ua = np.array([[np.nan if cell is None else cell.figures["UA"] for cell in row] for row in found])
        chance = 1 / len(self.classes)
        figure = plots.transfer_map(ua, self.rows, self.names, chance)
        plots.write_png(plots.captioned(figure, str(self.conditions)), path / "cross_corpus.png")


@dataclass(frozen=True, slots=True)
class _Corpus:
    """One run, opened with the common classes."""

    name: str
    experiment: Experiment
    features: Features


def cross_matrix(
    runs: Sequence[str],
    experiment: Experiment,
    normalise: str = "none",
    leave_one_out: bool = False,
    say: Say | None = None,
    include_heard: bool = False,
    out: str | PathLike[str] | None = None,
) -> Matrix:
    """Train on each run and test on each. What the protocol needs of every run is checked before a fit.

    Args:
        runs: at least two. ``experiment.features`` is replaced by each in turn.
        leave_one_out: train on all other runs together as well, a further row.
        include_heard: test on what the tested corpus shares with the training corpus, too.
        out: folder where finished cells are kept as they come; those of the same runs, labels and
            settings are taken from there.

    Raises:
        SettingsError: fewer than two runs, an unknown normalisation, late fusion.
        StoreError: runs of different models.
        InputError: fewer than two classes in common; a run that the protocol cannot divide.
    """
    if len(runs) < 2:
        raise SettingsError("a matrix needs at least two runs")
    if experiment.fusion != CONCAT:
        raise SettingsError(f"--fusion {experiment.fusion}: a matrix is of one run a corpus")
    check_normalisation(normalise)
    maps = map_labels(runs, experiment.label, experiment.map, experiment.tested, experiment.incomplete)
    classes = common_classes(maps, experiment.classes)
    maps = restricted(maps, classes)
    corpora = _opened(maps, classes, experiment, normalise)
    refuse_different_models([corpus.features for corpus in corpora])
    for corpus in corpora:
        check_protocol(corpus.experiment, corpus.features)
    heard, notes = _heard(corpora, include_heard)
    settings = experiment.to_dict() | {"features": [], "classes": list(classes)}
    settings |= {"normalise": normalise, "include_heard": include_heard}
    finished = _CellFile(out, settings, corpora)
    for corpus in corpora:
        name, others = corpus.name, [other for other in corpora if other is not corpus]
        if finished.get(name, name) is None:
            if say is not None:
                say(f"{name}: its own protocol, {experiment.protocol}")
            result = run_experiment(corpus.experiment, corpus.features, say)
            made = result.predictions[0]
            figures = scores(made.y_true, made.proba, classes)
            interval = bootstrap_intervals([made])["UA"]
            dependent, of_copies = result.speaker_dependent, result.figures()["by_augmentation"]
            own = Cell(name, name, True, figures, interval, "", dependent, 0, of_copies)
            finished.put(own, [f"{name}: {note}" for note in result.notes])
        _transfers(corpus, others, heard, include_heard, finished, say)
        if leave_one_out and len(others) > 1:
            together = Stacked({other.name: other.features for other in others})
            heard[OTHERS, name] = np.any([heard[other.name, name] for other in others], axis=0)
            everyone = _Corpus(OTHERS, corpora[0].experiment, together)
            _transfers(everyone, [corpus], heard, include_heard, finished, say)
        notes += finished.notes(name)
    names = tuple(corpus.name for corpus in corpora)
    trained = (*names, OTHERS) if leave_one_out and len(names) > 2 else names
    cells = [cell for train in trained for test in names if (cell := finished.get(train, test)) is not None]
    first = corpora[0]
    config = resolved_config(first.experiment, first.features)
    config |= {"features": list(runs), "classes": list(classes), "map": dict(experiment.map)}
    # All runs are of one model: its sources are alike but for the path.
    used = used_values(first.experiment, first.features) | {"runs": list(runs)}
    return Matrix(names, classes, normalise, config, tuple(maps), tuple(cells), tuple(notes), used)


def check_normalisation(name: str) -> None:
    if name not in NORMALISATIONS:
        raise SettingsError(unknown("normalisation", name, NORMALISATIONS))


def _opened(
    maps: Sequence[LabelMap], classes: tuple[str, ...], experiment: Experiment, normalise: str
) -> list[_Corpus]:
    names = [Path(Source.parse(each.run).path).name for each in maps]
    corpora = []
    for each, name in zip(maps, names, strict=True):
        one = replace(experiment, features=(each.run,), classes=classes, map=each.renames())
        features = open_features(one)
        if features.classes != classes:
            raise InputError(
                f"{each.run}: of {', '.join(set(classes) - set(features.classes))} no row is usable"
            )
        features.standardised = normalise == "corpus"
        # Two folders of one name are told apart by all that was written.
        corpora.append(_Corpus(name if names.count(name) == 1 else each.run, one, features))
    return corpora


def _heard(
    corpora: Sequence[_Corpus], include_heard: bool
) -> tuple[dict[tuple[str, str], np.ndarray], list[str]]:
    """By corpus trained on and corpus tested: bool [N], rows of the latter that the former has as well.

    Raises InputError, before anything is trained, where nothing is left to test.
    """
    found: dict[tuple[str, str], np.ndarray] = {}
    notes = []
    for train in corpora:
        mine = train.features
        heard = training_set_of(mine.stores[0], mine.store_rows[mine.trainable])
        for other in corpora:
            theirs = other.features
            tested = theirs.tested(other.experiment.tested)
            rows = overlap(heard, theirs.stores[0]).rows[theirs.store_rows] & tested
            found[train.name, other.name] = rows
            if train is other or not rows.any():
                continue
            what = f"{train.name} -> {other.name}: {int(rows.sum()):,} of {int(tested.sum()):,} recordings"
            what += " are trained on, or their speakers are"
            if rows.sum() == tested.sum() and not include_heard:
                raise InputError(f"{what}: nothing is left to test; leave a run out, or take --include-heard")
            notes.append(f"{what}: {'tested all the same' if include_heard else 'left out'}")
    return found, notes


def _transfers(
    corpus: _Corpus,
    tested: Sequence[_Corpus],
    heard: Mapping[tuple[str, str], np.ndarray],
    include_heard: bool,
    finished: _CellFile,
    say: Say | None,
) -> None:
    """Trained on the whole of one, tested on all rows of others that count and were not heard.

    What is finished is not done again.
    """
    tested = [other for other in tested if finished.get(corpus.name, other.name) is None]
    if not tested:
        return
    trained = train_on_all(corpus.experiment, corpus.features, say)
    [setting], classes = trained.settings, corpus.features.classes
    for other in tested:
        features, of_other = other.features, heard[corpus.name, other.name]
        counts = features.tested(other.experiment.tested)
        rows = np.flatnonzero(counts if include_heard else counts & ~of_other)
        if not len(rows):
            raise InputError(f"{corpus.name} -> {other.name}: nothing is left to test that was not heard")
        x = take(inputs_of(corpus.experiment.row, features, setting.layer), rows)
        proba = aligned(trained.estimator, x, len(classes))
        found = figures_elsewhere(features, rows, features.y[rows], proba, classes)
        heard_rows = int(of_other[rows].sum())
        cell = Cell(corpus.name, other.name, False, selected=str(setting), heard=heard_rows, **found)
        finished.put(cell, [])
        if say is not None:
            say(f"{corpus.name} -> {other.name}: UA {100 * cell.figures['UA']:.1f} %")


def figures_elsewhere(
    features: Features,
    rows: np.ndarray,
    y_true: np.ndarray,
    proba: np.ndarray,
    classes: Sequence[str],
    copies_together: bool = False,
) -> dict[str, Any]:
    """What a classifier does on ``rows`` of another corpus: fields of a `Cell`, or of a `Transfer`.

    ``copies_together``: those of one recording are drawn together for the interval.
    """
    made = Predictions(rows, np.zeros(len(rows), np.int64), y_true, proba)
    clean = bool(features.clean[rows].all())
    kinds = [features.augmentations[row] for row in rows.tolist()]
    groups = features.originals if copies_together and not clean else None
    return {
        "figures": scores(y_true, proba, classes),
        "interval": bootstrap_intervals([made], groups)["UA"],
        "by_augmentation": {} if clean else scores_by(kinds, made),
    }


class _CellFile:
    """Cells by what they were made of, kept in ``out/cells.json`` where there is an ``out``.

    A matrix of many corpora takes hours: the same command goes on where it ended.
    """

    def __init__(
        self, out: str | PathLike[str] | None, settings: Mapping[str, Any], corpora: Sequence[_Corpus]
    ) -> None:
        self._path = None if out is None else Path(out) / "cells.json"
        self._settings = json.dumps(settings, sort_keys=True)
        self._content = {corpus.name: _content(corpus.features) for corpus in corpora}
        self._kept: dict[str, dict[str, Any]] = {}
        if self._path is not None and self._path.exists():
            try:
                self._kept = json.loads(self._path.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise InputError(
                    f"{self._path}: cannot be read ({error}); delete it, or name another --out"
                ) from error

    def _key(self, train: str, test: str) -> str:
        """Of the runs' rows and all settings: a corrected label is another cell."""
        parts = [name for name in self._content if name != test] if train == OTHERS else [train]
        trained = [self._content[name] for name in parts]
        return _sha256([self._settings, trained, self._content[test], train, test])

    def get(self, train: str, test: str) -> Cell | None:
        found = self._kept.get(self._key(train, test))
        if found is None:
            return None
        return Cell(**found["cell"] | {"interval": tuple(found["cell"]["interval"])})

    def notes(self, name: str) -> list[str]:
        """Of a run's own protocol."""
        return list(self._kept[self._key(name, name)]["notes"])

    def put(self, cell: Cell, notes: Sequence[str]) -> None:
        self._kept[self._key(cell.train, cell.test)] = {"cell": asdict(cell), "notes": list(notes)}
        if self._path is not None:
            write_file(self._path, json.dumps(self._kept, indent=1))  # NaN stays NaN: read by us alone


def _content(features: Features) -> str:
    """A checksum of what a run gives: rows, labels, audio, and the settings of their embeddings."""
    columns = [name for name in features.columns if name != "text"]
    return _sha256([
        [[str(source.pooling), source.layers] for source in features.sources],
        [[store.settings, store.checksums, store.precisions] for store in features.stores],
        [features.ids, features.labels, *(features.column(name) for name in columns)],
    ])  # fmt: skip


def _sha256(parts: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def matrix_lines(matrix: Matrix) -> list[str]:
    """A table: rows train, columns test, UA in per cent with the drop against the row's own protocol."""
    width = max(12, *(len(name) + 2 for name in matrix.names))
    lines = [
        str(matrix.conditions),
        f"UA %, {len(matrix.classes)} classes ({', '.join(matrix.classes)}), normalise {matrix.normalise};"
        " in brackets the drop: UA on unheard speakers of the training corpus, less this",
        f"{'train / test':<{width + 4}}" + "".join(f"{name:>{width + 4}}" for name in matrix.names),
    ]
    for train in matrix.rows:
        line = f"{train:<{width + 4}}"
        for test in matrix.names:
            value = "-"
            if (cell := matrix.cell(train, test)) is not None:
                lost = matrix.drop(cell)
                value = f"{100 * cell.figures['UA']:.1f}" + ("" if lost is None else f" ({100 * lost:.1f})")
            line += f"{value:>{width + 4}}"
        lines.append(line)
    for cell in matrix.cells:
        where = f"{cell.train} -> {cell.test}"
        if cell.speaker_dependent:
            lines.append(f"{where}: SPEAKER-DEPENDENT")
        if cell.heard:
            lines.append(f"{where}: {cell.heard:,} of the recordings tested were HEARD IN TRAINING")
        if cell.by_augmentation:
            lines += [
                f"{where}, tested on {matrix.config['test_on']}:",
                *augmentation_lines(cell.by_augmentation),
            ]
    return lines + [f"note: {note}" for note in matrix.notes]
