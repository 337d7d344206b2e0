"""Decoding alone: hser's `decode_batch` against soundfile in two threads, as people write it.

    python benchmarks/decode.py --data ../shared/data

All give 16 kHz mono float32 waveforms. hser's figures include reading each header again and every check;
"hser" without the checksum that the engine stores, as soundfile has none either, "+ checksum" with it.
They take turns over the same files in one run, so that whatever else the machine does falls on all.
Reported: audio seconds decoded per second, median over the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter

import numpy as np
import soundfile
import soxr

from extractor.decode import DecodeOptions, backends, decode_batch
from extractor.probe import probe
from extractor.types import SAMPLE_RATE, Decoded, Header, Utterance

THREADS = 2
BATCH = 64  # recordings, as the engine's batches of short recordings are
FILES = {  # name in the table -> glob in the data folder
    "16 kHz WAV (EmoDB)": "emodb/wav/*.wav",
    "16 kHz FLAC (RAVDESS)": "ravdess/*/*.flac",
    "48 kHz WAV (RAVDESS)": "ravdess_48k/*/*.wav",
}


def soundfile_batch(paths: Sequence[str], pool: ThreadPoolExecutor) -> list[np.ndarray]:
    return list(pool.map(_soundfile_one, paths))


def _soundfile_one(path: str) -> np.ndarray:
    samples, sample_rate = soundfile.read(path, dtype="float32")
    if samples.ndim > 1:
        samples = samples.mean(axis=1)
    return samples if sample_rate == SAMPLE_RATE else soxr.resample(samples, sample_rate, SAMPLE_RATE)


def measure(paths: list[str], rounds: int) -> dict[str, list[float]]:
    """Audio seconds per second of each contender in each round, after one round to warm up."""
    utterances = [Utterance(path, path) for path in paths]
    headers = [header for header in probe(utterances) if isinstance(header, Header)]
    if len(headers) < len(paths):
        raise SystemExit(f"{len(paths) - len(headers)} recordings cannot be read")
    audio_seconds = sum(header.duration for header in headers)
    pool = ThreadPoolExecutor(THREADS)

    def hser(checksum: bool) -> Callable[[int], None]:
        options = DecodeOptions(workers=THREADS, checksum=checksum)

        def run(i: int) -> None:
            batch = decode_batch(utterances[i : i + BATCH], headers[i : i + BATCH], options, pool)
            assert all(isinstance(result, Decoded) for result in batch)

        return run

    contenders: dict[str, Callable[[int], object]] = {
        "soundfile": lambda i: soundfile_batch(paths[i : i + BATCH], pool),
        "hser": hser(checksum=False),
        "hser + checksum": hser(checksum=True),
    }
    speeds: dict[str, list[float]] = {name: [] for name in contenders}
    for k in range(rounds + 1):
        spent = dict.fromkeys(contenders, 0.0)
        for i in range(0, len(paths), BATCH):
            names = list(contenders)
            for name in names[k % 3 :] + names[: k % 3]:  # each goes first every third round
                began = perf_counter()
                contenders[name](i)
                spent[name] += perf_counter() - began
        for name in contenders if k else ():
            speeds[name].append(audio_seconds / spent[name])
    return speeds


def cpu_model() -> str:
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def machine_name() -> str:
    name = re.sub(r"[^a-z0-9]+", "-", cpu_model().lower()).strip("-")
    return f"{name}-{os.cpu_count()}-cores"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--files", type=int, default=384, help="at most so many recordings of each kind")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    out = args.out or Path(__file__).parent / "results" / f"decode-{machine_name()}.json"

    rows = []
    print("audio seconds decoded per second, median of", args.rounds, "rounds, and ratio to soundfile")
    print(f"{'':24} {'soundfile':>10} {'hser':>10} {'ratio':>6} {'+ checksum':>11} {'ratio':>6}")
    for name, pattern in FILES.items():
        paths = sorted(str(path) for path in args.data.glob(pattern))[: args.files]
        if not paths:
            print(f"{name:24} no data at {args.data / pattern}")
            continue
        rounds = measure(paths, args.rounds)
        median = {who: statistics.median(values) for who, values in rounds.items()}
        base, bare, full = median.values()
        print(f"{name:24} {base:10,.0f} {bare:10,.0f} {bare / base:6.2f} {full:11,.0f} {full / base:6.2f}")
        rows.append({"files": name, "recordings": len(paths), "median": median, "rounds": rounds})
    if not rows:
        raise SystemExit("nothing measured: name the data folder with --data")
    result = {
        "what": "audio seconds decoded per second, to 16 kHz mono float32",
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": THREADS,
        "batch": BATCH,
        "backends": backends(),
        "soundfile": soundfile.__version__,
        "libsndfile": soundfile.__libsndfile_version__,
        "rows": rows,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written to {out}")


if __name__ == "__main__":
    main()
