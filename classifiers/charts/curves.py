"""Curves of predictions: points to draw, and the areas that go by them.

Scores are probabilities of one class, float [M]; ``positive`` is bool [M]. Each distinct score is one
threshold, so that rows of equal score are on one side of it together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from classifiers.results.metrics import ECE_BINS


@dataclass(frozen=True, slots=True)
class Curve:
    """``x`` and ``y``: float64 [K]. ``area``: under the ROC curve, or the average precision."""

    x: np.ndarray
    y: np.ndarray
    area: float


@dataclass(frozen=True, slots=True)
class Reliability:
    """Rows by confidence, bins of equal width (a, b]; ``count``, ``confidence``, ``right``: [B]."""

    edges: np.ndarray  # [B + 1]
    count: np.ndarray
    confidence: np.ndarray  # mean, NaN in an empty bin
    right: np.ndarray  # share of the rows, NaN in an empty bin


def roc_curve(positive: np.ndarray, score: np.ndarray) -> Curve | None:
    """False positive rate against true positive rate; None where all rows are of one kind."""
    true, false = _counts(positive, score)
    if true[-1] == 0 or false[-1] == 0:
        return None
    x, y = false / false[-1], true / true[-1]
    return Curve(x, y, float(np.trapezoid(y, x)))


def pr_curve(positive: np.ndarray, score: np.ndarray) -> Curve | None:
    """Recall against precision, drawn as steps; None without positive rows.

    The area is the average precision, sum of (R_k - R_k-1) P_k: trapezia would be too kind (Davis and
    Goadrich 2006).
    """
    true, false = _counts(positive, score)
    if true[-1] == 0:
        return None
    recall = true / true[-1]
    precision = true[1:] / (true[1:] + false[1:])
    return Curve(recall, np.concatenate([[1.0], precision]), float((np.diff(recall) * precision).sum()))


def _counts(positive: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """True and false positives at each threshold, from none of the rows to all: float64 [K] each."""
    order = np.argsort(-score, kind="stable")
    last = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1)  # of each distinct score
    true = np.cumsum(positive[order])[last]
    both = [true, last + 1 - true]
    return tuple(np.concatenate([[0], each]).astype(np.float64) for each in both)  # type: ignore[return-value]


def reliability(y_true: np.ndarray, proba: np.ndarray, bins: int = ECE_BINS) -> Reliability:
    """Confidence against the share that is right: y_true int [M], proba float [M, C]."""
    confidence = proba.max(axis=1).astype(np.float64)
    right = proba.argmax(axis=1) == y_true
    number = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    count = np.bincount(number, minlength=bins)
    empty = np.full(bins, np.nan)
    mean = [
        np.divide(np.bincount(number, of, minlength=bins), count, out=empty.copy(), where=count > 0)
        for of in (confidence, right)
    ]
    return Reliability(np.linspace(0, 1, bins + 1), count, *mean)
