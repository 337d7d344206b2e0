"""A run's statistics are those of its own rows, each seen once, in one pass or two."""

from __future__ import annotations

import pytest
import torch
from conftest import BACKENDS, DEVICE
from torch import Tensor

from cuda_kernels.pool import STATISTICS, kernel, pool_rows, row_starts

LENGTHS = [1, 63, 400, 32, 500, 2]
D = 70  # not a multiple of a block of channels

# Sums of up to 1,000 rows in float32, each rounded to 6e-8, errors of random sign.
FP32 = 2e-6


def rows(
    lengths: list[int], layers: int = 2, offset: float = 0.0, dtype: torch.dtype = torch.float32
) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(layers, sum(lengths), D, generator=generator, dtype=torch.float64) + offset
    return x.to(DEVICE, dtype)


def by_hand(x: Tensor, lengths: list[int]) -> dict[str, Tensor]:
    """In float64, with torch's own functions over all rows of a run at once."""
    runs = x.double().split(lengths, dim=-2)
    of_runs = {
        "mean": [r.mean(-2) for r in runs],
        "m2": [r.var(-2, correction=0) * r.shape[-2] for r in runs],
        "min": [r.amin(-2) for r in runs],
        "max": [r.amax(-2) for r in runs],
        "first": [r.select(-2, 0) for r in runs],
        "last": [r.select(-2, -1) for r in runs],
    }
    return {name: torch.stack(values, dim=-2) for name, values in of_runs.items()}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_every_statistic_is_that_of_the_runs_own_rows(backend: str, offset: float, poisoned: None) -> None:
    x = rows(LENGTHS, offset=offset)
    pooled = pool_rows(x, LENGTHS, STATISTICS, backend=backend)
    expected = by_hand(x, LENGTHS)
    assert list(pooled) == list(expected) == list(STATISTICS)
    for name, values in pooled.items():
        assert values.dtype == torch.float32
        assert values.shape == (2, len(LENGTHS), D)
        if name == "mean":
            torch.testing.assert_close(values.double(), expected[name], rtol=FP32, atol=FP32)
        elif name == "m2":
            # However far the rows are from zero: a mean that is off by FP32 * offset adds that squared,
            # once a row, to rows whose variance is 1.
            rtol = FP32 + (FP32 * offset) ** 2
            torch.testing.assert_close(values.double(), expected[name], rtol=rtol, atol=0)
        else:
            assert torch.equal(values.double(), expected[name])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_rows_of_other_dtypes_are_read_as_they_are(backend: str, dtype: torch.dtype, poisoned: None) -> None:
    """Half precision is reduced in float32, not in itself; float64 in float64."""
    x = rows(LENGTHS, dtype=dtype)
    tolerance = 1e-13 if dtype == torch.float64 else FP32
    expected = by_hand(x, LENGTHS)
    for name, values in pool_rows(x, LENGTHS, STATISTICS, backend=backend).items():
        assert values.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        torch.testing.assert_close(values.double(), expected[name], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_run_is_the_same_alone_and_in_any_batch(backend: str) -> None:
    x = rows(LENGTHS, layers=1)[0]
    pooled = pool_rows(x, LENGTHS, STATISTICS, backend=backend)
    for i, own in enumerate(x.split(LENGTHS)):
        alone = pool_rows(own, [len(own)], STATISTICS, backend=backend)
        for name in STATISTICS:
            assert torch.equal(alone[name][0], pooled[name][i])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_layer_is_the_same_alone_and_among_others(backend: str) -> None:
    x = rows(LENGTHS, layers=3)
    pooled = pool_rows(x, LENGTHS, STATISTICS, backend=backend)
    for i, layer in enumerate(x):
        alone = pool_rows(layer, LENGTHS, STATISTICS, backend=backend)
        assert all(torch.equal(alone[name], pooled[name][i]) for name in STATISTICS)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_may_lie_anywhere_in_memory(backend: str) -> None:
    lengths = [33, 1, 40]
    x = rows(lengths)
    expected = pool_rows(x, lengths, STATISTICS, backend=backend)
    elsewhere = [
        x.transpose(1, 2).contiguous().transpose(1, 2),
        x.transpose(0, 1).contiguous().transpose(0, 1),
        torch.stack([x, x], dim=-1)[..., 1],
    ]
    for same in elsewhere:
        assert not same.is_contiguous()
        pooled = pool_rows(same, lengths, STATISTICS, backend=backend)
        for name in STATISTICS:
            # A CPU adds columns up in another order than rows.
            torch.testing.assert_close(pooled[name], expected[name], rtol=FP32, atol=FP32)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("statistics", [(name,) for name in STATISTICS] + [("last", "mean"), ()])
def test_each_statistic_is_the_same_whatever_else_is_wanted(
    backend: str, statistics: tuple[str, ...]
) -> None:
    lengths = [5, 63]
    x = rows(lengths)
    everything = pool_rows(x, lengths, STATISTICS, backend=backend)
    pooled = pool_rows(x, lengths, statistics, backend=backend)
    assert tuple(pooled) == statistics
    assert all(torch.equal(pooled[name], everything[name]) for name in statistics)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("where", [0, 40, 62])
def test_a_nan_shows_in_its_run_and_channel_alone(backend: str, where: int) -> None:
    lengths = [63, 63, 63]
    x = rows(lengths)
    before = pool_rows(x, lengths, STATISTICS, backend=backend)
    x[1, 63 + where, 3] = torch.nan
    after = pool_rows(x, lengths, STATISTICS, backend=backend)
    for name in ("mean", "m2", "min", "max"):
        assert after[name][1, 1, 3].isnan()
        after[name][1, 1, 3] = before[name][1, 1, 3]
        assert torch.equal(after[name], before[name])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [torch.inf, -torch.inf])
def test_an_infinity_shows_in_the_mean_and_at_its_end(backend: str, bad: float) -> None:
    lengths = [63, 40]
    x = rows(lengths)
    x[0, 10, 3] = bad
    pooled = pool_rows(x, lengths, ("mean", "min", "max"), backend=backend)
    assert pooled["mean"][0, 0, 3] == bad
    assert pooled["max" if bad > 0 else "min"][0, 0, 3] == bad
    assert pooled["min" if bad > 0 else "max"][0, 0, 3].isfinite()
    assert pooled["mean"].isfinite().sum() == pooled["mean"].numel() - 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_constant_has_no_spread(backend: str) -> None:
    x = torch.full((63 + 400, D), 0.1, device=DEVICE)
    pooled = pool_rows(x, [63, 400], ("mean", "m2"), backend=backend)
    # Its sum of 400 is rounded, so its mean may miss it by a few ulp: squared, 400 times.
    assert pooled["m2"].max() <= 400 * (8 * 0.1 * 2**-24) ** 2


def test_many_tiles_merge_to_what_few_give(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = [500, 63]
    x = rows(lengths, offset=10.0)
    expected = by_hand(x, lengths)
    for block in (2, 8, 64):
        monkeypatch.setattr(kernel, "BLOCK_ROWS", block)
        pooled = pool_rows(x, lengths, ("mean", "m2"), backend="triton")
        for name, values in pooled.items():
            torch.testing.assert_close(values.double(), expected[name], rtol=FP32, atol=10 * FP32)


def test_what_cannot_be_pooled_is_refused() -> None:
    x = torch.zeros(10, 4)
    with pytest.raises(TypeError, match="int64"):
        pool_rows(x.long(), [10], ("mean",))
    with pytest.raises(ValueError, match=r"\[N, D\]"):
        pool_rows(x[0], [4], ("mean",))
    for lengths in ([9], [11], [0, 10], [-1, 11], []):
        with pytest.raises(ValueError, match="10 rows in runs of"):
            pool_rows(x, lengths, ("mean",))
    with pytest.raises(ValueError, match="unknown statistic 'median'; known: mean"):
        pool_rows(x, [10], ("median",))
    with pytest.raises(ValueError, match="once"):
        pool_rows(x, [10], ("mean", "mean"))
    with pytest.raises(ValueError, match="backend 'cuda'"):
        pool_rows(x, [10], ("mean",), backend="cuda")


@pytest.mark.parametrize("backend", BACKENDS)
def test_starts_that_were_made_before_give_the_same(backend: str) -> None:
    x, starts = rows(LENGTHS), row_starts(LENGTHS, DEVICE)
    assert starts.tolist() == [0, 1, 64, 464, 496, 996, 998]
    pooled = pool_rows(x, LENGTHS, STATISTICS, backend)
    for name, values in pool_rows(x, LENGTHS, STATISTICS, backend, starts).items():
        assert torch.equal(values, pooled[name])


def test_starts_of_other_runs_are_refused() -> None:
    for starts in (row_starts(LENGTHS[1:], DEVICE), row_starts(LENGTHS, DEVICE).int()):
        with pytest.raises(ValueError, match="starts"):
            pool_rows(rows(LENGTHS), LENGTHS, ["mean"], "triton", starts)
