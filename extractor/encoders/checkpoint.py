"""Weights and configs, through `transformers`: a hub id, a local folder, or a config alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from extractor.errors import ModelError, unknown
from extractor.types import SAMPLE_RATE


@dataclass(frozen=True, slots=True)
class HubModel:
    """A named model: where its weights are, and its architecture for runs with random weights."""

    hub_id: str
    kind: str  # `model_type` of its config
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


def _whisper(d_model: int, layers: int, num_mel_bins: int = 80) -> dict[str, Any]:
    """Radford et al. 2022, table 1: heads of 64, and four times the width between the products."""
    return {
        "d_model": d_model,
        "encoder_layers": layers,
        "encoder_attention_heads": d_model // 64,
        "encoder_ffn_dim": 4 * d_model,
        "num_mel_bins": num_mel_bins,
    }


_WHISPER = {
    "tiny": _whisper(384, 4),
    "base": _whisper(512, 6),
    "small": _whisper(768, 12),
    "medium": _whisper(1024, 24),
}
_WHISPER |= {f"{size}.en": row for size, row in _WHISPER.items()}  # English only
_WHISPER |= {
    "large-v2": _whisper(1280, 32),
    "large-v3": _whisper(1280, 32, num_mel_bins=128),
    "large-v3-turbo": _whisper(1280, 32, num_mel_bins=128),  # has fewer layers in its decoder
}

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
    **{f"whisper-{size}": HubModel(f"openai/whisper-{size}", "whisper", _WHISPER[size]) for size in _WHISPER},
}

RANDOM = "random:"  # prefix of a model spec: the architecture with random weights


@dataclass(frozen=True, slots=True)
class Kind:
    """A `model_type` of `transformers`: its encoder alone, and how its input is prepared."""

    read: Callable[..., Any]  # from_pretrained(source, config=..., ...) of the encoder
    make: Callable[[Any], Any]  # the encoder with random weights, fp32, from a config
    # What the config and preprocessor_config.json (or why there is none) say of the waveform: whether it is
    # normalised, and a note of it. Raises ValueError for what hser does not compute.
    preparation: Callable[[Any, Mapping[str, Any] | str], tuple[bool, str]]
    provenance: Mapping[str, str] = field(default_factory=dict)  # what else is to be said of each checkpoint


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model's weights in fp32 on the CPU, and what is known of them."""

    tensors: Mapping[str, Tensor]  # by the names of the `transformers` base model or encoder
    config: Any
    normalise: bool  # zero mean and unit variance over each utterance's own samples
    provenance: Mapping[str, str]  # model, source, revision, weights (hash), normalisation, ...
    mask_embedding: Tensor | None = None  # [D], what masked frames become; not every copy has it


def load_checkpoint(spec: str) -> Checkpoint:
    """Read a checkpoint of one of the `KINDS`.

    Args:
        spec: a name of `MODELS`, a local folder in the hub's layout, any other hub id
            (``org/name`` or ``org/name@revision``), or ``random:`` and a name of `MODELS` or the
            path of a config (a folder or a JSON file), with ``@seed`` behind it if wanted.

    Raises:
        ModelError: unknown, unreadable, incomplete, of another kind, or not for 16 kHz.
    """
    if spec.startswith(RANDOM):
        return _random(spec)
    source, revision = _locate(spec)
    config = _read_config(source, revision, spec)
    model, info = _read_weights(source, revision, config, spec)
    missing = sorted(k for k in info["missing_keys"] if "masked_spec_embed" not in k)
    if missing or info["mismatched_keys"]:
        bad = missing or sorted(str(k) for k in info["mismatched_keys"])
        raise ModelError(
            f"model {spec!r}: {len(bad)} weights of the config's architecture are missing from the"
            f" checkpoint or have another shape, {bad[0]} the first; is it complete?"
        )
    normalise, note = _read_preparation(source, revision, config, spec)
    local = Path(source).is_dir()
    # Names that stay the same when a folder moves or a hub model is named by its alias: they are
    # compared when a run is resumed.
    name, where = (Path(source).resolve().name, "local folder") if local else (source, "hub")
    commit = getattr(config, "_commit_hash", None) or revision or "none"
    masks = not any("masked_spec_embed" in key for key in info["missing_keys"])
    return _checkpoint(name, where, commit, model, config, normalise, note, masks)


def _checkpoint(
    name: str,
    source: str,
    revision: str,
    model: Any,
    config: Any,
    normalise: bool,
    note: str,
    masks: bool = True,
) -> Checkpoint:
    # The mask embedding serves pretraining and `--augment latent` only, and hub copies differ in having
    # it (`masks`), so it does not tell one model from another.
    tensors = {k: v.float() for k, v in model.state_dict().items()}
    mask_embedding = tensors.pop("masked_spec_embed", None)
    provenance = {
        "model": name,
        "source": source,
        "revision": revision,
        "weights": weights_hash(tensors),
        "normalisation": note,
        **KINDS[config.model_type].provenance,
    }
    return Checkpoint(tensors, config, normalise, provenance, mask_embedding if masks else None)


def weights_hash(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, shapes and fp32 values: the same for every file format of one model."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].contiguous().view(-1).numpy().data)
    return digest.hexdigest()


def _locate(spec: str) -> tuple[str, str | None]:
    """Folder or hub id, and the revision asked for."""
    if spec in MODELS:
        return MODELS[spec].hub_id, None
    if Path(spec).is_dir():
        if not (Path(spec) / "config.json").is_file():
            raise ModelError(f"model folder {spec}: has no config.json; is it in the hub's layout?")
        return spec, None
    hub_id, _, revision = spec.partition("@")
    if hub_id in MODELS:
        return MODELS[hub_id].hub_id, revision or None
    if hub_id.count("/") == 1 and not spec.startswith((".", "/", "~")):
        return hub_id, revision or None
    if "/" in spec:
        raise ModelError(f"model folder {spec}: no such folder")
    known = unknown("model", spec, [*MODELS, "logmel", "mfcc"])
    raise ModelError(f"{known}; or a folder, or a hub id org/name")


def _read_config(source: str, revision: str | None, spec: str) -> Any:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(source, revision=revision)
    except (OSError, ValueError, KeyError) as e:
        raise ModelError(
            f"model {spec!r}: cannot read the config of {source}: {_first_line(e)}"
            " (without a network, name a local folder in the hub's layout)"
        ) from e
    if config.model_type not in KINDS:
        raise ModelError(
            f"model {spec!r}: is of the kind {config.model_type!r}; hser runs {', '.join(KINDS)}"
        )
    return config


def _read_weights(source: str, revision: str | None, config: Any, spec: str) -> tuple[Any, Any]:
    from safetensors import SafetensorError
    from transformers.utils import logging

    bar = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        return KINDS[config.model_type].read(
            source, revision=revision, config=config, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as e:
        raise ModelError(f"model {spec!r}: cannot read the weights of {source}: {_first_line(e)}") from e
    finally:
        if bar:
            logging.enable_progress_bar()


def _read_preparation(source: str, revision: str | None, config: Any, spec: str) -> tuple[bool, str]:
    from transformers.utils import cached_file

    found = cached_file(
        source,
        "preprocessor_config.json",
        revision=revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    preprocessor: Any = "no preprocessor_config.json"
    if found is not None:
        try:
            preprocessor = json.loads(Path(found).read_text(encoding="utf-8"))
        except ValueError as e:
            raise ModelError(f"model {spec!r}: {found} is not JSON: {e}") from e
        rate = preprocessor.get("sampling_rate", SAMPLE_RATE)
        if rate != SAMPLE_RATE:
            raise ModelError(f"model {spec!r}: takes audio at {rate} Hz; hser encodes at {SAMPLE_RATE} Hz")
    try:
        return KINDS[config.model_type].preparation(config, preprocessor)
    except ValueError as e:
        raise ModelError(f"model {spec!r}: {e}") from e


def _random(spec: str) -> Checkpoint:
    """The architecture with random weights: for benchmarks and demonstrations, and called so."""
    from transformers import AutoConfig

    name, seed = spec.removeprefix(RANDOM), 0
    if "@" in name and not Path(name).exists():
        name, _, seed_text = name.rpartition("@")
        if not seed_text.isdigit():
            raise ModelError(f"model {spec!r}: the seed behind @ must be a whole number")
        seed = int(seed_text)
    if name in MODELS:
        config = AutoConfig.for_model(MODELS[name].kind, **MODELS[name].architecture)
    elif Path(name).exists():
        config = _read_config(name, None, spec)
    else:
        raise ModelError(unknown("architecture", name, MODELS) + "; or the path of a config")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = KINDS[config.model_type].make(config)
    normalise, note = KINDS[config.model_type].preparation(config, "random weights")
    called = name if name in MODELS else Path(name).resolve().name
    source = f"random weights, seed {seed}"
    return _checkpoint(f"{RANDOM}{called}", source, "none", model, config, normalise, note)


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _read_base(source: str, **options: Any) -> Any:
    from transformers import AutoModel

    return AutoModel.from_pretrained(source, **options)


def _make_base(config: Any) -> Any:
    from transformers import AutoModel

    return AutoModel.from_config(config, dtype=torch.float32)


def _normalisation(config: Any, preprocessor: Mapping[str, Any] | str) -> tuple[bool, str]:
    if isinstance(preprocessor, str):
        normalise = config.feat_extract_norm == "layer"
        return normalise, f"{normalise} ({preprocessor}; by feat_extract_norm)"
    normalise = bool(preprocessor.get("do_normalize", True))  # the reference's own default
    return normalise, f"{normalise} (preprocessor_config.json)"


def _read_whisper(source: str, **options: Any) -> Any:
    """The encoder alone: the decoder, which is as large, is never in memory."""
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    class EncoderAlone(WhisperEncoder):
        # What transcribes or classifies: not to be read, and not to be warned of either.
        _keys_to_ignore_on_load_unexpected = (
            r"^(model\.)?decoder\.",
            r"^proj_out\.",
            r"^(projector|classifier)\.",
        )

    return EncoderAlone.from_pretrained(source, key_mapping={r"^(model\.)?encoder\.": ""}, **options)


def _make_whisper(config: Any) -> Any:
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    return WhisperEncoder(config).float()


def _log_mel(config: Any, preprocessor: Mapping[str, Any] | str) -> tuple[bool, str]:
    """`whisper.LogMel` is the spectrogram that the file asks for, or a ValueError says what is not."""
    from extractor.encoders.whisper import FFT_SAMPLES, HOP_SAMPLES, STRIDE

    computed = {
        "n_fft": FFT_SAMPLES,
        "hop_length": HOP_SAMPLES,
        "feature_size": config.num_mel_bins,
        "chunk_length": config.max_source_positions * STRIDE / SAMPLE_RATE,
        "padding_value": 0.0,
        "dither": 0.0,
    }
    for name, value in computed.items():
        asked = value if isinstance(preprocessor, str) else preprocessor.get(name, value)
        if asked != value:
            raise ValueError(f"preprocessor_config.json has {name} {asked}; hser computes {value:g} for it")
    return False, "log-mel as WhisperFeatureExtractor"


_WHISPER_LAYERS = (
    "0 is the transformer's input, after the convolutions and with the positions, k the output of its layer"
    " k; the last is the encoder's last_hidden_state, with the final LayerNorm"
)
_BASE = Kind(_read_base, _make_base, _normalisation)
KINDS: dict[str, Kind] = {
    "hubert": _BASE,
    "wavlm": _BASE,
    "wav2vec2": _BASE,
    "whisper": Kind(_read_whisper, _make_whisper, _log_mel, {"layer_convention": _WHISPER_LAYERS}),
}
