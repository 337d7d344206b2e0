"""Checkpoints that are not what they say are refused by file and field, before a model is made of them."""

from __future__ import annotations

import json
import math
import re
import shutil
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import MakeCheckpoint, make_model
from encoder_cases import changed

from extractor.encoders import checkpoint as checkpoints
from extractor.encoders.checkpoint import load_checkpoint
from extractor.encoders.checkpoint_files import CheckpointFiles
from extractor.encoders.families import FAMILIES, MODELS
from extractor.errors import ModelError

HUGE = 10**18
WHOLE = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
# Each is refused by its name, for every kind that has it.
CONFIGS: list[tuple[str, Any]] = [
    *((name, value) for name in WHOLE
      for value in (0, -1, HUGE, 10_000_000, "48", 48.0, None, True, [48], {"a": 1}, math.nan)),
    ("hidden_size", 50),  # no multiple of 4 heads
    ("num_attention_heads", 5),
    *(("hidden_act", value) for value in ("gello", "", 3, None, ["gelu"], "prelu", "__class__", "xielu")),
    *(("feat_extract_activation", value) for value in ("gello", None, "prelu")),
    *(("feat_extract_norm", value) for value in ("batch", None, 1, "Layer", True)),
    *(("do_stable_layer_norm", value) for value in ("false", 0, 1, None)),
    *(("layer_norm_eps", value) for value in (-1e-5, 0, 0.0, math.nan, math.inf, 1e9, "1e-5", None, True)),
    *(("conv_stride", value) for value in (
        [0] * 7, [-5, 2, 2, 2, 2, 2, 2], [5, 2, 2], [], 5, None, "5222222", [5.0] * 7,
        [5, 2, 2, 2, 2, 2, None], [10_000] * 7, [HUGE] * 7, {"0": 5})),
    *(("conv_kernel", value) for value in ([0] * 7, [-1] * 7, [10, 3], [], None, [10_000] * 7, [True] * 7)),
    *(("conv_dim", value) for value in ([0] * 7, [32] * 6, [], [HUGE] * 7, 32, None, [32] * 10_000)),
    *(("conv_bias", value) for value in ("true", None, 1)),
    *(("num_conv_pos_embeddings", value) for value in (0, -16, HUGE, None, "16")),
    *(("num_conv_pos_embedding_groups", value) for value in (0, 5, -4, HUGE, None)),
    *(("mask_time_prob", value) for value in ("0.05", -1, 2, math.nan, None)),
    ("quantization_config", {"quant_method": "bitsandbytes", "load_in_8bit": True}),
    ("quantization_config", {"quant_method": "unheard-of"}),
    ("compression_config", {"format": "pack-quantized"}),
    ("transformers_weights", "../../elsewhere.safetensors"),
    *(("model_type", value) for value in ("bert", "", None, 3, ["hubert"], {"a": 1}, "hubert ", "data2vec")),
]  # fmt: skip
OF_A_KIND: dict[str, list[tuple[str, Any]]] = {
    "hubert": [("feat_proj_layer_norm", None), ("conv_pos_batch_norm", "yes"), ("adapter_attn_dim", 0)],
    "wavlm": [
        *(("num_buckets", value) for value in (0, 1, 3, -320, HUGE, None)),
        *(("max_bucket_distance", value) for value in (0, -1, 1, 80, None, "800")),
        ("add_adapter", "no"),
    ],
    "wav2vec2": [("adapter_attn_dim", -1), ("adapter_stride", 0), ("num_adapter_layers", HUGE)],
    "whisper": [
        *(("d_model", value) for value in (0, 49, 50, -48, HUGE, "48", None)),
        *(("encoder_layers", value) for value in (0, -1, 10_000_000, 2.0, None)),
        *(("encoder_attention_heads", value) for value in (0, 5, None)),
        *(("encoder_ffn_dim", value) for value in (0, HUGE, "96")),
        *(("activation_function", value) for value in ("gello", None, "prelu")),
        *(("num_mel_bins", value) for value in (0, -80, 100_000, "80", None)),
        *(("max_source_positions", value) for value in (0, -1, HUGE, 1500.0, None)),
    ],
}
CASES = [("hubert", *case) for case in CONFIGS]
CASES += [(kind, *case) for kind, cases in OF_A_KIND.items() for case in cases]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, checkpoint: MakeCheckpoint) -> dict[str, Path]:
    from test_whisper import make_whisper

    whisper = tmp_path_factory.mktemp("whisper")
    make_whisper().save_pretrained(whisper)
    kinds = {kind: checkpoint(kind, num_hidden_layers=1) for kind in ("hubert", "wavlm", "wav2vec2")}
    return {**kinds, "whisper": whisper}


def write_config(folder: Path, base: Path, **changes: Any) -> Path:
    values = json.loads((base / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, **changes}))
    return folder


@pytest.mark.parametrize(("kind", "name", "value"), CASES, ids=str)
def test_a_config_is_refused_by_the_name_of_its_field(
    kind: str,
    name: str,
    value: Any,
    folders: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("extractor.encoders.checkpoint.skeleton", None)  # nothing is made
    write_config(tmp_path, folders[kind], **{name: value})
    shutil.copy(folders[kind] / "model.safetensors", tmp_path)
    for spec in (str(tmp_path), f"random:{tmp_path}", f"random:{tmp_path / 'config.json'}"):
        with pytest.raises(ModelError) as error:
            load_checkpoint(spec)
        assert f"{tmp_path / 'config.json'}: " in str(error.value)
        assert re.search(rf"\b{name}\b", str(error.value))
        assert len(str(error.value)) < 1_000


def test_every_field_that_a_model_is_made_of_has_its_range(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a `transformers` model asks of its config, and its weights depend on, is in the table."""
    not_shapes = re.compile(
        r"^_|dropout|layerdrop|drop|initializer|gradient|output_|return_|num_feat_extract"
    )
    for kind, family in FAMILIES.items():
        asked: set[str] = set()
        config = checkpoints.architecture(kind, {})
        getattribute = type(config).__getattribute__

        def note(self: Any, name: str, asked: set[str] = asked, original: Any = getattribute) -> Any:
            asked.add(name)
            return original(self, name)

        with monkeypatch.context() as patch:
            patch.setattr(type(config), "__getattribute__", note)
            with torch.device("meta"):
                family.make(config)
        values = {name for name in asked if not not_shapes.search(name) and name in config.to_dict()}
        beside = {"dtype", "pad_token_id", "scale_embedding", "model_type", "architectures", "problem_type"}
        beside |= {"tie_word_embeddings", "max_target_positions", "is_encoder_decoder", "id2label"}
        beside |= {"label2id"}
        assert len(values & set(family.fields)) > 6
        assert values - beside <= set(family.fields), kind


def test_every_switch_that_the_forward_pass_is_held_against_is_in_range(tmp_path: Path) -> None:
    from test_encoders import SWITCHES
    from test_whisper import SWITCHES as WHISPER
    from test_whisper import make_whisper
    from transformers import AutoConfig

    from benchmarks.stand_ins import SMALL

    configs = [AutoConfig.for_model(kind, **{**SMALL, **switches}) for kind, switches in SWITCHES]
    configs += [make_whisper(**switches).config for switches in WHISPER]
    configs += [AutoConfig.for_model(row.family, **row.architecture) for row in MODELS.values()]
    for config in configs:
        config.save_pretrained(tmp_path)
        found, _, _ = checkpoints.read_architecture(CheckpointFiles("x", str(tmp_path)))
        for name in FAMILIES[config.model_type].fields:
            ours, theirs = (getattr(each, name, None) for each in (found, config))
            assert ours == (list(theirs) if isinstance(theirs, tuple) else theirs)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ("[]", "holds a list where an object belongs"),
        ('"hubert"', "holds text"),
        ("null", "holds null"),
        ("{}", "model_type"),
        ("[" * 200_000, "is not JSON"),
        ('{"model_type": "hubert"' + " " * (17 << 20) + "}", "has more than 16 MiB"),
        ("\xff\xfe", "is not JSON"),
    ],
    ids=range(9),
)
def test_a_config_that_is_none_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(ModelError, match=message) as error:
        load_checkpoint(str(tmp_path))
    assert str(tmp_path / "config.json") in str(error.value)


def test_more_weights_than_memory_are_refused_at_once(folders: dict[str, Path], tmp_path: Path) -> None:
    """Each field is in its range: it is their product that no machine holds."""
    wide = {"hidden_size": 16_384, "intermediate_size": 16 * 16_384, "num_hidden_layers": 256}
    write_config(tmp_path, folders["hubert"], **wide)
    began = time.monotonic()
    with pytest.raises(ModelError, match=r"asks for .* GiB of weights, this machine has"):
        load_checkpoint(f"random:{tmp_path}")
    assert time.monotonic() - began < 60


def test_what_a_config_says_beside_the_table_reaches_nothing(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """Of a head, of training, of another version: their types are nobody's business here."""
    others = {"vocab_size": "many", "num_labels": -3, "id2label": 7, "hidden_dropout": "x"}
    others |= {"dtype": "complex9", "torch_dtype": 5, "architectures": 3, "_name_or_path": "/etc"}
    others |= {"attn_implementation": "hub/kernel"}
    write_config(tmp_path, folders["hubert"], **others)
    shutil.copy(folders["hubert"] / "model.safetensors", tmp_path)
    found, base = load_checkpoint(str(tmp_path)), load_checkpoint(str(folders["hubert"]))
    assert found.provenance["weights"] == base.provenance["weights"]


# Weights


@pytest.fixture
def model(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A checkpoint's own folder, to be spoilt."""
    return Path(shutil.copytree(folders["hubert"], tmp_path / "model"))


NAME = "encoder.layers.0.attention.q_proj.weight"
LAYER_NORM = {"feat_extract_norm": "layer"}


def put(value: torch.Tensor, name: str = NAME) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda tensors: tensors.update({name: value})


def with_value(value: float, name: str = NAME) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda tensors: tensors[name].view(-1)[-1:].fill_(value)


TENSORS: dict[str, tuple[Callable[[dict[str, torch.Tensor]], object], str]] = {
    "missing": (lambda tensors: tensors.pop(NAME), rf"1 of the \d+ weights .* missing .*{NAME} the first"),
    "all missing": (lambda tensors: tensors.clear() or tensors.update(x=torch.zeros(1)), "missing from"),
    "transposed": (put(torch.zeros(48, 47)), rf"{NAME} is \[48, 47\], config\.json makes it \[48, 48\]"),
    "flat": (put(torch.zeros(48 * 48)), r"is \[2304\]"),
    "empty": (put(torch.zeros(0, 48)), r"is \[0, 48\]"),
    "int8": (put(torch.zeros(48, 48, dtype=torch.int8)), f"{NAME} is of int8"),
    "fp8": (put(torch.zeros(48, 48).to(torch.float8_e4m3fn)), f"{NAME} is of float8_e4m3fn"),
    "bool": (put(torch.zeros(48, 48, dtype=torch.bool)), "is of bool"),
    "complex": (put(torch.zeros(48, 48, dtype=torch.complex64)), "is of complex64"),
    "NaN": (with_value(math.nan), f"{NAME} has values that are not finite"),
    "infinite": (with_value(math.inf), f"{NAME} has values that are not finite"),
    "minus infinite": (with_value(-math.inf, "encoder.layer_norm.bias"), "norm.bias has values"),
    "beyond fp32": (put(torch.full((48, 48), 1e300, dtype=torch.float64)), "not finite in fp32"),
    "no direction": (
        lambda tensors: tensors["encoder.pos_conv_embed.conv.parametrizations.weight.original1"].zero_(),
        "is zero where weight norm divides by its length",
    ),
    "twice": (put(torch.zeros(48, 48), f"hubert.{NAME}"), f"has {NAME} for the second time"),
    "LoRA": (
        lambda tensors: tensors.update({NAME.replace(".weight", ".base_layer.weight"): tensors.pop(NAME)}),
        "holds an adapter .LoRA.: merge it",
    ),
    "quantised": (
        lambda tensors: tensors.update({NAME.replace("weight", "qweight"): tensors.pop(NAME)}),
        "its weights are quantised",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", TENSORS)
def test_weights_that_are_not_the_configs_are_refused_by_name(what: str, model: Path) -> None:
    change, message = TENSORS[what]
    with pytest.raises(ModelError, match=message) as error:
        load_checkpoint(str(changed(model, change)))
    assert str(model) in str(error.value)


@pytest.mark.parametrize(
    ("kind", "saved", "said", "name"),
    [
        ("hubert", {"conv_bias": True}, {"conv_bias": False}, "feature_extractor.conv_layers.0.conv.bias"),
        ("hubert", {}, {"feat_proj_layer_norm": False}, "feature_projection.layer_norm.bias"),
        ("wavlm", {}, {"model_type": "hubert"}, "encoder.layers.0.attention.gru_rel_pos_const"),
        ("hubert", LAYER_NORM, {"feat_extract_norm": "group"}, "conv_layers.1.layer_norm.bias"),
    ],
)  # fmt: skip
def test_tensors_that_the_config_has_no_place_for_are_refused(
    kind: str,
    saved: dict[str, Any],
    said: dict[str, Any],
    name: str,
    checkpoint: MakeCheckpoint,
    tmp_path: Path,
) -> None:
    """Left out in silence, they would make it another model."""
    folder = shutil.copytree(checkpoint(kind, num_hidden_layers=1, **saved), tmp_path / "model")
    load_checkpoint(str(folder))
    write_config(Path(folder), Path(folder), **said)
    with pytest.raises(
        ModelError, match=rf"has \S*{name}, which the encoder that config\.json describes has not"
    ):
        load_checkpoint(str(folder))


def test_fewer_layers_than_there_are_can_be_had(checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint("hubert"), tmp_path / "model"))
    write_config(folder, folder, num_hidden_layers=2)
    found = load_checkpoint(str(folder))
    assert any("others (encoder.layers.2: " in note for note in found.notes)
    from transformers import AutoModel

    theirs = AutoModel.from_pretrained(folder, trust_remote_code=False).state_dict()
    assert {*found.tensors} == {*theirs} - {"masked_spec_embed"}


def test_a_speaker_head_of_the_cnns_name_is_no_contradiction(tmp_path: Path) -> None:
    from transformers import Wav2Vec2ForXVector

    Wav2Vec2ForXVector(make_model("wav2vec2", num_hidden_layers=1).config).save_pretrained(tmp_path)
    assert any("speaker head (" in note for note in load_checkpoint(str(tmp_path)).notes)


def test_an_adapter_inside_the_layers_is_said(model: Path) -> None:
    name = "encoder.layers.0.adapter_layer.linear_1.weight"
    (note,) = load_checkpoint(str(changed(model, put(torch.zeros(2, 2), name)))).notes
    assert "adapter, not applied (adapter_layer: 1 tensor)" in note


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("hidden_size", 80, r"makes it \[80\] \(hidden_size 80\)"),
        ("intermediate_size", 100, r"intermediate_size 100"),
        ("num_hidden_layers", 3, "config.json has num_hidden_layers 3, the weights are of 1"),
        ("conv_dim", [16] * 7, r"makes it \[16.*\(conv_dim \[16, "),
        ("num_conv_pos_embeddings", 17, "num_conv_pos_embeddings 17"),
    ],
)
def test_a_config_of_another_model_is_refused_by_its_field(
    name: str, value: Any, message: str, model: Path
) -> None:
    write_config(model, model, **{name: value})
    with pytest.raises(ModelError, match=message):
        load_checkpoint(str(model))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_width_of_float_is_read(dtype: torch.dtype, model: Path) -> None:
    changed(model, lambda tensors: tensors.update({k: v.to(dtype) for k, v in tensors.items()}))
    found = load_checkpoint(str(model)).tensors[NAME]
    assert found.dtype == torch.float32 and found.isfinite().all()


def test_a_mask_embedding_that_is_not_finite_is_done_without(model: Path) -> None:
    found = load_checkpoint(str(changed(model, with_value(math.nan, "masked_spec_embed"))))
    assert found.mask_embedding is None
    assert any("masked_spec_embed" in note for note in found.notes)


def test_negative_variances_are_refused(checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint("hubert", conv_pos_batch_norm=True), tmp_path / "model")
    name = "encoder.pos_conv_embed.batch_norm.running_var"
    with pytest.raises(ModelError, match=f"{name} has variances below zero"):
        load_checkpoint(str(changed(folder, with_value(-1.0, name))))


# Files


def compressed(path: Path) -> None:
    """A pickle whose entries unpack to more than they are."""
    whole = {}
    torch.save({"x": torch.zeros(1 << 16)}, path)
    with zipfile.ZipFile(path) as entries:
        whole = {name: entries.read(name) for name in entries.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as entries:
        for name, data in whole.items():
            entries.writestr(name, data)


FILES: dict[str, Callable[[Path], object]] = {
    "model.safetensors empty": lambda path: path.write_bytes(b""),
    "model.safetensors cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "model.safetensors header": lambda path: path.write_bytes(path.read_bytes()[:100]),
    "model.safetensors noise": lambda path: path.write_bytes(b"\xff" * 1_000),
    "model.safetensors pickle": lambda path: torch.save({}, path),
    "pytorch_model.bin empty": lambda path: path.write_bytes(b""),
    "pytorch_model.bin noise": lambda path: path.write_bytes(b"\x80\x02" + b"\xff" * 1_000),
    "pytorch_model.bin text": lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"),
    "pytorch_model.bin zip": lambda path: path.write_bytes(b"PK\x05\x06" + bytes(18)),
    "pytorch_model.bin unpacks": compressed,
    "pytorch_model.bin list": lambda path: torch.save([torch.zeros(3)], path),
    "pytorch_model.bin nested": lambda path: torch.save({"state_dict": {"x": torch.zeros(3)}}, path),
    "pytorch_model.bin whole model": lambda path: torch.save(torch.nn.Linear(2, 2), path),
}


@pytest.mark.parametrize("what", FILES)
def test_files_that_are_damaged_or_something_else_are_refused_by_name(what: str, model: Path) -> None:
    name = what.split()[0]
    if name != "model.safetensors":
        (model / "model.safetensors").unlink()
    FILES[what](model / name)
    with pytest.raises(ModelError) as error:
        load_checkpoint(str(model))
    assert str(model / name) in str(error.value)


def test_a_folder_without_its_files_is_refused(model: Path) -> None:
    (model / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"cannot read the weights .* none of model\.safetensors"):
        load_checkpoint(str(model))
    (model / "config.json").unlink()
    with pytest.raises(ModelError, match=r"has no config\.json"):
        load_checkpoint(str(model))
    (model / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="is an adapter alone"):
        load_checkpoint(str(model))


# What is not used


def test_what_is_not_used_of_a_checkpoint_is_said(model: Path) -> None:
    assert not [note for note in load_checkpoint(str(model)).notes if "not used" in note]
    others = {
        "classifier.weight": torch.zeros(2, 3), "classifier.bias": torch.zeros(2),
        "projector.weight": torch.zeros(3, 3), "projector.bias": torch.zeros(3),
        "lm_head.weight": torch.zeros(1),
        f"{NAME.replace('.weight', '.lora_A.default.weight')}": torch.zeros(2, 48),
        "encoder.layers.1.feed_forward.x": torch.zeros(1), "some\x1b[2Jthing.x": torch.zeros(1),
    }  # fmt: skip
    changed(model, lambda tensors: tensors.update(others))
    (model / "adapter_config.json").write_text("{}")
    (model / "adapter.fra.safetensors").touch()
    unused, adapter, languages = load_checkpoint(str(model)).notes
    assert "classification head (classifier, projector: 4 tensors)" in unused
    assert "CTC head (lm_head: 1 tensor)" in unused
    assert "adapter (LoRA), not applied (lora_A: 1 tensor)" in unused
    assert "others (encoder.layers.1, some?[2Jthing.x: 2 tensors)" in unused
    assert "not applied: the adapter that adapter_config.json describes" in adapter
    assert "adapter.fra.safetensors" in languages


def test_an_adapter_behind_the_encoder_is_said(checkpoint: MakeCheckpoint) -> None:
    folder = checkpoint("wav2vec2", add_adapter=True, num_adapter_layers=1)
    (note,) = load_checkpoint(str(folder)).notes
    assert "adapter (adapter: " in note
