"""What is measured where no corpus, checkpoint or run is at hand: recordings, small random models, stores.

Speed depends on lengths and not on what is said, so where a corpus is not at hand, noise of its lengths
stands in; the result says which it was.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.harness import SHARED_DATA
from extractor.errors import SettingsError, unknown
from extractor.types import SAMPLE_RATE, FrameSink, Seconds

if TYPE_CHECKING:
    import torch

    from extractor.encoders.wav2vec2 import Wav2Vec2Encoder

NOISE_AMPLITUDE = 300  # of 32768: as quiet as a room, so that two hours of FLAC stay below a gigabyte
BLOCK_SECONDS = 10  # a long recording is written block by block

# Small enough for thousands of audio seconds per second, with every part of the architecture in it.
SMALL: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "conv_dim": [32] * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
# The two kinds of checkpoint (see README): what the large models have, and what the base ones have.
NORMS: dict[str, dict[str, Any]] = {
    "layer": {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True},
    "group": {"feat_extract_norm": "group", "do_stable_layer_norm": False},
}


# --- Recordings ---------------------------------------------------------------------------------


def write_noise(path: Path, duration: Seconds, sample_rate: int = SAMPLE_RATE, num_channels: int = 1) -> None:
    """16-bit noise; by ``path``'s suffix WAV or FLAC. The same path gives the same samples."""
    import soundfile

    rng = np.random.default_rng(list(path.name.encode()))
    left = round(duration * sample_rate)
    # FLAC's fastest level: noise does not get smaller by searching.
    level = {"compression_level": 0.0} if path.suffix == ".flac" else {}
    with soundfile.SoundFile(path, "w", sample_rate, num_channels, "PCM_16", **level) as file:
        while left:
            num_frames = min(left, BLOCK_SECONDS * sample_rate)
            shape = (num_frames, num_channels)
            file.write(rng.integers(-NOISE_AMPLITUDE, NOISE_AMPLITUDE, shape, dtype=np.int16, endpoint=True))
            left -= num_frames


def write_clips(folder: Path, durations: Sequence[Seconds]) -> list[str]:
    """A WAV of noise for each duration."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i:06d}.wav" for i in range(len(durations))]
    for path, duration in zip(paths, durations, strict=True):
        write_noise(path, duration)
    return [str(path) for path in paths]


@dataclass(frozen=True, slots=True)
class Lengths:
    """How long the recordings of a corpus are."""

    what: str
    quantiles: tuple[Seconds, ...]  # evenly spaced ones, from the shortest to the longest
    files: str | None = None  # where the recordings lie in the data folder, a glob


# Every twentieth quantile of the lengths that the files' headers state.
_EMODB: tuple[Seconds, ...] = (1.431, 1.619, 1.730, 1.811, 1.929, 2.044, 2.135, 2.222, 2.362, 2.450, 2.589)
_EMODB += (2.683, 2.833, 2.976, 3.167, 3.317, 3.554, 3.753, 3.932, 5.039, 8.978)
_RAVDESS: tuple[Seconds, ...] = (2.936, 3.203, 3.303, 3.403, 3.437, 3.470, 3.503, 3.537, 3.570, 3.637, 3.670)
_RAVDESS += (3.704, 3.737, 3.770, 3.837, 3.871, 3.971, 4.037, 4.138, 4.306, 5.272)

CORPORA: dict[str, Lengths] = {
    "emodb": Lengths("EmoDB: 339 of anger, happiness, neutral, sadness", _EMODB, "emodb/wav/*.wav"),
    "ravdess": Lengths("RAVDESS: all 1,440 speech recordings", _RAVDESS, "ravdess/*/*.flac"),
}


def lengths_of(name: str) -> Lengths:
    """A corpus of the table, or a number of seconds. Raises SettingsError for anything else."""
    if name in CORPORA:
        return CORPORA[name]
    try:
        seconds = float(name)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 60.0:  # longer ones are encoded in windows
        raise SettingsError(unknown("length", name, [*CORPORA, "1", "4", "10", "30"]) + ", 0.1 to 60 s")
    return Lengths(f"{seconds:g} s", (seconds, seconds))


def label(name: str) -> str:
    """As tables show it: ``4 s``, ``emodb``."""
    return name if name in CORPORA else lengths_of(name).what


def find(name: str, seconds: Seconds, scratch: Path) -> tuple[list[str], str]:
    """Files of about so many seconds, and what they are: the corpus's own where they suffice, else noise.

    A corpus that holds less than ``seconds`` is not repeated: noise of its lengths is taken instead.
    """
    import soundfile

    lengths = lengths_of(name)
    files = sorted(map(str, SHARED_DATA.glob(lengths.files))) if lengths.files else []
    if files and sum(soundfile.info(file).duration for file in files) >= 0.9 * seconds:
        return thinned(files, seconds), f"recordings of {lengths.what}"
    return write_clips(scratch / f"noise-{name}", draw(lengths, seconds)), f"noise, lengths of {lengths.what}"


def draw(lengths: Lengths, seconds: Seconds) -> list[Seconds]:
    """Durations whose distribution is ``lengths``, of about ``seconds`` in all, in a mixed order.

    They are the distribution's quantiles, so that nothing is left to chance but the order.
    """
    at = np.linspace(0, 1, len(lengths.quantiles))
    count = max(1, round(seconds / np.trapezoid(lengths.quantiles, at)))
    durations = np.interp((np.arange(count) + 0.5) / count, at, lengths.quantiles)
    return np.random.default_rng(0).permutation(durations).tolist()


def thinned(files: Sequence[str], seconds: Seconds) -> list[str]:
    """Every so-many-th file, so that about ``seconds`` of audio remain; at least one file."""
    import soundfile

    total = sum(soundfile.info(file).duration for file in files)
    return list(files[:: max(1, round(total / seconds))])


def read(files: Sequence[str]) -> list[np.ndarray]:
    """float32 ``[num_samples]`` each; all are at 16 kHz."""
    import soundfile

    return [soundfile.read(f, dtype="float32")[0] for f in files]


def speech(seconds: Seconds, scratch: Path, at_most: int | None = None) -> list[np.ndarray]:
    """EmoDB's recordings, or noise of their lengths; with ``at_most`` so many, from the shortest on."""
    waveforms = read(find("emodb", seconds, scratch)[0])
    if at_most is None:
        return waveforms
    return sorted(waveforms, key=len)[:: max(1, len(waveforms) // at_most)][:at_most]


def audio_seconds(waveforms: Sequence[np.ndarray]) -> Seconds:
    return sum(len(w) for w in waveforms) / SAMPLE_RATE


# --- Models -------------------------------------------------------------------------------------


def write_config(folder: Path, kind: str = "hubert") -> str:
    """A folder with a config alone; returns the model spec that runs it with random weights."""
    from extractor.encoders.checkpoint import RANDOM

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": kind, **SMALL, **NORMS["layer"]}))
    return f"{RANDOM}{folder}"


def small_encoders(kind: str, norm: str, devices: Sequence[str]) -> list[Wav2Vec2Encoder]:
    """One small model in fp32 on each device; norms and biases are random too, so that they count."""
    import torch
    from transformers import AutoConfig, AutoModel

    from extractor.encoders.wav2vec2 import Wav2Vec2Encoder

    config = AutoConfig.for_model(kind, **SMALL, **NORMS[norm])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModel.from_config(config, dtype=torch.float32, trust_remote_code=False)
        for name, parameter in model.named_parameters():
            torch.nn.init.normal_(parameter, 1.0 if name.endswith("norm.weight") else 0.0, 0.3)
    tensors = model.state_dict()
    return [
        Wav2Vec2Encoder(tensors, config, torch.float32, torch.device(device), norm == "layer")
        for device in devices
    ]


class KeptLayers(FrameSink):
    """All layers that an encoder gives for waveforms, on the CPU in fp32."""

    def __init__(self, encoder: Wav2Vec2Encoder, waveforms: Sequence[torch.Tensor]) -> None:
        self.layers: list[torch.Tensor] = []
        encoder.forward(encoder.normalise([w.to(encoder.device) for w in waveforms]), self)

    def add(self, layer: int, hidden: torch.Tensor) -> None:
        self.layers.append(hidden.float().cpu().clone())


# --- Stores -------------------------------------------------------------------------------------


def write_store(
    run: Path,
    num_rows: int,
    batches: Iterable[np.ndarray],
    batch_rows: int,
    labels: Callable[[int], tuple[str, str, str]] = lambda position: ("", "", ""),
) -> None:
    """A run whose rows are those of ``batches``, float32 ``[rows, L, D]``, in order.

    ``labels``: emotion, emotion as the corpus has it, and speaker, by position.
    """
    from extractor.store.run_folder import ManifestRow
    from extractor.store.writer import RunWriter
    from extractor.types import BatchResult, Row, Utterance

    def utterance(position: int) -> Utterance:
        return Utterance(f"u{position:09d}", f"/corpus/{position:09d}.wav", labels=labels(position))

    batches = iter(batches)
    first = next(batches)
    columns, layers, dims = (
        ("emotion", "emotion_raw", "speaker"),
        range(first.shape[1]),
        {"mean": first.shape[2]},
    )
    with RunWriter.open(run, {}, {}, columns, layers, dims) as writer:
        writer.write_manifest(ManifestRow(p, utterance(p), 16_000, p // batch_rows) for p in range(num_rows))
        start = 0
        for batch, x in enumerate(chain([first], batches)):
            positions = range(start, start + len(x))
            rows = [Row(p, utterance(p), 16_000, 49, "", "fp32") for p in positions]
            writer.commit(BatchResult(batch, rows, {"mean": x}))
            start += len(x)
