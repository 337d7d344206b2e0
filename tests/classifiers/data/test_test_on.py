"""Augmented copies as what is tested: chosen, named, told apart by augmentation, never across a split."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from model_cases import model_of, write_tones

from classifiers.commands.evaluate import hser_evaluate
from classifiers.commands.report import command as hser_report
from classifiers.commands.train import command as hser_train
from classifiers.data.features import Features, Source
from classifiers.data.runs import augmentations_of, kind_of
from classifiers.lookup.evaluation import evaluate
from classifiers.studies.cross_corpus import cross_matrix
from classifiers.studies.transfer import transfer
from classifiers.training.config import Experiment
from classifiers.training.experiment import open_features, run_experiment, train_on_all
from classifiers.training.protocols import PROTOCOLS, make_folds
from extractor import extract
from extractor.augment import parse
from extractor.augment.copies import configured
from extractor.errors import HserError, InputError, SettingsError
from extractor.run.render import render
from extractor.store import Store
from tests.classifier_cases import (
    Corpus,
    corpus,
    invoke,
    labelled,
    num_tested,
    part,
    refused,
    said,
    without,
    write_run,
)

pytestmark = pytest.mark.usefixtures("without_charts")
RECIPES = ("none", "noise:color=white,key=1,snr_db=5.0", "stretch:rate=1.1+gain:db=-3.0")
AUGMENTED = {"augmentation": "(noise|stretch+gain)"}  # of a run that made its copies itself
KINDS = ("none", "noise", "stretch+gain")


@pytest.fixture
def rows() -> Corpus:
    """Three speakers, 12 recordings each: as they are, in noise, and stretched."""
    made = corpus(3, signal=0.9, copies=2)
    return labelled(made, "augmentation", [RECIPES[int(row["copy"])] for row in made.labels])


def copies_of(rows: Corpus, *numbers: int) -> Corpus:
    return without(rows, [int(row["copy"]) in numbers for row in rows.labels])


@pytest.mark.parametrize(
    ("test_on", "numbers"),
    [
        ("clean", {0}),
        ("copies", {1, 2}),
        ("noise", {1}),
        ("stretch", {2}),
        ("gain", {2}),
        ("stretch+gain", {2}),
    ],
)
def test_the_rows_that_are_named_are_tested(
    test_on: str, numbers: set[int], rows: Corpus, tmp_path: Path
) -> None:
    path = str(write_run(tmp_path / "run", rows, settings=AUGMENTED))
    result = run_experiment(Experiment((path,), test_on=test_on))
    expected = [i for i, row in enumerate(rows.labels) if int(row["copy"]) in numbers]
    assert result.predictions[0].rows.tolist() == expected
    by_kind = result.figures()["by_augmentation"]
    assert set(by_kind) == ({KINDS[n] for n in numbers} if test_on != "clean" else set())
    assert all(of["num_tested"] == 36 for of in by_kind.values())


def test_a_figure_by_augmentation_is_of_its_rows_alone(rows: Corpus, tmp_path: Path) -> None:
    path = str(write_run(tmp_path / "run", rows, settings=AUGMENTED))
    together = run_experiment(Experiment((path,), test_on="copies")).figures()
    for name in ("noise", "stretch"):
        alone = run_experiment(Experiment((path,), test_on=name)).figures()["mean"]
        kind = "stretch+gain" if name == "stretch" else name
        for key in ("UA", "WA", "macro_f1"):
            assert together["by_augmentation"][kind][key] == pytest.approx(alone[key])
    every = run_experiment(Experiment((path,), copies="all")).figures()
    assert set(every["by_augmentation"]) == set(KINDS)
    assert every["num_tested"] == len(rows.ids)


def test_trained_on_recordings_as_they_are_and_tested_on_noise(rows: Corpus, tmp_path: Path) -> None:
    """The noisy rows are turned round: who has not heard such rows in training has them all wrong."""
    noisy = np.array([row["copy"] == "1" for row in rows.labels])
    moved = replace(rows, x=np.where(noisy[:, None, None], -rows.x, rows.x).astype(np.float32))
    path = str(write_run(tmp_path / "run", moved))
    clean_only = Experiment((path,), copies="none", test_on="noise")
    result = run_experiment(clean_only)
    assert result.folds[0][0].num_train == 24
    assert result.figures()["num_tested"] == 36
    both = run_experiment(replace(clean_only, copies="train"))
    assert both.folds[0][0].num_train == 72
    assert result.figures()["mean"]["UA"] < 0.1
    assert not open_features(clean_only).trainable[noisy[: len(result.ids)]].all()
    of_all = train_on_all(clean_only, open_features(clean_only)).estimator
    alone = Experiment((str(write_run(tmp_path / "clean", copies_of(moved, 0))),))
    of_clean = train_on_all(alone, open_features(alone)).estimator
    x = moved.x[:, 0]
    np.testing.assert_allclose(of_all.predict_proba(x), of_clean.predict_proba(x), atol=1e-6)


def test_a_run_of_copies_alone_says_so(rows: Corpus, tmp_path: Path) -> None:
    path = write_run(tmp_path / "copies", copies_of(rows, 1, 2), settings=AUGMENTED)
    other = write_run(tmp_path / "other", corpus(3, seed=5))
    model = model_of(tmp_path / "model", other)
    out = ("-q", "--projection", "pca", "--out", tmp_path / "m")
    for command, *arguments in (
        (hser_train, path, *out),
        (hser_train, path, "--layer", "each", "-q"),
        (hser_evaluate, model, path),
        (hser_evaluate, "matrix", other, path, "-q"),
    ):
        message = refused(command, *arguments)
        assert f"{path}: holds augmented copies only (72)" in message and "--test-on copies" in message
        code, output = invoke(command, *arguments, "--test-on", "copies")
        assert code == 0 or (arguments[0] == "matrix" and f"{other}: holds no augmented copies" in output)
    with pytest.raises(InputError, match="copies only"):
        evaluate(path)


def test_a_layer_is_selected_where_there_are_copies_alone(tmp_path: Path) -> None:
    rows = corpus(4, num_layers=2, signal_layer=1, copies=1)
    path = str(write_run(tmp_path / "run", copies_of(rows, 1)))
    result = run_experiment(Experiment((path,), layer="best", test_on="copies", inner_folds=2))
    assert {fold.layer for fold in result.folds[0]} == {1}


@pytest.mark.parametrize("protocol", [name for name in PROTOCOLS if not name.startswith("emobox")])
def test_copies_never_cross(protocol: str, tmp_path: Path) -> None:
    """Neither from their original nor from one another, nor their speakers."""
    rows = corpus(4, takes=10, copies=2)
    for name, of in (("all", rows), ("alone", copies_of(rows, 1, 2))):
        path = str(write_run(tmp_path / name, of))
        features = Features.open([Source(path)])
        folds, _ = make_folds(features, protocol, num_folds=3, test_on="copies")
        for fold in folds:
            trained = {features.originals[row] for row in fold.train.tolist()}
            assert trained.isdisjoint(features.originals[row] for row in fold.test.tolist())
            assert not features.clean[fold.test].any()


def test_a_name_that_no_copy_has_is_refused_with_those_that_are_there(rows: Corpus, tmp_path: Path) -> None:
    path = str(write_run(tmp_path / "run", rows, settings=AUGMENTED))
    with pytest.raises(SettingsError, match="unknown augmentation 'nois'; known: noise"):
        run_experiment(Experiment((path,), test_on="nois"))
    plain = str(write_run(tmp_path / "plain", corpus(3)))
    with pytest.raises(InputError, match="no augmented copies to test on"):
        run_experiment(Experiment((plain,), test_on="copies"))


def test_a_model_is_tested_on_copies_of_another_corpus(rows: Corpus, tmp_path: Path) -> None:
    model = model_of(tmp_path / "m", write_run(tmp_path / "a", corpus(3, signal=0.9, seed=9)))
    run = str(write_run(tmp_path / "run", rows, settings=AUGMENTED))
    (clean,) = transfer(model, [run])
    (noisy,) = transfer(model, [run], test_on="noise")
    (every,) = transfer(model, [run], test_on="copies")
    assert [num_tested(found) for found in (clean, noisy, every)] == [36, 36, 72]
    assert clean.by_augmentation == {}
    assert every.by_augmentation["noise"]["UA"] == pytest.approx(noisy.figures["UA"])
    alone = str(write_run(tmp_path / "alone", copies_of(rows, 1), settings=AUGMENTED))
    assert transfer(model, [alone], test_on="copies")[0].figures == noisy.figures
    output = said(hser_evaluate, model, run, "--test-on", "copies", "--out", tmp_path / "out")
    assert "tested on copies" in output
    assert "stretch+gain" in output
    (saved,) = json.loads((tmp_path / "out" / "transfer.json").read_text())
    assert set(saved["by_augmentation"]) == {"noise", "stretch+gain"}
    assert saved["test_on"] == "copies"


def test_the_matrix_tests_on_copies(rows: Corpus, tmp_path: Path) -> None:
    a = str(write_run(tmp_path / "a", rows, settings=AUGMENTED))
    other = replace(rows, x=corpus(3, signal=0.9, copies=2, seed=8).x)
    b = str(write_run(tmp_path / "b", other, settings=AUGMENTED))
    matrix = cross_matrix([a, b], Experiment((a,), test_on="noise"))
    for cell in matrix.cells:
        assert set(cell.by_augmentation) == {"noise"}
        assert sum(cell.figures["support"].values()) == 36


def test_the_command_and_the_report_name_what_was_tested(rows: Corpus, tmp_path: Path) -> None:
    run, out = write_run(tmp_path / "run", rows, settings=AUGMENTED), tmp_path / "m"
    output = said(hser_train, run, "-q", "--test-on", "copies", "--projection", "pca", "--out", out)
    assert "tested on copies" in output
    assert [line.split()[0] for line in output.splitlines() if "   36 " in line] == ["noise", "stretch+gain"]
    assert set(json.loads((out / "metrics.json").read_text())["by_augmentation"]) == {"noise", "stretch+gain"}
    said(hser_report, out, "--out", tmp_path / "report")
    page = (tmp_path / "report" / "index.html").read_text()
    assert "tested on copies" in page
    assert "<h3>Augmentations</h3>" in page


def test_copies_of_one_recording_count_once_in_an_interval(rows: Corpus, tmp_path: Path) -> None:
    """Rows that are all alike make nothing surer."""
    copied = replace(rows, x=np.repeat(copies_of(rows, 0).x, 3, axis=0))
    path = str(write_run(tmp_path / "run", copied))
    once = run_experiment(Experiment((path,))).figures()
    twice = run_experiment(Experiment((path,), test_on="copies")).figures()
    assert twice["mean"]["UA"] == pytest.approx(once["mean"]["UA"])
    assert twice["interval"]["UA"] == pytest.approx(once["interval"]["UA"])


# Where copies come from


def test_what_hser_augment_writes_is_copies_again(tmp_path: Path) -> None:
    """Its manifest's columns say so; a recording that is among them as it is has its own row."""
    manifest = write_tones(tmp_path)
    config = configured("gain:db=3", copies=1)
    assert config is not None
    render([manifest], config, tmp_path / "wavs", device="cpu")
    store = extract(tmp_path / "wavs" / "manifest.csv", model="mfcc", pooling="meanstd", out=tmp_path / "run")
    assert store.clean.sum() == len(store) // 2
    assert set(augmentations_of(store)) == {"none", "gain"}
    result = run_experiment(Experiment((str(tmp_path / "run"),), test_on="gain"))
    assert result.figures()["num_tested"] == len(store) // 2
    # Copies alone beside the recordings themselves, which say nothing of copies.
    render([manifest], replace(config, clean=False), tmp_path / "only", device="cpu")
    both = extract(
        [manifest, tmp_path / "only" / "manifest.csv"], model="mfcc", pooling="meanstd", out=tmp_path / "both"
    )
    assert both.clean.sum() == len(both) // 2
    assert sorted(both.originals) == sorted(2 * Store(tmp_path / "both").ids[: len(both) // 2])
    assert (
        run_experiment(Experiment((str(tmp_path / "both"),), test_on="copies")).figures()["num_tested"] == 24
    )


def test_an_augmentation_has_the_name_that_it_was_asked_for_by(tmp_path: Path) -> None:
    """Recipes are stored by operation: ``masks`` is what ``specaugment`` draws."""
    manifest = write_tones(tmp_path)
    for text in ("specaugment:policy=LD", "timemask", "bandpass", "noise", "pitch", "gain"):
        name = text.split(":")[0]
        store = extract(
            manifest, model="mfcc", pooling="mean", augment=parse(text), clean=False, out=tmp_path / name
        )
        assert set(augmentations_of(store)) == {name}


def test_a_kind_is_what_its_copies_are_called() -> None:
    assert kind_of("none") == "none"
    assert kind_of("stretch:rate=1.1+gain:db=-3.0") == "stretch+gain"
    assert kind_of("reverberation of another program") == "reverberation of another program"


def test_a_column_of_another_meaning_makes_no_copies(tmp_path: Path) -> None:
    """Only a table that says of what a row is a copy speaks of copies."""
    rows = corpus(3)
    path = str(write_run(tmp_path / "run", labelled(rows, "copy", ["A4"] * len(rows.ids))))
    assert run_experiment(Experiment((path,))).figures()["num_tested"] == len(rows.ids)


def test_part_of_a_speaker_s_copies(rows: Corpus, tmp_path: Path) -> None:
    """Originals that only have other copies are named."""
    some = without(rows, [row["copy"] != "1" or row["speaker"] != "s0" for row in rows.labels])
    result = run_experiment(Experiment((str(write_run(tmp_path / "run", some)),), test_on="noise"))
    assert result.figures()["num_tested"] == 24
    assert any("12 originals are there without the copies that are tested" in note for note in result.notes)
    with pytest.raises(HserError):
        run_experiment(Experiment((str(write_run(tmp_path / "none", part(rows, [0]))),), test_on="noise"))
