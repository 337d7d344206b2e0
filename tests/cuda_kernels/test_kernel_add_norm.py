"""Sum, LayerNorm and GELU of rows in one pass: each row by itself, rounded once."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from conftest import BACKENDS, DEVICE, relative_error
from torch import Tensor

from cuda_kernels.add_norm import add_norm, kernel, norm_rows
from cuda_kernels.backend import interpreted

EPS = 1e-5
NUM_ROWS = (1, 63, 500)
WIDTHS = (1, 70, 512)

# Mean, deviation, variance and affine are a dozen roundings of 6e-8.
FP32 = 1e-6


def inputs(
    num_rows: int, width: int, dtype: torch.dtype = torch.float32, offset: float = 0.0
) -> list[Tensor]:
    """Rows, residual, weight, bias."""
    generator = torch.Generator().manual_seed(num_rows + width)
    x, residual = torch.randn(2, num_rows, width, generator=generator, dtype=torch.float64) + offset
    weight, bias = torch.randn(2, width, generator=generator, dtype=torch.float64)
    return [t.to(DEVICE, dtype) for t in (x, residual, weight, bias)]


def by_torch(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """In float64."""
    return F.layer_norm(x.double(), weight.shape, weight.double(), bias.double(), EPS)


@pytest.fixture(params=[256, 4096], ids=["few rows a program", "many rows a program"], autouse=True)
def block_elements(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "BLOCK_ELEMENTS", request.param)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("num_rows", NUM_ROWS)
def test_it_is_the_sum_and_torchs_layer_norm_of_it(
    backend: str, num_rows: int, width: int, poisoned: None
) -> None:
    x, residual, weight, bias = inputs(num_rows, width)
    total, normed = add_norm(x, residual, weight, bias, EPS, backend=backend)
    expected = by_torch(x.double() + residual.double(), weight, bias)
    assert torch.equal(total, x + residual)
    assert normed.dtype == torch.float32
    assert relative_error(normed.double(), expected) < FP32
    assert torch.equal(norm_rows(x, weight, bias, EPS, residual, backend=backend), normed)
    alone = norm_rows(x, weight, bias, EPS, backend=backend)
    assert relative_error(alone.double(), by_torch(x, weight, bias)) < FP32


@pytest.mark.parametrize("backend", BACKENDS)
def test_gelu_is_the_exact_one(backend: str, poisoned: None) -> None:
    x, _, weight, bias = inputs(63, 70)
    out = norm_rows(x, weight, bias, EPS, gelu=True, backend=backend).double()
    normed = by_torch(x, weight, bias)
    assert relative_error(out, F.gelu(normed)) < FP32
    # The tanh form differs by more than that: this test can tell.
    assert relative_error(F.gelu(normed, approximate="tanh"), F.gelu(normed)) > 10 * FP32


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once_at_the_end(backend: str, dtype: torch.dtype, poisoned: None) -> None:
    x, residual, weight, bias = inputs(63, 70, dtype)
    total, normed = add_norm(x, residual, weight, bias, EPS, backend=backend)
    assert total.dtype == normed.dtype == dtype
    exact = x.double() + residual.double()
    # Half a unit in the last place; Triton's interpreter cuts bfloat16 off: a whole unit. Beside it
    # float32's own error, where what is rounded is next to zero.
    units = 1.0 if dtype == torch.bfloat16 and backend == "triton" and interpreted() else 0.5
    unit = torch.finfo(dtype).eps * units * (1 + 1e-4)
    for ours, truth in ((total, exact), (normed, by_torch(exact, weight, bias))):
        torch.testing.assert_close(ours.double(), truth, rtol=unit, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_cancels_far_from_zero(backend: str) -> None:
    x, _, weight, bias = inputs(63, 70, offset=1000.0)
    normed = norm_rows(x, weight, bias, EPS, backend=backend)
    # The mean of 1000 is known to 2^-24 of it, a few times; the deviation is 1.
    assert relative_error(normed.double(), by_torch(x, weight, bias)) < FP32 + 4 * 2**-24 * 1000


@pytest.mark.parametrize("backend", BACKENDS)
def test_float64_is_computed_in_float64(backend: str) -> None:
    x, residual, weight, bias = inputs(63, 70, torch.float64)
    normed = norm_rows(x, weight, bias, EPS, residual, backend=backend)
    assert relative_error(normed, by_torch(x + residual, weight, bias)) < 1e-14


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_row_is_the_same_alone_bit_for_bit(backend: str) -> None:
    x, residual, weight, bias = inputs(63, 70)
    together = add_norm(x, residual, weight, bias, EPS, backend=backend)
    for i in (0, 31, 62):
        row = slice(i, i + 1)
        alone = add_norm(x[row], residual[row], weight, bias, EPS, backend=backend)
        assert all(torch.equal(a, b[row]) for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_in_one_row_stays_in_it(backend: str) -> None:
    x, residual, weight, bias = inputs(63, 70)
    clean = norm_rows(x, weight, bias, EPS, residual, backend=backend)
    x[7] = torch.nan
    rows = norm_rows(x, weight, bias, EPS, residual, backend=backend)
    assert rows[7].isnan().all()
    others = torch.arange(63, device=DEVICE) != 7
    assert torch.equal(rows[others], clean[others])


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_may_write_over_what_it_reads(backend: str) -> None:
    x, residual, weight, bias = inputs(63, 70)
    total, normed = add_norm(x, residual, weight, bias, EPS, backend=backend)
    written = torch.empty_like(normed)
    made = add_norm(x, residual, weight, bias, EPS, (residual, written), backend)
    assert made[0] is residual and made[1] is written
    assert torch.equal(residual, total) and torch.equal(written, normed)
    expected = norm_rows(x, weight, bias, EPS, backend=backend)
    assert norm_rows(x, weight, bias, EPS, out=x, backend=backend) is x
    assert torch.equal(x, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_may_be_strided_and_there_may_be_none(backend: str) -> None:
    x, residual, weight, bias = inputs(63, 70)
    expected = add_norm(x[:, :33].contiguous(), residual[:, 7:40].contiguous(), weight[:33], bias[:33], EPS)
    for layout in (lambda t: t, lambda t: t.t().contiguous().t()):
        made = add_norm(
            layout(x)[:, :33], layout(residual)[:, 7:40], weight[:33], bias[:33], EPS, None, backend
        )
        for a, b in zip(made, expected, strict=True):
            assert a.is_contiguous()
            torch.testing.assert_close(a, b, rtol=FP32, atol=FP32)
    assert norm_rows(x[:0], weight, bias, EPS, backend=backend).shape == (0, 70)


def test_what_does_not_go_together_is_refused() -> None:
    x, residual, weight, bias = inputs(63, 70)
    for wrong in (
        (x, residual[1:], weight, bias),
        (x, residual, weight[1:], bias),
        (x[0], None, weight, bias),
    ):
        with pytest.raises(ValueError, match="must be"):
            norm_rows(wrong[0], wrong[2], wrong[3], EPS, wrong[1])
    with pytest.raises(TypeError, match="must be the same"):
        add_norm(x, residual.double(), weight, bias, EPS)
    with pytest.raises(TypeError, match="floating-point"):
        norm_rows(x.long(), weight, bias, EPS)
    for out in (x[1:], x.double(), torch.empty(70, 63, device=DEVICE).t()):
        with pytest.raises(ValueError, match="out must be"):
            norm_rows(x, weight, bias, EPS, out=out)
