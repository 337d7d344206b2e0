"""HTML as values: only `Html` stands as it is, any other text is escaped; a chart as a part of a page."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from classifiers.charts.style import VARIABLES, to_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NOTHING = "-"  # for a figure that is not defined
_VOID = ("br", "hr", "img", "input", "meta")


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def tag(name: str, *inside: Any, **attributes: str | bool | None) -> Html:
    """An element. ``class_`` is written class, ``data_x`` data-x; None and False leave one out."""
    written = "".join(
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{escape(str(value))}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    return Html(f"<{name}{written}>" if name in _VOID else f"<{name}{written}>{join(inside)}</{name}>")


def join(parts: Iterable[Any], between: str = "") -> Html:
    """Parts one after the other; None is nothing."""
    return Html(
        between.join(
            part if isinstance(part, Html) else escape(str(part)) for part in parts if part is not None
        )
    )


def percent(value: float | None, digits: int = 1) -> str:
    """A share as per cent, without the sign."""
    return NOTHING if value is None or not math.isfinite(value) else f"{100 * value:.{digits}f}"


def number(value: float | None, digits: int = 3) -> str:
    return NOTHING if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def interval(bounds: Sequence[float | None] | None) -> str:
    """Of shares, as per cent."""
    if not bounds or any(bound is None or not math.isfinite(bound) for bound in bounds):
        return NOTHING
    return f"{percent(bounds[0])} to {percent(bounds[1])}"


def p_value(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return NOTHING
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def table(header: Sequence[str], rows: Iterable[Sequence[Any]], cards: bool = True) -> Html:
    """The first cell of a row names it.

    ``cards``: on a phone each row becomes a card, each cell with its column's name; else it stays a table.
    """
    head = tag("tr", *(tag("th", name, scope="col") for name in header))
    body = []
    for row in rows:
        first = tag("th", row[0], scope="row")
        cells = [tag("td", cell, data_label=name) for cell, name in zip(row[1:], header[1:], strict=True)]
        body.append(tag("tr", first, *cells))
    return tag("table", tag("thead", head), tag("tbody", *body), class_="cards" if cards else None)


def facts(pairs: Iterable[tuple[str, Any]]) -> Html:
    """Names and values."""
    return tag(
        "dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs), class_="facts"
    )


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
