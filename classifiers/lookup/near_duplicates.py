"""Near-duplicates in a run: recordings of different files with all but the same embedding.

Corpora leak: a file is there twice, or a segment in two parts of a dialogue. Where the two stand in
different groups, training on one and testing on the other measures memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from classifiers.data.runs import column_of
from extractor.index.exact import similar_pairs, unit
from extractor.store import Store
from extractor.store.where import factor

THRESHOLD = 0.999  # cosine
PAIRS_KEPT = 20


@dataclass(frozen=True, slots=True)
class Pair:
    """Two rows of different files."""

    ids: tuple[str, str]
    paths: tuple[str, str]
    similarity: float  # cosine
    emotions: tuple[str, str]
    groups: tuple[str, str]
    same_audio: bool  # sample for sample


@dataclass(frozen=True, slots=True)
class NearDuplicates:
    """Pairs above the threshold, counted; the most similar of them are shown."""

    layer: int
    threshold: float
    pairs: int
    recordings: int  # in any pair
    across_groups: int  # pairs whose two groups differ: these leak when a group is left out
    other_emotion: int  # pairs whose emotions differ: a label is wrong, or the embedding blind to it
    same_audio: int  # pairs of the same audio, sample for sample, whatever the embedding
    shown: tuple[Pair, ...]


def find_near_duplicates(
    store: Store,
    layer: int,
    pooling: str | None = None,
    group: str = "speaker",
    threshold: float = THRESHOLD,
) -> NearDuplicates:
    """Pairs of rows of different files with a cosine above ``threshold``, all but augmented copies.

    As many products as there are pairs of rows, a block at a time. ``group`` names a label, "id" or
    "path". `PAIRS_KEPT` pairs are shown, those of the same audio first.
    """
    rows = np.flatnonzero(store.clean)
    emotion, of_group = store.labels("emotion"), column_of(store, group)
    path, audio, emotion_code, group_code = (
        factor(np.array(values, object)[rows])[1]
        for values in (store.paths, store.checksums, emotion, of_group)
    )
    counts = np.zeros(4, np.int64)  # pairs, across groups, of other emotion, of the same audio
    involved = np.zeros(len(rows), bool)
    best: list[tuple[bool, float, int, int]] = []  # same audio, similarity, and the pair in `rows`
    for i, j, similarity in similar_pairs(unit(store.load_rows(rows, layer, pooling)), threshold):
        i, j, similarity = (each[path[i] != path[j]] for each in (i, j, similarity))
        same_audio = audio[i] == audio[j]
        counts += [
            len(i),
            (group_code[i] != group_code[j]).sum(),
            (emotion_code[i] != emotion_code[j]).sum(),
            same_audio.sum(),
        ]
        involved[i] = involved[j] = True
        first = np.lexsort((j, i, -similarity, ~same_audio))[:PAIRS_KEPT]
        best += zip(*(each[first].tolist() for each in (same_audio, similarity, i, j)), strict=True)
        best = sorted(best, key=lambda pair: (not pair[0], -pair[1], *pair[2:]))[:PAIRS_KEPT]
    columns = (store.ids, store.paths, emotion, of_group)
    shown = []
    for same, cosine, *pair in best:
        a, b = rows[pair].tolist()
        ids, paths, emotions, groups = ((values[a], values[b]) for values in columns)
        shown.append(Pair(ids, paths, cosine, emotions, groups, same))
    pairs, across_groups, other_emotion, num_same = counts.tolist()
    return NearDuplicates(
        layer=layer,
        threshold=threshold,
        pairs=pairs,
        recordings=int(involved.sum()),
        across_groups=across_groups,
        other_emotion=other_emotion,
        same_audio=num_same,
        shown=tuple(shown),
    )
