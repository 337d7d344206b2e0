"""What only a machine with a GPU can tell: hser on CUDA against hser on the CPU, and its speed.

    python -m benchmarks.gpu_check [--quick] [--only kernels augment kernels-speed]

    layers   small random models of every kind, every layer, CUDA against the CPU, fp32 without TF32
    attention, fused  each layer kernel of the encoder, and whole encoders through them, against the CPU
    bf16     full-size random models on CUDA, bf16 against fp32, every layer mean-pooled
    pooling  every pooling of the same frames, CUDA against the CPU
    engine   the whole command on generated recordings, CUDA against the CPU in fp32
    kernels  each GPU kernel against its definition in float64, ragged, alone and among others
    augment  each kind of augmentation, CUDA against the CPU
    speed    the encoder benchmark's contenders on generated recordings
    kernels-speed  `benchmarks.kernels`, in a result file of its own, and its aims

About ten minutes. Needs torch, transformers, numpy, h5py, soundfile, soxr, click and rich; a check
whose packages are missing is skipped and says so. Exits 1 when a check fails, 2 without CUDA.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import kernels
from benchmarks.findings import Finding, collect, largest, print_finding, relative_error
from benchmarks.harness import arguments, machine, write_result
from benchmarks.kernel_cases import Size
from benchmarks.kernel_checks import check_augment, check_kernels, check_layer_kernels, noise
from benchmarks.readme import show
from benchmarks.stand_ins import NORMS, KeptLayers, small_encoders, write_clips, write_config
from extractor.encoders import exact_fp32
from extractor.types import SAMPLE_RATE, Seconds

# Relative L2 error between devices in fp32: both sum thousands of products, in other orders.
FP32_RELATIVE = 1e-4
# Statistics of the same frames: one sum over at most a thousand values.
POOLING_RELATIVE = 1e-5
# Cosine of a bf16 row to its fp32 row: 8 bits of mantissa through two dozen layers.
BF16_COSINE = 0.999

SPEEDS = ("speed", "kernels-speed")
CHECKS = ("layers", "attention", "fused", "bf16", "pooling", "engine", "kernels", "augment", *SPEEDS)
KINDS = ("hubert", "wavlm", "wav2vec2")
FULL_SIZE = ("hubert-base", "hubert-large", "wavlm-large")
SPEED_MODELS = ("hubert-large", "wavlm-large")
POOLINGS = ("mean", "std", "min", "max", "first", "last", "meanstd")
PARITY_LENGTHS = (400, 719, 16_000, 31_999, 67_123)  # samples: one frame, two, odd ones
# Four batches of one shape bucket: the first runs by ordinary launches, the others by graphs.
BUCKET_BATCHES = ((16_000, 31_999, 400), (719, 40_000, 9_000), (33_333, 14_000, 2_000), (48_000, 401))
BF16_CLIPS: Sequence[Seconds] = (1.3, 2.9, 4.0, 7.7)
ENGINE_CLIPS: Sequence[Seconds] = (0.3, 1.0, 1.7, 2.2, 3.1, 4.4, 5.8, 7.9, 61.0)  # the last in two windows
SPEED_SECONDS, LOOP_SECONDS = 1200.0, 60.0
CLIP_SECONDS = (1.0, 8.0)
KERNEL_BATCH: tuple[int, Seconds] = (64, 4.0)  # recordings of so long


def check_models(name: str, device: str, batches: Sequence[Sequence[int]]) -> Iterator[Finding]:
    """The worst layer of each small model on ``device`` against the CPU, and on CUDA what graphs change.

    ``batches``: lengths in samples. Each goes twice: by ordinary launches, then by graphs if there are any.
    """
    for kind in KINDS:
        for norm in NORMS:
            on_cpu, ours = small_encoders(kind, norm, ["cpu", device])
            errors, changed, what = [], 0, f"{kind}, {norm} norm"
            for lengths in batches:
                audio = [noise(n).float() for n in lengths]
                reference, once, again = (KeptLayers(each, audio).layers for each in (on_cpu, ours, ours))
                errors += [relative_error(a, b) for a, b in zip(again, reference, strict=True)]
                changed += sum(not torch.equal(a, b) for a, b in zip(once, again, strict=True))
            yield Finding(name, f"{what}, fp32: worst relative error", largest(errors), FP32_RELATIVE)
            graphs = None if ours.fused is None else ours.fused.graphs
            if graphs is not None and len(batches) > 1:
                buckets = len(graphs.recorded)
                yield Finding(name, f"{what}: layers that graphs change", changed, 0)
                yield Finding(name, f"{what}: shape buckets with graphs", buckets, 1, at_least=True)
                yield Finding(name, f"{what}: seconds to record", graphs.seconds, 60.0)


def check_bf16(device: str, specs: Sequence[str]) -> Iterator[Finding]:
    """Lowest cosine, over recordings and layers, of bf16 rows to fp32 rows."""
    from benchmarks.encoder import mean_pooled
    from extractor.encoders import Model

    waveforms = [0.05 * noise(round(s * SAMPLE_RATE)).float().numpy() for s in BF16_CLIPS]
    for spec in specs:
        half, reference = (
            torch.from_numpy(mean_pooled(Model(spec, dtype, torch.device(device)), waveforms)).double()
            for dtype in ("bf16", "fp32")
        )
        cosines = torch.cosine_similarity(half, reference, dim=2).amin(dim=0)  # [L]
        worst = int(cosines.argmin())
        what = f"{spec.removeprefix('random:')}, bf16: lowest cosine of a row, in layer {worst}"
        yield Finding("bf16", what, cosines[worst].item(), BF16_COSINE, at_least=True)


def check_pooling(device: str) -> Iterator[Finding]:
    """Every pooling; recordings whole, and one in two pieces that are merged."""
    from extractor.encoders.pooling import Pooler
    from extractor.types import Piece

    lengths, dim = (1, 63, 500, 1000), 96
    hidden = torch.randn(sum(lengths), dim, generator=torch.Generator().manual_seed(0)) * 3 + 1

    def pooled(on: str, windowed: bool) -> dict[str, np.ndarray]:
        num_utterances = len(lengths) - windowed
        pooler = Pooler(num_utterances, [0], dim, POOLINGS, torch.device(on), windowed)
        pooler.begin(
            [Piece(min(u, num_utterances - 1), 0, 0, n, slice(n // 10, n)) for u, n in enumerate(lengths)]
            if windowed
            else [Piece(u, 0, 0, n, slice(0, n)) for u, n in enumerate(lengths)]
        )
        pooler.add(0, hidden.to(on))
        return pooler.embeddings().wait().pooled

    for windowed in (False, True):
        reference, values = pooled("cpu", windowed), pooled(device, windowed)
        errors = [
            relative_error(torch.from_numpy(values[name]), torch.from_numpy(reference[name]))
            for name in POOLINGS
        ]
        what = f"{'in pieces' if windowed else 'whole'}: worst relative error of {', '.join(POOLINGS)}"
        yield Finding("pooling", what, largest(errors), POOLING_RELATIVE)


def check_engine(
    device: str, scratch: Path, kinds: Sequence[str] = KINDS, durations: Sequence[Seconds] = ENGINE_CLIPS
) -> Iterator[Finding]:
    """Files to store, all layers; as users run it, so with the precision that fp32 means to hser."""
    from extractor.run.engine import run
    from extractor.run.options import Options
    from extractor.store import Store

    clips = write_clips(scratch / "engine", durations)
    for kind in kinds:
        spec = write_config(scratch / kind, kind)
        rows: list[list[torch.Tensor]] = []
        for on in ("cpu", device):
            # Two folders, also where a test has the CPU for both.
            out = scratch / f"{kind}-run-{len(rows)}"
            run(clips, Options(model=spec, device=on, dtype="fp32"), out)
            with Store(out) as store:
                rows.append([row for k in store.layers for row in torch.from_numpy(store.load(layer=k))])
        reference, ours = rows
        worst = largest(relative_error(a, b) for a, b in zip(ours, reference, strict=True))
        yield Finding("engine", f"{kind}: worst relative error of a row", worst, FP32_RELATIVE)


def measure_speed(
    name: str,
    device: str,
    scratch: Path,
    rounds: int,
    seconds: Seconds = SPEED_SECONDS,
    loop_seconds: Seconds = LOOP_SECONDS,
) -> dict[str, Any]:
    """The contenders of `benchmarks.encoder` on clips of noise; audio seconds per second."""
    from benchmarks.encoder import Settings, measure

    count = round(seconds / (sum(CLIP_SECONDS) / 2))
    clips = write_clips(scratch / "speed", np.random.default_rng(0).uniform(*CLIP_SECONDS, count).tolist())
    settings = Settings(device=device, rounds=rounds, loop_seconds=loop_seconds, compiled=False)
    row = measure(name, clips, settings)
    for who in (who for who in settings.contenders if who in row["missing"]):
        raise RuntimeError(f"{who}: {row['missing'][who]}")
    return row


def check_kernels_speed(
    device: str, rounds: int, out: Path | None, batch: tuple[int, Seconds] = KERNEL_BATCH
) -> Iterator[Finding]:
    """The kernels' benchmark, with a result file of its own (beside ``out``), and what became of its aims."""
    result = kernels.measure(Size(device, *batch), rounds, compiled=device == "cuda")
    kernels.print_result(result)
    write_result("kernels", result, out and out.with_name(f"kernels-{machine()}.json"))
    for aim in result["findings"]:
        yield Finding("kernels-speed", aim["what"], aim["value"], aim["aim"], at_least=True)


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(
        __doc__,
        argv,
        quick=(False, "leave both speeds out"),
        only={"nargs": "+", "choices": CHECKS, "default": CHECKS, "metavar": "CHECK"},
        rounds=3,
    )
    if not torch.cuda.is_available():
        print("gpu-check: torch finds no CUDA device here; nothing was checked")
        return 2
    device = "cuda"
    exact_fp32()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}")
    skipped: dict[str, str] = {}
    speeds: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="hser-gpu-") as folder:
        scratch = Path(folder)

        def speed() -> Iterator[Finding]:
            for name in SPEED_MODELS:
                speeds.append(measure_speed(name, device, scratch / name, args.rounds))
                torch.cuda.empty_cache()
            yield from ()

        checks: dict[str, Callable[[], Iterator[Finding]]] = {
            "layers": lambda: check_models("layers", device, [PARITY_LENGTHS]),
            "attention": lambda: check_layer_kernels(device, attention=True),
            # The layer's kernels beside attention, then small models by kernels and graphs.
            "fused": lambda: chain(
                check_layer_kernels(device, attention=False),
                check_models("layers-fused", device, BUCKET_BATCHES),
            ),
            "bf16": lambda: check_bf16(device, [f"random:{name}" for name in FULL_SIZE]),
            "pooling": lambda: check_pooling(device),
            "engine": lambda: check_engine(device, scratch),
            "kernels": lambda: check_kernels(device),
            "augment": lambda: check_augment(device),
            "speed": speed,
            "kernels-speed": lambda: check_kernels_speed(device, args.rounds, args.out),
        }
        chosen = [name for name in CHECKS if name in args.only and not (args.quick and name in SPEEDS)]
        findings = [f for name in chosen for f in collect(name, checks[name], skipped)]
    result = {
        "what": "hser on CUDA against the CPU; speed in audio seconds per second",
        "gpu": torch.cuda.get_device_name(),
        "findings": [{**asdict(f), "passed": f.passed} for f in findings],
        "skipped": skipped,
        "rows": speeds,
    }
    write_result("gpu-check", result, args.out)
    summary(findings, skipped, speeds)
    return 0 if all(f.passed for f in findings) else 1


def summary(findings: Sequence[Finding], skipped: dict[str, str], speeds: Sequence[dict[str, Any]]) -> None:
    failed = [f for f in findings if not f.passed]
    print(f"\n{len(findings) - len(failed)} of {len(findings)} checks passed", end="")
    print(f"; skipped: {', '.join(skipped)}" if skipped else "")
    for finding in failed:
        print_finding(finding)
    if speeds:
        show("speed", {"rows": speeds})


if __name__ == "__main__":
    sys.exit(main())
