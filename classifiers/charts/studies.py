"""Charts of studies over several runs, layers or augmentations. For print and for any eyes: numbers
stand in the cells, lines differ in marker and dash."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from classifiers.charts import plots
from classifiers.charts.marks import INK, marks_of

if TYPE_CHECKING:
    from classifiers.studies.cross_corpus import Matrix
    from classifiers.studies.stability import Stability

DARK_CELL = 0.5  # share of the colour range from which numbers are written in white


def transfer_map(matrix: Matrix, path: Path) -> None:
    """UA of each training corpus (rows) on each tested one (columns)."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    chance = 1 / len(matrix.classes)
    value = np.full((len(matrix.rows), len(matrix.names)), np.nan)
    for i, train in enumerate(matrix.rows):
        for k, test in enumerate(matrix.names):
            cell = matrix.cell(train, test)
            if cell is not None:
                value[i, k] = cell.figures["UA"]
    with rc_context(plots.STYLE):
        figure = Figure(
            figsize=(2.4 + 1.1 * len(matrix.names), 1.6 + 0.6 * len(matrix.rows)), layout="constrained"
        )
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        axes.imshow(value, cmap="cividis_r", vmin=chance, vmax=1, aspect="auto")
        for (i, k), share in np.ndenumerate(value):
            if np.isfinite(share):
                dark = (share - chance) / (1 - chance) > DARK_CELL
                text = f"{100 * share:.1f}"
                weight = "bold" if matrix.rows[i] == matrix.names[k] else "normal"
                axes.text(
                    k, i, text, ha="center", va="center", color="white" if dark else INK, fontweight=weight
                )
        axes.set_xticks(range(len(matrix.names)), matrix.names, rotation=20, ha="right")
        axes.set_yticks(range(len(matrix.rows)), matrix.rows)
        axes.set(xlabel="tested", ylabel="trained on")
        axes.set_title(f"UA, %; guessing {100 * chance:.0f} %\nbold: own corpus by its own protocol")
        axes.grid(False)
        plots.write_png(plots.captioned(figure, str(matrix.conditions)), path)


def stability_chart(stability: Stability, path: Path) -> None:
    """Mean cosine and CKA over the layers, a line each kind of augmentation."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    kinds = list(dict.fromkeys(score.kind for score in stability.scores))
    with rc_context(plots.STYLE):
        figure = Figure(figsize=(8.4, 3.6), layout="constrained")
        FigureCanvasAgg(figure)
        cosine, cka = figure.subplots(1, 2, sharex=True)
        for kind, mark in zip(kinds, marks_of([str(k) for k in range(len(kinds))]), strict=True):
            of_kind = [score for score in stability.scores if score.kind == kind]
            layers = [score.layer for score in of_kind]
            style = {"color": mark.colour, "linestyle": mark.dash, "marker": mark.marker, "markersize": 4}
            cosine.plot(layers, [score.cosine for score in of_kind], label=kind, **style)
            cka.plot(layers, [score.cka for score in of_kind], **style)
        cosine.set(xlabel="layer", ylabel="cosine, mean over recordings")
        cka.set(xlabel="layer", ylabel="linear CKA")
        figure.legend(loc="outside upper center", ncols=3, handlelength=2.4)
        plots.write_png(plots.captioned(figure, stability.conditions), path)
