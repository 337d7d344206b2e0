"""Every protocol: each clean row tested once, nothing on both sides of a fold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from classifiers.data.features import Features
from classifiers.data.source import Labelling, Source
from classifiers.training.protocols import (
    PROTOCOLS,
    Fold,
    check_folds,
    fit_groups,
    inner_splits,
    make_folds,
    shares_speakers,
)
from extractor.errors import InputError, SettingsError
from tests.classifier_cases import Corpus, corpus, without, write_run

# Speakers as the corpora of the published folds name them.
NAMES: dict[str, Callable[[int], str]] = {
    "emobox-ravdess": lambda k: f"{k + 1:02}",
    "emobox-savee": lambda k: ("DC", "JE", "JK", "KL")[k],
}
NUM_SPEAKERS = {"emobox-ravdess": 24, "emobox-savee": 4}
PARTIAL = ("split", "stratified-80-10-10")  # test some of the rows only, by intent


def opened(tmp_path: Path, rows: Corpus, labelling: Labelling | None = None) -> Features:
    return Features.open([Source(str(write_run(tmp_path / "run", rows)))], labelling)


def relabelled(rows: Corpus, **columns: Callable[[int, dict[str, str]], str]) -> Corpus:
    """Each column as it is made of the row's number and its labels."""
    labels = [
        row | {column: make(i, row) for column, make in columns.items()} for i, row in enumerate(rows.labels)
    ]
    return replace(rows, labels=labels)


def features_for(
    tmp_path: Path, protocol: str = "loso", copies: int = 2, labelling: Labelling | None = None
) -> Features:
    rows = corpus(NUM_SPEAKERS.get(protocol, 6), takes=3, copies=copies, dim=2)
    if protocol in NAMES:
        rows = relabelled(rows, speaker=lambda _, row: NAMES[protocol](int(row["speaker"][1:])))
    return opened(tmp_path, rows, labelling)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_each_clean_row_is_tested_once_and_nothing_crosses_a_fold(protocol: str, tmp_path: Path) -> None:
    features = features_for(tmp_path, protocol)
    folds, _ = make_folds(features, protocol, num_folds=3)
    tested = np.concatenate([fold.test for fold in folds])
    assert len(np.unique(tested)) == len(tested)
    assert features.clean[tested].all()
    if protocol not in PARTIAL:
        assert set(tested.tolist()) == set(np.flatnonzero(features.clean).tolist())
    originals = np.array(features.originals)
    for fold in folds:
        assert not set(originals[fold.train]) & set(originals[fold.test])
        assert not np.intersect1d(fold.train, fold.test).size
        column = PROTOCOLS[protocol].group
        if column is not None:
            group = np.array(features.column(column))
            assert not set(group[fold.train]) & set(group[fold.test])
    # Copies are trained on, those of tested originals excepted.
    fold = folds[0]
    assert not features.clean[fold.train].all()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_inner_splits_stay_inside_the_training_rows(protocol: str, tmp_path: Path) -> None:
    features = features_for(tmp_path, protocol)
    folds, _ = make_folds(features, protocol, num_folds=3)
    originals, column = np.array(features.originals), PROTOCOLS[protocol].group
    group = originals if column is None else np.array(features.column(column))
    for fold in folds:
        splits = inner_splits(features, fold, protocol, 3, seed=0)
        held = np.concatenate([validation for _, validation in splits])
        assert len(np.unique(held)) == len(held)
        assert features.clean[held].all()
        for train, validation in splits:
            assert np.isin(train, fold.train).all()
            assert np.isin(validation, fold.train).all()
            assert not set(group[train]) & set(group[validation])
            assert not set(originals[train]) & set(originals[validation])
        if fold.dev is not None:
            assert len(splits) == 1
            assert set(held.tolist()) == set(fold.dev.tolist())


# EmoBox (Ma et al. 2024), written out: a test that reads the constant of the code tests nothing.
PUBLISHED = {
    "emobox-ravdess": [
        {"01", "11", "20", "21"},
        {"04", "10", "12", "14"},
        {"08", "09", "19", "23"},
        {"03", "05", "07", "24"},
        {"02", "15", "16", "18"},
        {"06", "13", "17", "22"},
    ],
    "emobox-savee": [{"JE"}, {"KL"}, {"DC"}, {"JK"}],
}


def speakers_tested(features: Features, protocol: str) -> list[set[str]]:
    speaker = features.column("speaker")
    folds, _ = make_folds(features, protocol)
    return [{speaker[row] for row in fold.test.tolist()} for fold in folds]


@pytest.mark.parametrize("protocol", PUBLISHED)
def test_emobox_folds_are_the_published_ones(protocol: str, tmp_path: Path) -> None:
    features = features_for(tmp_path, protocol, copies=0)
    assert speakers_tested(features, protocol) == PUBLISHED[protocol]


def test_published_folds_are_of_their_own_speakers_only(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the run has speaker 's0'"):
        make_folds(features_for(tmp_path), "emobox-savee")


def test_iemocap_leaves_out_each_session_with_both_its_speakers(tmp_path: Path) -> None:
    speakers = [f"Ses0{session}{sex}" for session in range(1, 6) for sex in "FM"]
    name = lambda _, row: speakers[int(row["speaker"][1:])]  # noqa: E731
    rows = relabelled(corpus(10, takes=1, dim=2), speaker=name, session=lambda i, row: name(i, row)[:-1])
    pairs = [set(speakers[k : k + 2]) for k in range(0, 10, 2)]
    assert speakers_tested(opened(tmp_path, rows), "session") == pairs


@pytest.mark.parametrize("protocol", [name for name, row in PROTOCOLS.items() if row.shuffled])
def test_shuffled_folds_follow_the_seed(protocol: str, tmp_path: Path) -> None:
    features = features_for(tmp_path, protocol)

    def tests(seed: int) -> list[list[int]]:
        return [fold.test.tolist() for fold in make_folds(features, protocol, 3, seed)[0]]

    assert tests(1) == tests(1)
    assert tests(1) != tests(2)


def test_a_speaker_who_crosses_is_a_leak_and_refused(tmp_path: Path) -> None:
    """Planted: one row of a tested speaker among the training rows."""
    features = features_for(tmp_path)
    fold = make_folds(features, "loso")[0][0]
    leaky = replace(fold, train=np.append(fold.train, fold.test[0]), test=fold.test[1:])
    with pytest.raises(InputError, match=r"speaker .*s0.* a leak"):
        check_folds(features, [leaky], "speaker")
    with pytest.raises(InputError, match="tested more than once"):
        check_folds(features, [fold, replace(fold, name="again")], "speaker")


def test_a_copy_that_crosses_is_a_leak_and_refused(tmp_path: Path) -> None:
    features = features_for(tmp_path)
    copy = np.flatnonzero(~features.clean)[:1]
    clean = np.array([features.ids.index(features.originals[int(copy[0])])])
    train = np.append(copy, np.flatnonzero(features.y != features.y[0]))
    with pytest.raises(InputError, match=r"original .* a leak"):
        check_folds(features, [Fold("x", train, clean)], None)


def test_speaker_dependence_is_seen_whatever_the_protocol_is_called(tmp_path: Path) -> None:
    features = features_for(tmp_path)
    for protocol, shares in (("loso", False), ("split", False), ("stratified-kfold", True)):
        assert shares_speakers(features, make_folds(features, protocol, 3)[0]) is shares, protocol
    features = opened(tmp_path / "unknown", relabelled(corpus(4), speaker=lambda *_: ""))
    assert shares_speakers(features, make_folds(features, "stratified-kfold", 3)[0]) is None


def test_training_rows_of_one_class_are_refused(tmp_path: Path) -> None:
    rows = corpus(2)
    one = without(rows, [row["speaker"] == "s0" or row["emotion"] == "anger" for row in rows.labels])
    features = opened(tmp_path, one)
    with pytest.raises(InputError, match=r"fold 's0': its 3 training rows are of one class \(anger\)"):
        make_folds(features, "loso")


@pytest.mark.parametrize(
    ("protocol", "folds", "message"),
    [
        ("grouped-kfold", 7, "there are 6 groups only"),
        ("stratified-kfold", 30, "has 18 recordings, 30 are needed"),
    ],
)
def test_folds_that_cannot_be_made_are_refused(
    protocol: str, folds: int, message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        make_folds(features_for(tmp_path), protocol, folds)


@pytest.mark.parametrize("inside", [False, True])
def test_where_no_class_has_a_recording_a_part_it_is_said(inside: bool, tmp_path: Path) -> None:
    features = opened(tmp_path, relabelled(corpus(6), emotion=lambda i, _: f"c{i // 2}"))
    if inside:  # one recording of each class is left to train on: no two parts
        whole = np.arange(len(features))
        of_fold = Fold("s1", whole[::2], whole[1::2])
        with pytest.raises(InputError, match="no class has more than 1 recording;"):
            inner_splits(features, of_fold, "stratified-kfold", 5, seed=0)
    else:
        with pytest.raises(InputError, match=r"--protocol grouped-kfold.* more than 2 recordings;"):
            make_folds(features, "grouped-kfold", 5)


def test_a_note_does_not_name_every_speaker(tmp_path: Path) -> None:
    features = opened(tmp_path, relabelled(corpus(6), speaker=lambda i, _: f"one{i:03}"))
    (note,) = [n for n in make_folds(features, "loso")[1] if "one class only" in n]
    assert note.count("one0") == 5 and f"and {len(features) - 5} more:" in note


def test_a_column_that_is_not_there_is_refused_with_the_nearest(tmp_path: Path) -> None:
    rows = corpus(3)
    bare = replace(rows, labels=[{k: row[k] for k in ("emotion", "speaker")} for row in rows.labels])
    features = opened(tmp_path, bare)
    with pytest.raises(SettingsError, match="--protocol: unknown column 'session'; known: emotion"):
        make_folds(features, "session")
    with pytest.raises(SettingsError, match="known: loso"):
        make_folds(features, "losso")


def test_a_split_that_is_not_understood_is_refused(tmp_path: Path) -> None:
    rows = corpus(3)
    for value, message in (("tests", "column 'split' has 'tests'"), ("dev", "names no 'test' rows")):
        changed = relabelled(rows, split=lambda _, row, v=value: row["split"].replace("test", v))
        with pytest.raises(InputError, match=message):
            make_folds(opened(tmp_path / value, changed), "split")


def test_copies_that_contradict_their_original_are_refused(tmp_path: Path) -> None:
    rows = corpus(3, copies=1)
    rows.labels[1] = rows.labels[1] | {"speaker": "s2"}
    features = opened(tmp_path, rows)
    with pytest.raises(InputError, match="another speaker than"):
        make_folds(features, "loso")


def test_estimators_keep_speakers_apart_or_else_originals(tmp_path: Path) -> None:
    features = features_for(tmp_path)
    assert len(set(fit_groups(features, "loso").tolist())) == 6
    by_original = fit_groups(features, "stratified-kfold")
    assert len(set(by_original.tolist())) == len(features) // 3
    assert (by_original[::3] == by_original[1::3]).all()
