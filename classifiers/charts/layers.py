"""A chart of layer against score."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING

from extractor.errors import InputError

if TYPE_CHECKING:
    from classifiers.lookup.evaluation import Evaluation

LINES = {"ua": "UA", "wa": "WA", "macro_f1": "macro-F1", "precision_at_k": "precision@{k}"}
MOST_TICKS = 13  # numbers on the axis of layers


def write_chart(evaluation: Evaluation, path: str | PathLike[str]) -> None:
    """A PNG of UA, WA, macro-F1 and precision@k over the layers, with the UA of guessing.

    Raises InputError where it cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    scores = sorted(evaluation.layers, key=lambda score: score.layer)
    layers = [score.layer for score in scores]
    for name, label in LINES.items():
        values = [100 * getattr(score, name) for score in scores]
        axes.plot(layers, values, marker="o", markersize=4, label=label.format(k=evaluation.k))
    axes.lines[0].set(linewidth=2.5, zorder=3)  # UA is what layers are compared by
    chance = 100 / len(evaluation.emotions)
    axes.axhline(chance, color="grey", linestyle=":", label=f"guessing, UA {chance:.0f} %")
    axes.set(
        xlabel=f"layer of {evaluation.encoder}, pooling {evaluation.pooling}",
        ylabel="%",
        ylim=(0, 100),
    )
    axes.set_title(
        f"{evaluation.k} nearest neighbours, leave one {evaluation.leave_out} out of {evaluation.groups:,},"
        f" {evaluation.queries:,} recordings,\nnormalisation {evaluation.normalisation}"
        + (f"\n{evaluation.caution}" if evaluation.caution else ""),
        fontsize="medium",
    )
    axes.set_xlim(layers[0] - 0.5, layers[-1] + 0.5)
    axes.set_xticks(layers[:: -(-len(layers) // MOST_TICKS)])
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper")
    try:
        figure.savefig(path, format="png", dpi=150)
    except OSError as error:
        raise InputError(f"{path}: the chart cannot be written: {error.strerror}") from error
