"""Evaluation by neighbours: equals scikit-learn's by hand, and no speaker helps its own recordings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import shared
from sklearn.metrics import accuracy_score, f1_score, recall_score
from sklearn.model_selection import LeaveOneGroupOut
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from classifiers.charts.plots import write_chart
from classifiers.lookup.evaluation import PAIRS_KEPT, evaluate, find_near_duplicates
from extractor import InputError, SettingsError, Store, StoreError, extract
from tests.classifier_cases import clustered, write_embeddings


def by_hand(X: np.ndarray, y: np.ndarray, groups: np.ndarray, k: int, scale: str) -> dict[str, float]:
    """Leave-one-group-out kNN with scikit-learn alone, votes weighted by cosine."""
    predicted, precision = np.empty(len(y), object), np.empty(len(y))
    X = X.astype(np.float64)
    if scale == "group":
        X = X.copy()
        for group in np.unique(groups):
            X[groups == group] = StandardScaler().fit_transform(X[groups == group])
    for train, test in LeaveOneGroupOut().split(X, y, groups):
        scaler = StandardScaler(with_mean=scale == "standard", with_std=scale == "standard").fit(X[train])
        a, b = scaler.transform(X[train]), scaler.transform(X[test])
        knn = KNeighborsClassifier(k, metric="cosine", weights=lambda d: np.maximum(1 - d, 0)).fit(
            a, y[train]
        )
        predicted[test] = knn.predict(b)
        near = knn.kneighbors(b, return_distance=False)
        precision[test] = (y[train][near] == y[test][:, None]).mean(axis=1)
    return {
        "ua": recall_score(y, predicted, average="macro"),
        "wa": accuracy_score(y, predicted),
        "macro_f1": f1_score(y, predicted, average="macro"),
        "weighted_f1": f1_score(y, predicted, average="weighted"),
        "precision_at_k": precision.mean(),
    }


@pytest.mark.parametrize("normalisation", ["none", "standard", "group"])
@pytest.mark.parametrize("k", [1, 7])
def test_scores_are_those_of_scikit_learn_by_hand(normalisation: str, k: int, tmp_path: Path) -> None:
    vectors, labels = clustered(180, 9, num_layers=3)
    run = write_embeddings(tmp_path / "run", vectors, labels)
    result = evaluate(run, k=k, normalisation=normalisation)
    y = np.array([row["emotion"] for row in labels])
    groups = np.array([row["speaker"] for row in labels])
    assert [score.layer for score in result.layers] == [0, 1, 2]
    for score in result.layers:
        expected = by_hand(vectors[:, score.layer], y, groups, k, normalisation)
        assert {name: getattr(score, name) for name in expected} == pytest.approx(expected, abs=1e-12)
        assert np.mean(list(score.recall.values())) == pytest.approx(score.ua, abs=1e-12)
    assert result.best.ua == max(score.ua for score in result.layers)
    assert (result.queries, result.candidates, result.groups) == (180, 180, 4)


def test_the_own_speaker_is_never_a_neighbour(tmp_path: Path) -> None:
    """Each recording has a twin of its emotion from its own speaker; all other speakers mislead it."""
    rng = np.random.default_rng(0)
    vectors, labels = [], []
    for speaker in range(4):
        for emotion, sign in (("anger", 1.0), ("sadness", -1.0)):
            # Speakers 0 and 1 sound angry where 2 and 3 sound sad.
            direction = sign * (1 if speaker in (0, 1) else -1) * np.eye(6)[0]
            twin = direction + 0.1 * rng.standard_normal(6)
            vectors += [twin, twin]
            labels += [{"emotion": emotion, "speaker": str(speaker), "side": str(speaker // 2)}] * 2
    run = write_embeddings(tmp_path / "run", np.array(vectors)[:, None], labels)
    assert evaluate(run, k=1, leave_out="id").best.wa == 1.0
    assert evaluate(run, k=1, leave_out="side").best.wa == 0.0


def test_copies_of_a_recording_are_never_its_neighbours(tmp_path: Path) -> None:
    """Every copy lies on its original; what others have there is another emotion."""
    rng = np.random.default_rng(1)
    vectors, labels, ids = [], [], []
    for i in range(20):
        place, emotion = np.eye(10)[i // 2] + 0.01 * rng.standard_normal(10), ("anger", "fear")[i % 2]
        for copy in range(3):
            vectors.append(place)
            ids.append(f"o{i}~{copy}")
            labels.append(
                {"emotion": emotion, "speaker": f"s{i % 4}", "original": f"o{i}", "copy": str(copy)}
            )
    run = write_embeddings(tmp_path / "run", np.array(vectors)[:, None], labels, ids)
    with_copies = evaluate(run, k=1, leave_out="id", copies=True)
    assert (with_copies.queries, with_copies.candidates, with_copies.best.wa) == (20, 60, 0.0)
    clean = evaluate(run, k=1, leave_out="id")
    assert (clean.queries, clean.candidates, clean.best.wa) == (20, 20, 0.0)
    assert clean.duplicates is not None
    assert {i for pair in clean.duplicates.shown for i in pair.ids} <= {f"o{i}~0" for i in range(20)}


def test_rows_without_an_emotion_or_a_speaker_are_left_out_and_counted(tmp_path: Path) -> None:
    vectors, labels = clustered(120, 6)
    bare = write_embeddings(tmp_path / "bare", vectors[20:], labels[20:])
    for i in range(20):
        labels[i]["emotion" if i < 13 else "speaker"] = ""
    whole = write_embeddings(tmp_path / "whole", vectors, labels)
    a, b = evaluate(whole, duplicates_above=None), evaluate(bare, duplicates_above=None)
    assert (a.no_emotion, a.no_group, a.queries) == (13, 7, 100)
    assert a.layers == b.layers


def test_fewer_other_rows_than_k_are_all_used(tmp_path: Path) -> None:
    vectors, labels = clustered(12, 4, num_emotions=2, num_speakers=2, seed=3)
    run = write_embeddings(tmp_path / "run", vectors, labels)
    speaker = np.array([row["speaker"] for row in labels])
    most = max((speaker != name).sum() for name in set(speaker))
    assert evaluate(run, k=100).layers == evaluate(run, k=int(most)).layers


def test_a_dimension_that_does_not_vary_is_no_nan(tmp_path: Path) -> None:
    vectors, labels = clustered(60, 5)
    constant = np.concatenate([vectors, np.full((60, 1, 1), 0.1, np.float32)], axis=2)
    for normalisation in ("standard", "group"):
        with_it, without = (
            evaluate(
                write_embeddings(tmp_path / f"{normalisation}{d}", x, labels), normalisation=normalisation
            )
            for d, x in enumerate((constant, vectors))
        )
        assert with_it.layers == without.layers


# Near-duplicates


def test_planted_near_duplicates_are_found_and_segments_of_a_file_are_not(tmp_path: Path) -> None:
    vectors, labels = clustered(50, 32)
    paths = [f"/c/{i}.wav" for i in range(50)]
    checksums = [f"sum{i}" for i in range(50)]
    vectors[10], checksums[10] = vectors[3], "sum3"  # the same audio under another name
    vectors[20] = vectors[4] * 2.0  # all but the same direction
    vectors[20, 0, 0] += 1e-3
    vectors[30], paths[30] = vectors[5], paths[5]  # two segments of one file
    labels[3] |= {"speaker": "s0", "emotion": "anger"}
    labels[10] |= {"speaker": "s1", "emotion": "fear"}
    labels[4] |= {"speaker": "s2", "emotion": "anger"}
    labels[20] |= {"speaker": "s2", "emotion": "anger"}
    run = write_embeddings(tmp_path / "run", vectors, labels, paths=paths, checksums=checksums)
    found = find_near_duplicates(Store(run), 0)
    assert [pair.ids for pair in found.shown] == [("r003", "r010"), ("r004", "r020")]
    assert (found.pairs, found.recordings, found.across_groups, found.other_emotion) == (2, 4, 1, 1)
    assert (found.same_audio, found.shown[0].same_audio, found.shown[0].groups) == (1, True, ("s0", "s1"))
    everything = find_near_duplicates(Store(run), 0, threshold=-1.1)
    assert (everything.pairs, len(everything.shown)) == (50 * 49 // 2 - 1, PAIRS_KEPT)


# What is made of it


def test_a_chart_is_a_png_with_every_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.axes import Axes

    drawn: dict[str, list[float]] = {}
    plot = Axes.plot

    def watched(self: Axes, x: list[int], y: list[float], **options: object) -> object:
        drawn[str(options["label"])] = y
        assert x == [0, 1, 2]
        return plot(self, x, y, **options)

    monkeypatch.setattr(Axes, "plot", watched)
    vectors, labels = clustered(60, 5, num_layers=3)
    result = evaluate(write_embeddings(tmp_path / "run", vectors, labels), k=3)
    write_chart(result, tmp_path / "layers.png")
    assert (tmp_path / "layers.png").read_bytes().startswith(b"\x89PNG")
    assert drawn["UA"] == [100 * score.ua for score in result.layers]
    assert drawn["precision@3"] == [100 * score.precision_at_k for score in result.layers]
    with pytest.raises(InputError, match="cannot be written"):
        write_chart(result, tmp_path / "nowhere" / "layers.png")


def test_what_cannot_be_evaluated_is_refused(tmp_path: Path) -> None:
    vectors, labels = clustered(30, 4)
    run = write_embeddings(tmp_path / "run", vectors, labels)
    for options, message in (
        ({"k": 0}, "--k 0"),
        ({"leave_out": "speeker"}, "unknown column 'speeker'; known: speaker"),
        ({"normalisation": "zscore"}, "unknown normalisation"),
        ({"layers": (3,)}, r"layer 3 is not stored; there are: \[0\]"),
        ({"pooling": "max"}, "unknown pooling"),
        ({"temperature": -1.0}, "--temperature"),
        ({"leaveout": "speaker"}, "leaveout"),
    ):
        with pytest.raises(SettingsError, match=message):
            evaluate(run, **options)
    alone = write_embeddings(tmp_path / "alone", vectors, [row | {"speaker": "s"} for row in labels])
    with pytest.raises(InputError, match="two values of 'speaker' are needed, there is only 's'"):
        evaluate(alone)
    bare = write_embeddings(tmp_path / "bare", vectors, [{"speaker": row["speaker"]} for row in labels])
    with pytest.raises(InputError, match=r"two values of 'emotion' .* none \(0 of 30"):
        evaluate(bare)
    with pytest.raises(StoreError, match="no such run"):
        evaluate(tmp_path / "nowhere")


def test_emodb_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Spectral features of acted speech, speakers apart: far above guessing, below the leaky figure."""
    store = extract(shared("emodb"), model="mfcc", pooling="meanstd", out=tmp_path / "run")
    apart, leaky = (evaluate(tmp_path / "run", leave_out=column) for column in ("speaker", "id"))
    with capsys.disabled():
        print(f"\nEmoDB, mfcc meanstd, 10 nearest, leave one speaker out: UA {apart.best.ua:.1%} ", end="")
    assert apart.queries == len(store)
    assert apart.groups == 10
    assert apart.best.ua > 2 / len(apart.emotions)  # twice what guessing gets
    assert leaky.best.precision_at_k > apart.best.precision_at_k
