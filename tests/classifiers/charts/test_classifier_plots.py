"""Charts: the points they are drawn from, and that they are drawn whatever was found."""

from __future__ import annotations

import re
import warnings
from itertools import combinations
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from classifier_cases import corpus, write_run
from model_cases import made_up_result
from sklearn.decomposition import PCA

import classifiers
from classifiers.charts import plots
from classifiers.charts.plots import TITLES, charts_of
from classifiers.charts.projection import (
    MAX_POINTS,
    PROJECTIONS,
    Picture,
    choose_projection,
    project_rows,
    read_projection,
    write_projection,
)
from classifiers.charts.style import ACCENT, INK, MARKS, VARIABLES, marks_of
from classifiers.data.features import Source
from classifiers.results.metrics import Predictions, confusion_matrix, expected_calibration_error
from classifiers.results.result import FoldInfo, Result
from extractor import SettingsError, StoreError

BASE_STYLE = Path(classifiers.__file__).parent / "report" / "static" / "base.css"


def test_a_class_without_rows_has_no_curve() -> None:
    """Nor has a class that all rows are of a ROC; it stands in the legend all the same."""
    proba = np.random.default_rng(0).dirichlet(np.ones(3), 6)
    one, two = np.zeros(6, int), np.arange(6) % 2
    for draw, y_true, expected in ((plots.roc, one, 3), (plots.pr, one, 2), (plots.pr, two, 1)):
        labels = draw(y_true, proba, ("a", "b", "c")).legends[0].get_texts()
        assert sum("(no rows)" in label.get_text() for label in labels) == expected


def test_curves_are_drawn_through_their_points_with_their_areas() -> None:
    """Scores of 4 rows by hand: one of the two that are of the class is found first, then one that is not."""
    y, score = np.array([0, 0, 1, 1]), np.array([0.9, 0.4, 0.6, 0.1])
    proba = np.stack([score, 1 - score], axis=1)
    roc, pr = plots.roc(y, proba, ("a", "b")), plots.pr(y, proba, ("a", "b"))
    np.testing.assert_allclose(
        roc.axes[0].lines[1].get_xydata(), [[0, 0], [0, 0.5], [0.5, 0.5], [0.5, 1], [1, 1]]
    )
    np.testing.assert_allclose(
        pr.axes[0].lines[0].get_xydata()[:4], [[0, 1], [0.5, 1], [0.5, 0.5], [1, 2 / 3]]
    )
    labels = [figure.legends[0].get_texts()[0].get_text() for figure in (roc, pr)]
    assert labels == ["a (AUC 0.750)", "a (AP 0.833)"]


def test_reliability_adds_up_to_the_calibration_error() -> None:
    p = made_up_result(num_rows=500).predictions[0]
    axes, below = plots.reliability_diagram(p.y_true, p.proba).axes
    confidence, right = axes.lines[1].get_data()
    count = np.array([bar.get_height() for bar in below.patches])
    assert count.sum() == 500
    gap = np.nansum(count * np.abs(right - confidence)) / 500
    # Sums of a few hundred shares in float64, in another order.
    assert gap == pytest.approx(expected_calibration_error(p.y_true, p.proba), abs=1e-12)
    assert axes.texts[0].get_text() == f"ECE {gap:.3f}"
    filled = count > 0
    assert np.isnan(right[~filled]).all() and (~filled).any()
    edges = np.array([bar.get_x() for bar in below.patches])
    assert ((confidence > edges) & (confidence <= edges + 1 / len(edges)))[filled].all()


# Colours, markers, lines


def test_classes_differ_without_their_colours() -> None:
    for a, b in combinations(MARKS.values(), 2):
        assert a.marker != b.marker
        assert a.dash != b.dash
        assert a.colour != b.colour


def test_classes_that_are_no_common_emotion_take_marks_that_are_left() -> None:
    marks = marks_of(["anger", "Wut", "Freude"])
    assert marks[0] is MARKS["anger"]
    assert len({mark.name for mark in marks}) == 3
    assert len(marks_of([str(k) for k in range(25)])) == 25


def test_colours_are_those_of_the_pages() -> None:
    """In the light scheme; a chart of the report is then dark by exchanging them by name."""
    light = BASE_STYLE.read_text().split("@media", 1)[0]
    written = dict(re.findall(r"(--[\w-]+): (#[0-9a-f]{6});", light))
    for colour, variable in VARIABLES.items():
        assert written[variable[len("var(") : -1]] == colour


# Charts


def drawn(figure: object) -> bytes:
    data = plots.to_bytes(figure, "png")  # type: ignore[arg-type]
    assert data.startswith(b"\x89PNG")
    return data


def test_every_chart_is_drawn_without_a_warning_and_leaves_matplotlib_as_it_was() -> None:
    before = dict(mpl.rcParams)
    result = made_up_result(seeds=(0, 1))
    history = [
        {"epoch": e, "train_loss": 1 / e, "val_loss": 1.0, "val_ua": 0.5, "lr": 1e-3} for e in (1, 2, 3)
    ]
    folds = [
        FoldInfo("a", 30, 30, None, {}, history, [0.2, 0.3, 0.5]),
        FoldInfo("b", 30, 30, None, {}, history[:2], [0.1, 0.4, 0.5]),
    ]
    result = Result(result.config, result.classes, result.ids, [0, 1], result.predictions, [folds, folds])
    charts = charts_of(result, (0, 6, 12))
    assert set(charts) == set(TITLES)
    for draw in charts.values():
        drawn(draw())
    drawn(plots.layer_scores([0, 1], {"mean": [(0.5, 0.4, 0.6), (0.6, 0.5, 0.7)]}, 0.25))
    drawn(plots.intervals({"a": (0.5, 0.4, 0.6)}, [0.25]))
    drawn(plots.stability({"gain": [(0, 1.0, 1.0), (1, 0.9, 0.8)]}))
    drawn(plots.transfer_map(np.array([[0.5, np.nan]]), ["a"], ["a", "b"], 0.25))
    assert dict(mpl.rcParams) == before


def test_charts_are_the_same_for_the_same_result() -> None:
    result = made_up_result()
    for name, draw in charts_of(result).items():
        one, other = (plots.to_bytes(draw(), "svg", metadata={"Date": None}) for _ in range(2))
        assert one == other, name


def test_degenerate_results_are_drawn() -> None:
    """A class that nobody is of; one row; a history of NaN and of one epoch; many long names."""
    one = Predictions(np.array([0]), np.array([0]), np.array([0]), np.array([[1.0, 0.0, 0.0]], np.float32))
    nan = [{"epoch": 1, "train_loss": float("nan"), "val_loss": 0.5}]
    folds = [[FoldInfo("f", 1, 1, history=nan)]]
    result = Result({}, ("a", "b", "a very long name of a class"), ["x"], [0], [one], folds)
    for draw in charts_of(result).values():
        drawn(draw())
    many = tuple(f"class number {k}" for k in range(12))
    wide = made_up_result(many, num_rows=120)
    for draw in charts_of(wide).values():
        drawn(draw())


def test_a_confusion_matrix_says_share_and_count_of_every_cell() -> None:
    classes = ("a", "b", "c")
    confusion = confusion_matrix(np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1]), 3)
    figure = plots.confusion_matrix(confusion, classes)
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts[0::2] == ["67", "33", "0", "0", "100", "0", "-", "-", "-"]  # nobody is of c
    assert texts[1::2] == ["2", "1", "0", "0", "1", "0", "0", "0", "0"]
    dark = [text for text in figure.axes[0].texts[0::2] if text.get_color() != INK]
    assert [text.get_text() for text in dark] == ["67", "100"]
    assert {patch.get_facecolor()[:3] for patch in figure.axes[0].patches} == {mpl.colors.to_rgb(ACCENT)}


# Projection


def test_a_projection_that_cannot_be_done_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="unknown projection 'tsne'; known: "):
        choose_projection("tsne", 100)
    monkeypatch.setattr("classifiers.charts.projection.find_spec", lambda _: object())
    with pytest.raises(SettingsError, match="needs 16 rows, there are 15; take pca"):
        choose_projection("umap", 15)
    assert [choose_projection(None, n) for n in (15, 16)] == ["pca", "umap"]
    monkeypatch.setattr("classifiers.charts.projection.find_spec", lambda _: None)
    with pytest.raises(SettingsError, match=r"hser\[serve\]"):
        choose_projection("umap", 100)
    assert choose_projection(None, 100) == "pca"


@pytest.mark.parametrize("shape", [(60, 8), (20, 50), (4, 1), (3, 5)])
def test_principal_components_are_scikit_learns(shape: tuple[int, int]) -> None:
    vectors = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    made = PROJECTIONS["pca"](vectors).points
    rank = min(2, shape[1], shape[0] - 1)
    expected = PCA(rank).fit_transform(vectors.astype(np.float64))
    # Signs are arbitrary. float32 of the result, and half of the digits where a Gram matrix is taken.
    np.testing.assert_allclose(np.abs(made[:, :rank]), np.abs(expected), atol=1e-5)
    np.testing.assert_allclose(made[:, rank:], 0, atol=1e-5)
    np.testing.assert_array_equal(made, PROJECTIONS["pca"](vectors).points)


def test_umap_keeps_groups_apart_and_is_the_same_again() -> None:
    rng = np.random.default_rng(0)
    vectors = np.concatenate([rng.standard_normal((30, 6)) + 20 * k for k in range(2)]).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = PROJECTIONS["umap"](vectors, 3).points
    assert made.shape == (60, 3)
    distance = np.linalg.norm(made[:, None] - made[None], axis=2) + np.where(
        np.eye(60, dtype=bool), np.inf, 0
    )
    assert ((distance.argmin(axis=1) < 30) == (np.arange(60) < 30)).all()
    np.testing.assert_array_equal(made, PROJECTIONS["umap"](vectors, 3).points)


def test_a_projection_is_of_the_layers_that_the_model_takes(tmp_path: Path) -> None:
    """Only layer 1 tells the emotions apart: by its weight, or by its number, they lie apart."""
    rows = corpus(takes=8, num_layers=3, signal_layer=1, signal=6.0, speakers_apart=0.0)
    run = str(write_run(tmp_path / "run", rows))
    emotion = np.array([label["emotion"] for label in rows.labels])

    def purity(projection: Picture) -> float:
        distance = np.linalg.norm(projection.points3[:, None] - projection.points3[None], axis=2)
        np.fill_diagonal(distance, np.inf)
        return float((emotion[distance.argmin(axis=1)] == emotion).mean())

    by_number = project_rows([Source(run, "mean", (1,))], rows.ids, method="pca")
    by_weight = project_rows([Source(run, "mean", "all")], rows.ids, [0.0, 1.0, 0.0], "pca")
    np.testing.assert_allclose(by_weight.points2, by_number.points2, atol=1e-4)  # float32 sums
    other = project_rows([Source(run, "mean", (0,))], rows.ids, method="pca")
    assert purity(by_number) == 1.0
    assert purity(other) < 0.6


def test_of_many_rows_a_sample_is_drawn(tmp_path: Path) -> None:
    rows = corpus(num_speakers=2, takes=MAX_POINTS // 8 + 10, dim=2)
    run = str(write_run(tmp_path / "run", rows))
    assert len(rows.ids) > MAX_POINTS
    made = project_rows([Source(run, "mean", (0,))], rows.ids, method="pca")
    assert len(made.ids) == len(set(made.ids)) == MAX_POINTS
    order = {name: k for k, name in enumerate(rows.ids)}
    assert [order[name] for name in made.ids] == sorted(order[name] for name in made.ids)
    with pytest.raises(StoreError, match="has no row 'nobody'"):
        project_rows([Source(run, "mean", (0,))], ["nobody"], method="pca")


def test_a_projection_reads_as_it_was_written(tmp_path: Path) -> None:
    points = np.random.default_rng(0).standard_normal((3, 3)).astype(np.float32)
    ids = ["a,b", 'quote"', "not utf-8 \udcff\nnew line"]
    write_projection(Picture("umap", ids, points[:, :2], points), tmp_path / "p.csv")
    read = read_projection(tmp_path / "p.csv")
    assert (read.ids, read.method) == (ids, "umap")
    np.testing.assert_allclose(read.points3, points, rtol=1e-4)  # five digits are written
    (tmp_path / "p.csv").write_text("id,method,x2,y2,x3,y3,z3\na,umap,nan,0,0,0,0\n")
    with pytest.raises(StoreError, match=r"p\.csv"):
        read_projection(tmp_path / "p.csv")


def test_many_classes_leave_their_axes_room(recwarn: pytest.WarningsRecorder) -> None:
    classes = [f"actor {k}" for k in range(50)]
    y = np.arange(500) % 50
    proba = np.random.default_rng(0).dirichlet(np.ones(50), 500)
    for figure in (plots.roc(y, proba, classes), plots.pr(y, proba, classes)):
        plots.to_bytes(figure, "png")
        (axes,) = figure.axes
        assert axes.get_position().height * figure.get_figheight() > 1.5  # inches
    whole = plots.confusion_matrix(np.eye(50, dtype=int), classes)
    plots.to_bytes(whole, "png")
    assert whole.axes[0].get_position().width * whole.get_figwidth() / 50 > 0.2  # a cell holds "100"
    assert not [each for each in recwarn if "constrained_layout" in str(each.message)]
