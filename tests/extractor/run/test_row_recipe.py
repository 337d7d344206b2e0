"""A recording that is looked up, or predicted, becomes the very row that it is in the run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
import torch
from conftest import BF16_COSINE, FP32_RELATIVE, MakeCheckpoint
from store_cases import LAYERS, one_row

from classifiers import lookup
from classifiers.data.features import FRAMES, Source
from classifiers.lookup.search import Query
from classifiers.training.model_folder import origin_of
from classifiers.training.prediction import SourceEncoder
from extractor import SettingsDiffer, extract
from extractor.encoders import Model
from extractor.encoders.pooling import POOLINGS
from extractor.encoders.spectral import SPECTRAL
from extractor.inputs.manifest import read_manifest
from extractor.run import fidelity
from extractor.run.recipe import RESAMPLING, RowRecipe, refuse_other_model
from extractor.store.hdf5 import NO_POOLING
from extractor.store.parts import as_stored
from extractor.types import SAMPLE_RATE, Failure, Utterance

# Of noise up to Nyquist with a deviation of 0.1: two low-pass filters differ at their edge alone.
RESAMPLERS_APART = 0.05
FP16_RELATIVE = 2**-10  # a unit in the last place of ten bits of mantissa: where rounding goes two ways

# Every setting of a run that may differ, with options that give it another value than the default.
CASES: dict[str, list[dict[str, Any]]] = {
    "layers": [{"model": "hubert", "layers": "0,2"}],
    "pooling": [{"pooling": name} for name in POOLINGS] + [{"model": "hubert", "pooling": "meanstd,none"}],
    "dtype": [{"model": "hubert", "dtype": "bf16"}],
    "channel": [{"channel": 0}, {"channel": 1}],
    "window_seconds": [{"model": "hubert", "window": 8.5}, {"model": "wavlm", "window": 9.0}],
    "storage_dtype": [{"storage_dtype": "fp16"}, {"model": "hubert", "storage_dtype": "fp16"}],
    "resample": [{"resample": "gpu"}, {"model": "hubert", "resample": "gpu", "channel": 1}],
    "augmentation": [{"augment": "gain:db=3"}],
    "copies": [{"augment": "gain:db=3", "copies": 2}],
    "seed": [{"augment": "gain:db=-6..6", "seed": 3}],
    "clean": [{"augment": "gain:db=3", "clean": True}],  # without them there is no row to compare
    "model": [{"model": name} for name in ("logmel", "mfcc", "hubert", "wavlm", "whisper")],
}
# Settings that follow from the model and from hser itself: where they differ a query is refused.
REFUSED = {
    *("layer_convention", "model", "source", "revision", "weights", "normalisation"),
    *("sample_rate", "window_overlap_seconds"),
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two channels that differ, several rates, a segment, and one longer than the short windows."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    rates = {"a": 16_000, "b": 44_100, "c": 22_050, "d": 8_000, "long": 16_000}
    for name, rate in rates.items():
        seconds = 10.0 if name == "long" else 0.6 + 0.1 * len(name)
        soundfile.write(folder / f"{name}.wav", 0.1 * rng.standard_normal((round(seconds * rate), 2)), rate)
    lines = ["id,path,emotion,speaker,start,end", *(f"{name},{name}.wav,anger,s,," for name in rates)]
    (folder / "corpus.csv").write_text("\n".join([*lines, "part,b.wav,fear,s,0.1,0.55"]) + "\n")
    return folder / "corpus.csv"


@pytest.fixture
def named(checkpoint: MakeCheckpoint) -> Mapping[str, str]:
    small = {"max_source_positions": 1500, "num_mel_bins": 80}
    return {
        **{name: name for name in SPECTRAL},
        "hubert": str(checkpoint("hubert", do_stable_layer_norm=True, feat_extract_norm="layer")),
        "wavlm": str(checkpoint("wavlm")),
        "whisper": str(checkpoint("whisper", do_normalize=None, **small)),
    }


def test_every_setting_of_a_run_has_a_case(corpus: Path, tmp_path: Path) -> None:
    """A setting that is added and decides rows has to be heard by queries, too."""
    plain = extract(corpus, model="mfcc", out=tmp_path / "plain").settings
    other = extract(
        corpus, model="mfcc", out=tmp_path / "other", resample="gpu", augment="gain:db=3", seed=1
    ).settings
    assert {*plain, *other} == {*CASES, *REFUSED}


def held_together(found: np.ndarray, stored: np.ndarray, settings: Mapping[str, Any]) -> None:
    assert found.dtype == np.float32
    if settings["storage_dtype"] == "fp16":
        np.testing.assert_array_equal(found, found.astype(np.float16))
    if settings["model"] in SPECTRAL:
        np.testing.assert_array_equal(found, stored)
        return
    error = np.linalg.norm(found - stored) / np.linalg.norm(stored)
    if settings["dtype"] == "bf16":
        assert (found * stored).sum() / np.linalg.norm(found) / np.linalg.norm(stored) > BF16_COSINE
    else:
        assert error < (FP16_RELATIVE if settings["storage_dtype"] == "fp16" else FP32_RELATIVE)


@pytest.mark.parametrize(
    ("setting", "options"), [(setting, options) for setting, each in CASES.items() for options in each]
)
def test_a_stored_row_is_its_recording_as_a_query_and_as_a_prediction(
    setting: str, options: dict[str, Any], corpus: Path, named: Mapping[str, str], tmp_path: Path
) -> None:
    options = {"pooling": "mean", "layers": "all", "dtype": "fp32", "device": "cpu", **options}
    store = extract(corpus, out=tmp_path / "run", **{**options, "model": named[options.get("model", "mfcc")]})
    assert not store.errors
    assert setting in store.settings
    utterances = read_manifest([corpus]).utterances
    rows = [row for row, name in enumerate(store.ids) if "~" not in name]  # copies are of other audio
    assert [store.ids[row] for row in rows] == [each.id for each in utterances]
    recipe = RowRecipe.of(store.settings)
    decoded = recipe.decode(utterances)
    sums = [each.reason if isinstance(each, Failure) else each.checksum for each in decoded]
    assert sums == [store.checksums[row] for row in rows]
    layer = store.layers[-1]
    for pooling in store.shapes:
        source = Source(str(tmp_path / "run"), pooling, (layer,))
        predicted = SourceEncoder(origin_of(source), "cpu")(utterances, decoded)
        for row, utterance in zip(rows, utterances, strict=True):
            stored = store.frames(row, layer) if pooling == FRAMES else store.load_rows([row], layer, pooling)
            made = predicted[utterance.id]
            assert isinstance(made, np.ndarray), made
            held_together(made[..., 0, :], stored.reshape(made[..., 0, :].shape), store.settings)
        if pooling == NO_POOLING:
            continue
        queries = list(lookup.open(tmp_path / "run", layer, pooling, device="cpu").embed(corpus))
        for row, query in zip(rows, queries, strict=True):
            assert isinstance(query, Query), query
            assert query.checksum == store.checksums[row]
            held_together(query.vector, store.load_rows([row], layer, pooling)[0], store.settings)


def test_a_recipe_is_what_the_settings_say_and_says_it_again() -> None:
    for recipe in (RowRecipe(None, "cpu", "fp32", 60.0, "fp32"), RowRecipe(0, "gpu", "bf16", 9.5, "fp16")):
        assert RowRecipe.of(recipe.settings()) == recipe
        assert (
            RowRecipe.of({"pooling": "mean", **recipe.settings()}).decode_options().channel == recipe.channel
        )


def test_what_the_model_decides_is_refused_by_name(corpus: Path, tmp_path: Path) -> None:
    store = extract(corpus, model="mfcc", out=tmp_path / "run")
    provenance = {name: store.settings[name] for name in ("model", "source", "revision", "weights")}
    provenance["normalisation"] = store.settings["normalisation"]
    refuse_other_model(store, "mfcc", provenance)
    for name in sorted(REFUSED):
        store.settings[name], before = "another", store.settings[name]
        with pytest.raises(SettingsDiffer, match=f"{name}: the run has 'another'"):
            refuse_other_model(store, "mfcc", provenance)
        store.settings[name] = before


@pytest.mark.parametrize("resample", RESAMPLING)
def test_int8_is_held_against_fp32_on_what_the_run_hears(resample: str, corpus: Path) -> None:
    """Its channel, at 16 kHz wherever that is made."""
    path = corpus.parent / "b.wav"
    samples, rate = soundfile.read(path, dtype="float32")
    expected = soxr.resample(samples[:, 1], rate, SAMPLE_RATE, quality="HQ")
    options = RowRecipe(1, resample, "int8", 60.0, "fp32").decode_options(1, checksum=False)
    model = Model("mfcc", "fp32", torch.device("cpu"))
    ((_, heard),) = fidelity._samples([Utterance("b", str(path))], options, model)
    assert len(heard) == len(expected)
    assert np.abs(heard.numpy() - expected).max() < RESAMPLERS_APART


def test_what_is_compared_with_stored_rows_is_rounded_and_refused_as_they_are() -> None:
    third, large = one_row(0, 0, 1 / 3), one_row(0, 0, 1e6)
    for storage_dtype, value in (("fp16", np.float16(1 / 3)), ("fp32", np.float32(1 / 3))):
        kept = as_stored(third, LAYERS, storage_dtype)
        assert {float(v) for each in kept.pooled.values() for v in each.ravel()} == {float(value)}
        assert kept.pooled["mean"].dtype == np.float32
    assert len(as_stored(large, LAYERS, "fp32").rows) == 1
    refused = as_stored(large, LAYERS, "fp16")
    assert not refused.rows and not len(refused.pooled["mean"])
    assert "is beyond fp16" in refused.failures[0].reason
