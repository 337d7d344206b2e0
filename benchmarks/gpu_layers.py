"""The encoder's layers on a GPU: right, and how fast, part by part, against what else could be there.

    python -m benchmarks.gpu_layers [--rounds 5] [--out FILE]

First the checks `attention` and `fused` of `benchmarks.gpu_check`; then tables:

    attention   four minutes of audio in clips of 1, 4, 10 and 60 s: our kernel, PyTorch's variable-length
                attention, SDPA an utterance at a time, FlexAttention compiled; with WavLM's bias our kernel,
                plain products an utterance at a time, FlexAttention
    products    the CNN's convolutions as convolutions and as matrix products; the positional convolution
                with zeros between utterances and by our kernel; sum and norm apart and by our kernel
    layers      all of a model's layers by ordinary launches and by graphs

Needs CUDA; what cannot run there is left out and named.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cache, partial
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.baselines import sdpa
from benchmarks.findings import collect, run_errors
from benchmarks.gpu_check import check_fused
from benchmarks.harness import arguments, print_table, take_turns, write_result
from benchmarks.kernel_checks import check_layer_kernels
from cuda_kernels.add_norm import add_norm
from cuda_kernels.attention import GatedBias, attend_packed
from cuda_kernels.packing import Packing, pack
from extractor.encoders.fused import ATTENTION
from extractor.encoders.transformer import attend

BATCH_SECONDS = 240
CLIP_SECONDS = (1, 4, 10, 60)
FRAMES_A_SECOND = 50
HEADS, HEAD_DIM = 16, 64  # of large models
CALLS = 20  # a round
Ways: TypeAlias = Mapping[str, Callable[[], object]]


def milliseconds(work: Callable[[], object]) -> float:
    """Of a call on CUDA: the mean of `CALLS` one behind the other, as layers are."""
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    began.record()
    for _ in range(CALLS):
        work()
    ended.record()
    torch.cuda.synchronize()
    return began.elapsed_time(ended) / CALLS


def measure(what: str, ways: Ways, rounds: int) -> dict[str, Any]:
    """Milliseconds of each way; one that cannot run is left out and says why."""
    works, left_out = {}, {}
    refusals: tuple[type[Exception], ...] = (ImportError, TypeError, *run_errors())
    for name, work in ways.items():
        try:
            work()
        except refusals as error:
            left_out[name] = f"{type(error).__name__}: {error}".splitlines()[0]
        else:
            works[name] = lambda w=work: milliseconds(w)
    return {"what": what, "ms": take_turns(works, rounds), "left_out": left_out}


def frames_of(seconds: int) -> list[int]:
    """Frames of four minutes in clips of so long, a little ragged."""
    return [FRAMES_A_SECOND * seconds - 1 - i % 3 for i in range(BATCH_SECONDS // seconds)]


def attention_ways(lengths: Sequence[int], gated: bool) -> Ways:
    device, dtype = torch.device("cuda"), torch.bfloat16
    D, N, longest = HEADS * HEAD_DIM, sum(lengths), max(lengths)
    x = torch.randn(N, 3 * D + 2 * HEADS, device=device, dtype=dtype) * HEAD_DIM**-0.25
    qkv, packing = x[:, : 3 * D].contiguous(), pack(lengths, device)
    if not gated:
        ways = {
            name: lambda a=attended: a(qkv, packing, HEADS, "auto") for name, attended in ATTENTION.items()
        }
        return {**ways, "sdpa": lambda: sdpa(qkv, lengths, HEADS), "flex": flex(qkv, packing, None)}
    vector = torch.randn(HEADS, 2 * longest - 1, device=device, dtype=dtype)
    bias = GatedBias(vector, x[:, 3 * D :], torch.ones(HEADS, device=device, dtype=dtype))
    rounded = -(-longest // 32) * 32
    square = torch.randn(HEADS, rounded, rounded, device=device, dtype=dtype)
    gate = bias.gate(dtype)
    return {
        "kernel": lambda: attend_packed(qkv, packing, HEADS, bias),
        "products": lambda: attend(qkv, lengths, HEADS, square, gate),
        "flex": flex(qkv, packing, bias),
    }


def flex(qkv: Tensor, packing: Packing, bias: GatedBias | None) -> Callable[[], object]:
    """FlexAttention over the packed row, blocks of other utterances left out; compiled when first called."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    N = len(qkv)
    utterance = torch.repeat_interleave(
        torch.arange(len(packing.lengths), device=qkv.device), packing.offsets.diff().long(), output_size=N
    )
    q, k, v = qkv.unflatten(1, (3, HEADS, HEAD_DIM)).permute(1, 2, 0, 3)[:, None]

    def same(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return utterance[i] == utterance[j]

    gate = None if bias is None else bias.gate(qkv.dtype)
    zero = 0 if bias is None else bias.by_distance.shape[1] // 2

    def biased(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        if bias is None or gate is None:
            return score
        at = (j - i + zero).clamp(0, 2 * zero)  # of other utterances, which the mask takes out, anything
        return score + gate[i, h] * bias.by_distance[h, at]

    @cache
    def compiled() -> Callable[[], object]:
        mask = create_block_mask(same, None, None, N, N, device=str(qkv.device))
        score_mod = None if bias is None else biased
        return partial(
            torch.compile(flex_attention), q, k, v, score_mod=score_mod, block_mask=mask, scale=1.0
        )

    return lambda: compiled()()


def convolution_ways(kernel: int, num_rows: int) -> Ways:
    """With two or three taps and a stride of two, as the CNN has them."""
    from extractor.encoders.linear import Conv

    device, dtype, C = torch.device("cuda"), torch.bfloat16, 512
    x = torch.randn(num_rows, C, device=device, dtype=dtype)
    weight = torch.randn(C, C, kernel) * (C * kernel) ** -0.5
    convolution = Conv(weight, None, dtype, device, stride=2)
    convolution.as_linear = None
    w = weight.to(device, dtype).transpose(1, 2).flatten(1)  # [C, K C]
    T = (num_rows - kernel) // 2 + 1
    pairs, third = x[: 2 * T].view(T, 2 * C), x[2::2][:T]

    def as_products() -> Tensor:
        """Of two frames, which lie side by side, and of the third, if there is one."""
        y = F.linear(pairs, w[:, : 2 * C])
        return y if kernel == 2 else y.addmm_(third, w[:, 2 * C :].t())

    def copied() -> Tensor:
        return F.linear(x.as_strided((T, kernel * C), (2 * C, 1)).contiguous(), w)

    return {"conv2d": lambda: convolution(x), "products": as_products, "copied": copied}


def product_ways() -> Iterator[tuple[str, Ways]]:
    from types import SimpleNamespace

    from extractor.encoders.wav2vec2 import PositionalConv
    from extractor.encoders.weights import Weights

    for kernel, num_rows in ((3, 1 << 18), (2, 1 << 15)):
        yield f"CNN, kernel {kernel}, {num_rows:,} rows", convolution_ways(kernel, num_rows)

    device, dtype, D = torch.device("cuda"), torch.bfloat16, HEADS * HEAD_DIM
    lengths = frames_of(4)
    x, packing = torch.randn(sum(lengths), D, device=device, dtype=dtype), pack(lengths, device)
    names = {"conv.weight": torch.randn(D, D // 16, 128) * 0.01, "conv.bias": torch.randn(D)}
    tensors = {f"encoder.pos_conv_embed.{name}": tensor for name, tensor in names.items()}
    config = SimpleNamespace(num_conv_pos_embedding_groups=16)
    plain, ours = (
        PositionalConv(Weights(tensors, dtype, device, 1e-5, kernels), config, F.gelu)
        for kernels in (None, "triton")
    )
    yield (
        "positional convolution, 4 s clips",
        {"zeros between": lambda: plain.add_to(x, packing), "kernel": lambda: ours.add_to(x, packing)},
    )

    residual, weight, bias = torch.randn_like(x), torch.ones_like(x[0]), torch.zeros_like(x[0])

    yield (
        "sum and norm",
        {
            "apart": lambda: F.layer_norm(x + residual, (D,), weight, bias),
            "kernel": lambda: add_norm(x, residual, weight, bias, 1e-5),
        },
    )


def layer_ways(name: str, seconds: int) -> Ways:
    from extractor.encoders import Model
    from extractor.encoders.fused import pack_frames

    encoder: Any = Model(f"random:{name}", "bf16", torch.device("cuda")).encoder
    packing = pack_frames(frames_of(seconds), encoder.device)
    x = torch.randn(packing.num_rows, encoder.dim, device=encoder.device, dtype=encoder.dtype)
    last = encoder.num_layers - 1

    def drained(layers: Iterator[Tensor]) -> None:
        for _ in layers:
            pass

    drained(encoder.fused(x, packing, last))
    drained(encoder.fused(x, packing, last))
    return {
        "launches": lambda: drained(encoder.fused.run(x, packing, last)),
        "graphs": lambda: drained(encoder.fused(x, packing, last)),
    }


def speeds(rounds: int) -> Iterator[dict[str, Any]]:
    for gated in (False, True):
        for seconds in CLIP_SECONDS:
            what = f"attention{', gated bias' if gated else ''}, {seconds} s clips"
            yield measure(what, attention_ways(frames_of(seconds), gated), rounds)
    for what, ways in product_ways():
        yield measure(what, ways, rounds)
    for name in ("hubert-large", "wavlm-large"):
        for seconds in CLIP_SECONDS:
            yield measure(f"layers of {name}, {seconds} s clips", layer_ways(name, seconds), rounds)
            torch.cuda.empty_cache()


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(__doc__, argv, rounds=5)
    if not torch.cuda.is_available():
        print("gpu_layers: torch finds no CUDA device here; nothing was measured")
        return 2
    from extractor.encoders import exact_fp32

    exact_fp32()
    skipped: dict[str, str] = {}
    with torch.inference_mode():
        findings = collect("attention", lambda: check_layer_kernels("cuda", attention=True), skipped)
        findings += collect("layers-fused", lambda: check_fused("cuda"), skipped)
        rows = []
        for row in speeds(args.rounds):
            rows.append(row)
            figures = {name: (statistics.median(ms), statistics.pstdev(ms)) for name, ms in row["ms"].items()}
            lines = [[name, f"{middle:.3f}", f"{spread:.3f}"] for name, (middle, spread) in figures.items()]
            print_table([row["what"], "ms", "spread"], lines)
            for name, reason in row["left_out"].items():
                print(f"  left out: {name}: {reason}")
    result = {
        "what": f"milliseconds for {BATCH_SECONDS} s of audio",
        "findings": [{**asdict(f), "passed": f.passed} for f in findings],
        "rows": rows,
    }
    write_result("gpu-layers", result, args.out)
    return 0 if all(f.passed for f in findings) else 1


if __name__ == "__main__":
    sys.exit(main())
