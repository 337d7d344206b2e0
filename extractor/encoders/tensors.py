"""A checkpoint's tensors, read by the names that its architecture asks for, in fp32 on the CPU.

Files are safetensors, or pickles that torch reads by ``weights_only``: nothing in them is run. What is
not asked for (heads, a decoder) is never in memory.
"""

from __future__ import annotations

import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from extractor.encoders.checkpoint_files import CheckpointFiles, first_line
from extractor.errors import ModelError

MASK_EMBEDDING = "masked_spec_embed"  # not every copy of a checkpoint has it
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# The two halves of weight norm, as transformers 4 and torch before 2.0 named them.
_OLD_NAMES = (
    (".weight_g", ".parametrizations.weight.original0"),
    (".weight_v", ".parametrizations.weight.original1"),
)
_LAYER = re.compile(r"^(?!.*decoder\.).*\blayers\.(\d+)\.")
_COUNTS = ("num_hidden_layers", "encoder_layers")
_DIRECTION = _OLD_NAMES[1][1]
_LORA = re.compile(r"\.(lora_[A-Za-z_]+|base_layer|modules_to_save)\.")
_ADAPTER = re.compile(r"\.(lora_[A-Za-z_]+|base_layer|modules_to_save|adapter_layer|adapters?)\.")
_QUANTISED = re.compile(
    r"\.(SCB|qweight|qzeros|scales|absmax|quant_map|quant_state\S*|weight_packed|weight_scale\S*)$"
)
# What is read and not run, by the first part of its name.
_PARTS = {
    "classifier": "classification head",
    "projector": "classification head",
    "layer_weights": "classification head",
    "tdnn": "speaker head",
    "objective": "speaker head",
    "lm_head": "CTC head",
    "quantizer": "pretraining head",
    "project_q": "pretraining head",
    "project_hid": "pretraining head",
    "label_embeddings_concat": "pretraining head",
    "final_proj": "pretraining head",
    "decoder": "decoder",
    "proj_out": "decoder",
    "adapter": "adapter",
}

_LISTED = 6  # names of what is not used, in a line
_NOT_ONE_MODEL = "config.json and weights are not of one model: fetch both anew"

Read = Callable[[], Tensor]


def read_tensors(
    files: CheckpointFiles,
    wanted: Mapping[str, Tensor],
    prefixes: Iterable[str],
    fields: Mapping[str, Any],
) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of the names and shapes of ``wanted``, and the names of the others in the checkpoint.

    Args:
        wanted: by the names of the `transformers` base model or encoder.
        fields: of the config, to name those that the weights contradict.
        prefixes: what may stand before these names, where a model with a head was saved.

    Raises:
        ModelError: unreadable, or a tensor is missing, of another shape, no float or not finite. The mask
            embedding alone may be missing.
    """
    found: dict[str, tuple[Path, Read]] = {}
    others: dict[str, Path] = {}
    stem = ""  # what stands before the names of the encoder's own tensors
    with ExitStack() as stack:
        for path in files.weights():
            opened = (
                _safetensors(files, path, stack) if path.suffix == ".safetensors" else _pickle(files, path)
            )
            for name, read in opened.items():
                ours = next((n for n in _names(name, prefixes) if n in wanted), None)
                if ours is None:
                    others[name] = path
                elif ours in found:
                    raise files.refusal(path, f"has {ours} for the second time, as {name}")
                else:
                    found[ours] = (path, read)
                    stem = name.removesuffix(ours) if name.endswith(ours) else stem
        missing = sorted(wanted.keys() - found.keys() - {MASK_EMBEDDING})
        if missing:
            raise _incomplete(files, missing, len(wanted), [*found, *others], fields)
        # What is inside the encoder and yet has no place in it: a bias, a norm, a bias table. Adapters are
        # none of these, nor are layers behind the last that the config has: they can be left out.
        tops = {name.partition(".")[0] for name in wanted if "." in name}
        layers = {match[1] for name in wanted if (match := _LAYER.search(name))}
        for name, path in others.items():
            own = name.removeprefix(stem)
            inside = name.startswith(stem) and "." in own and own.partition(".")[0] in tops
            layer = _LAYER.search(own)
            if inside and not _ADAPTER.search(name) and (layer is None or layer[1] in layers):
                problem = f"has {name}, which the encoder that config.json describes has not"
                raise files.refusal(path, problem, _NOT_ONE_MODEL)
        tensors = {
            name: _checked(files, name, *found[name], wanted[name], fields)
            for name in wanted
            if name in found
        }
    return tensors, sorted(others)


def _names(name: str, prefixes: Iterable[str]) -> Iterator[str]:
    for old, new in _OLD_NAMES:
        if name.endswith(old):
            name = name.removesuffix(old) + new
    yield name
    for prefix in prefixes:
        if name.startswith(prefix):
            yield name.removeprefix(prefix)


def _safetensors(files: CheckpointFiles, path: Path, stack: ExitStack) -> Mapping[str, Read]:
    """What reads the tensors of a file, by name, as long as ``stack`` is open. Raises ModelError."""
    try:
        file = stack.enter_context(safe_open(path, framework="pt", device="cpu"))
        return {name: partial(file.get_tensor, name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError, ValueError) as e:
        raise _unreadable(files, path, e) from e


def _pickle(files: CheckpointFiles, path: Path) -> Mapping[str, Read]:
    try:
        values = _load_pickle(path)
    except Exception as e:  # a pickle can make torch's reader raise anything: the file's own fault
        raise _unreadable(files, path, e) from e
    if not isinstance(values, dict) or not all(isinstance(v, Tensor) for v in values.values()):
        raise files.refusal(
            path,
            "holds something else than tensors by their names",
            "save the model with transformers' save_pretrained",
        )
    return {str(name): partial(torch.Tensor.detach, value) for name, value in values.items()}


def _load_pickle(path: Path) -> Any:
    if not zipfile.is_zipfile(path):
        return torch.load(path, map_location="cpu", weights_only=True)
    with zipfile.ZipFile(path) as entries:
        # torch stores them as they are; packed ones could unpack to anything.
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.infolist()):
            raise ValueError("its entries are compressed, which torch never does")
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def _checked(
    files: CheckpointFiles, name: str, path: Path, read: Read, wanted: Tensor, fields: Mapping[str, Any]
) -> Tensor:
    """One tensor in memory of its own, so that the file may go."""
    try:
        tensor = read()
    except (SafetensorError, OSError, ValueError, RuntimeError) as e:
        raise _unreadable(files, path, e) from e
    if tensor.shape != wanted.shape:
        sizes = {*wanted.shape} - {*tensor.shape}  # and the fields of the config that have such a value
        named = [
            f"{name} {value}"
            for name, value in fields.items()
            if not isinstance(value, bool)
            and sizes & {*(value if isinstance(value, list | tuple) else [value])}
        ]
        by = f" ({', '.join(named)})" if named else ""
        problem = f"{name} is {list(tensor.shape)}, config.json makes it {list(wanted.shape)}{by}"
        raise files.refusal(path, problem, _NOT_ONE_MODEL)
    if tensor.layout is not torch.strided or (wanted.is_floating_point() and tensor.dtype not in _FLOATS):
        problem = f"{name} is of {str(tensor.dtype).removeprefix('torch.')}, which hser does not read"
        raise files.refusal(path, problem, "name the model in fp32, fp16 or bf16")
    tensor = tensor.detach().to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    # The sum of what is not finite is not: that is the fastest pass. Only finite values may overflow in it.
    if name != MASK_EMBEDDING and not tensor.sum().isfinite() and not tensor.isfinite().all():
        raise files.refusal(path, f"{name} has values that are not finite in fp32 (NaN or infinite)")
    if name.endswith("running_var") and tensor.min() < 0:
        raise files.refusal(path, f"{name} has variances below zero")
    if name.endswith(_DIRECTION) and not tensor.norm(dim=(0, 1)).all():
        raise files.refusal(path, f"{name} is zero where weight norm divides by its length")
    return tensor


def _incomplete(
    files: CheckpointFiles, missing: list[str], num_wanted: int, there: list[str], fields: Mapping[str, Any]
) -> ModelError:
    remedy = "is it complete, and is config.json its own?"
    layers = {int(found[1]) for name in there if (found := _LAYER.search(name))}
    count = next((name for name in _COUNTS if name in fields), None)
    if any(_LORA.search(name) for name in there):
        remedy = "it holds an adapter (LoRA): merge it into the model (merge_and_unload), and save that"
    elif any(_QUANTISED.search(name) for name in there):
        remedy = "its weights are quantised: name the model that they were made of"
    elif count and layers and len(layers) < fields[count] and all(map(_LAYER.search, missing)):
        remedy = f"config.json has {count} {fields[count]}, the weights are of {len(layers)}: fetch both anew"
    return ModelError(
        f"model {files.spec!r}: {len(missing)} of the {num_wanted} weights of the config's architecture are"
        f" missing from the checkpoint in {files.source}, {missing[0]} the first; {remedy}"
    )


def _unreadable(files: CheckpointFiles, path: Path, error: Exception) -> ModelError:
    return ModelError(
        f"model {files.spec!r}: cannot read the weights of {files.source}: {path}: {type(error).__name__}:"
        f" {first_line(error)}; it is damaged, or not what its name says: fetch it anew"
    )


def describe_unused(names: Iterable[str], prefixes: Iterable[str]) -> list[str]:
    """A line on the tensors that are read by nothing, if any, by what they belong to."""
    parts: dict[str, Counter[str]] = {}
    prefixes = tuple(prefixes)
    for name in names:
        adapter = _ADAPTER.search(name)
        short = next((name.removeprefix(p) for p in prefixes if name.startswith(p)), name)
        first = adapter[1] if adapter else short.split(".")[0]
        part = _PARTS.get(first, "")
        if adapter:
            part = "adapter (LoRA), not applied" if _LORA.search(name) else "adapter, not applied"
        if not part:
            first, part = ".".join(short.split(".")[:3]), "others"
        parts.setdefault(part, Counter())[first] += 1
    lines = []
    for part, counts in parts.items():
        names = ["".join(c if c.isprintable() else "?" for c in name) for name in counts]
        listed = ", ".join(names[:_LISTED]) + (f", {len(names) - _LISTED} more" if names[_LISTED:] else "")
        lines.append(f"{part} ({listed}: {counts.total()} tensor{'s' if counts.total() != 1 else ''})")
    return [f"not used of the checkpoint: {'; '.join(lines)}"] if lines else []
