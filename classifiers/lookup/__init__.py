"""Nearest-neighbour lookup: which stored recordings sound like this one, and what was their emotion?

>>> from classifiers import lookup
>>> hits = lookup.open("runs/ravdess", layer=12).search("query.wav", k=10, where="speaker != '12'")
>>> hits.winner, hits.confidence, hits.margin
"""

from __future__ import annotations

from classifiers.lookup.hits import Hits, Neighbour
from classifiers.lookup.search import Lookup

open = Lookup  # noqa: A001 - reads as `lookup.open(run)`

__all__ = ["Hits", "Lookup", "Neighbour", "open"]
