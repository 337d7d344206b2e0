"""Nearest-neighbour lookup: which stored recordings sound like this one, and what was their emotion?

    query    a recording, through the run's own model, to a vector
    memory   exact search in a small store without an index
    search   Lookup: neighbours of a query
    vote     neighbours' emotions to a decision
    hits     what was found

>>> from classifiers import lookup
>>> hits = lookup.open("runs/ravdess", layer=12).search("query.wav", k=10, where="speaker != '12'")
>>> hits.winner, hits.confidence, hits.margin
"""

from __future__ import annotations

from classifiers.lookup.hits import Hits, Neighbour
from classifiers.lookup.query import Query
from classifiers.lookup.search import Lookup, Rules, open  # noqa: A004 - reads as `lookup.open(run)`

__all__ = ["Hits", "Lookup", "Neighbour", "Query", "Rules", "open"]
