"""What must be true of the rows that are learned from."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from classifiers.data.features import Features, FrameRows
from classifiers.data.source import Labelling, Source, parse_layers
from classifiers.data.stacked import Stacked
from extractor.errors import InputError, SettingsError, StoreError
from tests.classifier_cases import Corpus, corpus, without, write_run


def opened(path: Path, layers: tuple[int, ...] | str = "best", **labelling: object) -> Features:
    return Features.open([Source(str(path), None, layers)], Labelling(**labelling))  # type: ignore[arg-type]


def test_a_source_is_what_was_written(tmp_path: Path) -> None:
    assert Source.parse("runs/a") == Source("runs/a", None, "best")
    assert Source.parse("runs/a:mean") == Source("runs/a", "mean", "best")
    assert Source.parse("runs/a:mean:6,12") == Source("runs/a", "mean", (6, 12))
    assert Source.parse("runs/a::all") == Source("runs/a", None, "all")
    colon = tmp_path / "with:colon"
    colon.mkdir()
    assert Source.parse(str(colon)).path == str(colon)
    for wrong in ("a:b:1:2", "a:b:x"):
        with pytest.raises(SettingsError):
            Source.parse(wrong)
    assert parse_layers("-1") == (-1,)


def test_a_matrix_is_the_store_s_own_layer(tmp_path: Path) -> None:
    made = corpus(num_layers=3)
    features = opened(write_run(tmp_path / "run", made))
    assert features.ids == made.ids
    assert features.layers == [0, 1, 2]
    for layer in (2, 0):
        np.testing.assert_array_equal(features.matrix(layer), made.x[:, layer])
    np.testing.assert_array_equal(features.tensor(), made.x)
    assert [features.classes[code] for code in features.y] == [row["emotion"] for row in made.labels]
    with pytest.raises(SettingsError, match="name a layer"):
        features.matrix()


def test_fixed_layers_stand_side_by_side_and_negative_ones_count_from_the_end(tmp_path: Path) -> None:
    made = corpus(num_layers=3)
    features = opened(write_run(tmp_path / "run", made), (0, -1))
    np.testing.assert_array_equal(features.matrix(), np.hstack([made.x[:, 0], made.x[:, 2]]))
    assert features.layers == [0, 2]


def test_rows_of_several_runs_are_joined_by_id_whatever_their_order(tmp_path: Path) -> None:
    made = corpus()
    order = np.random.default_rng(0).permutation(len(made.ids))
    other = Corpus(made.x[order] + 100, [made.labels[i] for i in order], [made.ids[i] for i in order])
    a = write_run(tmp_path / "a", made)
    b = write_run(tmp_path / "b", without(other, np.arange(len(order)) > 3))
    features = Features.open([Source(str(a)), Source(str(b))])
    row = {name: i for i, name in enumerate(made.ids)}
    for name, joined in zip(features.ids, features.matrix(), strict=True):
        x = made.x[row[name], 0]
        np.testing.assert_array_equal(joined, np.concatenate([x, x + 100]))
    assert len(features) == len(made.ids) - 4
    assert any(note.startswith(f"{a}: 4 recordings") for note in features.notes)
    np.testing.assert_array_equal(features.only(1).matrix(), features.matrix()[:, made.x.shape[2] :])


def test_what_cannot_be_joined_is_refused_by_name(tmp_path: Path) -> None:
    made = corpus()
    a = write_run(tmp_path / "a", made)
    stranger = replace(made, ids=[f"x{name}" for name in made.ids])
    b = write_run(tmp_path / "b", stranger)
    with pytest.raises(InputError, match="no recording is in all of them"):
        Features.open([Source(str(a)), Source(str(b))])
    relabelled = [row | {"emotion": "anger"} for row in made.labels]
    c = write_run(tmp_path / "c", replace(made, labels=relabelled))
    with pytest.raises(InputError, match="contradict each other in 'emotion'"):
        Features.open([Source(str(a)), Source(str(c))])


def test_rows_that_cannot_be_learned_from_are_left_out_and_named(tmp_path: Path) -> None:
    made = corpus(num_layers=2)
    made.labels[5] = made.labels[5] | {"emotion": ""}
    path = write_run(tmp_path / "run", made)
    # hser's own writer lets none through; a run may come from elsewhere.
    (part,) = (path / "parts").glob("*.h5")
    with h5py.File(part, "r+") as file:
        file["embeddings/mean"][3, 1, 0] = np.nan
        file["embeddings/mean"][7, 0, 2] = np.inf
    features = opened(path)
    left = {made.ids[i] for i in (3, 5, 7)}
    assert set(made.ids) - set(features.ids) == left
    notes = " ".join(features.notes)
    assert all(name in notes for name in left)
    assert "NaN" in notes
    assert "without emotion" in notes
    for layer in (0, 1):
        assert np.isfinite(features.matrix(layer)).all()
    # Of a layer that is not used nothing is asked.
    assert made.ids[3] in opened(path, (0,)).ids


def test_classes_are_renamed_before_they_are_chosen_from(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", corpus())
    features = opened(path, classes=("anger", "quiet"), rename={"sadness": "quiet", "neutral": "quiet"})
    assert features.classes == ("anger", "quiet")
    assert features.labels.count("quiet") == 2 * features.labels.count("anger")
    assert "happiness 12" in " ".join(features.notes)
    for wrong in ({"classes": ("anger", "angr")}, {"rename": {"sadnes": "x"}}):
        with pytest.raises(SettingsError, match=r"known: (anger|sadness)"):
            opened(path, **wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="only 'anger'"):
        opened(path, classes=("anger",))


def test_unknown_names_list_the_nearest(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", corpus())
    with pytest.raises(SettingsError, match="known: mean"):
        Features.open([Source(str(path), "maen")])
    with pytest.raises(SettingsError, match="layer 9 is not stored"):
        opened(path, (9,))
    with pytest.raises(SettingsError, match="known: emotion"):
        opened(path, column="emotoin")
    with pytest.raises(SettingsError, match="known: train"):
        opened(path, copies="trian")


def test_copies_are_tied_to_their_original(tmp_path: Path) -> None:
    made = corpus(copies=2)
    features = opened(write_run(tmp_path / "run", made))
    assert features.clean.sum() == len(made.ids) // 3
    assert features.originals == [name.split("~")[0] for name in made.ids]
    clean = opened(tmp_path / "run", copies="none")
    assert clean.clean.all()
    assert len(clean) == len(made.ids) // 3


def test_frames_come_as_they_are_stored_and_are_read_once(tmp_path: Path) -> None:
    made = corpus(num_layers=2)
    rng = np.random.default_rng(0)
    frames = [rng.standard_normal((3 + i % 4, 2, 5)).astype(np.float32) for i in range(len(made.ids))]
    path = write_run(tmp_path / "run", made, frames=frames)
    features = Features.open([Source(str(path), "none", (1,))])
    rows = features.frame_rows()
    for i in (0, 9, len(frames) - 1):
        np.testing.assert_array_equal(rows[i], frames[i][:, 1])
    every = Features.open([Source(str(path), "none", "all")])
    np.testing.assert_array_equal(every.frame_rows()[4], frames[4])
    with pytest.raises(SettingsError, match="of one run"):
        Features.open([Source(str(path), "none", (0,)), Source(str(path), "none", (1,))]).frame_rows()


def test_frame_rows_hold_no_more_than_they_may() -> None:
    reads: list[int] = []

    def read(row: int) -> np.ndarray:
        reads.append(row)
        return np.full((4, 2), row, np.float32)  # 32 bytes

    rows = FrameRows(read, np.arange(4), kept_bytes=64)
    some = rows.take(np.array([3, 2]))
    for sequence in (rows, some, rows):
        for k in range(len(sequence)):
            assert (sequence[k] == sequence.rows[k]).all()
    assert reads.count(0) == reads.count(1) == 1  # kept, and shared with what was taken
    assert reads.count(3) == 3  # no room


def test_one_layer_is_in_memory_at_a_time(tmp_path: Path) -> None:
    """The peak is that of one layer, not of all sixteen."""
    made = corpus(num_speakers=20, takes=5, num_layers=16, dim=1000)
    path = write_run(tmp_path / "run", made)
    tracemalloc.start()
    features = opened(path)
    for layer in features.layers:
        features.matrix(layer)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # The array, its rows as the store gathers them and the chunk they are read in, and some bools.
    assert peak < 4 * made.x[:, 0].nbytes


def test_standardised_rows_have_mean_0_and_deviation_1(tmp_path: Path) -> None:
    made = corpus(num_layers=2)
    made.x[:, :, 3] = 7.0  # does not vary
    features = opened(write_run(tmp_path / "run", made))
    features.standardised = True
    for x in (features.matrix(1), features.tensor()[:, 0]):
        varies = np.arange(x.shape[1]) != 3
        # float32 sums of 48 values near 1: rounding leaves about 1e-6
        np.testing.assert_allclose(x.mean(axis=0), 0, atol=1e-5)
        np.testing.assert_allclose(x.std(axis=0)[varies], 1, atol=1e-5)
        assert (x[:, 3] == 0).all()


def test_corpora_stack_only_if_they_are_of_one_model(tmp_path: Path) -> None:
    made, other = corpus(), corpus(num_speakers=2, seed=1)
    a, b = opened(write_run(tmp_path / "a", made)), opened(write_run(tmp_path / "b", other))
    both = Stacked({"a": a, "b": b})
    np.testing.assert_array_equal(both.matrix(), np.concatenate([made.x[:, 0], other.x[:, 0]]))
    # Speaker s0 of one corpus is not s0 of the other.
    assert len(set(both.column("speaker"))) == 6
    assert len(set(both.ids)) == len(both)
    c = opened(write_run(tmp_path / "c", other, settings={"model": "another"}))
    with pytest.raises(StoreError, match="model: 'given' and 'another'"):
        Stacked({"a": a, "c": c})
