"""How well neighbours tell the emotion: leave-one-group-out k nearest neighbours, layer by layer.

Each row with an emotion is classified by the vote of its ``k`` nearest rows of *other* groups, the
groups being speakers unless asked otherwise. All rows that are classified are scored together: the
classes of one speaker alone are often too few for a recall of each.

    UA            unweighted accuracy: mean over emotions of the recall
    WA            weighted accuracy: share of rows that are right
    macro-F1, weighted-F1
    precision@k   mean share of a row's neighbours that have its emotion

Exact search, one layer in memory at a time.

Near-duplicates are recordings of different files with all but the same embedding. Corpora leak: a file is
there twice, or a segment in two parts of a dialogue. Where the two stand in different groups, training on
one and testing on the other measures memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from os import PathLike
from typing import Any

import numpy as np

from classifiers.data.label_maps import as_classes
from classifiers.data.runs import column_of, encoder_words, missing_notes, open_run
from classifiers.data.standardise import standardise
from classifiers.lookup.hits import NO_VOTE, check_vote, vote
from classifiers.results.metrics import CAUTION
from extractor.errors import InputError, SettingsError, unknown
from extractor.index.exact import Groups, nearest, similar_pairs, unit
from extractor.inputs.corpora.words import is_missing, known, parse_renames
from extractor.store import Store
from extractor.store.where import factor

GROUP_COLUMNS = ("id", "path")  # beside the labels: leave one recording, or one file, out
NORMALISATIONS = ("none", "standard", "group")  # see `_normalised`
THRESHOLD = 0.999  # cosine of near-duplicates
PAIRS_KEPT = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """What an evaluation is asked for, and its scores are said to be of."""

    pooling: str | None = None  # None: the only one
    normalisation: str = "none"  # see `NORMALISATIONS`
    leave_out: str = "speaker"  # a label, "id" or "path": rows that share it are never neighbours
    k: int = 10
    temperature: float | None = None  # of the vote, see `lookup.hits`
    copies: bool = False  # augmented copies of other groups' recordings may be neighbours


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationOptions(Method):
    """How to evaluate. Made at the edge, checked once, passed down."""

    layers: tuple[int, ...] | None = None  # None: all that are stored
    classes: Sequence[str] | None = None  # emotions to take part; None: all
    map: Mapping[str, str] | str | Sequence[str] = ()  # what emotions count as: "calm=neutral"
    duplicates_above: float | None = THRESHOLD  # cosine; None: near-duplicates are not looked for
    incomplete: bool = False  # take a run that is not finished as it is


@dataclass(frozen=True, slots=True)
class LayerScore:
    """Scores of one layer, each 0 to 1."""

    layer: int
    ua: float
    wa: float
    macro_f1: float
    weighted_f1: float
    precision_at_k: float
    recall: dict[str, float]  # of each emotion


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation(Method):
    """Scores of every layer, and what they were measured on."""

    run: str
    queries: int  # rows that were classified
    candidates: int  # rows that could be neighbours: these, and copies where they count
    groups: int
    emotions: dict[str, int]  # rows of each, of those that were classified
    no_emotion: int  # rows left out for lack of an emotion
    no_group: int  # and those that have one but no group
    layers: tuple[LayerScore, ...]
    duplicates: NearDuplicates | None  # in the layer with the highest UA
    notes: tuple[str, ...] = ()  # recordings that are not among the rows
    encoder: str = ""  # of the run, with its dtype

    @property
    def caution(self) -> str | None:
        """What is to be said wherever one layer is called the best."""
        return CAUTION if len(self.layers) > 1 else None

    @property
    def best(self) -> LayerScore:
        """The layer with the highest UA; of equals the lowest."""
        return max(self.layers, key=lambda score: score.ua)

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"run": self.run} | asdict(self) | {"best_layer": self.best.layer, "caution": self.caution}


@dataclass(frozen=True, slots=True)
class _Rows:
    """The rows of a store that take part, by their labels. All arrays are of length N'."""

    index: np.ndarray  # int64, in the store
    emotion: np.ndarray  # int64, code
    group: np.ndarray  # int64, code
    original: np.ndarray  # int64, code: copies of one recording share it
    clean: np.ndarray  # bool: no augmented copy; these are the queries
    emotions: Sequence[str]
    num_groups: int
    no_emotion: int
    no_group: int


def evaluate(
    run: str | PathLike[str], progress: Callable[[str], None] = lambda note: None, **options: Any
) -> Evaluation:
    """Evaluate the layers of a run. ``options`` are fields of `EvaluationOptions`.

    Raises:
        StoreError: no run, or one that is not finished.
        SettingsError: an option that cannot work; an unknown layer, pooling or column.
        InputError: fewer than two groups or emotions among the rows that have both; an emotion of one
            row; numbers that are no emotions.
    """
    try:
        made = EvaluationOptions(**options)
    except TypeError as error:
        raise SettingsError(f"evaluate(): {error}") from error
    check_vote(made.k, made.temperature)
    if made.normalisation not in NORMALISATIONS:
        raise SettingsError(unknown("normalisation", made.normalisation, NORMALISATIONS))
    store = open_run(run, made.incomplete)
    rows = _take_part(store, made, progress)
    layers, pooling = store.resolve(made.layers, made.pooling)  # all are checked before one is read
    made = replace(made, pooling=pooling)
    scores = []
    for layer in layers:
        scores.append(_score_layer(store, rows, layer, made))
        progress(f"layer {layer}: UA {scores[-1].ua:.1%}")
    best = max(scores, key=lambda score: score.ua)
    duplicates = None
    if made.duplicates_above is not None:
        duplicates = find_near_duplicates(store, best.layer, pooling, made.leave_out, made.duplicates_above)
    queries = rows.emotion[rows.clean]
    return Evaluation(
        run=str(store.path),
        **{each.name: getattr(made, each.name) for each in fields(Method)},
        queries=len(queries),
        candidates=len(rows.index),
        groups=rows.num_groups,
        emotions=dict(Counter(rows.emotions[code] for code in queries.tolist()).most_common()),
        no_emotion=rows.no_emotion,
        no_group=rows.no_group,
        layers=tuple(scores),
        duplicates=duplicates,
        notes=tuple(missing_notes(store)),
        encoder=encoder_words(store.settings),
    )


def _take_part(store: Store, options: EvaluationOptions, note: Callable[[str], None]) -> _Rows:
    """Rows that have an emotion and a group; of augmented ones the copies only where they count."""
    columns = [*store.columns, *GROUP_COLUMNS]
    if options.leave_out not in columns:
        raise SettingsError(f"--leave-out: {unknown('column', options.leave_out, columns)}")
    written = store.labels("emotion")
    classes, notes = as_classes(
        str(store.path), "emotion", written, parse_renames(options.map), options.classes
    )
    for each in notes:
        note(f"note: {each}")
    emotion = np.array(classes, object)
    unlabelled = np.array([is_missing(label) for label in written], bool)
    of_group = column_of(store, options.leave_out)
    if options.leave_out in store.columns:
        of_group = [known(value) for value in of_group]
    group = np.array(of_group, object)
    clean = store.clean
    if not clean.any():
        raise InputError(
            f"{store.path}: holds augmented copies only, and recordings as they are is what is looked up;"
            " extract without --no-clean"
        )
    considered = clean | options.copies
    has_emotion, has_group = (emotion != "") & considered, (group != "") & considered
    kept = np.flatnonzero(has_emotion & has_group)
    emotions, emotion_codes = factor(emotion[kept])
    groups, group_codes = factor(group[kept])
    for what, values in (("emotion", emotions), (options.leave_out, groups)):
        if len(values) < 2:
            there = f"only {values[0]!r}" if values else "none"
            raise InputError(
                f"{store.path}: rows of at least two values of {what!r} are needed, there is {there}"
                f" ({len(kept)} of {len(store)} rows have an emotion and a {options.leave_out})"
            )
    _refuse_small(store, emotion[kept])
    return _Rows(
        index=kept,
        emotion=emotion_codes,
        group=group_codes,
        original=factor(np.array(store.originals, object)[kept])[1],
        clean=clean[kept],
        emotions=emotions,
        num_groups=len(groups),
        no_emotion=int((considered & unlabelled).sum()),
        no_group=int((has_emotion & ~has_group).sum()),
    )


def _refuse_small(store: Store, emotion: np.ndarray) -> None:
    """By name: an emotion of one row has no neighbour of its own, so it would count as always wrong."""
    single = sorted(name for name, count in Counter(emotion.tolist()).items() if count < 2)
    if single:
        raise InputError(
            f"{store.path}: one recording only of {', '.join(map(repr, single))}, two of each emotion are"
            " needed; name the others with --classes, or join it to another with --map OLD=NEW"
        )


def _score_layer(store: Store, rows: _Rows, layer: int, options: EvaluationOptions) -> LayerScore:
    from sklearn.metrics import accuracy_score, f1_score, recall_score

    vectors = store.load_rows(rows.index, layer, options.pooling)
    similarity = np.full((len(vectors), options.k), -np.inf, np.float32)
    neighbour = np.full((len(vectors), options.k), -1, np.int64)
    for queries, normalised in _normalised(options.normalisation, vectors, rows.group):
        queries = queries[rows.clean[queries]]
        apart: list[Groups] = [(code[queries], code) for code in (rows.group, rows.original)]
        found = nearest(normalised[queries], normalised, options.k, apart)
        similarity[queries], neighbour[queries] = found
    emotion = np.where(neighbour >= 0, rows.emotion[neighbour], NO_VOTE)[rows.clean]
    # A row that got no vote is wrong, and no emotion's false positive.
    _, winner = vote(emotion, similarity[rows.clean], len(rows.emotions), options.temperature)
    truth = rows.emotion[rows.clean]
    right = ((emotion == truth[:, None]).sum(axis=1), (emotion != NO_VOTE).sum(axis=1))
    precision = np.divide(*right, out=np.zeros(len(truth)), where=right[1] > 0)
    # Emotions that only copies have are nobody's truth: a mean over them would be of nothing.
    present = sorted(set(truth.tolist()))
    labels = {"labels": present, "zero_division": 0.0}
    recall = recall_score(truth, winner, average=None, **labels)
    return LayerScore(
        layer=layer,
        ua=float(recall.mean()),
        wa=float(accuracy_score(truth, winner)),
        macro_f1=float(f1_score(truth, winner, average="macro", **labels)),
        weighted_f1=float(f1_score(truth, winner, average="weighted", **labels)),
        precision_at_k=float(precision.mean()),
        recall={rows.emotions[code]: float(value) for code, value in zip(present, recall, strict=True)},
    )


def _normalised(name: str, vectors: np.ndarray, group: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Which queries int64 ``[n]`` to search, and unit vectors ``[N', D]`` of all rows for them.

    "group": each group by its own rows, without labels; "standard": all rows by the rows of the groups
    that are not left out.
    """
    if name == "standard":
        for code in np.unique(group):
            others = vectors[group != code]
            yield np.flatnonzero(group == code), unit(standardise(vectors.copy(), others))
        return
    for code in np.unique(group) if name == "group" else ():
        own = group == code
        vectors[own] = standardise(vectors[own])
    yield np.arange(len(vectors)), unit(vectors)


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
