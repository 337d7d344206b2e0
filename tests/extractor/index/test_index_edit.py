"""Indexes of a run that is edited: they follow, or are refused with the command that rebuilds them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from index_cases import LAYER, OTHER_LAYER, clustered, write
from store_cases import edited

from extractor.commands.store import hser_store
from extractor.index import Index, IndexStale, build, follow, in_memory
from extractor.index.generation import HEAD, folder_of
from extractor.store import Store
from extractor.store.run_folder import BY_HAND, ManifestRow


@pytest.fixture
def x() -> np.ndarray:
    return clustered(120, 6)


@pytest.fixture
def run(tmp_path: Path, x: np.ndarray) -> Path:
    return write(tmp_path / "run", x, batch_rows=30)


def with_speaker(row: ManifestRow, speaker: str) -> ManifestRow:
    return replace(row, utterance=replace(row.utterance, labels=(*row.utterance.labels[:2], speaker)))


@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_rows_that_were_dropped_go_or_the_index_is_refused(run: Path, x: np.ndarray, kind: str) -> None:
    build(run, LAYER, kind=kind)
    gone = [0, 10, 12]
    edited(run, lambda row: replace(row, dropped=BY_HAND * (row.position in gone)))
    with pytest.raises(
        IndexStale, match=r"0 of the store's .* are missing from it and 3 of its own are no longer"
    ):
        Index.open(run, LAYER)
    assert follow(run) == []
    index = Index.open(run, LAYER)
    assert len(index) == len(x) - 3
    _, found = index.search(x[:10], 10)
    assert not np.isin(found, gone).any()
    if kind == "flat":
        _, expected = in_memory(Store(run), LAYER, "mean").search(x[:10], 10)
        np.testing.assert_array_equal(found, expected)
    assert follow(run) == []


@pytest.mark.parametrize("known", [True, False])
def test_an_index_that_was_normalised_by_other_speakers_is_refused(
    tmp_path: Path, x: np.ndarray, known: bool
) -> None:
    run = write(tmp_path / "run", x, [f"s{k % 5}" for k in range(len(x))])
    build(run, LAYER, normalisation="speaker")
    build(run, OTHER_LAYER, normalisation="whiten")
    head = folder_of(run, LAYER, "mean") / HEAD
    if not known:  # as it was written before runs could be edited
        values = json.loads(head.read_text())
        del values["speakers"]
        head.write_text(json.dumps(values))
    Index.open(run, LAYER)
    edited(run, lambda row: with_speaker(row, "s0" if row.position == 4 else row.utterance.labels[2]))
    with pytest.raises(IndexStale, match=r"speakers are others now; .* --normalisation speaker"):
        Index.open(run, LAYER)
    (problem,) = follow(run)
    dropped = CliRunner().invoke(hser_store, ["drop", str(run), "--where", "id == 'u0'"])
    assert f"note: {run}: the index of layer {LAYER}" in dropped.output
    assert "--normalisation speaker" in problem and "--normalisation speaker" in dropped.output
    assert f"the index of layer {OTHER_LAYER}" not in dropped.output
    Index.open(run, OTHER_LAYER)
    build(run, LAYER, normalisation="speaker")
    Index.open(run, LAYER)


def test_other_labels_leave_an_index_as_it_is(tmp_path: Path, x: np.ndarray) -> None:
    run = write(tmp_path / "run", x, [f"s{k % 5}" for k in range(len(x))])
    build(run, LAYER, normalisation="speaker")

    def relabelled(row: ManifestRow) -> ManifestRow:
        labels = ("joy", "", row.utterance.labels[2], "30")
        return replace(row, utterance=replace(row.utterance, labels=labels))

    edited(run, relabelled, (*Store(run).columns, "age"))
    assert len(Index.open(run, LAYER)) == len(x)
