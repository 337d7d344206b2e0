"""Augmented copies as audio, to listen to or to use elsewhere: the plan and decoding of a run, no encoder.

inputs -> manifest -> probe -> recipes -> decode ahead -> augment -> one WAV a copy, manifest.csv
"""

from __future__ import annotations

import csv
import os
import struct
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from extractor.errors import SettingsDiffer, SettingsError, StoreUnwritable
from extractor.progress import Counts, Progress, Silent, showing
from extractor.types import SAMPLE_RATE, Failure, Seconds, Utterance

if TYPE_CHECKING:
    import numpy as np

    from extractor.augment.config import Config

BATCH: Seconds = 60.0  # audio decoded and augmented at once
WAV_FLOAT = 3  # the format's code for samples that are floats
MANIFEST = "manifest.csv"
ERRORS = "errors.csv"


@dataclass(frozen=True, slots=True)
class Copy:
    """One augmented recording, and what it was."""

    utterance: Utterance
    before: np.ndarray  # float32 [n], 16 kHz
    after: np.ndarray  # float32 [n']
    recipe: str


@dataclass(slots=True)
class RenderSummary:
    """What came of it."""

    written: int = 0
    audio: Seconds = 0.0
    failures: list[Failure] = field(default_factory=list)


def render(
    inputs: Sequence[str | os.PathLike[str]],
    config: Config,
    out: str | os.PathLike[str],
    corpus: str | None = None,
    device: str = "auto",
    limit: int | None = None,
    on_copy: Callable[[Copy, Path], None] | None = None,
    progress: Progress | None = None,
    stop: threading.Event | None = None,
    force: bool = False,
) -> RenderSummary:
    """Write each copy as ``out/<id>.wav`` (float32, 16 kHz, mono) and ``out/manifest.csv`` about them.

    `hser-extract` reads that manifest, labels and all. ``limit``: take the first so many recordings.
    ``on_copy`` is called with each augmented copy and the path of its WAV. Recordings that cannot be
    read or augmented are in ``out/errors.csv`` and in the result. Raises HserError where nothing can be
    done as asked, SettingsDiffer where ``out`` has a manifest of other copies, unless ``force``.
    """
    import torch

    from extractor.audio.decode import DecodeOptions
    from extractor.augment.copies import Copies
    from extractor.encoders import resolve_device
    from extractor.inputs.manifest import read_manifest
    from extractor.plan.run_plan import plan_without_run
    from extractor.run.batch import augmented, stage
    from extractor.run.pipeline import decoded_batches, num_cores

    if config.augmentation.inside_encoder:
        raise SettingsError("--augment latent: masks are made inside the encoder; there is nothing to hear")
    if limit is not None and limit < 1:
        raise SettingsError(f"--limit {limit}: must be at least 1")
    progress, stop = progress or Silent(), stop or threading.Event()
    on, workers = resolve_device(device), min(8, num_cores())
    manifest = read_manifest(inputs, corpus)
    if limit is not None:
        manifest = replace(manifest, utterances=manifest.utterances[:limit])
    copies = Copies(config, manifest, workers)
    plan, unplanned = plan_without_run(manifest, round(BATCH * SAMPLE_RATE), workers, progress, copies)
    folder = Path(out)
    if not force:
        _refuse_other_copies(folder / MANIFEST, {u.id: u.labels[-1] for u in plan.utterances})
    result = RenderSummary(failures=unplanned)
    todo = range(len(plan.batches))
    recordings = sum(map(len, plan.batches))
    done = 0
    rows: dict[int, list[str]] = {}
    with (
        showing(progress, "augmenting", recordings, plan.audio(todo)),
        decoded_batches(plan, todo, DecodeOptions(workers=workers, checksum=False), copies) as batches,
        torch.inference_mode(),
    ):
        for batch in batches:
            good, failed = augmented(stage(batch, on))
            result.failures += failed
            for row, waveform in good:
                assert row.recipe is not None
                copy = Copy(row.utterance, row.decoded.waveform, waveform.cpu().numpy(), row.recipe.text)
                path = folder / file_name(copy.utterance.id)
                with _writing(path):
                    path.write_bytes(wav_bytes(copy.after))
                if on_copy is not None and copies.number(copy.utterance):
                    on_copy(copy, path)
                name = path.relative_to(folder).as_posix()
                rows[row.position] = [name, copy.utterance.id, *copy.utterance.labels]
                result.written += 1
                result.audio += len(copy.after) / SAMPLE_RATE
            done += len(plan.batches[batch.index])
            progress.update(Counts(done, result.audio))
            if stop.is_set():
                break
    _write_table(folder / MANIFEST, ["path", "id", *copies.columns], [rows[k] for k in sorted(rows)])
    if result.failures:
        failures = [[f.id, f.path, f.stage, f.reason] for f in result.failures]
        _write_table(folder / ERRORS, ["id", "path", "stage", "reason"], failures)
    return result


def _refuse_other_copies(path: Path, planned: Mapping[str, str]) -> None:
    """A manifest that is there is overwritten by one of the same copies only.

    ``planned``: recipes by id. One that was stopped half-way, or of fewer copies, is a part of them.
    """
    remedy = "name another --out, or overwrite it with --force"
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            there = {row["id"]: row["augmentation"] for row in csv.DictReader(file)}
    except FileNotFoundError:
        return
    except (OSError, KeyError, csv.Error):
        raise SettingsDiffer(f"{path}: exists, and hser-augment did not write it; {remedy}") from None
    for name, recipe in there.items():
        if planned.get(name) != recipe:
            now = f"would be {planned[name]} now" if name in planned else "would not be made now"
            raise SettingsDiffer(
                f"{path}: made with other settings: {name} is {recipe} there, and {now}; {remedy}"
            )


def file_name(utterance_id: str) -> str:
    """A path below the output folder, whatever the id holds: ``a/b~1`` is ``a/b~1.wav``."""
    parts = [part for part in utterance_id.split("/") if part not in ("", ".", "..")]
    safe = [quote(part.encode("utf-8", "surrogatepass"), safe=" ~@#+,()[]{}=!&'$;") for part in parts]
    return "/".join(safe or ["recording"]) + ".wav"


def wav_bytes(waveform: np.ndarray) -> bytes:
    """A mono WAV of float32: whole numbers would cut off what is louder than they hold.

    Written here, since libsndfile puts the time of day into such a file (its PEAK chunk): the same audio
    is to be the same bytes.
    """
    data = waveform.astype("<f4").tobytes()
    form = struct.pack("<HHIIHHH", WAV_FLOAT, 1, SAMPLE_RATE, 4 * SAMPLE_RATE, 4, 32, 0)
    chunks = [(b"fmt ", form), (b"fact", struct.pack("<I", len(waveform))), (b"data", data)]
    body = b"WAVE" + b"".join(name + struct.pack("<I", len(chunk)) + chunk for name, chunk in chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise StoreUnwritable(f"{path}: cannot be written: {error.strerror}") from error


def _write_table(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    with _writing(path), path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        csv.writer(file).writerows([header, *rows])
