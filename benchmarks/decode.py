"""Decoding alone: hser's `decode_batch` against soundfile in two threads, as people write it.

    python -m benchmarks.decode [--data ../shared/data] [--rounds 7]

All give 16 kHz mono float32 waveforms. hser's figures include reading each header again and every check;
"hser" without the checksum that the engine stores, as soundfile has none either, "+ checksum" with it.
They take turns over the same files. Reported: audio seconds decoded per second, median and range.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import soundfile
import soxr

from benchmarks import harness
from benchmarks.readme import publish
from extractor.audio.decode import DecodeOptions, decode_batch
from extractor.audio.probe import probe
from extractor.audio.readers import backends
from extractor.types import SAMPLE_RATE, Decoded, Header, Utterance

THREADS = 2
BATCH = 64  # recordings, as the engine's batches of short recordings are
FILES = {  # name in the table -> glob in the data folder
    "16 kHz WAV (EmoDB)": "emodb/wav/*.wav",
    "16 kHz FLAC (RAVDESS)": "ravdess/*/*.flac",
    "48 kHz WAV (RAVDESS)": "ravdess_48k/*/*.wav",
}
HSER = {"hser": False, "hser + checksum": True}  # name -> whether the checksum is made


def with_soundfile(path: str) -> np.ndarray:
    samples, sample_rate = soundfile.read(path, dtype="float32")
    if samples.ndim > 1:
        samples = samples.mean(axis=1)
    return samples if sample_rate == SAMPLE_RATE else soxr.resample(samples, sample_rate, SAMPLE_RATE)


def measure(paths: Sequence[str], rounds: int) -> dict[str, list[float]]:
    """Audio seconds per second of each contender in each round."""
    utterances = [Utterance(path, path) for path in paths]
    headers = [header for header in probe(utterances) if isinstance(header, Header)]
    if len(headers) < len(paths):
        raise SystemExit(f"{len(paths) - len(headers)} recordings cannot be read")

    def speed(decode: Callable[[slice], object]) -> float:
        began = perf_counter()
        for start in range(0, len(paths), BATCH):
            decode(slice(start, start + BATCH))
        return sum(header.duration for header in headers) / (perf_counter() - began)

    def with_hser(part: slice, checksum: bool) -> None:
        options = DecodeOptions(workers=THREADS, checksum=checksum)
        batch = decode_batch(utterances[part], headers[part], options, pool)
        assert all(isinstance(result, Decoded) for result in batch)

    with ThreadPoolExecutor(THREADS) as pool:
        decoders: dict[str, Callable[[slice], object]] = {
            "soundfile": lambda part: list(pool.map(with_soundfile, paths[part]))
        }
        decoders |= {name: partial(with_hser, checksum=checksum) for name, checksum in HSER.items()}
        return harness.take_turns({name: partial(speed, decode) for name, decode in decoders.items()}, rounds)


def main(argv: Sequence[str] | None = None) -> int:
    args = harness.arguments(
        __doc__,
        argv,
        data=harness.SHARED_DATA,
        rounds=7,
        files=(384, "at most so many recordings of each kind"),
    )
    rows: list[dict[str, Any]] = []
    for name, pattern in FILES.items():
        paths = sorted(str(path) for path in args.data.glob(pattern))[: args.files]
        if not paths:
            print(f"{name}: no recordings at {args.data / pattern}")
            continue
        speeds = measure(paths, args.rounds)
        base = median(speeds["soundfile"])
        ratios = {f"{who}/soundfile": median(speeds[who]) / base for who in HSER}
        rows.append({"files": name, "recordings": len(paths), "speeds": speeds, "ratios": ratios})
    if not rows:
        print("nothing measured: name the data folder with --data")
        return harness.CANNOT_RUN
    result = {
        "what": "audio seconds decoded per second, to 16 kHz mono float32",
        "threads": THREADS,
        "batch": BATCH,
        "backends": backends(),
        "soundfile": soundfile.__version__,
        "libsndfile": soundfile.__libsndfile_version__,
        "rows": rows,
    }
    publish("decode", result, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
