"""How far copies move: by hand, and where the answer is known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from classifiers.commands.evaluate import hser_evaluate
from classifiers.studies.stability import EVERY, cosines, linear_cka, measure_stability
from extractor.errors import InputError, StoreError
from tests.classifier_cases import Corpus, corpus, said, without, write_run

EXACT = 1e-12  # float64 sums of at most a few thousand products of numbers near 1


def augmented() -> Corpus:
    """Two layers, two copies of each: the first a gain, the second a stretch that moves layer 1 more."""
    rows = corpus(3, num_layers=2, copies=2, seed=3)
    rng = np.random.default_rng(0)
    labels = []
    for i, row in enumerate(rows.labels):
        recipe = {"0": "none", "1": "gain:db=3.0", "2": "stretch:rate=1.1+gain:db=-3.0"}[row["copy"]]
        labels.append(row | {"augmentation": recipe})
        if row["copy"] == "1":
            rows.x[i] = 2 * rows.x[i - 1]
        elif row["copy"] == "2":
            noise = rng.standard_normal(rows.x[i].shape) * np.array([[0.1], [1.0]])
            rows.x[i] = rows.x[i - 2] + noise
    return replace(rows, labels=labels)


def test_copies_are_compared_with_their_own_original(tmp_path: Path) -> None:
    rows = augmented()
    found = measure_stability(write_run(tmp_path / "run", rows))
    clean = rows.x[::3]
    for score in found.scores:
        of = {"gain": [rows.x[1::3]], "stretch+gain": [rows.x[2::3]], EVERY: [rows.x[1::3], rows.x[2::3]]}
        cosine = np.concatenate(
            [cosines(clean[:, score["layer"]], x[:, score["layer"]]) for x in of[score["kind"]]]
        )
        assert score["pairs"] == len(cosine)
        assert score["cosine"] == pytest.approx(cosine.mean(), abs=EXACT)
        assert score["cosine_lowest"] == pytest.approx(cosine.min(), abs=EXACT)


def test_a_gain_moves_nothing_and_more_noise_moves_more(tmp_path: Path) -> None:
    found = measure_stability(write_run(tmp_path / "run", augmented()))
    score = {(each["layer"], each["kind"]): each for each in found.scores}
    for layer in (0, 1):
        # Twice the vector, exactly: cosine and CKA forget scale.
        assert score[layer, "gain"]["cosine"] == pytest.approx(1, abs=EXACT)
        assert score[layer, "gain"]["cka"] == pytest.approx(1, abs=EXACT)
    assert score[1, "stretch+gain"]["cosine"] < score[0, "stretch+gain"]["cosine"] < 1
    assert score[1, "stretch+gain"]["cka"] < score[0, "stretch+gain"]["cka"] < 1


@pytest.mark.parametrize(("rows", "dim"), [(40, 7), (7, 40)])
def test_cka_forgets_rotation_scale_and_offset_but_not_order(rows: int, dim: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, dim))
    turn = np.linalg.qr(rng.standard_normal((dim, dim)))[0]
    assert linear_cka(x, 3 * x @ turn + 5) == pytest.approx(1, abs=EXACT)
    # Kornblith's definition, through centred kernels, whatever way it is computed here.
    y = rng.standard_normal((rows, dim + 1))
    centre = np.eye(rows) - 1 / rows
    k, m = centre @ x @ x.T @ centre, centre @ y @ y.T @ centre
    expected = np.sum(k * m) / np.sqrt(np.sum(k * k) * np.sum(m * m))
    assert linear_cka(x, y) == pytest.approx(expected, abs=EXACT)
    assert linear_cka(x, x[rng.permutation(rows)]) < 0.9


def test_cka_of_unrelated_rows_is_near_nothing_when_there_are_enough() -> None:
    rng = np.random.default_rng(0)
    # Its expectation is about dim / rows.
    assert linear_cka(rng.standard_normal((4000, 8)), rng.standard_normal((4000, 8))) < 3 * 8 / 4000
    assert np.isnan(linear_cka(np.ones((5, 3)), rng.standard_normal((5, 3))))


def test_copies_without_an_original_are_counted_and_runs_without_copies_refused(tmp_path: Path) -> None:
    rows = augmented()
    first = [i != 0 for i in range(len(rows.ids))]
    assert measure_stability(write_run(tmp_path / "lost", without(rows, first))).unpaired == 2
    only = [row["copy"] != "0" for row in rows.labels]
    with pytest.raises(InputError, match="no copy has its original"):
        measure_stability(write_run(tmp_path / "only", without(rows, only)))
    with pytest.raises(StoreError, match="has no augmented copies"):
        measure_stability(write_run(tmp_path / "plain", corpus(2)))


def test_the_command_prints_a_table_and_writes_it_with_a_chart(tmp_path: Path) -> None:
    run, out = write_run(tmp_path / "run", augmented()), tmp_path / "out"
    assert "stretch+gain" in said(hser_evaluate, "stability", run, "--layers", "1", "--out", out)
    scores = json.loads((out / "stability.json").read_text())["scores"]
    assert {(each["layer"], each["kind"]) for each in scores} == {
        (1, kind) for kind in ("gain", "stretch+gain", EVERY)
    }
    assert (out / "stability.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "stability.csv").read_text().count("\n") == 4
