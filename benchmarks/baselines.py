"""Other ways to the same embeddings, all layers mean-pooled, as people would write them.

    loop        file by file in fp32, `output_hidden_states`, mean over time: every tutorial
    best        `transformers` at its best: half precision, batches sorted by length with an attention mask;
                SDPA or, where it is installed, FlashAttention 2; on CUDA also compiled. The fastest way and
                batch size of those tried is taken
    torchaudio  the architecture of `torchaudio`'s own bundles, batches as in `best`

Weights are random: speed does not depend on them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from importlib.util import find_spec
from itertools import groupby
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.stand_ins import audio_seconds
from extractor.encoders.families import MODELS
from extractor.types import SAMPLE_RATE

BATCH_SIZES = (1, 4, 8, 16)  # tried on a CPU
GPU_BATCH_SIZES = (16, 32, 64, 128)

# Our names -> functions of `torchaudio.models` that build what its bundles hold.
TORCHAUDIO = {
    "hubert-base": "hubert_base",
    "hubert-large": "hubert_large",
    "hubert-xlarge": "hubert_xlarge",
    "wavlm-base": "wavlm_base",
    "wavlm-base-plus": "wavlm_base",
    "wavlm-large": "wavlm_large",
    "wav2vec2-base": "wav2vec2_base",
    "wav2vec2-large": "wav2vec2_large_lv60k",
    "xls-r": "wav2vec2_xlsr_300m",
}
# Refusals and failures of a way on some machine or model: it is left out, and the result says why.
CANNOT = (RuntimeError, ImportError, ValueError, AssertionError)

# Padded [B, T], lengths [B] and whether they differ -> every layer's [B, T, D]
Forward: TypeAlias = Callable[[Tensor, Tensor, bool], Sequence[Tensor]]
Batches: TypeAlias = Callable[[Sequence[np.ndarray], int], Iterator[list[np.ndarray]]]


@dataclass(frozen=True, slots=True)
class Baseline:
    """One contender, ready to run: ``run()`` gives audio seconds per second."""

    run: Callable[[], float]
    how: str = ""
    tried: Mapping[str, float] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)  # way -> why it was not measured
    padding_share: float | None = None  # of the samples that went in


@dataclass(frozen=True, slots=True)
class Workload:
    """What the baselines of one model and length are measured with."""

    model: str  # a name of `MODELS`
    dtype: torch.dtype
    device: torch.device
    waveforms: Sequence[np.ndarray]
    few: Sequence[str]  # files for the loop
    compiled: bool  # whether compiled ways are tried


def transformers_model(
    name: str, dtype: torch.dtype, device: torch.device, attention: str | None = None
) -> Any:
    """The reference with random weights; ``attention``: None for the library's own choice."""
    from transformers import AutoConfig, AutoModel

    row = MODELS[name]
    torch.manual_seed(0)
    config = AutoConfig.for_model(row.family, **row.architecture)
    chosen = {} if attention is None else {"attn_implementation": attention}
    # FlashAttention 2 refuses models that are built in fp32.
    built = torch.float32 if attention is None else dtype
    return (
        AutoModel.from_config(config, dtype=built, trust_remote_code=False, **chosen).eval().to(device, dtype)
    )


def prepare_loop(work: Workload) -> Baseline:
    """File by file in fp32, as in every tutorial."""
    model = transformers_model(work.model, torch.float32, work.device)

    def loop() -> float:
        import soundfile
        from transformers import Wav2Vec2FeatureExtractor

        extractor = Wav2Vec2FeatureExtractor(return_attention_mask=True, do_normalize=True)
        began, seconds = time.perf_counter(), 0.0
        for file in work.few:
            waveform = soundfile.read(file, dtype="float32")[0]
            inputs = extractor(waveform, sampling_rate=SAMPLE_RATE, return_tensors="pt").to(model.device)
            with torch.no_grad():
                hidden = model(**inputs, output_hidden_states=True).hidden_states
            torch.stack([h[0].mean(0) for h in hidden]).cpu()
            seconds += len(waveform) / SAMPLE_RATE
        return seconds / (time.perf_counter() - began)

    return Baseline(loop, "fp32, file by file", padding_share=0.0)


# --- Batches ------------------------------------------------------------------------------------


def sorted_batches(waveforms: Sequence[np.ndarray], size: int) -> Iterator[list[np.ndarray]]:
    ordered = sorted(waveforms, key=len)
    for i in range(0, len(ordered), size):
        yield ordered[i : i + size]


def equal_batches(waveforms: Sequence[np.ndarray], size: int) -> Iterator[list[np.ndarray]]:
    """Batches without padding: of one length each."""
    for _, equal in groupby(sorted(waveforms, key=len), key=len):
        yield from sorted_batches(list(equal), size)


def padding_share(batches: Iterator[list[np.ndarray]]) -> float:
    """Share of padding in the samples that go in."""
    own = padded = 0
    for batch in batches:
        own += sum(map(len, batch))
        padded += len(batch) * max(map(len, batch))
    return 1 - own / padded


def inside(lengths: Tensor, longest: int) -> Tensor:
    """``[B, T]``: what is no padding."""
    return torch.arange(longest, device=lengths.device) < lengths[:, None]


def pool(hidden: Sequence[Tensor], lengths: Tensor) -> Tensor:
    """Mean of each layer's ``[B, T, D]`` over the frames of so many samples: ``[B, L, D]``, on the CPU."""
    frames = (lengths - 400) // 320 + 1
    own = inside(frames, hidden[0].shape[1])[:, :, None]
    return torch.stack([(h * own).sum(1).float() / frames[:, None] for h in hidden], 1).cpu()


def speed(
    forward: Forward, batches: Batches, size: int, waveforms: Sequence[np.ndarray], work: Workload
) -> float:
    """Audio seconds per second of padded batches, pooled over the true lengths."""
    began = time.perf_counter()
    with torch.inference_mode():
        for batch in batches(waveforms, size):
            normalised = [torch.from_numpy((w - w.mean()) / w.std()) for w in batch]
            padded = torch.nn.utils.rnn.pad_sequence(normalised, batch_first=True)
            lengths = torch.tensor([len(w) for w in batch], device=work.device)
            ragged = len({len(w) for w in batch}) > 1
            pool(forward(padded.to(work.device, work.dtype), lengths, ragged), lengths)
    return audio_seconds(waveforms) / (time.perf_counter() - began)


def fastest(
    ways: Mapping[str, Callable[[], float]], calls: int
) -> tuple[str | None, dict[str, float], dict[str, str]]:
    """The fastest of some ways, the best of so many calls each; all figures; and why others have none."""
    tried: dict[str, float] = {}
    missing: dict[str, str] = {}
    for name, way in ways.items():
        try:
            tried[name] = max(way() for _ in range(calls))
        except CANNOT as error:
            missing[name] = first_line(error)
            torch.cuda.empty_cache()  # where it ran out of memory
    return max(tried, key=lambda name: tried[name], default=None), tried, missing


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"


def batched(
    work: Workload,
    name: str,
    forward: Forward,
    batches: Batches = sorted_batches,
    others: Mapping[str, Forward] = MappingProxyType({}),
) -> Baseline:
    """The fastest batch size of ``forward``, then ``others`` with that size; the fastest of all is taken.

    Raises RuntimeError where no batch size runs.
    """
    few = sorted(work.waveforms, key=len)[::4]  # ways are tried on all lengths

    def timed(ways: Mapping[str, tuple[Forward, int]]) -> dict[str, Callable[[], float]]:
        return {label: partial(speed, way, batches, n, few, work) for label, (way, n) in ways.items()}

    sizes = BATCH_SIZES if work.device.type == "cpu" else GPU_BATCH_SIZES
    fitting = [size for size in sizes if size <= max(len(work.waveforms), sizes[0])]
    ways = {f"{name}, batches of {size}": (forward, size) for size in fitting}
    best, tried, missing = fastest(timed(ways), calls=2)
    if best is None:
        library = name.partition(",")[0]
        raise RuntimeError(f"no batch size of {work.model} runs in {library}: {missing}")
    size = ways[best][1]
    more = {f"{other}, batches of {size}": (way, size) for other, way in others.items()}
    # The first calls compile; lengths that are new to it may do so again.
    _, also, why = fastest(timed(more), calls=3)
    ways, tried, missing = ways | more, tried | also, missing | why
    best = max(tried, key=lambda label: tried[label])
    run = partial(speed, ways[best][0], batches, size, work.waveforms, work)
    return Baseline(run, best, tried, missing, padding_share(batches(work.waveforms, size)))


def transformers_forward(load: Callable[[], Any]) -> Forward:
    """Of a model that is loaded when it is first called: where it cannot be, that way is left out."""
    loaded = cache(load)

    def forward(padded: Tensor, lengths: Tensor, ragged: bool) -> Sequence[Tensor]:
        # Without padding no mask is needed, and SDPA is faster without.
        masked = {"attention_mask": inside(lengths, padded.shape[1])} if ragged else {}
        return loaded()(padded, output_hidden_states=True, **masked).hidden_states

    return forward


def prepare_best(work: Workload) -> Baseline:
    """Batch sizes are tried first, then the other ways with the fastest of them."""

    def with_flash() -> Any:
        if find_spec("flash_attn") is None:
            raise ImportError("flash_attn is not installed")
        return transformers_model(work.model, work.dtype, work.device, "flash_attention_2")

    model = transformers_model(work.model, work.dtype, work.device)
    attention = model.config._attn_implementation
    others: dict[str, Callable[[], Any]] = {}
    if work.device.type == "cuda" and attention != "flash_attention_2":
        others["transformers, flash_attention_2"] = with_flash
    if work.compiled:
        others[f"transformers, {attention}, compiled"] = lambda: torch.compile(model, dynamic=True)
    return batched(
        work,
        f"transformers, {attention}",
        transformers_forward(lambda: model),
        others={name: transformers_forward(load) for name, load in others.items()},
    )


def prepare_torchaudio(work: Workload) -> Baseline:
    """It gives no layer 0: one mean less than the others. ValueError where it has no such architecture.

    Its WavLM asserts that there is no mask: its batches are of one length each.
    """
    import torchaudio

    if work.model not in TORCHAUDIO:
        raise ValueError(f"torchaudio has no architecture of {work.model}")
    torch.manual_seed(0)
    model = getattr(torchaudio.models, TORCHAUDIO[work.model])().eval().to(work.device, work.dtype)

    def forward(padded: Tensor, lengths: Tensor, ragged: bool) -> Sequence[Tensor]:
        return model.extract_features(padded, lengths if ragged else None)[0]

    if MODELS[work.model].family != "wavlm":
        return batched(work, "torchaudio", forward)
    found = batched(work, "torchaudio", forward, equal_batches)
    return replace(found, how=f"{found.how}, of one length each: its WavLM takes no mask")


BASELINES: dict[str, Callable[[Workload], Baseline]] = {
    "loop": prepare_loop,
    "best": prepare_best,
    "torchaudio": prepare_torchaudio,
}


# --- Attention ----------------------------------------------------------------------------------


def sdpa(
    qkv: Tensor,
    lengths: Sequence[int],
    num_heads: int,
    bias: Tensor | None = None,
    gate: Tensor | None = None,
) -> Tensor:
    """`extractor.encoders.transformer.attend`, with PyTorch's attention for each utterance."""
    dim = qkv.shape[1] // 3
    out = qkv.new_zeros(len(qkv), dim)
    start = 0
    for frames in lengths:
        rows = slice(start, start + frames)
        q, k, v = qkv[rows].view(frames, 3, num_heads, -1).permute(1, 2, 0, 3)[:, None]
        mask = None
        if bias is not None and gate is not None:
            mask = (gate[rows].t()[:, :, None] * bias[:, :frames, :frames])[None]
        attended = F.scaled_dot_product_attention(q, k, v, mask, scale=1.0)  # queries are scaled already
        out[rows] = attended[0].transpose(0, 1).reshape(frames, dim)
        start += frames
    return out
