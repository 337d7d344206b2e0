"""What augmentation costs on a CPU: each row of the table against encoding the same recordings.

    python -m benchmarks.augment [--rounds 5] [--seconds 60] [--model hubert-base]

One core each: milliseconds an audio second of the original, for drawing the recipes and making the audio
by the function that a run calls, batch by batch; and their share of the time that the encoder takes for
the recordings as they are (random weights, its default precision), measured in turns with them. EmoDB's
recordings where they are at hand, else synthetic speech. `torchaudio` is what it has for the same: its
TimeStretch, and its two masks, between torch's transforms, recording by recording, as users write it.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.encoder import batch_encoder, planned_batches
from benchmarks.harness import arguments, take_turns
from benchmarks.kernel_cases import torchaudio_masks
from benchmarks.readme import publish
from benchmarks.stand_ins import audio_seconds, speech
from cuda_kernels.spectral import HOP, N_FFT
from extractor.augment import (
    AUGMENTATIONS,
    Augmentation,
    LatentMask,
    OneOf,
    Original,
    PitchShift,
    Pool,
    SpecAugment,
    TimeStretch,
    draw,
    parse,
    to_text,
)
from extractor.encoders import Model
from extractor.run.batch import augmented, stage
from extractor.run.recipe import CPU_BATCH
from extractor.types import Decoded

CPU = torch.device("cpu")
CHAIN = "stretch+specaugment+gain+noise+timemask"
AIM, SPECTRAL_AIM = 0.10, 0.25  # of encoding
SPECTRAL = (TimeStretch, SpecAugment, PitchShift)
ENCODE = "encode"
SEED = 7
RATES = (0.8, 1.25)


class Corpus:
    """Recordings in memory, as batches of a run; figures are milliseconds an audio second."""

    def __init__(self, waveforms: Sequence[np.ndarray]) -> None:
        self.waveforms = waveforms
        self.planned = planned_batches(waveforms, CPU_BATCH)
        self.sources = [Original(str(i), len(w), "neutral", "speaker") for i, w in enumerate(waveforms)]
        self.pool = Pool(self.sources)

    def timed(self, work: Callable[[], object]) -> float:
        began = time.perf_counter()
        with torch.inference_mode():
            work()
        return 1000 * (time.perf_counter() - began) / audio_seconds(self.waveforms)

    def augment(self, augmentation: Augmentation, copy: int) -> None:
        """Recipes drawn and carried out, as a run does."""
        for batch in self.planned:
            sources = [self.sources[int(row.utterance.id)] for row in batch.rows]
            recipes = [draw(augmentation, source, SEED, copy, self.pool) for source in sources]
            needed = dict.fromkeys(clip for recipe in recipes for clip in recipe.clips)
            clips = {clip: Decoded(self.waveforms[int(clip.id)], "") for clip in needed}
            rows = [replace(row, recipe=recipe) for row, recipe in zip(batch.rows, recipes, strict=True)]
            _, failures = augmented(stage(replace(batch, rows=rows, clips=clips), CPU))
            if failures:
                raise RuntimeError(f"recording {failures[0].id}: {failures[0].reason}")

    def with_torchaudio(self, edit: Callable[[Tensor], Tensor]) -> None:
        """``edit`` on complex ``[F, T]`` of each recording."""
        window = torch.hann_window(N_FFT)
        for waveform in self.waveforms:
            x = torch.from_numpy(waveform)
            frames = torch.stft(x, N_FFT, HOP, window=window, pad_mode="constant", return_complex=True)
            torch.istft(edit(frames), N_FFT, HOP, window=window)


def torchaudio_ways() -> dict[str, Callable[[Tensor], Tensor]]:
    """Complex ``[F, T]`` edited, by the name of our row."""
    from torchaudio.transforms import TimeStretch as Stretch

    stretches = [Stretch(HOP, N_FFT // 2 + 1, rate) for rate in RATES]
    masked = torchaudio_masks(2)  # as LD has them

    def stretch(frames: Tensor) -> Tensor:
        return stretches[frames.shape[1] % len(RATES)](frames[None])[0]

    # SpecAugment's time warp is a stretch by two rates, whose cost is that of one.
    return {TimeStretch.name: stretch, SpecAugment.name: lambda frames: masked(stretch(frames))}


def texts() -> list[str]:
    """Each row of the table with its defaults, one of two, and a chain."""
    one_of = OneOf([(TimeStretch(rate=(0.8, 1.25)), 0.6), (SpecAugment("LD"), 0.4)])
    return [*AUGMENTATIONS, to_text(one_of), CHAIN]


def measure(model_name: str, corpus: Corpus, rounds: int) -> dict[str, Any]:
    """The result file's content."""
    model = Model(f"random:{model_name}", "auto", CPU)
    encode, _ = batch_encoder(model)

    def encode_all() -> None:
        """Every layer of the recordings as they are, mean-pooled."""
        for batch in corpus.planned:
            if encode(batch).failures:
                raise RuntimeError("a recording could not be encoded")

    copies = count(1)  # each time new draws: what was kept from the last ones does not help
    works: dict[str, Callable[[], None]] = {ENCODE: encode_all}
    for text in texts():
        works[text] = partial(lambda a: corpus.augment(a, next(copies)), parse(text))
    for text, edit in torchaudio_ways().items():
        works[f"torchaudio, {text}"] = partial(corpus.with_torchaudio, edit)
    figures = take_turns({name: partial(corpus.timed, work) for name, work in works.items()}, rounds)
    encoding = median(figures[ENCODE])
    rows = []
    for text in texts():
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
        "audio_seconds": audio_seconds(corpus.waveforms),
        "encode_ms": figures[ENCODE],
        "rows": rows,
    }


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(__doc__, argv, model="hubert-base", seconds=(60.0, "of audio"), rounds=5)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        corpus = Corpus(speech(args.seconds, Path(scratch)))
    result = measure(args.model, corpus, args.rounds)
    publish("augment", result, args.out)


if __name__ == "__main__":
    main()
