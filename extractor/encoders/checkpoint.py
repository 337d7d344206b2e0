"""A checkpoint by its name: a hub id, a local folder, or a config alone.

checkpoint_files   where its files are: a folder, or the hub
architecture       its config.json, every field checked before anything is made of it
tensors            its weights, checked against the names and shapes of that architecture
preparation        what it says of its input
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from extractor.encoders.architecture import FIELDS, architecture, read_architecture, skeleton
from extractor.encoders.checkpoint_files import CONFIG, CheckpointFiles
from extractor.encoders.preparation import Preparation, assumed_preparation, read_preparation
from extractor.encoders.tensors import MASK_EMBEDDING, describe_unused, read_tensors
from extractor.errors import ModelError, unknown


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

ADAPTER = "adapter_config.json"  # of a PEFT adapter, beside a model or alone
RANDOM = "random:"  # prefix of a model spec: the architecture with random weights


@dataclass(frozen=True, slots=True)
class Kind:
    """A `model_type` of `transformers`: its encoder alone."""

    make: Callable[[Any], Any]  # the encoder with random weights, fp32, from a config
    prefixes: tuple[str, ...]  # of its tensors' names, where it was saved inside another model
    provenance: Mapping[str, str] = field(default_factory=dict)  # what else is to be said of each checkpoint


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model's weights in fp32 on the CPU, and what is known of them."""

    tensors: Mapping[str, Tensor]  # by the names of the `transformers` base model or encoder
    config: Any
    normalise: bool  # zero mean and unit variance over each utterance's own samples
    provenance: Mapping[str, str]  # model, source, revision, weights (hash), normalisation, ...
    mask_embedding: Tensor | None = None  # [D], what masked frames become; not every copy has it
    notes: tuple[str, ...] = ()  # for the screen: what was assumed, and what of it is not used


def load_checkpoint(spec: str) -> Checkpoint:
    """Read a checkpoint of one of the `KINDS`.

    Args:
        spec: a name of `MODELS`, a local folder in the hub's layout, any other hub id
            (``org/name`` or ``org/name@revision``), or ``random:`` and a name of `MODELS` or the
            path of a config (a folder or a JSON file), with ``@seed`` behind it if wanted.

    Raises:
        ModelError: unknown, unreadable, incomplete, of another kind, not what it says, or not for 16 kHz.
    """
    from transformers.utils.hub import extract_commit_hash

    if spec.startswith(RANDOM):
        return _random(spec)
    source, revision = _locate(spec)
    files = CheckpointFiles(spec, source, revision)
    config, said, path = read_architecture(files)
    commit = extract_commit_hash(str(path), None)
    if commit and not files.local:
        files = CheckpointFiles(spec, source, commit)  # all files are of one state of the repository
    preparation = read_preparation(files, config)
    kind = KINDS[config.model_type]
    fields = {name: getattr(config, name) for name in FIELDS[config.model_type] if hasattr(config, name)}
    tensors, unused = read_tensors(files, skeleton(config, kind.make, spec), kind.prefixes, fields)
    # Names that stay the same when a folder moves or a hub model is named by its alias: they are
    # compared when a run is resumed.
    name, where = (Path(source).resolve().name, "local folder") if files.local else (source, "hub")
    notes = [preparation.note, *_notes(files, said, tensors, unused, kind)]
    mask_embedding = tensors.get(MASK_EMBEDDING)
    if mask_embedding is not None and not mask_embedding.isfinite().all():
        del tensors[MASK_EMBEDDING]
        notes.append(f"not used: its mask embedding ({MASK_EMBEDDING}), which is not finite")
    return _checkpoint(
        name, where, commit or revision or "none", tensors, config, preparation,
        tuple(note for note in notes if note),
    )  # fmt: skip


def _checkpoint(
    name: str,
    source: str,
    revision: str,
    tensors: dict[str, Tensor],
    config: Any,
    preparation: Preparation,
    notes: tuple[str, ...] = (),
) -> Checkpoint:
    # The mask embedding serves pretraining and `--augment latent` only, and hub copies differ in having
    # it, so it does not tell one model from another.
    mask_embedding = tensors.pop(MASK_EMBEDDING, None)
    provenance = {
        "model": name,
        "source": source,
        "revision": revision,
        "weights": weights_hash(tensors),
        "normalisation": preparation.said,
        **KINDS[config.model_type].provenance,
    }
    return Checkpoint(tensors, config, preparation.normalise, provenance, mask_embedding, notes)


def _notes(
    files: CheckpointFiles,
    said: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    unused: list[str],
    kind: Kind,
) -> list[str | None]:
    """What of a checkpoint is not used, a line each."""
    adapter = [name for name in tensors if name.startswith("adapter.")]
    notes = [describe_unused([*unused, *adapter], (*kind.prefixes, "model."))]
    if said.get("auto_map"):
        notes.append(f"not run: the code that the checkpoint brings (auto_map in {CONFIG})")
    if files.find(ADAPTER) is not None:
        notes.append(f"not applied: the adapter that {ADAPTER} describes; merge it into the model to have it")
    languages = sorted(Path(files.source).glob("adapter.*.safetensors")) if files.local else []
    if languages:
        notes.append(
            f"not applied: {len(languages)} adapters in files of their own, {languages[0].name} the first"
        )
    return notes


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
        if (Path(spec) / CONFIG).is_file():
            return spec, None
        if (Path(spec) / ADAPTER).is_file():
            raise ModelError(
                f"model folder {spec}: is an adapter alone ({ADAPTER}); merge it into its model"
                " (merge_and_unload), save that, and name its folder"
            )
        raise ModelError(f"model folder {spec}: has no {CONFIG}; is it in the hub's layout?")
    hub_id, _, revision = spec.partition("@")
    if hub_id in MODELS:
        return MODELS[hub_id].hub_id, revision or None
    if hub_id.count("/") == 1 and not spec.startswith((".", "/", "~")):
        return hub_id, revision or None
    if "/" in spec:
        raise ModelError(f"model folder {spec}: no such folder")
    known = unknown("model", spec, [*MODELS, "logmel", "mfcc"])
    raise ModelError(f"{known}; or a folder, or a hub id org/name")


def _random(spec: str) -> Checkpoint:
    """The architecture with random weights: for benchmarks and demonstrations, and called so."""
    name, seed = spec.removeprefix(RANDOM), 0
    if "@" in name and not Path(name).exists():
        name, _, seed_text = name.rpartition("@")
        if not seed_text.isdigit():
            raise ModelError(f"model {spec!r}: the seed behind @ must be a whole number")
        seed = int(seed_text)
    path = Path(name)
    if name in MODELS:
        config = architecture(MODELS[name].kind, MODELS[name].architecture)
    elif path.exists():
        folder = path if path.is_dir() else path.parent
        files = CheckpointFiles(spec, str(folder))
        config, _, _ = read_architecture(files, None if path.is_dir() else path)
    else:
        raise ModelError(unknown("architecture", name, MODELS) + "; or the path of a config")
    kind = KINDS[config.model_type]
    skeleton(config, kind.make, spec)  # whether it fits in memory
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tensors = {name: tensor.float() for name, tensor in kind.make(config).state_dict().items()}
    called = name if name in MODELS else path.resolve().name
    return _checkpoint(
        f"{RANDOM}{called}", f"random weights, seed {seed}", "none", tensors, config,
        assumed_preparation(config, "random weights"),
    )  # fmt: skip


def _make_base(config: Any) -> Any:
    from transformers import AutoModel

    return AutoModel.from_config(config, dtype=torch.float32, trust_remote_code=False)


def _make_whisper(config: Any) -> Any:
    """The encoder alone: the decoder, which is as large, is never in memory."""
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    return WhisperEncoder(config).float()


_WHISPER_LAYERS = (
    "0 is the transformer's input, after the convolutions and with the positions, k the output of its layer"
    " k; the last is the encoder's last_hidden_state, with the final LayerNorm"
)
KINDS: dict[str, Kind] = {
    **{name: Kind(_make_base, (f"{name}.",)) for name in ("hubert", "wavlm", "wav2vec2")},
    "whisper": Kind(_make_whisper, ("model.encoder.", "encoder."), {"layer_convention": _WHISPER_LAYERS}),
}
