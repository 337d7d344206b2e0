"""What padding does to an embedding: batches of `transformers` and of hser against each clip alone.

    python -m benchmarks.padding

Eight clips of different lengths, mean-pooled over their own frames, hubert-base's and hubert-large's
architecture with random weights, fp32. Given is the relative L2 distance of the last layer from that of
the clip alone, unpadded, by `transformers`: the least and the most of the eight. The batch of
`transformers` is padded, with an attention mask where the model takes one.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import print_table, write_result
from benchmarks.encoder import jobs, read, recordings, transformers_model
from extractor.encoders import Model
from extractor.run.batch import BatchEncoder
from extractor.types import SAMPLE_RATE

NUM_CLIPS = 8
MODELS = ("hubert-base", "hubert-large")


def normalised(waveform: np.ndarray) -> torch.Tensor:
    w = torch.from_numpy(waveform)
    return (w - w.mean()) / torch.sqrt(w.var(correction=0) + 1e-7)


def alone(model: Any, inputs: Sequence[torch.Tensor]) -> np.ndarray:
    """``[U, D]``: each recording by itself."""
    with torch.inference_mode():
        return torch.stack([model(w[None]).last_hidden_state[0].mean(0) for w in inputs]).numpy()


def padded(model: Any, inputs: Sequence[torch.Tensor]) -> np.ndarray:
    """``[U, D]``: all in one batch, pooled over the true lengths."""
    batch = torch.nn.utils.rnn.pad_sequence(list(inputs), batch_first=True)
    lengths = torch.tensor([len(w) for w in inputs])
    mask = torch.arange(batch.shape[1]) < lengths[:, None]
    # Group-norm checkpoints are used without a mask: their own documentation says so.
    masked = {"attention_mask": mask} if model.config.feat_extract_norm == "layer" else {}
    with torch.inference_mode():
        hidden = model(batch, **masked).last_hidden_state
    frames = (lengths - 400) // 320 + 1
    return torch.stack([h[:n].mean(0) for h, n in zip(hidden, frames, strict=True)]).numpy()


def packed(name: str, waveforms: Sequence[np.ndarray]) -> np.ndarray:
    """``[U, D]``: hser, all in one batch, in the order of ``waveforms``."""
    model = Model(f"random:{name}", "fp32", torch.device("cpu"))
    last = model.encoder.num_layers - 1
    encode = BatchEncoder(model, (last,), ("mean",), 60 * SAMPLE_RATE, 600 * SAMPLE_RATE)
    (job,) = jobs(waveforms, 600)
    rows = encode(job).pooled["mean"][:, 0]
    return rows[np.argsort(job.positions)]


def distances(rows: np.ndarray, reference: np.ndarray) -> np.ndarray:
    return np.linalg.norm(rows - reference, axis=1) / np.linalg.norm(reference, axis=1)


def measure(name: str, waveforms: Sequence[np.ndarray]) -> dict[str, Any]:
    model = transformers_model(name, torch.float32, torch.device("cpu"))
    # The random checkpoints of hser normalise layer-norm models only, as the real ones do.
    layer_norm = model.config.feat_extract_norm == "layer"
    inputs = [normalised(w) if layer_norm else torch.from_numpy(w) for w in waveforms]
    reference = alone(model, inputs)
    return {
        "model": name,
        "norm": model.config.feat_extract_norm,
        "transformers": distances(padded(model, inputs), reference).tolist(),
        "hser": distances(packed(name, waveforms), reference).tolist(),
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        files = recordings(60.0, Path(scratch))
        by_length = sorted(read(files), key=len)
    waveforms = by_length[:: max(1, len(by_length) // NUM_CLIPS)][:NUM_CLIPS]
    rows = [measure(name, waveforms) for name in MODELS]
    seconds = [len(w) / SAMPLE_RATE for w in waveforms]
    print_table(
        ["", "transformers, padded batch", "hser"],
        [
            [
                f"{r['model']} ({r['norm']} norm)",
                *(f"{min(r[k]):.1e} - {max(r[k]):.1e}" for k in ("transformers", "hser")),
            ]
            for r in rows
        ],
    )
    write_result("padding", {"clip_seconds": seconds, "rows": rows}, args.out)


if __name__ == "__main__":
    main()
