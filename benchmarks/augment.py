"""What augmentation costs on a CPU: each row of the table against encoding the same recordings.

    python -m benchmarks.augment [--rounds 5] [--seconds 60] [--model hubert-base]

One core each: milliseconds an audio second of the original, for drawing the recipes and making the audio
by the function that a run calls, batch by batch; and their share of the time that the encoder takes for
the recordings as they are (random weights, its default precision), measured in turns with them. EmoDB's
recordings where they are at hand, else synthetic speech. `torchaudio` is what it has for the same: its
TimeStretch, and its two masks, between torch's transforms, recording by recording, as users write it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.common import median, print_table, spread, take_turns, write_result
from benchmarks.encoder import audio_seconds, jobs, read, recordings
from extractor.augment import (
    AUGMENTATIONS,
    Augmentation,
    Clip,
    LatentMask,
    OneOf,
    PitchShift,
    Pool,
    Recipe,
    Source,
    SpecAugment,
    TimeStretch,
    draw,
    parse,
    to_text,
)
from extractor.encoders import Model
from extractor.run.batch import BatchEncoder, augmented
from extractor.run.recipe import CPU_BATCH
from extractor.run.staging import Job
from extractor.types import SAMPLE_RATE, Decoded, Failure

CPU = torch.device("cpu")
CHAIN = "stretch+specaugment+gain+noise+timemask"
AIM, SPECTRAL_AIM = 0.10, 0.25  # of encoding
SPECTRAL = (TimeStretch, SpecAugment, PitchShift)
ENCODE = "encode"
SEED = 7
STRETCH = TimeStretch.name

N_FFT, HOP = 640, 160  # as hser's
RATES = (0.8, 1.25)
MOST_BINS, MOST_FRAMES = 108, 100  # LD: 27 of 80 mel channels are at most that many bins; two masks each


@dataclass(frozen=True, slots=True)
class Corpus:
    """Recordings in memory, as batches of a run, and what is drawn from them."""

    planned: Sequence[Job]
    waveforms: Sequence[np.ndarray]
    pool: Pool

    @classmethod
    def of(cls, waveforms: Sequence[np.ndarray]) -> Corpus:
        sources = [Source(str(i), len(w), "neutral", "speaker") for i, w in enumerate(waveforms)]
        return cls(jobs(waveforms, CPU_BATCH), waveforms, Pool(sources))

    @property
    def seconds(self) -> float:
        return audio_seconds(self.waveforms)

    def ready(self, job: Job, augmentation: Augmentation, copy: int) -> Job:
        """The job with its recipes drawn, and the recordings that they take in beside it."""
        recipes = [draw(augmentation, self._source(u.id), SEED, copy, self.pool) for u in job.utterances]
        return replace(job, recipes=recipes, clips=self._clips(recipes))

    def _source(self, name: str) -> Source:
        return Source(name, len(self.waveforms[int(name)]), "neutral", "speaker")

    def _clips(self, recipes: Sequence[Recipe]) -> dict[Clip, Decoded | Failure]:
        needed = dict.fromkeys(clip for recipe in recipes for clip in recipe.clips)
        return {clip: Decoded(self.waveforms[int(clip.id)], "") for clip in needed}


def augment_all(corpus: Corpus, augmentation: Augmentation, copy: int) -> float:
    """Milliseconds an audio second: recipes drawn and carried out, as a run does."""
    began = time.perf_counter()
    with torch.inference_mode():
        for job in corpus.planned:
            results = augmented(corpus.ready(job, augmentation, copy), CPU)
            failed = next((r for r in results if isinstance(r, Failure)), None)
            if failed is not None:
                raise RuntimeError(f"recording {failed.id}: {failed.reason}")
    return 1000 * (time.perf_counter() - began) / corpus.seconds


def encode_all(corpus: Corpus, encode: BatchEncoder) -> float:
    """Milliseconds an audio second: every layer of the recordings as they are, mean-pooled."""
    began = time.perf_counter()
    for job in corpus.planned:
        if encode(job).failures:
            raise RuntimeError("a recording could not be encoded")
    return 1000 * (time.perf_counter() - began) / corpus.seconds


def torchaudio_all(corpus: Corpus, edit: Callable[[Tensor], Tensor]) -> float:
    """Milliseconds an audio second: ``edit`` on complex ``[F, T]`` of each recording."""
    window = torch.hann_window(N_FFT)
    began = time.perf_counter()
    with torch.inference_mode():
        for waveform in corpus.waveforms:
            x = torch.from_numpy(waveform)
            frames = torch.stft(x, N_FFT, HOP, window=window, pad_mode="constant", return_complex=True)
            torch.istft(edit(frames), N_FFT, HOP, window=window)
    return 1000 * (time.perf_counter() - began) / corpus.seconds


def torchaudio_ways() -> dict[str, Callable[[Tensor], Tensor]]:
    """Complex ``[F, T]`` edited, by the name of our row."""
    from torchaudio.transforms import FrequencyMasking, TimeMasking, TimeStretch

    stretches = [TimeStretch(HOP, N_FFT // 2 + 1, rate) for rate in RATES]
    masks = [FrequencyMasking(MOST_BINS), TimeMasking(MOST_FRAMES)] * 2

    def stretch(frames: Tensor) -> Tensor:
        return stretches[frames.shape[1] % len(RATES)](frames[None])[0]

    def mask(frames: Tensor) -> Tensor:
        # The masks fail on complex numbers; given both parts in front of them, they mask both alike.
        parts = torch.view_as_real(frames).movedim(-1, 0)
        for each in masks:
            parts = each(parts)
        return torch.view_as_complex(parts.movedim(0, -1).contiguous())

    # SpecAugment's time warp is a stretch by two rates, whose cost is that of one.
    return {STRETCH: stretch, SpecAugment.name: lambda frames: mask(stretch(frames))}


def asked() -> list[str]:
    """Each row of the table with its defaults, one of two, and a chain."""
    one_of = OneOf([(TimeStretch(rate=(0.8, 1.25)), 0.6), (SpecAugment("LD"), 0.4)])
    return [*AUGMENTATIONS, to_text(one_of), CHAIN]


def contenders(corpus: Corpus, encode: BatchEncoder) -> dict[str, Callable[[], float]]:
    found: dict[str, Callable[[], float]] = {ENCODE: lambda: encode_all(corpus, encode)}
    copies = count(1)  # each time new draws: what was kept from the last ones does not help
    for text in asked():
        augmentation = parse(text)
        found[text] = lambda a=augmentation: augment_all(corpus, a, next(copies))  # type: ignore[misc]
    for text, edit in torchaudio_ways().items():
        found[f"torchaudio, {text}"] = lambda e=edit: torchaudio_all(corpus, e)  # type: ignore[misc]
    return found


def measure(model_name: str, corpus: Corpus, rounds: int) -> dict[str, Any]:
    """The result file's content."""
    model = Model(f"random:{model_name}", "auto", CPU)
    layers = tuple(range(model.encoder.num_layers))
    encode = BatchEncoder(model, layers, ("mean",), 60 * SAMPLE_RATE, round(CPU_BATCH * SAMPLE_RATE))
    figures = take_turns(contenders(corpus, encode), rounds)
    encoding = median(figures[ENCODE])
    rows = []
    for text in asked():
        augmentation = parse(text)
        leaves = augmentation.inner or (augmentation,)
        share = median(figures[text]) / encoding
        aim = SPECTRAL_AIM if any(isinstance(leaf, SPECTRAL) for leaf in leaves) else AIM
        baseline = figures.get(f"torchaudio, {text}")
        rows.append(
            {
                "augmentation": text,
                "latent": any(isinstance(leaf, LatentMask) for leaf in leaves),
                "ms": figures[text],
                "share": share,
                "aim": aim,
                "met": share < aim,
                "torchaudio_ms": baseline,
            }
        )
    return {
        "what": "milliseconds of one core an audio second",
        "model": model_name,
        "dtype": model.dtype,
        "recordings": len(corpus.waveforms),
        "audio_seconds": corpus.seconds,
        "encode_ms": figures[ENCODE],
        "rows": rows,
    }


def print_result(result: dict[str, Any]) -> None:
    encoding = f"{result['model']} {result['dtype']}"
    print(f"encoding, {encoding}: {spread(result['encode_ms'])} ms of one core an audio second")
    rows = [
        [
            row["augmentation"],
            spread(row["ms"]),
            spread(row["torchaudio_ms"]) if row["torchaudio_ms"] else "-",
            f"{row['share']:.1%}",
            f"{row['aim']:.0%} {'met' if row['met'] else 'NOT MET'}",
        ]
        for row in result["rows"]
    ]
    print_table(["ms an audio second", "hser", "torchaudio", "of encoding", "aim"], rows)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="hubert-base")
    parser.add_argument("--seconds", type=float, default=60.0, help="of audio")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        corpus = Corpus.of(read(recordings(args.seconds, Path(scratch))))
    result = measure(args.model, corpus, args.rounds)
    print_result(result)
    write_result("augment", result, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
