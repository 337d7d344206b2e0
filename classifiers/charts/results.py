"""Which charts a result has: the same for a model's folder, as PNG, and for the report, as SVG."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from classifiers.charts import plots
from classifiers.results.metrics import confusion_matrix
from classifiers.results.result import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Charts = Mapping[str, Callable[[], "Figure"]]  # by file name; drawn when asked for

TITLES = {
    "confusion_matrix": "Confusion matrix",
    "roc": "ROC curves, one class against the rest",
    "pr": "Precision and recall",
    "reliability": "Reliability: is it as often right as it is sure?",
    "training_curves": "Training: each fold thin, a dot where it stopped; their mean thick, a stopped fold"
    " counting with its last value",
    "layer_weights": "Learned weights of the layers",
}


def charts_of(result: Result, layers: Sequence[int] = (), model: Sequence[float] | None = None) -> Charts:
    """Predictions of all seeds together.

    ``layers``: numbers of those that are weighted, if any are; ``model``: the saved model's weights of them.
    """
    y_true, proba = tested(result)
    confusion = confusion_matrix(y_true, proba.argmax(axis=1), len(result.classes))
    charts: dict[str, Callable[[], Figure]] = {
        "confusion_matrix": partial(plots.confusion_matrix, confusion, result.classes),
        "roc": partial(plots.roc, y_true, proba, result.classes),
        "pr": partial(plots.pr, y_true, proba, result.classes),
        "reliability": partial(plots.reliability_diagram, y_true, proba),
    }
    if histories := histories_of(result):
        charts["training_curves"] = partial(plots.training_curves, histories)
    weights = [fold.layer_weights for folds in result.folds for fold in folds if fold.layer_weights]
    if weights:
        array = np.array(weights)
        names = list(layers) if len(layers) == array.shape[1] else list(range(array.shape[1]))
        own = None if model is None else np.array(model)
        charts["layer_weights"] = partial(plots.layer_weights, array, names, own)
    return charts


def tested(result: Result) -> tuple[np.ndarray, np.ndarray]:
    """True classes int [S * M] and probabilities float32 [S * M, C], seed after seed."""
    return (
        np.concatenate([p.y_true for p in result.predictions]),
        np.concatenate([p.proba for p in result.predictions]),
    )


def histories_of(result: Result) -> dict[str, list[dict[str, float]]]:
    """Training histories of the folds that have one, by seed and name of the fold."""
    return {
        f"seed {seed}, {fold.name}": fold.history
        for seed, folds in zip(result.seeds, result.folds, strict=True)
        for fold in folds
        if fold.history
    }
