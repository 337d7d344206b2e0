"""Charts of studies over several runs, layers or augmentations. For print and for any eyes: numbers
stand in the cells, lines differ in marker and dash."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from classifiers.charts import plots
from classifiers.charts.marks import INK, marks_of

DARK_CELL = 0.5  # share of the colour range from which numbers are written in white


def transfer_map(
    ua: np.ndarray, trained: Sequence[str], tested: Sequence[str], chance: float, caption: str, path: Path
) -> None:
    """``ua [R, C]``: of each training corpus (rows) on each tested one (columns); NaN where there is none."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context(plots.STYLE):
        figure = Figure(figsize=(2.4 + 1.1 * len(tested), 1.6 + 0.6 * len(trained)), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        axes.imshow(ua, cmap="cividis_r", vmin=chance, vmax=1, aspect="auto")
        for (i, k), share in np.ndenumerate(ua):
            if np.isfinite(share):
                dark = (share - chance) / (1 - chance) > DARK_CELL
                text = f"{100 * share:.1f}"
                weight = "bold" if trained[i] == tested[k] else "normal"
                axes.text(
                    k, i, text, ha="center", va="center", color="white" if dark else INK, fontweight=weight
                )
        axes.set_xticks(range(len(tested)), tested, rotation=20, ha="right")
        axes.set_yticks(range(len(trained)), trained)
        axes.set(xlabel="tested", ylabel="trained on")
        axes.set_title(f"UA, %; guessing {100 * chance:.0f} %\nbold: own corpus by its own protocol")
        axes.grid(False)
        plots.write_png(plots.captioned(figure, caption), path)


def stability_chart(
    scores: Mapping[str, Sequence[tuple[int, float, float]]], caption: str, path: Path
) -> None:
    """Over the layers a line each kind of augmentation.

    ``scores``: by kind, (layer, mean cosine over recordings, linear CKA) each.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context(plots.STYLE):
        figure = Figure(figsize=(8.4, 3.6), layout="constrained")
        FigureCanvasAgg(figure)
        cosine, cka = figure.subplots(1, 2, sharex=True)
        for (kind, of_kind), mark in zip(
            scores.items(), marks_of([str(k) for k in range(len(scores))]), strict=True
        ):
            layers = [layer for layer, _, _ in of_kind]
            style = {"color": mark.colour, "linestyle": mark.dash, "marker": mark.marker, "markersize": 4}
            cosine.plot(layers, [mean for _, mean, _ in of_kind], label=kind, **style)
            cka.plot(layers, [value for _, _, value in of_kind], **style)
        cosine.set(xlabel="layer", ylabel="cosine, mean over recordings")
        cka.set(xlabel="layer", ylabel="linear CKA")
        figure.legend(loc="outside upper center", ncols=3, handlelength=2.4)
        plots.write_png(plots.captioned(figure, caption), path)
