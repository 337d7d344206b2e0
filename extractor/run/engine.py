"""The main job: recordings in, a store of pooled embeddings out.

    inputs -> manifest -> probe -> plan            what there is, before any audio is decoded
           -> decode ahead -> augment -> encode + pool -> commit, index      batch by batch

A run can be stopped or killed at any moment; the same call goes on where it ended.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from extractor.errors import SettingsError
from extractor.progress import Progress, Silent, Summary
from extractor.run.options import Inputs, Options, check

if TYPE_CHECKING:
    from extractor.store import Store


def extract(
    inputs: Inputs,
    model: str = "hubert-large",
    layers: str | int | Sequence[int] = "all",
    out: str | os.PathLike[str] = "runs/embeddings",
    pooling: str | Sequence[str] = "mean",
    **options: object,
) -> Store:
    """Embed recordings and return the store; what is in the store already is not done again.

    Args:
        inputs: a folder, a file, a glob, a CSV/TSV/JSONL manifest, or several of them.
        model: a name, a folder in the hub's layout, or a hub id; see `hser-extract --help`.
        layers: ``"all"``, ``"last"``, ``"0,6,12"``, ``"0-24"``, ``"-4--1"`` or numbers.
        out: folder of the run.
        pooling: one or several of mean, std, min, max, first, last, meanstd, none.
        **options: further fields of `Options`.

    Raises:
        HserError: inputs, settings, model or store cannot be used; nothing that is stored is lost.
        A recording that cannot be embedded raises nothing: see ``store.errors``.
    """
    from extractor.store import Store

    try:
        made = Options(model=model, layers=layers, pooling=pooling, **options)  # type: ignore[arg-type]
    except TypeError as e:
        raise SettingsError(f"extract(): {e}") from e
    run(inputs, made, out)
    return Store(out)


def run(
    inputs: Inputs,
    options: Options,
    out: str | os.PathLike[str],
    progress: Progress | None = None,
    stop: threading.Event | None = None,
) -> Summary:
    """Do what `extract` says, and say how it went.

    Args:
        progress: told how far it is.
        stop: once set, the run ends after the batches in flight, with all they gave committed.
    """
    from extractor.run.devices import parse_devices, run_on
    from extractor.run.one_device import run_here

    progress, stop = progress or Silent(), stop or threading.Event()
    check(options)
    devices = parse_devices(options.devices)
    if len(devices) > 1:
        return run_on(devices, inputs, options, out, progress, stop)
    one = replace(options, device=devices[0], devices=()) if devices else options
    return run_here(inputs, one, out, progress, stop)
