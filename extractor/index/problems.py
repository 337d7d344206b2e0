"""What can be wrong with an index. Each message ends with the command that puts it right.

StoreError
├── IndexMissing    none was built of this layer and pooling
├── IndexStale      it was built of other rows or settings than the store has now
└── BrokenIndex     its files are damaged
"""

from __future__ import annotations

import shlex
from pathlib import Path

from extractor.errors import StoreError


class IndexMissing(StoreError):
    """There is no index of this layer and pooling."""


class IndexStale(StoreError):
    """The index does not fit its store any more."""


class BrokenIndex(StoreError):
    """The index's files are not what was written."""


def remedy(run: Path, layer: int, pooling: str, normalisation: str = "none") -> str:
    """The command that (re)builds an index, as the end of a message."""
    given = "" if normalisation == "none" else f" --normalisation {normalisation}"
    where = f"--layer {layer} --pooling {pooling}{given}"
    return f"build it with `hser-lookup build {shlex.quote(str(run))} {where}`"
