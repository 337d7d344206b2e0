"""One classifier on one set of features: fit on some rows, give probabilities of others, select; progress.

Of several sources at once:

concat    embeddings side by side, one classifier (early fusion; done by `Features.matrix`)
average   a classifier each, mean of the probabilities
gate      a classifier each, weighted mean; the weights are learned on probabilities of rows that
          the classifiers were not trained on, and drawn towards equal ones so that none is shut out
"""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np

from classifiers.data.features import Features, FrameRows
from classifiers.models.table import FRAMES, LAYERS, Classifier, suggested
from classifiers.results.metrics import unweighted_accuracy
from classifiers.training.config import Experiment
from classifiers.training.protocols import Rows
from extractor.errors import InputError, SettingsError
from extractor.progress import LOG_INTERVAL, clock_time

Inputs = np.ndarray | FrameRows  # float32 [N, D] or [N, L, D], or frames of each row
Splits = Sequence[tuple[Rows, Rows]]  # (train, validation)
Say = Callable[[str], None]
ITERATIONS = 200  # of the EM below; the likelihood never falls, and has settled long before
# Rows of a speaker are alike, and the best of several members often explains nearly all of them: weights
# that are most likely for the rows at hand are then 0 and 1, whatever the others know beside it. The prior
# counts as this share of the rows, explained by all members alike; no weight of S falls below
# PRIOR / (1 + PRIOR) / S, 0.083 of two.
PRIOR = 0.2
SMALLEST = 1e-12  # probability, so that a member that rules the truth out is possible


@dataclass(frozen=True, slots=True)
class Setting:
    """What is selected. ``layer`` is None where nothing is to be chosen from."""

    layer: int | None = None
    params: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        words = [] if self.layer is None else [f"layer {self.layer}"]
        for name, value in self.params.items():
            words.append(f"{name}={value:.3g}" if isinstance(value, float) else f"{name}={value}")
        return ", ".join(words)


@dataclass(frozen=True, slots=True)
class FittedClassifier:
    """An estimator and the classes that it knows, by code, in the order of its probabilities."""

    estimator: Any
    codes: np.ndarray  # int64 [C' <= C]
    num_classes: int

    def proba(self, x: Inputs) -> np.ndarray:
        """float32 [N, C]; a class that was not among the training rows has probability 0."""
        return aligned(self.estimator, x, self.num_classes, self.codes)


def aligned(estimator: Any, x: Any, num_classes: int, codes: np.ndarray | None = None) -> np.ndarray:
    """float32 [N, C] of an estimator that knows some of C classes; ``codes``: which, else its own names."""
    proba = estimator.predict_proba(x)
    out = np.zeros((len(proba), num_classes), np.float32)
    out[:, np.asarray(estimator.classes_, np.int64) if codes is None else codes] = proba
    return out


def learned_weights(estimator: Any) -> list[float] | None:
    """Of the layers, where it has learned any."""
    weights = getattr(estimator, "layer_weights_", None)
    return None if weights is None else [float(weight) for weight in weights]


def take(x: Inputs, rows: Rows) -> Inputs:
    return x[rows] if isinstance(x, np.ndarray) else x.take(rows)


def inputs_of(row: Classifier, features: Features, layer: int | None) -> Inputs:
    """X of all rows as a classifier takes it. Reading another layer drops the one before."""
    frames, source = features.has_frames, features.sources[0]

    def need(met: bool, what: str) -> None:
        if not met:
            read = f"{source.path} is read with pooling {source.pooling}"
            raise SettingsError(f"--classifier {row.name} needs {what}; {read}")

    if row.input == FRAMES or (frames and row.means_of_frames):
        need(frames, "frames: extract with --pooling none, and name it here")
        return features.frame_rows(layer)
    need(not frames, "a pooling, not frames")
    if row.input != LAYERS:
        return features.matrix(layer)
    need(not row.means_of_frames or source.pooling == "mean", "frames or the pooling mean")
    return features.tensor()


class FitProgress:
    """Counts fits, which are what takes the time, against how many there will be.

    It says a line now and then, and when told to.
    """

    def __init__(self, say: Say | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.total, self.done, self.doing = 0, 0, ""  # ``doing``: what the lines are about from now on
        self._say, self._clock = say, clock
        self._began = self._said = clock()

    def fitted(self) -> None:
        """One more is done."""
        self.done += 1
        self._say_now_and_then()

    def epoch(self, row: Mapping[str, float]) -> None:
        """Of a network's history: a fit of many minutes is not silent."""
        self._say_now_and_then(f", epoch {row['epoch']:.0f} of this one")

    def _say_now_and_then(self, more: str = "") -> None:
        if self._clock() - self._said >= LOG_INTERVAL:
            self.say(f"{self.doing}: {self.done:,}/{self.total:,} fits{more}")

    def say(self, line: str) -> None:
        """A line, with the time that is left."""
        if self._say is None:
            return
        self._said = self._clock()
        left = self.total - self.done
        if self.done and left > 0:
            per_fit = (self._said - self._began) / self.done
            line += f", {clock_time(per_fit * left)} left"
        self._say(line)


@dataclass(slots=True)
class Learner:
    """The experiment's classifier on ``features``; ``groups`` int64 [N] are kept apart inside estimators."""

    experiment: Experiment
    features: Features
    groups: np.ndarray
    progress: FitProgress
    row: Classifier = field(init=False)
    troubles: Counter[str] = field(default_factory=Counter)
    fits: int = 0

    def __post_init__(self) -> None:
        self.row = self.experiment.row

    @property
    def _named(self) -> str:
        return f"{self.features.sources[0].path}: --classifier {self.row.name}"

    @property
    def layers(self) -> list[int | None]:
        """Layers to select from; [None] where they are fixed, or all are taken."""
        if self.row.input == LAYERS or not self.features.is_open:
            return [None]
        return list(self.features.layers)

    def inputs(self, layer: int | None) -> Inputs:
        return inputs_of(self.row, self.features, layer)

    def fit(self, x: Inputs, rows: Rows, params: Mapping[str, Any], seed: int) -> FittedClassifier:
        """On ``rows`` of ``x``. Labels are renumbered without gaps, as some classifiers need them."""
        from sklearn.exceptions import ConvergenceWarning

        self.refuse_too_few(rows)
        codes, y = np.unique(self.features.y[rows], return_inverse=True)
        estimator = self.row.make({**self.experiment.params, **params}, seed)
        neighbours = estimator.get_params().get("classifier__n_neighbors", 0)
        if neighbours > len(y):
            raise InputError(
                f"{self._named} looks for {neighbours} neighbours, a fold has"
                f" {len(y)} training rows; write --param n_neighbors=1, or fewer --folds"
            )
        extra: dict[str, Any] = {"groups": self.groups[rows]} if self.row.groups else {}
        if self.row.reports:
            extra["progress"] = self.progress.epoch
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                estimator.fit(take(x, rows), y, **extra)
        except ValueError as error:  # both packages look at a parameter's value only here
            if type(error).__name__ not in ("InvalidParameterError", "XGBoostError"):
                raise
            raise SettingsError(f"{self._named}: {str(error).splitlines()[0]}") from error
        for each in caught:  # what did not converge is counted for the report; others go their way
            if issubclass(each.category, ConvergenceWarning):
                self.troubles["did not converge; raise max_iter with --param"] += 1
            else:
                warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
        if getattr(estimator, "calibrated_on_", None) == "rows":
            self.troubles["calibrated on rows, not speakers: too few speakers for all classes"] += 1
        self.fits += 1
        self.progress.fitted()
        return FittedClassifier(estimator, codes, len(self.features.classes))

    def refuse_too_few(self, rows: Rows) -> None:
        """Raises InputError, by name, for training rows of a class that the classifier cannot do with."""
        codes, count = np.unique(self.features.y[rows], return_counts=True)
        if count.min(initial=self.row.least) < self.row.least:
            name = self.features.classes[codes[count.argmin()]]
            raise InputError(
                f"{self._named} needs {self.row.least} training rows of each"
                f" class; {name!r} has {count.min()} in a fold; leave it out with --classes, join it to"
                " another with --map OLD=NEW, or take another --classifier"
            )

    def score(self, x: Inputs, splits: Splits, params: Mapping[str, Any], seed: int) -> float:
        """UA over the validation rows of all splits together."""
        truth, guess = [], []
        for train, validation in splits:
            proba = self.fit(x, train, params, seed).proba(take(x, validation))
            truth.append(self.features.y[validation])
            guess.append(proba.argmax(axis=1))
        return unweighted_accuracy(np.concatenate(truth), np.concatenate(guess), len(self.features.classes))

    def notes(self) -> list[str]:
        return [
            f"{self.row.name}: {count} of {self.fits} fits {what}" for what, count in self.troubles.items()
        ]

    # Selecting a layer and parameters inside the training rows of each fold, and nowhere else: the layer is
    # scored with the given parameters, then a grid, or a seeded search, at that layer. One after the other:
    # layers + settings fits, not layers x settings. The best is the highest UA over the validation rows; of
    # equals the first.

    @property
    def _points(self) -> list[dict[str, Any]]:
        """Settings of the grid."""
        grid = self.experiment.grid_values
        return [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]

    def fits_a_split(self) -> int:
        """How many fits selecting takes on each split; 0 where there is nothing to select."""
        layers, tune = len(self.layers), self.experiment.tune
        settings = len(self._points) if self.experiment.grid_values else tune + (tune > 0)
        return (layers if layers > 1 else 0) + settings

    def select(self, splits_of: Sequence[Splits], seed: int) -> list[Setting]:
        """The setting of each fold. ``splits_of[k]``: inner splits of fold k's training rows."""
        candidates = self.layers
        layers = candidates * len(splits_of)
        # The layer loop is outermost, over all folds: each is read once, and one is in memory.
        if len(candidates) > 1:
            score = np.empty((len(candidates), len(splits_of)))
            for i, layer in enumerate(candidates):
                self.progress.doing = f"selecting a layer, {i + 1}/{len(candidates)}"
                x = self.inputs(layer)
                score[i] = [self.score(x, splits, {}, seed) for splits in splits_of]
            layers = [candidates[i] for i in score.argmax(axis=0).tolist()]
        if not self.experiment.grid_values and not self.experiment.tune:
            return [Setting(layer) for layer in layers]
        chosen: dict[int, Setting] = {}
        for layer, folds in by_layer(layers):
            x = self.inputs(layer)
            for k in folds:
                self.progress.doing = f"selecting parameters, fold {k + 1}/{len(layers)}"
                chosen[k] = Setting(layer, self._best(x, splits_of[k], seed))
        return [chosen[k] for k in range(len(layers))]

    def _best(self, x: Inputs, splits: Splits, seed: int) -> dict[str, Any]:
        """The best point of the grid; or of ``--tune`` trials (TPE, Bergstra et al. 2011) and defaults."""
        if not self.experiment.tune:
            scores = [self.score(x, splits, point, seed) for point in self._points]
            return self._points[int(np.argmax(scores))]
        import optuna

        space = self.row.space
        if not space:
            raise SettingsError(
                f"--tune: {self.row.name} has nothing to search; take --grid parameter=value,..."
            )
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
        default = self.score(x, splits, {}, seed)
        study.optimize(
            lambda trial: self.score(x, splits, suggested(trial, space), seed),
            n_trials=self.experiment.tune,
        )
        return dict(study.best_params) if study.best_value > default else {}


def by_layer(layers: Sequence[int | None]) -> Iterator[tuple[int | None, list[int]]]:
    """Each layer that occurs, with the folds that have it: a layer is read once for all of them."""
    for layer in dict.fromkeys(layers):
        yield layer, [k for k, of in enumerate(layers) if of == layer]


# Several classifiers, fused


def mixture_weights(proba: np.ndarray, y: np.ndarray, prior: float = 0.0) -> np.ndarray:
    """Weights of a mixture that make the labels most likely, drawn towards equal ones.

    proba: float [S, M, C] of S members, on rows that they were not trained on. y: int [M], codes.
    Returns float64 [S], above 0, sum 1: the maximum of the posterior under a symmetric Dirichlet prior,
    by EM (Dempster et al. 1977). ``prior``: its weight as a share of M, such as `PRIOR`; 0 is maximum
    likelihood. Both are concave in the weights, so there is one maximum.
    """
    of_truth = np.maximum(proba[:, np.arange(len(y)), y].astype(np.float64), SMALLEST)  # [S, M]
    weights = np.full(len(proba), 1 / len(proba))
    for _ in range(ITERATIONS):
        share = weights[:, None] * of_truth
        explained = (share / share.sum(axis=0)).mean(axis=1)
        weights = (explained + prior / len(proba)) / (1 + prior)
    return weights


def fused(proba: Sequence[np.ndarray], weights: np.ndarray) -> np.ndarray:
    """float32 [M, C] of members' probabilities [M, C] each, and weights [S]."""
    total = sum(weight * each.astype(np.float64) for weight, each in zip(weights, proba, strict=True))
    return np.asarray(total, np.float32)


class FusedClassifier:
    """Fitted members and their weights: what a late fusion predicts with.

    ``estimators[s]`` takes the X of source s; all know the same classes.
    """

    def __init__(self, estimators: Sequence[Any], weights: Sequence[float]) -> None:
        self.estimators = list(estimators)
        self.weights = np.asarray(weights, np.float64)
        self.classes_ = self.estimators[0].classes_

    def predict_proba(self, X: Sequence[Inputs]) -> np.ndarray:  # noqa: N803 - scikit-learn's name
        """float32 [N, C]; ``X`` holds one X a source."""
        each = [np.asarray(e.predict_proba(x)) for e, x in zip(self.estimators, X, strict=True)]
        return fused(each, self.weights)
