"""hser against other ways to the same embeddings, all layers mean-pooled, of the same recordings in one run.

    python -m benchmarks.encoder [--models hubert-large,wavlm-large] [--lengths emodb,1,10] [--rounds 5]

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

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.baselines import (
    BASELINES,
    BATCH_SIZES,
    CANNOT,
    GPU_BATCH_SIZES,
    Baseline,
    Setting,
    best,
    first_line,
    loop,
    transformers_model,
)
from benchmarks.common import median, print_table, result_path, spread, take_turns, write_result
from benchmarks.lengths import audio_seconds, find, label, read
from benchmarks.peak import working_bytes
from extractor.encoders import Model, resolve_device, resolve_dtype
from extractor.encoders.families import MODELS
from extractor.encoders.linear import Linear
from extractor.errors import SettingsError, unknown
from extractor.plan.batches import plan_batches
from extractor.run.batch import BatchEncoder
from extractor.run.engine import run
from extractor.run.options import Options
from extractor.run.pipeline import most_streams, num_cores, num_streams, threads_of
from extractor.run.recipe import batch_seconds
from extractor.run.staging import Job
from extractor.types import SAMPLE_RATE, BatchResult, Decoded, Seconds, Utterance

__all__ = [
    "BATCH_SIZES",
    "GPU_BATCH_SIZES",
    "audio_seconds",
    "bare",
    "best",
    "command",
    "jobs",
    "loop",
    "matrix_roof",
    "measure",
    "read",
    "recordings",
    "result_row",
    "transformers_model",
]

CONTENDERS = (*BASELINES, "hser", "command", "int8")
# Audio for each contender but the loop, and for the loop: a second or two of work, or more.
AUDIO: Mapping[str, Seconds] = {"cpu": 240.0, "cuda": 4800.0}
LOOP_AUDIO: Mapping[str, Seconds] = {"cpu": 24.0, "cuda": 60.0}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Settings:
    """What is measured."""

    models: tuple[str, ...] = ("hubert-large", "wavlm-large")
    lengths: tuple[str, ...] = ("emodb",)  # rows of `lengths.CORPORA`, or seconds
    contenders: tuple[str, ...] = ("loop", "best", "hser", "command")
    device: str = "auto"
    dtype: str = "auto"
    rounds: int = 5
    seconds: Seconds | None = None  # of audio; None: by device
    loop_seconds: Seconds | None = None
    compiled: bool | None = None  # torch.compile for `best`; None: on CUDA


def recordings(seconds: float, folder: Path) -> list[str]:
    """EmoDB's files, or noise of their lengths, of about that much audio in all."""
    return find("emodb", seconds, folder).files


def check(settings: Settings) -> None:
    """Raises SettingsError before anything is loaded."""
    from benchmarks.lengths import lengths_of

    for name in settings.models:
        if name not in MODELS or MODELS[name].family == "whisper":
            raise SettingsError(unknown("model", name, [m for m in MODELS if MODELS[m].family != "whisper"]))
    for name in settings.lengths:
        lengths_of(name)
    for name in settings.contenders:
        if name not in CONTENDERS:
            raise SettingsError(unknown("contender", name, CONTENDERS))
    if "int8" in settings.contenders:
        resolve_dtype("int8", resolve_device(settings.device))


def jobs(waveforms: Sequence[np.ndarray], budget_seconds: float, streams: int = 1) -> list[Job]:
    """Batches as the engine plans them."""
    lengths = np.array([len(w) for w in waveforms])
    planned = plan_batches(lengths, round(budget_seconds * SAMPLE_RATE), streams=streams)
    return [
        Job(
            b,
            members.tolist(),
            [Utterance(str(i), "") for i in members],
            [Decoded(waveforms[i], "") for i in members],
        )
        for b, members in enumerate(planned)
    ]


def bare(encode: BatchEncoder, planned: Sequence[Job], seconds: float) -> float:
    """The encoder and the pooling alone, in as many streams as the engine takes."""
    streams = num_streams(encode.model.device.type, len(planned))

    def encode_in_its_threads(job: Job) -> BatchResult:
        torch.set_num_threads(threads_of(job.batch, len(planned), streams))
        return encode(job)

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
    n = 8192 if device.type == "cuda" else 1024
    weight = torch.randn(4 * n, n) * 0.02
    linear = Linear(weight, None, dtype, device)
    x = torch.randn(n if device.type == "cuda" else 750, n).to(device, dtype)
    streams = 1 if device.type == "cuda" else cores or num_cores()

    def products(_: int) -> None:
        with torch.inference_mode():
            for _ in range(20):
                linear(x)
        if device.type == "cuda":
            torch.cuda.synchronize()

    speeds = []
    for _ in range(5):
        with ThreadPoolExecutor(streams, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            began = time.perf_counter()
            list(pool.map(products, range(streams)))
        speeds.append(20 * streams * 2 * x.shape[0] * weight.numel() / (time.perf_counter() - began))
    return median(speeds)


def batch_encoder(model: Model) -> tuple[BatchEncoder, Seconds]:
    """As the engine sets it up: all layers, mean; and the audio in a batch."""
    budget = batch_seconds(model.device, model.spectral)
    layers = tuple(range(model.encoder.num_layers))
    return BatchEncoder(model, layers, ("mean",), 60 * SAMPLE_RATE, round(budget * SAMPLE_RATE)), budget


def by_device(asked: Seconds | None, default: Mapping[str, Seconds], device: torch.device) -> Seconds:
    return default.get(device.type, default["cpu"]) if asked is None else asked


def measure(name: str, lengths: str, settings: Settings, scratch: Path) -> dict[str, Any]:
    """One model on recordings of some lengths: a row of the result file."""
    device = resolve_device(settings.device)
    found = find(lengths, by_device(settings.seconds, AUDIO, device), scratch)
    waveforms = read(found.files)
    seconds = audio_seconds(waveforms)
    model = Model(f"random:{name}", settings.dtype, device)
    dtype = DTYPES[model.dtype]
    encode, budget = batch_encoder(model)
    planned = jobs(waveforms, budget, most_streams(device.type))
    few = found.few(by_device(settings.loop_seconds, LOOP_AUDIO, device))
    compiled = device.type == "cuda" if settings.compiled is None else settings.compiled
    asked = [name for name in settings.contenders if name in BASELINES]
    prepared, missing = prepare(asked, Setting(name, dtype, device, waveforms, few, compiled))
    runs: dict[str, Callable[[], float]] = {name: baseline.run for name, baseline in prepared.items()}
    if "hser" in settings.contenders:
        runs["hser"] = lambda: bare(encode, planned, seconds)
    if "command" in settings.contenders:
        runs["command"] = lambda: command(found.files, name, model.dtype)
    if "int8" in settings.contenders:
        quantised, _ = batch_encoder(Model(f"random:{name}", "int8", device))
        runs["int8"] = lambda: bare(quantised, planned, seconds)
    speeds = take_turns(runs, settings.rounds)
    chosen = prepared.get("best", Baseline(lambda: 0.0))
    roof = matrix_roof(dtype, device)
    return {
        **result_row(name, model, waveforms, roof, chosen.how, dict(chosen.tried), speeds),
        "lengths": label(lengths),
        "content": found.content,
        "working_mib": memory(runs, device),
        "padding": {"hser": own_padding(model, waveforms)}
        | {name: baseline.padding_share for name, baseline in prepared.items()},
        "how": {name: baseline.how for name, baseline in prepared.items()},
        "missing": missing
        | {f"{name}: {way}": why for name, b in prepared.items() for way, why in b.missing.items()},
    }


def prepare(names: Sequence[str], setting: Setting) -> tuple[dict[str, Baseline], dict[str, str]]:
    """The baselines that run here, and why others do not."""
    prepared: dict[str, Baseline] = {}
    missing: dict[str, str] = {}
    for name in names:
        try:
            prepared[name] = BASELINES[name](setting)
        except CANNOT as error:
            missing[name] = first_line(error)
    return prepared, missing


def memory(runs: Mapping[str, Callable[[], float]], device: torch.device) -> dict[str, float]:
    """MiB that each takes while it runs; those that cannot be measured here are left out."""
    found = {name: working_bytes(run, device) for name, run in runs.items()}
    return {name: num_bytes / MIB for name, num_bytes in found.items() if num_bytes is not None}


def own_padding(model: Model, waveforms: Sequence[np.ndarray]) -> float:
    """Share of our operations that is spent on padding."""
    useful, padding = (
        sum(each) for each in zip(*(model.encoder.operations(len(w)) for w in waveforms), strict=True)
    )
    return padding / (useful + padding)


def result_row(
    name: str,
    model: Model,
    waveforms: Sequence[np.ndarray],
    roof_flops: float,
    chosen: str | int,
    best_tried: Mapping[Any, float],
    speeds: Mapping[str, Sequence[float]],
) -> dict[str, Any]:
    """What every row has. ``chosen``: the way of `best`, of those tried."""
    seconds = audio_seconds(waveforms)
    operations = sum(model.encoder.operations(len(w))[0] for w in waveforms) / seconds
    own = next((who for who in ("hser", "command") if who in speeds), None)
    return {
        "model": name,
        "dtype": model.dtype,
        "recordings": len(waveforms),
        "audio_seconds": seconds,
        "best_is": chosen,
        "best_tried": best_tried,
        "flop_per_audio_second": operations,
        "roof_flops": roof_flops,
        "mfu": median(speeds[own]) * operations / roof_flops if own else None,
        "speeds": speeds,
        "ratios": {
            f"{a}/{b}": median(speeds[a]) / median(speeds[b])
            for a, b in (
                *(("hser", b) for b in BASELINES),
                ("command", "hser"),
                *(("int8", b) for b in (*BASELINES, "hser")),
            )
            if a in speeds and b in speeds
        },
    }


def rows_of(results: Sequence[dict[str, Any]]) -> Iterator[list[str]]:
    for r in results:
        speeds, ratios, padding, mib = r["speeds"], r["ratios"], r["padding"], r["working_mib"]
        yield [
            f"{r['model']} {r['dtype']}, {r['lengths']}",
            *(spread(speeds[c]) if c in speeds else "-" for c in CONTENDERS),
            *(f"{ratios[f'hser/{b}']:.2f}x" if f"hser/{b}" in ratios else "-" for b in BASELINES),
            f"{ratios['command/hser']:.1%}" if "command/hser" in ratios else "-",
            f"{ratios['int8/hser']:.2f}x" if "int8/hser" in ratios else "-",
            "-" if r["mfu"] is None else f"{r['mfu']:.0%}",
            "/".join("-" if padding.get(c) is None else f"{padding[c]:.1%}" for c in ("best", "hser")),
            "/".join(f"{mib[c]:,.0f}" if c in mib else "-" for c in ("best", "hser")),
        ]


HEADER = (
    "audio s/s",
    *CONTENDERS,
    *(f"/{name}" for name in BASELINES),
    "command/hser",
    "int8/hser",
    "MFU",
    "padding best/hser",
    "MiB best/hser",
)


def measure_all(settings: Settings) -> dict[str, Any]:
    """The result file's content; prints the table."""
    check(settings)
    results = []
    with tempfile.TemporaryDirectory(prefix="hser-bench-") as scratch:
        for name in settings.models:
            for lengths in settings.lengths:
                results.append(measure(name, lengths, settings, Path(scratch)))
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
    print_results(results)
    return {"what": "audio seconds per second", "rows": results}


def write_rows(name: str, result: Mapping[str, Any], out: Path | None) -> Path:
    """The result file. What it holds of other models and lengths stays: all of them take an hour."""
    path = result_path(name, out)
    before = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    rows = {_key(row): row for row in [*before, *result["rows"]]}
    return write_result(name, {**result, "rows": list(rows.values())}, out)


def _key(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return row["model"], row["dtype"], row["lengths"]


def print_results(results: Sequence[dict[str, Any]]) -> None:
    table = list(zip(*[HEADER, *rows_of(results)], strict=True))
    told = [column for column in table if any(cell not in ("-", "-/-") for cell in column[1:])]
    header, *rows = zip(*told, strict=True)
    print_table(header, rows)
    for row in results:
        who = f"{row['model']}, {row['lengths']}"
        print("; ".join([f"{who}: {row['content']}", *(f"{n}: {how}" for n, how in row["how"].items())]))
        for what, why in row["missing"].items():
            print(f"{who}: not measured: {what}: {why}")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", default="hubert-large,wavlm-large")
    parser.add_argument("--lengths", default="emodb", help="emodb, ravdess or seconds, with commas")
    parser.add_argument("--baselines", default="loop,best", help=f"some of {','.join(BASELINES)}")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, help="of audio for each but the loop")
    parser.add_argument("--loop-seconds", type=float, help="of audio for the loop")
    parser.add_argument("--no-command", action="store_true", help="leave the whole command out")
    parser.add_argument("--int8", action="store_true", help="hser in int8 too")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(argv)
    settings = Settings(
        tuple(args.models.split(",")),
        tuple(args.lengths.split(",")),
        (
            *args.baselines.split(","),
            "hser",
            *([] if args.no_command else ["command"]),
            *(["int8"] if args.int8 else []),
        ),
        args.device,
        args.dtype,
        args.rounds,
        args.seconds,
        args.loop_seconds,
    )
    write_rows("encoder", measure_all(settings), args.out)


if __name__ == "__main__":
    main()
