"""What is true of every kernel: by each backend it is its definition, and no utterance sees another."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from conftest import BACKENDS, DEVICE, relative_error
from torch import Tensor

from cuda_kernels.add_norm import add_norm, norm_rows
from cuda_kernels.attention import GatedBias, attend_packed
from cuda_kernels.backend import interpreted
from cuda_kernels.norm_gelu import group_norm_gelu
from cuda_kernels.packing import TILE_ROWS, pack
from cuda_kernels.pool import STATISTICS, pool_rows
from cuda_kernels.positional_conv import lay_out, positional_conv
from cuda_kernels.resample import filter_bank, half_width, ratio, resample
from cuda_kernels.spectral import SpectralEdit, edit_spectrogram
from cuda_kernels.waveform import WaveformEdit, edit_waveforms

# One frame, around blocks of rows, empty, more than a tile, exactly one, odd.
LENGTHS = [1, 63, 0, 200, TILE_ROWS, 33]
SOUNDS = [1, 63, 0, 400, 500, 1000]  # samples, or frames of a spectrogram
EPS = 1e-5
Tensors = Sequence[Tensor]
LONGEST = 210  # that attention's bias has distances for


@dataclass(frozen=True)
class Case:
    """A kernel on a ragged batch that any utterance can be taken out of, and what its results must be."""

    rows: Tensors  # packed, [N, ...] each
    lengths: list[int]
    # Packed rows, which utterances they are, their lengths, backend -> what becomes of each
    call: Callable[[Tensors, Sequence[int], list[int], str], Tensors]
    truth: Callable[[Tensors, int], Tensor]  # of one utterance's rows, by torch's own in float64

    def run(
        self, which: Sequence[int], backend: str, layout: Callable[[Tensor], Tensor] = lambda t: t
    ) -> list[Tensor]:
        parts = [rows.split(self.lengths) for rows in self.rows]
        packed = [layout(torch.cat([part[i] for i in which] or [part[0][:0]])) for part in parts]
        return list(self.call(packed, which, [self.lengths[i] for i in which], backend))

    def expected(self) -> list[Tensor]:
        wide = (rows.to(torch.complex128 if rows.is_complex() else torch.float64) for rows in self.rows)
        parts = [rows.split(self.lengths) for rows in wide]
        return [self.truth([part[i] for part in parts], i) for i in range(len(self.lengths))]


def randn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(DEVICE, dtype)


def sums(dtype: torch.dtype, width: int = 70, offset: float = 0.0, gelu: bool = False) -> Case:
    """The sum and its norm, or the norm alone with GELU behind it."""
    N = sum(LENGTHS)
    rows = (randn(2, N, width, dtype=torch.float64) + offset).to(dtype)
    weight, bias = randn(2, width, dtype=dtype)

    def call(rows: Tensors, which: Sequence[int], lengths: list[int], backend: str) -> Tensors:
        x, residual = rows
        if gelu:
            return norm_rows(x, weight, bias, EPS, residual, gelu=True, backend=backend).split(lengths)
        total, normed = add_norm(x, residual, weight, bias, EPS, backend=backend)
        alone = norm_rows(x, weight, bias, EPS, residual, backend=backend)
        assert torch.equal(alone.nan_to_num(), normed.nan_to_num())
        exact = dtype != torch.bfloat16 or backend == "torch" or not interpreted()  # which cuts it off
        assert not exact or torch.equal(total.nan_to_num(), (x + residual).nan_to_num())
        return torch.stack([total, normed], dim=1).split(lengths)

    def truth(rows: Tensors, i: int) -> Tensor:
        total = rows[0] + rows[1]
        normed = F.layer_norm(total, weight.shape, weight.double(), bias.double(), EPS)
        return F.gelu(normed) if gelu else torch.stack([total, normed], dim=1)

    return Case(rows.unbind(), LENGTHS, call, truth)


def gated(x: Tensor, num_heads: int) -> GatedBias:
    """A bias of all distances; the logits are a strided view of the rows behind the values."""
    vector, const = randn(num_heads, 2 * LONGEST - 1, seed=1).to(x), randn(num_heads, seed=1).to(x)
    return GatedBias(vector, x[:, -2 * num_heads :], const)


def attention(dtype: torch.dtype, num_heads: int = 2, head_dim: int = 16, biased: bool = True) -> Case:
    D = num_heads * head_dim
    rows = randn(sum(LENGTHS), 3 * D + 2 * num_heads, dtype=torch.float64)
    rows[:, :D] *= head_dim**-0.5  # queries of such a size that scores spread by 1

    def call(rows: Tensors, which: Sequence[int], lengths: list[int], backend: str) -> Tensors:
        bias = gated(rows[0], num_heads) if biased else None
        out = attend_packed(rows[0][:, : 3 * D], pack(lengths, DEVICE), num_heads, bias, backend)
        return out.split(lengths)

    def truth(rows: Tensors, i: int) -> Tensor:
        """With the whole bias as the mask of torch's own attention."""
        T = len(rows[0])
        q, k, v = rows[0][:, : 3 * D].unflatten(1, (3, num_heads, -1)).permute(1, 2, 0, 3)[:, None]
        mask = None
        if biased and T:
            stored = gated(torch.zeros(1, 2 * num_heads, dtype=dtype, device=DEVICE), num_heads)
            a, b = torch.sigmoid(rows[0][:, 3 * D :]).split(num_heads, dim=1)
            gate = a * (b * stored.const.double() - 1) + 2
            distance = torch.arange(T)[None, :] - torch.arange(T)[:, None]
            values = stored.by_distance.double()[:, (distance + LONGEST - 1).to(DEVICE)]  # [H, T, T]
            mask = (gate.t()[:, :, None] * values)[None]
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0) if T else v
        return attended[0].transpose(0, 1).flatten(1)

    return Case([rows.to(dtype)], LENGTHS, call, truth)


def normed_channels(dtype: torch.dtype, offset: float = 0.0) -> Case:
    rows = (randn(sum(LENGTHS), 70, dtype=torch.float64) + offset).to(dtype)
    weight, bias = randn(2, 70, dtype=dtype)

    def call(rows: Tensors, which: Sequence[int], lengths: list[int], backend: str) -> Tensors:
        starts = [sum(lengths[:i]) for i in range(len(lengths))]
        return group_norm_gelu(rows[0], starts, lengths, weight, bias, EPS, backend).split(lengths)

    def truth(rows: Tensors, i: int) -> Tensor:
        if len(rows[0]) < 2:  # of a single row torch refuses to take the variance
            return F.gelu(bias.double()).expand(rows[0].shape)
        return F.gelu(F.group_norm(rows[0].t()[None], 70, weight.double(), bias.double(), EPS))[0].t()

    return Case([rows], LENGTHS, call, truth)


def pooled(dtype: torch.dtype) -> Case:
    lengths = [1, 63, 400, 32, 500, 2]

    def call(rows: Tensors, which: Sequence[int], lengths: list[int], backend: str) -> Tensors:
        values = pool_rows(rows[0], lengths, STATISTICS, backend)
        return torch.stack([*values.values()], dim=1).split(1)

    def truth(rows: Tensors, i: int) -> Tensor:
        r = rows[0]
        values = [r.mean(0), r.var(0, correction=0) * len(r), r.amin(0), r.amax(0), r[0], r[-1]]
        return torch.stack(values)[None]

    return Case([randn(sum(lengths), 70, dtype=dtype)], lengths, call, truth)


def convolved(dtype: torch.dtype, groups: int = 2, width: int = 12, taps: int = 16) -> Case:
    D = groups * width
    weight = (randn(D, width, taps, dtype=torch.float64) / (width * taps) ** 0.5).to(dtype)
    bias = randn(D, dtype=dtype)

    def call(rows: Tensors, which: Sequence[int], lengths: list[int], backend: str) -> Tensors:
        x, residual = rows
        packing, laid_out = pack(lengths, DEVICE), lay_out(weight, groups)
        return positional_conv(x, packing, laid_out, bias, residual, backend).split(lengths)

    def truth(rows: Tensors, i: int) -> Tensor:
        """'Same' padding, an even kernel's last output dropped."""
        x, residual = rows
        if not len(x):
            return x
        padded = F.conv1d(x.t()[None], weight.double(), bias.double(), padding=taps // 2, groups=groups)
        return residual + F.gelu(padded[0, :, : len(x)].t())

    return Case([*randn(2, sum(LENGTHS), D, dtype=dtype)], LENGTHS, call, truth)


def resampled(dtype: torch.dtype, up: int = 160, down: int = 441) -> Case:
    def call(rows: Tensors, which: Sequence[int], lengths: list[int], backend: str) -> Tensors:
        y, new_lengths = resample(rows[0], lengths, up, down, backend)
        assert new_lengths == [(2 * n * up + down) // (2 * down) for n in lengths]
        return y.split(new_lengths)

    def truth(rows: Tensors, i: int) -> Tensor:
        """Output ``m`` is the product of row ``m % up`` with the samples around ``m * down / up``."""
        u, d = ratio(down, up)  # in lowest terms
        if u == d:
            return rows[0]
        half, bank = half_width(u, d), filter_bank(u, d).to(DEVICE)
        m = torch.arange((2 * len(rows[0]) * u + d) // (2 * d), device=DEVICE)
        padded = F.pad(rows[0], (half - 1, half + d))
        return (padded.unfold(0, 2 * half, 1)[m * d // u] * bank[m % u]).sum(dim=1)

    lengths = [*SOUNDS, 4_001]
    return Case([randn(sum(lengths), dtype=dtype)], lengths, call, truth)


def edited_frames(dtype: torch.dtype) -> Case:
    """Every kind of edit in turn: fast, slow, warped to the same length, copied; masked and not."""
    kinds = [
        lambda n: SpectralEdit(
            math.ceil(n / 1.3), (1.3, 1.3), 0.0, ((0, 2), (30, 37)), ((0, 1), (n // 4, n // 2))
        ),
        lambda n: SpectralEdit(math.ceil(n / 0.8), (0.8, 0.8)),
        lambda n: SpectralEdit(n, (0.7, 1.6), knee=n * 0.6 / 0.9, bands=((5, 5), (7, 9))),
        lambda n: SpectralEdit(n, spans=((n // 2, n),), bands=((3, 20),)),
        lambda n: SpectralEdit(n + 70, (1.25, 0.9), knee=n / 3.3),  # reads on behind the end
        lambda n: SpectralEdit(n),
    ]
    lengths = [*SOUNDS, 63]
    edits = [kinds[i % 6](n) if n else SpectralEdit(0, (1.1, 1.1)) for i, n in enumerate(lengths)]
    source = torch.complex(*randn(2, sum(lengths), 37)) / math.sqrt(2)

    def call(rows: Tensors, which: Sequence[int], lengths: list[int], backend: str) -> Tensors:
        chosen = [edits[i] for i in which]
        result = edit_spectrogram(rows[0], lengths, chosen, backend)
        assert result.dtype == rows[0].dtype
        return result.split([edit.num_frames for edit in chosen])

    def truth(rows: Tensors, i: int) -> Tensor:
        return edit_spectrogram(rows[0].cpu(), [len(rows[0])], [edits[i]], "torch").to(DEVICE)

    return Case([source.to(dtype.to_complex())], lengths, call, truth)


EDITS = {
    "nothing": WaveformEdit(),
    "gain": WaveformEdit(gain=-0.3),
    "white": WaveformEdit(gain=0.5, snr_db=10.0, noise_key=2**64 - 3),
    "given": WaveformEdit(snr_db=-5.0),
    "masked": WaveformEdit(masks=((0, 1),)),
    "all": WaveformEdit(gain=2.0, snr_db=3.0, noise_key=4, masks=((20, 40), (30, 60), (62, 62))),
    "all given": WaveformEdit(gain=2.0, snr_db=20.0, masks=((0, 7), (60, 63))),
}


def edited_sounds(dtype: torch.dtype, normalise: bool = True) -> Case:
    """Every edit with several lengths; its masks are cut to what is there."""
    lengths = [63, 0, 400, 500, 1000, 2500, 70] * 2
    edits = []
    for i, n in enumerate(lengths):
        edit = [*EDITS.values()][(i + i // 7) % 7]
        masks = tuple((min(a, n), min(b, n)) for a, b in edit.masks)
        edits.append(WaveformEdit(edit.gain, edit.snr_db, edit.noise_key, masks))
    x, noise = randn(sum(lengths)) * 0.1 + 0.02, randn(sum(lengths), seed=1) * 3

    def call(rows: Tensors, which: Sequence[int], lengths: list[int], backend: str) -> Tensors:
        x, noise = rows
        return edit_waveforms(x, lengths, [edits[i] for i in which], noise, normalise, backend).split(lengths)

    def truth(rows: Tensors, i: int) -> Tensor:
        return edit_waveforms(rows[0], [len(rows[0])], [edits[i]], rows[1], normalise, "torch")

    return Case([x.to(dtype), noise.to(dtype)], lengths, call, truth)


# Limits of the relative L2 error in fp32. A dozen roundings of 6e-8, those of mean and variance among them
# (far from zero a mean of 1000 is known to 2^-24 of it, a few times); a hundred, of random sign, in sums of
# hundreds of products; in the noise, logarithm, root and angle of two libraries. A skipped or repeated frame
# of a spectrogram takes two arc tangents with it, each up to 3e-8 turns off and of either sign: 2e-7 times
# the root of twice the 250 jumps that the fastest map makes in its 1000 frames.
FAR = 4 * 2**-24 * 1000
KERNELS: dict[str, tuple[Callable[[torch.dtype], Case], float]] = {
    "sum and norm": (sums, 1e-6),
    "sum and norm, 1 wide": (partial(sums, width=1), 1e-6),
    "sum and norm, 512 wide": (partial(sums, width=512), 1e-6),
    "sum and norm, far from zero": (partial(sums, offset=1000.0), 1e-6 + FAR),
    "norm and GELU": (partial(sums, gelu=True), 1e-6),
    "attention": (partial(attention, biased=False), 2e-6),
    "attention, gated": (attention, 2e-6),
    "attention, gated, heads of 12": (partial(attention, head_dim=12), 2e-6),
    "attention, a head of 64": (partial(attention, num_heads=1, head_dim=64, biased=False), 2e-6),
    "attention, gated, a head of 80": (partial(attention, num_heads=1, head_dim=80), 2e-6),
    "norm_gelu": (normed_channels, 1e-6),
    "norm_gelu, far from zero": (partial(normed_channels, offset=1000.0), 1e-6 + FAR),
    "pool": (pooled, 2e-6),
    "positional conv": (convolved, 2e-6),
    "positional conv, 15 taps": (partial(convolved, groups=1, width=20, taps=15), 2e-6),
    "positional conv, 1 tap": (partial(convolved, groups=3, width=16, taps=1), 2e-6),
    "positional conv, 40 taps": (partial(convolved, groups=1, width=4, taps=40), 2e-6),
    "resample": (resampled, 1e-6),
    "resample, 1/3": (partial(resampled, up=1, down=3), 1e-6),
    "resample, 2": (partial(resampled, up=2, down=1), 1e-6),
    "resample, 500/401": (partial(resampled, up=500, down=401), 1e-6),
    "resample, 1": (partial(resampled, up=6, down=6), 1e-6),
    "resample, 6/9": (partial(resampled, up=6, down=9), 1e-6),
    "spectral edit": (edited_frames, 5e-6),
    "waveform edit": (partial(edited_sounds, normalise=False), 3e-7),
    "waveform edit, normalised": (edited_sounds, 3e-7),
}
BY_ROWS = [name for name in KERNELS if not name.startswith(("resample", "spectral", "waveform"))]
NEAR_ZERO = [name for name in BY_ROWS if "far" not in name]
IN_BLOCKS = ("sum", "norm", "pool", "resample", "waveform")


@pytest.fixture
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """In small blocks: several programs, chunks and steps at lengths that the interpreter can do."""
    small = request.param == "triton in small blocks"
    for constant, of_few, of_many in (
        ("add_norm.kernel.BLOCK_ELEMENTS", 4096, 256),
        ("norm_gelu.kernel.CHUNK_ROWS", 1024, 64),
        ("pool.kernel.BLOCK_ROWS", 32, 8),
        ("resample.kernel.BLOCK", 4096 if interpreted() else 256, 512 if interpreted() else 64),
        ("waveform.kernel.BLOCK", 1024, 256),
        ("waveform.kernel.MAX_CHUNKS", 256, 4),
    ):
        monkeypatch.setattr(f"cuda_kernels.{constant}", of_many if small else of_few)
    return "triton" if small else str(request.param)


def each(names: Iterable[str], in_blocks: bool = False) -> pytest.MarkDecorator:
    """Kernels with each backend; where they are made of blocks, in small ones too if asked."""
    ways = [(name, backend) for name in names for backend in BACKENDS]
    if in_blocks:
        ways += [(name, "triton in small blocks") for name in names if name.startswith(IN_BLOCKS)]
    return pytest.mark.parametrize(
        ("name", "backend"), ways, indirect=["backend"], ids=map(" by ".join, ways)
    )


def of(name: str, dtype: torch.dtype = torch.float32) -> Case:
    return KERNELS[name][0](dtype)


def everything(case: Case) -> range:
    return range(len(case.lengths))


@each(KERNELS, in_blocks=True)
def test_every_backend_computes_the_definition(name: str, backend: str, poisoned: None) -> None:
    case, limit = of(name), KERNELS[name][1]
    for result, expected in zip(case.run(everything(case), backend), case.expected(), strict=True):
        assert result.shape == expected.shape and result.dtype in (torch.float32, torch.complex64)
        if not expected.any():  # nothing at all, or all of it masked
            assert not result.any()
        else:
            assert relative_error(result.to(expected.dtype), expected) < limit


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@each([name for name in NEAR_ZERO if not name.startswith(("attention", "pool"))])
def test_half_precision_is_rounded_once_at_the_end(
    name: str, dtype: torch.dtype, backend: str, poisoned: None
) -> None:
    as_it_is = dtype != torch.bfloat16 or backend == "torch" or not interpreted()
    if not as_it_is and name.startswith("positional"):
        pytest.skip("Triton's interpreter multiplies bfloat16 as if its bits were integers")
    case = of(name, dtype)
    # Half a unit in the last place; Triton's interpreter cuts bfloat16 off: a whole unit. Beside it
    # float32's own error, where what is rounded is next to zero.
    unit = torch.finfo(dtype).eps * (0.5 if as_it_is else 1.0) * (1 + 1e-3)
    result = torch.cat(case.run(everything(case), backend))
    assert result.dtype == dtype
    torch.testing.assert_close(result.double(), torch.cat(case.expected()), rtol=unit, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@each(["attention", "attention, gated"])
def test_half_precision_rounds_the_weights_and_the_result(
    name: str, dtype: torch.dtype, backend: str, poisoned: None
) -> None:
    if dtype == torch.bfloat16 and backend == "triton" and interpreted():
        pytest.skip("Triton's interpreter multiplies bfloat16 as if its bits were integers")
    case = of(name, dtype)
    result = torch.cat(case.run(everything(case), backend))
    assert result.dtype == dtype
    # Weights are rounded to 11 or 8 bits before they are multiplied, and the result once more.
    assert relative_error(result.double(), torch.cat(case.expected())) < 2 * torch.finfo(dtype).eps / 2


@each([*NEAR_ZERO, "resample"])
def test_float64_is_computed_in_float64(name: str, backend: str) -> None:
    case = of(name, torch.float64)
    result = torch.cat(case.run(everything(case), backend))
    assert relative_error(result, torch.cat(case.expected())) < 1e-14


@each(KERNELS, in_blocks=True)
def test_an_utterance_is_the_same_alone_bit_for_bit(name: str, backend: str) -> None:
    case = of(name)
    together = case.run(everything(case), backend)
    for i in (0, 1, 3):
        assert torch.equal(case.run([i], backend)[0], together[i])


@pytest.mark.filterwarnings("ignore:.*(NaN|invalid value):RuntimeWarning")  # numpy's, of NaN itself
@each([name for name in KERNELS if not name.startswith("spectral")])  # that is to be finite
def test_nan_in_one_utterance_stays_in_it(name: str, backend: str) -> None:
    case = of(name)
    clean = case.run(everything(case), backend)
    case.rows[0].split(case.lengths)[3].fill_(torch.nan)
    for i, (a, b) in enumerate(zip(case.run(everything(case), backend), clean, strict=True)):
        assert a.isnan().any() if i == 3 else torch.equal(a, b)
        assert i != 3 or name == "waveform edit" or a.isnan().all()  # masks zero NaN as well


@each([name for name in KERNELS if "far" not in name])
def test_rows_may_be_strided_and_there_may_be_none(name: str, backend: str) -> None:
    case = of(name)
    expected = case.run(everything(case), backend)
    layouts = [lambda t: torch.stack([t, t], dim=-1)[..., 1]]
    if case.rows[0].dim() == 2:
        layouts += [lambda t: t.t().contiguous().t(), lambda t: torch.cat([t, t], dim=1)[:, : t.shape[1]]]
    for layout in layouts:
        for made, same in zip(case.run(everything(case), backend, layout), expected, strict=True):
            # A CPU takes columns in another order than rows, in sums and in a gate's sigmoids.
            if name.startswith(("sum", "norm", "pool", "attention, gated")):
                torch.testing.assert_close(made, same, rtol=2e-6, atol=2e-6)
            else:
                assert torch.equal(made, same)
    assert sum(map(len, case.run([], backend))) == 0
    if 0 in case.lengths:
        none = case.lengths.index(0)
        assert all(len(part) == 0 for part in case.run([none, none], backend))
