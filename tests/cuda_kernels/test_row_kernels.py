"""What is special to each kernel on packed rows, beside what is true of all (`test_kernels.py`)."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from conftest import BACKENDS, DEVICE, relative_error
from test_kernels import EPS, randn
from torch import Tensor

from cuda_kernels.add_norm import add_norm, norm_rows
from cuda_kernels.attention import attend_packed
from cuda_kernels.backend import accumulated
from cuda_kernels.norm_gelu import group_norm_gelu
from cuda_kernels.packing import COLUMNS, TILE_ROWS, Packing, ShapeBucket, pack
from cuda_kernels.pool import STATISTICS, pool_rows, row_starts
from cuda_kernels.positional_conv import lay_out, positional_conv

CPU = torch.device("cpu")
FP32 = 2e-6  # sums of up to 1,000 rows, each rounded to 6e-8, errors of random sign
on_both = pytest.mark.parametrize("backend", BACKENDS)


# --- Sum and norm -------------------------------------------------------------------------------


@on_both
def test_it_may_write_over_what_it_reads(backend: str) -> None:
    (x, residual), (weight, bias) = randn(2, 63, 70), randn(2, 70)
    total, normed = add_norm(x, residual, weight, bias, EPS, backend=backend)
    written = torch.empty_like(normed)
    made = add_norm(x, residual, weight, bias, EPS, (residual, written), backend)
    assert made[0] is residual and made[1] is written
    assert torch.equal(residual, total) and torch.equal(written, normed)
    expected = norm_rows(x, weight, bias, EPS, backend=backend)
    assert norm_rows(x, weight, bias, EPS, out=x, backend=backend) is x
    assert torch.equal(x, expected)


# --- Attention, positional convolution ----------------------------------------------------------


@on_both
def test_large_scores_do_not_overflow(backend: str) -> None:
    """exp(1000) has no float: the maximum is subtracted first, and again when a larger one comes."""
    x = randn(100, 48)
    x[:, :16] *= 250
    out = attend_packed(x, pack([100], DEVICE), 1, backend=backend)
    q, k, v = x.double().unflatten(1, (3, 1, -1)).permute(1, 2, 0, 3)[:, None]
    truth = F.scaled_dot_product_attention(q, k, v, scale=1.0)[0, 0]
    # Scores of about 1000 are known to 6e-5, and so are the weights.
    assert relative_error(out.double(), truth) < 4 * 6e-5


@on_both
def test_a_single_pulse_comes_out_as_the_kernel_backwards(backend: str) -> None:
    """Frame t sees t - K / 2 to t + (K - 1) / 2: a pulse at frame 20 shows from 20 - 7 to 20 + 8."""
    x = torch.zeros(40, 1, device=DEVICE)
    x[20] = 1.0
    weight = lay_out(torch.arange(1.0, 17, device=DEVICE)[None, None], 1)
    zeros = torch.zeros(1, device=DEVICE)
    out = positional_conv(x, pack([40], DEVICE), weight, zeros, torch.zeros_like(x), backend)[:, 0]
    assert out.nonzero()[:, 0].tolist() == list(range(20 - 7, 20 + 8 + 1))
    expected = F.gelu(torch.arange(16, 0, -1.0, device=DEVICE))
    torch.testing.assert_close(out[13:29], expected, rtol=1e-6, atol=0)


# --- GroupNorm and GELU -------------------------------------------------------------------------


C, NUM_ROWS = 70, 1140
STARTS, LENGTHS = [3, 4, 70, 470, 600, 1100], [1, 63, 400, 0, 500, 32]  # back to back and with gaps


@pytest.fixture
def with_gaps(monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows ``[P, C]`` with NaN where no utterance is, weight, bias, and whether a row is an utterance's."""
    monkeypatch.setattr("cuda_kernels.norm_gelu.kernel.CHUNK_ROWS", 64)
    own = torch.zeros(NUM_ROWS, dtype=torch.bool, device=DEVICE)
    for start, length in zip(STARTS, LENGTHS, strict=True):
        own[start : start + length] = True
    return randn(NUM_ROWS, C).masked_fill(~own[:, None], torch.nan), *randn(2, C), own


@on_both
def test_rows_of_no_utterance_are_zero_whatever_they_hold(
    backend: str, with_gaps: tuple[Tensor, ...], poisoned: None
) -> None:
    x, weight, bias, own = with_gaps
    out = group_norm_gelu(x, STARTS, LENGTHS, weight, bias, backend=backend)
    assert (out[~own] == 0).all()
    packed = group_norm_gelu(x[own], [0, 1, 64, 464, 464, 964], LENGTHS, weight, bias, backend=backend)
    assert torch.equal(out[own], packed)
    assert (group_norm_gelu(x, [], [], weight, bias, backend=backend) == 0).all()
    backwards = group_norm_gelu(x, STARTS[::-1], LENGTHS[::-1], weight, bias, backend=backend)
    assert torch.equal(out, backwards)


@on_both
def test_a_silent_channel_is_its_bias(backend: str, with_gaps: tuple[Tensor, ...]) -> None:
    """Its variance is 0: eps alone keeps it finite, and its mean must be exact enough not to show."""
    x, weight, bias, own = with_gaps
    out = group_norm_gelu(x.fill_(0.25), STARTS, LENGTHS, weight, bias, backend=backend)
    torch.testing.assert_close(out[own], F.gelu(bias).expand(NUM_ROWS, C)[own], rtol=1e-6, atol=1e-6)


@on_both
def test_a_nan_spoils_its_utterance_and_channel_alone(backend: str, with_gaps: tuple[Tensor, ...]) -> None:
    x, weight, bias, _ = with_gaps
    before = group_norm_gelu(x, STARTS, LENGTHS, weight, bias, backend=backend)
    x[300, 5] = torch.nan
    after = group_norm_gelu(x, STARTS, LENGTHS, weight, bias, backend=backend)
    assert after[70:470, 5].isnan().all()
    after[70:470, 5] = before[70:470, 5]
    assert torch.equal(after, before)


# --- Pooling ------------------------------------------------------------------------------------


RUNS = [1, 63, 400, 32, 500, 2]


def by_hand(x: Tensor, lengths: list[int]) -> dict[str, Tensor]:
    """In float64, with torch's own functions over all rows of a run at once."""
    runs = x.double().split(lengths)
    of_runs = {
        "mean": [r.mean(0) for r in runs],
        "m2": [r.var(0, correction=0) * len(r) for r in runs],
        "min": [r.amin(0) for r in runs],
        "max": [r.amax(0) for r in runs],
        "first": [r[0] for r in runs],
        "last": [r[-1] for r in runs],
    }
    return {name: torch.stack(values) for name, values in of_runs.items()}


@on_both
@pytest.mark.parametrize(
    ("dtype", "offset"),
    [(torch.float32, 0.0), (torch.float32, 1000.0)]
    + [(dtype, 0.0) for dtype in (torch.float64, torch.bfloat16, torch.float16)],
)
def test_every_statistic_is_that_of_the_runs_own_rows(
    backend: str, dtype: torch.dtype, offset: float, poisoned: None
) -> None:
    """Half precision is reduced in float32, not in itself; float64 in float64."""
    x = randn(sum(RUNS), C, dtype=dtype) + offset
    pooled, expected = pool_rows(x, RUNS, STATISTICS, backend), by_hand(x, RUNS)
    error = 1e-13 if dtype == torch.float64 else FP32
    assert list(pooled) == list(expected) == list(STATISTICS)
    for name, values in pooled.items():
        assert values.dtype == accumulated(dtype) and values.shape == (len(RUNS), C)
        if name == "mean":
            torch.testing.assert_close(values.double(), expected[name], rtol=error, atol=error)
        elif name == "m2":
            # However far the rows are from zero: a mean that is off by FP32 * offset adds that squared,
            # once a row, to rows whose variance is 1.
            rtol = error + (error * offset) ** 2
            torch.testing.assert_close(values.double(), expected[name], rtol=rtol, atol=0)
        else:
            assert torch.equal(values.double(), expected[name])


@on_both
@pytest.mark.parametrize("statistics", [(name,) for name in STATISTICS] + [("last", "mean"), ()])
def test_each_statistic_is_the_same_whatever_else_is_wanted(
    backend: str, statistics: tuple[str, ...]
) -> None:
    x, lengths = randn(68, C), [5, 63]
    everything = pool_rows(x, lengths, STATISTICS, backend)
    starts = row_starts(lengths, DEVICE)  # made before, by whoever pools the same runs of many tensors
    assert starts.tolist() == [0, 5, 68]
    for pooled in (pool_rows(x, lengths, statistics, backend, made) for made in (None, starts)):
        assert tuple(pooled) == statistics
        assert all(torch.equal(pooled[name], everything[name]) for name in statistics)


@on_both
@pytest.mark.parametrize("where", [0, 40, 62])
def test_a_nan_shows_in_its_run_and_channel_alone(backend: str, where: int) -> None:
    x, lengths = randn(189, C), [63, 63, 63]
    before = pool_rows(x, lengths, STATISTICS, backend)
    x[63 + where, 3] = torch.nan
    after = pool_rows(x, lengths, STATISTICS, backend)
    for name in ("mean", "m2", "min", "max"):
        assert after[name][1, 3].isnan()
        after[name][1, 3] = before[name][1, 3]
        assert torch.equal(after[name], before[name])


@on_both
@pytest.mark.parametrize("bad", [torch.inf, -torch.inf])
def test_an_infinity_shows_in_the_mean_and_at_its_end(backend: str, bad: float) -> None:
    x = randn(103, C)
    x[10, 3] = bad
    pooled = pool_rows(x, [63, 40], ("mean", "min", "max"), backend)
    assert pooled["mean"][0, 3] == bad
    assert pooled["max" if bad > 0 else "min"][0, 3] == bad
    assert pooled["min" if bad > 0 else "max"][0, 3].isfinite()
    assert pooled["mean"].isfinite().sum() == pooled["mean"].numel() - 1


@on_both
def test_a_constant_has_no_spread(backend: str) -> None:
    x = torch.full((63 + 400, C), 0.1, device=DEVICE)
    # Its sum of 400 is rounded, so its mean may miss it by a few ulp: squared, 400 times.
    assert pool_rows(x, [63, 400], ("mean", "m2"), backend)["m2"].max() <= 400 * (8 * 0.1 * 2**-24) ** 2


def test_many_tiles_merge_to_what_few_give(monkeypatch: pytest.MonkeyPatch) -> None:
    x, lengths = randn(563, C) + 10, [500, 63]
    expected = by_hand(x, lengths)
    for block in (2, 8, 64):
        monkeypatch.setattr("cuda_kernels.pool.kernel.BLOCK_ROWS", block)
        for name, values in pool_rows(x, lengths, ("mean", "m2"), "triton").items():
            torch.testing.assert_close(values.double(), expected[name], rtol=FP32, atol=10 * FP32)


# --- Where utterances lie -----------------------------------------------------------------------


def covered(packing: Packing) -> list[int]:
    """How often each row is in a tile."""
    counts = [0] * packing.num_rows
    for begin, length, first in packing.tiles.tolist():
        for row in range(first, min(first + TILE_ROWS, length)):
            counts[begin + row] += 1
    return counts


def test_every_row_is_in_one_tile_and_the_longest_utterances_come_first() -> None:
    packing = pack([5, 0, 1000, TILE_ROWS, 129, 1], CPU)
    assert covered(packing) == [1] * packing.num_rows
    assert packing.offsets.tolist() == [0, 5, 5, 1005, 1133, 1262, 1263]
    lengths = packing.tiles[:, 1].tolist()
    assert lengths == sorted(lengths, reverse=True) and packing.tiles.shape[1] == COLUMNS


def test_batches_of_one_room_share_its_shapes() -> None:
    bucket = ShapeBucket(rows=1024, utterances=16, longest=500)
    packings = [
        pack(bucket.filled(lengths), CPU, bucket.longest)
        for lengths in ([500, 24], [1] * 12, [300, 300, 300], [500, 500, 24], [])
    ]
    assert {p.table.shape for p in packings} == {packings[0].table.shape}
    for packing in packings:
        assert packing.bucket == bucket
        assert covered(packing) == [1] * 1024
        packings[0].load(packing)
        assert torch.equal(packings[0].tiles, packing.tiles)


def test_what_has_no_room_is_refused() -> None:
    bucket = ShapeBucket(rows=100, utterances=4, longest=50)
    for lengths in ([51], [50, 51], [50, 50, 1], [10] * 5, [10] * 3):  # the last: two more to fill up
        with pytest.raises(ValueError, match="do not fit"):
            bucket.filled(lengths)
    with pytest.raises(ValueError, match="does not fit"):
        pack([50, 50], CPU).load(pack([50, 49], CPU))
    with pytest.raises(ValueError, match="none may be negative"):
        pack([5, -1], CPU)
    with pytest.raises(ValueError, match="where none may have more than 49"):
        pack([50], CPU, longest=49)
