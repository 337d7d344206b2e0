"""Several sources at once.

concat    embeddings side by side, one classifier (early fusion; done by `Features.matrix`)
average   a classifier each, mean of the probabilities
gate      a classifier each, weighted mean; the weights are learned on probabilities of rows that
          the classifiers were not trained on
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from classifiers.learner import Inputs

ITERATIONS = 200  # of the EM below; the likelihood never falls, and has settled long before
SMALLEST = 1e-12  # probability, so that a member that rules the truth out is possible


def mixture_weights(proba: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Weights of a mixture that make the labels most likely.

    proba: float [S, M, C] of S members, on rows that they were not trained on. y: int [M], codes.
    Returns float64 [S], at least 0, sum 1: maximum likelihood by EM (Dempster et al. 1977); the
    likelihood is concave in the weights, so there is one maximum.
    """
    of_truth = np.maximum(proba[:, np.arange(len(y)), y].astype(np.float64), SMALLEST)  # [S, M]
    weights = np.full(len(proba), 1 / len(proba))
    for _ in range(ITERATIONS):
        share = weights[:, None] * of_truth
        weights = (share / share.sum(axis=0)).mean(axis=1)
    return weights


def fused(proba: Sequence[np.ndarray], weights: np.ndarray) -> np.ndarray:
    """float32 [M, C] of members' probabilities [M, C] each, and weights [S]."""
    total = sum(weight * each.astype(np.float64) for weight, each in zip(weights, proba, strict=True))
    return np.asarray(total, np.float32)


class FusedClassifier:
    """Fitted members and their weights: what a late fusion predicts with.

    ``estimators[s]`` takes the X of source s; all know the same classes.
    """

    def __init__(self, estimators: Sequence[Any], weights: Sequence[float], names: Sequence[str]) -> None:
        self.estimators, self.names = list(estimators), list(names)
        self.weights = np.asarray(weights, np.float64)
        self.classes_ = self.estimators[0].classes_

    def predict_proba(self, X: Sequence[Inputs]) -> np.ndarray:  # noqa: N803 - scikit-learn's name
        """float32 [N, C]; ``X`` holds one X a source."""
        each = [np.asarray(e.predict_proba(x)) for e, x in zip(self.estimators, X, strict=True)]
        return fused(each, self.weights)

    def predict(self, X: Sequence[Inputs]) -> np.ndarray:  # noqa: N803
        return np.asarray(self.classes_)[self.predict_proba(X).argmax(axis=1)]
