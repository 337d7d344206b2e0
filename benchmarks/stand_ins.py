"""Stand-ins where no corpus and no checkpoint is at hand: recordings of noise, small random models."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from extractor.types import SAMPLE_RATE, Seconds

if TYPE_CHECKING:
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


def write_config(folder: Path, kind: str = "hubert", norm: str = "layer") -> str:
    """A folder with a config alone; returns the model spec that runs it with random weights."""
    from extractor.encoders.checkpoint import RANDOM

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": kind, **SMALL, **NORMS[norm]}))
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
