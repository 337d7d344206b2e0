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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from extractor.errors import InputError, SettingsError, unknown

# Of the best of several figures of the same recordings, wherever it is named.
CAUTION = "the highest is a little too high: all were tested on the same recordings"
ECE_BINS = 15  # as Guo et al.
EXACT_BELOW = 25  # discordant rows: below, the chi-squared approximation of McNemar's test is poor
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
    by_class = _by_class(confusion[None].astype(np.float64))
    return {
        **{name: float(function(confusion[None])[0]) for name, function in METRICS.items()},
        "roc_auc": roc_auc(y_true, proba),
        "ece": expected_calibration_error(y_true, proba),
        **{
            name: dict(zip(classes, values[0].tolist(), strict=True))
            for name, values in zip(("precision", "recall", "f1"), by_class, strict=True)
        },
        "support": dict(zip(classes, confusion.sum(axis=1).tolist(), strict=True)),
        "confusion": confusion.tolist(),
    }


def scores_by(
    kinds: Sequence[str], y_true: np.ndarray, proba: np.ndarray, classes: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """UA, WA, macro_f1, weighted_f1 and num_tested of the rows of each kind, by name."""
    found = {}
    for kind in sorted(set(kinds)):
        rows = np.flatnonzero(np.array(kinds, object) == kind)
        every = scores(y_true[rows], proba[rows], classes)
        found[kind] = {name: every[name] for name in METRICS} | {"num_tested": len(rows)}
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


# Of confusion matrices [..., C, C], so that bootstrap draws are scored together.


def _by_class(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision, recall and F1 [..., C]. Recall is NaN for a class without rows, the others 0."""
    right = np.diagonal(confusion, axis1=-2, axis2=-1).astype(np.float64)
    true, predicted = confusion.sum(axis=-1), confusion.sum(axis=-2)
    recall = np.divide(right, true, out=np.full_like(right, np.nan), where=true > 0)
    precision = np.divide(right, predicted, out=np.zeros_like(right), where=predicted > 0)
    f1 = np.divide(2 * right, true + predicted, out=np.zeros_like(right), where=true + predicted > 0)
    return precision, recall, f1


def _mean_over_present(values: np.ndarray, confusion: np.ndarray, weighted: bool = False) -> np.ndarray:
    true = confusion.sum(axis=-1).astype(np.float64)
    weight = true if weighted else (true > 0).astype(np.float64)
    return (np.where(true > 0, values, 0.0) * weight).sum(axis=-1) / weight.sum(axis=-1)


def _ua(confusion: np.ndarray) -> np.ndarray:
    return _mean_over_present(_by_class(confusion)[1], confusion)


def _wa(confusion: np.ndarray) -> np.ndarray:
    return np.trace(confusion, axis1=-2, axis2=-1) / confusion.sum(axis=(-2, -1))


def _macro_f1(confusion: np.ndarray) -> np.ndarray:
    return _mean_over_present(_by_class(confusion)[2], confusion)


def _weighted_f1(confusion: np.ndarray) -> np.ndarray:
    return _mean_over_present(_by_class(confusion)[2], confusion, weighted=True)


METRICS = {"UA": _ua, "WA": _wa, "macro_f1": _macro_f1, "weighted_f1": _weighted_f1}


def unweighted_accuracy(y_true: np.ndarray, y_pred: np.ndarray, num_classes: int) -> float:
    """UA of int [M] each."""
    return float(_ua(confusion_matrix(y_true, y_pred, num_classes)))


def drop(own: float | None, elsewhere: float) -> float | None:
    """UA lost on the way to another corpus: on unheard speakers of the training corpus, less that there.

    Above 0 where the other corpus is harder. None where the training corpus was not tested by itself.
    """
    return None if own is None else own - elsewhere


def roc_auc(y_true: np.ndarray, proba: np.ndarray) -> float:
    """Mean over the classes that some rows have and some have not; NaN where there is none."""
    areas = []
    for code in range(proba.shape[1]):
        positive = y_true == code
        if positive.any() and not positive.all():
            areas.append(_area(positive, proba[:, code]))
    return float(np.mean(areas)) if areas else math.nan


def _area(positive: np.ndarray, score: np.ndarray) -> float:
    """Chance that a positive row scores above a negative one, ties half (Mann and Whitney 1947)."""
    _, code, count = np.unique(score, return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2)[code]  # mean rank of equal scores, from 1
    n = int(positive.sum())
    return float((rank[positive].sum() - n * (n + 1) / 2) / (n * (len(score) - n)))


def expected_calibration_error(y_true: np.ndarray, proba: np.ndarray, bins: int = ECE_BINS) -> float:
    """Mean over rows of |share right - mean confidence| of the row's bin of confidence."""
    confidence = proba.max(axis=1).astype(np.float64)
    right = proba.argmax(axis=1) == y_true
    number = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)  # bins are (a, b]
    gap = np.bincount(number, right - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(y_true))


# Intervals and tests


def bootstrap_interval(
    predictions: Predictions | Sequence[Predictions],
    metric: str = "UA",
    n: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    groups: Sequence[str] | None = None,
) -> tuple[float, float]:
    """`bootstrap_intervals` of one metric."""
    return bootstrap_intervals(predictions, (metric,), n, seed, level, groups)[metric]


def bootstrap_intervals(
    predictions: Predictions | Sequence[Predictions],
    metrics: Iterable[str] = METRICS,
    n: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    groups: Sequence[str] | None = None,
) -> dict[str, tuple[float, float]]:
    """Percentile intervals over rows drawn with replacement (Efron 1979), the same for all metrics.

    Args:
        predictions: of one seed, or of several: then of the mean over seeds, a row being drawn for
            all of them at once.
        metrics: some of `METRICS`.
        groups: group of every row of the features; whole groups (speakers) are drawn instead. Wider
            and more honest where rows of a group are alike, rough where there are few groups.
    """
    drawn: dict[str, list[np.ndarray]] = {metric: [] for metric in metrics}
    for metric in drawn:
        if metric not in METRICS:
            raise SettingsError(unknown("metric", metric, METRICS))
    each = list(predictions) if isinstance(predictions, Sequence) else [predictions]
    counts = _confusion_by_unit(each, groups)
    num_classes, num_units = each[0].proba.shape[1], len(counts[0])
    rng = np.random.default_rng(seed)
    for start in range(0, n, RESAMPLED_AT_ONCE):
        size = min(RESAMPLED_AT_ONCE, n - start)
        weight = rng.multinomial(num_units, np.full(num_units, 1 / num_units), size).astype(np.float64)
        confusions = [(weight @ c).reshape(size, num_classes, num_classes) for c in counts]
        for metric, values in drawn.items():
            values.append(np.mean([METRICS[metric](confusion) for confusion in confusions], axis=0))
    intervals = {}
    for metric, values in drawn.items():
        low, high = np.quantile(np.concatenate(values), [(1 - level) / 2, (1 + level) / 2])
        intervals[metric] = (float(low), float(high))
    return intervals


def _confusion_by_unit(each: Sequence[Predictions], groups: Sequence[str] | None) -> list[np.ndarray]:
    """float64 [units, C * C] of each seed: confusion that a row, or a group, adds when it is drawn."""
    num_classes = each[0].proba.shape[1]
    tested = np.unique(np.concatenate([p.rows for p in each]))
    unit_of = {row: k for k, row in enumerate(tested.tolist())}
    if groups is not None:
        code = {name: k for k, name in enumerate(dict.fromkeys(groups[row] for row in tested.tolist()))}
        unit_of = {row: code[groups[row]] for row in tested.tolist()}
    num_units = max(unit_of.values()) + 1
    counts = []
    for p in each:
        unit = np.array([unit_of[row] for row in p.rows.tolist()])
        cell = p.y_true * num_classes + p.proba.argmax(axis=1)
        flat = np.bincount(unit * num_classes**2 + cell, minlength=num_units * num_classes**2)
        counts.append(flat.reshape(num_units, num_classes**2).astype(np.float64))
    return counts


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
    right_a = (a.proba.argmax(axis=1) == a.y_true)[order_a]
    right_b = (b.proba.argmax(axis=1) == b.y_true)[order_b]
    n01, n10 = int((~right_a & right_b).sum()), int((right_a & ~right_b).sum())
    total, fewer = n01 + n10, min(n01, n10)
    if total < EXACT_BELOW:
        tail = sum(math.comb(total, k) for k in range(fewer + 1)) / 2**total
        return {"statistic": float(fewer), "p_value": min(1.0, 2 * tail), "n01": n01, "n10": n10}
    statistic = max(abs(n01 - n10) - 1, 0) ** 2 / total
    p_value = math.erfc(math.sqrt(statistic / 2))  # survival of chi-squared with one degree of freedom
    return {"statistic": statistic, "p_value": p_value, "n01": n01, "n10": n10}
