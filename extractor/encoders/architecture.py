"""The architecture that a checkpoint's ``config.json`` describes, checked before anything is made of it.

`FIELDS` is all that is read of a config, with what each field may be; `RELATIONS` is what must hold
between fields. The config that encoders see has these fields alone: whatever else the file says (code to
run, quantisation, defaults of training) reaches nothing.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from extractor.encoders.checkpoint_files import CONFIG, CheckpointFiles, json_type
from extractor.errors import ModelError, unknown
from extractor.types import SAMPLE_RATE

# What is wrong with a value, or None.
Check = Callable[[Any], str | None]

_LONGEST_FIELD = 10 * SAMPLE_RATE  # samples that a frame may see; the published models have 400
_SHOWN = 80  # characters of a value in a message


def whole(low: int, high: int) -> Check:
    def check(value: Any) -> str | None:
        fits = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
        return None if fits else f"must be a whole number from {low:,} to {high:,}"

    return check


def wholes(low: int, high: int, longest: int) -> Check:
    one = whole(low, high)

    def check(value: Any) -> str | None:
        fits = isinstance(value, list | tuple) and 1 <= len(value) <= longest
        if fits and not any(one(each) for each in value):
            return None
        return f"must be a list of 1 to {longest} whole numbers from {low:,} to {high:,}"

    return check


def number(low: float, high: float) -> Check:
    def check(value: Any) -> str | None:
        # NaN is in no range.
        fits = isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
        return None if fits else f"must be a number from {low:g} to {high:g}"

    return check


def flag(value: Any) -> str | None:
    return None if isinstance(value, bool) else "must be true or false"


def choice(*names: str) -> Check:
    return lambda value: None if value in names else f"must be {' or '.join(names)}"


def or_null(check: Check) -> Check:
    return lambda value: None if value is None else check(value)


def activation(value: Any) -> str | None:
    """One of `transformers`' functions; those with weights of their own are not run."""
    from transformers.activations import ACT2CLS, ACT2FN

    if not isinstance(value, str) or value not in ACT2CLS:
        return unknown("activation", str(value), ACT2CLS)
    return "has weights of its own, which hser does not run" if [*ACT2FN[value].parameters()] else None


_MOST_WIDE = 16_384
_MOST_LAYERS = 256  # five times as many as any published encoder has
_WAV2VEC2: dict[str, Check] = {
    "hidden_size": whole(1, _MOST_WIDE),
    "num_hidden_layers": whole(1, _MOST_LAYERS),
    "num_attention_heads": whole(1, 1_024),
    "intermediate_size": whole(1, 16 * _MOST_WIDE),
    "hidden_act": activation,
    "layer_norm_eps": number(1e-12, 1.0),
    "do_stable_layer_norm": flag,
    "feat_extract_norm": choice("group", "layer"),
    "feat_extract_activation": activation,
    "conv_dim": wholes(1, _MOST_WIDE, longest=64),
    "conv_stride": wholes(1, 10_000, longest=64),
    "conv_kernel": wholes(1, 10_000, longest=64),
    "conv_bias": flag,
    "num_conv_pos_embeddings": whole(1, 10_000),
    "num_conv_pos_embedding_groups": whole(1, _MOST_WIDE),
    # Only whether there is a mask embedding.
    "mask_time_prob": number(0.0, 1.0),
    "mask_feature_prob": number(0.0, 1.0),
}
_ADAPTERS: dict[str, Check] = {
    "add_adapter": flag,
    "adapter_kernel_size": whole(1, 1_000),
    "adapter_stride": whole(1, 1_000),
    "num_adapter_layers": whole(0, 64),
    "output_hidden_size": or_null(whole(1, _MOST_WIDE)),
}
_LANGUAGE_ADAPTERS = {"adapter_attn_dim": or_null(whole(1, _MOST_WIDE))}
FIELDS: dict[str, dict[str, Check]] = {
    "hubert": {**_WAV2VEC2, **_LANGUAGE_ADAPTERS, "feat_proj_layer_norm": flag, "conv_pos_batch_norm": flag},
    "wavlm": {
        **_WAV2VEC2,
        **_ADAPTERS,
        "num_buckets": whole(4, 100_000),
        "max_bucket_distance": whole(2, 10_000_000),
    },
    "wav2vec2": {**_WAV2VEC2, **_ADAPTERS, **_LANGUAGE_ADAPTERS},
    "whisper": {
        "d_model": whole(2, _MOST_WIDE),
        "encoder_layers": whole(1, _MOST_LAYERS),
        "encoder_attention_heads": whole(1, 1_024),
        "encoder_ffn_dim": whole(1, 16 * _MOST_WIDE),
        "activation_function": activation,
        "num_mel_bins": whole(1, 512),
        "max_source_positions": whole(1, 30_000),
    },
}


@dataclass(frozen=True, slots=True)
class Relation:
    """What must hold between fields of a config."""

    fields: tuple[str, ...]
    holds: Callable[..., bool]  # of their values
    wanted: str


def _receptive_field(kernels: list[int], strides: list[int]) -> int:
    return 1 + sum((kernel - 1) * math.prod(strides[:i]) for i, kernel in enumerate(kernels))


def _divides(whole_one: str, part: str) -> Relation:
    return Relation((whole_one, part), lambda a, b: a % b == 0, f"{whole_one} must be a multiple of {part}")


_CNN = ("conv_dim", "conv_stride", "conv_kernel")
RELATIONS = (
    _divides("hidden_size", "num_attention_heads"),
    _divides("hidden_size", "num_conv_pos_embedding_groups"),
    Relation(_CNN, lambda *each: len({*map(len, each)}) == 1, "must be lists of one length"),
    Relation(
        ("conv_kernel", "conv_stride"),
        lambda kernels, strides: (
            _receptive_field(kernels, strides) <= _LONGEST_FIELD and math.prod(strides) <= _LONGEST_FIELD
        ),
        f"a frame must not see more than {_LONGEST_FIELD:,} samples, or be so far from the next",
    ),
    Relation(
        ("max_bucket_distance", "num_buckets"),
        lambda distance, buckets: distance > buckets // 4,
        "max_bucket_distance must be more than a quarter of num_buckets",
    ),
    _divides("d_model", "encoder_attention_heads"),
    Relation(("d_model",), lambda width: width % 2 == 0, "must be even: half are sines, half cosines"),
)
# Weights that are stored in other numbers than their own, by the field that says so.
_QUANTISED = ("quantization_config", "compression_config")


def read_architecture(
    files: CheckpointFiles, path: Path | None = None
) -> tuple[Any, Mapping[str, Any], Path]:
    """The checked config, all that its file says, and the file (or ``path`` itself). Raises ModelError."""
    path = path or files.find(CONFIG)
    if path is None:
        raise ModelError(
            f"model {files.spec!r}: cannot read the config of {files.where}: it has no {CONFIG}"
            " (without a network, name a local folder in the hub's layout)"
        )
    values = files.read_json(path)
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in FIELDS:
        raise ModelError(
            f"model {files.spec!r}: {path}: model_type is of the kind {kind!r}; hser runs {', '.join(FIELDS)}"
        )
    for name in _QUANTISED:
        if values.get(name) is not None:
            raise files.refusal(
                path, f"{name} says that the weights are quantised",
                "name the model that they were made of, or save it dequantised",
            )  # fmt: skip
    if values.get("transformers_weights") is not None:
        raise files.refusal(
            path, f"transformers_weights names {_shown(values['transformers_weights'])} for the weights",
            "give the file the name model.safetensors, and take this field out",
        )  # fmt: skip
    return _checked(kind, values, files, path), values, path


def architecture(kind: str, values: Mapping[str, Any]) -> Any:
    """The `transformers` config of a kind, from checked fields; the others as the kind has them."""
    from transformers import AutoConfig

    return AutoConfig.for_model(kind, **values)


def _checked(kind: str, values: Mapping[str, Any], files: CheckpointFiles, path: Path) -> Any:
    for name, check in FIELDS[kind].items():
        problem = check(values[name]) if name in values else None
        if problem:
            raise files.refusal(path, f"{name} is {_shown(values[name])}: {problem}")
    given = {name: values[name] for name in FIELDS[kind] if name in values}
    if "layer_norm_eps" in given:
        given["layer_norm_eps"] = float(given["layer_norm_eps"])
    default = architecture(kind, {})
    full = {name: given.get(name, getattr(default, name, None)) for name in FIELDS[kind]}
    for relation in RELATIONS:
        if all(name in full for name in relation.fields):
            found = [full[name] for name in relation.fields]
            if not relation.holds(*found):
                named = ", ".join(
                    f"{name} {_shown(value)}" for name, value in zip(relation.fields, found, strict=True)
                )
                raise files.refusal(path, f"{named}: {relation.wanted}")
    return architecture(kind, given)


def skeleton(config: Any, make: Callable[[Any], Any], spec: str) -> Mapping[str, Any]:
    """Names and shapes of the weights that a config asks for, without any memory: ``meta`` tensors.

    Raises ModelError where they are more than this machine's memory holds.
    """
    import torch

    # On the meta device initialising costs nothing, but it draws all the same.
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        wanted: Mapping[str, torch.Tensor] = make(config).state_dict()
    num_bytes = 4 * sum(tensor.numel() for tensor in wanted.values())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if num_bytes > memory:
        raise ModelError(
            f"model {spec!r}: its {CONFIG} asks for {num_bytes / 2**30:,.0f} GiB of weights, this machine has"
            f" {memory / 2**30:,.0f} GiB of memory; is it the {CONFIG} of this model?"
        )
    return wanted


def _shown(value: Any) -> str:
    text = repr(value) if not isinstance(value, dict) else json_type(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
