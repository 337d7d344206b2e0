"""``hser-train`` as a user meets it."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import ROOT

from classifiers.commands.train import command
from classifiers.training.model_folder import load_model
from extractor.commands.options import EXIT_ERROR
from tests.classifier_cases import corpus, refused, said, write_run

train = partial(said, command, "--projection", "pca")  # UMAP takes ten seconds to import


def test_a_model_folder_holds_the_model_and_what_it_is_worth(tmp_path: Path) -> None:
    rows = corpus(4, num_layers=2)
    run, out = write_run(tmp_path / "run", rows), tmp_path / "models" / "svm"
    printed = train(run, "--classifier", "svm", "--layer", "0", "--out", out)
    assert "UA" in printed
    assert "leave one speaker out" in printed
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["num_tested"] == len(rows.ids)
    model = load_model(out)
    assert model.origins[0].layers == (0,)
    proba = model.predict_proba([rows.x[:, :1]])
    guess = [model.classes[code] for code in proba.argmax(axis=1)]
    assert np.mean([g == row["emotion"] for g, row in zip(guess, rows.labels, strict=True)]) > 0.9


def test_flags_win_over_the_file_and_the_whole_is_printed_back(tmp_path: Path) -> None:
    config = tmp_path / "experiment.yaml"
    config.write_text("features: [runs/x:mean]\nclassifier: knn\nparams: {n_neighbors: 3}\nfolds: 4\n")
    printed = train("--config", config, "--folds", "7", "--param", "weights=uniform", "--print-config")
    values = yaml.safe_load(printed)
    assert (values["classifier"], values["folds"], values["features"]) == ("knn", 7, ["runs/x:mean"])
    assert values["params"] == {"weights": "uniform"}


@pytest.mark.parametrize(
    ("text", "value"),
    [("3", 3), ("1e-3", 1e-3), ("0.1", 0.1), ("none", None), ("true", True), ("scale", "scale")],
)
def test_parameters_are_read_as_what_they_look_like(text: str, value: object) -> None:
    printed = train("runs/x", "--param", f"p={text}", "--print-config")
    assert yaml.safe_load(printed)["params"] == {"p": value}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--param", "C=x"), "'C' parameter"),
        (("--grid", "C=1,x"), "'C' parameter"),
        (("--classifier", "svm", "--param", "C=-1"), "'C' parameter"),
        (("--classifier", "xgboost", "--param", "max_depth=-3"), "max_depth"),
        (("--projection", "zzz", "--out", "m"), "unknown projection 'zzz'"),
    ],
)
def test_values_that_no_fit_can_take_are_refused_by_name(
    arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said_of_it = refused(command, write_run(tmp_path / "run", corpus(3)), *arguments)
    assert message in said_of_it
    assert not (tmp_path / "m").exists()


def test_several_runs_are_fused(tmp_path: Path) -> None:
    a, b = write_run(tmp_path / "a", corpus(3)), write_run(tmp_path / "b", corpus(3, seed=1))
    out = tmp_path / "model"
    train("--features", a, "--features", f"{b}:mean:0", "--fusion", "average", "--out", out)
    assert len(load_model(out).origins) == 2


def test_a_layer_study_scores_every_layer_and_writes_no_model(tmp_path: Path) -> None:
    rows = corpus(3, num_layers=3, signal_layer=2)
    run, out = write_run(tmp_path / "run", rows), tmp_path / "study"
    printed = train(run, "--layer", "each", "--out", out)
    assert "too high" in printed
    scores = json.loads((out / "layer_study.json").read_text())["scores"]
    assert [each["layer"] for each in scores] == [0, 1, 2]
    assert max(scores, key=lambda each: each["UA"])["layer"] == 2
    for each in scores:
        assert each["low"] <= each["UA"] <= each["high"]
        assert f"{100 * each['UA']:5.1f} %" in train(run, "--layer", each["layer"], "-q")
    assert (out / "layer_study.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "name a run"),
        (("nowhere",), "no such run folder"),
        (("nowhere", "--classifier", "svn"), "known: svm"),
        (("nowhere", "--param", "C"), "write name=value"),
        (("nowhere", "--features", "x"), "not both"),
        (("nowhere", "--layer", "x"), "write a number"),
        (("--config", "nowhere.yaml"), "No such file"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_trained(
    arguments: tuple[str, ...], message: str
) -> None:
    assert message in refused(command, *arguments)


def test_an_error_is_a_line_and_an_exit_code() -> None:
    words = [sys.executable, "-m", "classifiers.commands.train", "nowhere", "-q"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == EXIT_ERROR
    assert done.stderr == "error: nowhere: no such run folder or file\n"
