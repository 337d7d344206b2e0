"""What the torch models read: every row once, speakers apart, frames that fit no memory."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest

from classifiers.data.features import FrameRows
from classifiers.models.torch.inputs import (
    batches,
    frames_of,
    passes,
    pooled,
    split_validation,
    time_means,
)
from classifiers.models.torch.models import BiLstm
from extractor.errors import InputError


class OnDisk(Sequence[np.ndarray]):
    """Recordings that are made anew each time they are asked for, and counted."""

    def __init__(self, lengths: Sequence[int], dim: int = 4) -> None:
        self.lengths, self.dim, self.reads = lengths, dim, 0

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, i: int) -> np.ndarray:  # type: ignore[override]
        if not 0 <= i < len(self.lengths):
            raise IndexError(i)
        self.reads += 1
        values = np.random.default_rng(i).normal(size=(self.lengths[i], self.dim)).astype(np.float32)
        values[:, i % 2] += 3
        return values


@pytest.fixture
def lengths() -> np.ndarray:
    return np.random.default_rng(0).integers(1, 500, 333)


def test_every_row_is_in_one_batch_of_an_epoch(lengths: np.ndarray) -> None:
    rows = np.arange(0, 333, 2)
    drawn = list(batches(rows, lengths, 8, np.random.default_rng(1)))
    assert sorted(np.concatenate(drawn)) == rows.tolist()
    assert max(len(batch) for batch in drawn) == 8
    other = list(batches(rows, lengths, 8, np.random.default_rng(2)))
    assert any(set(a) != set(b) for a, b in zip(drawn, other, strict=True))


def test_batches_hold_recordings_of_like_length(lengths: np.ndarray) -> None:
    spread = [np.ptp(lengths[b]) for b in batches(np.arange(256), lengths, 8, np.random.default_rng(1))]
    # 32 batches of 8 from 256 lengths over 500 frames: about 16 frames each; at random about 390.
    assert np.median(spread) < 40


def test_passes_are_bounded_and_leave_nothing_out(lengths: np.ndarray) -> None:
    rows = np.random.default_rng(3).permutation(333)
    cut = list(passes(rows, lengths, 600))
    assert np.array_equal(np.concatenate(cut), rows)
    assert all(len(part) == 1 or lengths[part].max() * len(part) <= 600 for part in cut)
    # None could have taken the next row too.
    nexts = [np.append(part, following[0]) for part, following in pairwise(cut)]
    assert all(lengths[rows].max() * len(rows) > 600 for rows in nexts)
    assert [len(part) for part in passes(rows[:3], lengths, 1)] == [1, 1, 1]  # longer ones go alone


def test_moments_in_blocks_are_those_of_all_rows() -> None:
    rows = np.random.default_rng(0).normal(1000, 2, size=(500, 3)).astype(np.float32)
    rows[:, 2] = 0.1
    whole = rows.astype(np.float64)
    recordings = [rows[start : start + 7] for start in range(0, 500, 7)]
    for inputs in (frames_of(recordings), pooled(rows, ndim=2)):
        mean, std = inputs.moments(np.arange(len(inputs.lengths)))
        assert np.allclose(mean, whole.mean(axis=0), rtol=1e-12)
        assert np.allclose(std[:2], whole[:, :2].std(axis=0), rtol=1e-9)
        assert std[2] == 1  # constant: nothing to divide by


def test_frames_that_are_not_kept_are_read_again_and_give_the_same() -> None:
    y = np.array(["a", "b"] * 12)
    lengths = np.random.default_rng(0).integers(2, 9, 24).tolist()
    kept, reread = OnDisk(lengths), OnDisk(lengths)
    unkept = FrameRows(reread.__getitem__, np.arange(24), kept_bytes=0)
    in_memory, on_disk = frames_of(kept), frames_of(unkept)
    for epoch in range(3):
        for rows in batches(np.arange(24), in_memory.lengths, 5, np.random.default_rng(epoch)):
            assert np.array_equal(in_memory.values(rows), on_disk.values(rows))
    assert kept.reads == 24 and reread.reads == 25 + 3 * 24  # the first one is read for its shape too
    every = np.arange(24)
    assert np.array_equal(in_memory.moments(every), on_disk.moments(every))
    model = BiLstm(hidden=8, dense=8, max_epochs=2, device="cpu")
    lazily = model.fit(kept, y).predict_proba(kept)
    assert np.array_equal(model.fit([kept[i] for i in range(24)], y).predict_proba(kept), lazily)


def test_values_are_the_rows_one_after_the_other() -> None:
    recordings = [np.full((n, 2), n, np.float64) for n in (3, 1, 2)]
    frames = frames_of(recordings)
    assert frames.lengths.tolist() == [3, 1, 2] and frames.shape == (2,)
    assert frames.values(np.array([2, 0])).tolist() == [[2, 2]] * 2 + [[3, 3]] * 3
    assert frames.values(np.array([1])).numpy().dtype == np.float32


def test_time_means_are_means() -> None:
    recordings = [np.random.default_rng(n).normal(size=(n, 2, 3)).astype(np.float32) for n in (1, 7, 300)]
    means = time_means(recordings)
    assert means.dtype == np.float32
    # Summed in float64: one rounding, to float32.
    assert np.array_equal(
        means, np.stack([r.astype(np.float64).mean(axis=0) for r in recordings]).astype("f4")
    )
    assert time_means(means) is means


@pytest.mark.parametrize(
    ("recordings", "message"),
    [
        ([], "no recordings"),
        ([np.zeros((3, 2)), np.zeros((0, 2))], "row 1"),
        ([np.zeros((3, 2)), np.zeros((3, 4))], "row 1"),
        ([np.zeros((3, 2)), np.zeros(3)], "row 1"),
        ([np.zeros((3, 2)), np.full((3, 2), np.inf)], "row 1"),
    ],
)
def test_recordings_that_cannot_be_used_are_named(recordings: list[np.ndarray], message: str) -> None:
    with pytest.raises(InputError, match=message):
        frames_of(recordings)


def test_pooled_rows_of_other_axes_are_refused() -> None:
    with pytest.raises(InputError, match=r"\[rows, layers, features\].*\[4, 5\]"):
        pooled(np.zeros((4, 5)), ndim=3)
    with pytest.raises(InputError, match=r"2 rows hold NaN.*row 300, 301"):
        rows = np.zeros((400, 3), np.float32)
        rows[300, 1], rows[301, 0] = np.nan, -np.inf
        pooled(rows, ndim=2)


@pytest.mark.parametrize("seed", range(20))
def test_validation_keeps_speakers_apart_and_every_class_in_training(seed: int) -> None:
    random = np.random.default_rng(seed)
    y = random.integers(0, 5, 200)
    speakers = random.integers(0, random.integers(2, 30), 200)
    split = split_validation(y, speakers, 0.15, seed)
    assert sorted([*split.train, *split.validation]) == list(range(200))
    assert not set(speakers[split.train]) & set(speakers[split.validation])
    assert set(y[split.train]) == set(y)
    assert 0 < len(split.validation) <= 100
    again = split_validation(y, speakers, 0.15, seed)
    assert np.array_equal(split.validation, again.validation) and split.how == again.how


def test_validation_without_groups_has_each_class_in_proportion() -> None:
    y = np.repeat([0, 1, 2, 3], [100, 50, 10, 1])
    split = split_validation(y, None, 0.2, 0)
    assert np.bincount(y[split.validation], minlength=4).tolist() == [20, 10, 2, 0]  # the lone row is learned
    assert split.how == "rows, stratified by class"


@pytest.mark.parametrize("speakers", [np.zeros(40, int), np.repeat([0, 1], 20)])
def test_where_no_speaker_can_be_spared_the_split_says_so(speakers: np.ndarray) -> None:
    """One speaker; or two, each the only one with some class."""
    y = np.repeat([0, 1], 20)
    split = split_validation(y, speakers, 0.1, 0)
    assert "none of" in split.how and "stratified" in split.how
    assert len(split.validation) == 4


def test_no_validation_where_none_is_asked_for_or_possible() -> None:
    assert split_validation(np.array([0, 1, 0, 1]), None, 0, 0).how == "none"
    alone = split_validation(np.array([0, 1, 2]), None, 0.2, 0)
    assert not len(alone.validation) and alone.how.startswith("none: ")
