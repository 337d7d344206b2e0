"""hser against `transformers`, all layers mean-pooled, on the same recordings in one run.

    python -m benchmarks.encoder [--models hubert-large,wavlm-large] [--rounds 5]

Three ways to the same embeddings, random weights, real recordings (EmoDB) where they are at hand:

    loop    what people write: file by file, fp32, `output_hidden_states`, mean over time
    best    `transformers` at its best on this machine: half precision, SDPA where the model has it,
            batches sorted by length with an attention mask, mean over each recording's own frames;
            the batch size is the fastest of a few, tried first
    hser    the bare encoder: packed batches, every layer pooled as it is produced
    command all of `hser-extract` from files to store, without the set-up

They take turns; figures are audio seconds per second, median and range. `command` keeps a share of
`hser`. MFU is the share of the machine's own matrix products, measured here too.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from benchmarks.common import SHARED_DATA, median, print_table, spread, take_turns, write_result
from extractor.batch import BatchEncoder, Job
from extractor.encoders import Model, resolve_device
from extractor.encoders.checkpoint import MODELS
from extractor.encoders.products import Linear
from extractor.engine import CPU_BATCH, LARGE_BATCH, Options, run
from extractor.plan import plan_batches
from extractor.stages import num_cores, num_streams
from extractor.types import SAMPLE_RATE, Decoded, Utterance

BATCH_SIZES = (1, 4, 8, 16)  # tried for `best` on a CPU
GPU_BATCH_SIZES = (16, 32, 64, 128)


def recordings(seconds: float, folder: Path) -> list[str]:
    """EmoDB's files, evenly spaced through the list, of about that much audio in all."""
    files = sorted(str(p) for p in SHARED_DATA.glob("emodb/wav/*.wav"))
    if not files:
        from extractor.synthetic import write_corpus

        files = sorted(str(p) for p in write_corpus(folder / "synthetic").rglob("*.wav"))
    lengths = [soundfile.info(f).duration for f in files]
    every = max(1, round(sum(lengths) / seconds))
    return files[::every]


def read(files: Sequence[str]) -> list[np.ndarray]:
    return [soundfile.read(f, dtype="float32")[0] for f in files]


def audio_seconds(waveforms: Sequence[np.ndarray]) -> float:
    return sum(len(w) for w in waveforms) / SAMPLE_RATE


def transformers_model(name: str, dtype: torch.dtype, device: torch.device) -> Any:
    """The reference with random weights; SDPA where it has it (WavLM has not)."""
    from transformers import AutoConfig, AutoModel

    row = MODELS[name]
    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.for_model(row.kind, **row.architecture), dtype=torch.float32)
    return model.eval().to(device, dtype)


def loop(model: Any, files: Sequence[str]) -> float:
    """File by file in fp32, as in every tutorial."""
    from transformers import Wav2Vec2FeatureExtractor

    extractor = Wav2Vec2FeatureExtractor(return_attention_mask=True, do_normalize=True)
    began, seconds = time.perf_counter(), 0.0
    for file in files:
        waveform = soundfile.read(file, dtype="float32")[0]
        inputs = extractor(waveform, sampling_rate=SAMPLE_RATE, return_tensors="pt").to(model.device)
        with torch.no_grad():
            hidden = model(**inputs, output_hidden_states=True).hidden_states
        torch.stack([h[0].mean(0) for h in hidden]).cpu()
        seconds += len(waveform) / SAMPLE_RATE
    return seconds / (time.perf_counter() - began)


def best(model: Any, waveforms: Sequence[np.ndarray], batch_size: int) -> float:
    """Sorted, padded batches with a mask, pooled over the true lengths."""
    ordered = sorted(waveforms, key=len)
    dtype, device = model.dtype, model.device
    began = time.perf_counter()
    with torch.inference_mode():
        for i in range(0, len(ordered), batch_size):
            batch = [torch.from_numpy((w - w.mean()) / w.std()) for w in ordered[i : i + batch_size]]
            padded = torch.nn.utils.rnn.pad_sequence(batch, batch_first=True).to(device, dtype)
            lengths = torch.tensor([len(w) for w in batch])
            mask = (torch.arange(padded.shape[1]) < lengths[:, None]).to(device)
            # Without padding no mask is needed, and SDPA is faster without.
            masked = {} if bool(mask.all()) else {"attention_mask": mask}
            hidden = model(padded, output_hidden_states=True, **masked).hidden_states
            frames = ((lengths - 400) // 320 + 1).to(device)
            inside = (torch.arange(hidden[0].shape[1], device=device) < frames[:, None])[:, :, None]
            torch.stack([(h * inside).sum(1).float() / frames[:, None] for h in hidden], 1).cpu()
    return audio_seconds(waveforms) / (time.perf_counter() - began)


def jobs(waveforms: Sequence[np.ndarray], budget_seconds: float) -> list[Job]:
    lengths = np.array([len(w) for w in waveforms])
    return [
        Job(
            b,
            members.tolist(),
            [Utterance(str(i), "") for i in members],
            [Decoded(waveforms[i], "") for i in members],
        )
        for b, members in enumerate(plan_batches(lengths, round(budget_seconds * SAMPLE_RATE)))
    ]


def bare(encode: BatchEncoder, planned: Sequence[Job], seconds: float) -> float:
    """The encoder and the pooling alone, in as many streams as the engine takes."""
    streams, threads = num_streams(encode.model.device.type, len(planned))
    before = torch.get_num_threads()
    began = time.perf_counter()
    with ThreadPoolExecutor(streams, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
        for result in pool.map(encode, planned):
            assert not result.failures
    speed = seconds / (time.perf_counter() - began)
    torch.set_num_threads(before)
    return speed


def command(files: Sequence[str], model: str, dtype: str) -> float:
    """From files to store. The set-up (imports, weights, headers) is not counted: it is done once."""
    with tempfile.TemporaryDirectory() as folder:
        return run(list(files), Options(model=f"random:{model}", dtype=dtype), Path(folder) / "run").speed


def matrix_roof(dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s of a large matrix product by the library, all cores or the whole GPU: the roof."""
    n = 8192 if device.type == "cuda" else 1024
    weight = torch.randn(4 * n, n) * 0.02
    linear = Linear(weight, None, dtype, device)
    x = torch.randn(n if device.type == "cuda" else 750, n).to(device, dtype)
    streams = 1 if device.type == "cuda" else num_cores()

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


def measure(name: str, args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    device = resolve_device(args.device)
    files = recordings(args.seconds, scratch)
    few = recordings(args.loop_seconds, scratch)
    waveforms = read(files)
    seconds = audio_seconds(waveforms)
    model = Model(f"random:{name}", args.dtype, device)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[model.dtype]
    budget = CPU_BATCH if device.type == "cpu" else LARGE_BATCH
    encode = BatchEncoder(
        model,
        tuple(range(model.encoder.num_layers)),
        ("mean",),
        60 * SAMPLE_RATE,
        round(budget * SAMPLE_RATE),
    )
    planned = jobs(waveforms, budget)
    reference, half = (transformers_model(name, d, device) for d in (torch.float32, dtype))
    sizes = BATCH_SIZES if device.type == "cpu" else GPU_BATCH_SIZES
    tried = {size: max(best(half, waveforms[::4], size) for _ in range(2)) for size in sizes}
    size = max(tried, key=lambda s: tried[s])
    contenders: dict[str, Callable[[], float]] = {
        "loop": lambda: loop(reference, few),
        "best": lambda: best(half, waveforms, size),
        "hser": lambda: bare(encode, planned, seconds),
    }
    if not args.no_command:
        contenders["command"] = lambda: command(files, name, model.dtype)
    speeds = take_turns(contenders, args.rounds)
    return result_row(name, model, waveforms, matrix_roof(dtype, device), size, tried, speeds)


def result_row(
    name: str,
    model: Model,
    waveforms: Sequence[np.ndarray],
    roof_flops: float,
    best_batch_size: int,
    best_tried: dict[int, float],
    speeds: dict[str, list[float]],
) -> dict[str, Any]:
    """One model's row of the result file."""
    seconds = audio_seconds(waveforms)
    operations = sum(sum(model.encoder.operations(len(w))) for w in waveforms) / seconds
    return {
        "model": name,
        "dtype": model.dtype,
        "recordings": len(waveforms),
        "audio_seconds": seconds,
        "best_batch_size": best_batch_size,
        "best_tried": best_tried,
        "flop_per_audio_second": operations,
        "roof_flops": roof_flops,
        "mfu": median(speeds["hser"]) * operations / roof_flops,
        "speeds": speeds,
        "ratios": {
            f"{a}/{b}": median(speeds[a]) / median(speeds[b])
            for a, b in (("hser", "loop"), ("hser", "best"), ("command", "hser"))
            if a in speeds
        },
    }


def rows_of(results: Sequence[dict[str, Any]]) -> Iterator[list[str]]:
    for r in results:
        speeds, ratios = r["speeds"], r["ratios"]
        share = f"{ratios['command/hser']:.1%}" if "command/hser" in ratios else "-"
        yield [
            f"{r['model']} {r['dtype']}",
            *(spread(speeds[c]) if c in speeds else "-" for c in ("loop", "best", "hser", "command")),
            f"{ratios['hser/loop']:.1f}x",
            f"{ratios['hser/best']:.2f}x",
            share,
            f"{r['mfu']:.0%}",
        ]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", default="hubert-large,wavlm-large")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=240.0, help="of audio for each but the loop")
    parser.add_argument("--loop-seconds", type=float, default=24.0, help="of audio for the loop")
    parser.add_argument("--no-command", action="store_true", help="leave the whole command out")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        results = [measure(name, args, Path(scratch)) for name in args.models.split(",")]
    header = ["audio s/s", "loop", "best", "hser", "command", "/loop", "/best", "command/hser", "MFU"]
    print_table(header, list(rows_of(results)))
    write_result("encoder", {"what": "audio seconds per second", "rows": results}, args.out)


if __name__ == "__main__":
    main()
