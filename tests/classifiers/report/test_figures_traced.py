"""A figure says what it is of: encoder, layer, pooling, classifier, parameters, protocol, normalisation."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from matplotlib.figure import Figure
from model_cases import QUICK, made_up_result, write_result

from classifiers.charts import plots
from classifiers.charts.plots import charts_of, write_chart
from classifiers.commands.evaluate import hser_evaluate
from classifiers.commands.lookup import hser_lookup
from classifiers.commands.train import command as hser_train
from classifiers.commands.train import result_lines
from classifiers.lookup.evaluation import evaluate
from classifiers.models.table import ALIASES, CLASSIFIERS
from classifiers.models.torch.models import MODELS
from classifiers.report.page import report_html
from classifiers.results.metrics import CAUTION, Predictions
from classifiers.results.result import FoldInfo, Result
from classifiers.studies.cross_corpus import cross_matrix
from classifiers.studies.transfer import transfer
from classifiers.training.conditions import BY_CORPUS, BY_TRAINING_ROWS
from classifiers.training.config import Experiment
from classifiers.training.experiment import run_experiment
from tests.classifier_cases import corpus, said, write_run

HUBERT = {"model": "hubert-large", "dtype": "bf16", "layers": "all", "pooling": "mean"}


train = partial(said, hser_train, "--projection", "pca", "-q")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Figure]]:
    """Figures by the name of the file that they were to be written to."""
    figures: dict[str, Figure] = {}
    monkeypatch.setattr(plots, "write_png", lambda figure, path: figures.update({path.name: figure}))
    yield figures


def words_of(figure: Figure) -> str:
    """All that is written on it, a line break being a blank."""
    texts = [each.get_text() for each in figure.findobj(lambda artist: hasattr(artist, "get_text"))]
    return " ".join(" ".join(texts).split())


# Defaults


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_defaults_of_the_table_are_those_of_a_fit_and_stand_in_the_help(name: str) -> None:
    row = CLASSIFIERS[name]
    estimator = row.make({}, 0)
    inner = getattr(estimator, "named_steps", {}).get("classifier", estimator)
    made = inner.get_params(deep=False)
    assert row.name == name and row.defaults and row.grid and row.space
    assert set(ALIASES.values()) <= set(CLASSIFIERS)
    assert {key: made[key] for key in row.defaults} == row.defaults
    assert row.all_parameters({}) == {
        key: value
        for key, value in made.items()
        if key != "random_state" and value != "deprecated" and value == value
    }
    if name in MODELS:  # used as a library they are the same
        assert MODELS[name]().get_params() == made
    text = " ".join(said(hser_train, "--help").split())
    assert name in text or name == "linear-svm"  # there by its alias
    for key, value in row.defaults.items():
        assert f"{key}={'none' if value is None else value}" in text


def test_the_config_of_a_model_holds_every_value_that_was_used(tmp_path: Path, drawn: Any) -> None:
    run, out = write_run(tmp_path / "run", corpus(3, num_layers=2), settings=HUBERT), tmp_path / "m"
    flags = ("--layer", "best", "--grid", "default", "--inner-folds", "2", "--param", "tol=0.001")
    train(run, *flags, "--out", out)
    config = yaml.safe_load((out / "config.yaml").read_text())
    row = CLASSIFIERS["logistic"]
    assert config["params"] == row.all_parameters({"tol": 0.001})
    assert config["params"]["C"] == 0.01 and config["params"]["solver"] == "lbfgs"
    assert config["grid"] == {"C": list(row.grid["C"])}
    assert (config["layer"], config["pooling"]) == ("best", "mean")
    (source,) = config["used"]["sources"]
    assert config["used"]["asked"]["params"] == {"tol": 0.001}
    assert source == {"run": str(run), "encoder": "hubert-large (bf16)", "pooling": "mean", "layers": "best"}
    result = Result.load(out)
    assert [(each["fold"], each["layer"], each["C"]) for each in config["selected"]["folds"]] == [
        (fold.name, fold.layer, fold.params["C"]) for fold in result.folds[0]
    ]
    (final,) = config["selected"]["model"]["classifiers"]
    assert final["parameters"]["C"] in row.grid["C"] and final["parameters"]["tol"] == 0.001
    # What was worked out does the same again.
    train("--config", out / "config.yaml", "--out", tmp_path / "again")
    again = Result.load(tmp_path / "again")
    assert again.config == result.config and again.folds == result.folds
    np.testing.assert_array_equal(again.predictions[0].proba, result.predictions[0].proba)


def test_seeds_stay_the_experiment_s_when_its_parameters_are_worked_out(tmp_path: Path, drawn: Any) -> None:
    run = write_run(tmp_path / "run", corpus(3))
    flags = ("--classifier", "mlp", "--param", "max_epochs=2", "--seeds", "2")
    train(run, *flags, "--out", tmp_path / "a")
    train("--config", tmp_path / "a" / "config.yaml", "--out", tmp_path / "b")
    a, b = Result.load(tmp_path / "a"), Result.load(tmp_path / "b")
    assert a.seeds_differ
    for one, other in zip(a.predictions, b.predictions, strict=True):
        np.testing.assert_array_equal(one.proba, other.proba)


# Tables and charts


def test_each_table_and_chart_of_a_model_names_what_it_is_of(
    tmp_path: Path, drawn: dict[str, Figure]
) -> None:
    run, out = write_run(tmp_path / "run", corpus(3, num_layers=4), settings=HUBERT), tmp_path / "svm"
    printed = train(run, "--classifier", "svm", "--layer", "2", "--param", "C=0.02", "--out", out)
    wanted = ("hubert-large (bf16)", "svm", "C=0.02", "mean", "leave one speaker out", BY_TRAINING_ROWS)
    assert all(word in printed for word in wanted)
    assert re.search(r"layer +2\n", printed)
    assert set(drawn) >= {"confusion_matrix.png", "roc.png", "pr.png", "reliability.png", "embedding_2d.png"}
    for name, figure in drawn.items():
        assert all(word in words_of(figure) for word in (*wanted, "layer 2")), name
        box = figure.get_supxlabel()
        assert box, name
    page = report_html([out])
    table = page.split('id="figures"', 1)[1].split("</table>", 1)[0]
    for column in ("encoder", "layer", "pooling", "classifier"):
        assert f'<th scope="col">{column}</th>' in table
    assert all(word in table for word in (*wanted, "of run<"))  # models of several corpora stand in one table
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", page.split('id="model-0"', 1)[1])
    assert len(captions) == 4
    assert all(word in caption for caption in captions for word in (*wanted, "layer 2"))
    assert "intercept_scaling" not in page and "param gamma" in page  # every parameter of this classifier


def test_a_caption_is_inside_its_figure(tmp_path: Path) -> None:
    for figure in (plots.layer_weights(np.ones((1, 3)) / 3, [0, 1, 2]), plots.layer_scores([0], {}, 0.25)):
        plots.captioned(figure, "whisper-tiny-en (fp32), layer 3, pooling mean; logistic (C=0.01); " * 4)
        figure.canvas.draw()
        (caption,) = [text for text in figure.texts if "whisper" in text.get_text()]
        box = caption.get_window_extent()
        assert box.x0 >= 0 and box.x1 <= figure.bbox.width and box.y0 >= 0


def test_a_cross_corpus_chart_says_whose_rows_it_was_normalised_by(
    tmp_path: Path, drawn: dict[str, Figure]
) -> None:
    runs = [str(write_run(tmp_path / f"c{k}", corpus(3, seed=k), settings=HUBERT)) for k in range(2)]
    for normalise, there, absent in (("corpus", BY_CORPUS, None), ("none", BY_TRAINING_ROWS, BY_CORPUS)):
        printed = said(
            hser_evaluate, "matrix", *runs, "--normalise", normalise, "--out", tmp_path / "out", "-q"
        )
        for text in (printed, words_of(drawn["cross_corpus.png"])):
            assert there in text and "hubert-large (bf16)" in text and "logistic (C=0.01" in text
            assert absent is None or absent not in text


def test_a_layer_study_names_what_it_is_of(tmp_path: Path, drawn: dict[str, Figure]) -> None:
    run, out = write_run(tmp_path / "run", corpus(3, num_layers=2), settings=HUBERT), tmp_path / "study"
    printed = train(run, "--layer", "each", "--param", "C=0.5", "--out", out)
    for text in (printed, words_of(drawn["layer_study.png"]), report_html([out])):
        assert all(
            word in text for word in ("hubert-large (bf16)", "C=0.5", "leave one speaker out", CAUTION)
        )


def test_a_model_of_an_earlier_version_says_what_was_not_recorded(tmp_path: Path) -> None:
    page = report_html([write_result(tmp_path / "old", made_up_result())])
    assert "hubert-large (bf16)" in page and "defaults not recorded" in page


# Curves and words


def test_a_fold_that_stopped_counts_with_its_last_value_in_the_mean_curve() -> None:
    """The good fold stops at 0.9 after two epochs; the bad one goes on at 0.1."""
    short = [{"epoch": e, "train_loss": 1.0, "val_loss": 1.0, "val_ua": 0.9} for e in (1, 2)]
    long = [{"epoch": e, "train_loss": 1.0, "val_loss": 1.0, "val_ua": 0.1} for e in (1, 2, 3, 4)]
    figure = plots.training_curves({"a": short, "b": long})
    (mean,) = [line for line in figure.axes[-1].lines if line.get_linewidth() == 2]
    np.testing.assert_allclose(mean.get_ydata(), [0.5] * 4)
    ends = [tuple(line.get_xydata()[0]) for line in figure.axes[-1].lines if line.get_marker() == "o"]
    assert ends == [(2.0, 0.9), (4.0, 0.1)]


def test_a_drop_is_the_same_figure_in_the_matrix_and_for_a_model(tmp_path: Path, drawn: Any) -> None:
    runs = [str(write_run(tmp_path / f"c{k}", corpus(3, signal=0.9 - 0.3 * k, seed=k))) for k in range(2)]
    matrix = cross_matrix(runs, Experiment((runs[0],)))
    train(runs[0], "--out", tmp_path / "m")
    (found,) = transfer(tmp_path / "m", runs[1:])
    own, other = matrix.cell("c0", "c0"), matrix.cell("c0", "c1")
    assert own is not None and other is not None
    assert found.drop == matrix.drop(other) == own.figures["UA"] - other.figures["UA"] != 0
    assert matrix.drop(own) is None


def test_nothing_deviates_over_seeds_that_nothing_depends_on(tmp_path: Path) -> None:
    run = str(write_run(tmp_path / "run", corpus(3)))
    result = run_experiment(Experiment((run,), "knn", seeds=3))
    text = "\n".join(result_lines(result))
    assert "±" not in text and "all seeds gave the same predictions" in text
    assert np.isnan(result.figures()["deviation"]["UA"])
    result.save(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["deviation"]["UA"] is None
    drawn = made_up_result(seeds=(0, 1))
    assert "over seeds" in "\n".join(result_lines(drawn))
    assert "±" not in report_html([write_result(tmp_path / "m", result)]).split("</table>")[0]


def test_the_recall_that_is_printed_is_the_mean_over_seeds_as_all_else() -> None:
    result = made_up_result(seeds=(0, 1), skill=0.5)
    figures = result.figures()
    each = [seed["recall"]["fear"] for seed in figures["seeds"]]
    assert each[0] != each[1]
    assert f"fear {50 * sum(each):.0f} %" in "\n".join(result_lines(result))


def test_the_best_layer_of_neighbours_has_its_caution(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    several = write_run(tmp_path / "run", corpus(3, num_layers=2), settings=HUBERT)
    one = write_run(tmp_path / "one", corpus(3))
    for run, cautioned in ((several, True), (one, False)):
        printed = said(hser_lookup, "evaluate", run, "--no-duplicates")
        assert (CAUTION in printed) == cautioned, printed
        found = evaluate(run)
        assert found.to_dict()["caution"] == (CAUTION if cautioned else None)
        kept: list[Figure] = []
        monkeypatch.setattr(Figure, "savefig", lambda figure, *_, kept=kept, **__: kept.append(figure))
        write_chart(found, tmp_path / "chart.png")
        assert (CAUTION in words_of(kept[0])) == cautioned
    assert "hubert-large (bf16)" in words_of(kept[0]) or "given" in words_of(kept[0])


def test_weights_of_layers_are_drawn_of_the_saved_model(tmp_path: Path, drawn: dict[str, Figure]) -> None:
    run, out = write_run(tmp_path / "run", corpus(3, num_layers=3), settings=HUBERT), tmp_path / "m"
    params = [f"--param={name}={value}" for name, value in QUICK["layer-weights"].items()]
    train(run, "--classifier", "layer-weights", *params, "--out", out)
    lines = [line.split(",") for line in (out / "layer_weights.csv").read_text().splitlines()]
    (final,) = [[float(weight) for weight in weights] for fit, *weights in lines if fit == "final"]
    axes = drawn["layer_weights.png"].axes[0]
    assert [bar.get_height() for bar in axes.patches] == pytest.approx(final)
    assert "bars: the saved model" in axes.get_title()
    result = Result.load(out)
    assert final != pytest.approx(np.mean([fold.layer_weights for fold in result.folds[0]], axis=0))
    shown = charts_of(result, (0, 1, 2))["layer_weights"]()  # where the model's are not at hand
    assert "bars: mean over the folds" in shown.axes[0].get_title()
    assert "bars: the saved model" in report_html([out])


def test_late_fusion_of_classifiers_keeps_what_each_fold_chose() -> None:
    members = [{"layer": 3, "weight": 0.9, "C": 0.1}, {"layer": None, "weight": 0.1, "C": 1.0}]
    one = Predictions(np.array([0]), np.array([0]), np.array([0]), np.array([[1.0, 0.0]], np.float32))
    folds = [[FoldInfo("f", 1, 1, params={"members": members})]]
    result = Result({"features": ["a", "b"]}, ("x", "y"), ["i"], [0], [one], folds)
    assert result.selected() == [
        {"features": "a", "weight": 0.9, "layer": {"3": 1}, "C": {"0.1": 1}},
        {"features": "b", "weight": 0.1, "C": {"1.0": 1}},
    ]
