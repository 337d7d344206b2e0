"""The positional convolution: an utterance sees its own frames, and zeros before and behind them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from conftest import BACKENDS, DEVICE, relative_error
from torch import Tensor

from cuda_kernels.backend import interpreted
from cuda_kernels.packing import TILE_ROWS, pack
from cuda_kernels.positional_conv import lay_out, positional_conv

LENGTHS = [1, 63, 0, 200, TILE_ROWS, 7]  # shorter than the kernel, and longer than a tile
N = sum(LENGTHS)
SHAPES = [(2, 12, 16), (1, 20, 15), (3, 16, 1), (1, 4, 40)]  # groups, channels of each, taps

# Up to 240 products a sum, each rounded to 6e-8, errors of random sign.
FP32 = 2e-6


def inputs(groups: int, width: int, taps: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Rows, a convolution's weight, bias, residual."""
    generator = torch.Generator().manual_seed(taps)
    D = groups * width
    x, residual = torch.randn(2, N, D, generator=generator, dtype=torch.float64)
    weight = torch.randn(D, width, taps, generator=generator, dtype=torch.float64) / (width * taps) ** 0.5
    bias = torch.randn(D, generator=generator, dtype=torch.float64)
    return [t.to(DEVICE, dtype) for t in (x, weight, bias, residual)]


def by_torch(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor, groups: int) -> Tensor:
    """Utterance by utterance in float64: 'same' padding, an even kernel's last output dropped."""
    out = []
    for rows, kept in zip(x.double().split(LENGTHS), residual.double().split(LENGTHS), strict=True):
        if len(rows):
            padding = weight.shape[2] // 2
            y = F.conv1d(rows.t()[None], weight.double(), bias.double(), padding=padding, groups=groups)
            out.append(kept + F.gelu(y[0, :, : len(rows)].t()))
    return torch.cat(out)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("groups", "width", "taps"), SHAPES)
def test_it_is_torchs_convolution_of_each_utterance(
    backend: str, groups: int, width: int, taps: int, poisoned: None
) -> None:
    x, weight, bias, residual = inputs(groups, width, taps)
    out = positional_conv(x, pack(LENGTHS, DEVICE), lay_out(weight, groups), bias, residual, backend)
    assert out.dtype == torch.float32 and out.is_contiguous()
    assert relative_error(out.double(), by_torch(x, weight, bias, residual, groups)) < FP32


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once_at_the_end(backend: str, dtype: torch.dtype, poisoned: None) -> None:
    if dtype == torch.bfloat16 and backend == "triton" and interpreted():
        pytest.skip("Triton's interpreter multiplies bfloat16 as if its bits were integers")
    x, weight, bias, residual = inputs(2, 12, 16, dtype)
    out = positional_conv(x, pack(LENGTHS, DEVICE), lay_out(weight, 2), bias, residual, backend)
    assert out.dtype == dtype
    expected = by_torch(x, weight, bias, residual, 2)
    # Half a unit in the last place, and float32's own error beside it where the sum is next to zero.
    torch.testing.assert_close(
        out.double(), expected, rtol=torch.finfo(dtype).eps * 0.5 * (1 + 1e-3), atol=4e-6
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_utterance_is_the_same_alone_bit_for_bit(backend: str) -> None:
    x, weight, bias, residual = inputs(2, 12, 16)
    laid_out = lay_out(weight, 2)
    whole = positional_conv(x, pack(LENGTHS, DEVICE), laid_out, bias, residual, backend).split(LENGTHS)
    for s, (own, kept) in enumerate(zip(x.split(LENGTHS), residual.split(LENGTHS), strict=True)):
        alone = positional_conv(own, pack([len(own)], DEVICE), laid_out, bias, kept, backend)
        assert torch.equal(alone, whole[s])


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_in_one_utterance_stays_in_it(backend: str) -> None:
    x, weight, bias, residual = inputs(2, 12, 16)
    packing, laid_out = pack(LENGTHS, DEVICE), lay_out(weight, 2)
    clean = positional_conv(x, packing, laid_out, bias, residual, backend).split(LENGTHS)
    x[1:64] = torch.nan
    parts = positional_conv(x, packing, laid_out, bias, residual, backend).split(LENGTHS)
    for s, (a, b) in enumerate(zip(parts, clean, strict=True)):
        assert a.isnan().all() if s == 1 else torch.equal(a, b)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_single_pulse_comes_out_as_the_kernel_backwards(backend: str) -> None:
    """Frame t sees t - K / 2 to t + (K - 1) / 2: a pulse at frame 20 shows from 20 - 7 to 20 + 8."""
    taps = 16
    x = torch.zeros(40, 1, device=DEVICE)
    x[20] = 1.0
    weight = torch.arange(1.0, taps + 1, device=DEVICE)[None, None]
    zeros = torch.zeros(1, device=DEVICE)
    out = positional_conv(x, pack([40], DEVICE), lay_out(weight, 1), zeros, torch.zeros_like(x), backend)
    seen = out[:, 0].nonzero()[:, 0].tolist()
    assert seen == list(range(20 - 7, 20 + 8 + 1))
    expected = F.gelu(torch.arange(taps, 0, -1.0, device=DEVICE))
    torch.testing.assert_close(out[13:29, 0], expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_may_be_strided_and_there_may_be_none(backend: str) -> None:
    x, weight, bias, residual = inputs(2, 12, 16)
    packing, laid_out = pack(LENGTHS, DEVICE), lay_out(weight, 2)
    expected = positional_conv(x, packing, laid_out, bias, residual, backend)
    for layout in (lambda t: torch.cat([t, t], dim=1)[:, :24], lambda t: t.t().contiguous().t()):
        made = positional_conv(layout(x), packing, laid_out, bias, layout(residual), backend)
        assert torch.equal(made, expected)
    none = positional_conv(x[:0], pack([0], DEVICE), laid_out, bias, residual[:0], backend)
    assert none.shape == (0, 24)


def test_what_does_not_go_together_is_refused() -> None:
    x, weight, bias, residual = inputs(2, 12, 16)
    packing, laid_out = pack(LENGTHS, DEVICE), lay_out(weight, 2)
    for wrong in (
        (x[1:], packing, laid_out, bias, residual),
        (x, pack(LENGTHS[:-1], DEVICE), laid_out, bias, residual),
        (x, packing, laid_out, bias[1:], residual),
        (x, packing, laid_out[:, :, :, 1:], bias, residual),
    ):
        with pytest.raises(ValueError, match="do not fit"):
            positional_conv(*wrong)
    with pytest.raises(TypeError, match="must be the same"):
        positional_conv(x, packing, laid_out.double(), bias, residual)
    with pytest.raises(TypeError, match="floating-point"):
        positional_conv(x.long(), packing, laid_out, bias, residual)
