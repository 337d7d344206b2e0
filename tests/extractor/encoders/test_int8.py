"""int8: products near the exact ones row by row, and no run with a model that loses too much in it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torch.nn.functional as F
from conftest import MakeCheckpoint, make_model, relative_error, shared
from encoder_cases import CPU
from run_cases import Notes, write_noises
from run_cases import cosines as of_rows
from torch import Tensor

from extractor import SettingsError, Store
from extractor.audio.decode import DecodeOptions
from extractor.encoders import Model, resolve_dtype
from extractor.encoders.linear import Int8Linear, can_run_int8, quantise_rows
from extractor.run.engine import run
from extractor.run.fidelity import LEAST_COSINE, check_int8, cosines
from extractor.run.options import Options
from extractor.types import Utterance

needs_vnni = pytest.mark.skipif(
    not can_run_int8(CPU), reason="int8 needs a CPU with AVX-512 VNNI and BF16; this one lacks them"
)


@pytest.fixture
def layer() -> tuple[Tensor, Tensor]:
    """Weight ``[96, 64]`` and bias."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(96, 64, generator=generator), torch.randn(96, generator=generator)


def inputs(num_rows: int, seed: int = 1) -> Tensor:
    return torch.randn(num_rows, 64, generator=torch.Generator().manual_seed(seed)).bfloat16()


@pytest.fixture(scope="module")
def noises(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six recordings of noise, 1 to 6 s."""
    return write_noises(tmp_path_factory.mktemp("noises"), range(16_000, 7 * 16_000, 16_000))


@pytest.fixture
def with_outliers(tmp_path: Path) -> Path:
    """A checkpoint with a hidden unit that is far larger than all others, and that nothing depends on."""
    model = make_model("hubert")
    with torch.no_grad():
        for each in model.encoder.layers:
            each.feed_forward.intermediate_dense.bias[0] = 3_000.0
            each.feed_forward.output_dense.weight[:, 0] = 0.0
    model.save_pretrained(tmp_path / "outliers")
    return tmp_path / "outliers"


# --- Products --------------------------------------------------------------------------------------


def test_every_largest_value_keeps_its_sign_and_size() -> None:
    # All positive bf16 values of two octaves: their scales round up and down.
    top = torch.arange(0x3F80, 0x4080, dtype=torch.int16).view(torch.bfloat16)
    x = torch.stack([top, -top], 1)
    whole, unit = quantise_rows(x)
    back = (whole.float() - 128) * unit.float()
    # Half a unit of 126, and the unit and its inverse rounded to bf16.
    assert ((back - x.float()).abs() <= x.float().abs() * (0.5 / 125 + 2 * 2**-8)).all()


@needs_vnni
@pytest.mark.parametrize("num_rows", [1, 63, 512, 513, 1_100])
def test_products_are_near_the_exact_ones(num_rows: int, layer: tuple[Tensor, Tensor]) -> None:
    weight, bias = layer
    x, residual = inputs(num_rows), torch.randn(num_rows, 96).bfloat16()
    linear, exact = Int8Linear(weight, bias), F.linear(inputs(num_rows).float(), weight, bias)
    # A value's step is 1/126 of the largest of 64 (2.4 sigma): off by 0.6 %; as much by the weights.
    assert relative_error(linear(x).float(), exact) < 0.015
    assert relative_error(linear.gelu(x).float(), F.gelu(exact)) < 0.015
    assert relative_error(linear.add(x, residual).float(), exact + residual.float()) < 0.015


@needs_vnni
def test_a_row_does_not_depend_on_the_others(layer: tuple[Tensor, Tensor]) -> None:
    x, linear = inputs(700), Int8Linear(*layer)
    together = linear(x)
    for num_rows in (1, 32, 600):
        assert torch.equal(linear(x[:num_rows]), together[:num_rows])
    others = x.clone()
    others[1:] *= 1_000
    assert torch.equal(linear(others)[0], together[0])


@needs_vnni
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_shows(bad: float, layer: tuple[Tensor, Tensor]) -> None:
    x = inputs(3)
    x[1, 5] = bad
    y = Int8Linear(*layer)(x)
    assert not y[1].isfinite().any()
    assert y[[0, 2]].isfinite().all()


@needs_vnni
def test_zeros_give_the_bias(layer: tuple[Tensor, Tensor]) -> None:
    weight, bias = layer
    zeros = torch.zeros(2, 64, dtype=torch.bfloat16)
    assert torch.equal(Int8Linear(weight, bias)(zeros), bias.bfloat16().expand(2, -1))
    assert torch.equal(Int8Linear(weight, None)(zeros), torch.zeros(2, 96, dtype=torch.bfloat16))


# --- Models ----------------------------------------------------------------------------------------


def test_int8_is_refused_where_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    with pytest.raises(SettingsError, match=r"int8 on cpu: .*VNNI.* take --dtype auto"):
        resolve_dtype("int8", CPU)
    with pytest.raises(SettingsError, match="needs --device cpu"):
        resolve_dtype("int8", torch.device("cuda"))
    with pytest.raises(SettingsError, match="spectral encoders run in fp32"):
        resolve_dtype("int8", CPU, spectral=True)


@needs_vnni
@pytest.mark.parametrize("kind", ["hubert", "wavlm", "wav2vec2"])
def test_a_run_in_int8_points_where_fp32_does(
    kind: str, noises: Path, checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    # In models this small errors average less than in real ones; these norms hold them back.
    model = str(checkpoint(kind, do_stable_layer_norm=True, feat_extract_norm="layer"))
    rows, notes = {}, Notes()
    for dtype in ("fp32", "int8"):
        run(noises, Options(model=model, dtype=dtype), tmp_path / dtype, notes)
        with Store(tmp_path / dtype) as store:
            assert set(store.precisions) == {dtype}
            assert store.settings["dtype"] == dtype
            rows[dtype] = store.load()
    assert not np.array_equal(rows["fp32"], rows["int8"])  # it is not bf16 or fp32 under another name
    assert of_rows(rows["fp32"], rows["int8"]).min() >= LEAST_COSINE
    said = notes.of("int8 held against fp32 on 4 recordings")
    assert 0.999 <= float(said.split("embedding ")[1].split()[0]) < 1


@needs_vnni
@pytest.mark.parametrize(("pooling", "what"), [("mean", "embedding"), ("mean,none", "frames")])
def test_a_model_that_loses_too_much_is_refused_before_anything_is_written(
    pooling: str, what: str, noises: Path, with_outliers: Path, tmp_path: Path
) -> None:
    options = Options(model=str(with_outliers), dtype="int8", pooling=pooling)
    message = rf"in layer \d the cosine of the {what} to fp32 is 0\.\d+ .* take --dtype bf16"
    with pytest.raises(SettingsError, match=message):
        run(noises, options, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    run(noises, Options(model=str(with_outliers), dtype="bf16"), tmp_path / "run")


@needs_vnni
def test_recordings_that_cannot_be_read_are_not_heard(checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    model, notes = Model(str(checkpoint()), "int8", CPU), Notes()
    (tmp_path / "bad.wav").write_bytes(b"RIFF")
    bad = Utterance("bad", str(tmp_path / "bad.wav"))
    check_int8(model, [bad], DecodeOptions(), False, notes)
    assert notes.said == ["int8 was not held against fp32: no recording could be read"]

    noise = 0.1 * np.random.default_rng(0).standard_normal(8 * 16_000)
    soundfile.write(tmp_path / "good.wav", noise, 16_000)
    # A segment, of which the first seconds are heard, and a whole recording.
    segment, whole = (Utterance(n, str(tmp_path / "good.wav"), s) for n, s in (("a", 2.0), ("b", None)))
    check_int8(model, [bad, segment, whole], DecodeOptions(), False, notes)
    assert notes.said[1].startswith("int8 held against fp32 on 2 recordings")


@needs_vnni
def test_cosines_are_those_of_the_layers(checkpoint: MakeCheckpoint) -> None:
    exact = Model(str(checkpoint()), "fp32", CPU)
    audio = [torch.randn(n, generator=torch.Generator().manual_seed(n)) for n in (4_000, 9_000)]
    same = cosines(exact.encoder, exact.build("fp32"), audio)
    assert same.pooled.shape == same.frames.shape == (2, exact.encoder.num_layers)
    assert np.allclose(same.pooled, 1) and np.allclose(same.frames, 1)
    near = cosines(Model(str(checkpoint()), "int8", CPU).encoder, exact.encoder, audio)
    assert ((near.frames < 1) & (near.frames > 0.99)).all()
    near.pooled[1, 2] = math.nan
    assert near.lowest(frames=False)[1:] == (1, 2)


@needs_vnni
@pytest.mark.slow
@pytest.mark.parametrize("name", ["hubert-large", "wavlm-large", "hubert-base"])
def test_full_size_models_keep_to_the_rule_with_random_weights(name: str) -> None:
    files = sorted(shared("emodb").rglob("*.wav"))[::80]
    audio = [torch.from_numpy(soundfile.read(file, dtype="float32")[0]) for file in files]
    model = Model(f"random:{name}", "int8", CPU)
    found = cosines(model.encoder, model.build("fp32"), audio)
    assert found.pooled.min() >= LEAST_COSINE
    assert found.frames.min() >= LEAST_COSINE
