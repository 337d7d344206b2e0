"""What a prediction is worth. Everything is computed from predictions alone.

    UA            unweighted accuracy: mean over classes of the recall
    WA            weighted accuracy: share of rows that are right
    macro_f1, weighted_f1
    roc_auc       one class against the rest, mean over classes
    ece           expected calibration error (Guo et al. 2017, eq. 3), `ECE_BINS` bins of equal width

Classes that no row has are no part of a mean. A figure that is not defined is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from extractor.errors import InputError

# Of the best of several figures of the same recordings, wherever it is named.
CAUTION = "the highest is a little too high: all were tested on the same recordings"
METRICS = ("UA", "WA", "macro_f1", "weighted_f1")
ECE_BINS = 15  # as Guo et al.
EXACT_BELOW = 25  # discordant rows: below, the chi-squared approximation of McNemar's test is poor
LEVEL = 0.95  # of the intervals
RESAMPLED_AT_ONCE = 100  # bootstrap draws in memory together


@dataclass(frozen=True, slots=True)
class Predictions:
    """Of one seed, every tested row once."""

    rows: np.ndarray  # int64 [M], index into Result.ids
    fold: np.ndarray  # int64 [M], index into Result.folds of the seed
    y_true: np.ndarray  # int64 [M], codes of the classes
    proba: np.ndarray  # float32 [M, C]

    @property
    def y_pred(self) -> np.ndarray:
        """int64 [M]."""
        return self.proba.argmax(axis=1)


def scores(y_true: np.ndarray, proba: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """All figures. y_true: int [M], codes of ``classes``. proba: float [M, C].

    Returns UA, WA, macro_f1, weighted_f1, roc_auc, ece; precision, recall, f1 and support by class;
    confusion, a list of C lists of counts (rows true, columns predicted).
    """
    if not len(y_true):
        raise InputError("no row was tested")
    if not np.isfinite(proba).all():
        raise InputError(f"probabilities of {int((~np.isfinite(proba)).any(axis=1).sum())} rows are NaN")
    confusion = confusion_matrix(y_true, proba.argmax(axis=1), len(classes))
    figures = _figures(confusion)
    return {
        **{name: float(figures[name]) for name in METRICS},
        "roc_auc": roc_auc(y_true, proba),
        "ece": expected_calibration_error(y_true, proba),
        **{
            name: dict(zip(classes, figures[name].tolist(), strict=True))
            for name in ("precision", "recall", "f1")
        },
        "support": dict(zip(classes, confusion.sum(axis=1).tolist(), strict=True)),
        "confusion": confusion.tolist(),
    }


def scores_by(kinds: Sequence[Any], predictions: Predictions) -> dict[Any, dict[str, Any]]:
    """`METRICS` and num_tested of the rows of each kind, by name; ``kinds``: one a row."""
    found = {}
    for kind in sorted(set(kinds)):
        rows = np.flatnonzero(np.array(kinds, object) == kind)
        y_true, proba = predictions.y_true[rows], predictions.proba[rows]
        figures = _figures(confusion_matrix(y_true, proba.argmax(axis=1), proba.shape[1]))
        found[kind] = {name: float(figures[name]) for name in METRICS} | {"num_tested": len(rows)}
    return found


def augmentation_lines(by_augmentation: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A table: a line an augmentation that was tested."""
    if not by_augmentation:
        return []
    width = max(12, *map(len, by_augmentation))
    lines = [f"{'augmentation':<{width}} {'tested':>8} {'UA %':>6} {'WA %':>6} {'mac-F1':>6}"]
    for name, of in by_augmentation.items():
        shares = " ".join(f"{100 * of[key]:>6.1f}" for key in ("UA", "WA", "macro_f1"))
        lines.append(f"{name:<{width}} {of['num_tested']:>8,} {shares}")
    return lines


def confusion_matrix(y_true: np.ndarray, y_pred: np.ndarray, num_classes: int) -> np.ndarray:
    """int64 [C, C]: rows true, columns predicted."""
    cells = np.bincount(np.asarray(y_true) * num_classes + y_pred, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes)


def _figures(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """Of confusion matrices [..., C, C], so that bootstrap draws are scored together.

    `METRICS` [...]; precision, recall and f1 [..., C], of which recall is NaN for a class without rows.
    """
    right = np.diagonal(confusion, axis1=-2, axis2=-1).astype(np.float64)
    true, predicted = confusion.sum(axis=-1), confusion.sum(axis=-2)
    recall = np.divide(right, true, out=np.full_like(right, np.nan), where=true > 0)
    precision = np.divide(right, predicted, out=np.zeros_like(right), where=predicted > 0)
    f1 = np.divide(2 * right, true + predicted, out=np.zeros_like(right), where=true + predicted > 0)

    def mean(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return (np.where(true > 0, values, 0.0) * weight).sum(axis=-1) / weight.sum(axis=-1)

    present = (true > 0).astype(np.float64)
    return {
        "UA": mean(recall, present),
        "WA": np.trace(confusion, axis1=-2, axis2=-1) / confusion.sum(axis=(-2, -1)),
        "macro_f1": mean(f1, present),
        "weighted_f1": mean(f1, true.astype(np.float64)),
        "precision": precision,
        "recall": recall,
        "f1": f1,
    }


def unweighted_accuracy(y_true: np.ndarray, y_pred: np.ndarray, num_classes: int) -> float:
    """UA of int [M] each."""
    return float(_figures(confusion_matrix(y_true, y_pred, num_classes))["UA"])


def drop(own: float | None, elsewhere: float) -> float | None:
    """UA lost on the way to another corpus: on unheard speakers of the training corpus, less that there.

    Above 0 where the other corpus is harder. None where the training corpus was not tested by itself.
    """
    return None if own is None else own - elsewhere


def roc_auc(y_true: np.ndarray, proba: np.ndarray) -> float:
    """Mean over the classes that some rows have and some have not; NaN where there is none.

    Of a class: the chance that a row of it scores above another, ties half (Mann and Whitney 1947).
    """
    areas = []
    for code, score in enumerate(proba.T):
        positive = y_true == code
        n = int(positive.sum())
        if 0 < n < len(score):
            _, of_row, count = np.unique(score, return_inverse=True, return_counts=True)
            rank = (np.cumsum(count) - (count - 1) / 2)[of_row]  # mean rank of equal scores, from 1
            areas.append((rank[positive].sum() - n * (n + 1) / 2) / (n * (len(score) - n)))
    return float(np.mean(areas)) if areas else math.nan


def confidence_bins(y_true: np.ndarray, proba: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each row its bin 0 .. `ECE_BINS` - 1, its confidence, and whether it is right: [M] each."""
    confidence = proba.max(axis=1).astype(np.float64)
    number = np.clip(np.ceil(confidence * ECE_BINS).astype(np.int64) - 1, 0, ECE_BINS - 1)  # bins are (a, b]
    return number, confidence, proba.argmax(axis=1) == y_true


def expected_calibration_error(y_true: np.ndarray, proba: np.ndarray) -> float:
    """Mean over rows of |share right - mean confidence| of the row's bin of confidence."""
    number, confidence, right = confidence_bins(y_true, proba)
    gap = np.bincount(number, right - confidence, minlength=ECE_BINS)
    return float(np.abs(gap).sum() / len(y_true))


# Intervals and tests


def bootstrap_intervals(
    predictions: Sequence[Predictions], groups: Sequence[str] | None = None, n: int = 1000, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Percentile intervals, 95 %, of `METRICS` over ``n`` draws of rows with replacement (Efron 1979).

    Args:
        predictions: of one seed, or of several: then of the mean over seeds, a row being drawn for
            all of them at once.
        groups: group of every row of the features; whole groups (speakers) are drawn instead. Wider
            and more honest where rows of a group are alike, rough where there are few groups.
    """
    num_classes = predictions[0].proba.shape[1]
    # What a row, or a group, adds to each seed's confusion when it is drawn: float64 [units, C * C].
    tested = np.unique(np.concatenate([p.rows for p in predictions])).tolist()
    names = tested if groups is None else [groups[row] for row in tested]
    code = {name: k for k, name in enumerate(dict.fromkeys(names))}
    unit_of = {row: code[name] for row, name in zip(tested, names, strict=True)}
    num_units = len(code)
    counts = []
    for p in predictions:
        unit = np.array([unit_of[row] for row in p.rows.tolist()])
        cell = (unit * num_classes + p.y_true) * num_classes + p.y_pred
        flat = np.bincount(cell, minlength=num_units * num_classes**2)
        counts.append(flat.reshape(num_units, num_classes**2).astype(np.float64))
    drawn: dict[str, list[np.ndarray]] = {name: [] for name in METRICS}
    rng = np.random.default_rng(seed)
    for start in range(0, n, RESAMPLED_AT_ONCE):
        size = min(RESAMPLED_AT_ONCE, n - start)
        weight = rng.multinomial(num_units, np.full(num_units, 1 / num_units), size).astype(np.float64)
        each = [_figures((weight @ c).reshape(size, num_classes, num_classes)) for c in counts]
        for name, values in drawn.items():
            values.append(np.mean([figures[name] for figures in each], axis=0))
    intervals = {}
    for name, values in drawn.items():
        low, high = np.quantile(np.concatenate(values), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        intervals[name] = (float(low), float(high))
    return intervals


def mcnemar(a: Predictions, b: Predictions) -> dict[str, Any]:
    """Do two models err on different rows (McNemar 1947)? Two-sided.

    n01: rows that ``a`` has wrong and ``b`` right; n10 the reverse. With fewer than `EXACT_BELOW` of
    both, the exact binomial test (statistic min(n01, n10)); else chi-squared with continuity
    correction. Raises InputError where the tested rows or their labels are not the same.
    """
    order_a, order_b = np.argsort(a.rows, kind="stable"), np.argsort(b.rows, kind="stable")
    if not np.array_equal(a.rows[order_a], b.rows[order_b]):
        raise InputError("McNemar's test needs two models that were tested on the same recordings")
    if not np.array_equal(a.y_true[order_a], b.y_true[order_b]):
        raise InputError("McNemar's test needs the same labels: the two models were tested on different ones")
    right_a = (a.y_pred == a.y_true)[order_a]
    right_b = (b.y_pred == b.y_true)[order_b]
    n01, n10 = int((~right_a & right_b).sum()), int((right_a & ~right_b).sum())
    total, fewer = n01 + n10, min(n01, n10)
    if total < EXACT_BELOW:
        tail = sum(math.comb(total, k) for k in range(fewer + 1)) / 2**total
        return {"statistic": float(fewer), "p_value": min(1.0, 2 * tail), "n01": n01, "n10": n10}
    statistic = max(abs(n01 - n10) - 1, 0) ** 2 / total
    p_value = math.erfc(math.sqrt(statistic / 2))  # survival of chi-squared with one degree of freedom
    return {"statistic": statistic, "p_value": p_value, "n01": n01, "n10": n10}
