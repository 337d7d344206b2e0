"""Batches and windows: everything once, within the budget, the same every time."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extractor.plan import batches as batches_module
from extractor.plan.batches import plan_batches
from extractor.plan.windows import OVERLAP, split_windows
from extractor.types import SAMPLE_RATE

lengths_and_budget = st.tuples(
    st.lists(st.integers(1, 1_000), max_size=80), st.integers(1, 1_500), st.integers(1, 100)
)


@given(lengths_and_budget)
def test_every_recording_is_planned_exactly_once_within_the_budget(
    case: tuple[list[int], int, int],
) -> None:
    lengths, budget, look_ahead = np.array(case[0], dtype=np.int64), case[1], case[2]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches_module, "LOOK_AHEAD", look_ahead)
        batches = plan_batches(lengths, budget)
    planned = np.concatenate([*batches, np.zeros(0, np.int64)])
    assert sorted(planned) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or lengths[batch].sum() <= budget
        assert (np.diff(lengths[batch]) <= 0).all()


@given(lengths_and_budget)
def test_batches_are_full(case: tuple[list[int], int, int]) -> None:
    """The first recording of the next batch of a stretch would not have fitted."""
    lengths, budget = np.array(case[0], dtype=np.int64), case[1]
    batches = plan_batches(lengths, budget)
    for batch, following in itertools.pairwise(batches):
        assert lengths[batch].sum() + lengths[following[0]] > budget


def test_the_largest_batch_is_the_first_of_its_stretch() -> None:
    lengths = np.random.default_rng(0).integers(1, 100, 1_000)
    batches = plan_batches(lengths, 50)  # some recordings are over the budget
    assert lengths[batches[0]].sum() == max(lengths[b].sum() for b in batches)


@given(lengths_and_budget, st.integers(2, 9))
def test_streams_share_batches_evenly(case: tuple[list[int], int, int], streams: int) -> None:
    """As many batches for each, the largest no larger than needed, everything once within the budget."""
    lengths, budget = np.array(case[0], dtype=np.int64), case[1]
    full, level = plan_batches(lengths, budget), plan_batches(lengths, budget, streams=streams)
    assert sorted(np.concatenate([*level, np.zeros(0, np.int64)])) == list(range(len(lengths)))
    most = -(-len(full) // streams) * streams
    assert len(level) <= most
    sums = [int(lengths[batch].sum()) for batch in level]
    for batch, total in zip(level, sums, strict=True):
        assert len(batch) == 1 or total <= budget
        assert (np.diff(lengths[batch]) <= 0).all()
    cap = max((total for batch, total in zip(level, sums, strict=True) if len(batch) > 1), default=0)
    even = cap * most <= lengths.sum()  # no batch holds more than its share
    assert even or cap <= 1 or len(plan_batches(lengths, cap - 1)) > most  # smaller ones are too many


def test_a_short_run_is_work_for_every_stream() -> None:
    forty_seconds = np.full(10, 4 * SAMPLE_RATE)
    assert [len(b) for b in plan_batches(forty_seconds, 30 * SAMPLE_RATE)] == [7, 3]
    assert [len(b) for b in plan_batches(forty_seconds, 30 * SAMPLE_RATE, streams=2)] == [5, 5]
    assert [len(b) for b in plan_batches(forty_seconds, 30 * SAMPLE_RATE, streams=8)] == [2] * 5


def test_ties_keep_their_order() -> None:
    """Two lengths in turn, so many that a sort which is not stable mixes equal ones (numpy's does from
    17 values on)."""
    lengths = np.tile([20, 10], 60)
    order = np.concatenate(plan_batches(lengths, 300))
    assert order.tolist() == [*range(0, 120, 2), *range(1, 120, 2)]


@settings(deadline=None)
@given(st.integers(400, 4_000_000), st.integers(401, 3_000), st.sampled_from([(320, 400), (160, 400)]))
def test_every_frame_is_kept_from_exactly_one_window(
    num_samples: int, window_steps: int, geometry: tuple[int, int]
) -> None:
    stride, field = geometry
    window_samples = window_steps * 320
    kept = []
    for w in split_windows(num_samples, window_samples, stride, field):
        assert w.stop - w.start <= window_samples
        assert w.num_frames == (w.stop - w.start - field) // stride + 1
        assert 0 <= w.keep.start < w.keep.stop <= w.num_frames
        assert w.start % stride == 0
        kept += [w.start // stride + k for k in range(w.keep.start, w.keep.stop)]
    assert kept == list(range((num_samples - field) // stride + 1))


def test_frames_at_a_cut_have_context_on_both_sides() -> None:
    stride, margin = 320, round(OVERLAP * SAMPLE_RATE) // 2 // 320
    windows = split_windows(100 * SAMPLE_RATE, 20 * SAMPLE_RATE, stride, 400)
    for before, after in itertools.pairwise(windows):
        assert before.num_frames - before.keep.stop >= margin - 1
        assert after.keep.start >= margin - 1


def test_a_recording_that_fits_is_not_cut() -> None:
    (window,) = split_windows(SAMPLE_RATE, SAMPLE_RATE, 320, 400)
    assert (window.start, window.stop, window.keep) == (0, SAMPLE_RATE, slice(0, 49))
