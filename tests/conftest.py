"""What several test files need: tiny checkpoints in the hub's layout, real recordings, tolerances."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.stand_ins import SMALL

# Kernels run in Triton's interpreter where there is no GPU; it is chosen when triton is first imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")  # that kernels are tested on
BACKENDS = ("torch", "triton")

ROOT = Path(__file__).parents[1]
SHARED_DATA = ROOT.parent / "shared" / "data"

# Relative L2 error against the reference in fp32: both sum a few thousand products in other orders.
FP32_RELATIVE = 1e-5
# Cosine of a bf16 row to its fp32 row: 8 bits of mantissa through two dozen layers.
BF16_COSINE = 0.999

MakeCheckpoint = Callable[..., Path]


def relative_error(a: torch.Tensor, b: torch.Tensor) -> float:
    """||a - b|| / ||b||; NaN anywhere gives NaN, which no tolerance passes."""
    return ((a - b).norm() / b.norm()).item()


def shared(name: str) -> Path:
    """A folder of real recordings; skips the test where it is not at hand."""
    folder = SHARED_DATA / name
    if not folder.is_dir():
        pytest.skip(f"no real recordings at hand ({name})")
    return folder


def touch(root: Path, *names: str) -> Path:
    """Empty files below ``root``, which is returned."""
    for name in names:
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return root


def make_model(kind: str, **changes: Any) -> Any:
    """A tiny `transformers` model whose every weight is random: norms and biases too."""
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.for_model(kind, **{**SMALL, **changes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModel.from_config(config, dtype=torch.float32).eval()
        for name, parameter in model.named_parameters():
            torch.nn.init.normal_(parameter, 1.0 if name.endswith("norm.weight") else 0.0, 0.3)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0.0, 0.3)
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 2.0)
    return model


def reference_layers(model: Any, waveform: torch.Tensor) -> list[torch.Tensor]:
    """All layers of one recording alone, unpadded: ``L`` of ``[T, D]``.

    transformers 4 had the final LayerNorm in ``hidden_states[-1]``, transformers 5 has not;
    ``last_hidden_state`` is the normed one in both.
    """
    with torch.no_grad():
        out = model(waveform[None], output_hidden_states=True)
    return [h[0] for h in (*out.hidden_states[:-1], out.last_hidden_state)]


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Fresh memory is NaN: an output that is never written cannot pass."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all() and torch.empty(3, dtype=torch.complex64).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> MakeCheckpoint:
    """Makes folders in the hub's layout: ``checkpoint("hubert", do_stable_layer_norm=True)``."""
    made: dict[str, Path] = {}

    def make(kind: str = "hubert", do_normalize: bool | None = True, **changes: Any) -> Path:
        key = json.dumps([kind, do_normalize, changes], sort_keys=True)
        if key not in made:
            folder = tmp_path_factory.mktemp(kind)
            make_model(kind, **changes).save_pretrained(folder)
            if do_normalize is not None:
                preprocessor = {"do_normalize": do_normalize, "sampling_rate": 16_000}
                (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
            made[key] = folder
        return made[key]

    return make


@pytest.fixture
def without_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take most of the time of writing a model and say nothing about it."""
    monkeypatch.setattr("classifiers.charts.plots.write_png", lambda figure, path: None)


@pytest.fixture(scope="session")
def tones(tmp_path_factory: pytest.TempPathFactory, checkpoint: MakeCheckpoint) -> tuple[Path, Path, Path]:
    """A folder of recordings, runs of them as pooled MFCC and through a tiny HuBERT with all layers."""
    from extractor import extract
    from tests.model_cases import write_tones

    folder = tmp_path_factory.mktemp("tones")
    manifest, mfcc, hubert = write_tones(folder), folder / "mfcc", folder / "hubert"
    extract(manifest, model="mfcc", pooling="meanstd", out=mfcc)
    model = str(checkpoint("hubert"))
    extract(manifest, model=model, layers="all", pooling="mean,none", dtype="fp32", out=hubert)
    return folder, mfcc, hubert
