"""The engine: recordings in, embeddings out. Also the store and its readers.

>>> from extractor import extract, Store
>>> store = extract("RAVDESS/", model="hubert-large", layers="all", out="runs/ravdess")
>>> X = store.load(layer=12, pooling="mean")   # float32 [N, D], rows in manifest order
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from extractor.errors import (
        DecodeError,
        HserError,
        InputError,
        ModelError,
        SettingsDiffer,
        SettingsError,
        StoreError,
        StoreLocked,
        StoreUnwritable,
    )
    from extractor.run.engine import Summary, extract
    from extractor.store import Store
    from extractor.types import SAMPLE_RATE, Failure, Manifest, Utterance

__all__ = [
    "SAMPLE_RATE",
    "DecodeError",
    "Failure",
    "HserError",
    "InputError",
    "Manifest",
    "ModelError",
    "SettingsDiffer",
    "SettingsError",
    "Store",
    "StoreError",
    "StoreLocked",
    "StoreUnwritable",
    "Summary",
    "Utterance",
    "extract",
]

_HOME = {"Summary": "run.engine", "extract": "run.engine", "Store": "store"}
_HOME |= dict.fromkeys(("__version__", "SAMPLE_RATE", "Failure", "Manifest", "Utterance"), "types")


def __getattr__(name: str) -> object:
    # Imported on first use (PEP 562): torch alone takes seconds, and `--help` must not wait for it.
    if name not in _HOME and name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME.get(name, 'errors')}"), name)
