"""The charts: a function a chart, each returns a matplotlib figure in one style.

Small on purpose: a chart fills a phone's width with letters of a readable size. Classes differ in
marker and line as well as in colour (`style`), cells of a matrix carry their numbers: all are read as
well in grey. Colours are those of `style.VARIABLES`, so that a page can exchange them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from classifiers.charts.style import (
    ACCENT,
    FONT_SIZE,
    HEIGHT,
    INK,
    MARKS,
    ON_ACCENT,
    SOFT,
    WIDTH,
    captioned,
    chart,
    legend_below,
    marks_of,
    short,
    to_bytes,
    write_png,
)
from classifiers.results import metrics
from classifiers.results.metrics import ECE_BINS, confidence_bins, expected_calibration_error
from extractor.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from classifiers.lookup.evaluation import Evaluation
    from classifiers.results.result import Result

__all__ = ["captioned", "to_bytes", "write_png"]  # beside the charts

MOST_TICKS = 13  # numbers on the axis of layers
DARK_CELL = 0.55  # share from which a cell's number is written in light

Curve = tuple[np.ndarray, np.ndarray, float]  # x and y of its points; the area that goes by it


@chart
def confusion_matrix(figure: Figure, confusion: np.ndarray, classes: Sequence[str]) -> None:
    """``confusion``: counts [C, C], rows true. Cells show the share of their row and the count."""
    from matplotlib.patches import Rectangle

    total = confusion.sum(axis=1, keepdims=True)
    share = np.divide(confusion, total, out=np.full(confusion.shape, np.nan), where=total > 0)
    size = len(classes)
    figure.set_size_inches(max(WIDTH, 1.1 + 0.3 * size), 1.1 + 0.34 * max(size, 4))
    axes = figure.add_subplot()
    small = FONT_SIZE - (1.5 if size > 6 else 0.5)
    centred: dict[str, Any] = {"ha": "center", "va": "center"}
    for (row, column), value in np.ndenumerate(share):
        alpha = float(np.nan_to_num(value))
        axes.add_patch(
            Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=ACCENT, alpha=alpha, edgecolor="none")
        )
        colour = ON_ACCENT if alpha > DARK_CELL else INK
        text, count = f"{100 * value:.0f}" if np.isfinite(value) else "-", f"{int(confusion[row, column])}"
        # Two texts, not one of two lines: single lines stay centred in whatever font a page has.
        axes.text(column, row - 0.17, text, fontsize=small, color=colour, **centred)
        axes.text(column, row + 0.24, count, fontsize=small - 2, color=colour, **centred)
    names = [short(name) for name in classes]
    axes.set_xticks(range(size), names, rotation=90 if size > 4 else 0, fontsize=small)
    axes.set_yticks(range(size), names, fontsize=small)
    axes.set(xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5), ylabel="true")
    axes.set(xlabel="predicted (% of the row, below it recordings)")
    axes.grid(False)
    axes.set_xticks(np.arange(size + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(size + 1) - 0.5, minor=True)
    axes.grid(True, which="minor", linewidth=0.5)
    axes.tick_params(which="minor", length=0)


@chart
def roc(figure: Figure, y_true: np.ndarray, proba: np.ndarray, classes: Sequence[str]) -> None:
    """One class against the rest, all classes. y_true: int [M]; proba: float [M, C]."""
    from sklearn.metrics import auc, roc_curve

    curves: list[Curve | None] = []
    for code, score in enumerate(proba.T):
        positive, curve = y_true == code, None
        if positive.any() and not positive.all():
            x, y, _ = roc_curve(positive, score, drop_intermediate=False)
            curve = x, y, float(auc(x, y))
        curves.append(curve)
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color=SOFT, linewidth=0.8, linestyle=":")
    axes.set(xlabel="false positive rate", ylabel="true positive rate")
    _draw_curves(figure, axes, curves, classes, "AUC", "default")


@chart
def pr(figure: Figure, y_true: np.ndarray, proba: np.ndarray, classes: Sequence[str]) -> None:
    """Recall against precision of every class. y_true: int [M]; proba: float [M, C].

    The area is the average precision: trapezia would be too kind (Davis and Goadrich 2006).
    """
    from sklearn.metrics import average_precision_score, precision_recall_curve

    curves: list[Curve | None] = []
    for code, score in enumerate(proba.T):
        positive, curve = y_true == code, None
        if positive.any():
            precision, recall, _ = precision_recall_curve(positive, score)
            curve = recall[::-1], precision[::-1], float(average_precision_score(positive, score))
        curves.append(curve)
    axes = figure.add_subplot()
    axes.set(xlabel="recall", ylabel="precision")
    _draw_curves(figure, axes, curves, classes, "AP", "steps-pre")


def _draw_curves(
    figure: Figure,
    axes: Axes,
    curves: Sequence[Curve | None],
    classes: Sequence[str],
    area: str,
    steps: Any,
) -> None:
    for curve, name, mark in zip(curves, classes, marks_of(classes), strict=True):
        x, y, value = curve or (np.zeros(0), np.zeros(0), None)
        label = f"{short(name)} (no rows)" if value is None else f"{short(name)} ({area} {value:.3f})"
        axes.plot(x, y, color=mark.colour, linestyle=mark.dash, label=label, linewidth=1.4, drawstyle=steps)
    axes.set(xlim=(0, 1), ylim=(0, 1.01))
    legend_below(figure, axes)


@chart
def reliability_diagram(figure: Figure, y_true: np.ndarray, proba: np.ndarray) -> None:
    """Confidence against the share that is right, in bins of equal width, and how many rows each has."""
    number, confidence, right = confidence_bins(y_true, proba)
    edges, width = np.linspace(0, 1, ECE_BINS, endpoint=False), 1 / ECE_BINS
    count = np.bincount(number, minlength=ECE_BINS)
    empty = np.full(ECE_BINS, np.nan)
    mean, share = (
        np.divide(np.bincount(number, of, minlength=ECE_BINS), count, out=empty.copy(), where=count > 0)
        for of in (confidence, right)
    )
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    axes.plot([0, 1], [0, 1], color=SOFT, linewidth=0.8, linestyle=":")
    # An empty bin has no bar.
    axes.bar(edges, np.nan_to_num(share), width, align="edge", color=ACCENT, alpha=0.35)
    axes.plot(mean, share, color=ACCENT, marker="o", markersize=3.5, linewidth=1)
    axes.text(0.03, 0.92, f"ECE {expected_calibration_error(y_true, proba):.3f}")
    axes.set(xlim=(0, 1), ylim=(0, 1), ylabel="share right")
    below.bar(edges, count, width, align="edge", color=SOFT)
    below.set(xlabel="confidence", ylabel="rows")


# What is drawn of a history: its name, its label, dash and colour; by the title of its axes.
_TRAINING = {
    "loss": (
        ("train_loss", "training", "solid", MARKS["sadness"].colour),
        ("val_loss", "validation", "dashed", MARKS["anger"].colour),
    ),
    "UA": (("val_ua", "validation", "dashed", MARKS["anger"].colour),),
}


@chart
def training_curves(figure: Figure, histories: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
    """Losses, and the UA on validation rows, over epochs; each fold thin, their mean thick.

    A fold that has stopped counts with its last value, and a dot says where that was: a mean of those
    that still run would jump where the good ones end.
    """
    figure.set_figheight(HEIGHT + 0.6)
    found = {
        name: [curve for history in histories.values() if (curve := _curve(history, name))]
        for name in ("train_loss", "val_loss", "val_ua")
    }
    shown = [title for title, lines in _TRAINING.items() if any(found[name] for name, *_ in lines)]
    every = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
    for axes, title in zip(every, shown, strict=True):
        for name, label, dash, colour in _TRAINING[title]:
            for curve in found[name]:
                axes.plot(*zip(*curve, strict=True), color=colour, alpha=0.25, linewidth=0.7, linestyle=dash)
                axes.plot(*curve[-1], color=colour, alpha=0.5, marker="o", markersize=2.5)
            axes.plot(*_mean(found[name]), color=colour, linewidth=2, linestyle=dash, label=label)
        axes.set(ylabel=title)
        axes.legend(loc="best")
    every[-1].set(xlabel="epoch")
    every[-1].xaxis.get_major_locator().set_params(integer=True)


def _curve(history: Sequence[Mapping[str, float]], name: str) -> list[tuple[float, float]]:
    """Epoch and value, of the epochs that have one."""
    values = [(row["epoch"], row[name]) for row in history if row.get(name) is not None]
    return [(epoch, value) for epoch, value in values if np.isfinite(value)]


def _mean(curves: Sequence[Sequence[tuple[float, float]]]) -> tuple[list[float], list[float]]:
    """Over all folds in every epoch; behind its last one a fold keeps the value that it had there."""
    epochs = sorted({epoch for curve in curves for epoch, _ in curve})
    held = [np.interp(epochs, [at for at, _ in curve], [value for _, value in curve]) for curve in curves]
    return epochs, np.mean(held, axis=0).tolist() if held else []


@chart
def layer_weights(
    figure: Figure, weights: np.ndarray, layers: Sequence[int], model: np.ndarray | None = None
) -> None:
    """Learned weights of layers: bars of the saved model, each fold's fit as a dot.

    ``weights``: float [F, L] of the folds; ``model``: float [L], None where they are not at hand: then
    the bars are the folds' mean.
    """
    figure.set_figheight(2.6)
    axes = figure.add_subplot()
    place = np.arange(len(layers))
    axes.bar(place, weights.mean(axis=0) if model is None else model, color=ACCENT, alpha=0.55)
    axes.set_title("bars: mean over the folds" if model is None else "bars: the saved model; dots: the folds")
    if len(weights) > 1 or model is not None:
        x = np.tile(place, len(weights))
        axes.plot(x, weights.ravel(), linestyle="none", marker="o", markersize=2, color=INK, alpha=0.5)
    axes.axhline(1 / len(layers), color=SOFT, linestyle=":", linewidth=0.8)
    axes.text(len(layers) - 0.5, 1 / len(layers), "equal", ha="right", va="bottom", color=SOFT)
    axes.set_xticks(_some(place), [str(layer) for layer in _some(layers)])
    axes.set(xlabel="layer", ylabel="weight", ylim=(0, None))
    axes.grid(False, axis="x")


def _some(ticks: Sequence[Any] | np.ndarray) -> Any:
    """Every so many, where not all of them have room."""
    return ticks[:: -(-len(ticks) // MOST_TICKS)]


def _lines(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """How the lines of something other than classes are drawn, by name: each differs from the others."""
    each = list(names)
    return {
        name: {"color": mark.colour, "linestyle": mark.dash, "marker": mark.marker, "markersize": 4}
        for name, mark in zip(each, marks_of([str(k) for k in range(len(each))]), strict=True)
    }


@chart
def layer_scores(
    figure: Figure,
    layers: Sequence[int],
    scores: Mapping[str, Sequence[tuple[float, float, float]]],
    chance: float,
) -> None:
    """UA of each layer with its interval. ``scores``: by pooling, (value, low, high) of each layer."""
    axes = figure.add_subplot()
    for name, line in _lines(scores).items():
        value, low, high = (100 * np.array(each) for each in zip(*scores[name], strict=True))
        axes.fill_between(layers, low, high, color=line["color"], alpha=0.15, linewidth=0)
        axes.plot(layers, value, label=name, **line)
    label = f"guessing, {100 * chance:.0f} %"
    axes.axhline(100 * chance, color=SOFT, linestyle=":", linewidth=0.8, label=label)
    axes.set(xlabel="layer", ylabel="UA, %")
    axes.set_xticks(_some(layers))
    legend_below(figure, axes)


@chart
def neighbour_scores(figure: Figure, evaluation: Evaluation) -> None:
    """UA, WA, macro-F1 and precision@k of nearest neighbours over the layers, with the UA of guessing."""
    figure.set_size_inches(8.4, 4.2)
    axes = figure.add_subplot()
    scores = sorted(evaluation.layers, key=lambda score: score.layer)
    layers = [score.layer for score in scores]
    labels = {"ua": "UA", "wa": "WA", "macro_f1": "macro-F1", "precision_at_k": f"precision@{evaluation.k}"}
    for name, line in _lines(labels).items():
        axes.plot(layers, [100 * getattr(score, name) for score in scores], label=labels[name], **line)
    axes.lines[0].set(linewidth=2.5, zorder=3)  # UA is what layers are compared by
    chance = 100 / len(evaluation.emotions)
    axes.axhline(chance, color=SOFT, linestyle=":", label=f"guessing, UA {chance:.0f} %")
    axes.set(xlabel=f"layer of {evaluation.encoder}, pooling {evaluation.pooling}", ylabel="%")
    axes.set(ylim=(0, 100), xlim=(layers[0] - 0.5, layers[-1] + 0.5))
    axes.set_title(
        f"{evaluation.k} nearest neighbours, leave one {evaluation.leave_out} out of {evaluation.groups:,},"
        f" {evaluation.queries:,} recordings,\nnormalisation {evaluation.normalisation}"
        + (f"\n{evaluation.caution}" if evaluation.caution else "")
    )
    axes.set_xticks(_some(layers))
    figure.legend(loc="outside right upper")


def write_chart(evaluation: Evaluation, path: str | PathLike[str]) -> None:
    """`neighbour_scores` as a PNG. Raises InputError where it cannot be written."""
    try:
        Path(path).write_bytes(to_bytes(neighbour_scores(evaluation), "png", dpi=150, facecolor="white"))
    except OSError as error:
        raise InputError(f"{path}: the chart cannot be written: {error.strerror}") from error


@chart
def transfer_map(
    figure: Figure, ua: np.ndarray, trained: Sequence[str], tested: Sequence[str], chance: float
) -> None:
    """``ua [R, C]``: of each training corpus (rows) on each tested one (columns); NaN where there is none."""
    figure.set_size_inches(2.4 + 1.1 * len(tested), 1.6 + 0.6 * len(trained))
    axes = figure.add_subplot()
    axes.imshow(ua, cmap="cividis_r", vmin=chance, vmax=1, aspect="auto")
    for (i, k), share in np.ndenumerate(ua):
        if np.isfinite(share):
            colour = "white" if (share - chance) / (1 - chance) > 0.5 else INK
            weight = "bold" if trained[i] == tested[k] else "normal"
            text = f"{100 * share:.1f}"
            axes.text(k, i, text, ha="center", va="center", color=colour, fontweight=weight)
    axes.set_xticks(range(len(tested)), tested, rotation=20, ha="right")
    axes.set_yticks(range(len(trained)), trained)
    axes.set(xlabel="tested", ylabel="trained on")
    axes.set_title(f"UA, %; guessing {100 * chance:.0f} %\nbold: own corpus by its own protocol")
    axes.grid(False)


@chart
def stability(figure: Figure, scores: Mapping[str, Sequence[tuple[int, float, float]]]) -> None:
    """Over the layers a line each kind of augmentation.

    ``scores``: by kind, (layer, mean cosine over recordings, linear CKA) each.
    """
    figure.set_size_inches(8.4, 3.6)
    cosine, cka = figure.subplots(1, 2, sharex=True)
    for kind, line in _lines(scores).items():
        layers, mean, value = zip(*scores[kind], strict=True)
        cosine.plot(layers, mean, label=kind, **line)
        cka.plot(layers, value, **line)
    cosine.set(xlabel="layer", ylabel="cosine, mean over recordings")
    cka.set(xlabel="layer", ylabel="linear CKA")
    figure.legend(loc="outside upper center", ncols=3, handlelength=2.4)


@chart
def intervals(
    figure: Figure,
    values: Mapping[str, tuple[float, float, float]],
    chance: Sequence[float],
    of: Sequence[str] = (),
) -> None:
    """UA of several models with its interval: value, low, high by name; the level of guessing for each.

    ``of``: what each is of, written below its interval.
    """
    figure.set_figheight(0.8 + (0.48 if of else 0.32) * len(values))
    axes = figure.add_subplot()
    for place, words in enumerate(of):
        axes.text(1, place + 0.38, short(words, 60), fontsize=FONT_SIZE - 2.5, color=SOFT)
    for place, ((value, low, high), guess) in enumerate(zip(values.values(), chance, strict=True)):
        axes.plot([100 * low, 100 * high], [place, place], color=ACCENT, linewidth=1.6)
        axes.plot([100 * value], [place], color=ACCENT, marker="o", markersize=5)
        axes.plot([100 * guess], [place], color=SOFT, marker="|", markersize=10)
        axes.text(100 * value, place - 0.14, f"{100 * value:.1f}", ha="center", va="bottom")
    axes.set_yticks(range(len(values)), [short(name) for name in values])
    axes.set(xlim=(0, 100), ylim=(len(values) - 0.5, -0.7), xlabel="UA, % (bar: guessing)")
    axes.grid(False, axis="y")


@chart
def embedding_map(
    figure: Figure, points: np.ndarray, codes: np.ndarray, classes: Sequence[str], method: str
) -> None:
    """``points``: float [N, 2], ``codes``: int [N], ``method``: what made them two dimensions."""
    figure.set_figheight(HEIGHT + 0.6)
    axes = figure.add_subplot()
    size = float(np.clip(4000 / max(len(points), 1), 2, 18))
    for code, (name, mark) in enumerate(zip(classes, marks_of(classes), strict=True)):
        edge = 0.8 if mark.marker == "_" else 0
        style: dict[str, Any] = {"s": size, "marker": mark.marker, "color": mark.colour, "linewidths": edge}
        x, y = points[codes == code].T
        axes.scatter(x, y, alpha=0.75, label=short(name), **style)
    axes.set(xticks=[], yticks=[], xlabel=f"{method}, {len(points):,} recordings")
    axes.grid(False)
    for handle in legend_below(figure, axes, columns=4).legend_handles:
        handle.set_sizes([18])


# Which charts a result has

TITLES = {
    "confusion_matrix": "Confusion matrix",
    "roc": "ROC curves, one class against the rest",
    "pr": "Precision and recall",
    "reliability": "Reliability: is it as often right as it is sure?",
    "training_curves": "Training: each fold thin, a dot where it stopped; their mean thick, a stopped fold"
    " counting with its last value",
    "layer_weights": "Learned weights of the layers",
}


def charts_of(
    result: Result, layers: Sequence[int] = (), model: Sequence[float] | None = None
) -> Mapping[str, Callable[[], Figure]]:
    """The charts of a result by file name, drawn when asked for. Predictions of all seeds together.

    The same for a model's folder, as PNG, and for the report, as SVG.

    ``layers``: numbers of those that are weighted, if any are; ``model``: the saved model's weights of them.
    """
    y_true, proba = result.tested()
    confusion = metrics.confusion_matrix(y_true, proba.argmax(axis=1), len(result.classes))
    charts: dict[str, Callable[[], Figure]] = {
        "confusion_matrix": partial(confusion_matrix, confusion, result.classes),
        "roc": partial(roc, y_true, proba, result.classes),
        "pr": partial(pr, y_true, proba, result.classes),
        "reliability": partial(reliability_diagram, y_true, proba),
    }
    if histories := result.histories():
        charts["training_curves"] = partial(training_curves, histories)
    weights = [fold.layer_weights for folds in result.folds for fold in folds if fold.layer_weights]
    if weights:
        array = np.array(weights)
        names = list(layers) if len(layers) == array.shape[1] else list(range(array.shape[1]))
        own = None if model is None else np.array(model)
        charts["layer_weights"] = partial(layer_weights, array, names, own)
    return charts
