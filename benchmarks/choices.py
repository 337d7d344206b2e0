"""What each choice of the forward pass on a CPU gives: each taken away alone, then all, in one run.

    python -m benchmarks.choices [--models hubert-large,wavlm-large] [--lengths emodb] [--rounds 3]

The encoder runs as in `benchmarks.encoder`, all layers mean-pooled, with random weights; `CHOICES` says what
stands in a choice's place. The result also has where the time goes, by stage, without any and with all.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks import breakdown
from benchmarks.baselines import sdpa
from benchmarks.encoder import AUDIO, Settings, bare, batch_encoder, planned_batches
from benchmarks.harness import arguments, replaced, take_turns
from benchmarks.readme import publish
from benchmarks.stand_ins import audio_seconds, find, label, read
from extractor.encoders import Model
from extractor.run.batch import BatchEncoder
from extractor.run.pipeline import most_streams
from extractor.types import Seconds

CPU = torch.device("cpu")
ALL, NONE = "all of them", "none of them"
ONE_BY_ONE: Seconds = 0.01  # of audio in a batch: shorter than any recording, which then goes alone


@dataclass(frozen=True, slots=True)
class PassChoice:
    """``instead`` is what is there without it: values by the places that they are read from."""

    what: str
    without: str
    instead: Mapping[str, Any]
    at_load: bool = False  # a model is made differently
    batch: Seconds | None = None  # of audio, instead of the engine's


CHOICES = (
    PassChoice(
        "weights laid out once; bias, GELU and sum in the product",
        "`F.linear`, `F.conv2d`, `F.gelu`",
        {"extractor.encoders.linear._packs": lambda device, dtype: False},
        at_load=True,
    ),
    PassChoice(
        "CNN in blocks of 64 frames",
        "blocks of 4,096",
        {"extractor.encoders.cnn._BLOCK_FRAMES": {"cpu": 4096}},
        at_load=True,
    ),
    PassChoice("attention by batched products", "SDPA", {"extractor.encoders.transformer.attend": sdpa}),
    PassChoice(
        "rows rounded up to 32",
        "as many as there are",
        {f"extractor.encoders.{module}.ROW_MULTIPLE": 1 for module in ("transformer", "wav2vec2")},
    ),
    PassChoice(
        "one batch a core", "one batch, all cores", {"benchmarks.encoder.num_streams": lambda device, n: 1}
    ),
    PassChoice("packed batches", "one by one", {}, batch=ONE_BY_ONE),
)


def without(*choices: PassChoice) -> AbstractContextManager[None]:
    return replaced({place: value for choice in choices for place, value in choice.instead.items()})


def measure(name: str, lengths: str, rounds: int, seconds: Seconds, scratch: Path) -> dict[str, Any]:
    """A row of the result file."""
    files, content = find(lengths, seconds, scratch)
    waveforms = read(files)

    def load() -> tuple[Model, BatchEncoder, Seconds]:
        model = Model(f"random:{name}", "auto", CPU)
        return model, *batch_encoder(model)

    def runner(encode: BatchEncoder, batch: Seconds, *away: PassChoice) -> Callable[[], float]:
        planned = planned_batches(waveforms, batch, most_streams(CPU.type))

        def run() -> float:
            with without(*away):
                return bare(encode, planned, audio_seconds(waveforms))

        return run

    def stages(model: Model, encode: BatchEncoder, batch: Seconds) -> dict[str, float]:
        """Milliseconds of one core an audio second; the model is of no use afterwards."""
        every = max(1, round(audio_seconds(waveforms) / breakdown.AUDIO["cpu"]))
        planned = planned_batches(sorted(waveforms, key=len)[::every], batch)
        found = breakdown.trace_batches(model, encode, planned, scratch / "trace.json")
        return {stage: 1e3 * spent / found.audio for stage, spent in found.seconds.items()}

    ours, encode, batch = load()
    runs = {ALL: runner(encode, batch)}
    for choice in CHOICES:
        other = encode
        if choice.at_load:
            with without(choice):
                _, other, _ = load()
        runs[choice.what] = runner(other, choice.batch or batch, choice)
    with without(*CHOICES):
        plain, other, _ = load()
    runs[NONE] = runner(other, ONE_BY_ONE, *CHOICES)
    speeds = take_turns(runs, rounds)
    with without(*CHOICES):
        before = stages(plain, other, ONE_BY_ONE)
    return {
        "model": name,
        "dtype": ours.dtype,
        "lengths": label(lengths),
        "content": content,
        "recordings": len(waveforms),
        "audio_seconds": audio_seconds(waveforms),
        "speeds": speeds,  # audio seconds per second, by what is taken away
        "gain": {what: median(speeds[ALL]) / median(each) for what, each in speeds.items() if what != ALL},
        "stages": {NONE: before, ALL: stages(ours, encode, batch)},
    }


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(
        __doc__,
        argv,
        models="hubert-large,wavlm-large",
        lengths=("emodb", "emodb, ravdess or seconds"),
        rounds=3,
        seconds=(AUDIO["cpu"], "of audio"),
    )
    models = tuple(args.models.split(","))
    Settings(models, (args.lengths,)).check()
    with tempfile.TemporaryDirectory(prefix="hser-choices-") as scratch:
        rows = [measure(name, args.lengths, args.rounds, args.seconds, Path(scratch)) for name in models]
    result = {
        "what": "audio seconds per second of the CPU's forward pass without each of its choices",
        "instead": {choice.what: choice.without for choice in CHOICES},
        "rows": rows,
    }
    publish("choices", result, args.out)


if __name__ == "__main__":
    main()
