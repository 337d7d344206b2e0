"""Selecting a layer and parameters inside the training rows of each fold, and nowhere else.

    layer        scored with the given parameters, on inner splits of the fold's training rows
    parameters   then a grid, or a seeded search (TPE, Bergstra et al. 2011), at that layer

One after the other: layers + settings fits, not layers x settings. The layer loop is outermost, over
all folds, so that each layer is read once and one is in memory. The best is the highest UA over the
validation rows; of equals the first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np

from classifiers.models.table import suggested
from classifiers.training.learner import Inputs, Learner, Setting, Splits
from extractor.errors import SettingsError


def fits_a_split(learner: Learner) -> int:
    """How many fits selecting takes on each split; 0 where there is nothing to select."""
    layers, tune = len(learner.layers), learner.experiment.tune
    settings = len(_grid_points(learner)) if learner.experiment.grid_values else tune + (tune > 0)
    return (layers if layers > 1 else 0) + settings


def select(learner: Learner, splits_of: Sequence[Splits], seed: int) -> list[Setting]:
    """The setting of each fold. ``splits_of[k]``: inner splits of fold k's training rows."""
    candidates, experiment = learner.layers, learner.experiment
    layers = candidates * len(splits_of)
    if len(candidates) > 1:
        score = np.empty((len(candidates), len(splits_of)))
        for i, layer in enumerate(candidates):
            learner.progress.doing = f"selecting a layer, {i + 1}/{len(candidates)}"
            x = learner.inputs(layer)
            score[i] = [learner.score(x, splits, {}, seed) for splits in splits_of]
        layers = [candidates[i] for i in score.argmax(axis=0).tolist()]
    if not experiment.grid_values and not experiment.tune:
        return [Setting(layer) for layer in layers]
    chosen: dict[int, Setting] = {}
    for layer, folds in by_layer(layers):
        x = learner.inputs(layer)
        for k in folds:
            learner.progress.doing = f"selecting parameters, fold {k + 1}/{len(layers)}"
            best = _best_of_search if experiment.tune else _best_of_grid
            chosen[k] = Setting(layer, best(learner, x, splits_of[k], seed))
    return [chosen[k] for k in range(len(layers))]


def by_layer(layers: Sequence[int | None]) -> Iterator[tuple[int | None, list[int]]]:
    """Each layer that occurs, with the folds that have it: a layer is read once for all of them."""
    for layer in dict.fromkeys(layers):
        yield layer, [k for k, of in enumerate(layers) if of == layer]


def _grid_points(learner: Learner) -> list[dict[str, Any]]:
    grid = learner.experiment.grid_values
    return [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]


def _best_of_grid(learner: Learner, x: Inputs, splits: Splits, seed: int) -> dict[str, Any]:
    points = _grid_points(learner)
    return points[int(np.argmax([learner.score(x, splits, point, seed) for point in points]))]


def _best_of_search(learner: Learner, x: Inputs, splits: Splits, seed: int) -> dict[str, Any]:
    """The best of ``--tune`` trials and of the defaults."""
    import optuna

    space = learner.row.space
    if not space:
        raise SettingsError(
            f"--tune: {learner.row.name} has nothing to search; take --grid parameter=value,..."
        )
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
    default = learner.score(x, splits, {}, seed)
    study.optimize(
        lambda trial: learner.score(x, splits, suggested(trial, space), seed),
        n_trials=learner.experiment.tune,
    )
    return dict(study.best_params) if study.best_value > default else {}
