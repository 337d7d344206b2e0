"""A checkpoint by its name: a hub id, a local folder, or a config alone.

Its config is checked before anything is made of it. The config that encoders see has the family's fields
alone: whatever else the file says (code to run, quantisation, defaults of training) reaches nothing.

Where a checkpoint says how its input is made is `transformers`' matter
(`FeatureExtractionMixin.get_feature_extractor_dict`, 5.24), and its precedence is kept:

    processor_config.json      under `feature_extractor`, or `audio_processor`: how transformers 5 saves
    preprocessor_config.json   flat: how transformers 4 saves, and a feature extractor by itself
    processor_config.json      flat, which transformers does not read; better than a guess

Where none of them says anything, it is assumed, and called so.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from extractor.encoders.checkpoint_files import CONFIG, CheckpointFiles, json_type
from extractor.encoders.families import FAMILIES, MODELS, RELATIONS, Checkpoint
from extractor.encoders.tensors import MASK_EMBEDDING, describe_unused, read_tensors
from extractor.errors import ModelError, unknown
from extractor.types import SAMPLE_RATE

ADAPTER = "adapter_config.json"  # of a PEFT adapter, beside a model or alone
RANDOM = "random:"  # prefix of a model spec: the architecture with random weights
# Weights that are stored in other numbers than their own, by the field that says so.
_QUANTISED = ("quantization_config", "compression_config")
_SHOWN = 80  # characters of a value in a message

PROCESSOR = "processor_config.json"
PREPROCESSOR = "preprocessor_config.json"
_NESTED = ("feature_extractor", "audio_processor")  # the first that is there, as in the reference
_FLAT = ("feature_extractor_type", "do_normalize", "sampling_rate")  # any of them tells a flat one
_NONE = f"no {PREPROCESSOR} or {PROCESSOR}"


def load_checkpoint(spec: str) -> Checkpoint:
    """Read a checkpoint of one of the `FAMILIES`.

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
    normalise, said_of_input, notes = read_preparation(files, config)
    family = FAMILIES[config.model_type]
    fields = {name: getattr(config, name) for name in family.fields if hasattr(config, name)}
    tensors, unused = read_tensors(files, skeleton(config, spec), family.prefixes, fields)
    # Names that stay the same when a folder moves or a hub model is named by its alias: they are
    # compared when a run is resumed.
    name, where = (Path(source).resolve().name, "local folder") if files.local else (source, "hub")
    unused += [name for name in tensors if name.startswith("adapter.")]
    notes += _not_used(files, said, unused, family.prefixes)
    mask_embedding = tensors.get(MASK_EMBEDDING)
    if mask_embedding is not None and not mask_embedding.isfinite().all():
        del tensors[MASK_EMBEDDING]
        notes.append(f"not used: its mask embedding ({MASK_EMBEDDING}), which is not finite")
    origin = {"model": name, "source": where, "revision": commit or revision or "none"}
    return _checkpoint(origin, tensors, config, normalise, said_of_input, tuple(notes))


def _checkpoint(
    origin: Mapping[str, str],
    tensors: dict[str, Tensor],
    config: Any,
    normalise: bool,
    said: str,
    notes: tuple[str, ...] = (),
) -> Checkpoint:
    # The mask embedding serves pretraining and `--augment latent` only, and hub copies differ in having
    # it, so it does not tell one model from another.
    mask_embedding = tensors.pop(MASK_EMBEDDING, None)
    # Over names, shapes and fp32 values: the same for every file format of one model.
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].contiguous().view(-1).numpy().data)
    read = {"weights": digest.hexdigest(), "normalisation": said}
    provenance = {**origin, **read, **FAMILIES[config.model_type].provenance}
    return Checkpoint(tensors, config, normalise, provenance, mask_embedding, notes)


def _not_used(
    files: CheckpointFiles, said: Mapping[str, Any], unused: list[str], prefixes: tuple[str, ...]
) -> list[str]:
    """What of a checkpoint is not used, a line each."""
    notes = describe_unused(unused, (*prefixes, "model."))
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


def _read_extractor(files: CheckpointFiles) -> tuple[Mapping[str, Any], Path, str] | None:
    """What `AutoFeatureExtractor` would read, the file, and where in it, with a dot behind; or None."""
    processor = files.find(PROCESSOR)
    values = {} if processor is None else files.read_json(processor)
    field = next((name for name in _NESTED if name in values), None)
    if processor is not None and field is not None and values[field] is not None:
        nested = values[field]
        if not isinstance(nested, dict):
            raise files.refusal(processor, f"{field} is {json_type(nested)} where an object belongs")
        return nested, processor, f"{field}."
    preprocessor = files.find(PREPROCESSOR)
    if preprocessor is not None:
        return files.read_json(preprocessor), preprocessor, ""
    if processor is not None and any(name in values for name in _FLAT):
        return values, processor, ""
    return None


def read_preparation(files: CheckpointFiles, config: Any) -> tuple[bool, str, list[str]]:
    """How a waveform becomes the model's input: whether it is normalised to zero mean and unit variance;
    the same for the run's settings, with where it was read in parentheses; notes for the screen.

    Raises ModelError for what is malformed, or what hser does not compute.
    """
    from huggingface_hub import is_offline_mode

    front_end = FAMILIES[config.model_type].front_end
    extractor = _read_extractor(files)
    if extractor is not None:
        normalise = _check_extractor(files, *extractor, config)
        if front_end is not None:
            return (*assumed_preparation(config), [])
        return normalise, f"{normalise} ({extractor[1].name})", []
    if files.not_cached and not is_offline_mode():
        # It may well be there: an assumption would be another one when the network is back.
        raise ModelError(
            f"model {files.spec!r}: {files.where} has {_NONE}; try again with a network, or set"
            " HF_HUB_OFFLINE=1 to take what is in the cache for all there is"
        )
    normalise, said = assumed_preparation(config, f"assumed: {_NONE}")
    if front_end is not None:
        what, said = said, f"{said} (assumed: {_NONE})"
    else:
        does = "to zero mean and unit variance" if normalise else "as it is"
        norm = config.feat_extract_norm
        what = f"that the model takes each recording {does} (feat_extract_norm is {norm!r})"
    return normalise, said, [f"assumed {what}: {files.where} has {_NONE}, which would say it"]


def assumed_preparation(config: Any, why: str = "") -> tuple[bool, str]:
    """Where no file says anything: by the kind of norm, as the published checkpoints have it."""
    family = FAMILIES[config.model_type]
    if family.front_end is not None:
        return False, f"log-mel as {family.feature_extractor}"
    normalise = config.feat_extract_norm == "layer"
    return normalise, f"{normalise} ({why}; by feat_extract_norm)"


def _check_extractor(
    files: CheckpointFiles, values: Mapping[str, Any], path: Path, field: str, config: Any
) -> bool:
    """That hser computes what the file asks for; whether it asks for normalised waveforms."""
    family = FAMILIES[config.model_type]

    def refuse(problem: str, remedy: str) -> ModelError:
        return files.refusal(path, f"{field}{problem}", remedy)

    computed = family.feature_extractor
    kind = values.get("feature_extractor_type", computed)
    if kind != computed:
        raise refuse(
            f"feature_extractor_type is {kind!r}", f"hser computes {computed} for a {config.model_type}"
        )
    rate = values.get("sampling_rate", SAMPLE_RATE)
    if isinstance(rate, bool) or not isinstance(rate, int | float):
        raise refuse(f"sampling_rate is {json_type(rate)} ({rate!r})", "it must be a number")
    if rate != SAMPLE_RATE:
        raise refuse(
            f"sampling_rate is {rate}: takes audio at {rate} Hz", f"hser encodes at {SAMPLE_RATE} Hz"
        )
    if family.front_end is not None:
        for name, value in family.front_end(config).items():
            asked = values.get(name, value)
            if asked != value:
                raise files.refusal(path, f"has {name} {asked}", f"hser computes {value:g} for it")
        return False
    normalise = values.get("do_normalize", True)  # the reference's own default
    if not isinstance(normalise, bool):
        raise refuse(f"do_normalize is {json_type(normalise)} ({normalise!r})", "it must be true or false")
    return normalise


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
        config = architecture(MODELS[name].family, MODELS[name].architecture)
    elif path.exists():
        folder = path if path.is_dir() else path.parent
        files = CheckpointFiles(spec, str(folder))
        config, _, _ = read_architecture(files, None if path.is_dir() else path)
    else:
        raise ModelError(unknown("architecture", name, MODELS) + "; or the path of a config")
    skeleton(config, spec)  # whether it fits in memory
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = FAMILIES[config.model_type].make(config)
    tensors = {name: tensor.float() for name, tensor in model.state_dict().items()}
    called = name if name in MODELS else path.resolve().name
    origin = {"model": f"{RANDOM}{called}", "source": f"random weights, seed {seed}", "revision": "none"}
    return _checkpoint(origin, tensors, config, *assumed_preparation(config, "random weights"))


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
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise files.refusal(path, f"model_type is of the kind {kind!r}", f"hser runs {', '.join(FAMILIES)}")
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
    fields = FAMILIES[kind].fields
    for name, check in fields.items():
        problem = check(values[name]) if name in values else None
        if problem:
            raise files.refusal(path, f"{name} is {_shown(values[name])}: {problem}")
    given = {name: values[name] for name in fields if name in values}
    if "layer_norm_eps" in given:
        given["layer_norm_eps"] = float(given["layer_norm_eps"])
    default = architecture(kind, {})
    full = {name: given.get(name, getattr(default, name, None)) for name in fields}
    for names, holds, wanted in RELATIONS:
        if full.keys() >= {*names} and not holds(*(full[name] for name in names)):
            named = ", ".join(f"{name} {_shown(full[name])}" for name in names)
            raise files.refusal(path, f"{named}: {wanted}")
    return architecture(kind, given)


def skeleton(config: Any, spec: str) -> Mapping[str, Any]:
    """Names and shapes of the weights that a config asks for, without any memory: ``meta`` tensors.

    Raises ModelError where they are more than this machine's memory holds.
    """
    # On the meta device initialising costs nothing, but it draws all the same.
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        wanted: Mapping[str, Tensor] = FAMILIES[config.model_type].make(config).state_dict()
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
