"""hser against other ways to the same embeddings, all layers mean-pooled, of the same recordings in one run.

    python -m benchmarks.encoder    (other models, lengths and contenders: `hser-bench`)

Contenders, with random weights:

    loop, best, torchaudio   see `baselines`; the fastest way and batch size of each are tried first
    hser                     the bare encoder: packed batches, every layer pooled as it is produced
    command                  all of `hser-extract` from files to store, without the set-up
    int8                     hser in int8 (`--int8`): in the same run, so that its ratio means something

They take turns; figures are audio seconds per second, median and range. `command` keeps a share of
`hser`. MFU is the share of the machine's own matrix products, measured here too; work on padding does not
count for it. Memory is what a contender takes beside all models' weights, measured in one call more. Rows of
other models and lengths stay in the result file.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks import harness
from benchmarks.baselines import BASELINES, CANNOT, Baseline, Workload, first_line
from benchmarks.readme import SPEEDS
from benchmarks.stand_ins import audio_seconds, find, label, lengths_of, read, thinned
from extractor.encoders import Model, resolve_device, resolve_dtype
from extractor.encoders.families import MODELS
from extractor.encoders.linear import Linear
from extractor.errors import SettingsError, unknown
from extractor.plan.batches import plan_batches
from extractor.run.batch import BatchEncoder, DecodedBatch
from extractor.run.engine import run
from extractor.run.options import Options
from extractor.run.pipeline import most_streams, num_cores, num_streams, threads_of
from extractor.run.recipe import batch_seconds
from extractor.types import SAMPLE_RATE, BatchResult, Decoded, Seconds, Utterance

CONTENDERS = (*BASELINES, "hser", "command", "int8")
# Audio for each contender but the loop, and for the loop: a second or two of work, or more.
AUDIO: Mapping[str, Seconds] = {"cpu": 240.0, "cuda": 4800.0}
LOOP_AUDIO: Mapping[str, Seconds] = {"cpu": 24.0, "cuda": 60.0}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True)
class Settings:
    """What is measured."""

    models: tuple[str, ...] = ("hubert-large", "wavlm-large")
    lengths: tuple[str, ...] = ("emodb",)  # rows of `stand_ins.CORPORA`, or seconds
    contenders: tuple[str, ...] = ("loop", "best", "hser", "command")
    device: str = "auto"
    dtype: str = "auto"
    rounds: int = 5
    seconds: Seconds | None = None  # of audio; None: by device
    loop_seconds: Seconds | None = None
    compiled: bool | None = None  # torch.compile for `best`; None: on CUDA

    def check(self) -> None:
        """Raises SettingsError before anything is loaded."""
        for name in self.models:
            if name not in MODELS or MODELS[name].family == "whisper":
                known = [m for m in MODELS if MODELS[m].family != "whisper"]
                raise SettingsError(unknown("model", name, known))
        for name in self.lengths:
            lengths_of(name)
        for name in self.contenders:
            if name not in CONTENDERS:
                raise SettingsError(unknown("contender", name, CONTENDERS))
        if "int8" in self.contenders:
            resolve_dtype("int8", resolve_device(self.device))


# --- What runs ----------------------------------------------------------------------------------


def planned_batches(waveforms: Sequence[np.ndarray], budget: Seconds, streams: int = 1) -> list[DecodedBatch]:
    """Batches as the engine plans them, of so much audio."""
    lengths = np.array([len(w) for w in waveforms])
    planned = plan_batches(lengths, round(budget * SAMPLE_RATE), streams=streams)
    return [
        DecodedBatch.of(
            b,
            members.tolist(),
            [Utterance(str(i), "") for i in members],
            [Decoded(waveforms[i], "") for i in members],
        )
        for b, members in enumerate(planned)
    ]


def batch_encoder(model: Model, budget: Seconds | None = None) -> tuple[BatchEncoder, Seconds]:
    """As the engine sets it up: all layers, mean; and the audio in a batch, the engine's if none is given."""
    budget = batch_seconds(model.device, model.spectral) if budget is None else budget
    layers = tuple(range(model.encoder.num_layers))
    return BatchEncoder(model, layers, ("mean",), 60 * SAMPLE_RATE, round(budget * SAMPLE_RATE)), budget


def mean_pooled(model: Model, waveforms: Sequence[np.ndarray]) -> np.ndarray:
    """float32 ``[U, L, D]`` of all layers, all recordings in one batch."""
    encode, budget = batch_encoder(model, 600.0)
    [batch] = planned_batches(waveforms, budget)
    return encode(batch).pooled["mean"][np.argsort([row.position for row in batch.rows])]


def bare(encode: BatchEncoder, planned: Sequence[DecodedBatch], seconds: Seconds) -> float:
    """The encoder and the pooling alone, in as many streams as the engine takes."""
    streams = num_streams(encode.model.device.type, len(planned))

    def encode_in_its_threads(batch: DecodedBatch) -> BatchResult:
        torch.set_num_threads(threads_of(batch.index, len(planned), streams))
        return encode(batch)

    before = torch.get_num_threads()
    began = time.perf_counter()
    with ThreadPoolExecutor(streams) as pool:
        for result in pool.map(encode_in_its_threads, planned):
            assert not result.failures
    speed = seconds / (time.perf_counter() - began)
    torch.set_num_threads(before)
    return speed


def command(files: Sequence[str], model: str, dtype: str) -> float:
    """From files to store. The set-up (imports, weights, headers) is not counted: it is done once."""
    with tempfile.TemporaryDirectory() as folder:
        return run(list(files), Options(model=f"random:{model}", dtype=dtype), Path(folder) / "run").speed


def matrix_roof(dtype: torch.dtype, device: torch.device, cores: int | None = None) -> float:
    """FLOP/s of a large matrix product by the library, all cores or the whole GPU: the roof."""
    on_cuda = device.type == "cuda"
    n = 8192 if on_cuda else 1024
    weight = torch.randn(4 * n, n) * 0.02
    linear = Linear(weight, None, dtype, device)
    x = torch.randn(n if on_cuda else 750, n).to(device, dtype)
    streams = 1 if on_cuda else cores or num_cores()

    def products(_: int) -> None:
        with torch.inference_mode():
            for _ in range(20):
                linear(x)
        if on_cuda:
            torch.cuda.synchronize()

    speeds = []
    for _ in range(5):
        with ThreadPoolExecutor(streams, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            began = time.perf_counter()
            list(pool.map(products, range(streams)))
        speeds.append(20 * streams * 2 * x.shape[0] * weight.numel() / (time.perf_counter() - began))
    return median(speeds)


# --- One row ------------------------------------------------------------------------------------


def measure(name: str, files: Sequence[str], settings: Settings) -> dict[str, Any]:
    """One model on some recordings: a row of the result file but for what the recordings are."""
    device = resolve_device(settings.device)
    waveforms = read(files)
    seconds = audio_seconds(waveforms)
    model = Model(f"random:{name}", settings.dtype, device)
    dtype = DTYPES[model.dtype]
    encode, budget = batch_encoder(model)
    planned = planned_batches(waveforms, budget, most_streams(device.type))
    few = thinned(files, settings.loop_seconds or LOOP_AUDIO.get(device.type, LOOP_AUDIO["cpu"]))
    compiled = device.type == "cuda" if settings.compiled is None else settings.compiled
    prepared: dict[str, Baseline] = {}
    missing: dict[str, str] = {}
    for who in (name for name in settings.contenders if name in BASELINES):
        try:
            prepared[who] = BASELINES[who](Workload(name, dtype, device, waveforms, few, compiled))
        except CANNOT as error:
            missing[who] = first_line(error)
            continue
        missing |= {f"{who}: {way}": why for way, why in prepared[who].missing.items()}
    runs: dict[str, Callable[[], float]] = {who: baseline.run for who, baseline in prepared.items()}
    if "hser" in settings.contenders:
        runs["hser"] = lambda: bare(encode, planned, seconds)
    if "command" in settings.contenders:
        runs["command"] = lambda: command(files, name, model.dtype)
    if "int8" in settings.contenders:
        quantised, _ = batch_encoder(Model(f"random:{name}", "int8", device))
        runs["int8"] = lambda: bare(quantised, planned, seconds)
    speeds = harness.take_turns(runs, settings.rounds)
    best = prepared.get("best", Baseline(lambda: 0.0))
    useful, padding = np.sum([model.encoder.operations(len(w)) for w in waveforms], axis=0).tolist()
    own = next((who for who in ("hser", "command") if who in speeds), None)
    roof = matrix_roof(dtype, device)
    pairs = [("hser", b) for b in BASELINES] + [("command", "hser")]
    pairs += [("int8", b) for b in (*BASELINES, "hser")]
    memory = {who: harness.working_bytes(run, device) for who, run in runs.items()}
    return {
        "model": name,
        "dtype": model.dtype,
        "recordings": len(waveforms),
        "audio_seconds": seconds,
        "best_is": best.how,
        "best_tried": dict(best.tried),
        "flop_per_audio_second": useful / seconds,
        "roof_flops": roof,
        "mfu": median(speeds[own]) * useful / seconds / roof if own else None,
        "speeds": speeds,
        "ratios": {
            f"{a}/{b}": median(speeds[a]) / median(speeds[b]) for a, b in pairs if a in speeds and b in speeds
        },
        # What cannot be measured here is left out.
        "working_mib": {who: size / harness.MIB for who, size in memory.items() if size is not None},
        "padding": {"hser": padding / (useful + padding)}
        | {who: baseline.padding_share for who, baseline in prepared.items()},
        "how": {who: baseline.how for who, baseline in prepared.items()},
        "missing": missing,
    }


# --- All rows -----------------------------------------------------------------------------------


def measure_all(settings: Settings) -> list[dict[str, Any]]:
    """Rows of the result file; prints the table."""
    settings.check()
    device = resolve_device(settings.device)
    rows = []
    with tempfile.TemporaryDirectory(prefix="hser-bench-") as scratch:
        for name in settings.models:
            for lengths in settings.lengths:
                audio = settings.seconds or AUDIO.get(device.type, AUDIO["cpu"])
                files, content = find(lengths, audio, Path(scratch))
                row = measure(name, files, settings)
                rows.append(row | {"lengths": label(lengths), "content": content})
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
    report(rows)
    return rows


def write_rows(name: str, rows: Sequence[Mapping[str, Any]], out: Path | None) -> Path:
    """The result file. What it holds of other models and lengths stays: all of them take an hour."""
    kept = harness.rows_by(
        lambda row: (row["model"], row["dtype"], row["lengths"]), harness.result_path(name, out), rows
    )
    return harness.write_result(name, {"what": "audio seconds per second", "rows": list(kept.values())}, out)


def report(rows: Sequence[Mapping[str, Any]]) -> None:
    """The README's table, of each model and length, and what it has no room for."""
    about: harness.Columns = {"audio s/s": "{model} {dtype}, {lengths}"}
    more = {
        f"{head} {who}": f"{{{what}[{who}]:{form}}}"
        for head, what, form in (("padding", "padding", ".1%"), ("MiB", "working_mib", ",.0f"))
        for who in ("best", "hser")
    }
    print(harness.Table.of(rows, {**SPEEDS, **about, **more}).text())
    for row in rows:
        who = f"{row['model']}, {row['lengths']}"
        print("; ".join([f"{who}: {row['content']}", *(f"{n}: {how}" for n, how in row["how"].items())]))
        for what, why in row["missing"].items():
            print(f"{who}: not measured: {what}: {why}")


def main(argv: Sequence[str] | None = None) -> None:
    """The defaults: `hser-bench` measures anything else."""
    args = harness.arguments(__doc__, argv)
    write_rows("encoder", measure_all(Settings()), args.out)


if __name__ == "__main__":
    main()
