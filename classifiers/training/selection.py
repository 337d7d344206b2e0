"""Selecting a layer and parameters inside the training rows of each fold, and nowhere else.

    layer        scored with the given parameters, on inner splits of the fold's training rows
    parameters   then a grid, or a seeded search (TPE, Bergstra et al. 2011), at that layer

One after the other: layers + settings fits, not layers x settings. The layer loop is outermost, over
all folds, so that each layer is read once and one is in memory. The best is the highest UA over the
validation rows; of equals the first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from classifiers.models.table import suggested
from classifiers.training.learner import Inputs, Learner, Setting, Splits
from extractor.errors import SettingsError


def selects(learner: Learner, grid: Mapping[str, Sequence[Any]], tune: int) -> bool:
    """Whether there is anything to select."""
    return len(learner.layers) > 1 or bool(grid) or tune > 0


def num_selection_fits(
    learner: Learner, splits_of: Sequence[Splits], grid: Mapping[str, Sequence[Any]], tune: int
) -> int:
    """How many fits `select` will make."""
    layers, settings = len(learner.layers), len(list(_grid_points(grid))) if grid else tune + (tune > 0)
    return sum(map(len, splits_of)) * ((layers if layers > 1 else 0) + settings)


def select(
    learner: Learner,
    splits_of: Sequence[Splits],
    grid: Mapping[str, Sequence[Any]],
    tune: int,
    seed: int,
) -> list[Setting]:
    """The setting of each fold. ``splits_of[k]``: inner splits of fold k's training rows."""
    layers = _best_layers(learner, splits_of, seed)
    if not grid and not tune:
        return [Setting(layer) for layer in layers]
    chosen: dict[int, Setting] = {}
    for layer, folds in by_layer(layers):
        x = learner.inputs(layer)
        for k in folds:
            learner.progress.doing(f"selecting parameters, fold {k + 1}/{len(layers)}")
            search = _best_of_search if tune else _best_of_grid
            chosen[k] = Setting(layer, search(learner, x, splits_of[k], grid, tune, seed))
    return [chosen[k] for k in range(len(layers))]


def by_layer(layers: Sequence[int | None]) -> Iterator[tuple[int | None, list[int]]]:
    """Each layer that occurs, with the folds that have it: a layer is read once for all of them."""
    for layer in dict.fromkeys(layers):
        yield layer, [k for k, of in enumerate(layers) if of == layer]


def _best_layers(learner: Learner, splits_of: Sequence[Splits], seed: int) -> list[int | None]:
    candidates = learner.layers
    if len(candidates) == 1:
        return candidates * len(splits_of)
    score = np.empty((len(candidates), len(splits_of)))
    for i, layer in enumerate(candidates):
        learner.progress.doing(f"selecting a layer, {i + 1}/{len(candidates)}")
        x = learner.inputs(layer)
        score[i] = [learner.score(x, splits, {}, seed) for splits in splits_of]
    return [candidates[i] for i in score.argmax(axis=0).tolist()]


def _grid_points(grid: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    for values in product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def _best_of_grid(
    learner: Learner, x: Inputs, splits: Splits, grid: Mapping[str, Sequence[Any]], tune: int, seed: int
) -> dict[str, Any]:
    points = list(_grid_points(grid))
    score = [learner.score(x, splits, point, seed) for point in points]
    return points[int(np.argmax(score))]


def _best_of_search(
    learner: Learner, x: Inputs, splits: Splits, grid: Mapping[str, Sequence[Any]], tune: int, seed: int
) -> dict[str, Any]:
    """The best of ``tune`` trials and of the defaults."""
    import optuna

    if not learner.row.space:
        raise SettingsError(
            f"--tune: {learner.row.name} has nothing to search; take --grid parameter=value,..."
        )
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))

    def objective(trial: optuna.Trial) -> float:
        return learner.score(x, splits, suggested(trial, learner.row.space), seed)

    default = learner.score(x, splits, {}, seed)
    study.optimize(objective, n_trials=tune)
    return dict(study.best_params) if study.best_value > default else {}
