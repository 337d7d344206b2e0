"""Neighbours' emotions to a decision: each votes with a weight that grows with its similarity.

    weight = max(similarity, 0)               a neighbour at a right angle or beyond says nothing
    weight = exp(similarity / temperature)    with a temperature: the lower, the more the nearest count
    share  = sum of an emotion's weights / sum of all weights

Distance-weighted k nearest neighbours after Dudani (1976, "The distance-weighted k-nearest-neighbor
rule"), with cosines for weights. A neighbour whose emotion is not known does not vote.
"""

from __future__ import annotations

import numpy as np

from extractor.errors import SettingsError

NO_VOTE = -1  # code of an emotion that is not known; of a winner, that nobody voted


def weights_of(similarity: np.ndarray, temperature: float | None = None) -> np.ndarray:
    """float64 of the same shape ``[Q, k]``; similarity -inf, where there is no neighbour, weighs 0.

    With a temperature the weights of a row are scaled by its largest, which no share depends on.
    Raises SettingsError for a temperature that is not above 0.
    """
    similarity = similarity.astype(np.float64)
    if temperature is None:
        return np.maximum(similarity, 0.0)
    if not temperature > 0:
        raise SettingsError(f"--temperature {temperature}: must be more than 0")
    nearest = similarity.max(axis=1, keepdims=True, initial=-np.inf)
    return np.exp((similarity - np.where(np.isfinite(nearest), nearest, 0.0)) / temperature)


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
    weight = np.where(emotion == NO_VOTE, 0.0, weights_of(similarity, temperature))  # [Q, k]
    share = np.zeros((len(emotion), num_emotions))
    queries = np.broadcast_to(np.arange(len(emotion))[:, None], emotion.shape)
    voting = emotion != NO_VOTE
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
