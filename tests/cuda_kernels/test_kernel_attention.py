"""Attention of packed utterances: each attends to its own frames, as if it were alone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from conftest import BACKENDS, DEVICE, relative_error
from torch import Tensor

from cuda_kernels.attention import GatedBias, attend_packed
from cuda_kernels.backend import interpreted
from cuda_kernels.packing import COLUMNS, TILE_ROWS, Packing, ShapeBucket, pack

# One frame, one short of a block of keys, empty, more than a tile of queries, exactly one, odd.
LENGTHS = [1, 63, 0, 200, TILE_ROWS, 33]
N = sum(LENGTHS)
LONGEST = 210  # that the bias has distances for

# A hundred roundings of 6e-8, of random sign, in the scores and again in the weighted sum.
FP32 = 2e-6
# Weights are rounded to 11 bits before they are multiplied, and the result once more.
FP16 = 2 * 2.0**-11


def rows(num_heads: int, head_dim: int, num_rows: int = N) -> Tensor:
    """float64 ``[num_rows, 3 D + 2 H]``, the queries of such a size that scores spread by 1."""
    generator = torch.Generator().manual_seed(head_dim)
    D = num_heads * head_dim
    x = torch.randn(num_rows, 3 * D + 2 * num_heads, generator=generator, dtype=torch.float64)
    x[:, :D] *= head_dim**-0.5
    return x


def gated(x: Tensor, num_heads: int, dtype: torch.dtype) -> GatedBias:
    """A bias of all distances; the logits are a strided view of the rows behind the values."""
    generator = torch.Generator().manual_seed(1)
    vector = torch.randn(num_heads, 2 * LONGEST - 1, generator=generator, dtype=torch.float64)
    const = torch.randn(num_heads, generator=generator, dtype=torch.float64)
    return GatedBias(vector.to(x.device, dtype), x[:, -2 * num_heads :], const.to(x.device, dtype))


def by_torch(qkv: Tensor, lengths: list[int], num_heads: int, bias: GatedBias | None = None) -> Tensor:
    """Utterance by utterance, by torch's own attention with the whole bias as its mask, in float64."""
    out, start = [], 0
    for T in lengths:
        span = slice(start, start + T)
        start += T
        if not T:
            continue
        q, k, v = qkv[span].double().unflatten(1, (3, num_heads, -1)).permute(1, 2, 0, 3)[:, None]
        mask = None
        if bias is not None:
            a, b = torch.sigmoid(bias.logits[span].double()).split(num_heads, dim=1)
            gate = a * (b * bias.const.double() - 1) + 2
            distance = torch.arange(T)[None, :] - torch.arange(T)[:, None]
            values = bias.by_distance.double()[:, (distance + LONGEST - 1).to(qkv.device)]  # [H, T, T]
            mask = (gate.t()[:, :, None] * values)[None]
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)
        out.append(attended[0].transpose(0, 1).flatten(1))
    return torch.cat(out)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("with_bias", [False, True], ids=["plain", "gated bias"])
@pytest.mark.parametrize(("num_heads", "head_dim"), [(2, 16), (2, 12), (1, 64), (1, 80)])
def test_it_is_softmax_attention_of_each_utterance_by_itself(
    backend: str, with_bias: bool, num_heads: int, head_dim: int, poisoned: None
) -> None:
    x = rows(num_heads, head_dim).to(DEVICE, torch.float32)
    qkv = x[:, : 3 * num_heads * head_dim]  # strided rows
    bias = gated(x, num_heads, torch.float32) if with_bias else None
    out = attend_packed(qkv, pack(LENGTHS, DEVICE), num_heads, bias, backend)
    assert out.dtype == torch.float32 and out.is_contiguous()
    assert relative_error(out.double(), by_torch(qkv, LENGTHS, num_heads, bias)) < FP32


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rounds_the_weights_and_the_result(
    backend: str, dtype: torch.dtype, poisoned: None
) -> None:
    if dtype == torch.bfloat16 and backend == "triton" and interpreted():
        pytest.skip("Triton's interpreter multiplies bfloat16 as if its bits were integers")
    x = rows(2, 16).to(DEVICE, dtype)
    bias = gated(x, 2, dtype)
    out = attend_packed(x[:, :96], pack(LENGTHS, DEVICE), 2, bias, backend)
    assert out.dtype == dtype
    tolerance = FP16 if dtype == torch.float16 else FP16 * 2**3  # three bits fewer
    assert relative_error(out.double(), by_torch(x[:, :96], LENGTHS, 2, bias)) < tolerance


def test_float64_is_computed_in_float64() -> None:
    x = rows(2, 16).to(DEVICE)
    out = attend_packed(x[:, :96], pack(LENGTHS, DEVICE), 2, gated(x, 2, torch.float64))
    assert relative_error(out, by_torch(x[:, :96], LENGTHS, 2, gated(x, 2, torch.float64))) < 1e-14


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_utterance_is_the_same_alone_bit_for_bit(backend: str) -> None:
    x = rows(2, 16).to(DEVICE, torch.float32)
    whole = attend_packed(x[:, :96], pack(LENGTHS, DEVICE), 2, gated(x, 2, torch.float32), backend)
    for own, packed in zip(x.split(LENGTHS), whole.split(LENGTHS), strict=True):
        packing = pack([len(own)], DEVICE)
        alone = attend_packed(own[:, :96], packing, 2, gated(own, 2, torch.float32), backend)
        assert torch.equal(alone, packed)


@pytest.mark.filterwarnings("ignore:.*(NaN|invalid value):RuntimeWarning")  # numpy's, of NaN itself
@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_in_one_utterance_stays_in_it(backend: str) -> None:
    x = rows(2, 16).to(DEVICE, torch.float32)
    packing = pack(LENGTHS, DEVICE)
    clean = attend_packed(x[:, :96], packing, 2, gated(x, 2, torch.float32), backend)
    x[1:64] = torch.nan
    parts = attend_packed(x[:, :96], packing, 2, gated(x, 2, torch.float32), backend).split(LENGTHS)
    for s, (a, b) in enumerate(zip(parts, clean.split(LENGTHS), strict=True)):
        assert a.isnan().all() if s == 1 else torch.equal(a, b)


@pytest.mark.parametrize("backend", BACKENDS)
def test_large_scores_do_not_overflow(backend: str) -> None:
    """exp(1000) has no float: the maximum is subtracted first, and again when a larger one comes."""
    x = rows(1, 16, 100).to(DEVICE, torch.float32)
    x[:, :16] *= 1000
    out = attend_packed(x[:, :48], pack([100], DEVICE), 1, backend=backend)
    # Scores of about 1000 are known to 6e-5, and so are the weights.
    assert relative_error(out.double(), by_torch(x[:, :48], [100], 1)) < 4 * 6e-5


@pytest.mark.parametrize("backend", BACKENDS)
def test_columns_may_be_strided(backend: str) -> None:
    qkv = rows(2, 16)[:, :96].to(DEVICE, torch.float32)
    strided = qkv.t().contiguous().t()
    packing = pack(LENGTHS, DEVICE)
    assert torch.equal(
        attend_packed(strided, packing, 2, backend=backend), attend_packed(qkv, packing, 2, backend=backend)
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("lengths", [[], [0, 0]])
def test_no_frames_give_none(backend: str, lengths: list[int]) -> None:
    out = attend_packed(torch.zeros(0, 96, device=DEVICE), pack(lengths, DEVICE), 2, backend=backend)
    assert out.shape == (0, 32)


def test_what_does_not_go_together_is_refused() -> None:
    x = rows(2, 16).to(torch.float32)
    packing, bias = pack(LENGTHS, torch.device("cpu")), gated(x, 2, torch.float32)
    with pytest.raises(ValueError, match=r"must be \[N, 3 D\]"):
        attend_packed(x[1:, :96], packing, 2)
    with pytest.raises(ValueError, match=r"must be \[N, 3 D\]"):
        attend_packed(x[:, :95], packing, 2)
    with pytest.raises(TypeError, match=r"not torch\.int64"):
        attend_packed(x[:, :96].long(), packing, 2)
    for wrong in (
        GatedBias(bias.by_distance[:, 20:-20], bias.logits, bias.const),
        GatedBias(bias.by_distance[:, 1:], bias.logits, bias.const),
        GatedBias(bias.by_distance, bias.logits[1:], bias.const),
        GatedBias(bias.by_distance, bias.logits, bias.const[:1]),
    ):
        with pytest.raises(ValueError, match="must be"):
            attend_packed(x[:, :96], packing, 2, wrong)
    with pytest.raises(ValueError, match="heads of 160 channels"):
        attend_packed(
            rows(1, 160)[:, :480].to(DEVICE, torch.float32), pack(LENGTHS, DEVICE), 1, None, "triton"
        )


# --- Where utterances lie -----------------------------------------------------------------------


def covered(packing: Packing) -> list[int]:
    """How often each row is in a tile."""
    counts = [0] * packing.num_rows
    for begin, length, first in packing.tiles.tolist():
        for row in range(first, min(first + TILE_ROWS, length)):
            counts[begin + row] += 1
    return counts


def test_every_row_is_in_one_tile_and_the_longest_utterances_come_first() -> None:
    packing = pack([5, 0, 1000, TILE_ROWS, 129, 1], torch.device("cpu"))
    assert covered(packing) == [1] * packing.num_rows
    assert packing.offsets.tolist() == [0, 5, 5, 1005, 1133, 1262, 1263]
    lengths = packing.tiles[:, 1].tolist()
    assert lengths == sorted(lengths, reverse=True) and packing.tiles.shape[1] == COLUMNS


def test_batches_of_one_room_share_its_shapes() -> None:
    bucket = ShapeBucket(rows=1024, utterances=16, longest=500)
    packings = [
        pack(bucket.filled(lengths), torch.device("cpu"), bucket.longest)
        for lengths in ([500, 24], [1] * 12, [300, 300, 300], [500, 500, 24], [])
    ]
    assert {p.table.shape for p in packings} == {packings[0].table.shape}
    for packing in packings:
        assert packing.bucket == bucket
        assert covered(packing) == [1] * 1024
        packings[0].load(packing)
        assert torch.equal(packings[0].tiles, packing.tiles)


def test_what_has_no_room_is_refused() -> None:
    bucket, cpu = ShapeBucket(rows=100, utterances=4, longest=50), torch.device("cpu")
    for lengths in ([51], [50, 51], [50, 50, 1], [10] * 5, [10] * 3):  # the last: two more to fill up
        with pytest.raises(ValueError, match="do not fit"):
            bucket.filled(lengths)
    with pytest.raises(ValueError, match="does not fit"):
        pack([50, 50], cpu).load(pack([50, 49], cpu))
    with pytest.raises(ValueError, match="none may be negative"):
        pack([5, -1], cpu)
    with pytest.raises(ValueError, match="where none may have more than 49"):
        pack([50], cpu, longest=49)
