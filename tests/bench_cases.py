"""Models of a few milliseconds, under names that all benchmarks know."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks import baselines, encoder
from benchmarks.stand_ins import NORMS, SMALL
from extractor.encoders.families import MODELS, HubModel


def small_torchaudio() -> Any:
    """`SMALL` as torchaudio builds it."""
    import torchaudio

    layers = zip(SMALL["conv_dim"], (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2), strict=True)
    dropouts = ("projection", "attention", "ff_interm")
    return torchaudio.models.wav2vec2_model(
        extractor_mode="layer_norm",
        extractor_conv_layer_config=list(layers),
        extractor_conv_bias=True,
        encoder_embed_dim=SMALL["hidden_size"],
        encoder_pos_conv_kernel=SMALL["num_conv_pos_embeddings"],
        encoder_pos_conv_groups=SMALL["num_conv_pos_embedding_groups"],
        encoder_num_layers=SMALL["num_hidden_layers"],
        encoder_num_heads=SMALL["num_attention_heads"],
        encoder_ff_interm_features=SMALL["intermediate_size"],
        encoder_dropout=0.0,
        encoder_layer_norm_first=True,
        encoder_layer_drop=0.0,
        aux_num_out=None,
        **{f"encoder_{part}_dropout": 0.0 for part in dropouts},
    )


@pytest.fixture(autouse=True)
def small_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """``small-hubert`` and ``small-wavlm``; threads stay as they were."""
    import torchaudio

    for kind in ("hubert", "wavlm"):
        architecture = {**SMALL, **NORMS["layer"]}
        monkeypatch.setitem(MODELS, f"small-{kind}", HubModel("none", kind, architecture))
    monkeypatch.setattr(torchaudio.models, "small", small_torchaudio, raising=False)
    monkeypatch.setitem(baselines.TORCHAUDIO, "small-hubert", "small")
    # Measuring the machine's takes seconds each time, and is tested with the GPU check.
    monkeypatch.setattr(encoder, "matrix_roof", lambda dtype, device, cores=None: 1e12)
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
