"""Fewer bits against fp32, at toy size: each dtype is what it says, and the table shows the lowest."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import MakeCheckpoint, relative_error

from benchmarks import precision, readme
from benchmarks.precision import E4M3, Float8Linear, float8, rounded
from benchmarks.stand_ins import write_clips
from extractor.encoders import Model
from extractor.encoders.linear import Linear, can_run_int8

CPU = torch.device("cpu")


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


def test_values_are_rounded_to_what_e4m3_holds() -> None:
    x = normal(50, 300) * torch.logspace(-6, 6, 50)[:, None]
    back = rounded(x)
    scale = x.abs().amax(1, keepdim=True) / 448
    assert torch.equal((back / scale).to(E4M3).float() * scale, back)  # another rounding changes nothing
    # Three bits behind the leading one: off by a sixteenth at most, and by half the smallest step, 2^-9.
    assert ((back - x).abs() <= x.abs() / 16 + scale * 2**-10 * 1.001).all()
    assert torch.equal(rounded(torch.zeros(2, 3)), torch.zeros(2, 3))


def test_products_in_e4m3_are_near_the_exact_ones_and_not_equal() -> None:
    weight, bias, x, residual = normal(96, 64), normal(96), normal(40, 64), normal(40, 96)
    ours = Float8Linear(weight, bias)
    exact = Linear(weight, bias, torch.float32, CPU)
    for got, wanted in (
        (ours(x), exact(x)),
        (ours.gelu(x), exact.gelu(x)),
        (ours.add(x, residual), exact.add(x, residual)),
    ):
        assert 0.005 < relative_error(got, wanted) < 0.06


def test_only_models_built_inside_are_in_e4m3(checkpoint: MakeCheckpoint) -> None:
    with float8():
        inside = Model(str(checkpoint()), "bf16", CPU).encoder
    outside = Model(str(checkpoint()), "bf16", CPU).encoder
    assert isinstance(inside.layers[0].fc1, Float8Linear)  # type: ignore[attr-defined]
    assert not isinstance(outside.layers[0].fc1, Float8Linear)  # type: ignore[attr-defined]


def test_the_benchmark_gives_a_row_a_model(
    checkpoint: MakeCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = write_clips(tmp_path / "clips", (0.5, 0.9, 1.4))
    monkeypatch.setattr(precision, "recordings", lambda seconds, folder: files)
    folder = checkpoint(do_stable_layer_norm=True, feat_extract_norm="layer")
    out = tmp_path / "toy.json"
    precision.main(
        ["--models", f"{folder / 'config.json'}", "--checkpoint", f"tiny={folder}", "--out", str(out)]
    )
    result = json.loads(out.read_text())
    assert result["rows"][0]["model"] == str(folder / "config.json")
    assert [row["weights"] for row in result["rows"]] == ["random", "its own"]
    for row in result["rows"]:
        assert row["pooled"].keys() == {"bf16", "fp8"} | ({"int8"} if can_run_int8(CPU) else set())
        lowest = {dtype: min(cosines) for dtype, cosines in row["frames"].items()}
        assert lowest["fp8"] < lowest["bf16"] < 1
        assert all(0.9 < cosine <= 1 for by_layer in row["pooled"].values() for cosine in by_layer)
    shown = readme.precision_table(result)
    assert f"{min(result['rows'][1]['pooled']['fp8']):.5f}" in shown and "tiny, its own weights" in shown


def test_a_checkpoint_needs_its_folder() -> None:
    with pytest.raises(SystemExit):
        precision.main(["--checkpoint", "tiny"])


def test_clips_go_from_the_shortest_to_the_longest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = write_clips(tmp_path, tuple(np.linspace(0.5, 2.0, 20)))
    monkeypatch.setattr(precision, "recordings", lambda seconds, folder: files)
    lengths = [len(clip) for clip in precision.clips(tmp_path)]
    assert len(lengths) == precision.NUM_CLIPS and lengths == sorted(lengths) and lengths[0] == 8_000
