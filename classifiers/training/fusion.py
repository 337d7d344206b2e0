"""Several sources at once.

concat    embeddings side by side, one classifier (early fusion; done by `Features.matrix`)
average   a classifier each, mean of the probabilities
gate      a classifier each, weighted mean; the weights are learned on probabilities of rows that
          the classifiers were not trained on, and drawn towards equal ones so that none is shut out
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from classifiers.training.learner import Inputs

ITERATIONS = 200  # of the EM below; the likelihood never falls, and has settled long before
# Rows of a speaker are alike, and the best of several members often explains nearly all of them: weights
# that are most likely for the rows at hand are then 0 and 1, whatever the others know beside it. The prior
# counts as this share of the rows, explained by all members alike; no weight of S falls below
# PRIOR / (1 + PRIOR) / S, 0.083 of two.
PRIOR = 0.2
SMALLEST = 1e-12  # probability, so that a member that rules the truth out is possible


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
