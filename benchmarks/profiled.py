"""Profiles of the models that the encoder's benchmark has measured: a trace and a page each."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import encoder
from benchmarks.breakdown import page, result, trace_batches
from benchmarks.common import machine
from benchmarks.encoder import Settings, batch_encoder, jobs
from benchmarks.kernels import Clock, copy_speed
from benchmarks.lengths import find, label, read
from extractor.encoders import Model, resolve_device
from extractor.types import Seconds

# Audio in a trace: two batches on a CPU, a few on a GPU; a trace of more is too large to look at.
AUDIO: dict[str, Seconds] = {"cpu": 60.0, "cuda": 960.0}


def profile_rows(rows: Sequence[dict[str, Any]], settings: Settings, folder: Path) -> None:
    """Add ``breakdown`` to each row, print it, and write it and the trace into ``folder``.

    On a CPU in one thread, as a stream of the engine has, against what one core gives.
    """
    device = resolve_device(settings.device)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        _profile_rows(rows, settings, folder, device)
    finally:
        torch.set_num_threads(threads)


def _profile_rows(
    rows: Sequence[dict[str, Any]], settings: Settings, folder: Path, device: torch.device
) -> None:
    names = [(model, lengths) for model in settings.models for lengths in settings.lengths]
    most = AUDIO.get(device.type, AUDIO["cpu"])
    seconds = most if settings.seconds is None else min(most, settings.seconds)
    copy = copy_speed(Clock.on(device.type), rounds=3)
    for (name, lengths), row in zip(names, rows, strict=True):
        with tempfile.TemporaryDirectory(prefix="hser-profile-") as scratch:
            waveforms = read(find(lengths, seconds, Path(scratch)).files)
        model = Model(f"random:{name}", settings.dtype, device)
        encode, budget = batch_encoder(model)
        stem = f"{name}-{label(lengths).replace(' ', '-')}-{machine()}"
        trace = folder / f"{stem}.trace.json"
        roof = encoder.matrix_roof(encoder.DTYPES[model.dtype], device, cores=1)
        made = trace_batches(model, encode, jobs(waveforms, budget), trace, roof, copy)
        text = page(made, f"{name}, {model.dtype}, {label(lengths)}, {machine()}")
        trace.with_name(f"{stem}.txt").write_text(text, encoding="utf-8")
        print(f"\n{text}trace: {trace}")
        row["breakdown"] = result(made)
