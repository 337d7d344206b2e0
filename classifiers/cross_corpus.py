"""Trained on some corpora, tested on others.

Every run trains a classifier that every other run tests; the diagonal is the run's own protocol, with
the same classes and settings. A model that is there already is tested by `transfer`.

Labels are compared in the common emotion set, after ``--map``; what has no class on the other side is
left out and counted by name. ``normalise``: "none", or "corpus": every corpus to mean 0 and deviation 1
by its own rows, without labels, which takes the microphone and the level away (Schuller et al. 2010,
"Cross-corpus acoustic emotion recognition", corpus normalisation).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from classifiers.conditions import Conditions, conditions
from classifiers.config import CONCAT, Experiment
from classifiers.experiment import (
    open_features,
    resolved_config,
    run_experiment,
    train_on_all,
    used_values,
)
from classifiers.features import Features
from classifiers.fit_progress import FitProgress, Say
from classifiers.label_maps import LabelMap, common_classes, map_labels, restricted
from classifiers.learner import Learner, aligned, take
from classifiers.metrics import bootstrap_interval, drop, scores
from classifiers.results import Predictions, to_json
from classifiers.source import Source
from classifiers.stacked import Stacked, refuse_different_models
from extractor.errors import InputError, SettingsError, unknown
from extractor.store.run_folder import write_text

NORMALISATIONS = ("none", "corpus")
OTHERS = "all others"  # as training corpus of a row of the matrix


@dataclass(frozen=True, slots=True)
class Transfer:
    """One training corpus, one tested."""

    train: str
    test: str
    within: bool  # tested on unseen speakers of the training corpus itself
    figures: dict[str, Any]  # as `metrics.scores`
    interval: tuple[float, float]  # of UA, 95 %, over rows
    selected: str  # layer and parameters, of a diagonal cell empty: they differ by fold


@dataclass(frozen=True, slots=True)
class Matrix:
    """Every corpus against every other."""

    names: tuple[str, ...]
    classes: tuple[str, ...]
    normalise: str
    config: dict[str, Any]
    labels: tuple[LabelMap, ...]
    cells: tuple[Transfer, ...]
    notes: tuple[str, ...]
    used: dict[str, Any] = field(default_factory=dict)  # see `experiment.used_values`

    def cell(self, train: str, test: str) -> Transfer | None:
        return next((cell for cell in self.cells if (cell.train, cell.test) == (train, test)), None)

    def drop(self, cell: Transfer) -> float | None:
        """See `metrics.drop`; None on the diagonal, and for a training corpus that is no tested one."""
        own = self.cell(cell.train, cell.train)
        return None if own is None or cell.within else drop(own.figures["UA"], cell.figures["UA"])

    @property
    def conditions(self) -> Conditions:
        """Of all its figures; layer and parameters of a cell are in `Transfer.selected`."""
        return conditions(self.config, self.used, normalise=self.normalise)

    @property
    def rows(self) -> list[str]:
        """Training corpora."""
        return list(dict.fromkeys(cell.train for cell in self.cells))

    def save(self, folder: str | PathLike[str]) -> None:
        """``cross_corpus.json`` and ``cross_corpus.png``. Raises StoreUnwritable."""
        from classifiers.study_charts import transfer_map

        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        cells = [asdict(cell) | {"drop": self.drop(cell)} for cell in self.cells]
        write_text(path / "cross_corpus.json", [to_json(asdict(self) | {"cells": cells})])
        transfer_map(self, path / "cross_corpus.png")


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
) -> Matrix:
    """Train on each run and test on each.

    Args:
        runs: at least two. ``experiment.features`` is replaced by each in turn.
        leave_one_out: train on all other runs together as well, a further row.

    Raises:
        SettingsError: fewer than two runs, an unknown normalisation, late fusion.
        StoreError: runs of different models.
        InputError: fewer than two classes in common.
    """
    if len(runs) < 2:
        raise SettingsError("a matrix needs at least two runs")
    if experiment.fusion != CONCAT:
        raise SettingsError(f"--fusion {experiment.fusion}: a matrix is of one run a corpus")
    check_normalisation(normalise)
    maps = map_labels(runs, experiment.label, experiment.map)
    classes = common_classes(maps, experiment.classes)
    maps = restricted(maps, classes)
    corpora = _opened(maps, classes, experiment, normalise)
    refuse_different_models([corpus.features for corpus in corpora])
    cells: list[Transfer] = []
    notes: list[str] = []
    for corpus in corpora:
        if say is not None:
            say(f"{corpus.name}: its own protocol, {experiment.protocol}")
        result = run_experiment(corpus.experiment, corpus.features, say)
        notes += [f"{corpus.name}: {note}" for note in result.notes]
        cells.append(_cell(corpus.name, corpus.name, result.predictions[0], classes, "", within=True))
        others = [other for other in corpora if other is not corpus]
        cells += _transfers(corpus, others, say)
        if leave_one_out and len(others) > 1:
            together = Stacked({other.name: other.features for other in others})
            cells += _transfers(_Corpus(OTHERS, corpora[0].experiment, together), [corpus], say)
    order = [*(corpus.name for corpus in corpora), OTHERS]
    cells.sort(key=lambda cell: (order.index(cell.train), order.index(cell.test)))
    first = corpora[0]
    config = resolved_config(first.experiment, first.features)
    config |= {"features": list(runs), "classes": list(classes), "map": dict(experiment.map)}
    # All runs are of one model: its sources are alike but for the path.
    used = used_values(first.experiment, first.features) | {"runs": list(runs)}
    names = tuple(corpus.name for corpus in corpora)
    return Matrix(names, classes, normalise, config, tuple(maps), tuple(cells), tuple(notes), used)


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


def _transfers(corpus: _Corpus, tested: Sequence[_Corpus], say: Say | None) -> list[Transfer]:
    """Trained on the whole of one, tested on all clean rows of others."""
    trained = train_on_all(corpus.experiment, corpus.features, say)
    setting = trained.settings[0]
    cells = []
    for other in tested:
        rows = np.flatnonzero(other.features.clean)
        learner = Learner(corpus.experiment.row, other.features, rows, {}, FitProgress())
        x = take(learner.inputs(setting.layer), rows)
        proba = aligned(trained.estimator, x, len(corpus.features.classes))
        made = Predictions(rows, np.zeros(len(rows), np.int64), other.features.y[rows], proba)
        cells.append(_cell(corpus.name, other.name, made, corpus.features.classes, str(setting)))
        if say is not None:
            say(f"{corpus.name} -> {other.name}: UA {100 * cells[-1].figures['UA']:.1f} %")
    return cells


def check_normalisation(name: str) -> None:
    if name not in NORMALISATIONS:
        raise SettingsError(unknown("normalisation", name, NORMALISATIONS))


def _cell(
    train: str, test: str, made: Predictions, classes: Sequence[str], selected: str, within: bool = False
) -> Transfer:
    figures = scores(made.y_true, made.proba, classes)
    return Transfer(train, test, within, figures, bootstrap_interval(made), selected)


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
            cell = matrix.cell(train, test)
            lost = None if cell is None else matrix.drop(cell)
            value = "-" if cell is None else f"{100 * cell.figures['UA']:.1f}"
            line += f"{value + ('' if lost is None else f' ({100 * lost:.1f})'):>{width + 4}}"
        lines.append(line)
    return lines + [f"note: {note}" for note in matrix.notes]
