"""A model's folder: what is written is what is read, and nothing that it brings is ever run."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import skops.io
import yaml
from model_cases import blocks, quickly, sources_for, trained, write_trained
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer

from classifiers.charts.projection import read_projection
from classifiers.data.features import Source
from classifiers.models.files import TYPES
from classifiers.models.table import CLASSIFIERS, LAYERS
from classifiers.results.files import folder_aside, settled
from classifiers.results.result import Result
from classifiers.training.config import Experiment, experiment_from, refuse_foreign
from classifiers.training.experiment import open_features
from classifiers.training.model_folder import MODEL, load_model, write_model
from extractor import SettingsError, StoreError


@pytest.fixture
def runs(tones: tuple[Path, Path, Path]) -> tuple[Path, Path]:
    return tones[1:]


@pytest.fixture
def model(tmp_path: Path, runs: tuple[Path, Path], without_charts: None) -> Path:
    write_trained(tmp_path / "model", [f"{runs[0]}:meanstd"], "logistic")
    return tmp_path / "model"


def changed(model: Path, **values: Any) -> None:
    """Its description with other values."""
    about = json.loads((model / MODEL).read_text())
    (model / MODEL).write_text(json.dumps(about | values))


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_every_classifier_predicts_the_same_after_loading(
    name: str, runs: tuple[Path, Path], tmp_path: Path, without_charts: None
) -> None:
    for source in sources_for(name, *runs):
        features, result, made = trained([source], name, **quickly(name))
        write_model(tmp_path / "m", made.estimator, result, made.sources, projection="pca")
        model = load_model(tmp_path / "m")
        layer = made.settings[0].layer
        if features.has_frames:
            x: Any = features.frame_rows(layer)
        else:
            x = features.tensor() if CLASSIFIERS[name].input == LAYERS else features.matrix(layer)
        expected = np.asarray(made.estimator.predict_proba(x), np.float32)
        np.testing.assert_array_equal(model.predict_proba(blocks(model, features.ids)), expected)
        assert model.classes == features.classes
        assert model.row.name == name


@pytest.mark.parametrize("fusion", ["average", "gate"])
def test_a_late_fusion_keeps_its_members_and_weights(
    fusion: str, runs: tuple[Path, Path], tmp_path: Path, without_charts: None
) -> None:
    sources = [f"{runs[0]}:meanstd", f"{runs[1]}:mean:1"]
    made = write_trained(tmp_path / "m", sources, "logistic", fusion=fusion)
    features = open_features(Experiment(tuple(sources), fusion=fusion))
    model = load_model(tmp_path / "m")
    np.testing.assert_array_equal(model.estimator.weights, made.estimator.weights)
    expected = made.estimator.predict_proba([features.only(k).matrix() for k in range(2)])
    np.testing.assert_array_equal(model.predict_proba(blocks(model, features.ids)), expected)
    assert {path.name for path in (tmp_path / "m").glob("model-*")} == {"model-0.skops", "model-1.skops"}


def test_sources_side_by_side_come_in_their_order(
    runs: tuple[Path, Path], tmp_path: Path, without_charts: None
) -> None:
    sources = [f"{runs[1]}:mean:2,0", f"{runs[0]}:meanstd"]
    made = write_trained(tmp_path / "m", sources, "logistic")
    features, model = open_features(Experiment(tuple(sources))), load_model(tmp_path / "m")
    expected = made.estimator.predict_proba(features.matrix()).astype(np.float32)
    np.testing.assert_array_equal(model.predict_proba(blocks(model, features.ids)), expected)


def test_the_folder_holds_all_that_its_docstring_names(runs: tuple[Path, Path], tmp_path: Path) -> None:
    write_trained(tmp_path / "m", [f"{runs[1]}:mean:all"], "layer-weights", seeds=2)
    expected = {
        *("model.json", "model.safetensors", "provenance.json", "heard.npz", "config.yaml"),
        *("metrics.json", "predictions.csv", "result.json", "projection.csv", "embedding_2d.png"),
        *("confusion_matrix.csv", "training_history.csv", "layer_weights.csv"),
        *("confusion_matrix.png", "roc.png", "pr.png", "reliability.png", "training_curves.png"),
        "layer_weights.png",
    }
    there = {path.name: path for path in (tmp_path / "m").iterdir()}
    assert set(there) == expected
    for name, path in there.items():
        assert name.endswith(".png") == path.read_bytes().startswith(b"\x89PNG")
    counts = [line.split(",")[1:] for line in there["confusion_matrix.csv"].read_text().splitlines()[1:]]
    result = Result.load(tmp_path / "m")
    assert np.array(counts, int).sum() == 2 * len(result.predictions[0].rows)  # of both seeds
    fits = {
        line.split(",fold")[0].split(",")[0] for line in there["layer_weights.csv"].read_text().splitlines()
    }
    assert "final" in fits
    assert experiment_from(yaml.safe_load(there["config.yaml"].read_text())).to_dict() == result.config
    assert read_projection(there["projection.csv"]).points3.shape == (len(result.ids), 3)


# What is refused


class Booby:
    """Writes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (Path.write_text, (self.mark, "executed"))


def put(model: Path, data: bytes, name: str = "model.skops") -> None:
    """Another file in the place of the estimator, with the checksum that makes it look right."""
    (model / name).write_bytes(data)
    sums = json.loads((model / MODEL).read_text())["sha256"]
    changed(model, sha256=sums | {name: hashlib.sha256(data).hexdigest()})


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_pickle_in_the_place_of_the_model_is_refused_and_not_run(
    protocol: int, model: Path, tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    data = pickle.dumps(Booby(mark), protocol=protocol)
    put(model, data)
    with pytest.raises(StoreError, match=r"model\.skops: .*(pickle|not a skops file)"):
        load_model(model)
    assert not mark.exists()
    pickle.loads(data)
    assert mark.read_text() == "executed"  # so the file would have run, had it been loaded as a pickle


def test_a_pickle_for_torch_weights_is_refused(
    runs: tuple[Path, Path], tmp_path: Path, without_charts: None
) -> None:
    folder, mark = tmp_path / "m", tmp_path / "mark"
    write_trained(folder, [f"{runs[0]}:meanstd"], "mlp")
    put(folder, pickle.dumps(Booby(mark)), "model.safetensors")
    with pytest.raises(StoreError, match=r"model\.safetensors: is a pickle"):
        load_model(folder)
    put(folder, b"\x08\x00\x00\x00\x00\x00\x00\x00{}      ", "model.safetensors")
    with pytest.raises(StoreError, match=r"model\.safetensors: cannot be read as a model"):
        load_model(folder)
    assert not mark.exists()


def test_types_that_no_model_has_are_refused_though_skops_trusts_them(model: Path) -> None:
    """A transformer of any function of numpy's is fine for skops, and for no classifier here."""
    stranger = Pipeline([("f", FunctionTransformer(np.sqrt)), ("c", load_model(model).estimator)])
    put(model, skops.io.dumps(stranger))
    with pytest.raises(StoreError, match=r"numpy\.sqrt.*FunctionTransformer"):
        load_model(model)


def test_a_doctored_schema_is_refused_before_anything_is_made(model: Path, tmp_path: Path) -> None:
    """Every node of a skops file names its type and how it is made; each is changed in turn."""
    data = (model / "model.skops").read_bytes()
    schema = json.loads(zipfile.ZipFile(io.BytesIO(data)).read("schema.json"))

    def nodes(node: Any) -> list[dict[str, Any]]:
        below = list(node.values()) if isinstance(node, dict) else node if isinstance(node, list) else []
        own = [node] if isinstance(node, dict) and "__loader__" in node else []
        return own + [each for inner in below for each in nodes(inner)]

    every = nodes(schema)
    for node in every[:: max(1, len(every) // 12)]:
        for change in (
            {"__module__": "os", "__class__": "system"},
            {"__module__": "builtins", "__class__": "eval"},
            {"__loader__": "FunctionNode"},
            {"__loader__": "MethodNode"},
        ):
            before = dict(node)
            node.update(change)
            out = io.BytesIO()
            with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
                for name in old.namelist():
                    new.writestr(name, json.dumps(schema) if name == "schema.json" else old.read(name))
            node.clear()
            node.update(before)
            put(model, out.getvalue())
            with pytest.raises(StoreError, match=r"model\.skops: holds what no model of hser has"):
                load_model(model)


def test_trusted_types_name_no_function() -> None:
    import importlib

    for name in TYPES:
        module, _, attribute = name.rpartition(".")
        if attribute == "NoneType":
            continue
        assert isinstance(getattr(importlib.import_module(module), attribute), type), name


@pytest.mark.parametrize("name", ["model.skops", "provenance.json", "config.yaml", "heard.npz"])
def test_a_changed_file_is_refused_by_name(name: str, model: Path) -> None:
    data = bytearray((model / name).read_bytes())
    data[len(data) // 2] ^= 1
    (model / name).write_bytes(data)
    with pytest.raises(StoreError, match=rf"{name}: was changed since"):
        load_model(model)
    (model / name).unlink()
    with pytest.raises(StoreError, match=rf"{name}: is missing"):
        load_model(model)


@pytest.mark.parametrize("name", ["../model.skops", "/etc/passwd", "result.json"])
def test_a_file_elsewhere_is_never_opened_as_a_model(name: str, model: Path) -> None:
    changed(model, files=[{"name": name, "kind": "skops"}])
    with pytest.raises(StoreError, match="no file of a model"):
        load_model(model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 99}, "not of format"),
        ({"versions": {"scikit-learn": "0.1.2"}}, r"scikit-learn 0\.1\.2"),
        ({"classes": ["anger"]}, "tells other classes apart"),
        ({"classifier": "oracle"}, "unknown classifier 'oracle'"),
        ({"files": []}, "damaged"),
        ({"weights": [0.5, 0.5]}, "late fusion"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(
    change: dict[str, Any], message: str, model: Path
) -> None:
    changed(model, **change)
    with pytest.raises(StoreError, match=message):
        load_model(model)


def test_what_is_no_model_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"no model here"):
        load_model(tmp_path)


def test_somebody_elses_folder_is_not_replaced(runs: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    refuse_foreign(tmp_path / "new")
    for folder, message in ((tmp_path, "something else"), (tmp_path / "thesis.tex", "is a file")):
        with pytest.raises(SettingsError, match=message):
            write_trained(folder, [f"{runs[0]}:meanstd"], "lda")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_model_is_not_written_before_its_layer_is_chosen(
    runs: tuple[Path, Path], tmp_path: Path, without_charts: None
) -> None:
    _, result, made = trained([f"{runs[0]}:meanstd"], "lda", folds=2, protocol="grouped-kfold")
    with pytest.raises(SettingsError, match="layers chosen"):
        write_model(tmp_path / "m", made.estimator, result, [Source(str(runs[1]), "mean", "best")])
    assert not (tmp_path / "m").exists()


# A kill leaves the old or the new


def test_a_failure_while_writing_leaves_the_old_model(
    model: Path, runs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (model / MODEL).read_bytes()
    monkeypatch.setattr("classifiers.charts.plots.charts_of", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_trained(model, [f"{runs[0]}:meanstd"], "lda")
    assert (model / MODEL).read_bytes() == before
    assert load_model(model).row.name == "logistic"
    assert [path.name for path in model.parent.iterdir()] == ["model"]


def test_a_kill_in_the_picture_leaves_a_whole_model(
    runs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without_charts: None
) -> None:
    monkeypatch.setattr("classifiers.training.model_folder.project_rows", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_trained(tmp_path / "m", [f"{runs[0]}:meanstd"], "lda")
    assert load_model(tmp_path / "m").row.name == "lda"


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_kill_at_any_rename_leaves_one_of_the_two(
    renames: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill runs nothing afterwards: the folders are left as they were after so many renames."""
    folder = tmp_path / "m"

    def write(text: str) -> None:
        with folder_aside(folder) as new:
            (new / "text").write_text(text)

    write("old")
    left, rename = iter(range(renames)), Path.rename

    def limited(self: Path, target: Path) -> Path:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patched, contextlib.suppress(KeyboardInterrupt):
        patched.setattr(Path, "rename", limited)
        patched.setattr("shutil.rmtree", lambda *_, **__: None)  # a dead process tidies nothing up
        write("new")
    assert (settled(folder) / "text").read_text() == ("new" if renames == 2 else "old")
    write("newest")
    assert (folder / "text").read_text() == "newest"
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
