"""One classifier on one set of features: fit on some rows, give probabilities of others."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from classifiers.data.features import Features, FrameRows
from classifiers.models.table import FRAMES, LAYERS, Row
from classifiers.results.metrics import unweighted_accuracy
from classifiers.training.fit_progress import FitProgress
from classifiers.training.protocols import Rows
from extractor.errors import InputError, SettingsError

Inputs = np.ndarray | FrameRows  # float32 [N, D] or [N, L, D], or frames of each row
Splits = Sequence[tuple[Rows, Rows]]  # (train, validation)


@dataclass(frozen=True, slots=True)
class Setting:
    """What is selected. ``layer`` is None where nothing is to be chosen from."""

    layer: int | None = None
    params: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        words = [] if self.layer is None else [f"layer {self.layer}"]
        words += [f"{name}={_shown(value)}" for name, value in self.params.items()]
        return ", ".join(words)


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True, slots=True)
class Fitted:
    """An estimator and the classes that it knows, by code, in the order of its probabilities."""

    estimator: Any
    codes: np.ndarray  # int64 [C' <= C]
    num_classes: int

    def proba(self, x: Inputs) -> np.ndarray:
        """float32 [N, C]; a class that was not among the training rows has probability 0."""
        return aligned(self.estimator, x, self.num_classes, self.codes)


def aligned(estimator: Any, x: Inputs, num_classes: int, codes: np.ndarray | None = None) -> np.ndarray:
    """float32 [N, C] of an estimator that knows some of C classes; ``codes``: which, else its own names."""
    out = np.zeros((len(x), num_classes), np.float32)
    out[:, np.asarray(estimator.classes_, np.int64) if codes is None else codes] = estimator.predict_proba(x)
    return out


@dataclass(slots=True)
class Learner:
    """``row`` of the table on ``features``; ``groups`` int64 [N] are kept apart inside estimators."""

    row: Row
    features: Features
    groups: np.ndarray
    params: Mapping[str, Any]  # that hold for every setting
    progress: FitProgress
    troubles: Counter[str] = field(default_factory=Counter)
    fits: int = 0

    @property
    def layers(self) -> list[int | None]:
        """Layers to select from; [None] where they are fixed, or all are taken."""
        if self.row.input == LAYERS or not self.features.is_open:
            return [None]
        return list(self.features.layers)

    def inputs(self, layer: int | None) -> Inputs:
        """X of all rows. Reading another layer drops the one before."""
        wants, frames = self.row.input, self.features.has_frames
        if wants == FRAMES or (frames and self.row.means_of_frames):
            self._need(frames, "frames: extract with --pooling none, and name it here")
            return self.features.frame_rows(layer)
        self._need(not frames, "a pooling, not frames")
        if wants != LAYERS:
            return self.features.matrix(layer)
        pooling = self.features.sources[0].pooling
        self._need(not self.row.means_of_frames or pooling == "mean", "frames or the pooling mean")
        return self.features.tensor()

    def _need(self, met: bool, what: str) -> None:
        if not met:
            source = self.features.sources[0]
            read = f"{source.path} is read with pooling {source.pooling}"
            raise SettingsError(f"--classifier {self.row.name} needs {what}; {read}")

    def fit(self, x: Inputs, rows: Rows, params: Mapping[str, Any], seed: int) -> Fitted:
        """On ``rows`` of ``x``. Labels are renumbered without gaps, as some classifiers need them."""
        self.refuse_too_few(rows)
        codes, y = np.unique(self.features.y[rows], return_inverse=True)
        estimator = self.row.make({**self.params, **params}, seed)
        neighbours = estimator.get_params().get("classifier__n_neighbors", 0)
        if neighbours > len(y):
            raise InputError(
                f"{self._where}--classifier {self.row.name} looks for {neighbours} neighbours, a fold has"
                f" {len(y)} training rows; write --param n_neighbors=1, or fewer --folds"
            )
        extra: dict[str, Any] = {"groups": self.groups[rows]} if self.row.groups else {}
        if self.row.reports:
            extra["progress"] = self.progress.epoch
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            estimator.fit(take(x, rows), y, **extra)
        self._note(caught)
        if getattr(estimator, "calibrated_on_", None) == "rows":
            self.troubles["calibrated on rows, not speakers: too few speakers for all classes"] += 1
        self.fits += 1
        self.progress.fitted()
        return Fitted(estimator, codes, len(self.features.classes))

    def refuse_too_few(self, rows: Rows) -> None:
        """Raises InputError, by name, for training rows of a class that the classifier cannot do with."""
        codes, count = np.unique(self.features.y[rows], return_counts=True)
        if count.min(initial=self.row.least) < self.row.least:
            name = self.features.classes[codes[count.argmin()]]
            raise InputError(
                f"{self._where}--classifier {self.row.name} needs {self.row.least} training rows of each"
                f" class; {name!r} has {count.min()} in a fold; leave it out with --classes, join it to"
                " another with --map OLD=NEW, or take another --classifier"
            )

    @property
    def _where(self) -> str:
        return f"{self.features.sources[0].path}: "

    def _note(self, caught: Sequence[warnings.WarningMessage]) -> None:
        """What did not converge is counted for the report; any other warning goes its way."""
        from sklearn.exceptions import ConvergenceWarning

        for each in caught:
            if issubclass(each.category, ConvergenceWarning):
                self.troubles["did not converge; raise max_iter with --param"] += 1
            else:
                warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)

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


def take(x: Inputs, rows: Rows) -> Inputs:
    return x[rows] if isinstance(x, np.ndarray) else x.take(rows)
