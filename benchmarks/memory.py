"""Memory: what a run takes, whatever the number of recordings and however long they are.

    python -m benchmarks.memory [--full]

    corpus  the peak of a whole run over 5,000 short recordings against one over 500
    long    the peak with a recording of two hours, above the same process's peak with one of ten
            seconds, against a stated bound; encoded in windows, so only the waveform grows
    plan    time and peak of planning a million recordings, and of reading their plan again

Each run is a process of its own, and its peak is the whole process's resident memory, libraries
included. Models are small and random, recordings are noise; ``--full`` adds hubert-base.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import MIB, arguments, in_child, peak_bytes
from benchmarks.readme import publish
from benchmarks.stand_ins import write_clips, write_config, write_noise
from extractor.types import SAMPLE_RATE, Manifest, Seconds, Utterance

MANY = 5_000  # short recordings, against a tenth of them
MOST_GROWTH = 1.10  # aim: memory of many over that of few
SHORT: Seconds = 10.0
LONG: Seconds = 7200.0
# Bound for a long recording: so many times its waveform at 16 kHz in float32, and what one window
# takes while it is encoded.
WAVEFORMS = 2.0
WINDOW_MIB = {"mfcc": 256, "small HuBERT": 256, "hubert-base": 1536}
FORMATS = {"16 kHz mono WAV": (".wav", 16_000, 1), "48 kHz stereo FLAC": (".flac", 48_000, 2)}
MILLION = 1_000_000
CLIP_SAMPLES = (SAMPLE_RATE // 2, 20 * SAMPLE_RATE)  # shortest and longest of the million
BATCH: Seconds = 30.0


def peaks_of_runs(inputs: Sequence[Sequence[str]], model: str, out: str) -> list[float]:
    """Peaks in MiB of one process after a run over each of ``inputs``, one after another.

    A recording that fails makes the figures void.
    """
    from extractor.run.engine import run
    from extractor.run.options import Options

    peaks = []
    for i, paths in enumerate(inputs):
        summary = run(list(paths), Options(model=model), f"{out}-{i}")
        if summary.failures:
            raise RuntimeError(f"{summary.failures[0].path}: {summary.failures[0].reason}")
        peaks.append(peak_bytes() / MIB)
    return peaks


def measure_corpus(scratch: Path, many: int) -> dict[str, Any]:
    """Clips of 0.5 to 1.5 s through a small HuBERT, all layers mean-pooled."""
    counts = (many // 10, many)
    clips = write_clips(scratch / "clips", np.random.default_rng(0).uniform(0.5, 1.5, many).tolist())
    model = write_config(scratch / "small")
    few, all_of_them = (
        in_child(peaks_of_runs, [clips[:n]], model, str(scratch / f"run-{n}"))[0] for n in counts
    )
    return {
        "model": "small random HuBERT",
        "recordings": counts,
        "peak_mib": (few, all_of_them),
        "growth": all_of_them / few,
        "aim": MOST_GROWTH,
    }


def measure_long(
    scratch: Path, models: Sequence[str], duration: Seconds, formats: Sequence[str] = tuple(FORMATS)
) -> list[dict[str, Any]]:
    """``models``: of `WINDOW_MIB`. Each recording is removed before the next is written."""
    specs = {"mfcc": "mfcc", "small HuBERT": write_config(scratch / "small")}
    waveform_mib = 4 * duration * SAMPLE_RATE / MIB
    rows = []
    for name in formats:
        suffix, sample_rate, num_channels = FORMATS[name]
        short, long = scratch / f"short{suffix}", scratch / f"long{suffix}"
        for path, length in ((short, SHORT), (long, duration)):
            write_noise(path, length, sample_rate, num_channels)
        for model in models:
            spec, out = specs.get(model, f"random:{model}"), str(scratch / f"{model} {suffix}")
            before, after = in_child(peaks_of_runs, [[str(short)], [str(long)]], spec, out)
            rows.append(
                {
                    "recording": name,
                    "hours": duration / 3600,
                    "model": model,
                    "short_peak_mib": before,
                    "peak_mib": after,
                    "waveform_mib": waveform_mib,
                    "bound_mib": WAVEFORMS * waveform_mib + WINDOW_MIB[model],  # on what it takes above
                    "above_mib": after - before,
                    "waveforms": (after - before) / waveform_mib,  # the same in waveforms of its length
                }
            )
        long.unlink()
    return rows


def measure_plan(recordings: int, out: str) -> dict[str, Any]:
    """Everything between the headers and the first batch; no file is touched but the run's own."""
    from extractor.audio.decode import DecodeOptions
    from extractor.plan.batches import plan_batches
    from extractor.plan.changes import ChangeOptions
    from extractor.plan.run_plan import make_plan
    from extractor.progress import Silent
    from extractor.store.run_folder import ManifestRow
    from extractor.store.writer import RunWriter

    laps = [time.perf_counter()]
    utterances = [
        Utterance(f"speaker{i % 997:03d}/clip{i:08d}", f"/corpus/speaker{i % 997:03d}/clip{i:08d}.wav")
        for i in range(recordings)
    ]
    manifest = Manifest(utterances, columns=())
    laps.append(time.perf_counter())
    utterances_mib = peak_bytes() / MIB
    num_samples = np.random.default_rng(0).integers(*CLIP_SAMPLES, recordings)
    batches = plan_batches(num_samples, round(BATCH * SAMPLE_RATE))
    batch_of = np.empty(recordings, dtype=np.int64)
    for b, members in enumerate(batches):
        batch_of[members] = b
    each = zip(range(recordings), utterances, num_samples.tolist(), batch_of.tolist(), strict=True)
    rows = [ManifestRow(*row) for row in each]
    laps.append(time.perf_counter())
    with RunWriter.open(out, {}, {}, (), [0]) as writer:
        writer.write_manifest(rows)
        del rows
        laps.append(time.perf_counter())
        decoding = ChangeOptions(DecodeOptions(workers=1))
        plan = make_plan(writer, manifest, round(BATCH * SAMPLE_RATE), decoding, Silent())
        assert len(plan.batches) == len(batches)
        laps.append(time.perf_counter())
    stages = ("list_seconds", "plan_seconds", "write_seconds", "read_seconds")  # read: as a resumed run does
    return {
        "recordings": recordings,
        "batches": len(batches),
        "utterances_mib": utterances_mib,  # peak with the list of recordings alone
        "peak_mib": peak_bytes() / MIB,
        **dict(zip(stages, np.diff(laps).tolist(), strict=True)),
    }


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(
        __doc__,
        argv,
        full=(False, "hubert-base too (some minutes more)"),
        many=(MANY, "short recordings, against a tenth of them"),
        hours=LONG / 3600,
        rows=(MILLION, "recordings to plan"),
        scratch=(Path, "folder for the recordings (default: temporary)"),
    )
    models = [name for name in WINDOW_MIB if args.full or name != "hubert-base"]
    with tempfile.TemporaryDirectory(prefix="hser-memory-", dir=args.scratch) as folder:
        corpus = measure_corpus(Path(folder), args.many)
        long = measure_long(Path(folder), models, args.hours * 3600)
        plan = in_child(measure_plan, args.rows, str(Path(folder) / "planned"))
    result = {
        "what": "peak resident memory in MiB, of the whole process unless it says above",
        "corpus": corpus,
        "long": long,
        "plan": plan,
    }
    publish("memory", result, args.out)


if __name__ == "__main__":
    main()
