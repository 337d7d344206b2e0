"""The way of GPUs, here on CPU tensors and in Triton's interpreter, against the way of CPUs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import DEVICE, make_model, relative_error
from encoder_cases import CPU, KINDS, assert_same, encode, noises
from torch import Tensor

from cuda_kernels.add_norm import kernel as add_norm_kernel
from cuda_kernels.attention import attend_packed
from cuda_kernels.attention import kernel as attention_kernel
from cuda_kernels.backend import interpreted
from cuda_kernels.norm_gelu import kernel as norm_gelu_kernel
from cuda_kernels.packing import TILE_ROWS, pack
from cuda_kernels.positional_conv import kernel as positional_conv_kernel
from extractor.encoders import fused, linear
from extractor.encoders.fused import ATTENTION, Graphs, best_attention, pack_frames
from extractor.encoders.wav2vec2 import Wav2Vec2Encoder
from extractor.types import LatentMask

LENGTHS = (400, 719, 8_000, 3_001)  # samples: one frame, around the stride, odd ones

PRE_NORM = {"do_stable_layer_norm": True, "feat_extract_norm": "layer", "conv_bias": True}
POST_NORM = {"do_stable_layer_norm": False, "feat_extract_norm": "group"}
SWITCHES: list[tuple[str, dict[str, Any]]] = [(k, s) for k in KINDS for s in (PRE_NORM, POST_NORM)]
SWITCHES += [
    ("hubert", {"feat_proj_layer_norm": False}),
    ("hubert", {"conv_pos_batch_norm": True}),
    ("wav2vec2", {"num_conv_pos_embeddings": 15}),
    ("wav2vec2", {"hidden_act": "relu", "feat_extract_activation": "silu"}),
    ("wav2vec2", {"adapter_attn_dim": 8, "do_stable_layer_norm": True}),  # MMS
    ("wavlm", {"num_buckets": 8, "max_bucket_distance": 20}),
]


@pytest.fixture(autouse=True)
def large_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """In Triton's interpreter a program costs milliseconds, whatever its size: few large ones, then."""
    if not interpreted():
        return
    shapes = {(4, with_bias): (TILE_ROWS, 64, 4, 1) for with_bias in (False, True)}
    monkeypatch.setattr(attention_kernel, "SHAPES", shapes)
    monkeypatch.setattr(positional_conv_kernel, "SHAPES", {(4, False): (TILE_ROWS, 4, 1)})
    monkeypatch.setattr(add_norm_kernel, "BLOCK_ELEMENTS", 1 << 16)
    monkeypatch.setattr(norm_gelu_kernel, "BLOCK_ROWS", 1024)
    monkeypatch.setattr(fused, "_ROWS", 32)


def waveforms(lengths: tuple[int, ...] = LENGTHS) -> list[Tensor]:
    return noises(lengths)


def build(model: Any, kernels: str | None, device: torch.device = CPU) -> Wav2Vec2Encoder:
    mask = getattr(model, "masked_spec_embed", None)
    return Wav2Vec2Encoder(
        model.state_dict(), model.config, torch.float32, device, mask_embedding=mask, kernels=kernels
    )


@pytest.mark.parametrize(
    ("kind", "switches", "backend"),
    # The kernels see little of the other switches.
    [(*row, "torch") for row in SWITCHES] + [(*row, "triton") for row in SWITCHES[:6]],
    ids=str,
)
def test_every_layer_is_that_of_the_other_way(kind: str, switches: dict[str, Any], backend: str) -> None:
    if backend == "torch" and DEVICE.type == "cuda":
        pytest.skip("one way on each device")
    model, audio = make_model(kind, **switches), waveforms()
    with_kernels = build(model, backend, DEVICE)
    assert with_kernels.fused is not None
    assert_same(encode(with_kernels, audio), encode(build(model, None), audio))


@pytest.mark.parametrize("kind", ["hubert", "wavlm"])
def test_a_recording_alone_gives_what_it_gives_among_others(kind: str) -> None:
    encoder, audio = build(make_model(kind, **PRE_NORM), "triton", DEVICE), waveforms()
    packed = encode(encoder, audio)
    assert_same([encode(encoder, [w])[0] for w in audio], packed)


def test_nan_in_one_recording_stays_in_it() -> None:
    encoder, audio = build(make_model("wavlm"), "torch"), waveforms()
    clean = encode(encoder, audio)
    audio[2] = torch.full_like(audio[2], torch.nan)
    for i, (a, b) in enumerate(zip(encode(encoder, audio), clean, strict=True)):
        assert a[-1].isnan().all() if i == 2 else torch.equal(a[-1], b[-1])


def test_layers_behind_the_last_wanted_are_not_computed() -> None:
    model, audio = make_model("hubert", **PRE_NORM), waveforms()
    whole = encode(build(model, "torch"), audio)
    for last in (0, 1):
        some = encode(build(model, "torch"), audio, last_layer=last)
        assert_same(some, [layers[: last + 1] for layers in whole], limit=0)


def test_masks_hide_the_same_frames() -> None:
    model, audio = make_model("wav2vec2", mask_time_prob=0.05), waveforms()
    masks = [None, None, LatentMask([(3, 9)], [(0, 5)]), LatentMask([(1, 2)])]
    theirs = encode(build(model, None), audio, masks=masks)
    assert_same(encode(build(model, "torch"), audio, masks=masks), theirs)
    assert relative_error(theirs[2][0], encode(build(model, None), audio)[2][0]) > 0.01


# --- Graphs -------------------------------------------------------------------------------------


class Repeating:
    """A recorder that repeats the work itself: on what its tensors hold then, as a graph does."""

    def __init__(self, error: RuntimeError | None = None) -> None:
        self.recorded = self.replayed = 0
        self.error = error

    def prepare(self, work: Callable[[], object]) -> None:
        work()

    def record(self, work: Callable[[], object]) -> Callable[[], object]:
        if self.error is not None:
            raise self.error
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            work()

        return replay

    def follow(self) -> None: ...

    def done(self) -> None: ...


def recording(
    kind: str, norm: dict[str, Any], recorder: Repeating, backend: str = "triton"
) -> tuple[Wav2Vec2Encoder, Wav2Vec2Encoder]:
    """The same model twice: with graphs, and without."""
    model, device = make_model(kind, **norm), DEVICE if backend == "triton" else CPU
    with_graphs, without = (build(model, backend, device) for _ in range(2))
    assert with_graphs.fused is not None and without.fused is not None
    with_graphs.fused.graphs, without.fused.graphs = Graphs(with_graphs.fused, recorder), None
    return with_graphs, without


@pytest.mark.parametrize(
    ("kind", "norm"), [("wavlm", PRE_NORM), ("hubert", POST_NORM)], ids=["wavlm", "hubert"]
)
def test_graphs_give_each_batch_of_a_room_what_it_gets_without(kind: str, norm: dict[str, Any]) -> None:
    recorder = Repeating()
    with_graphs, without = recording(kind, norm, recorder)
    # One room, other lengths, other numbers of recordings; the first time it is not recorded yet.
    for i, lengths in enumerate([(9_000, 2_000, 400), (500, 8_000, 3_333), (12_345, 700)]):
        audio = waveforms(lengths)
        assert_same(encode(with_graphs, audio), encode(without, audio), limit=0)
        # The layers, and the first one's norm where it comes first: a graph without work is not recorded.
        launches = with_graphs.num_layers - 1 + with_graphs.pre_norm
        assert recorder.recorded == (0 if i == 0 else launches)
        assert recorder.replayed == i * launches


def test_only_the_layers_that_are_wanted_are_replayed() -> None:
    recorder = Repeating()
    with_graphs, without = recording("hubert", PRE_NORM, recorder, "torch")
    audio = waveforms((2_000,))
    for _ in range(2):
        ours = encode(with_graphs, audio, last_layer=1)
    assert recorder.replayed == 2  # the norm before the first layer, and that layer
    assert_same(ours, encode(without, audio, last_layer=1), limit=0)


def test_only_so_many_rooms_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "MAX_BUCKETS", 1)
    recorder = Repeating()
    with_graphs, _ = recording("hubert", POST_NORM, recorder, "torch")
    for lengths in [(2_000,), (2_000, 2_000)] * 3:
        encode(with_graphs, waveforms(lengths))
    assert recorder.recorded == with_graphs.num_layers - 1


def test_where_graphs_cannot_be_recorded_it_says_so_once_and_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    recorder = Repeating(RuntimeError("operation not permitted when stream is capturing"))
    with_graphs, without = recording("hubert", PRE_NORM, recorder, "torch")
    audio = waveforms((2_000,))
    with caplog.at_level(logging.WARNING):
        for _ in range(4):
            ours = encode(with_graphs, audio)
    assert_same(ours, encode(without, audio), limit=0)
    (message,) = [r.getMessage() for r in caplog.records]
    assert "without CUDA graphs" in message and "not permitted" in message


# --- What it is made of -------------------------------------------------------------------------


def test_a_packing_has_room_for_a_batch_and_little_more() -> None:
    for lengths in ([1], [199] * 60, [2_999, 1, 50], [256], [257] * 3, [1] * 300):
        packing = pack_frames(lengths, CPU)
        assert packing.lengths[: len(lengths)] == tuple(lengths)
        assert 0 <= packing.num_rows - sum(lengths) < fused._ROWS
        assert max(packing.lengths) <= packing.longest < 2 * max(256, *lengths)


def test_convolutions_whose_windows_lie_end_to_end_are_products(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(8, 6, 2, generator=generator), torch.randn(8, generator=generator)
    monkeypatch.setattr(linear, "_packs", lambda device, dtype: False)
    convolution = linear.Conv(weight, bias, torch.float32, CPU, stride=2)
    monkeypatch.setattr(linear, "_is_linear", lambda device, kernel, stride, groups: kernel == stride)
    product = linear.Conv(weight, bias, torch.float32, CPU, stride=2)
    for num_rows in (2, 3, 64, 65):
        x = torch.randn(num_rows, 6, generator=generator)
        assert product(x).shape == convolution(x).shape == (num_rows // 2, 8)
        torch.testing.assert_close(product(x), convolution(x), rtol=1e-5, atol=1e-5)  # 12 products a sum


def test_every_attention_without_a_bias_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's own is stood in for by the definition, where there is no GPU: how it is called must fit."""
    lengths = [3, 0, TILE_ROWS + 1, 20]
    packing = pack(lengths, DEVICE)
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(sum(lengths), 96, generator=generator).to(DEVICE)
    expected = attend_packed(qkv, packing, 2, backend="torch")

    def stand_in(q: Tensor, k: Tensor, v: Tensor, *where: Any, scale: float, num_splits: int) -> Tensor:
        offsets, of_keys, longest, longest_keys = where
        assert offsets is of_keys or torch.equal(offsets, of_keys)
        assert longest == longest_keys == max(lengths) and scale == 1.0 and num_splits == 1
        attended = attend_packed(
            torch.cat([t.flatten(1) for t in (q, k, v)], dim=1), pack(offsets.diff().tolist(), DEVICE), 2
        )
        return attended.view(q.shape)

    varlen = pytest.importorskip("torch.nn.attention.varlen")
    monkeypatch.setattr(varlen, "varlen_attn", stand_in)
    monkeypatch.setattr(fused, "_varlen_options", lambda: ("scale", "num_splits"))
    for attend in ATTENTION.values():
        torch.testing.assert_close(attend(qkv, packing, 2, "triton"), expected, rtol=1e-5, atol=1e-6)


def test_pytorchs_attention_gets_rows_that_its_loads_can_begin_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """16 bytes at once: on a GPU others fault, after which nothing runs in that process."""
    lengths, taken = [5, 0, 3], []

    def stand_in(q: Tensor, k: Tensor, v: Tensor, *where: Any, **options: Any) -> Tensor:
        taken.extend((x.data_ptr() % 16, [2 * stride % 16 for stride in x.stride()[:2]]) for x in (q, k, v))
        return q.clone()

    varlen = pytest.importorskip("torch.nn.attention.varlen")
    monkeypatch.setattr(varlen, "varlen_attn", stand_in)
    wide = torch.zeros(8, 3 * 32 + 4, dtype=torch.float16)
    for qkv in (wide[:, : 3 * 32], wide[:, 4:], torch.zeros(8, 3 * 32, dtype=torch.float16)):
        assert ATTENTION["varlen"](qkv, pack(lengths, CPU), 2, "torch").shape == (8, 32)
    assert taken == [(0, [0, 0])] * 9
    assert ATTENTION["varlen"](wide[:0, : 3 * 32], pack([0], CPU), 2, "torch").shape == (0, 32)


def test_pytorchs_attention_is_taken_only_where_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "_varlen_options", lambda: ("query", "scale"))
    cuda = torch.device("cuda")
    assert best_attention(torch.bfloat16, cuda, 64) == "varlen"
    assert best_attention(torch.float32, cuda, 64) == "kernel"
    assert best_attention(torch.bfloat16, cuda, 12) == "kernel"
    assert best_attention(torch.bfloat16, CPU, 64) == "kernel"
    monkeypatch.setattr(fused, "_varlen_options", lambda: ())  # an older torch
    assert best_attention(torch.bfloat16, cuda, 64) == "kernel"
