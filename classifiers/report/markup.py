"""HTML as values. Only `Html` stands as it is; any other text is escaped."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

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
