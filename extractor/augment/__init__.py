"""Augmented copies of recordings: what is asked for, what is drawn for each copy, and its audio.

>>> from extractor.augment import OneOf, SpecAugment, TimeStretch, draw, parse
>>> parse("stretch:rate=0.8-1.25+gain:db=-6..6")
>>> OneOf([(TimeStretch(rate=(0.8, 1.25)), 0.6), (SpecAugment("LD"), 0.4)])

    parameters   chance         what values are and how they are written; random numbers by key
    pool                        the recordings that may be drawn from
    operation                   what every row of the two tables has
    spectral  latent  waveform  mixing
                                the rows: an augmentation (ranges) beside its operation (numbers)
    combine      tables         one of several, several in a row; both tables
    syntax       text   config  as text and as YAML
    fixed                       an operation asked for as a recipe writes it
    recipe       drawing        the operations of one copy; how they are drawn
    filters      apply          the audio; only here is torch imported

A recipe's text makes its copy again; a draw depends on seed, recording and copy alone.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from extractor.augment.apply import augment
    from extractor.augment.combine import Compose, OneOf
    from extractor.augment.config import Config, load_yaml, read_yaml, to_yaml
    from extractor.augment.drawing import check, draw, folders, is_latent, needs_partners
    from extractor.augment.errors import CannotAugment
    from extractor.augment.latent import LatentMask, LatentMasks
    from extractor.augment.mixing import CopyPaste
    from extractor.augment.operation import Augmentation, Operation
    from extractor.augment.pool import NOISE, RECORDING, Clip, Pool, Source
    from extractor.augment.recipe import Recipe, parse_recipe
    from extractor.augment.spectral import PitchShift, SpecAugment, TimeStretch
    from extractor.augment.tables import AUGMENTATIONS, OPERATIONS
    from extractor.augment.text import parse, to_text
    from extractor.augment.waveform import AdditiveNoise, BandPass, Gain, TimeMask

__all__ = [
    "AUGMENTATIONS",
    "NOISE",
    "OPERATIONS",
    "RECORDING",
    "AdditiveNoise",
    "Augmentation",
    "BandPass",
    "CannotAugment",
    "Clip",
    "Compose",
    "Config",
    "CopyPaste",
    "Gain",
    "LatentMask",
    "LatentMasks",
    "OneOf",
    "Operation",
    "PitchShift",
    "Pool",
    "Recipe",
    "Source",
    "SpecAugment",
    "TimeMask",
    "TimeStretch",
    "augment",
    "check",
    "draw",
    "folders",
    "is_latent",
    "load_yaml",
    "needs_partners",
    "parse",
    "parse_recipe",
    "read_yaml",
    "to_text",
    "to_yaml",
]

_FILES = {
    "apply": ("augment",),
    "combine": ("Compose", "OneOf"),
    "config": ("Config", "load_yaml", "read_yaml", "to_yaml"),
    "drawing": ("check", "draw", "folders", "is_latent", "needs_partners"),
    "errors": ("CannotAugment",),
    "latent": ("LatentMask", "LatentMasks"),
    "mixing": ("CopyPaste",),
    "operation": ("Augmentation", "Operation"),
    "pool": ("NOISE", "RECORDING", "Clip", "Pool", "Source"),
    "recipe": ("Recipe", "parse_recipe"),
    "spectral": ("PitchShift", "SpecAugment", "TimeStretch"),
    "tables": ("AUGMENTATIONS", "OPERATIONS"),
    "text": ("parse", "to_text"),
    "waveform": ("AdditiveNoise", "BandPass", "Gain", "TimeMask"),
}
_HOME = {name: file for file, names in _FILES.items() for name in names}


def __getattr__(name: str) -> object:
    # Imported on first use (PEP 562): an option that is parsed needs no torch, and `--help` neither.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
