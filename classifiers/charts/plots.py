"""Charts of what an experiment found: a function a chart, each returns a matplotlib figure.

Small on purpose: a chart fills a phone's width with letters of a readable size. Classes differ in
marker and line as well as in colour (`marks`), cells of a matrix carry their numbers: all are read as
well in grey. Colours are those of `marks.VARIABLES`, so that a page can exchange them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

import numpy as np

from classifiers.charts.curves import Curve, pr_curve, reliability, roc_curve
from classifiers.charts.marks import ACCENT, INK, LINE, MARKS, ON_ACCENT, SOFT, marks_of
from classifiers.results.metrics import expected_calibration_error
from extractor.store.aside import aside

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 4.2  # inches
HEIGHT = 3.4
FONT_SIZE = 9  # points
PNG_DPI = 200
LEGEND_COLUMNS = 2
LEGEND_ROW = 0.17  # inches
USUAL_ROWS = 4  # of a legend, that HEIGHT holds
MOST_TICKS = 13
DARK_CELL = 0.55  # share from which a cell's number is written in light

STYLE: dict[str, Any] = {
    "font.size": FONT_SIZE,
    "axes.titlesize": FONT_SIZE,
    "legend.fontsize": FONT_SIZE - 1,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": SOFT,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": LINE,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "svg.fonttype": "none",  # letters stay letters: they can be read aloud, and take the page's font
    "svg.hashsalt": "hser",  # the same figure is the same file
}


Args = ParamSpec("Args")


def _styled(draw: Callable[Args, Figure]) -> Callable[Args, Figure]:
    """In `STYLE`, whatever matplotlib's settings are, and leaving them as they are."""

    @functools.wraps(draw)
    def styled(*args: Args.args, **kwargs: Args.kwargs) -> Figure:
        from matplotlib import rc_context

        with rc_context(STYLE):
            return draw(*args, **kwargs)

    return styled


@_styled
def confusion_matrix(confusion: np.ndarray, classes: Sequence[str]) -> Figure:
    """``confusion``: counts [C, C], rows true. Cells show the share of their row and the count."""
    from matplotlib.patches import Rectangle

    total = confusion.sum(axis=1, keepdims=True)
    share = np.divide(confusion, total, out=np.full(confusion.shape, np.nan), where=total > 0)
    size = len(classes)
    figure, axes = _figure(height=1.1 + 0.34 * max(size, 4), width=max(WIDTH, 1.1 + 0.3 * size))
    small = FONT_SIZE - (1.5 if size > 6 else 0.5)
    for (row, column), value in np.ndenumerate(share):
        alpha = float(np.nan_to_num(value))
        axes.add_patch(
            Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=ACCENT, alpha=alpha, edgecolor="none")
        )
        colour = ON_ACCENT if alpha > DARK_CELL else INK
        text = f"{100 * value:.0f}" if np.isfinite(value) else "-"
        # Two texts, not one of two lines: single lines stay centred in whatever font a page has.
        axes.text(column, row - 0.17, text, ha="center", va="center", fontsize=small, color=colour)
        axes.text(
            column, row + 0.24, f"{int(confusion[row, column])}", ha="center", va="center",
            fontsize=small - 2, color=colour,
        )  # fmt: skip
    names = [_short(name) for name in classes]
    axes.set_xticks(range(size), names, rotation=90 if size > 4 else 0, fontsize=small)
    axes.set_yticks(range(size), names, fontsize=small)
    axes.set(xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5), ylabel="true")
    axes.set(xlabel="predicted (% of the row, below it recordings)")
    axes.grid(False)
    axes.set_xticks(np.arange(size + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(size + 1) - 0.5, minor=True)
    axes.grid(True, which="minor", linewidth=0.5)
    axes.tick_params(which="minor", length=0)
    return figure


@_styled
def roc(y_true: np.ndarray, proba: np.ndarray, classes: Sequence[str]) -> Figure:
    """One class against the rest, all classes. y_true: int [M]; proba: float [M, C]."""
    figure, axes = _figure()
    axes.plot([0, 1], [0, 1], color=SOFT, linewidth=0.8, linestyle=":")
    curves = [roc_curve(y_true == code, proba[:, code]) for code in range(len(classes))]
    _draw_curves(axes, curves, classes, "AUC", "default")
    axes.set(xlabel="false positive rate", ylabel="true positive rate", xlim=(0, 1), ylim=(0, 1.01))
    _legend(axes)
    return figure


@_styled
def pr(y_true: np.ndarray, proba: np.ndarray, classes: Sequence[str]) -> Figure:
    """Recall against precision of every class. y_true: int [M]; proba: float [M, C]."""
    figure, axes = _figure()
    curves = [pr_curve(y_true == code, proba[:, code]) for code in range(len(classes))]
    _draw_curves(axes, curves, classes, "AP", "steps-pre")
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.01))
    _legend(axes)
    return figure


def _draw_curves(
    axes: Axes, curves: Sequence[Curve | None], classes: Sequence[str], area: str, steps: Any
) -> None:
    for curve, name, mark in zip(curves, classes, marks_of(classes), strict=True):
        label = f"{_short(name)} ({area} {curve.area:.3f})" if curve else f"{_short(name)} (no rows)"
        x, y = (curve.x, curve.y) if curve else (np.zeros(0), np.zeros(0))
        axes.plot(x, y, color=mark.colour, linestyle=mark.dash, label=label, linewidth=1.4, drawstyle=steps)


@_styled
def reliability_diagram(y_true: np.ndarray, proba: np.ndarray) -> Figure:
    """Confidence against the share that is right, and how many rows have it. As `roc`."""
    found = reliability(y_true, proba)
    width = np.diff(found.edges)
    figure = _empty(HEIGHT)
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    axes.plot([0, 1], [0, 1], color=SOFT, linewidth=0.8, linestyle=":")
    axes.bar(
        found.edges[:-1], np.nan_to_num(found.right), width, align="edge", color=ACCENT, alpha=0.35
    )  # an empty bin has no bar
    axes.plot(found.confidence, found.right, color=ACCENT, marker="o", markersize=3.5, linewidth=1)
    axes.text(0.03, 0.92, f"ECE {expected_calibration_error(y_true, proba):.3f}")
    axes.set(xlim=(0, 1), ylim=(0, 1), ylabel="share right")
    below.bar(found.edges[:-1], found.count, width, align="edge", color=SOFT)
    below.set(xlabel="confidence", ylabel="rows")
    return figure


@_styled
def training_curves(histories: Mapping[str, Sequence[Mapping[str, float]]]) -> Figure:
    """Losses, and the UA on validation rows, over epochs; each fold thin, their mean thick.

    A fold that has stopped counts with its last value, and a dot says where that was: a mean of those
    that still run would jump where the good ones end.
    """
    figure = _empty(HEIGHT + 0.6)
    shown = [
        [("train_loss", "training", "solid"), ("val_loss", "validation", "dashed")],
        [("val_ua", "validation", "dashed")],
    ]
    shown = [
        group for group in shown if any(_curve(h, name) for h in histories.values() for name, *_ in group)
    ]
    every = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
    for axes, group, title in zip(every, shown, ("loss", "UA"), strict=False):
        for (name, label, dash), colour in zip(group, _TRAINING_COLOURS[title], strict=True):
            curves = [curve for h in histories.values() if (curve := _curve(h, name))]
            for curve in curves:
                axes.plot(*zip(*curve, strict=True), color=colour, alpha=0.25, linewidth=0.7, linestyle=dash)
                axes.plot(*curve[-1], color=colour, alpha=0.5, marker="o", markersize=2.5)
            axes.plot(*_mean(curves), color=colour, linewidth=2, linestyle=dash, label=label)
        axes.set(ylabel=title)
        axes.legend(loc="best")
    every[-1].set(xlabel="epoch")
    every[-1].xaxis.get_major_locator().set_params(integer=True)
    return figure


_TRAINING_COLOURS = {
    "loss": (MARKS["sadness"].colour, MARKS["anger"].colour),
    "UA": (MARKS["anger"].colour,),
}


def _curve(history: Sequence[Mapping[str, float]], name: str) -> list[tuple[float, float]]:
    """Epoch and value, of the epochs that have one."""
    values = [(row["epoch"], row[name]) for row in history if row.get(name) is not None]
    return [(epoch, value) for epoch, value in values if np.isfinite(value)]


def _mean(curves: Sequence[Sequence[tuple[float, float]]]) -> tuple[list[float], list[float]]:
    """Over all folds in every epoch; behind its last one a fold keeps the value that it had there."""
    epochs = sorted({epoch for curve in curves for epoch, _ in curve})
    held = [np.interp(epochs, [at for at, _ in curve], [value for _, value in curve]) for curve in curves]
    return epochs, np.mean(held, axis=0).tolist() if held else []


@_styled
def layer_weights(weights: np.ndarray, layers: Sequence[int], model: np.ndarray | None = None) -> Figure:
    """Learned weights of layers: bars of the saved model, each fold's fit as a dot.

    ``weights``: float [F, L] of the folds; ``model``: float [L], None where they are not at hand: then
    the bars are the folds' mean.
    """
    figure, axes = _figure(height=2.6)
    place = np.arange(len(layers))
    axes.bar(place, weights.mean(axis=0) if model is None else model, color=ACCENT, alpha=0.55)
    axes.set_title("bars: mean over the folds" if model is None else "bars: the saved model; dots: the folds")
    if len(weights) > 1 or model is not None:
        x = np.tile(place, len(weights))
        axes.plot(x, weights.ravel(), linestyle="none", marker="o", markersize=2, color=INK, alpha=0.5)
    axes.axhline(1 / len(layers), color=SOFT, linestyle=":", linewidth=0.8)
    axes.text(len(layers) - 0.5, 1 / len(layers), "equal", ha="right", va="bottom", color=SOFT)
    step = -(-len(layers) // MOST_TICKS)
    axes.set_xticks(place[::step], [str(layer) for layer in layers[::step]])
    axes.set(xlabel="layer", ylabel="weight", ylim=(0, None))
    axes.grid(False, axis="x")
    return figure


@_styled
def layer_scores(
    layers: Sequence[int], scores: Mapping[str, Sequence[tuple[float, float, float]]], chance: float
) -> Figure:
    """UA of each layer with its interval. ``scores``: by pooling, (value, low, high) of each layer."""
    figure, axes = _figure()
    for (name, values), mark in zip(
        scores.items(), marks_of([str(k) for k in range(len(scores))]), strict=True
    ):
        value, low, high = (100 * np.array(each) for each in zip(*values, strict=True))
        axes.fill_between(layers, low, high, color=mark.colour, alpha=0.15, linewidth=0)
        axes.plot(
            layers,
            value,
            color=mark.colour,
            linestyle=mark.dash,
            marker=mark.marker,
            markersize=4,
            label=name,
        )
    axes.axhline(
        100 * chance, color=SOFT, linestyle=":", linewidth=0.8, label=f"guessing, {100 * chance:.0f} %"
    )
    axes.set(xlabel="layer", ylabel="UA, %")
    axes.set_xticks(list(layers)[:: -(-len(layers) // MOST_TICKS)])
    _legend(axes)
    return figure


@_styled
def intervals(
    values: Mapping[str, tuple[float, float, float]], chance: Sequence[float], of: Sequence[str] = ()
) -> Figure:
    """UA of several models with its interval: value, low, high by name; the level of guessing for each.

    ``of``: what each is of, written below its interval.
    """
    figure, axes = _figure(height=0.8 + (0.48 if of else 0.32) * len(values))
    for place, words in enumerate(of):
        axes.text(1, place + 0.38, _short(words, 60), fontsize=FONT_SIZE - 2.5, color=SOFT)
    for place, ((value, low, high), guess) in enumerate(zip(values.values(), chance, strict=True)):
        axes.plot([100 * low, 100 * high], [place, place], color=ACCENT, linewidth=1.6)
        axes.plot([100 * value], [place], color=ACCENT, marker="o", markersize=5)
        axes.plot([100 * guess], [place], color=SOFT, marker="|", markersize=10)
        axes.text(100 * value, place - 0.14, f"{100 * value:.1f}", ha="center", va="bottom")
    axes.set_yticks(range(len(values)), [_short(name) for name in values])
    axes.set(xlim=(0, 100), ylim=(len(values) - 0.5, -0.7), xlabel="UA, % (bar: guessing)")
    axes.grid(False, axis="y")
    return figure


@_styled
def embedding_map(points: np.ndarray, codes: np.ndarray, classes: Sequence[str], method: str) -> Figure:
    """``points``: float [N, 2], ``codes``: int [N], ``method``: what made them two dimensions."""
    figure, axes = _figure(height=HEIGHT + 0.6)
    size = float(np.clip(4000 / max(len(points), 1), 2, 18))
    for code, (name, mark) in enumerate(zip(classes, marks_of(classes), strict=True)):
        here = points[codes == code]
        axes.scatter(
            here[:, 0], here[:, 1], s=size, marker=mark.marker, color=mark.colour, alpha=0.75,
            linewidths=0.8 if mark.marker == "_" else 0, label=_short(name),
        )  # fmt: skip
    axes.set(xticks=[], yticks=[], xlabel=f"{method}, {len(points):,} recordings")
    axes.grid(False)
    legend = _legend(axes, columns=4)
    for handle in legend.legend_handles:
        handle.set_sizes([18])
    return figure


# What they have in common


def _empty(height: float, width: float = WIDTH) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _figure(height: float = HEIGHT, width: float = WIDTH) -> tuple[Figure, Axes]:
    figure = _empty(height, width)
    return figure, figure.add_subplot()


def _legend(axes: Axes, columns: int = LEGEND_COLUMNS) -> Any:
    """Below the axes; the figure grows by it, so that many classes do not press the axes to nothing."""
    figure = axes.get_figure(root=True)
    assert figure is not None  # axes are made by `_figure`
    rows = -(-len(axes.get_legend_handles_labels()[1]) // columns)
    figure.set_figheight(figure.get_figheight() + LEGEND_ROW * max(rows - USUAL_ROWS, 0))
    return figure.legend(loc="outside lower center", ncols=columns, handlelength=2.4, columnspacing=1.2)


def _short(name: str, length: int = 18) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"


def captioned(figure: Figure, text: str) -> Figure:
    """With what it is of below it, in as many lines as its width asks for."""
    from textwrap import fill

    size = FONT_SIZE - 3
    letters = int(figure.get_figwidth() * 72 / (0.6 * size))  # a letter is about 0.55 of its height wide
    figure.supxlabel(fill(text, letters), fontsize=size, color=SOFT, x=0.01, ha="left", linespacing=1.2)
    return figure


def write_png(figure: Figure, path: Path) -> None:
    """On white, for print. Raises StoreUnwritable."""
    with aside(path) as file:
        file.write(to_bytes(figure, "png", dpi=PNG_DPI, facecolor="white"))


def to_bytes(figure: Figure, form: str, **options: Any) -> bytes:
    """The figure as a file of the given format."""
    import io

    from matplotlib import rc_context

    out = io.BytesIO()
    with rc_context(STYLE):
        figure.savefig(out, format=form, **options)
    return out.getvalue()
