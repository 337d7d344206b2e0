"""Our forward pass is the reference's, for every architecture switch, whatever it is packed with."""

from __future__ import annotations

import itertools
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FP32_RELATIVE, MakeCheckpoint, make_model, reference_layers, relative_error
from encoder_cases import CPU, KINDS, Kept, assert_same, changed, encode, noises

from extractor.encoders import (
    Model,
    cnn,
    format_layers,
    parse_layers,
    resolve_device,
    resolve_dtype,
    wav2vec2,
)
from extractor.encoders.checkpoint import load_checkpoint
from extractor.encoders.families import FAMILIES, MODELS
from extractor.encoders.spectral import SPECTRAL
from extractor.encoders.wav2vec2 import Wav2Vec2Encoder
from extractor.errors import ModelError, SettingsError

# Around the receptive field, around the stride, one second, and odd lengths.
LENGTHS = (400, 719, 720, 16_000, 33_333, 5_001, 401)

NORMS = [
    {"do_stable_layer_norm": stable, "feat_extract_norm": norm, "conv_bias": bias}
    for stable, norm, bias in itertools.product((False, True), ("group", "layer"), (False, True))
]
SWITCHES: list[tuple[str, dict[str, Any]]] = [(kind, switches) for kind in KINDS for switches in NORMS]
SWITCHES += [
    ("hubert", {"feat_proj_layer_norm": False}),
    ("hubert", {"conv_pos_batch_norm": True}),
    ("hubert", {"conv_pos_batch_norm": True, "do_stable_layer_norm": True}),
    ("wav2vec2", {"num_conv_pos_embeddings": 15}),  # odd kernel: no surplus output to drop
    ("wav2vec2", {"hidden_act": "relu", "feat_extract_activation": "silu"}),
    ("wav2vec2", {"adapter_attn_dim": 8, "do_stable_layer_norm": True}),  # MMS
    ("wav2vec2", {"conv_kernel": [8, 3, 3], "conv_stride": [4, 2, 2], "conv_dim": [32] * 3}),
    ("wavlm", {"num_buckets": 8, "max_bucket_distance": 20}),
]
# An eps that shows: the CNN's GroupNorm, the positional convolution's BatchNorm and the adapter's norm
# have the library's default in the reference, whatever the config says of the other norms.
SWITCHES += [
    (kind, switches | {"layer_norm_eps": 1e-3})
    for kind, switches in (
        *itertools.product(KINDS, ({"feat_extract_norm": "group"}, {"feat_extract_norm": "layer"})),
        ("hubert", {"conv_pos_batch_norm": True}),
    )
]
# What an adapter norms is a sum over layers, so large that only a large eps shows.
SWITCHES.append(("wav2vec2", {"adapter_attn_dim": 8, "do_stable_layer_norm": True, "layer_norm_eps": 1.0}))


def waveforms(lengths: tuple[int, ...] = LENGTHS) -> list[torch.Tensor]:
    return noises(lengths)


def build(model: Any, dtype: torch.dtype = torch.float32) -> Wav2Vec2Encoder:
    return Wav2Vec2Encoder(model.state_dict(), model.config, dtype, CPU)


@pytest.mark.parametrize(("kind", "switches"), SWITCHES, ids=str)
def test_every_layer_equals_the_reference_on_each_recording_alone(
    kind: str, switches: dict[str, Any]
) -> None:
    model = make_model(kind, **switches)
    encoder, audio = build(model), waveforms()
    theirs = [reference_layers(model, waveform) for waveform in audio]
    assert_same(encode(encoder, audio), theirs)
    assert {len(layers) for layers in theirs} == {encoder.num_layers}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("switches", [NORMS[0], NORMS[-1]], ids=str)
def test_nan_in_what_lies_between_recordings_changes_nothing(
    kind: str, switches: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, audio = build(make_model(kind, **switches)), waveforms()
    clean = encode(encoder, audio)
    monkeypatch.setattr(cnn, "blank", lambda n, dtype, device: torch.full((n,), torch.nan, dtype=dtype))
    monkeypatch.setattr(
        wav2vec2, "blank_rows", lambda n, like: like.new_full((n, *like.shape[1:]), torch.nan)
    )
    assert_same(encode(encoder, audio), clean, limit=0)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_group_norm_of_all_at_once_gives_what_it_gives_one_by_one(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way of CUDA devices, by its definition and by its kernel."""
    encoder, audio = build(make_model("hubert", conv_bias=True)), waveforms((400, 2_000, 401, 4_799))
    folded = encode(encoder, audio)
    encoder.cnn.at_once = True
    monkeypatch.setattr(cnn, "_NORMED_SAMPLES", 5_000)  # more than one group of utterances
    monkeypatch.setattr(cnn, "group_norm_gelu", partial(cnn.group_norm_gelu, backend=backend))
    assert_same(encode(encoder, audio), folded)


def test_normalising_all_at_once_gives_what_it_gives_one_by_one(checkpoint: MakeCheckpoint) -> None:
    """The way of CUDA devices, by its definition."""
    encoder = Model(str(checkpoint("hubert", do_normalize=True)), "fp32", CPU).encoder
    audio = [0.1 * waveform + 0.05 for waveform in waveforms()]
    one_by_one = encoder.normalise(audio)
    encoder.device = torch.device("cuda")
    for a, b in zip(encoder.normalise(audio), one_by_one, strict=True):
        assert relative_error(a, b) < 1e-6


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_any_length_alone_gives_what_it_gives_among_others(norm: str) -> None:
    """Lengths around every rounding of rows and blocks: 8 frames, 32 frames, 64 frames."""
    encoder = build(make_model("wav2vec2", feat_extract_norm=norm))
    audio = waveforms(
        tuple(range(400, 3_400, 79)) + tuple(range(9_800, 11_000, 79)) + tuple(range(20_000, 21_500, 79))
    )
    for waveform, packed in zip(audio, encode(encoder, audio), strict=True):
        (alone,) = encode(encoder, [waveform])
        assert alone[0].shape == packed[0].shape == (encoder.num_frames(len(waveform)), encoder.dim)
        assert relative_error(alone[-1], packed[-1]) < FP32_RELATIVE


@pytest.mark.parametrize("kind", KINDS)
def test_nan_in_one_recording_stays_in_it(kind: str) -> None:
    encoder, audio = build(make_model(kind)), waveforms()
    clean = encode(encoder, audio)
    audio[3] = torch.full_like(audio[3], torch.nan)
    for i, (a, b) in enumerate(zip(encode(encoder, audio), clean, strict=True)):
        assert torch.isnan(a[-1]).all() if i == 3 else torch.equal(a[-1], b[-1])


def test_scores_in_chunks_of_heads_and_queries_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from extractor.encoders import transformer

    encoder, audio = build(make_model("wavlm")), waveforms((33_333, 16_000))
    whole = encode(encoder, audio)
    for limit in (100_000, 1_000):  # two heads at a time; one head, a query at a time
        monkeypatch.setattr(transformer, "_SCORE_BYTES", limit)
        assert_same(encode(encoder, audio), whole)


def test_unpacked_products_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from extractor.encoders import linear

    model, audio = make_model("hubert"), waveforms()
    packed = encode(build(model), audio)
    monkeypatch.setattr(linear, "_packs", lambda device, dtype: False)
    assert_same(encode(build(model), audio), packed)


def test_layers_behind_the_last_wanted_are_not_computed() -> None:
    encoder, sink = build(make_model("hubert")), Kept()
    encoder.forward(waveforms(), sink, last_layer=1)
    assert len(sink.layers) == 2


def test_old_weight_norm_parameters_are_read(tmp_path: Path, checkpoint: MakeCheckpoint) -> None:
    folder, model = checkpoint("hubert"), make_model("hubert")
    conv = "encoder.pos_conv_embed.conv"

    def rename(tensors: dict[str, torch.Tensor]) -> None:
        for suffix, number in (("g", 0), ("v", 1)):
            new = f"{conv}.parametrizations.weight.original{number}"
            tensors[f"{conv}.weight_{suffix}"] = tensors.pop(new)

    raw = dict(model.state_dict())
    rename(raw)
    old = Wav2Vec2Encoder(raw, model.config, torch.float32, CPU)
    assert_same(encode(old, waveforms()), encode(build(model), waveforms()), limit=0)
    renamed = load_checkpoint(str(changed(shutil.copytree(folder, tmp_path / "old"), rename)))
    assert renamed.provenance["weights"] == load_checkpoint(str(folder)).provenance["weights"]


def test_normalisation_without_the_file_follows_the_norm_and_says_so(checkpoint: MakeCheckpoint) -> None:
    for norm in ("group", "layer"):
        found = load_checkpoint(str(checkpoint("hubert", do_normalize=None, feat_extract_norm=norm)))
        assert found.normalise == (norm == "layer")
        assert "no preprocessor_config.json" in found.provenance["normalisation"]


def test_a_checkpoint_with_a_head_gives_its_encoder(tmp_path: Path) -> None:
    from transformers import HubertForSequenceClassification

    model = make_model("hubert")
    whole = HubertForSequenceClassification(model.config)
    whole.hubert.load_state_dict(model.state_dict())
    whole.save_pretrained(tmp_path)
    audio = waveforms((16_000,))
    assert torch.equal(
        encode(Model(str(tmp_path), "fp32", CPU).encoder, audio)[0][-1], encode(build(model), audio)[0][-1]
    )


def test_random_weights_depend_on_the_seed_alone_and_leave_the_generator_alone(
    checkpoint: MakeCheckpoint,
) -> None:
    config = str(checkpoint("wavlm"))
    torch.manual_seed(1)
    before = torch.get_rng_state()
    a, b, c = (load_checkpoint(f"random:{config}{s}").provenance["weights"] for s in ("", "@0", "@1"))
    assert a == b != c
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("huber-large", "unknown model 'huber-large'; known: hubert-large"),
        ("./nowhere/at-all", "no such folder"),
        ("random:hubert-base@x", "seed behind @"),
    ],
)
def test_bad_models_are_refused_by_name(spec: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_checkpoint(spec)


def test_the_table_names_known_kinds() -> None:
    assert {row.family for row in MODELS.values()} == set(FAMILIES)


@pytest.mark.parametrize("name", SPECTRAL)
def test_spectral_frames_depend_on_their_recording_alone(name: str) -> None:
    encoder = Model(name, "auto", CPU).encoder
    audio = waveforms()
    for packed, waveform in zip(encode(encoder, audio), audio, strict=True):
        alone = encode(encoder, [waveform])[0][0]
        assert torch.equal(packed[0], alone)
        assert alone.shape == (encoder.num_frames(len(waveform)), encoder.dim)
        assert alone.isfinite().all()


def test_log_mel_of_a_tone_peaks_where_the_tone_is() -> None:
    from torchaudio.functional import melscale_fbanks

    seconds = torch.arange(16_000) / 16_000
    encoder = Model("logmel", "fp32", CPU).encoder
    banks = melscale_fbanks(201, 0.0, 8_000.0, 80, 16_000, norm="slaney", mel_scale="slaney")
    for hertz in (200.0, 1_000.0, 4_000.0):
        frames = encode(encoder, [torch.sin(2 * torch.pi * hertz * seconds)])[0][0]
        expected = banks[round(hertz / 40)].argmax()
        assert abs(int(frames.mean(0).argmax()) - int(expected)) <= 1


def test_mfcc_deltas_are_the_slope() -> None:
    # Loudness that grows evenly in dB raises the first cepstral coefficient on a straight line.
    generator = torch.Generator().manual_seed(0)
    ramp = torch.exp(torch.linspace(-6, 0, 32_000))
    frames = encode(Model("mfcc", "fp32", CPU).encoder, [ramp * torch.randn(32_000, generator=generator)])[0][
        0
    ]
    static, delta = frames[:, 0], frames[:, 40]
    slope = (static[-10:].mean() - static[:10].mean()) / (len(static) - 10)
    assert delta[10:-10].mean() == pytest.approx(slope.item(), rel=0.15)


@pytest.mark.parametrize(
    ("spec", "layers"),
    [
        ("all", range(25)),
        ("last", [24]),
        ("0,6,12", [0, 6, 12]),
        ("0-24", range(25)),
        ("-4--1", [21, 22, 23, 24]),
        ("-1", [24]),
        ("3,1,1-2", [1, 2, 3]),
        ([5, -1], [5, 24]),
        (12, [12]),
    ],
)
def test_layers_are_parsed(spec: Any, layers: Any) -> None:
    assert parse_layers(spec, 25) == tuple(layers)


@pytest.mark.parametrize("spec", ["25", "0-25", "-26", "5-3", "-1--4"])
def test_layers_out_of_range_are_refused_with_the_models_range(spec: str) -> None:
    with pytest.raises(SettingsError, match="this model has layers 0-24"):
        parse_layers(spec, 25)


@pytest.mark.parametrize("spec", ["", "first", "1;2", "1.5", "1--"])
def test_layers_of_no_form_are_refused_before_a_model_is_known(spec: str) -> None:
    with pytest.raises(SettingsError, match="is no layer"):
        parse_layers(spec)


def test_layers_are_written_as_runs() -> None:
    assert format_layers((0, 1, 2, 6, 8, 9)) == "0-2,6,8-9"


def test_devices_and_dtypes_are_checked() -> None:
    assert resolve_device("cpu") == CPU
    with pytest.raises(SettingsError, match="unknown device 'gpu'"):
        resolve_device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(SettingsError, match="no CUDA device"):
            resolve_device("cuda:1")
    with pytest.raises(SettingsError, match="unknown dtype 'float32'"):
        resolve_dtype("float32", CPU)
    with pytest.raises(SettingsError, match="spectral encoders run in fp32"):
        resolve_dtype("bf16", CPU, spectral=True)
    assert resolve_dtype("auto", CPU) in ("fp32", "bf16")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hubert-large", "wavlm-large", "hubert-base", "wavlm-base"])
def test_full_size_models_equal_the_reference(name: str) -> None:
    from transformers import AutoConfig, AutoModel

    row = MODELS[name]
    torch.manual_seed(0)
    model = AutoModel.from_config(
        AutoConfig.for_model(row.family, **row.architecture), dtype=torch.float32
    ).eval()
    encoder, audio = build(model), waveforms((16_000, 50_001))
    assert_same(encode(encoder, audio), [reference_layers(model, waveform) for waveform in audio])
