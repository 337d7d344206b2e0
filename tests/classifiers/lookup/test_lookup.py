"""Lookup: a query is embedded as the run was, its neighbours are the nearest, their vote is fair."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import FP32_RELATIVE, MakeCheckpoint

from classifiers import lookup
from classifiers.lookup import Hits, search
from classifiers.lookup.hits import NO_VOTE, Neighbour, shares_of, vote
from classifiers.lookup.search import Query
from extractor import InputError, SettingsDiffer, SettingsError, Store, StoreError, extract
from extractor.index import IndexStale, build
from extractor.store.pack import pack
from extractor.types import Failure
from tests.classifier_cases import clustered, write_embeddings

# Cosines in float32: a product of a few dozen terms, once by FAISS and once by numpy.
COSINE_ERROR = 1e-6


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of 12 recordings, each a tone of its own in noise; one stereo, one cut out of a file."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    lines = ["id,path,emotion,speaker,start,end"]
    for i in range(12):
        seconds = np.arange(int(rng.integers(8_000, 24_000))) / 16_000
        audio = 0.2 * np.sin(2 * np.pi * 250 * (i + 1) * seconds) + 0.02 * rng.standard_normal(len(seconds))
        if i == 3:
            audio = np.stack([audio, 0.1 * rng.standard_normal(len(audio))], axis=1)
        soundfile.write(folder / f"n{i:02}.wav", audio, 16_000)
        span = "0.05,0.4" if i == 5 else ","
        lines.append(f"u{i:02},n{i:02}.wav,{('anger', 'sad', '')[i % 3]},s{i % 4},{span}")
    (folder / "corpus.csv").write_text("\n".join(lines) + "\n")
    return folder / "corpus.csv"


@pytest.fixture(scope="module")
def mfcc(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("mfcc") / "run"
    extract(corpus, model="mfcc", pooling="meanstd", out=run)
    return run


@pytest.fixture
def given(tmp_path: Path) -> Path:
    """A run of 90 given vectors, two layers; every seventh has no emotion."""
    vectors, labels = clustered(90, 7, num_layers=2)
    for i in range(0, 90, 7):
        labels[i]["emotion"] = ""
    return write_embeddings(tmp_path / "given", vectors, labels)


def cosines(run: Path, vector: np.ndarray, layer: int = 0) -> np.ndarray:
    rows = Store(run).load(layer).astype(np.float64)
    return rows @ vector / np.linalg.norm(rows, axis=1) / np.linalg.norm(vector)


def expected(run: Path, vector: np.ndarray, k: int, allowed: Callable[[int], bool]) -> list[int]:
    similarity = cosines(run, vector)
    return [row for row in np.argsort(-similarity, kind="stable").tolist() if allowed(row)][:k]


def found_rows(hits: Hits) -> list[int]:
    return [neighbour.row for neighbour in hits.neighbours]


# A query is embedded as the run's rows were


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("mfcc", {"pooling": "mean,meanstd"}),
        ("mfcc", {"pooling": "std", "channel": 0}),
        ("hubert", {"dtype": "fp32", "layers": "0,1,2"}),
        ("wavlm", {"dtype": "fp32", "layers": "all", "pooling": "mean,max"}),
    ],
)
def test_a_stored_recording_as_a_query_gives_its_stored_vector(
    model: str, options: dict[str, str], corpus: Path, checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    if model != "mfcc":
        model = str(checkpoint(model, do_stable_layer_norm=True, feat_extract_norm="layer"))
    inputs = corpus if "channel" not in options else sorted(corpus.parent.glob("n0*.wav"))
    store = extract(inputs, model=model, out=tmp_path / "run", **options)
    for pooling, layer in product(store.poolings, store.layers[-2:]):
        queries = lookup.open(tmp_path / "run", layer, pooling).embed(inputs)
        vectors = np.stack([query.vector for query in queries if isinstance(query, Query)])
        stored = store.load(layer, pooling)
        errors = np.linalg.norm(vectors - stored, axis=1) / np.linalg.norm(stored, axis=1)
        assert errors.max() < FP32_RELATIVE


def test_long_queries_are_windowed_as_the_run_was(checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    """With the default window instead of the run's, a transformer's rows differ by percents."""
    soundfile.write(tmp_path / "long.wav", 0.1 * np.random.default_rng(0).standard_normal(320_000), 16_000)
    store = extract(
        tmp_path / "long.wav", model=str(checkpoint()), out=tmp_path / "run", dtype="fp32", window=10
    )
    (query,) = lookup.open(tmp_path / "run", layer=-1).embed(tmp_path / "long.wav")
    assert isinstance(query, Query)
    stored = store.load(-1)[0]
    assert np.linalg.norm(query.vector - stored) < FP32_RELATIVE * np.linalg.norm(stored)


def test_a_stored_recording_finds_itself(mfcc: Path) -> None:
    opened = lookup.open(mfcc)
    store = Store(mfcc)
    for row, path in enumerate(store.paths):
        if row == 5:
            continue  # the row is a part of the file
        first = opened.search(path, k=1).neighbours[0]
        assert (first.row, first.id, first.path, first.rank) == (row, store.ids[row], path, 1)
        assert first.similarity == pytest.approx(1, abs=COSINE_ERROR)


def test_another_model_is_refused_by_name_of_what_differs(
    corpus: Path, mfcc: Path, checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    one, other = checkpoint(), checkpoint(intermediate_size=64)
    extract(corpus, model=str(one), out=tmp_path / "run", dtype="fp32", layers="last")
    recording = corpus.parent / "n00.wav"
    with pytest.raises(SettingsDiffer, match="weights: the run has"):
        lookup.open(tmp_path / "run", model=str(other)).search(recording)
    with pytest.raises(SettingsDiffer, match="model: the run has 'mfcc', this is 'logmel'"):
        lookup.open(mfcc, model="logmel").search(recording)
    moved = tmp_path / "elsewhere" / one.name
    shutil.copytree(one, moved)
    assert lookup.open(tmp_path / "run", model=str(moved)).search(recording, k=1).neighbours


def test_a_run_that_does_not_name_its_model_says_so(given: Path, corpus: Path) -> None:
    with pytest.raises(StoreError, match="--model"):
        lookup.open(given, 0).search(corpus.parent / "n00.wav")


# Neighbours are the nearest of those that may be


@pytest.mark.parametrize("indexed", [False, True])
def test_neighbours_are_those_of_a_brute_force_product(given: Path, indexed: bool) -> None:
    if indexed:
        build(given, 0, "mean", "flat")
    opened, store = lookup.open(given, 0), Store(given)
    assert bool(opened.notes) is not indexed
    speaker, emotion = store.labels("speaker"), store.labels("emotion")
    rng = np.random.default_rng(1)
    for _ in range(20):
        vector = rng.standard_normal(7).astype(np.float32)
        hits = opened.search(vector, k=9)
        assert found_rows(hits) == expected(given, vector, 9, lambda row: True)
        similarity = [neighbour.similarity for neighbour in hits.neighbours]
        np.testing.assert_allclose(similarity, cosines(given, vector)[found_rows(hits)], atol=COSINE_ERROR)
        assert [neighbour.labels["speaker"] for neighbour in hits.neighbours] == [
            speaker[row] for row in found_rows(hits)
        ]
        where = "emotion in ('anger', '') or age > 22"  # speaker s3 is 23 years old
        filtered = opened.search(vector, k=9, where=where, exclude_speaker="s1")
        allowed = [
            who != "s1" and (what in ("anger", "") or who == "s3")
            for who, what in zip(speaker, emotion, strict=True)
        ]
        assert found_rows(filtered) == expected(given, vector, 9, allowed.__getitem__)


@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.parametrize("overfetched", [0, 64])
def test_a_row_is_not_its_own_neighbour(
    given: Path, indexed: bool, overfetched: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it is left out by looking past it, or by telling the index."""
    monkeypatch.setattr(search, "OVERFETCHED", overfetched)
    if indexed:
        build(given, 0, "mean", "flat")
    opened, store = lookup.open(given, 0), Store(given)
    speaker, vectors = store.labels("speaker"), store.load(0)
    for row in (0, 41, 89):
        for k in (8, 1_000):  # fewer rows than are asked for are all of them
            hits = opened.search(row=store.ids[row], k=k)
            assert found_rows(hits) == expected(given, vectors[row], k, lambda other, row=row: other != row)
            assert (hits.k, hits.candidates) == (k, 89)
        others = opened.search(row=store.ids[row], k=8, exclude_own_speaker=True)
        stranger = [who != speaker[row] for who in speaker]
        assert found_rows(others) == expected(given, vectors[row], 8, stranger.__getitem__)


def test_the_querys_own_speaker_and_file_can_be_left_out(mfcc: Path, tmp_path: Path) -> None:
    opened, store = lookup.open(mfcc), Store(mfcc)
    path, speaker = store.paths[2], store.labels("speaker")
    assert found_rows(opened.search(path, k=12, exclude_own_file=True)).count(2) == 0
    same = shutil.copy(path, tmp_path / "another-name.wav")
    assert 2 not in found_rows(opened.search(same, k=12, exclude_own_file=True))
    for query in (path, same):
        rows = found_rows(opened.search(query, k=12, exclude_own_speaker=True))
        assert {speaker[row] for row in rows} == {"s0", "s1", "s3"}
    stranger = tmp_path / "stranger.wav"
    soundfile.write(stranger, 0.1 * np.random.default_rng(3).standard_normal(9_000), 16_000)
    with pytest.raises(SettingsError, match="--exclude-speaker"):
        opened.search(stranger, exclude_own_speaker=True)
    with pytest.raises(SettingsError, match="no row has the speaker 's9'"):
        opened.search(path, exclude_speaker="s9")


def test_augmented_copies_are_neighbours_only_on_request(tmp_path: Path) -> None:
    vectors, labels = clustered(60, 5)
    ids = []
    for i, row in enumerate(labels):  # 20 recordings, two copies of each
        name, copy = f"o{i // 3}", i % 3
        row |= {"original": name, "copy": str(copy), "augmentation": "noise" if copy else "none"}
        ids.append(f"{name}~{copy}" if copy else name)
    run = write_embeddings(tmp_path / "run", vectors, labels, ids)
    opened = lookup.open(run)
    stored = Store(run).load(0)
    clean = opened.search(row="o4", k=50)
    assert found_rows(clean) == expected(run, stored[12], 50, lambda row: row % 3 == 0 and row != 12)
    assert clean.candidates == 19
    every = opened.search(row="o4", k=60, copies=True)
    assert found_rows(every) == expected(run, stored[12], 60, lambda row: row // 3 != 4)
    altered = np.flatnonzero(np.arange(60) % 3).tolist()
    only = write_embeddings(
        tmp_path / "only", vectors[altered], [labels[i] for i in altered], [ids[i] for i in altered]
    )
    with pytest.raises(SettingsError, match="--copies"):
        lookup.open(only).search(row="o4~1")
    assert lookup.open(only).search(row="o4~1", k=60, copies=True).candidates == 38


def test_an_augmented_run_is_searched_with_the_recording_as_it_is(corpus: Path, tmp_path: Path) -> None:
    recordings = sorted(corpus.parent.glob("n*.wav"))
    drawn: dict[str, Any] = {"augment": "stretch:rate=0.8-1.25", "copies": 2}
    store = extract(recordings, model="mfcc", out=tmp_path / "run", **drawn)
    opened = lookup.open(tmp_path / "run")
    path = str(corpus.parent / "n04.wav")
    (clean,) = [i for i, p in enumerate(store.paths) if p == path and store.labels("copy")[i] == "0"]
    hits = opened.search(path, k=36)
    assert (hits.neighbours[0].row, hits.candidates) == (clean, 12)
    assert hits.neighbours[0].similarity == pytest.approx(1, abs=COSINE_ERROR)
    without = opened.search(path, k=36, copies=True, exclude_own_file=True)
    assert without.candidates == 33
    assert path not in [neighbour.path for neighbour in without.neighbours]


# Votes


def test_a_vote_by_hand() -> None:
    emotion, similarity = np.array([[0, 1, 1, NO_VOTE, 2]]), np.array([[0.9, 0.5, 0.3, 0.2, -0.4]])
    w = np.exp(similarity[0])
    of_exp = np.array([w[0], w[1] + w[2], w[4]]) / (w.sum() - w[3])
    for temperature, shares, wins in ((None, [0.9 / 1.7, 0.8 / 1.7, 0], 0), (1.0, of_exp, 1)):
        share, winner = vote(emotion, similarity, 3, temperature)
        np.testing.assert_allclose(share, [shares])
        assert winner.tolist() == [wins]


def test_of_equal_shares_the_nearest_wins() -> None:
    emotion, similarity = np.array([[2, 0, 0, 2], [0, 2, 2, 0]]), np.array([[0.75, 0.5, 0.5, 0.25]] * 2)
    share, winner = vote(emotion, similarity, 3)
    assert np.array_equal(share, [[0.5, 0, 0.5]] * 2)
    assert winner.tolist() == [2, 0]


def test_a_low_temperature_leaves_the_nearest_alone_and_a_high_one_counts_heads() -> None:
    emotion, similarity = np.array([[1, 0, 0]]), np.array([[0.9, 0.8, 0.7]])
    low, high = (vote(emotion, similarity, 2, t)[0][0] for t in (1e-6, 1e6))
    np.testing.assert_allclose(low, [0, 1], atol=1e-12)
    np.testing.assert_allclose(high, [2 / 3, 1 / 3], atol=1e-6)  # exp(0.2 / 1e6) is 1 to that


def test_nobody_votes_without_an_emotion_or_at_a_right_angle() -> None:
    for labels, similarity in (("", 0.9), ("anger", 0.0), ("anger", -0.5)):
        assert shares_of([Neighbour(1, "a", "a.wav", similarity, {"emotion": labels}, 0)]) == {}
    assert shares_of([]) == {}
    nothing = Hits("q", (), {}, 5, 0, 0, "mean")
    assert (nothing.winner, nothing.confidence, nothing.margin) == (None, 0.0, 0.0)


def test_hits_say_what_was_voted(given: Path) -> None:
    opened = lookup.open(given, 0)
    for row in ("r001", "r002", "r050"):
        hits = opened.search(row=row, k=12)
        weights: dict[str, float] = {}
        for neighbour in hits.neighbours:
            if emotion := neighbour.labels["emotion"]:
                weights[emotion] = weights.get(emotion, 0) + max(neighbour.similarity, 0)
        total = sum(weights.values())
        assert hits.vote == pytest.approx({e: w / total for e, w in weights.items()})
        first, second = (*sorted(hits.vote.values(), reverse=True), 0.0)[:2]
        assert hits.confidence == first == hits.vote[str(hits.winner)]
        assert hits.margin == pytest.approx(first - second)
        said = json.loads(json.dumps(hits.to_dict()))
        assert said["winner"] == hits.winner
        assert [n["row"] for n in said["neighbours"]] == found_rows(hits)


# Several queries, and what goes wrong


def test_a_batch_goes_on_past_recordings_that_cannot_be_decoded(
    corpus: Path, mfcc: Path, tmp_path: Path
) -> None:
    for name in ("n01", "n02"):
        shutil.copy(corpus.parent / f"{name}.wav", tmp_path)
    (tmp_path / "n01b.wav").write_bytes(b"RIFF....WAVE no audio at all")
    (tmp_path / "n01c.wav").write_bytes(b"")
    soundfile.write(tmp_path / "n03.wav", np.zeros(20), 16_000)  # too short for a frame
    opened = lookup.open(mfcc)
    found = list(opened.search_batch(tmp_path, k=3))
    assert [type(each) for each in found] == [Hits, Failure, Failure, Hits, Failure]
    failed = [Path(each.path).name for each in found if isinstance(each, Failure)]
    assert failed == ["n01b.wav", "n01c.wav", "n03.wav"]
    alone = [found_rows(opened.search(tmp_path / f"{name}.wav", k=3)) for name in ("n01", "n02")]
    assert [found_rows(each) for each in found if isinstance(each, Hits)] == alone
    for name, message in (
        ("n01c.wav", r"n01c\.wav: "),
        ("", "names 5 recordings; use search_batch"),
        ("nowhere.wav", "does not exist"),
    ):
        with pytest.raises(InputError, match=message):
            opened.search(tmp_path / name)


def test_a_query_whose_speaker_is_unknown_does_not_end_a_batch(
    mfcc: Path, corpus: Path, tmp_path: Path
) -> None:
    shutil.copy(corpus.parent / "n01.wav", tmp_path / "known.wav")
    soundfile.write(tmp_path / "other.wav", 0.1 * np.random.default_rng(3).standard_normal(9_000), 16_000)
    found = list(lookup.open(mfcc).search_batch(tmp_path, exclude_own_speaker=True))
    assert [type(each) for each in found] == [Hits, Failure]
    assert isinstance(found[1], Failure)
    assert "--exclude-speaker" in found[1].reason


def test_rules_that_cannot_work_are_refused_before_a_model_is_loaded(given: Path) -> None:
    opened = lookup.open(given, 0)
    refused: list[tuple[Any, dict[str, Any], str]] = [
        ("nowhere.wav", {"k": 0}, "--k 0"),
        ("nowhere.wav", {"where": "emotion == 'joy'"}, "holds for no row"),
        ("nowhere.wav", {"where": "emotoin == 'anger'"}, "unknown column 'emotoin'; known: emotion, "),
        ("nowhere.wav", {"temperature": 0.0}, "--temperature"),
        ("nowhere.wav", {"wher": "emotion == 'anger'"}, "wher"),
        (None, {"row": "r01"}, r"no row has the id 'r01'; near to it: r\d\d\d, "),
        ("a.wav", {"row": "r001"}, "name one query"),
        (np.ones(8, np.float32), {}, r"shape \(8,\): the run's rows are \(7,\)"),
        (np.full(7, np.nan, np.float32), {}, "not finite"),
        (np.zeros(7, np.float32), {}, "a query of zeros has no direction to compare"),
    ]
    for query, rules, message in refused:
        with pytest.raises(SettingsError, match=message):
            opened.search(query, **rules)


def test_what_cannot_be_opened_says_why(given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = write_embeddings(tmp_path / "empty", np.zeros((0, 1, 4), np.float32), [])
    assert lookup.open(given, -1).layer == 1
    for error, run, place, message in (
        (StoreError, empty, (), "no rows"),
        (StoreError, tmp_path / "nowhere", (), "no such run"),
        (SettingsError, given, (9,), r"layer 9 is not stored; there are: \[0, 1\]"),
        (SettingsError, given, (0, "max"), "unknown pooling 'max'"),
        (SettingsError, given, (0, "none"), "unknown pooling 'none'; known: mean"),
        (SettingsError, given, (), r"name a --layer and --pooling; .* mean:0, mean:1"),
        (StoreError, given, (1,), r"hser-lookup build .* --layer 1"),
    ):
        monkeypatch.setattr(search, "MAX_ROWS", 89 if place == (1,) else 200_000)
        with pytest.raises(error, match=message):
            lookup.open(run, *place)


def test_the_only_index_needs_no_name_and_one_of_several_does(given: Path) -> None:
    build(given, 1, "mean", "flat")
    opened = lookup.open(given)
    assert (opened.layer, opened.pooling, opened.index.kind) == (1, "mean", "flat")
    assert "in memory" in lookup.open(given, 0).notes[0]
    build(given, 0, "mean", "flat")
    with pytest.raises(SettingsError, match="there are indexes mean:0, mean:1"):
        lookup.open(given)


def test_an_index_that_does_not_fit_its_run_is_refused_with_the_command(corpus: Path, tmp_path: Path) -> None:
    recordings = sorted(corpus.parent.glob("n*.wav"))
    extract(recordings[:6], model="mfcc", out=tmp_path / "run")
    build(tmp_path / "run", 0, "mean", "flat")
    extract(recordings, model="mfcc", out=tmp_path / "run")
    with pytest.raises(IndexStale, match="hser-lookup build"):
        lookup.open(tmp_path / "run")


def test_a_packed_file_is_searched_as_its_run(given: Path, tmp_path: Path) -> None:
    pack(given, tmp_path / "one.h5")
    packed, folder = (lookup.open(place, 0).search(row="r005") for place in (tmp_path / "one.h5", given))
    assert packed.to_dict() == folder.to_dict()


def test_an_index_normalised_by_speaker_is_told_the_querys_speaker(given: Path) -> None:
    """A row then has the vector that it has in the index, and is its own nearest but for being left out."""
    build(given, 0, "mean", "flat", "speaker")
    opened, store = lookup.open(given, 0), Store(given)
    vectors, speaker = store.load(0).astype(np.float64), np.array(store.labels("speaker"))
    for name in np.unique(speaker):
        own = speaker == name
        vectors[own] = (vectors[own] - vectors[own].mean(0)) / vectors[own].std(0)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    for row in (3, 40):
        order = np.argsort(-(vectors @ vectors[row]), kind="stable").tolist()
        assert found_rows(opened.search(row=store.ids[row], k=6)) == [r for r in order if r != row][:6]
