"""A chart as a part of a page: its colours are the page's, and so it is light or dark as that is."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from classifiers.charts.style import VARIABLES, to_bytes
from classifiers.report.markup import Html

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_HEAD = re.compile(r"^.*?<svg[^>]*?viewBox=\"([^\"]+)\"[^>]*>", re.DOTALL)
_DROPPED = re.compile(r"<metadata>.*?</metadata>|<style type=\"text/css\">.*?</style>|<!--.*?-->", re.DOTALL)
_FONT = re.compile(r"font-family: [^;\"]*;?|font: ([\d.]+px) [^;\"]*")
_COLOUR = re.compile("|".join(map(re.escape, VARIABLES)))
_ID = re.compile(r"\bid=\"([^\"]+)\"")
_REFERENCE = re.compile(r"(?:xlink:)?href=\"#([^\"]+)\"|url\(#([^)]+)\)")


def inline_svg(figure: Figure, name: str, label: str) -> Html:
    """The figure as an ``<svg>`` element. ``name``: its ids begin with it; unique in the page.

    ``label``: what a person who does not see it is told.
    """
    text = to_bytes(figure, "svg", transparent=True, metadata={"Date": None}).decode()
    match = _HEAD.match(text)
    assert match is not None, "matplotlib writes a viewBox"
    body = _DROPPED.sub("", text[match.end() :])
    body = _FONT.sub(lambda found: f"font-size: {found[1]}" if found[1] else "", body)
    body = _COLOUR.sub(lambda found: VARIABLES[found[0]], body)
    body = _renamed(body, name)
    body = re.sub(r"\s*\n\s*", "\n", body)
    return Html(f'<svg viewBox="{match[1]}" role="img" aria-label="{label}">{body}')


def _renamed(body: str, name: str) -> str:
    """Ids that something refers to get the name in front, the others go."""
    used = {found[1] or found[2] for found in _REFERENCE.finditer(body)}
    body = _ID.sub(lambda found: f'id="{name}-{found[1]}"' if found[1] in used else "", body)
    return _REFERENCE.sub(
        lambda found: f'href="#{name}-{found[1]}"' if found[1] else f"url(#{name}-{found[2]})", body
    )
