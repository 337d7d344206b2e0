"""A support vector machine with probabilities."""

from __future__ import annotations

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from extractor.errors import InputError, SettingsError, unknown

KERNELS = ("linear", "rbf")


class CalibratedSVM(ClassifierMixin, BaseEstimator):
    """Standardise, SVM, and a sigmoid a class (Platt 1999) fitted on scores of rows held out.

    The rows held out are whole groups where ``fit`` is given groups: calibrated on its own speakers,
    a machine is too sure of itself with strangers. ``calibrated_on_`` says "groups", or "rows" where
    the groups are too few for every class to be left in training.

    ``kernel``: "linear" or "rbf". Both are libsvm's: on a few thousand rows of standardised embeddings
    its linear machine takes a tenth of liblinear's time.
    """

    def __init__(
        self,
        kernel: str = "linear",
        C: float = 1.0,
        gamma: float | str = "scale",
        class_weight: str | None = None,
        folds: int = 5,
        random_state: int = 0,
    ) -> None:
        self.kernel, self.C, self.gamma = kernel, C, gamma
        self.class_weight, self.folds, self.random_state = class_weight, folds, random_state

    def fit(self, X: np.ndarray, y: np.ndarray, groups: np.ndarray | None = None) -> CalibratedSVM:  # noqa: N803
        """X: float [N, D]; y: [N]; groups: [N]. Raises InputError for a class of a single row."""
        if self.kernel not in KERNELS:
            raise SettingsError(unknown("kernel", self.kernel, KERNELS))
        splits = self._splits(np.asarray(y), groups)
        svm = SVC(
            kernel=self.kernel,
            C=self.C,
            gamma=self.gamma,
            class_weight=self.class_weight,
            random_state=self.random_state,
        )
        machine = Pipeline([("scaler", StandardScaler()), ("svm", svm)])
        # One machine on all rows (`ensemble=False`): what is saved is one SVM, not one a fold.
        self.model_ = CalibratedClassifierCV(machine, cv=splits, ensemble=False).fit(X, y)
        self.classes_ = self.model_.classes_
        self.n_features_in_ = X.shape[1]
        self.model_.cv = None  # rows of the splits are of no use once it is fitted
        return self

    def _splits(self, y: np.ndarray, groups: np.ndarray | None) -> list[tuple[np.ndarray, np.ndarray]]:
        """Partitions of which every training part has all classes."""
        classes, counts = np.unique(y, return_counts=True)
        if counts.min() < 2:
            raise InputError(
                f"class {classes[counts.argmin()]} has one row in training: an SVM needs two of each to be"
                " calibrated; leave the class out with --classes"
            )
        k = int(min(self.folds, counts.min()))
        blank = np.zeros(len(y))
        if groups is not None and len(np.unique(groups)) > 1:
            by_group = StratifiedGroupKFold(min(k, len(np.unique(groups))))
            splits = list(by_group.split(blank, y, groups))
            if all(len(np.unique(y[train])) == len(classes) and len(test) for train, test in splits):
                self.calibrated_on_ = "groups"
                return splits
        self.calibrated_on_ = "rows"
        return list(StratifiedKFold(k, shuffle=True, random_state=self.random_state).split(blank, y))

    def predict_proba(self, X: np.ndarray) -> np.ndarray:  # noqa: N803
        """float64 [N, C]."""
        return self.model_.predict_proba(X)

    def predict(self, X: np.ndarray) -> np.ndarray:  # noqa: N803
        """The most probable class, so that labels and probabilities never disagree."""
        return self.classes_[self.predict_proba(X).argmax(axis=1)]
