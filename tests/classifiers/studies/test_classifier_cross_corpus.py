"""Trained on one corpus, tested on another: classes, scales and models are what they are said to be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from model_cases import model_of
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from classifiers.commands.evaluate import hser_evaluate
from classifiers.data.label_maps import common_classes, map_labels, restricted
from classifiers.studies.cross_corpus import OTHERS, cross_matrix, matrix_lines
from classifiers.studies.transfer import transfer, transfer_lines
from classifiers.training.config import Experiment
from extractor.errors import InputError, SettingsError, StoreError
from tests.classifier_cases import Corpus, corpus, said, write_run

Corpora = tuple[Path, list[str], list[Corpus]]


def renamed(rows: Corpus, old: str, new: str) -> Corpus:
    labels = [row | {"emotion": new if row["emotion"] == old else row["emotion"]} for row in rows.labels]
    return replace(rows, labels=labels)


def three(tmp_path: Path) -> tuple[list[str], list[Corpus]]:
    """Three corpora of one model; the second calls sadness grief, the third is louder."""
    made = [corpus(3, signal=0.9, seed=k) for k in range(3)]
    made[1] = renamed(made[1], "sadness", "grief")
    made[2] = replace(made[2], x=made[2].x * 5 + 20)
    return [str(write_run(tmp_path / f"c{k}", rows)) for k, rows in enumerate(made)], made


def by_hand(train: Corpus, test: Corpus, classes: tuple[str, ...]) -> float:
    """UA over the rows of these classes."""

    def rows_of(of: Corpus) -> tuple[np.ndarray, list[str]]:
        kept = [i for i, row in enumerate(of.labels) if row["emotion"] in classes]
        return of.x[kept, 0], [of.labels[i]["emotion"] for i in kept]

    x, y = rows_of(train)
    machine = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000)).fit(x, y)
    x, y = rows_of(test)
    return float(balanced_accuracy_score(y, machine.predict(x)))


def test_a_matrix_is_scikit_learn_by_hand_over_the_common_classes(tmp_path: Path) -> None:
    runs, made = three(tmp_path)
    matrix = cross_matrix(runs, Experiment((runs[0],)))
    assert matrix.classes == ("anger", "happiness", "neutral")
    for i, train in enumerate(matrix.names):
        for k, test in enumerate(matrix.names):
            cell = matrix.cell(train, test)
            assert cell is not None
            assert cell.within == (i == k)
            if i != k:
                expected = by_hand(made[i], made[k], matrix.classes)
                assert cell.figures["UA"] == pytest.approx(expected)
                own = matrix.cell(train, train)
                assert own is not None
                drop = matrix.drop(cell)
                assert drop == pytest.approx(own.figures["UA"] - expected)
    text = "\n".join(line for each in matrix.labels for line in each.lines())
    assert "grief (9) -> left out" in text
    assert "sadness (9) -> left out" in text


def test_a_map_brings_classes_together(tmp_path: Path) -> None:
    runs, _ = three(tmp_path)
    matrix = cross_matrix(runs, Experiment((runs[0],), map={"grief": "sadness"}))
    assert matrix.classes == ("anger", "happiness", "neutral", "sadness")
    assert f"{runs[1]}: grief (9) -> sadness" in matrix.labels[1].lines()


def test_each_corpus_s_own_scale_takes_its_level_away(tmp_path: Path) -> None:
    runs, made = three(tmp_path)
    experiment = Experiment((runs[0],), map={"grief": "sadness"})
    # The third corpus without its gain and offset gives the same matrix, once each has its own scale.
    flat = str(write_run(tmp_path / "flat" / "c2", replace(made[2], x=(made[2].x - 20) / 5)))
    scaled = cross_matrix(runs, experiment, normalise="corpus")
    plain = cross_matrix([*runs[:2], flat], experiment, normalise="corpus")
    for a, b in zip(scaled.cells, plain.cells, strict=True):
        assert a.figures["UA"] == pytest.approx(b.figures["UA"], abs=0.03)  # one row of 36 at a border
    raw = cross_matrix(runs, experiment)
    loud, own = raw.cell("c0", "c2"), scaled.cell("c0", "c2")
    assert loud is not None
    assert own is not None
    assert own.figures["UA"] > loud.figures["UA"] + 0.2


def test_all_others_are_trained_on_together(tmp_path: Path) -> None:
    runs, made = three(tmp_path)
    matrix = cross_matrix(runs, Experiment((runs[0],)), leave_one_out=True)
    cell = matrix.cell(OTHERS, "c1")
    assert cell is not None
    together = replace(
        made[0], x=np.concatenate([made[0].x, made[2].x]), labels=[*made[0].labels, *made[2].labels]
    )
    assert cell.figures["UA"] == pytest.approx(by_hand(together, made[1], matrix.classes))
    assert len(matrix_lines(matrix)) >= 2 + 4


def test_a_layer_is_selected_in_the_training_corpus_alone(tmp_path: Path) -> None:
    """The layers that tell differ: each training corpus takes its own."""
    a = write_run(tmp_path / "a", corpus(4, num_layers=2, signal_layer=0))
    b = write_run(tmp_path / "b", corpus(4, num_layers=2, signal_layer=1, seed=1))
    matrix = cross_matrix([str(a), str(b)], Experiment((str(a),), layer="best", inner_folds=2))
    chosen = {cell.train: cell.selected for cell in matrix.cells if not cell.within}
    assert chosen == {"a": "layer 0", "b": "layer 1"}


def test_corpora_that_cannot_be_compared_are_refused(tmp_path: Path) -> None:
    runs, made = three(tmp_path)
    other = str(write_run(tmp_path / "other", made[0], settings={"model": "another"}))
    with pytest.raises(StoreError, match="different models: model: 'given' and 'another'"):
        cross_matrix([runs[0], other], Experiment((runs[0],)))
    strange = made[0]
    for emotion in ("anger", "happiness", "neutral"):
        strange = renamed(strange, emotion, f"x{emotion}")
    apart = str(write_run(tmp_path / "apart", strange))
    with pytest.raises(InputError, match="1 classes in common"):
        cross_matrix([runs[0], apart], Experiment((runs[0],)))
    with pytest.raises(SettingsError, match="at least two runs"):
        cross_matrix(runs[:1], Experiment((runs[0],)))
    with pytest.raises(SettingsError, match="known: grief"):
        cross_matrix(runs, Experiment((runs[0],), map={"grif": "sadness"}))
    with pytest.raises(SettingsError, match="known: corpus"):
        cross_matrix(runs, Experiment((runs[0],)), normalise="corpora")


def test_the_same_weights_by_another_name_are_the_same_model(tmp_path: Path) -> None:
    paths = [
        str(write_run(tmp_path / name, corpus(3, seed=k), settings={"model": name, "weights": "abc"}))
        for k, name in enumerate(("a", "b"))
    ]
    assert cross_matrix(paths, Experiment((paths[0],))).names == ("a", "b")


def test_labels_are_mapped_and_counted(tmp_path: Path) -> None:
    rows = corpus(2, copies=1)
    path = str(write_run(tmp_path / "run", rows))
    (found,) = map_labels([path], "emotion", {"sadness": "neutral"})
    assert found.counts == dict.fromkeys(
        ("anger", "happiness", "neutral", "sadness"), 6
    )  # copies not counted
    assert found.classes == ("anger", "happiness", "neutral")
    (kept,) = restricted([found], ("anger", "neutral"))
    assert kept.class_of == {"anger": "anger", "happiness": None, "neutral": "neutral", "sadness": "neutral"}
    assert kept.renames() == {"sadness": "neutral"}
    with pytest.raises(SettingsError, match="--classes"):
        common_classes([found], ("anger", "joy"))


# A model that is there


@pytest.fixture
def corpora(tmp_path: Path, without_charts: None) -> Corpora:
    """A model of the first, and all three."""
    runs, made = three(tmp_path)
    return model_of(tmp_path / "model", runs[0]), runs, made


def test_a_model_s_figures_elsewhere_are_those_of_the_matrix(corpora: Corpora) -> None:
    folder, runs, made = corpora
    found = transfer(folder, runs[1:], {"grief": "sadness"})
    classes = ("anger", "happiness", "neutral", "sadness")
    expected = [by_hand(made[0], renamed(made[1], "grief", "sadness"), classes)]
    expected.append(by_hand(made[0], made[2], classes))
    for each, ua in zip(found, expected, strict=True):
        assert each.figures["UA"] == pytest.approx(ua)
        assert each.within is not None
        assert each.drop == pytest.approx(each.within - ua)
    lines = transfer_lines(found)
    assert f"{runs[1]}: grief (9) -> sadness" in lines
    (without_map,) = transfer(folder, runs[1:2])
    assert without_map.labels.class_of["grief"] is None
    assert sum(without_map.figures["support"].values()) == 27


def test_choosing_among_common_classes_only_never_names_another(corpora: Corpora, tmp_path: Path) -> None:
    folder, _, made = corpora
    # What the model knows as sadness is called anger there.
    other = str(write_run(tmp_path / "other", renamed(made[1], "grief", "anger")))
    (free,) = transfer(folder, [other])
    (bound,) = transfer(folder, [other], common_only=True)
    sadness = free.classes.index("sadness")
    assert sum(row[sadness] for row in free.figures["confusion"]) > 0
    assert sum(row[sadness] for row in bound.figures["confusion"]) == 0
    assert bound.figures["UA"] >= free.figures["UA"]


def test_a_model_meets_a_louder_corpus_at_its_own_level(corpora: Corpora) -> None:
    folder, runs, made = corpora
    (scaled,) = transfer(folder, runs[2:], normalise="corpus")
    x = made[2].x[:, 0].astype(np.float64)
    own = made[0].x[:, 0].astype(np.float64)
    moved = (x - x.mean(axis=0)) / x.std(axis=0) * own.std(axis=0) + own.mean(axis=0)
    expected = by_hand(made[0], replace(made[2], x=moved[:, None].astype(np.float32)), scaled.classes)
    assert scaled.figures["UA"] == pytest.approx(expected)
    assert scaled.figures["UA"] > transfer(folder, runs[2:])[0].figures["UA"] + 0.2


def test_a_run_of_another_model_is_refused(corpora: Corpora, tmp_path: Path) -> None:
    folder, runs, made = corpora
    other = str(write_run(tmp_path / "other", made[1], settings={"model": "another"}))
    with pytest.raises(StoreError, match="model: 'given' and 'another'"):
        transfer(folder, [other])
    with pytest.raises(SettingsError, match="takes 1 runs"):
        transfer(folder, [f"{runs[1]},{runs[2]}"])


def test_an_experiment_s_file_does_what_its_model_does(tmp_path: Path) -> None:
    runs, _ = three(tmp_path)
    folder = model_of(tmp_path / "model", runs[0], classifier="lda")
    (of_model,) = transfer(folder, runs[2:])
    (of_config,) = transfer(folder / "config.yaml", runs[2:])
    assert of_config.figures == of_model.figures
    assert of_config.within == of_model.within


def test_the_command_writes_its_figures_and_a_heat_map(tmp_path: Path) -> None:
    runs, _ = three(tmp_path)
    out = tmp_path / "out"
    printed = said(hser_evaluate, "matrix", *runs, "--out", out, "-q", "--map", "grief=sadness")
    assert "grief (9) -> sadness" in printed
    assert {each.name for each in out.iterdir()} == {"cells.json", "cross_corpus.json", "cross_corpus.png"}
    folder = model_of(tmp_path / "model", runs[0])
    assert f"{runs[2]}: UA" in said(hser_evaluate, folder, runs[2], "--out", out)
    assert (out / "transfer.json").exists()
