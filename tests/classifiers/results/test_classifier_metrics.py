"""Figures are scikit-learn's where it has them, and what their definition says where it has not."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest, chi2
from sklearn import metrics as sk

from classifiers.results.metrics import (
    METRICS,
    Predictions,
    bootstrap_intervals,
    expected_calibration_error,
    mcnemar,
    scores,
)
from classifiers.results.result import FoldInfo, Result
from extractor.errors import InputError, StoreError

CLASSES = ("anger", "calm", "fear", "neutral")
# Sums of a few hundred float64: rounding stays far below.
EXACT = 1e-12


def drawn(num_rows: int = 300, num_classes: int = 4, skill: float = 1.0, seed: int = 0) -> Predictions:
    """Predictions with some skill, classes of different size."""
    rng = np.random.default_rng(seed)
    share = np.arange(1, num_classes + 1) / np.arange(1, num_classes + 1).sum()
    y = rng.choice(num_classes, num_rows, p=share)
    logits = rng.standard_normal((num_rows, num_classes))
    logits[np.arange(num_rows), y] += skill
    proba = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return Predictions(np.arange(num_rows), np.arange(num_rows) % 5, y, proba.astype(np.float32))


@pytest.mark.parametrize("seed", range(3))
def test_figures_are_scikit_learn_s(seed: int) -> None:
    p = drawn(seed=seed)
    found = scores(p.y_true, p.proba, CLASSES)
    guess = p.proba.argmax(axis=1)
    expected = {
        "UA": sk.balanced_accuracy_score(p.y_true, guess),
        "WA": sk.accuracy_score(p.y_true, guess),
        "macro_f1": sk.f1_score(p.y_true, guess, average="macro"),
        "weighted_f1": sk.f1_score(p.y_true, guess, average="weighted"),
        # scikit-learn wants rows that sum to 1 more exactly than float32 does
        "roc_auc": np.mean([sk.roc_auc_score(p.y_true == k, p.proba[:, k]) for k in range(4)]),
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=EXACT), name
    assert found["confusion"] == sk.confusion_matrix(p.y_true, guess).tolist()
    precision, recall, f1, support = sk.precision_recall_fscore_support(p.y_true, guess)
    for name, values in (("precision", precision), ("recall", recall), ("f1", f1), ("support", support)):
        assert list(found[name].values()) == pytest.approx(values.tolist(), abs=EXACT), name


def test_ties_in_a_score_count_half_in_the_roc() -> None:
    y = np.array([0, 0, 1, 1, 1, 0])
    proba = np.array([[0.5, 0.5], [0.5, 0.5], [0.5, 0.5], [0.2, 0.8], [0.6, 0.4], [0.6, 0.4]])
    expected = sk.roc_auc_score(y, proba[:, 1])
    assert scores(y, proba, ("a", "b"))["roc_auc"] == pytest.approx(expected, abs=EXACT)


def test_a_class_without_rows_is_no_part_of_a_mean() -> None:
    p = drawn(num_classes=3)
    wider = np.hstack([p.proba, np.zeros((len(p.proba), 1), np.float32)])
    with_empty, without = scores(p.y_true, wider, CLASSES), scores(p.y_true, p.proba, CLASSES[:3])
    for name in (*METRICS, "roc_auc", "ece"):
        assert with_empty[name] == pytest.approx(without[name], abs=EXACT), name
    assert math.isnan(with_empty["recall"]["neutral"])


def test_calibration_error_is_the_gap_between_confidence_and_share_right() -> None:
    # Confidence 0.8, right in 6 of 10: a gap of 0.2 in the one bin there is.
    proba = np.tile([0.8, 0.2], (10, 1))
    y = np.array([0] * 6 + [1] * 4)
    assert expected_calibration_error(y, proba) == pytest.approx(0.2, abs=EXACT)
    sure = np.tile([1.0, 0.0], (10, 1))
    assert expected_calibration_error(np.zeros(10, int), sure) == 0.0
    # Drawn from its own probabilities a prediction is calibrated, but for chance (0.5 / sqrt(rows a bin)).
    rng = np.random.default_rng(0)
    top = rng.uniform(0.5, 1, 20_000)
    y = (rng.uniform(size=len(top)) > top).astype(int)
    assert expected_calibration_error(y, np.stack([top, 1 - top], axis=1)) < 0.5 / math.sqrt(20_000 / 8)


def test_what_cannot_be_scored_is_refused() -> None:
    nan = np.array([[0.5, np.nan]])
    for y, proba, message in (([], np.zeros((0, 2)), "no row"), ([0], nan, "NaN")):
        with pytest.raises(InputError, match=message):
            scores(np.array(y, int), proba, ("a", "b"))


def test_an_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Of WA, whose truth is the binomial's share. 200 experiments of 95 %: 3.1 points are two deviations."""
    rng = np.random.default_rng(0)
    truth, covered, experiments = 0.7, 0, 200
    for k in range(experiments):
        right = rng.uniform(size=200) < truth
        y = rng.integers(2, size=200)
        p = of_guesses(y, np.where(right, y, 1 - y))
        low, high = bootstrap_intervals([p], n=400, seed=k)["WA"]
        covered += low <= truth <= high
    assert abs(covered / experiments - 0.95) < 0.031 + 0.01  # a percentile interval is a little short


def test_rows_that_are_alike_within_a_speaker_widen_the_interval() -> None:
    rng = np.random.default_rng(0)
    speaker = np.repeat(np.arange(10), 30)
    skill = rng.uniform(0.2, 1.0, 10)[speaker]
    y = rng.integers(2, size=300)
    p = of_guesses(y, np.where(rng.uniform(size=300) < skill, y, 1 - y))
    rows = bootstrap_intervals([p])["WA"]
    speakers = bootstrap_intervals([p], [str(s) for s in speaker])["WA"]
    assert speakers[1] - speakers[0] > 1.5 * (rows[1] - rows[0])


def test_an_interval_is_drawn_from_its_seed_alone_and_narrows_with_seeds() -> None:
    each = [drawn(seed=0), drawn(seed=0, skill=1.0)]
    once = bootstrap_intervals(each[:1], seed=3)
    assert once == bootstrap_intervals(each[:1], seed=3) != bootstrap_intervals(each[:1], seed=4)
    # Twice the same predictions say no more than once.
    for name, bounds in bootstrap_intervals(each, seed=3).items():
        assert bounds == pytest.approx(once[name], abs=EXACT)


def of_guesses(y: np.ndarray, guess: np.ndarray) -> Predictions:
    """Predictions of two classes that are sure of themselves."""
    return Predictions(np.arange(len(y)), np.zeros(len(y), int), y, np.eye(2, dtype=np.float32)[guess])


def paired(n01: int, n10: int, both: int = 50) -> tuple[Predictions, Predictions]:
    """Predictions of two classes, all rows of class 0; a row is right where class 0 is predicted."""
    a = np.array([1] * n01 + [0] * n10 + [0] * both)
    b = np.array([0] * n01 + [1] * n10 + [0] * both)
    return of_guesses(np.zeros(len(a), int), a), of_guesses(np.zeros(len(b), int), b)


@pytest.mark.parametrize(("n01", "n10"), [(0, 0), (1, 0), (3, 9), (10, 10), (0, 20), (40, 20)])
def test_few_discordant_rows_are_tested_exactly(n01: int, n10: int) -> None:
    """And many by chi-squared."""
    found = mcnemar(*paired(n01, n10))
    expected = binomtest(n01, n01 + n10).pvalue if n01 + n10 else 1.0
    if n01 + n10 == 60:
        assert found["statistic"] == pytest.approx(19**2 / 60, abs=EXACT)
        expected = chi2.sf(19**2 / 60, 1)
    assert (found["n01"], found["n10"]) == (n01, n10)
    assert found["p_value"] == pytest.approx(expected, abs=EXACT)


def test_models_are_compared_by_recording_not_by_order() -> None:
    a, b = paired(3, 9)
    order = np.random.default_rng(0).permutation(len(b.rows))
    shuffled = Predictions(b.rows[order], b.fold[order], b.y_true[order], b.proba[order])
    assert mcnemar(a, shuffled) == mcnemar(a, b)
    with pytest.raises(InputError, match="same recordings"):
        mcnemar(a, replace(b, rows=b.rows + 1))
    with pytest.raises(InputError, match="same labels"):
        mcnemar(a, replace(b, y_true=1 - b.y_true))


def result_of(*predictions: Predictions) -> Result:
    folds = [[FoldInfo(f"f{k}", 10, 60, layer=k, params={"C": 0.1}) for k in range(5)] for _ in predictions]
    ids = [f"id-{i}" for i in range(300)]
    ids[3:6] = ["with,comma", 'with "quotes"\nand a line', "b\udcff.wav"]
    return Result(
        config={"classifier": "logistic"},
        classes=CLASSES,
        ids=ids,
        seeds=list(range(len(predictions))),
        predictions=list(predictions),
        folds=folds,
        provenance={"run": {"settings": {"model": "given"}}},
        notes=["a note"],
        speakers=[f"s{i % 10}" for i in range(300)],
    )


def test_a_result_is_read_back_as_it_was(tmp_path: Path) -> None:
    made = result_of(drawn(seed=0), drawn(seed=1))
    made.save(tmp_path / "out")
    read = Result.load(tmp_path / "out")
    for p, q in zip(made.predictions, read.predictions, strict=True):
        for name in ("rows", "fold", "y_true", "proba"):
            np.testing.assert_array_equal(getattr(p, name), getattr(q, name), err_msg=name)
    assert replace(read, predictions=[]) == replace(made, predictions=[])
    assert read.figures() == made.figures()


def test_a_damaged_result_is_refused_by_name(tmp_path: Path) -> None:
    made = result_of(drawn())
    made.save(tmp_path)
    text = (tmp_path / "predictions.csv").read_bytes()
    (tmp_path / "predictions.csv").write_bytes(text.replace(b"anger", b"angst"))
    with pytest.raises(StoreError, match="damaged"):
        Result.load(tmp_path)
    for nowhere in ("nowhere", "predictions.csv"):
        with pytest.raises(StoreError, match="no result here"):
            Result.load(tmp_path / nowhere)


def test_means_and_deviations_are_over_seeds() -> None:
    each = [drawn(seed=k) for k in range(3)]
    figures = result_of(*each).figures()  # in which a warning is an error
    ua = [scores(p.y_true, p.proba, CLASSES)["UA"] for p in each]
    assert figures["mean"]["UA"] == pytest.approx(np.mean(ua), abs=EXACT)
    assert figures["deviation"]["UA"] == pytest.approx(np.std(ua, ddof=1), abs=EXACT)
    low, high = figures["interval"]["UA"]
    assert low < figures["mean"]["UA"] < high


def test_a_result_is_compared_by_id() -> None:
    p = drawn()
    a = result_of(p)
    order = np.random.default_rng(0).permutation(300)
    renumbered = Predictions(np.argsort(order)[p.rows], p.fold, p.y_true, p.proba)
    b = replace(result_of(renumbered), ids=[a.ids[i] for i in order])
    assert a.compare(b) == {"statistic": 0.0, "p_value": 1.0, "n01": 0, "n10": 0}
    with pytest.raises(InputError, match="different classes"):
        a.compare(replace(b, classes=("w", "x", "y", "z")))
