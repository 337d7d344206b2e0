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
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import groupby
from typing import Any

import numpy as np
import soundfile
import torch
from torch import Tensor

from benchmarks.lengths import audio_seconds
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


@dataclass(frozen=True, slots=True)
class Baseline:
    """One contender, ready to run: ``run()`` gives audio seconds per second."""

    run: Callable[[], float]
    how: str = ""
    tried: Mapping[str, float] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)  # way -> why it was not measured
    padding_share: float | None = None  # of the samples that went in


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


def loop(model: Any, files: Sequence[str]) -> float:
    """File by file in fp32, as in every tutorial."""
    from transformers import Wav2Vec2FeatureExtractor

    extractor = Wav2Vec2FeatureExtractor(return_attention_mask=True, do_normalize=True)
    began, seconds = time.perf_counter(), 0.0
    for file in files:
        waveform = soundfile.read(file, dtype="float32")[0]
        inputs = extractor(waveform, sampling_rate=SAMPLE_RATE, return_tensors="pt").to(model.device)
        with torch.no_grad():
            hidden = model(**inputs, output_hidden_states=True).hidden_states
        torch.stack([h[0].mean(0) for h in hidden]).cpu()
        seconds += len(waveform) / SAMPLE_RATE
    return seconds / (time.perf_counter() - began)


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


def padded_batch(
    batch: Sequence[np.ndarray], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Normalised and padded ``[B, T]``, and lengths ``[B]``, on the device."""
    normalised = [torch.from_numpy((w - w.mean()) / w.std()) for w in batch]
    padded = torch.nn.utils.rnn.pad_sequence(normalised, batch_first=True).to(device, dtype)
    return padded, torch.tensor([len(w) for w in batch], device=device)


def pool(hidden: Sequence[Tensor], lengths: Tensor) -> Tensor:
    """Mean of each layer's ``[B, T, D]`` over the frames of so many samples: ``[B, L, D]``, on the CPU."""
    frames = (lengths - 400) // 320 + 1
    inside = (torch.arange(hidden[0].shape[1], device=lengths.device) < frames[:, None])[:, :, None]
    return torch.stack([(h * inside).sum(1).float() / frames[:, None] for h in hidden], 1).cpu()


def best(model: Any, waveforms: Sequence[np.ndarray], batch_size: int) -> float:
    """Sorted, padded batches with a mask, pooled over the true lengths."""
    dtype, device = model.dtype, model.device
    began = time.perf_counter()
    with torch.inference_mode():
        for batch in sorted_batches(waveforms, batch_size):
            padded, lengths = padded_batch(batch, dtype, device)
            masked = {}
            # Without padding no mask is needed, and SDPA is faster without.
            if len({len(w) for w in batch}) > 1:
                masked = {"attention_mask": torch.arange(padded.shape[1], device=device) < lengths[:, None]}
            pool(model(padded, output_hidden_states=True, **masked).hidden_states, lengths)
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


@dataclass(frozen=True, slots=True)
class Setting:
    """What the baselines of one model and length are measured with."""

    model: str  # a name of `MODELS`
    dtype: torch.dtype
    device: torch.device
    waveforms: Sequence[np.ndarray]
    few: Sequence[str]  # files for the loop
    compiled: bool  # whether compiled ways are tried

    @property
    def sizes(self) -> tuple[int, ...]:
        sizes = BATCH_SIZES if self.device.type == "cpu" else GPU_BATCH_SIZES
        return tuple(size for size in sizes if size <= max(len(self.waveforms), sizes[0]))

    @property
    def sample(self) -> list[np.ndarray]:
        """What ways are tried on: every fourth recording, from the shortest to the longest."""
        return sorted(self.waveforms, key=len)[::4]


def prepare_loop(setting: Setting) -> Baseline:
    model = transformers_model(setting.model, torch.float32, setting.device)
    return Baseline(lambda: loop(model, setting.few), "fp32, file by file", padding_share=0.0)


def prepare_best(setting: Setting) -> Baseline:
    """Batch sizes are tried first, then the other ways with the fastest of them."""
    model = transformers_model(setting.model, setting.dtype, setting.device)
    plain = f"transformers, {model.config._attn_implementation}"
    runs: dict[str, tuple[Any, int]] = {f"{plain}, batches of {n}": (model, n) for n in setting.sizes}
    way, tried, missing = fastest(_timed(runs, setting), calls=2)
    if way is None:
        raise RuntimeError(f"no batch size of {setting.model} runs in transformers: {missing}")
    size = runs[way][1]
    more: dict[str, tuple[Any, int]] = {}
    if setting.device.type == "cuda" and model.config._attn_implementation != "flash_attention_2":
        name = f"transformers, flash_attention_2, batches of {size}"
        try:
            if find_spec("flash_attn") is None:
                raise ImportError("flash_attn is not installed")
            other = transformers_model(setting.model, setting.dtype, setting.device, "flash_attention_2")
            more[name] = (other, size)
        except CANNOT as error:
            missing[name] = first_line(error)
    if setting.compiled:
        more[f"{plain}, compiled, batches of {size}"] = (torch.compile(model, dynamic=True), size)
    # The first calls compile; lengths that are new to it may do so again.
    _, also, why = fastest(_timed(more, setting), calls=3)
    runs, tried, missing = runs | more, tried | also, missing | why
    way = max(tried, key=lambda name: tried[name])
    chosen, size = runs[way]
    return Baseline(
        lambda: best(chosen, setting.waveforms, size),
        way,
        tried,
        missing,
        padding_share(sorted_batches(setting.waveforms, size)),
    )


def _timed(runs: Mapping[str, tuple[Any, int]], setting: Setting) -> dict[str, Callable[[], float]]:
    return {name: lambda m=m, n=n: best(m, setting.sample, n) for name, (m, n) in runs.items()}  # type: ignore[misc]


def torchaudio_model(name: str, dtype: torch.dtype, device: torch.device) -> Any:
    """Raises ValueError where torchaudio has no such architecture."""
    import torchaudio

    if name not in TORCHAUDIO:
        raise ValueError(f"torchaudio has no architecture of {name}")
    torch.manual_seed(0)
    return getattr(torchaudio.models, TORCHAUDIO[name])().eval().to(device, dtype)


def can_pad(name: str) -> bool:
    """Whether torchaudio's model takes lengths: its WavLM asserts that there is no mask."""
    return MODELS[name].family != "wavlm"


def with_torchaudio(
    model: Any, waveforms: Sequence[np.ndarray], batch_size: int, padded_batches: bool
) -> float:
    """Sorted batches, padded with lengths or of one length each, pooled over the true lengths.

    It gives no layer 0: one mean less than the others.
    """
    parameter = next(model.parameters())
    cut = sorted_batches if padded_batches else equal_batches
    began = time.perf_counter()
    with torch.inference_mode():
        for batch in cut(waveforms, batch_size):
            padded, lengths = padded_batch(batch, parameter.dtype, parameter.device)
            ragged = len({len(w) for w in batch}) > 1
            hidden, _ = model.extract_features(padded, lengths if ragged else None)
            pool(hidden, lengths)
    return audio_seconds(waveforms) / (time.perf_counter() - began)


def prepare_torchaudio(setting: Setting) -> Baseline:
    model = torchaudio_model(setting.model, setting.dtype, setting.device)
    padded = can_pad(setting.model)
    runs = {f"torchaudio, batches of {n}": n for n in setting.sizes}
    ways = {name: lambda n=n: with_torchaudio(model, setting.sample, n, padded) for name, n in runs.items()}
    way, tried, missing = fastest(ways, calls=2)
    if way is None:
        raise RuntimeError(f"no batch size of {setting.model} runs in torchaudio: {missing}")
    size = runs[way]
    cut = sorted_batches if padded else equal_batches
    return Baseline(
        lambda: with_torchaudio(model, setting.waveforms, size, padded),
        way if padded else f"{way}, of one length each: its WavLM takes no mask",
        tried,
        missing,
        padding_share(cut(setting.waveforms, size)),
    )


BASELINES: dict[str, Callable[[Setting], Baseline]] = {
    "loop": prepare_loop,
    "best": prepare_best,
    "torchaudio": prepare_torchaudio,
}
