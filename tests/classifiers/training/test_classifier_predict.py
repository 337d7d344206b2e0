"""Predicting recordings by file: the same as from their stored embeddings."""

from __future__ import annotations

import csv
import io
import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from conftest import MakeCheckpoint
from model_cases import blocks, sources_for, write_trained

from classifiers.commands.predict import command
from classifiers.training.model_folder import PROVENANCE, load_model
from classifiers.training.prediction import Prediction, Predictor
from extractor import SettingsError, StoreError, extract
from extractor.errors import SettingsDiffer
from extractor.inputs.manifest import read_manifest
from extractor.store import Store
from tests.classifier_cases import ran, refused

hser = partial(ran, command)

# Of probabilities: embeddings in fp32 may differ in their last bits with the batch that they were made in
# (1e-5 relative, as in conftest); a classifier's scores are up to some tens, and a probability moves by a
# quarter of its score at most.
PROBA_TOLERANCE = 1e-4
FP16_RELATIVE = 2**-11  # half a unit in the last place of ten bits of mantissa


pytestmark = pytest.mark.usefixtures("without_charts")


@pytest.fixture
def recordings(tones: tuple[Path, Path, Path]) -> Path:
    return tones[0]


@pytest.fixture
def runs(tones: tuple[Path, Path, Path]) -> tuple[Path, Path]:
    return tones[1:]


def from_store(folder: Path) -> dict[str, np.ndarray]:
    """Probabilities by id, from the embeddings that the model's runs have."""
    model = load_model(folder)
    ids = Store(model.origins[0].path).ids
    return dict(zip(ids, model.predict_proba(blocks(model, ids)), strict=True))


def same_by_file(folder: Path, recordings: Path) -> dict[str, np.ndarray]:
    stored, made = from_store(folder), by_file(folder, recordings)
    assert stored.keys() == made.keys()
    for each, proba in stored.items():
        np.testing.assert_allclose(made[each], proba, atol=PROBA_TOLERANCE)
    return stored


def by_file(folder: Path, recordings: Path) -> dict[str, np.ndarray]:
    utterances = read_manifest([str(recordings / "tones.csv")]).utterances
    made = list(Predictor(folder, device="cpu").predict(utterances))
    assert [each.id for each in made] == [utterance.id for utterance in utterances]
    return {each.id: each.proba for each in made if isinstance(each, Prediction)}


@pytest.mark.parametrize("name", ["logistic", "layer-weights", "superb", "bilstm"])
def test_predictions_by_file_are_those_of_the_stored_embeddings(
    name: str, runs: tuple[Path, Path], recordings: Path, tmp_path: Path
) -> None:
    """Pooled, all layers, and frames."""
    for source in sources_for(name, *runs):
        write_trained(tmp_path / "m", [source], name)
        stored = same_by_file(tmp_path / "m", recordings)
        spread = np.std([*stored.values()], axis=0).max()
        assert spread > 10 * PROBA_TOLERANCE, "predictions that are all alike could not differ"


@pytest.mark.parametrize("fusion", ["concat", "average", "gate"])
def test_every_source_of_a_fused_model_is_encoded(
    fusion: str, runs: tuple[Path, Path], recordings: Path, tmp_path: Path
) -> None:
    """Layers in the order in which the model takes them, which need not be ascending."""
    write_trained(tmp_path / "m", [f"{runs[0]}:meanstd", f"{runs[1]}:mean:1"], "logistic", fusion=fusion)
    if fusion == "concat":
        write_trained(tmp_path / "m", [f"{runs[1]}:mean:2,0", f"{runs[0]}:meanstd"], "logistic")
    same_by_file(tmp_path / "m", recordings)


def test_rows_that_were_stored_in_fp16_are_rounded_as_they_were(recordings: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    extract(recordings / "tones.csv", model="mfcc", pooling="mean", storage_dtype="fp16", out=run)
    write_trained(tmp_path / "m", [f"{run}:mean"], "logistic")
    predictor = Predictor(tmp_path / "m", device="cpu")
    utterances = read_manifest([str(recordings / "tones.csv")]).utterances
    (encoder,) = predictor._encoders
    found = encoder(utterances, encoder.recipe.decode(utterances))
    store = Store(run)
    for name, row in zip(store.ids, store.load(pooling="mean").reshape(len(store), -1), strict=True):
        made = found[name]
        assert isinstance(made, np.ndarray)
        np.testing.assert_array_equal(made, made.astype(np.float16))
        # One rounding step where the batch has moved a value over the border between two.
        np.testing.assert_allclose(made[0], row, rtol=2 * FP16_RELATIVE)


def test_the_runs_need_not_be_there(runs: tuple[Path, Path], recordings: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs[0], run)
    write_trained(tmp_path / "m", [f"{run}:meanstd"], "logistic")
    shutil.rmtree(run)
    assert len(by_file(tmp_path / "m", recordings)) == 24


def test_another_encoder_is_refused_by_name(
    runs: tuple[Path, Path], recordings: Path, tmp_path: Path, checkpoint: MakeCheckpoint
) -> None:
    write_trained(tmp_path / "m", [f"{runs[1]}:mean:1"], "logistic")
    utterances = read_manifest([str(recordings / "tones.csv")]).utterances
    other = str(checkpoint("hubert", do_stable_layer_norm=True, feat_extract_norm="layer"))
    with pytest.raises(SettingsDiffer, match="weights"):
        list(Predictor(tmp_path / "m", "cpu", [other]).predict(utterances))
    with pytest.raises(SettingsError, match="one for each of the 1 sources"):
        Predictor(tmp_path / "m", "cpu", [other, other])


# The command


@pytest.fixture
def model(runs: tuple[Path, Path], tmp_path: Path) -> Path:
    write_trained(tmp_path / "model", [f"{runs[0]}:meanstd"], "logistic")
    return tmp_path / "model"


def test_all_forms_say_what_the_library_says(model: Path, recordings: Path) -> None:
    inputs = [recordings / "s0-anger-0.wav", recordings / "s1-fear-1.wav"]
    utterances = read_manifest([str(path) for path in inputs]).utterances
    expected = [each for each in Predictor(model, "cpu").predict(utterances) if isinstance(each, Prediction)]
    said = [json.loads(line) for line in hser(model, *inputs, "--json").stdout.splitlines()]
    assert said == [json.loads(json.dumps(each.to_dict())) for each in expected]
    rows = list(csv.DictReader(io.StringIO(hser(model, *inputs, "--csv").stdout)))
    assert [(row["path"], row["label"]) for row in rows] == [(each.path, each.label) for each in expected]
    lines = hser(model, *inputs).stdout.splitlines()
    for row, each, one, line in zip(rows, expected, said, lines, strict=True):
        shares = {name: float(row[f"p_{name}"]) for name in each.classes}
        assert sum(one["probabilities"].values()) == pytest.approx(1, abs=1e-6)  # of float32
        assert shares == pytest.approx(one["probabilities"], abs=1e-6)  # six digits are written
        assert one["label"] == max(shares, key=lambda name: shares[name])
        assert f"{each.label} " in line and f"{each.confidence:.1%}" in line


def test_a_recording_that_fails_is_named_and_the_others_go_on(
    model: Path, recordings: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    shutil.copy(recordings / "s0-anger-0.wav", folder / "good.wav")
    (folder / "bad.wav").write_bytes(b"no audio")
    result = hser(model, folder, "--json", code=1)
    assert [Path(json.loads(line)["path"]).name for line in result.stdout.splitlines()] == ["good.wav"]
    messages = result.stderr.splitlines()
    assert any(line.startswith("error: ") and "bad.wav: " in line for line in messages)
    assert "1 of 2 recordings could not be predicted" in messages


def test_a_damaged_model_is_told_before_any_recording_is_read(model: Path) -> None:
    (model / PROVENANCE).write_text("[]")
    assert PROVENANCE in refused(command, model, "no-such-file.wav", error=StoreError)
