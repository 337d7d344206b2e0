"""An experiment's figures are those one gets by hand, and nothing of the test rows is in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import LeaveOneGroupOut, StratifiedGroupKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from classifiers.commands.train import result_lines
from classifiers.models.calibrated_svm import CalibratedSVM
from classifiers.models.table import CLASSIFIERS, POOLED
from classifiers.results.result import Result
from classifiers.studies.layers import run_layer_study
from classifiers.training.conditions import conditions_of
from classifiers.training.config import Experiment, experiment_from
from classifiers.training.experiment import open_features, run_experiment, train_on_all
from classifiers.training.learner import PRIOR, FitProgress, FusedClassifier, mixture_weights
from classifiers.training.protocols import make_folds
from extractor.errors import InputError, SettingsError
from tests.classifier_cases import Corpus, corpus, write_run

# float32 embeddings through the same scikit-learn calls: the same numbers, stored as float32.
FLOAT32 = 1e-6
SCIKIT_LEARN = [name for name, row in CLASSIFIERS.items() if row.input == POOLED and name != "mlp"]


def by_hand(x: np.ndarray, y: np.ndarray, groups: Sequence[str], **params: Any) -> np.ndarray:
    """Leave one speaker out with scikit-learn alone: probabilities [N, C]."""
    proba = np.zeros((len(y), len(np.unique(y))))
    for train, test in LeaveOneGroupOut().split(x, y, groups):
        machine = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000, **params))
        proba[test] = machine.fit(x[train], y[train]).predict_proba(x[test])
    return proba


def speakers(rows: Corpus) -> list[str]:
    return [row["speaker"] for row in rows.labels]


def codes(rows: Corpus) -> np.ndarray:
    """int64 [N]: emotions in their order."""
    return np.unique([row["emotion"] for row in rows.labels], return_inverse=True)[1]


def run_of(tmp_path: Path, rows: Corpus, name: str = "run") -> str:
    return str(write_run(tmp_path / name, rows))


def test_predictions_are_those_of_scikit_learn_by_hand(tmp_path: Path) -> None:
    rows = corpus(num_layers=2, signal=0.8)
    path = run_of(tmp_path, rows)
    result = run_experiment(Experiment((path,), layer="1", params={"C": 0.5}))
    y, p = codes(rows), result.predictions[0]
    expected = by_hand(rows.x[:, 1], y, speakers(rows), C=0.5)
    assert p.rows.tolist() == list(range(len(y)))
    np.testing.assert_allclose(p.proba, expected, atol=FLOAT32)
    ua = balanced_accuracy_score(y, expected.argmax(axis=1))
    assert result.figures()["mean"]["UA"] == pytest.approx(ua)


@pytest.mark.parametrize("classifier", SCIKIT_LEARN)
def test_each_classifier_learns_repeats_and_is_never_fitted_on_tested_rows(
    classifier: str, tmp_path: Path
) -> None:
    rows = corpus(3, takes=4)
    path = run_of(tmp_path, rows)
    params = {"n_estimators": 50} if classifier == "random-forest" else {}  # ten times quicker
    experiment = Experiment((path,), classifier, params)
    result, again = run_experiment(experiment), run_experiment(experiment)
    np.testing.assert_array_equal(result.predictions[0].proba, again.predictions[0].proba)
    # Centres two deviations of noise apart in eight dimensions: an easy problem.
    assert result.figures()["mean"]["UA"] > 0.8
    np.testing.assert_allclose(result.predictions[0].proba.sum(axis=1), 1, atol=1e-5)
    # Speaker s2's rows, whatever they hold, change nothing of what is predicted where s2 is tested but
    # the changed rows themselves. A scaler fitted on all rows would be seen here.
    tested = [i for i, name in enumerate(speakers(rows)) if name == "s2"]
    changed = rows.x.copy()
    changed[tested[0]] *= 1000
    other = run_of(tmp_path, replace(rows, x=changed), "changed")
    moved = run_experiment(replace(experiment, features=(other,)))
    np.testing.assert_array_equal(
        result.predictions[0].proba[tested[1:]], moved.predictions[0].proba[tested[1:]]
    )


@pytest.mark.parametrize("classifier", ["mlp", "layer-weights"])
def test_networks_keep_what_they_learned_beside_the_fold(classifier: str, tmp_path: Path) -> None:
    path = run_of(tmp_path, corpus(3, num_layers=2))
    layer = {"layer": "0"} if classifier == "mlp" else {}
    result = run_experiment(Experiment((path,), classifier, {"max_epochs": 3}, **layer))  # type: ignore[arg-type]
    for fold in result.folds[0]:
        assert [row["epoch"] for row in fold.history] == [1, 2, 3]
        if classifier == "layer-weights":
            assert fold.layer_weights is not None
            assert sum(fold.layer_weights) == pytest.approx(1)
            assert len(fold.layer_weights) == 2


def test_permuted_labels_give_chance(tmp_path: Path) -> None:
    """Labels drawn anew inside each speaker: the interval holds the UA of guessing."""
    rows = corpus(8, takes=6, signal=2.0)
    emotion = np.array([row["emotion"] for row in rows.labels])
    rng = np.random.default_rng(0)
    for name in sorted(set(speakers(rows))):  # in their order: the draw is the same every time
        own = np.flatnonzero(np.array(speakers(rows)) == name)
        emotion[own] = rng.permutation(emotion[own])
    labels = [row | {"emotion": str(e)} for row, e in zip(rows.labels, emotion, strict=True)]
    path = run_of(tmp_path, replace(rows, labels=labels))
    for settings in ({}, {"grid": "default"}):
        result = run_experiment(Experiment((path,), inner_folds=3, **settings))  # type: ignore[arg-type]
        low, high = result.figures()["interval"]["UA"]
        assert low < 0.25 < high


def test_the_layer_is_selected_without_the_tested_rows(tmp_path: Path) -> None:
    """Of noise layers the best by its test rows looks better than chance; nested selection does not."""
    rows = corpus(5, takes=5, num_layers=20, signal=0.0, speakers_apart=0.0, dim=3)
    path = run_of(tmp_path, rows)
    nested = run_experiment(Experiment((path,), layer="best", inner_folds=3)).figures()
    study = run_layer_study(Experiment((path,), layer="each"))
    assert max(score["UA"] for score in study.scores) > 0.33  # chance and then some: the highest of twenty
    low, high = nested["interval"]["UA"]
    assert low < 0.25 < high


def test_nested_selection_finds_the_layer_and_is_the_one_by_hand(tmp_path: Path) -> None:
    rows = corpus(5, num_layers=3, signal_layer=1, signal=0.7)
    path = run_of(tmp_path, rows)
    experiment = Experiment((path,), layer="best", inner_folds=2, params={"C": 0.1})
    features = open_features(experiment)
    result = run_experiment(experiment, features)
    y, speaker = features.y, np.unique(speakers(rows), return_inverse=True)[1]
    for fold, info in zip(make_folds(features, "loso")[0], result.folds[0], strict=True):
        of_fold = y[fold.train]
        by_speaker = StratifiedGroupKFold(2, shuffle=True, random_state=0)
        splits = list(by_speaker.split(np.zeros(len(fold.train)), of_fold, speaker[fold.train]))
        truth, score = np.concatenate([of_fold[held] for _, held in splits]), []
        for layer in range(3):
            x, guess = rows.x[fold.train, layer], []
            for train, held in splits:
                machine = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
                guess.append(machine.fit(x[train], of_fold[train]).predict(x[held]))
            score.append(balanced_accuracy_score(truth, np.concatenate(guess)))
        assert info.layer == int(np.argmax(score))
    trained = train_on_all(experiment, features)
    assert trained.sources[0].layers == (1,)


def test_a_grid_is_selected_on_inner_folds_and_the_final_model_is_fitted_on_all(tmp_path: Path) -> None:
    rows = corpus(4)
    path = run_of(tmp_path, rows)
    # With all 24 rows of an inner training part as neighbours every recording gets the same answer.
    experiment = Experiment(
        (path,), "knn", {"weights": "uniform"}, grid={"n_neighbors": (24, 5)}, inner_folds=3
    )
    features = open_features(experiment)
    result = run_experiment(experiment, features)
    assert [fold.params for fold in result.folds[0]] == [{"n_neighbors": 5}] * 4
    trained = train_on_all(experiment, features)
    machine = make_pipeline(StandardScaler(), KNeighborsClassifier(5, metric="cosine"))
    expected = machine.fit(rows.x[:, 0], features.y).predict_proba(rows.x[:, 0])
    np.testing.assert_allclose(trained.estimator.predict_proba(rows.x[:, 0]), expected, atol=FLOAT32)


def test_a_search_repeats_from_its_seed(tmp_path: Path) -> None:
    path = run_of(tmp_path, corpus(3, signal=0.7))
    experiment = Experiment((path,), tune=3, inner_folds=2, params={"max_iter": 500})
    first, second = run_experiment(experiment), run_experiment(experiment)
    assert first.folds == second.folds
    np.testing.assert_array_equal(first.predictions[0].proba, second.predictions[0].proba)


def test_copies_train_with_their_original_and_are_not_tested(tmp_path: Path) -> None:
    rows = corpus(3, copies=2, signal=0.8)
    path = run_of(tmp_path, rows)
    clean = [i for i, row in enumerate(rows.labels) if row["copy"] == "0"]
    with_copies = run_experiment(Experiment((path,)))
    assert with_copies.predictions[0].rows.tolist() == clean
    assert with_copies.folds[0][0].num_train == 2 * 12 * 3
    expected = by_hand(rows.x[:, 0], codes(rows), speakers(rows), C=0.01)[clean]
    np.testing.assert_allclose(with_copies.predictions[0].proba, expected, atol=FLOAT32)
    tested_too = run_experiment(Experiment((path,), copies="all"))
    assert sorted(tested_too.predictions[0].rows.tolist()) == list(range(len(rows.ids)))


def test_a_class_missing_from_training_counts_as_wrong(tmp_path: Path) -> None:
    rows = corpus(3)
    for i in (0, 1, 2):  # three rows of s0 are the only ones of a fifth class
        rows.labels[i] = rows.labels[i] | {"emotion": "fear"}
    path = run_of(tmp_path, rows)
    for classifier in ("logistic", "svm", "xgboost"):
        result = run_experiment(Experiment((path,), classifier))
        p, fear = result.predictions[0], result.classes.index("fear")
        assert len(p.rows) == len(rows.ids)
        assert (p.proba[p.y_true == fear, fear] == 0).all()
        assert result.figures()["seeds"][0]["recall"]["fear"] == 0
        note = "fold 's0': 'fear' is not among its training rows; its 3 test rows count as wrong"
        assert any(note in each for each in result.notes)


def test_seeds_are_whole_tests(tmp_path: Path) -> None:
    path = run_of(tmp_path, corpus(6, signal=0.6))
    result = run_experiment(Experiment((path,), protocol="grouped-kfold", folds=3, seeds=3, seed=5))
    assert result.seeds == [5, 6, 7]
    alone = run_experiment(Experiment((path,), protocol="grouped-kfold", folds=3, seed=6))
    np.testing.assert_array_equal(alone.predictions[0].proba, result.predictions[1].proba)


# Fusion


def two_runs(tmp_path: Path) -> tuple[str, str, Corpus, Corpus]:
    a, noise = corpus(4, signal=0.8), corpus(4, signal=0.0, seed=7)
    return str(write_run(tmp_path / "a", a)), str(write_run(tmp_path / "b", noise)), a, noise


def test_concatenation_is_one_classifier_of_both(tmp_path: Path) -> None:
    a, b, rows, noise = two_runs(tmp_path)
    result = run_experiment(Experiment((a, b)))
    both = np.hstack([rows.x[:, 0], noise.x[:, 0]])
    expected = by_hand(both, codes(rows), speakers(rows), C=0.01)
    np.testing.assert_allclose(result.predictions[0].proba, expected, atol=FLOAT32)


def test_the_average_is_the_mean_of_the_probabilities(tmp_path: Path) -> None:
    a, b, *_ = two_runs(tmp_path)
    alone = [run_experiment(Experiment((path,))).predictions[0].proba for path in (a, b)]
    fused = run_experiment(Experiment((a, b), fusion="average"))
    np.testing.assert_allclose(fused.predictions[0].proba, np.mean(alone, axis=0), atol=FLOAT32)


def test_a_gate_learns_whom_to_trust_inside_the_training_rows(tmp_path: Path) -> None:
    a, b, rows, noise = two_runs(tmp_path)
    experiment = Experiment((a, b), fusion="gate", inner_folds=3, params={"C": 1.0})
    result = run_experiment(experiment)
    for fold in result.folds[0]:
        weights = [member["weight"] for member in fold.params["members"]]
        assert sum(weights) == pytest.approx(1)
        assert weights[0] > 0.7
    trained = train_on_all(experiment, open_features(experiment))
    assert isinstance(trained.estimator, FusedClassifier)
    x = [rows.x[:, 0], noise.x[:, 0]]
    each = [e.predict_proba(part) for e, part in zip(trained.estimator.estimators, x, strict=True)]
    expected = sum(w * p for w, p in zip(trained.estimator.weights, each, strict=True))
    np.testing.assert_allclose(trained.estimator.predict_proba(x), expected, atol=FLOAT32)


@pytest.mark.parametrize("better", [0.2, 0.8, 0.98])
def test_a_gate_does_not_shut_out_a_source_that_knows_something(better: float) -> None:
    """The other is right more often, and surer of it: the most likely weight of the first is then 0."""
    rng = np.random.default_rng(0)
    y = rng.integers(3, size=300)
    sure = np.full((300, 3), 0.005)
    sure[np.arange(300), y] = 0.99
    proba = np.stack([np.full((300, 3), 0.2), sure])
    proba[0, np.arange(300), y] = 0.6  # right in every row
    wrong = np.flatnonzero(rng.random(300) > better)
    proba[1, wrong] = np.roll(proba[1, wrong], 1, axis=1)
    for order in ([0, 1], [1, 0]):
        weights = mixture_weights(proba[order], y, PRIOR)
        assert weights.sum() == pytest.approx(1)
        assert weights.min() > PRIOR / (1 + PRIOR) / 2 - 1e-9
    shut = np.stack([proba[0], sure])
    assert mixture_weights(shut, y)[0] < 1e-12  # what it was
    assert mixture_weights(shut, y, PRIOR)[0] > 0.08


def test_the_weights_of_a_fusion_stand_with_its_figure(tmp_path: Path) -> None:
    a, b, *_ = two_runs(tmp_path)
    for fusion in ("gate", "average"):
        experiment = Experiment((a, b), fusion=fusion, inner_folds=2, protocol="grouped-kfold", folds=2)
        result = run_experiment(experiment)
        result.save(tmp_path / fusion)
        assert Result.load(tmp_path / fusion).folds == result.folds
        of_folds = np.array([[m["weight"] for m in fold.members] for fold in result.folds[0]])
        told = result.figures()["weights"]
        assert [each["features"] for each in told] == [a, b]
        assert [each["mean"] for each in told] == pytest.approx(of_folds.mean(axis=0))
        assert [each["lowest"] for each in told] == pytest.approx(of_folds.min(axis=0))
        (line,) = [line for line in result_lines(result) if line.startswith("weights")]
        assert all(f"{each['mean']:.2f}" in line for each in told)
        assert f"weights {told[0]['mean']:.2f} + {told[1]['mean']:.2f}" in str(conditions_of(result))
    assert run_experiment(Experiment((a, b))).figures()["weights"] is None


def test_mixture_weights_are_the_most_likely_ones() -> None:
    """Against a scan of the simplex of two members, whose likelihood has one maximum."""
    rng = np.random.default_rng(0)
    y = rng.integers(3, size=200)
    proba = rng.dirichlet(np.ones(3), size=(2, 200))
    proba[0, np.arange(200), y] += 0.3
    proba /= proba.sum(axis=2, keepdims=True)
    found = mixture_weights(proba, y)
    of_truth = proba[:, np.arange(200), y]
    grid = np.linspace(0, 1, 1001)
    likelihood = [np.log(w * of_truth[0] + (1 - w) * of_truth[1]).mean() for w in grid]
    assert np.log(found @ of_truth).mean() >= max(likelihood) - 1e-6
    # The grid's step, and what 200 rounds of EM leave where the top is flat.
    assert found[0] == pytest.approx(grid[int(np.argmax(likelihood))], abs=0.01)


# Calibrated SVM


def test_an_svm_is_calibrated_on_speakers_it_was_not_fitted_on(tmp_path: Path) -> None:
    rows = corpus(4)
    y = codes(rows)
    groups = np.unique(speakers(rows), return_inverse=True)[1]
    machine = CalibratedSVM().fit(rows.x[:, 0], y, groups)
    assert machine.calibrated_on_ == "groups"
    # A single group cannot be parted: rows it is, and it says so.
    assert CalibratedSVM().fit(rows.x[:, 0], y, np.zeros(len(y))).calibrated_on_ == "rows"
    with pytest.raises(InputError, match="one row in training"):
        CalibratedSVM().fit(rows.x[:13, 0], y[:13] * 0 + (np.arange(13) == 0))


# What is refused


def test_unknown_names_list_the_nearest() -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"protocol": "lose"}, "known: loso"),
        ({"fusion": "averag"}, "known: average"),
        ({"copies": "non"}, "known: none"),
        ({"folds": 1}, "--folds 1: must be at least 2"),
        ({"grid": "default", "tune": 3}, "exclude each other"),
        ({"fusion": "gate"}, "there is one"),
        ({"classifier": "logistics"}, "known: logistic"),
        ({"foldz": 3}, "file.yaml: .*known: folds"),
        ({"folds": "three"}, "file.yaml: folds: 'three' is not a whole number"),
    ]
    for values, message in cases:
        with pytest.raises(SettingsError, match=message):
            experiment_from({"features": "runs/x", **values}, "file.yaml")
    with pytest.raises(SettingsError, match="known: n_neighbors"):
        CLASSIFIERS["knn"].make({"n_neighbours": 3}, 0)


def test_layers_that_a_classifier_cannot_take_are_refused(tmp_path: Path) -> None:
    path = run_of(tmp_path, corpus(3, num_layers=2))
    for values, message in (
        ({"layer": "all"}, "takes one layer"),
        ({"layer": "each"}, "is a study"),
        ({"layer": "7"}, "layer 7 is not stored"),
        ({"classifier": "bilstm", "pooling": "mean"}, "needs frames"),
    ):
        with pytest.raises(SettingsError, match=message):
            run_experiment(Experiment((path,), **values))  # type: ignore[arg-type]


def test_an_experiment_is_its_plain_values() -> None:
    made = Experiment(
        ("a:mean:3",), "svm", {"C": 0.1}, grid={"gamma": (0.1, "scale")}, classes=("x", "y"), map={"z": "y"}
    )
    assert experiment_from(made.to_dict()) == made


def test_progress_says_how_much_time_is_left() -> None:
    now, lines = [0.0], []
    progress = FitProgress(lines.append, clock=lambda: now[0])
    progress.total = 10
    for _ in range(4):
        now[0] += 10
        progress.fitted()
    progress.say("fold 4/10")
    assert lines[-1] == "fold 4/10, 1:00 left"
    assert any("3/10 fits" in line for line in lines)  # unasked, every half minute
    now[0] += 31
    progress.epoch({"epoch": 7.0})
    assert "4/10 fits, epoch 7 of this one" in lines[-1]
