"""What padding does to an embedding: batches of `transformers` and of hser against each clip alone.

    python -m benchmarks.padding

Eight clips of different lengths, mean-pooled over their own frames, hubert-base's and hubert-large's
architecture with random weights, fp32. Given is the relative L2 distance of the last layer from that of
the clip alone, unpadded, by `transformers`: the least and the most of the eight. The batch of
`transformers` is padded, with an attention mask where the model takes one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.baselines import inside, transformers_model
from benchmarks.encoder import mean_pooled
from benchmarks.harness import arguments
from benchmarks.readme import publish
from benchmarks.stand_ins import speech
from extractor.encoders import Model
from extractor.types import SAMPLE_RATE

NUM_CLIPS = 8
MODELS = ("hubert-base", "hubert-large")
CPU = torch.device("cpu")


def padded(model: Any, inputs: Sequence[Tensor]) -> np.ndarray:
    """``[U, D]``: all in one batch, pooled over the true lengths."""
    batch = torch.nn.utils.rnn.pad_sequence(list(inputs), batch_first=True)
    lengths = torch.tensor([len(w) for w in inputs])
    # Group-norm checkpoints are used without a mask: their own documentation says so.
    layer_norm = model.config.feat_extract_norm == "layer"
    masked = {"attention_mask": inside(lengths, batch.shape[1])} if layer_norm else {}
    hidden = model(batch, **masked).last_hidden_state
    frames = (lengths - 400) // 320 + 1
    return torch.stack([h[:n].mean(0) for h, n in zip(hidden, frames, strict=True)]).numpy()


def measure(name: str, waveforms: Sequence[np.ndarray]) -> dict[str, Any]:
    model = transformers_model(name, torch.float32, CPU)
    inputs = [torch.from_numpy(w) for w in waveforms]
    # The random checkpoints of hser normalise layer-norm models only, as the real ones do.
    if model.config.feat_extract_norm == "layer":
        inputs = [(w - w.mean()) / torch.sqrt(w.var(correction=0) + 1e-7) for w in inputs]
    with torch.inference_mode():
        alone = torch.stack([model(w[None]).last_hidden_state[0].mean(0) for w in inputs]).numpy()
        together = padded(model, inputs)
    packed = mean_pooled(Model(f"random:{name}", "fp32", CPU), waveforms)[:, -1]
    size = np.linalg.norm(alone, axis=1)
    return {
        "model": name,
        "norm": model.config.feat_extract_norm,
        "transformers": (np.linalg.norm(together - alone, axis=1) / size).tolist(),
        "hser": (np.linalg.norm(packed - alone, axis=1) / size).tolist(),
    }


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(__doc__, argv)
    with tempfile.TemporaryDirectory() as scratch:
        waveforms = speech(60.0, Path(scratch), NUM_CLIPS)
    rows = [measure(name, waveforms) for name in MODELS]
    result = {"clip_seconds": [len(w) / SAMPLE_RATE for w in waveforms], "rows": rows}
    publish("padding", result, args.out)


if __name__ == "__main__":
    main()
