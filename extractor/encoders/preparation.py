"""What a checkpoint says of its input: whether waveforms are normalised, at which rate, by which front end.

Where it says so is `transformers`' matter (`FeatureExtractionMixin.get_feature_extractor_dict`, 5.24), and
its precedence is kept:

    processor_config.json      under `feature_extractor`, or `audio_processor`: how transformers 5 saves
    preprocessor_config.json   flat: how transformers 4 saves, and a feature extractor by itself
    processor_config.json      flat, which transformers does not read; better than a guess

Where none of them says anything, it is assumed, and called so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from extractor.encoders.checkpoint_files import CheckpointFiles, json_type
from extractor.encoders.families import FAMILIES
from extractor.errors import ModelError
from extractor.types import SAMPLE_RATE

PROCESSOR = "processor_config.json"
PREPROCESSOR = "preprocessor_config.json"
_NESTED = ("feature_extractor", "audio_processor")  # the first that is there, as in the reference
_FLAT = ("feature_extractor_type", "do_normalize", "sampling_rate")  # any of them tells a flat one
_NONE = f"no {PREPROCESSOR} or {PROCESSOR}"


@dataclass(frozen=True, slots=True)
class Preparation:
    """How a waveform becomes the model's input."""

    normalise: bool  # zero mean and unit variance over each utterance's own samples
    said: str  # for the run's settings, the value first, then in parentheses where it was read
    note: str | None = None  # for the screen, where it is assumed


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


def read_preparation(files: CheckpointFiles, config: Any) -> Preparation:
    """Raises ModelError for what is malformed, or what hser does not compute."""
    from huggingface_hub import is_offline_mode

    family = FAMILIES[config.model_type]
    extractor = _read_extractor(files)
    if extractor is not None:
        values, path, field = extractor
        _check(files, values, path, field, config)
        if family.front_end is not None:
            return assumed_preparation(config)
        normalise = values.get("do_normalize", True)  # the reference's own default
        return Preparation(normalise, f"{normalise} ({path.name})")
    if files.not_cached and not is_offline_mode():
        # It may well be there: an assumption would be another one when the network is back.
        raise ModelError(
            f"model {files.spec!r}: {files.where} has {_NONE}; try again with a network, or set"
            " HF_HUB_OFFLINE=1 to take what is in the cache for all there is"
        )
    assumed = assumed_preparation(config, f"assumed: {_NONE}")
    if family.front_end is not None:
        what = assumed.said
        assumed = Preparation(False, f"{what} (assumed: {_NONE})")
    else:
        does = "to zero mean and unit variance" if assumed.normalise else "as it is"
        norm = config.feat_extract_norm
        what = f"that the model takes each recording {does} (feat_extract_norm is {norm!r})"
    note = f"assumed {what}: {files.where} has {_NONE}, which would say it"
    return Preparation(assumed.normalise, assumed.said, note)


def assumed_preparation(config: Any, why: str = "") -> Preparation:
    """Where no file says anything: by the kind of norm, as the published checkpoints have it."""
    family = FAMILIES[config.model_type]
    if family.front_end is not None:
        return Preparation(False, f"log-mel as {family.feature_extractor}")
    normalise = config.feat_extract_norm == "layer"
    return Preparation(normalise, f"{normalise} ({why}; by feat_extract_norm)")


def _check(files: CheckpointFiles, values: Mapping[str, Any], path: Path, field: str, config: Any) -> None:
    """That hser computes what the file asks for."""
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
        return
    normalise = values.get("do_normalize", True)
    if not isinstance(normalise, bool):
        raise refuse(f"do_normalize is {json_type(normalise)} ({normalise!r})", "it must be true or false")
