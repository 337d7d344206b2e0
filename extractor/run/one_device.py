"""A run on one device: its inputs read, its model loaded, its batches planned and done."""

from __future__ import annotations

import os
import platform
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from extractor.errors import SettingsError
from extractor.progress import Progress, Summary
from extractor.run.options import Inputs, Options
from extractor.run.recipe import RowRecipe, batch_seconds, settings_of_model
from extractor.types import SAMPLE_RATE, Manifest, Seconds, __version__

if TYPE_CHECKING:
    from extractor.augment.config import Config
    from extractor.augment.copies import Copies
    from extractor.encoders import Model
    from extractor.run.indexing import IndexOption
    from extractor.store.writer import RunWriter

LEAST_PASS: Seconds = 10.0  # in a forward pass, however little memory seems to be free
PACKAGES = ("torch", "torchaudio", "transformers", "numpy", "h5py", "soundfile", "soxr", "av")


def run_here(
    inputs: Inputs,
    options: Options,
    out: str | os.PathLike[str],
    progress: Progress,
    stop: threading.Event,
    index_later: bool = False,
) -> Summary:
    """`run` in this process, on one device.

    ``index_later``: the indexes are not built, only named in the summary: other processes have rows too.
    """
    from extractor.audio.room import room_of
    from extractor.plan.changes import ChangeOptions
    from extractor.plan.run_plan import make_plan
    from extractor.run.indexing import Indexes
    from extractor.run.memory import Memory
    from extractor.run.pipeline import Stages, most_streams, num_streams
    from extractor.run.remarks import remarks
    from extractor.store import Store

    began = time.perf_counter()
    prepared = prepare(inputs, options, progress)
    model, layers = prepared.model, prepared.layers
    recipe = RowRecipe.of(prepared.settings)
    shard, num_shards = options.shard
    # Indexes are finished when the store is.
    with ExitStack() as last, _open_run(out, options, prepared) as writer:
        for message in writer.repaired:
            progress.note(message)
        decoding = replace(
            recipe.decode_options(prepared.workers),
            max_hours=options.max_hours,
            room=room_of(options.decode_memory),
        )
        plan = make_plan(
            writer,
            prepared.manifest,
            round(prepared.budget * SAMPLE_RATE),
            ChangeOptions(decoding, options.retry_failed, options.prune, num_shards == 1, stop),
            progress,
            prepared.copies,
            # Shards divide one plan, which machines of any number of cores must make alike.
            most_streams(model.device.type) if num_shards == 1 else 1,
        )
        indexes = [] if index_later else prepared.indexes
        a_pass = _pass_seconds(options, model, len(layers), prepared.budget, progress)
        stages = Stages(
            plan,
            recipe.encoder(model, layers, prepared.poolings, a_pass, Memory(progress.note)),
            writer,
            decoding,
            num_streams(model.device.type, len(plan.batches)),
            last.enter_context(
                Indexes(out, indexes, layers, options.storage_dtype, plan.num_recordings, progress)
            ),
            prepared.copies,
        )
        summary = Summary(str(out), options.model, recordings=plan.num_recordings, changes=plan.changes)
        summary.padding_share = plan.padding_share(model.encoder)
        summary.setup_seconds = time.perf_counter() - began
        summary.indexes = prepared.indexes
        done = writer.done()
        mine = range(shard, len(plan.batches), num_shards)
        todo = [b for b in mine if b not in done and len(plan.batches[b])]
        stages.run(todo, progress, summary, stop)
    for warning in writer.warnings:
        progress.note(warning)
    with Store(out) as store:
        summary.stored, summary.failures = len(store), store.errors
        summary.notes = [] if index_later else remarks(store)
    return summary


@dataclass(frozen=True, slots=True)
class PreparedRun:
    """What a run is to do, with its inputs read and its model loaded."""

    manifest: Manifest
    copies: Copies | None
    model: Model
    layers: tuple[int, ...]
    poolings: tuple[str, ...]
    indexes: Sequence[IndexOption]
    budget: Seconds  # audio in a batch
    workers: int
    settings: Mapping[str, object]


def prepare(inputs: Inputs, options: Options, progress: Progress) -> PreparedRun:
    """Refuse what cannot work, the cheapest first; then load the model. Nothing is written."""
    from extractor.audio.readers import backends
    from extractor.augment import to_text
    from extractor.augment.copies import Copies, configured
    from extractor.encoders import Model, format_layers, parse_layers, resolve_device, resolve_dtype
    from extractor.encoders.pooling import parse_poolings
    from extractor.inputs.corpora.words import parse_renames
    from extractor.inputs.manifest import read_manifest
    from extractor.run.indexing import parse_indexes
    from extractor.run.pipeline import num_cores

    parse_layers(options.layers)  # the form only: the model is not known yet
    poolings, device = parse_poolings(options.pooling), resolve_device(options.device)
    resolve_dtype(options.dtype, device)
    config = configured(options.augment, options.augment_config, options.copies, options.seed, options.clean)
    manifest = read_manifest(inputs, options.corpus, parse_renames(options.map))
    corpus = "no corpus recognised" if manifest.corpus == "files" else f"corpus {manifest.corpus}"
    progress.note(f"{len(manifest):,} recordings ({corpus})")
    for note in manifest.notes:
        progress.note(note)
    workers = options.workers or min(8, num_cores())
    copies = None if config is None else Copies(config, manifest, workers)

    model = Model(options.model, options.dtype, device)
    for note in model.notes:
        progress.note(f"{options.model}: {note}")
    layers = parse_layers(options.layers, model.encoder.num_layers)
    indexes = parse_indexes(options.index, layers, model.encoder.num_layers, poolings)
    window = _window(options, model)
    recipe = RowRecipe(options.channel, options.resample, model.dtype, window, options.storage_dtype)
    settings = {  # what makes an embedding: compared when a run is resumed, each by name
        **settings_of_model(model.provenance),
        "layers": format_layers(layers),
        "pooling": ",".join(poolings),
        **recipe.settings(),
        "augmentation": "none" if config is None else to_text(config.augmentation),
        **({} if config is None else {"copies": config.copies, "seed": config.seed, "clean": config.clean}),
    }
    if model.dtype == "int8":
        from extractor.run.fidelity import check_int8

        decoding = recipe.decode_options(workers, checksum=False)
        check_int8(model, manifest.utterances, decoding, "none" in poolings, progress)
    if window < options.window:
        progress.note(f"windows of {window:g} s: {options.model} takes no more at once")
    progress.note(
        f"{options.model} in {model.dtype} on {device}, layers {settings['layers']};"
        f" decoding with {', '.join(backends())}"
    )
    if config is not None:
        _check_augmentation(config, model, progress)
    budget = options.batch_seconds or batch_seconds(device, model.spectral)
    return PreparedRun(manifest, copies, model, layers, poolings, indexes, budget, workers, settings)


def _check_augmentation(config: Config, model: Model, progress: Progress) -> None:
    from cuda_kernels.backend import resolve
    from extractor.augment import to_text

    if config.augmentation.inside_encoder and not model.encoder.can_mask:
        why = "has no CNN" if model.spectral else "has no mask embedding (masked_spec_embed)"
        raise SettingsError(
            f"--augment latent: {model.spec} {why}, so its latent features cannot be masked;"
            " take another model, or specaugment in its place"
        )
    clean = "each recording and" if config.clean else "of each recording"
    copies = "1 augmented copy" if config.copies == 1 else f"{config.copies} augmented copies"
    progress.note(
        f"{clean} {copies}: {to_text(config.augmentation)}, seed {config.seed};"
        f" kernels: {resolve('auto', model.device)}"
    )


def _window(options: Options, model: Model) -> Seconds:
    """The window that was asked for, or what the model takes at once where that is less."""
    from extractor.plan.windows import OVERLAP

    if model.encoder.max_samples is None:
        return options.window
    context = model.encoder.max_samples / SAMPLE_RATE
    if context <= 2 * OVERLAP:
        raise SettingsError(
            f"{options.model} takes {context:g} seconds at once; windows need more than {2 * OVERLAP:g}"
        )
    return min(options.window, context)


def _pass_seconds(
    options: Options, model: Model, num_layers: int, budget: Seconds, progress: Progress
) -> Seconds:
    """Audio in a forward pass: a batch's, or on CUDA what its memory holds. Rows do not depend on it."""
    import torch

    from extractor.run.memory import fitting_seconds

    if model.device.type != "cuda" or model.spectral or options.batch_seconds is not None:
        return budget
    free, _ = torch.cuda.mem_get_info(model.device)
    encoder = model.encoder
    fits = fitting_seconds(free, encoder.dim, num_layers, model.dtype, SAMPLE_RATE / encoder.stride)
    # More than a batch makes nothing faster; the least is tried in any case (`Memory`).
    seconds = float(min(budget, max(LEAST_PASS, int(fits))))
    progress.note(
        f"at most {seconds:g} s of audio in a forward pass: {free / 2**30:.1f} GiB of memory are free"
    )
    return seconds


def _open_run(out: str | os.PathLike[str], options: Options, prepared: PreparedRun) -> RunWriter:
    import torch

    from extractor.audio.readers import backends
    from extractor.encoders.pooling import POOLINGS
    from extractor.store.run_folder import CORPUS
    from extractor.store.writer import RunWriter

    model, manifest, device = prepared.model, prepared.manifest, prepared.model.device.type
    # What there is to say of labels is read from the rows, whose labels may be others later.
    notes = [note for note in manifest.notes if note not in manifest.label_notes]
    return RunWriter.open(
        Path(out),
        settings=prepared.settings,
        environment={  # stored, not compared
            # As it can be named from anywhere on this machine, to encode queries with it later.
            "model_spec": str(Path(options.model).resolve())
            if Path(options.model).is_dir()
            else options.model,
            CORPUS: manifest.corpus,
            **({"notes": notes} if notes else {}),
            **({"model_notes": list(model.notes)} if model.notes else {}),
            "hser": __version__,
            "python": platform.python_version(),
            **{package: _version(package) for package in PACKAGES},
            "decoders": ",".join(backends()),
            "device": torch.cuda.get_device_name() if device == "cuda" else platform.processor() or device,
            "system": f"{platform.system()} {platform.machine()}",
        },
        columns=manifest.columns if prepared.copies is None else prepared.copies.columns,
        layers=prepared.layers,
        dim={name: POOLINGS[name].width * model.encoder.dim for name in prepared.poolings},
        shard=options.shard,
        storage_dtype=options.storage_dtype,
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"
