"""Augmented copies of recordings: what is asked for, what is drawn for each copy, and its audio.

>>> from extractor.augment import OneOf, SpecAugment, TimeStretch, draw, parse
>>> parse("stretch:rate=0.8-1.25+gain:db=-6..6")
>>> OneOf([(TimeStretch(rate=(0.8, 1.25)), 0.6), (SpecAugment("LD"), 0.4)])

    parameters        what values are, how they are written and when they are refused
    drawing           random numbers by key, what may be drawn from, augmentations made of others
    spectral  table   the rows: an augmentation (ranges) beside its operation (numbers); recipes
    text      config  as text and as YAML
    apply             the audio; only here is torch imported
    copies            copies as utterances of a run

A recipe's text makes its copy again; a draw depends on seed, recording and copy alone.
"""

from __future__ import annotations

from extractor.augment.drawing import (
    NOISE,
    RECORDING,
    Augmentation,
    Clip,
    Compose,
    OneOf,
    Operation,
    Original,
    Pool,
)
from extractor.augment.spectral import PitchShift, SpecAugment, TimeStretch
from extractor.augment.table import (
    AUGMENTATIONS,
    OPERATIONS,
    AdditiveNoise,
    BandPass,
    CopyPaste,
    Gain,
    LatentMask,
    LatentMasks,
    Recipe,
    TimeMask,
    draw,
)
from extractor.augment.text import parse, parse_recipe, to_text

__all__ = [
    "AUGMENTATIONS",
    "NOISE",
    "OPERATIONS",
    "RECORDING",
    "AdditiveNoise",
    "Augmentation",
    "BandPass",
    "Clip",
    "Compose",
    "CopyPaste",
    "Gain",
    "LatentMask",
    "LatentMasks",
    "OneOf",
    "Operation",
    "Original",
    "PitchShift",
    "Pool",
    "Recipe",
    "SpecAugment",
    "TimeMask",
    "TimeStretch",
    "draw",
    "parse",
    "parse_recipe",
    "to_text",
]
