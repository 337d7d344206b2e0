"""One style for all charts: colours, markers and lines of classes, how a figure is made and written.

A colour, a marker and a line for each emotion: marker and line alone tell them apart, as in print. The
colours are those of the pages (``report/static/base.css``), chosen to differ in lightness as well as in
hue. As they are written here they are for light paper; a page in dark colours replaces them by name
(`VARIABLES`).
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec

from extractor.store.aside import aside

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True)
class Mark:
    """How one class is drawn."""

    name: str  # of the colour
    colour: str
    marker: str  # of matplotlib
    dash: Any  # a line style of matplotlib


INK, SOFT, LINE, ACCENT, ON_ACCENT = "#17212b", "#55616d", "#d3d9dd", "#0b5f8a", "#ffffff"

_SOLID: Any = "solid"
MARKS = {
    each.name: each
    for each in (
        Mark("anger", "#de3310", "^", _SOLID),
        Mark("happiness", "#bf9932", "o", (0, (5, 1.5))),
        Mark("sadness", "#5347d9", "v", (0, (1, 1))),
        Mark("neutral", "#5b5659", "s", (0, (5, 1.5, 1, 1.5))),
        Mark("fear", "#44246c", "D", (0, (8, 2))),
        Mark("disgust", "#348d66", "P", (0, (3, 1, 1, 1, 1, 1))),
        Mark("surprise", "#af249c", "*", (0, (2, 2))),
        Mark("calm", "#2795f1", "h", (0, (8, 2, 2, 2))),
        Mark("boredom", "#663900", "_", (0, (4, 4))),
        Mark("other", "#1c1c1b", "X", (0, (1, 3))),
    )
}

# Colours by the names that the page's style sheet gives them.
VARIABLES = {
    INK: "var(--ink)",
    SOFT: "var(--soft)",
    LINE: "var(--line)",
    ACCENT: "var(--accent)",
    ON_ACCENT: "var(--on-accent)",
    **{mark.colour: f"var(--e-{name})" for name, mark in MARKS.items()},
}


def marks_of(classes: Sequence[str]) -> list[Mark]:
    """One each. Classes that are no common emotion take the marks that are left, in their order."""
    left = [mark for name, mark in MARKS.items() if name not in classes] or list(MARKS.values())
    others = iter(range(len(classes)))
    return [MARKS[name] if name in MARKS else left[next(others) % len(left)] for name in classes]


WIDTH = 4.2  # inches
HEIGHT = 3.4
FONT_SIZE = 9  # points
PNG_DPI = 200
LEGEND_COLUMNS = 2
LEGEND_ROW = 0.17  # inches
USUAL_ROWS = 4  # of a legend, that HEIGHT holds

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


def chart(draw: Callable[Concatenate[Figure, Args], None]) -> Callable[Args, Figure]:
    """Makes the figure that ``draw`` draws on, in `STYLE`, and leaves matplotlib's settings as they are."""

    @functools.wraps(draw)
    def drawn(*args: Args.args, **kwargs: Args.kwargs) -> Figure:
        from matplotlib import rc_context
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        with rc_context(STYLE):
            figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
            FigureCanvasAgg(figure)
            draw(figure, *args, **kwargs)
        return figure

    return drawn


def legend_below(figure: Figure, axes: Axes, columns: int = LEGEND_COLUMNS) -> Any:
    """Below the axes; the figure grows by it, so that many classes do not press the axes to nothing."""
    rows = -(-len(axes.get_legend_handles_labels()[1]) // columns)
    figure.set_figheight(figure.get_figheight() + LEGEND_ROW * max(rows - USUAL_ROWS, 0))
    return figure.legend(loc="outside lower center", ncols=columns, handlelength=2.4, columnspacing=1.2)


def short(name: str, length: int = 18) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"


def captioned(figure: Figure, text: str) -> Figure:
    """With what it is of below it, in as many lines as its width asks for."""
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
    from matplotlib import rc_context

    out = io.BytesIO()
    with rc_context(STYLE):
        figure.savefig(out, format=form, **options)
    return out.getvalue()
