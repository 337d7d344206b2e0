"""What of which run is learned from, as it is written: ``RUN[:pooling[:layers]]``. No heavy imports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from extractor.errors import SettingsError

FRAMES = "none"  # the pooling that keeps every frame
OPEN_LAYERS = ("all", "best", "each")  # left to the experiment; any other layers are fixed
COPIES = ("train", "none", "all")  # augmented copies are trained on; not trained on; tested as well
CLEAN, COPIES_ONLY, EVERY_ROW = "clean", "copies", "all"  # rows that are tested; else an augmentation's name


@dataclass(frozen=True, slots=True)
class Source:
    """One store and what of it is used."""

    path: str
    pooling: str | None = None  # None: the only one
    layers: tuple[int, ...] | str = "best"  # the model's numbers, or one of OPEN_LAYERS

    @classmethod
    def parse(cls, text: str, layers: tuple[int, ...] | str = "best") -> Source:
        """``RUN[:pooling[:layers]]``. Raises SettingsError for layers that are none."""
        if Path(text).exists():
            return cls(text, None, layers)
        path, *rest = text.split(":")
        if len(rest) > 2:
            raise SettingsError(f"features {text!r}: write RUN, RUN:pooling or RUN:pooling:layer")
        pooling = rest[0] if rest and rest[0] else None
        return cls(path, pooling, parse_layers(rest[1]) if len(rest) == 2 else layers)

    def __str__(self) -> str:
        layers = self.layers if isinstance(self.layers, str) else ",".join(map(str, self.layers))
        return f"{self.path}:{self.pooling or ''}:{layers}"


def parse_layers(text: str) -> tuple[int, ...] | str:
    """``all``, ``best``, ``each``, or numbers with commas. Raises SettingsError."""
    if text in OPEN_LAYERS:
        return text
    try:
        return tuple(int(part) for part in str(text).split(","))
    except ValueError as error:
        raise SettingsError(f"--layer {text!r}: write a number, 6,12, all, best or each") from error


@dataclass(frozen=True, slots=True)
class Labelling:
    """Which label is learned, and from which rows."""

    column: str = "emotion"
    classes: tuple[str, ...] | None = None  # None: all that there are
    rename: Mapping[str, str] = field(default_factory=dict)  # applied before `classes`
    copies: str = "train"  # one of COPIES
    test_on: str = CLEAN  # see `runs.tested_rows`
