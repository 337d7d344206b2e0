"""A colour, a marker and a line for each emotion. Marker and line alone tell them apart, as in print.

The colours are those of the pages (``report/static/base.css``), chosen to differ in lightness as
well as in hue. As they are written here they are for light paper; a page in dark colours replaces
them by name (`VARIABLES`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


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
