"""Layer numbers: what ``--layers`` says as numbers, and numbers as text."""

from __future__ import annotations

import re
from collections.abc import Sequence

from extractor.errors import SettingsError

LAYER_CONVENTION = (
    "0 is the transformer's input after the positional convolution, k the output of its layer k; the"
    " last is the model's last_hidden_state, with the final LayerNorm where the model has one"
)
_NAMED = {"all": (0, -1), "last": (-1, -1)}
_RANGE = re.compile(r"(-?\d+)(?:-(-?\d+))?")


def parse_layers(spec: str | int | Sequence[int], num_layers: int | None = None) -> tuple[int, ...]:
    """Layer numbers, ascending, from ``all``, ``last``, ``0,6,12``, ``0-24``, ``-4--1`` or numbers.

    Negative numbers count from the last layer, -1. Without ``num_layers`` (the model is not known
    yet) only the form is checked and nothing is returned.
    """
    if isinstance(spec, str):
        spans = [_parse_span(part, spec) for part in spec.replace(" ", "").split(",")]
    else:
        spans = [(n, n) for n in ([spec] if isinstance(spec, int) else spec)]
    if num_layers is None:
        return ()
    layers: set[int] = set()
    for span in spans:
        first, last = (n + num_layers if n < 0 else n for n in span)
        if not 0 <= first <= last < num_layers:
            what = str(span[0]) if span[0] == span[1] else f"{span[0]}-{span[1]}"
            raise SettingsError(
                f"--layers {what}: this model has layers 0-{num_layers - 1}"
                f" (or -{num_layers}--1 from the end)"
            )
        layers.update(range(first, last + 1))
    return tuple(sorted(layers))


def _parse_span(part: str, spec: str) -> tuple[int, int]:
    if part in _NAMED:
        return _NAMED[part]
    match = _RANGE.fullmatch(part)
    if match is None:
        raise SettingsError(
            f"--layers {spec!r}: {part!r} is no layer; write all, last, 0,6,12, 0-24 or -4--1"
        )
    return int(match[1]), int(match[2] or match[1])


def format_layers(layers: Sequence[int]) -> str:
    """``(0, 1, 2, 6)`` as ``0-2,6``."""
    runs: list[list[int]] = []
    for n in layers:
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
