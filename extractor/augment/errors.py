"""What can go wrong with one recording's augmentation."""

from __future__ import annotations

from extractor.errors import HserError


class CannotAugment(HserError):
    """One recording cannot be augmented as asked; becomes a row of errors.jsonl, never ends a run."""
