"""What a query found: its neighbours and their vote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from classifiers.lookup.vote import NO_VOTE, vote
from extractor.store.where import factor


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A stored recording that is near to the query."""

    rank: int  # from 1
    id: str
    path: str
    similarity: float  # cosine, in [-1, 1]
    labels: dict[str, str]  # all columns of the store; "" where not known
    row: int  # in the store's order
    start: float | None = None  # seconds, where it is a segment of its file
    end: float | None = None


@dataclass(frozen=True, slots=True)
class Hits:
    """A query's neighbours, the nearest first, and what they say of its emotion."""

    query: str  # path or id; "vector" where it has no name
    neighbours: tuple[Neighbour, ...]
    vote: dict[str, float]  # emotion: share of the votes, the largest first; sums to 1, or is empty
    k: int  # neighbours asked for; fewer are there where fewer rows could be any
    candidates: int  # rows that could be neighbours
    layer: int
    pooling: str

    @property
    def winner(self) -> str | None:
        """The emotion with the largest share; None where no neighbour has an emotion."""
        return next(iter(self.vote), None)

    @property
    def confidence(self) -> float:
        """The winner's share, 0 to 1."""
        return next(iter(self.vote.values()), 0.0)

    @property
    def margin(self) -> float:
        """The winner's share less the runner-up's."""
        shares = [*self.vote.values(), 0.0, 0.0]
        return shares[0] - shares[1]

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        decided = {"winner": self.winner, "confidence": self.confidence, "margin": self.margin}
        return asdict(self) | decided


def shares_of(neighbours: Sequence[Neighbour], temperature: float | None = None) -> dict[str, float]:
    """Share of each emotion in the vote of one query's neighbours, the winner's first (see `vote`)."""
    emotions, codes = factor(neighbour.labels.get("emotion", "") for neighbour in neighbours)
    if "" in emotions:
        codes = np.where(codes == emotions.index(""), NO_VOTE, codes)
    similarity = np.array([[neighbour.similarity for neighbour in neighbours]])
    share, winner = vote(codes[None], similarity, len(emotions), temperature)
    if winner[0] == NO_VOTE:
        return {}
    shares = share[0].tolist()
    # Stable: of equal shares the winner, then whose neighbour is nearer.
    order = sorted(range(len(emotions)), key=lambda code: (code != winner[0], -shares[code]))
    return {emotions[code]: shares[code] for code in order if shares[code] > 0}
