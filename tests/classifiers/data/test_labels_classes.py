"""Where labels become classes: a measurement is none, and a class of too few recordings is named."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from classifiers.commands.evaluate import hser_evaluate
from classifiers.commands.lookup import hser_lookup
from classifiers.commands.train import command as hser_train
from classifiers.data.features import Features
from classifiers.data.label_maps import map_labels, refuse_numbers
from classifiers.data.source import Labelling, Source
from classifiers.lookup.evaluation import evaluate
from classifiers.models.table import CLASSIFIERS, POOLED
from classifiers.studies import cross_corpus
from classifiers.studies.cross_corpus import cross_matrix
from classifiers.studies.layers import run_layer_study
from classifiers.training.config import Experiment
from classifiers.training.experiment import run_experiment
from extractor.errors import HserError, InputError
from tests.classifier_cases import corpus, labelled, refused, said, without, write_run


def run(folder: Path, column: str, values: Callable[[int], str], **options: Any) -> str:
    rows = corpus(**options)
    return str(write_run(folder, labelled(rows, column, [values(i) for i in range(len(rows.ids))])))


def with_single(folder: Path, count: int = 1, emotion: str = "boredom", **options: Any) -> str:
    """``count`` rows are of another emotion, of as many speakers."""
    rows = corpus(**options)
    first = {row["speaker"]: i for i, row in reversed(list(enumerate(rows.labels)))}
    odd = sorted(first.values())[:count]
    values = [emotion if i in odd else row["emotion"] for i, row in enumerate(rows.labels)]
    return str(write_run(folder, labelled(rows, "emotion", values)))


# --- numbers


@pytest.mark.parametrize(
    ("values", "refused"),
    [
        ("2.5 3.0 4.0", True),
        ("1 2 2,5", True),
        ("anger 0.5", True),
        ("1e-1 1", True),
        (" ".join(map(str, range(51))), True),
        (" ".join(f"{i:02}.0" for i in range(51)), True),
        (" ".join(map(str, range(50))), False),
        (" ".join(f"{i:02}" for i in range(1, 25)), False),
        ("1.0 2.0", False),
        ("-1 +1 0", False),
        ("v1.5 1.5x 1.2.3 3/4 e5 .", False),
        (" ".join(f"speaker{i}" for i in range(200)), False),
        ("", False),
    ],
)
def test_a_measurement_is_no_class(values: str, refused: bool) -> None:
    message = r"runs/x: column 'arousal' holds .* numbers .* measurement.* --label"
    with pytest.raises(InputError, match=message) if refused else nullcontext():
        refuse_numbers("runs/x", "arousal", values.split())


def test_every_command_refuses_a_measurement(tmp_path: Path) -> None:
    runs = [run(tmp_path / name, "arousal", lambda i: f"{1 + i / 8:.4f}") for name in ("one", "two")]
    message = "column 'arousal' holds 48 different numbers"
    one = Experiment((runs[0],), label="arousal")
    for refuse in (
        lambda: run_experiment(one),
        lambda: run_experiment(replace(one, classifier="lda")),
        lambda: run_layer_study(replace(one, layer="each")),
        lambda: cross_matrix(runs, one),
        lambda: map_labels(runs, "arousal", {}),  # what a model is tested on
    ):
        with pytest.raises(InputError, match=message):
            refuse()
    assert message in refused(hser_train, runs[0], "--label", "arousal", "-q")
    numbers = run(tmp_path / "numbers", "emotion", lambda i: f"{1 + i % 7 / 4}")
    with pytest.raises(InputError, match="column 'emotion' holds 7 different numbers"):
        evaluate(numbers)


def test_numbers_joined_by_map_or_chosen_by_classes_are_classes(tmp_path: Path) -> None:
    path = run(tmp_path / "r", "arousal", lambda i: str(i % 60), takes=8)
    actors = run(tmp_path / "actors", "actor", lambda i: f"{i % 24 + 1:02}", takes=6)
    assert len(Features.open([Source(actors)], Labelling("actor")).classes) == 24
    with pytest.raises(InputError, match="60 different numbers"):
        Features.open([Source(path)], Labelling("arousal"))
    some = Features.open([Source(path)], Labelling("arousal", classes=("1", "2")))
    assert some.classes == ("1", "2")
    renames = {str(i): "high" if i >= 30 else "low" for i in range(60)}
    assert Features.open([Source(path)], Labelling("arousal", rename=renames)).classes == ("high", "low")


# --- missing values and classes of their own


@pytest.mark.parametrize("cell", ["nan", "NA", "None", "null", "xxx", "?", " "])
def test_what_says_no_label_is_no_class_in_any_column(tmp_path: Path, cell: str) -> None:
    path = run(tmp_path / "r", "mood", lambda i: ("good", "bad", cell)[i % 3])
    features = Features.open([Source(path)], Labelling("mood"))
    assert features.classes == ("bad", "good")
    assert len(features) == 32
    assert any("16 recordings" in note and "without mood: left out" in note for note in features.notes)


def test_a_speaker_that_is_not_known_is_no_group(tmp_path: Path) -> None:
    rows = corpus()
    names = ["nan" if row["speaker"] == "s3" else row["speaker"] for row in rows.labels]
    path = str(write_run(tmp_path / "r", labelled(rows, "speaker", names)))
    result = run_experiment(Experiment((path,)))
    assert [(fold.name, fold.num_train) for fold in result.folds[0]] == [("s0", 24), ("s1", 24), ("s2", 24)]
    assert sorted(result.predictions[0].rows.tolist()) == list(range(36))
    (note,) = [each for each in result.notes if "without speaker" in each]
    assert "12 recordings" in note and rows.ids[36] in note
    assert evaluate(path, k=1).groups == 3


def test_classes_outside_the_common_set_are_listed_with_counts(tmp_path: Path) -> None:
    rows = corpus()
    names = [
        {"anger": "w", "sadness": "nostalgia"}.get(row["emotion"], row["emotion"]) for row in rows.labels
    ]
    path = str(write_run(tmp_path / "r", labelled(rows, "emotion", names)))
    output = said(hser_train, path, "-q")
    assert "classes outside the common set: nostalgia 12, w 12; --map OLD=NEW" in output
    output = said(hser_train, path, "-q", "--map", "W=anger,nostalgia=sadness")
    assert "outside the common set" not in output
    assert "anger" in output
    assert "unknown" in refused(hser_train, path, "-q", "--map", "grief=sadness")


# --- too few


@pytest.mark.parametrize(
    ("protocol", "needed"),
    [
        *((protocol, 2) for protocol in ("loso", "session", "grouped-kfold", "split")),
        ("stratified-kfold", 5),
        ("stratified-80-10-10", 10),
    ],
)
def test_a_class_of_too_few_recordings_is_named_with_what_is_needed(
    tmp_path: Path, protocol: str, needed: int
) -> None:
    path = with_single(tmp_path / "r")
    message = rf"{path}: --protocol {protocol}: class 'boredom' has 1 recording, {needed} are needed"
    with pytest.raises(InputError, match=rf"{message}.*--classes.*--map.*--protocol"):
        run_experiment(Experiment((path,), protocol=protocol, folds=5 if "strat" in protocol else 2))
    others = ("anger", "happiness", "neutral", "sadness")
    result = run_experiment(Experiment((path,), protocol="loso", classes=others))
    assert result.classes == others


def test_a_layer_study_and_the_lookup_name_it_too(tmp_path: Path) -> None:
    path = with_single(tmp_path / "r", num_layers=2)
    with pytest.raises(InputError, match="class 'boredom' has 1 recording"):
        run_layer_study(Experiment((path,), layer="each"))
    with pytest.raises(InputError, match=f"{path}: one recording only of 'boredom'.*--classes.*--map"):
        evaluate(path)
    assert evaluate(path, classes=["anger", "sadness"]).emotions == {"anger": 11, "sadness": 12}
    assert "boredom" not in evaluate(path, map="boredom=anger").emotions
    said(hser_lookup, "evaluate", path, "--map", "Boredom=anger", "--classes", "anger,sadness")


@pytest.mark.parametrize("classifier", [name for name, row in CLASSIFIERS.items() if row.input == POOLED])
def test_no_classifier_ends_in_a_traceback_for_a_small_class(tmp_path: Path, classifier: str) -> None:
    """Two rows of two speakers: each fold trains on one of them."""
    path = with_single(tmp_path / "r", count=2, num_speakers=3, takes=2, dim=4)
    params: dict[str, Any] = {"max_epochs": 2} if classifier == "mlp" else {}
    if classifier in ("xgboost", "random-forest"):
        params = {"n_estimators": 5}
    experiment = Experiment((path,), classifier=classifier, params=params)
    if CLASSIFIERS[classifier].least > 1:
        needed = rf"--classifier {classifier} needs 2 training rows of each class; 'boredom' has 1"
        with pytest.raises(InputError, match=needed):
            run_experiment(experiment)
    else:
        assert run_experiment(experiment).classes[1] == "boredom"


@pytest.mark.parametrize("classifier", ["lda", "knn", "linear-svm", "logistic"])
def test_as_many_rows_as_classes_are_refused_or_learned(tmp_path: Path, classifier: str) -> None:
    path = str(write_run(tmp_path / "r", corpus(num_speakers=2, takes=1, dim=4)))
    learned = classifier == "logistic"
    with nullcontext() if learned else pytest.raises(HserError, match=f"{path}|class"):
        run_experiment(Experiment((path,), classifier=classifier))


# --- a matrix of corpora


def test_a_matrix_checks_every_run_before_the_first_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = str(write_run(tmp_path / "good", corpus(3)))
    rows = corpus(3, seed=1)
    nobody = labelled(rows, "speaker", [""] * len(rows.ids))
    no_column = replace(
        rows, labels=[{k: v for k, v in row.items() if k != "session"} for row in rows.labels]
    )
    cases = [
        ("nobody", nobody, "loso", "column 'speaker'"),
        ("no-session", no_column, "session", "unknown column 'session'"),
        ("one", without(rows, [row["speaker"] == "s0" for row in rows.labels]), "loso", "only 's0'"),
    ]

    def fitted(*_: Any) -> None:
        raise AssertionError("a fit before all runs were checked")

    monkeypatch.setattr(cross_corpus, "run_experiment", fitted)
    for name, made, protocol, message in cases:
        bad = str(write_run(tmp_path / name, made))
        with pytest.raises(HserError, match=rf"{re.escape(bad)}: --protocol.*{message}"):
            cross_matrix([good, bad], Experiment((good,), protocol=protocol))
    small = with_single(tmp_path / "small", emotion="neutral", num_speakers=3, emotions=("anger", "sadness"))
    with pytest.raises(InputError, match=f"{small}: .*class 'neutral' has 1 recording"):
        cross_matrix([good, small], Experiment((good,)))


def test_finished_cells_are_kept_and_taken_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [str(write_run(tmp_path / f"c{k}", corpus(3, seed=k))) for k in range(3)]
    experiment, out = Experiment((runs[0],)), tmp_path / "out"
    whole = cross_matrix(runs, experiment, leave_one_out=True)
    fits: list[str] = []
    stop_at = 4

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            if len(fits) == stop_at:
                raise KeyboardInterrupt
            fits.append(function.__name__)
            return function(*args)

        return call

    for name in ("run_experiment", "train_on_all"):
        monkeypatch.setattr(cross_corpus, name, counted(getattr(cross_corpus, name)))
    with pytest.raises(KeyboardInterrupt):
        cross_matrix(runs, experiment, leave_one_out=True, out=out)
    stop_at = 9
    resumed = cross_matrix(runs, experiment, leave_one_out=True, out=out)
    assert len(fits) == 9  # three of the diagonal, three of a corpus, three of all others: each once
    assert resumed == whole
    assert cross_matrix(runs, experiment, leave_one_out=True, out=out) == whole  # and none again
    assert cross_matrix(runs, experiment, out=out).rows == ["c0", "c1", "c2"]
    # Another seed of the experiment, or a corrected label, is another cell.
    with pytest.raises(KeyboardInterrupt):
        cross_matrix(runs, replace(experiment, seed=1), out=out)
    rows = corpus(3, seed=2)
    moods = ["anger", *(row["emotion"] for row in rows.labels[1:])]
    corrected = labelled(rows, "emotion", ["sadness" if i == 0 else mood for i, mood in enumerate(moods)])
    runs[2] = str(write_run(tmp_path / "again" / "c2", corrected))
    stop_at = 99
    cross_matrix(runs, experiment, out=out)
    assert len(fits) == 9 + 4  # its own protocol, itself on the others, and each of the others on it


def test_the_command_of_a_matrix_goes_on_where_it_ended(tmp_path: Path) -> None:
    runs = [str(write_run(tmp_path / f"c{k}", corpus(3, seed=k))) for k in range(2)]
    command = (hser_evaluate, "matrix", *runs, "--out", tmp_path / "out")
    first, second = said(*command), said(*command)
    assert "its own protocol" in first
    assert "its own protocol" not in second
    tables = [[line for line in each.splitlines() if re.match(r"c\d  ", line)] for each in (first, second)]
    assert tables[0] == tables[1]
    (tmp_path / "out" / "cells.json").write_text("{")
    assert "cells.json" in refused(*command)
