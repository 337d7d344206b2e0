"""The Whisper encoder is the reference's over 30 s as trained, and each recording's own frames come out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from conftest import BF16_COSINE, FP32_RELATIVE, reference_layers, relative_error
from encoder_cases import CPU, Kept, assert_same, encode, noises
from run_cases import Notes

from extractor.encoders import Model, whisper
from extractor.encoders.checkpoint import load_checkpoint
from extractor.encoders.families import MODELS
from extractor.encoders.whisper import LogMel, WhisperEncoder, attend
from extractor.errors import ModelError, SettingsError
from extractor.run.engine import run
from extractor.run.options import Options
from extractor.store import Store
from extractor.types import LatentMask

# A context of two seconds: every length of the silence behind a recording is soon tried.
TINY: dict[str, Any] = {
    "d_model": 48,
    "encoder_layers": 3,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 96,
    "decoder_layers": 1,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 96,
    "vocab_size": 50,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "suppress_tokens": [],
    "begin_suppress_tokens": [],
    "max_source_positions": 100,
}
SWITCHES: list[dict[str, Any]] = [
    {},
    {"num_mel_bins": 128},
    {"activation_function": "relu"},
    {"d_model": 42, "encoder_attention_heads": 3, "decoder_attention_heads": 3, "encoder_ffn_dim": 77},
    {"max_source_positions": 150, "encoder_layers": 1},
]
# One frame, around two frames, odd, one second, one sample before and at the end of the context.
LENGTHS = (320, 639, 640, 5_001, 16_000, 20_333, 31_999, 32_000)
# Log-mel values are a quarter of a decimal logarithm: 200 float32 products in another order, each to
# 1e-7, move them by about as much.
MEL_ABSOLUTE = 1e-6


def make_whisper(**changes: Any) -> Any:
    """A tiny `transformers` WhisperModel whose every weight is random: norms, biases and positions too."""
    from transformers import WhisperConfig, WhisperModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = WhisperModel(WhisperConfig(**{**TINY, **changes})).eval()
        for name, parameter in model.named_parameters():
            torch.nn.init.normal_(parameter, 1.0 if name.endswith("norm.weight") else 0.0, 0.3)
    return model


def feature_extractor(config: Any) -> Any:
    from transformers import WhisperFeatureExtractor

    return WhisperFeatureExtractor(config.num_mel_bins, chunk_length=config.max_source_positions // 50)


def context(model: Any, waveform: torch.Tensor) -> list[torch.Tensor]:
    """All layers over the whole context: ``L`` of ``[P, D]``."""
    mel = feature_extractor(model.config)(waveform.numpy(), sampling_rate=16_000, return_tensors="pt")
    return reference_layers(model.encoder, mel.input_features[0])


def reference(model: Any, waveform: torch.Tensor) -> list[torch.Tensor]:
    """Of all layers the recording's own frames."""
    return [layer[: len(waveform) // 320] for layer in context(model, waveform)]


def build(model: Any, dtype: torch.dtype = torch.float32) -> WhisperEncoder:
    return WhisperEncoder(model.encoder.state_dict(), model.config, dtype, CPU)


def waveforms(lengths: tuple[int, ...] = LENGTHS) -> list[torch.Tensor]:
    return noises(lengths, scale=0.1)


@pytest.fixture(params=[1, 3], ids=["one by one", "three together"])
def together(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many go through the layers at once: the way of CPUs, and that of other devices."""
    monkeypatch.setitem(whisper._TOGETHER, "cpu", request.param)
    return int(request.param)


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_every_layer_equals_the_reference_on_each_recording_alone(
    switches: dict[str, Any], together: int
) -> None:
    model = make_whisper(**switches)
    encoder, audio = build(model), waveforms()
    theirs = [reference(model, waveform) for waveform in audio]
    assert_same(encode(encoder, audio), theirs)
    assert {len(layers) for layers in theirs} == {encoder.num_layers}


def test_silence_that_is_computed_once_is_that_of_the_whole_context() -> None:
    """All positions of layer 0, for every place at which the sound can end among frames and strides."""
    model = make_whisper()
    encoder = build(model)
    for waveform in waveforms((*range(320, 32_000, 231), *range(8_900, 9_400, 40), 32_000)):
        (ours,) = encoder.embed([waveform])
        assert relative_error(ours, context(model, waveform)[0]) < FP32_RELATIVE


@pytest.mark.parametrize("num_mels", [80, 128])
def test_the_log_mel_is_the_feature_extractors(num_mels: int) -> None:
    from transformers import WhisperFeatureExtractor

    extractor = WhisperFeatureExtractor(num_mels)
    seconds = torch.arange(160_000) / 16_000
    tone = torch.sin(2 * torch.pi * 440 * seconds) * torch.exp(-seconds)  # far below its peak at its end
    for waveform in [*waveforms((400, 50_001, 479_900, 480_000)), tone, torch.zeros(8_000)]:
        theirs = extractor(waveform.numpy(), sampling_rate=16_000, return_tensors="pt").input_features[0]
        (ours,) = LogMel(num_mels, CPU)([waveform], 3_000)
        assert ours.shape == (3_000, num_mels)
        assert (ours.t() - theirs).abs().max() < MEL_ABSOLUTE


def test_frames_are_those_that_lie_in_the_recording() -> None:
    encoder = build(make_whisper())
    for n in range(320, 2_000):
        assert encoder.num_frames(n) == n // 320 == (n - encoder.min_samples) // encoder.stride + 1


def test_a_recording_gives_bit_for_bit_the_same_among_others() -> None:
    encoder, audio = build(make_whisper()), waveforms()
    assert_same(encode(encoder, audio), [encode(encoder, [w])[0] for w in audio], limit=0)


@pytest.mark.usefixtures("poisoned")
def test_nan_in_one_recording_and_in_fresh_memory_stays_there(together: int) -> None:
    encoder, audio = build(make_whisper()), waveforms()
    clean = encode(encoder, audio)
    audio[4] = torch.full_like(audio[4], torch.nan)
    for i, (a, b) in enumerate(zip(encode(encoder, audio), clean, strict=True)):
        for x, y in zip(a, b, strict=True):
            assert y.isfinite().all()
            assert torch.isnan(x).all() if i == 4 else torch.equal(x, y)


@pytest.mark.parametrize("last_layer", [0, 1, 2])
def test_layers_behind_the_last_wanted_are_not_computed_and_change_nothing(last_layer: int) -> None:
    encoder, audio = build(make_whisper()), waveforms()
    every = encode(encoder, audio)
    assert_same(encode(encoder, audio, last_layer=last_layer), [layers[: last_layer + 1] for layers in every])


def test_bf16_points_where_fp32_does(together: int) -> None:
    model, audio = make_whisper(), waveforms()
    half = encode(build(model, torch.bfloat16), audio)
    for rough, exact in zip(half, encode(build(model), audio), strict=True):
        for a, b in zip(rough, exact, strict=True):
            assert a.dtype == torch.bfloat16
            assert torch.cosine_similarity(a.float().mean(0), b.mean(0), dim=0) > BF16_COSINE


def test_attention_in_chunks_of_queries_is_that_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(2, n, 3, 8, generator=generator).bfloat16() for n in (50, 70, 70))
    exact = attend(q.float(), k.float(), v.float())
    weights = torch.einsum("bqhd,bphd->bhqp", q.float(), k.float()).softmax(-1)
    assert relative_error(exact, torch.einsum("bhqp,bphd->bqhd", weights, v.float())) < FP32_RELATIVE
    for chunk in (1, 7, 512):
        monkeypatch.setattr(whisper, "_QUERIES_AT_ONCE", chunk)
        # bf16 keeps 8 bits: scores, weights and outputs are each rounded to 2^-9 of their size.
        assert relative_error(attend(q, k, v).float(), exact) < 2**-7


def test_what_it_cannot_take_is_refused() -> None:
    encoder = build(make_whisper())
    with pytest.raises(ValueError, match="32001 samples: this encoder takes 32000 at once"):
        encoder.forward(waveforms((400, 32_001)), Kept())
    with pytest.raises(ValueError, match="no mask embedding"):
        encoder.forward(waveforms((400,)), Kept(), masks=[LatentMask([(0, 1)])])


def test_only_silence_counts_as_padding() -> None:
    encoder = build(make_whisper())
    assert encoder.operations(32_000)[1] == 0
    totals = []
    for n in (320, 5_000, 16_000, 31_000):
        useful, padded = encoder.operations(n)
        assert useful > 0 < padded
        totals.append(useful + padded)
    assert totals == sorted(totals)


def test_every_kind_that_is_read_can_be_built() -> None:
    encoder = Model("random:whisper-tiny", "fp32", CPU).encoder
    assert (encoder.num_layers, encoder.dim, encoder.max_samples) == (5, 384, 480_000)


def test_rows_have_heads_of_64_and_products_of_four_widths() -> None:
    rows = {name: row for name, row in MODELS.items() if row.family == "whisper"}
    assert len(rows) == 11
    for name, row in rows.items():
        size = row.architecture
        assert row.hub_id == f"openai/{name}"
        assert size["d_model"] == 64 * size["encoder_attention_heads"] == size["encoder_ffn_dim"] // 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in the hub's layout, with a context of ten seconds."""
    path = tmp_path_factory.mktemp("whisper")
    model = make_whisper(max_source_positions=500)
    model.save_pretrained(path)
    feature_extractor(model.config).save_pretrained(path)
    return path


def test_every_form_of_a_checkpoint_gives_the_same_encoder(folder: Path, tmp_path: Path) -> None:
    from transformers import WhisperForAudioClassification, WhisperForConditionalGeneration

    model = make_whisper(max_source_positions=500)
    found = load_checkpoint(str(folder))
    assert set(found.tensors) == set(model.encoder.state_dict())  # nothing of the decoder
    for kind in (WhisperForConditionalGeneration, WhisperForAudioClassification):
        whole = kind(model.config)
        (whole.model.encoder if hasattr(whole, "model") else whole.encoder).load_state_dict(
            model.encoder.state_dict()
        )
        whole.save_pretrained(tmp_path / kind.__name__)
        again = load_checkpoint(str(tmp_path / kind.__name__))
        assert again.provenance["weights"] == found.provenance["weights"]
    audio = waveforms((16_000,))
    loaded = Model(str(folder), "fp32", CPU).encoder
    assert torch.equal(encode(loaded, audio)[0][-1], encode(build(model), audio)[0][-1])


def test_provenance_says_what_goes_in_and_what_layer_0_is(folder: Path) -> None:
    for spec in (str(folder), "random:whisper-tiny"):
        found = load_checkpoint(spec)
        assert found.provenance["normalisation"] == "log-mel as WhisperFeatureExtractor"
        assert "after the convolutions and with the positions" in found.provenance["layer_convention"]
        assert not found.normalise and found.mask_embedding is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_fft": 512}, "has n_fft 512; hser computes 400"),
        ({"hop_length": 200}, "has hop_length 200; hser computes 160"),
        ({"chunk_length": 30}, "has chunk_length 30; hser computes 10"),
        ({"feature_size": 128}, "has feature_size 128; hser computes 80"),
        ({"dither": 1e-4}, r"has dither 0\.0001; hser computes 0"),
        ({"sampling_rate": 8_000}, "takes audio at 8000 Hz"),
    ],
)
def test_another_front_end_is_refused(
    changes: dict[str, Any], message: str, folder: Path, tmp_path: Path
) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(folder / name)
    preprocessor = json.loads((folder / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**preprocessor, **changes}))
    with pytest.raises(ModelError, match=message):
        load_checkpoint(str(tmp_path))


def test_longer_recordings_are_windowed_by_what_it_takes_at_once(folder: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    audio = {name: rng.uniform(-0.3, 0.3, n) for name, n in {"long": 401_234, "short": 100_000}.items()}
    for name, samples in audio.items():
        soundfile.write(tmp_path / f"{name}.wav", samples, 16_000, "PCM_16")
    told = Notes()
    options = Options(model=str(folder), dtype="fp32", pooling="none,mean")
    run(tmp_path, options, tmp_path / "run", told)
    assert told.of("windows of ").startswith("windows of 10 s")
    with Store(tmp_path / "run") as store:
        assert store.settings["window_seconds"] == 10
        frames = dict(zip(store.ids, store.num_frames, strict=True))
        assert {Path(k).stem: int(n) for k, n in frames.items()} == {"long": 401_234 // 320, "short": 312}
        rows = {Path(k).stem: row for k, row in zip(store.ids, store.load(pooling="mean"), strict=True)}

    encoder = Model(str(folder), "fp32", CPU).encoder
    samples = {
        name: torch.from_numpy(soundfile.read(tmp_path / f"{name}.wav", dtype="float32")[0]) for name in audio
    }
    (alone,) = encode(encoder, [samples["short"]])
    # Windows of 10 s every 6 s, cut in the middle of the 4 s that two of them share: 2 s into each.
    starts = range(0, 401_234 - 64_000, 96_000)
    windows = [samples["long"][s : s + 160_000] for s in starts]
    pieces = encode(encoder, windows)
    first = [0] + [100] * (len(windows) - 1)
    end = [400] * (len(windows) - 1) + [None]
    for layer in range(encoder.num_layers):
        kept = torch.cat([p[layer][a:b] for p, a, b in zip(pieces, first, end, strict=True)])
        assert len(kept) == 401_234 // 320
        assert relative_error(torch.from_numpy(rows["long"][layer]), kept.mean(0)) < FP32_RELATIVE
        assert relative_error(torch.from_numpy(rows["short"][layer]), alone[layer].mean(0)) < FP32_RELATIVE


def test_a_context_too_short_for_windows_is_refused(tmp_path: Path) -> None:
    make_whisper().save_pretrained(tmp_path / "model")
    soundfile.write(tmp_path / "a.wav", np.zeros(16_000), 16_000)
    with pytest.raises(SettingsError, match="takes 2 seconds at once; windows need more than 8"):
        run(tmp_path / "a.wav", Options(model=str(tmp_path / "model")), tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["whisper-tiny", "whisper-base"])
def test_full_size_models_equal_the_reference_and_bf16_points_there(name: str) -> None:
    from transformers import WhisperConfig, WhisperModel

    torch.manual_seed(0)
    size = MODELS[name].architecture
    decoder = {"decoder_layers": 1, "decoder_attention_heads": size["encoder_attention_heads"]}
    model = WhisperModel(WhisperConfig(**size, **decoder)).eval()
    encoder, audio = build(model), waveforms((16_000, 50_001, 480_000))
    half = encode(build(model, torch.bfloat16), audio)
    exact = encode(encoder, audio)
    assert_same(exact, [reference(model, waveform) for waveform in audio])
    for ours, rough in zip(exact, half, strict=True):
        for a, c in zip(ours, rough, strict=True):
            assert torch.cosine_similarity(c.float().mean(0), a.mean(0), dim=0) > BF16_COSINE
