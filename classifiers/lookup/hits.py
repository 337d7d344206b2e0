"""What a query found: its neighbours and their vote.

Each neighbour votes for its emotion with a weight that grows with its similarity.

    weight = max(similarity, 0)               a neighbour at a right angle or beyond says nothing
    weight = exp(similarity / temperature)    with a temperature: the lower, the more the nearest count
    share  = sum of an emotion's weights / sum of all weights

Distance-weighted k nearest neighbours after Dudani (1976, "The distance-weighted k-nearest-neighbor
rule"), with cosines for weights. A neighbour whose emotion is not known does not vote.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from extractor.errors import SettingsError
from extractor.store.where import factor

NO_VOTE = -1  # code of an emotion that is not known; of a winner, that nobody voted


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
        return asdict(self) | {"winner": self.winner, "confidence": self.confidence, "margin": self.margin}


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


def check_vote(k: int, temperature: float | None) -> None:
    """Raises SettingsError for a vote of no neighbours, or a temperature that is not above 0."""
    if k < 1:
        raise SettingsError(f"--k {k}: must be at least 1")
    if temperature is not None and not temperature > 0:
        raise SettingsError(f"--temperature {temperature}: must be more than 0")


def vote(
    emotion: np.ndarray, similarity: np.ndarray, num_emotions: int, temperature: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Shares of the emotions, and the winner.

    Args:
        emotion: int ``[Q, k]``, codes below ``num_emotions``, or `NO_VOTE`; neighbours by rank.
        similarity: ``[Q, k]``, descending, -inf where there is no neighbour.

    Returns:
        float64 ``[Q, num_emotions]``, each row of sum 1, or 0 where nobody voted, and int ``[Q]``:
        of equal shares the one whose nearest neighbour is nearer wins; `NO_VOTE` where nobody voted.
    """
    similarity, voting = similarity.astype(np.float64), emotion != NO_VOTE
    if temperature is None:
        weight = np.maximum(similarity, 0.0)
    else:  # scaled by a row's largest, which no share depends on
        nearest = similarity.max(axis=1, keepdims=True, initial=-np.inf)
        weight = np.exp((similarity - np.where(np.isfinite(nearest), nearest, 0.0)) / temperature)
    weight = np.where(voting, weight, 0.0)  # [Q, k]
    share = np.zeros((len(emotion), num_emotions))
    queries = np.broadcast_to(np.arange(len(emotion))[:, None], emotion.shape)
    np.add.at(share, (queries[voting], emotion[voting]), weight[voting])
    total = weight.sum(axis=1, keepdims=True)
    share = np.divide(share, total, out=np.zeros_like(share), where=total > 0)
    if not num_emotions or not emotion.shape[1]:
        return share, np.full(len(emotion), NO_VOTE)
    # The first neighbour whose emotion has the largest share; rounding must not part equal shares.
    of_neighbour = np.where(voting, np.take_along_axis(share, np.maximum(emotion, 0), axis=1), -1.0)
    largest = of_neighbour >= of_neighbour.max(axis=1, keepdims=True) - 1e-12
    winner = np.take_along_axis(emotion, largest.argmax(axis=1)[:, None], axis=1)[:, 0]
    return share, np.where(total[:, 0] > 0, winner, NO_VOTE)
