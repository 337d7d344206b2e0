"""The families of encoders that hser runs, a row each in `FAMILIES`, and the models with a name, in `MODELS`.

`wav2vec2` runs every checkpoint of the HuBERT, WavLM and wav2vec 2.0 family, `whisper` the encoder of every
Whisper checkpoint. All that is read of a checkpoint's config are its family's `fields`, each with what it may
be; `RELATIONS` is what must hold between fields.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from extractor.errors import unknown
from extractor.types import SAMPLE_RATE, FrameSink, LatentMask

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Encoder(Protocol):
    """Waveforms to frames. ``L = num_layers`` counts layer 0; ``D = dim``."""

    num_layers: int
    dim: int
    min_samples: int  # also the field: n samples give (n - min_samples) // stride + 1 frames
    max_samples: int | None  # the longest that it takes at once; longer recordings need windows
    stride: int
    can_mask: bool  # whether `forward` takes masks

    def num_frames(self, num_samples: int) -> int: ...

    def operations(self, num_samples: int) -> tuple[float, float]:
        """Floating-point operations for one recording: useful ones, and those spent on padding."""
        ...

    def normalise(self, waveforms: Sequence[Tensor]) -> list[Tensor]:
        """Whole recordings, as the model wants them: float32 ``[num_samples]`` each to the same."""
        ...

    def forward(
        self,
        waveforms: Sequence[Tensor],
        sink: FrameSink,
        last_layer: int | None = None,
        masks: Sequence[LatentMask | None] = (),
    ) -> None:
        """Encode normalised waveforms together; every layer goes to ``sink`` when it exists.

        ``masks``, where ``can_mask``: aligned with ``waveforms``, or empty for none.
        """
        ...


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model's weights in fp32 on the CPU, and what is known of them."""

    tensors: Mapping[str, Tensor]  # by the names of the `transformers` base model or encoder
    config: Any
    normalise: bool  # zero mean and unit variance over each utterance's own samples
    provenance: Mapping[str, str]  # model, source, revision, weights (hash), normalisation, ...
    mask_embedding: Tensor | None = None  # [D], what masked frames become; not every copy has it
    notes: tuple[str, ...] = ()  # for the screen: what was assumed, and what of it is not used


# The ranges of config fields. A check says what is wrong with a value, or None.

Check = Callable[[Any], str | None]

_MOST_WIDE = 16_384
_MOST_LAYERS = 256  # five times as many as any published encoder has
_LONGEST_FIELD = 10 * SAMPLE_RATE  # samples that a frame may see; the published models have 400


def _whole(low: int, high: int) -> Check:
    wanted = f"must be a whole number from {low:,} to {high:,}"
    return lambda value: None if type(value) is int and low <= value <= high else wanted


def _wholes(low: int, high: int, longest: int) -> Check:
    one, wanted = (
        _whole(low, high),
        f"must be a list of 1 to {longest} whole numbers from {low:,} to {high:,}",
    )

    def check(value: Any) -> str | None:
        fits = isinstance(value, list) and 1 <= len(value) <= longest and not any(map(one, value))
        return None if fits else wanted

    return check


def _number(low: float, high: float) -> Check:
    wanted = f"must be a number from {low:g} to {high:g}"  # NaN is in no range
    return lambda value: None if type(value) in (int, float) and low <= value <= high else wanted


def _flag(value: Any) -> str | None:
    return None if isinstance(value, bool) else "must be true or false"


def _or_null(check: Check) -> Check:
    return lambda value: None if value is None else check(value)


def _activation(value: Any) -> str | None:
    """One of `transformers`' functions; those with weights of their own are not run."""
    from transformers.activations import ACT2CLS, ACT2FN

    if not isinstance(value, str) or value not in ACT2CLS:
        return unknown("activation", str(value), ACT2CLS)
    return "has weights of its own, which hser does not run" if [*ACT2FN[value].parameters()] else None


_WAV2VEC2: dict[str, Check] = {
    "hidden_size": _whole(1, _MOST_WIDE),
    "num_hidden_layers": _whole(1, _MOST_LAYERS),
    "num_attention_heads": _whole(1, 1_024),
    "intermediate_size": _whole(1, 16 * _MOST_WIDE),
    "hidden_act": _activation,
    "layer_norm_eps": _number(1e-12, 1.0),
    "do_stable_layer_norm": _flag,
    "feat_extract_norm": lambda value: None if value in ("group", "layer") else "must be group or layer",
    "feat_extract_activation": _activation,
    "conv_dim": _wholes(1, _MOST_WIDE, longest=64),
    "conv_stride": _wholes(1, 10_000, longest=64),
    "conv_kernel": _wholes(1, 10_000, longest=64),
    "conv_bias": _flag,
    "num_conv_pos_embeddings": _whole(1, 10_000),
    "num_conv_pos_embedding_groups": _whole(1, _MOST_WIDE),
    # Only whether there is a mask embedding.
    "mask_time_prob": _number(0.0, 1.0),
    "mask_feature_prob": _number(0.0, 1.0),
}
_ADAPTERS: dict[str, Check] = {
    "add_adapter": _flag,
    "adapter_kernel_size": _whole(1, 1_000),
    "adapter_stride": _whole(1, 1_000),
    "num_adapter_layers": _whole(0, 64),
    "output_hidden_size": _or_null(_whole(1, _MOST_WIDE)),
}
_LANGUAGE_ADAPTERS = {"adapter_attn_dim": _or_null(_whole(1, _MOST_WIDE))}
_BUCKETS = {"num_buckets": _whole(4, 100_000), "max_bucket_distance": _whole(2, 10_000_000)}
_HUBERT = {"feat_proj_layer_norm": _flag, "conv_pos_batch_norm": _flag}
_WHISPER: dict[str, Check] = {
    "d_model": _whole(2, _MOST_WIDE),
    "encoder_layers": _whole(1, _MOST_LAYERS),
    "encoder_attention_heads": _whole(1, 1_024),
    "encoder_ffn_dim": _whole(1, 16 * _MOST_WIDE),
    "activation_function": _activation,
    "num_mel_bins": _whole(1, 512),
    "max_source_positions": _whole(1, 30_000),
}


def _frames_are_short(kernels: list[int], strides: list[int]) -> bool:
    from extractor.encoders.linear import receptive_field

    return receptive_field(kernels, strides) <= _LONGEST_FIELD and math.prod(strides) <= _LONGEST_FIELD


# Fields, what must hold between their values, and that in words.
Relation = tuple[tuple[str, ...], Callable[..., bool], str]


def _divides(whole: str, part: str) -> Relation:
    return (whole, part), lambda a, b: a % b == 0, f"{whole} must be a multiple of {part}"


RELATIONS: tuple[Relation, ...] = (
    _divides("hidden_size", "num_attention_heads"),
    _divides("hidden_size", "num_conv_pos_embedding_groups"),
    (
        ("conv_dim", "conv_stride", "conv_kernel"),
        lambda *each: len({*map(len, each)}) == 1,
        "must be lists of one length",
    ),
    (
        ("conv_kernel", "conv_stride"),
        _frames_are_short,
        f"a frame must not see more than {_LONGEST_FIELD:,} samples, or be so far from the next",
    ),
    (
        ("max_bucket_distance", "num_buckets"),
        lambda distance, buckets: distance > buckets // 4,
        "max_bucket_distance must be more than a quarter of num_buckets",
    ),
    _divides("d_model", "encoder_attention_heads"),
    (("d_model",), lambda width: width % 2 == 0, "must be even: half are sines, half cosines"),
)


@dataclass(frozen=True, slots=True)
class Family:
    """What sets the checkpoints of one `model_type` of `transformers` apart."""

    fields: Mapping[str, Check]  # of its config: all that is read of it, with what each may be
    make: Callable[[Any], Any]  # its encoder in `transformers` with random weights, fp32, from a config
    build: Callable[[Checkpoint, torch.dtype, torch.device, bool], Encoder]  # ours; in int8 where True
    prefixes: tuple[str, ...]  # of its tensors' names, where it was saved inside another model
    feature_extractor: str = "Wav2Vec2FeatureExtractor"  # of `transformers`, which makes its input
    # What the encoder itself computes of a waveform, by the fields of that extractor; None: nothing, it
    # takes waveforms, which may have to be normalised.
    front_end: Callable[[Any], Mapping[str, float]] | None = None
    provenance: Mapping[str, str] = field(default_factory=dict)  # what else is to be said of each checkpoint


def _make_base(config: Any) -> Any:
    import torch
    from transformers import AutoModel

    return AutoModel.from_config(config, dtype=torch.float32, trust_remote_code=False)


def _make_whisper(config: Any) -> Any:
    """The encoder alone: the decoder, which is as large, is never in memory."""
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    return WhisperEncoder(config).float()


def _build_wav2vec2(it: Checkpoint, dtype: torch.dtype, device: torch.device, int8: bool) -> Encoder:
    from extractor.encoders.wav2vec2 import Wav2Vec2Encoder

    prepared = it.normalise, it.mask_embedding
    return Wav2Vec2Encoder(it.tensors, it.config, dtype, device, *prepared, int8=int8)


def _build_whisper(it: Checkpoint, dtype: torch.dtype, device: torch.device, int8: bool) -> Encoder:
    from extractor.encoders.whisper import WhisperEncoder

    return WhisperEncoder(it.tensors, it.config, dtype, device, int8)


def _log_mel(config: Any) -> Mapping[str, float]:
    """What `whisper.LogMel` computes, by the names of `WhisperFeatureExtractor`."""
    from extractor.encoders.whisper import FFT_SAMPLES, HOP_SAMPLES, STRIDE

    return {
        "n_fft": FFT_SAMPLES,
        "hop_length": HOP_SAMPLES,
        "feature_size": config.num_mel_bins,
        "chunk_length": config.max_source_positions * STRIDE / SAMPLE_RATE,
        "padding_value": 0.0,
        "dither": 0.0,
    }


_WHISPER_LAYERS = (
    "0 is the transformer's input, after the convolutions and with the positions, k the output of its layer"
    " k; the last is the encoder's last_hidden_state, with the final LayerNorm"
)
FAMILIES: dict[str, Family] = {
    "hubert": Family(
        {**_WAV2VEC2, **_LANGUAGE_ADAPTERS, **_HUBERT}, _make_base, _build_wav2vec2, ("hubert.",)
    ),
    "wavlm": Family({**_WAV2VEC2, **_ADAPTERS, **_BUCKETS}, _make_base, _build_wav2vec2, ("wavlm.",)),
    "wav2vec2": Family(
        {**_WAV2VEC2, **_ADAPTERS, **_LANGUAGE_ADAPTERS}, _make_base, _build_wav2vec2, ("wav2vec2.",)
    ),
    "whisper": Family(
        _WHISPER,
        _make_whisper,
        _build_whisper,
        ("model.encoder.", "encoder."),
        "WhisperFeatureExtractor",
        _log_mel,
        {"layer_convention": _WHISPER_LAYERS},
    ),
}


# Models with a name.


@dataclass(frozen=True, slots=True)
class HubModel:
    """A named model: where its weights are, and its architecture for runs with random weights."""

    hub_id: str
    family: str  # `model_type` of its config
    architecture: Mapping[str, Any]  # what differs from that config's defaults (the base models)


_LARGE: dict[str, Any] = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "do_stable_layer_norm": True,
    "feat_extract_norm": "layer",
}
_LARGE_BIAS = {**_LARGE, "conv_bias": True}
_XLARGE = {**_LARGE_BIAS, "hidden_size": 1280, "num_hidden_layers": 48, "intermediate_size": 5120}


def _whisper(size: str, d_model: int, layers: int, num_mel_bins: int = 80) -> HubModel:
    """Radford et al. 2022, table 1: heads of 64, and four times the width between the linear layers."""
    architecture = {
        "d_model": d_model,
        "encoder_layers": layers,
        "encoder_attention_heads": d_model // 64,
        "encoder_ffn_dim": 4 * d_model,
        "num_mel_bins": num_mel_bins,
    }
    return HubModel(f"openai/whisper-{size}", "whisper", architecture)


_WHISPER_SIZES = {"tiny": (384, 4), "base": (512, 6), "small": (768, 12), "medium": (1024, 24)}
MODELS: dict[str, HubModel] = {
    "hubert-base": HubModel("facebook/hubert-base-ls960", "hubert", {}),
    "hubert-large": HubModel("facebook/hubert-large-ll60k", "hubert", _LARGE_BIAS),
    "hubert-xlarge": HubModel("facebook/hubert-xlarge-ll60k", "hubert", _XLARGE),
    "hubert-large-er": HubModel("superb/hubert-large-superb-er", "hubert", _LARGE_BIAS),
    "wavlm-base": HubModel("microsoft/wavlm-base", "wavlm", {}),
    "wavlm-base-plus": HubModel("microsoft/wavlm-base-plus", "wavlm", {}),
    "wavlm-large": HubModel("microsoft/wavlm-large", "wavlm", _LARGE),
    "wav2vec2-base": HubModel("facebook/wav2vec2-base", "wav2vec2", {}),
    "wav2vec2-large": HubModel("facebook/wav2vec2-large-lv60", "wav2vec2", _LARGE_BIAS),
    "xls-r": HubModel("facebook/wav2vec2-xls-r-300m", "wav2vec2", _LARGE_BIAS),
    **{f"whisper-{name}": _whisper(name, *size) for name, size in _WHISPER_SIZES.items()},
    # English only
    **{f"whisper-{name}.en": _whisper(f"{name}.en", *size) for name, size in _WHISPER_SIZES.items()},
    "whisper-large-v2": _whisper("large-v2", 1280, 32),
    "whisper-large-v3": _whisper("large-v3", 1280, 32, 128),
    # has fewer layers in its decoder
    "whisper-large-v3-turbo": _whisper("large-v3-turbo", 1280, 32, 128),
}
