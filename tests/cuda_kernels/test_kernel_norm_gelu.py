"""Each utterance is normalised by its own rows: those of others, and between them, do not exist."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from conftest import BACKENDS, DEVICE, relative_error
from torch import Tensor

from cuda_kernels.backend import interpreted
from cuda_kernels.norm_gelu import group_norm_gelu, kernel

C = 70  # not a multiple of a block of channels
LENGTHS = [1, 63, 400, 0, 500, 32]
STARTS = [3, 4, 70, 470, 600, 1100]  # back to back and with gaps
NUM_ROWS = 1140

# A dozen roundings of 6e-8 each, those of the mean and the variance among them.
FP32 = 1e-6


def inputs(offset: float = 0.0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Rows ``[P, C]`` with NaN where no utterance is, weight and bias."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(NUM_ROWS, C, generator=generator, dtype=torch.float64) + offset
    x[~of_utterances().cpu()] = torch.nan
    weight, bias = torch.randn(2, C, generator=generator, dtype=torch.float64)
    return x.to(DEVICE, dtype), weight.to(DEVICE, dtype), bias.to(DEVICE, dtype)


def of_utterances() -> Tensor:
    """bool ``[P]``"""
    rows = torch.zeros(NUM_ROWS, dtype=torch.bool, device=DEVICE)
    for start, length in zip(STARTS, LENGTHS, strict=True):
        rows[start : start + length] = True
    return rows


def by_torch(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """Utterance by utterance in float64."""
    out = torch.zeros_like(x, dtype=torch.float64)
    for start, length in zip(STARTS, LENGTHS, strict=True):
        if length > 1:  # of a single row torch refuses to take the variance
            rows = x[start : start + length].double().t()[None]  # [1, C, T]
            normed = F.group_norm(rows, C, weight.double(), bias.double(), eps)
            out[start : start + length] = F.gelu(normed)[0].t()
        elif length:
            out[start] = F.gelu(bias.double())
    return out


@pytest.fixture(params=[64, 1024], ids=["many chunks", "one chunk"])
def chunk_rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "CHUNK_ROWS", request.param)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_it_is_torchs_group_norm_and_gelu_of_each_utterance(
    backend: str, offset: float, poisoned: None, chunk_rows: None
) -> None:
    x, weight, bias = inputs(offset)
    out = group_norm_gelu(x, STARTS, LENGTHS, weight, bias, backend=backend)
    assert out.dtype == torch.float32
    # float32 holds a mean of 1000 to 2^-24 of it, its sum a few times that; the rows' deviation is 1.
    tolerance = FP32 + 4 * 2**-24 * offset
    assert relative_error(out.double(), by_torch(x, weight, bias)) < tolerance


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once_at_the_end(
    backend: str, dtype: torch.dtype, poisoned: None, chunk_rows: None
) -> None:
    x, weight, bias = inputs(offset=2.0, dtype=dtype)
    out = group_norm_gelu(x, STARTS, LENGTHS, weight, bias, backend=backend)
    assert out.dtype == dtype
    # Half a unit in the last place, and float32's own error beside it, which GELU's far negative end
    # (y times nearly nothing) keeps as it is. Triton's interpreter cuts bfloat16 off: a whole unit.
    cut_off = backend == "triton" and interpreted() and dtype == torch.bfloat16
    rounding = torch.finfo(dtype).eps / (1 if cut_off else 2)
    torch.testing.assert_close(out.double(), by_torch(x, weight, bias), rtol=rounding, atol=10 * FP32)


@pytest.mark.parametrize("backend", BACKENDS)
def test_float64_is_computed_in_float64(backend: str) -> None:
    x, weight, bias = inputs(offset=1.0, dtype=torch.float64)
    out = group_norm_gelu(x, STARTS, LENGTHS, weight, bias, eps=1e-3, backend=backend)
    assert relative_error(out, by_torch(x, weight, bias, eps=1e-3)) < 1e-14


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_of_no_utterance_are_zero_whatever_they_hold(backend: str, poisoned: None) -> None:
    x, weight, bias = inputs()
    assert x[~of_utterances()].isnan().all()
    out = group_norm_gelu(x, STARTS, LENGTHS, weight, bias, backend=backend)
    assert (out[~of_utterances()] == 0).all()
    nothing = group_norm_gelu(x, [], [], weight, bias, backend=backend)
    assert (nothing == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_utterance_is_the_same_alone_and_among_others(backend: str, chunk_rows: None) -> None:
    x, weight, bias = inputs()
    out = group_norm_gelu(x, STARTS, LENGTHS, weight, bias, backend=backend)
    for start, length in zip(STARTS, LENGTHS, strict=True):
        own = x[start : start + length]
        alone = group_norm_gelu(own, [0], [length], weight, bias, backend=backend)
        assert torch.equal(alone, out[start : start + length])


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_order_of_utterances_does_not_matter(backend: str, chunk_rows: None) -> None:
    x, weight, bias = inputs()
    out = group_norm_gelu(x, STARTS, LENGTHS, weight, bias, backend=backend)
    backwards = group_norm_gelu(x, STARTS[::-1], LENGTHS[::-1], weight, bias, backend=backend)
    assert torch.equal(out, backwards)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_may_lie_anywhere_in_memory(backend: str) -> None:
    x, weight, bias = inputs()
    expected = group_norm_gelu(x, STARTS, LENGTHS, weight, bias, backend=backend)
    for same in (x.t().contiguous().t(), torch.stack([x, x], dim=-1)[..., 1]):
        assert not same.is_contiguous()
        out = group_norm_gelu(same, STARTS, LENGTHS, weight, bias, backend=backend)
        assert out.is_contiguous()
        # A CPU adds columns up in another order than rows.
        assert relative_error(out, expected) < FP32
    strided = torch.stack([weight, weight], dim=-1)[..., 1]
    out = group_norm_gelu(x, STARTS, LENGTHS, strided, bias, backend=backend)
    assert torch.equal(out, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_silent_channel_is_its_bias(backend: str, chunk_rows: None) -> None:
    """Its variance is 0: eps alone keeps it finite, and its mean must be exact enough not to show."""
    x, weight, bias = inputs()
    x[:] = 0.25
    out = group_norm_gelu(x, STARTS, LENGTHS, weight, bias, backend=backend)
    expected = F.gelu(bias).expand(NUM_ROWS, C)[of_utterances()]
    torch.testing.assert_close(out[of_utterances()], expected, rtol=FP32, atol=FP32)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_nan_spoils_its_utterance_and_channel_alone(backend: str, chunk_rows: None) -> None:
    x, weight, bias = inputs()
    before = group_norm_gelu(x, STARTS, LENGTHS, weight, bias, backend=backend)
    x[300, 5] = torch.nan
    after = group_norm_gelu(x, STARTS, LENGTHS, weight, bias, backend=backend)
    assert after[70:470, 5].isnan().all()
    after[70:470, 5] = before[70:470, 5]
    assert torch.equal(after, before)


def test_what_cannot_be_normalised_is_refused() -> None:
    x, ones = torch.zeros(10, 4), torch.ones(4)
    with pytest.raises(TypeError, match="int64"):
        group_norm_gelu(x.long(), [0], [10], ones, ones)
    for starts, lengths in (([0, 4], [5, 5]), ([1], [10]), ([-1], [5]), ([3], [-1]), ([0, 2], [10, 0])):
        with pytest.raises(ValueError, match="overlap others or lie outside"):
            group_norm_gelu(x, starts, lengths, ones, ones)
    with pytest.raises(ValueError, match="weight"):
        group_norm_gelu(x, [0], [10], ones[:3], ones)
    with pytest.raises(ValueError, match="bias"):
        group_norm_gelu(x, [0], [10], ones, ones[:3])
    with pytest.raises(ValueError, match="backend 'cuda'"):
        group_norm_gelu(x, [0], [10], ones, ones, backend="cuda")
