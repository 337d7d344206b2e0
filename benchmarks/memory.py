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

import argparse
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np

from benchmarks.common import print_table, write_result
from benchmarks.stand_ins import write_clips, write_config, write_noise
from extractor.types import SAMPLE_RATE, Manifest, Seconds, Utterance

P = ParamSpec("P")
T = TypeVar("T")

MIB = 1 << 20
FEW, MANY = 500, 5_000  # short recordings
MOST_GROWTH = 1.10  # aim: memory of MANY over that of FEW
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


def in_child(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call it in a fresh process: memory that one run has touched must not count for the next."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *args, **kwargs).result()


def peak_bytes() -> int:
    """Most resident memory that this process has had."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count the memory of the parent that was forked
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        assert found is not None
        return int(found[1]) << 10
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


def peak_of_run(inputs: Sequence[str], model: str, out: str) -> int:
    """Peak of a process that does one run; a recording that fails makes the figure void."""
    from extractor.run.engine import run
    from extractor.run.options import Options

    summary = run(list(inputs), Options(model=model), out)
    if summary.failures:
        raise RuntimeError(f"{summary.failures[0].path}: {summary.failures[0].reason}")
    return peak_bytes()


def peaks_of_runs(inputs: Sequence[str], model: str, out: str) -> list[int]:
    """Peaks of one process after a run over each of ``inputs``, one after another."""
    return [peak_of_run([path], model, f"{out}-{i}") for i, path in enumerate(inputs)]


@dataclass(frozen=True, slots=True)
class CorpusMemory:
    model: str
    recordings: tuple[int, int]
    peak_mib: tuple[float, float]

    @property
    def growth(self) -> float:
        return self.peak_mib[1] / self.peak_mib[0]


def measure_corpus(scratch: Path, few: int = FEW, many: int = MANY) -> CorpusMemory:
    """Clips of 0.5 to 1.5 s through a small HuBERT, all layers mean-pooled."""
    durations = np.random.default_rng(0).uniform(0.5, 1.5, many).tolist()
    clips = write_clips(scratch / "clips", durations)
    model = write_config(scratch / "small")
    peaks = [in_child(peak_of_run, clips[:n], model, str(scratch / f"run-{n}")) / MIB for n in (few, many)]
    return CorpusMemory("small random HuBERT", (few, many), (peaks[0], peaks[1]))


@dataclass(frozen=True, slots=True)
class LongMemory:
    recording: str
    hours: float
    model: str
    short_peak_mib: float
    peak_mib: float
    waveform_mib: float
    bound_mib: float  # on `above_mib`

    @property
    def above_mib(self) -> float:
        return self.peak_mib - self.short_peak_mib

    @property
    def waveforms(self) -> float:
        """What it takes above the short recording, in waveforms of its length."""
        return self.above_mib / self.waveform_mib


def measure_long(
    scratch: Path, models: Sequence[str], duration: Seconds = LONG, formats: Sequence[str] = tuple(FORMATS)
) -> list[LongMemory]:
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
            spec = specs.get(model, f"random:{model}")
            out = scratch / f"{model} {suffix}"
            before, after = in_child(peaks_of_runs, [str(short), str(long)], spec, str(out))
            bound = WAVEFORMS * waveform_mib + WINDOW_MIB[model]
            rows.append(
                LongMemory(name, duration / 3600, model, before / MIB, after / MIB, waveform_mib, bound)
            )
        long.unlink()
    return rows


@dataclass(frozen=True, slots=True)
class PlanMemory:
    recordings: int
    batches: int
    utterances_mib: float  # peak with the list of recordings alone
    peak_mib: float
    list_seconds: float  # making the list of recordings
    plan_seconds: float
    write_seconds: float
    read_seconds: float  # a resumed run: manifest.jsonl to plan


def measure_plan(recordings: int, out: str) -> PlanMemory:
    """Everything between the headers and the first batch; no file is touched but the run's own."""
    from extractor.audio.decode import DecodeOptions
    from extractor.plan.batches import plan_batches
    from extractor.plan.changes import Asking
    from extractor.plan.run_plan import make_plan
    from extractor.progress import Silent
    from extractor.store.run_folder import ManifestRow
    from extractor.store.writer import RunWriter

    clock = _Clock()
    utterances = [
        Utterance(f"speaker{i % 997:03d}/clip{i:08d}", f"/corpus/speaker{i % 997:03d}/clip{i:08d}.wav")
        for i in range(recordings)
    ]
    manifest = Manifest(utterances, columns=())
    list_seconds, utterances_mib = clock.lap(), peak_bytes() / MIB
    num_samples = np.random.default_rng(0).integers(*CLIP_SAMPLES, recordings)
    batches = plan_batches(num_samples, round(BATCH * SAMPLE_RATE))
    batch_of = np.empty(recordings, dtype=np.int64)
    for b, members in enumerate(batches):
        batch_of[members] = b
    rows = [
        ManifestRow(position, utterance, n, b)
        for position, (utterance, n, b) in enumerate(
            zip(utterances, num_samples.tolist(), batch_of.tolist(), strict=True)
        )
    ]
    plan_seconds = clock.lap()
    with RunWriter.open(out, {}, {}, (), [0]) as writer:
        writer.write_manifest(rows)
        del rows
        write_seconds = clock.lap()
        plan = make_plan(
            writer, manifest, round(BATCH * SAMPLE_RATE), Asking(DecodeOptions(workers=1)), Silent()
        )
        assert len(plan.batches) == len(batches)
        read_seconds = clock.lap()
    return PlanMemory(
        recordings,
        len(batches),
        utterances_mib,
        peak_bytes() / MIB,
        list_seconds,
        plan_seconds,
        write_seconds,
        read_seconds,
    )


class _Clock:
    """Seconds since the last lap."""

    def __init__(self) -> None:
        self._began = time.perf_counter()

    def lap(self) -> float:
        now = time.perf_counter()
        seconds, self._began = now - self._began, now
        return seconds


def report(corpus: CorpusMemory, long: Sequence[LongMemory], plan: PlanMemory) -> dict[str, Any]:
    """Print the tables; what goes into the result file, with what the properties say."""
    few, many = corpus.recordings
    print_table(
        [corpus.model, f"{few:,} recordings", f"{many:,} recordings", "ratio", f"aim <= {MOST_GROWTH}"],
        [["peak MiB", *(f"{mib:,.0f}" for mib in corpus.peak_mib), f"{corpus.growth:.3f}", _word(corpus)]],
    )
    print()
    print_table(
        ["long recording", "model", "10 s MiB", "peak MiB", "above", "waveforms", "bound", ""],
        [_long_cells(row) for row in long],
    )
    print()
    print_table(
        ["plan", "batches", "list s", "plan s", "write s", "read s", "list MiB", "peak MiB"],
        [_plan_cells(plan)],
    )
    return {
        "what": "peak resident memory in MiB, of the whole process unless it says above",
        "corpus": {**asdict(corpus), "growth": corpus.growth, "aim": MOST_GROWTH},
        "long": [{**asdict(row), "above_mib": row.above_mib, "waveforms": row.waveforms} for row in long],
        "plan": asdict(plan),
    }


def _word(corpus: CorpusMemory) -> str:
    return "kept" if corpus.growth <= MOST_GROWTH else "MISSED"


def _long_cells(row: LongMemory) -> list[str]:
    figures = (row.short_peak_mib, row.peak_mib, row.above_mib)
    return [
        f"{row.hours:g} h, {row.recording}",
        row.model,
        *(f"{mib:,.0f}" for mib in figures),
        f"{row.waveforms:.2f}",
        f"{row.bound_mib:,.0f}",
        "kept" if row.above_mib <= row.bound_mib else "MISSED",
    ]


def _plan_cells(plan: PlanMemory) -> list[str]:
    seconds = (plan.list_seconds, plan.plan_seconds, plan.write_seconds, plan.read_seconds)
    return [
        f"{plan.recordings:,} recordings",
        f"{plan.batches:,}",
        *(f"{s:.1f}" for s in seconds),
        f"{plan.utterances_mib:,.0f}",
        f"{plan.peak_mib:,.0f}",
    ]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--full", action="store_true", help="hubert-base too (some minutes more)")
    parser.add_argument("--many", type=int, default=MANY, help="short recordings, against a tenth of them")
    parser.add_argument("--hours", type=float, default=LONG / 3600)
    parser.add_argument("--rows", type=int, default=MILLION, help="recordings to plan")
    parser.add_argument("--scratch", type=Path, help="folder for the recordings (default: temporary)")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(argv)
    models = list(WINDOW_MIB) if args.full else [name for name in WINDOW_MIB if name != "hubert-base"]
    with tempfile.TemporaryDirectory(prefix="hser-memory-", dir=args.scratch) as folder:
        scratch = Path(folder)
        corpus = measure_corpus(scratch, args.many // 10, args.many)
        long = measure_long(scratch, models, args.hours * 3600)
        plan = in_child(measure_plan, args.rows, str(scratch / "planned"))
    write_result("memory", report(corpus, long, plan), args.out)


if __name__ == "__main__":
    main()
