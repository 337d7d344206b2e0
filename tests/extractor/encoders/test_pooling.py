"""Pooling sees an utterance's own frames, each once, whatever pieces they come in."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from extractor.encoders.pooling import POOLINGS, Pooler, parse_poolings
from extractor.errors import SettingsError
from extractor.types import Piece

D = 5
NAMES = tuple(POOLINGS)
# By numpy in float64 over all frames [T, D] at once.
EXPECTED = {
    "mean": lambda x: x.mean(0),
    "std": lambda x: x.std(0),
    "min": lambda x: x.min(0),
    "max": lambda x: x.max(0),
    "first": lambda x: x[0],
    "last": lambda x: x[-1],
    "meanstd": lambda x: np.concatenate([x.mean(0), x.std(0)]),
}


def whole(frames: Sequence[np.ndarray], layers: Sequence[int] = (0,), names: Sequence[str] = NAMES) -> Pooler:
    """Utterances in one forward pass."""
    pooler = Pooler(len(frames), layers, D, names, torch.device("cpu"))
    pooler.begin([Piece(i, 0, 0, len(x), slice(0, len(x))) for i, x in enumerate(frames)])
    for layer in range(max(layers) + 1):
        pooler.add(layer, torch.from_numpy(np.concatenate(frames) + layer))
    return pooler


def noise(lengths: Sequence[int], seed: int = 0, offset: float = 0.0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [(rng.standard_normal((n, D)) + offset).astype(np.float32) for n in lengths]


@pytest.mark.parametrize("name", EXPECTED)
def test_every_pooling_equals_numpy_over_all_frames(name: str) -> None:
    frames = noise([1, 63, 2, 500], offset=3.0)
    pooled = whole(frames).embeddings().pooled[name]
    for row, x in zip(pooled, frames, strict=True):
        np.testing.assert_allclose(row[0], EXPECTED[name](x.astype(np.float64)), rtol=1e-5, atol=1e-6)


def test_the_tables_every_pooling_is_checked() -> None:
    assert set(EXPECTED) | {"none"} == set(POOLINGS)


def test_one_frame_has_no_spread_and_no_nan() -> None:
    assert (whole(noise([1])).embeddings().pooled["std"] == 0).all()


def test_only_wanted_layers_are_kept_in_their_order() -> None:
    frames = noise([10])
    pooled = whole(frames, layers=(1, 3), names=("mean",)).embeddings().pooled["mean"]
    assert pooled.shape == (1, 2, D)
    np.testing.assert_allclose(pooled[0, 1] - pooled[0, 0], 2.0, rtol=1e-5)


def test_frames_come_back_as_they_were() -> None:
    frames = noise([3, 1, 7])
    for got, x in zip(whole(frames, layers=(0, 1)).frame_rows(), frames, strict=True):
        assert np.array_equal(got, np.stack([x, x + 1], axis=1))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=6), st.integers(0, 9), st.integers(0, 2**32 - 1))
def test_windows_merge_to_what_all_frames_at_once_give(cuts: list[int], margin: int, seed: int) -> None:
    """Each window carries ``margin`` frames on both sides that must not count."""
    x = noise([sum(cuts)], seed, offset=100.0)[0]  # an offset that would show cancellation
    pooler = Pooler(1, (0,), D, NAMES, torch.device("cpu"), windowed=True)
    start = 0
    for n in cuts:
        around = np.full((n + 2 * margin, D), np.nan, dtype=np.float32)
        around[margin : margin + n] = x[start : start + n]
        pooler.begin([Piece(0, 0, 0, n + 2 * margin, slice(margin, margin + n))])
        pooler.add(0, torch.from_numpy(around))
        start += n
    pooled = pooler.embeddings().pooled
    for name, expected in EXPECTED.items():
        np.testing.assert_allclose(pooled[name][0, 0], expected(x.astype(np.float64)), rtol=1e-5, atol=1e-5)
    assert np.array_equal(pooler.frame_rows()[0][:, 0], x)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", [0, 3, 9])
def test_a_frame_that_is_not_finite_is_noticed_for_its_utterance_alone(bad: float, where: int) -> None:
    frames = noise([10, 10, 10])
    frames[1][where, 2] = bad
    # `max` would swallow a -inf, `first` sees one frame only: neither may hide it.
    assert whole(frames, names=("max", "first")).embeddings().finite.tolist() == [True, False, True]


def test_poolings_are_parsed_and_refused_by_name() -> None:
    assert parse_poolings("mean, std") == ("mean", "std")
    assert parse_poolings(["max"]) == ("max",)
    with pytest.raises(SettingsError, match="unknown pooling 'maen'; known: mean"):
        parse_poolings("maen")
    with pytest.raises(SettingsError, match="each pooling once"):
        parse_poolings("mean,mean")
    with pytest.raises(SettingsError, match="unknown pooling ''"):
        parse_poolings("")
