"""Trained models to write, read, predict with and report on, for the tests of those."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import yaml

from classifiers.data.features import Features
from classifiers.models.table import CLASSIFIERS, FRAMES, LAYERS, POOLED
from classifiers.results.metrics import Predictions
from classifiers.results.result import FoldInfo, Result
from classifiers.training.config import Experiment
from classifiers.training.experiment import FinalModel, open_features, run_experiment, train_on_all
from classifiers.training.model_folder import CONFIG, PROVENANCE, Model, Origin, write_model
from extractor.store import Store

EMOTIONS = ("anger", "fear", "sadness")
NUM_SPEAKERS = 4

# Enough training to give weights that are not those of the start; what they learn is of no interest.
QUICK: dict[str, dict[str, Any]] = {
    "mlp": {"max_epochs": 2, "hidden": 8},
    "layer-weights": {"max_epochs": 2},
    "bilstm": {"max_epochs": 2, "hidden": 8, "dense": 8},
    "attentive-stats": {"max_epochs": 2, "hidden": 8, "attention": 8},
    "superb": {"max_steps": 4, "projection": 8},
    "xgboost": {"n_estimators": 5},
    "random-forest": {"n_estimators": 5},
}


def write_tones(folder: Path) -> Path:
    """Recordings of four speakers in three emotions, twice each; a manifest that names them."""
    rng = np.random.default_rng(0)
    lines = ["id,path,emotion,speaker"]
    for speaker in range(NUM_SPEAKERS):
        for k, emotion in enumerate(EMOTIONS):
            for take in range(2):
                name = f"s{speaker}-{emotion}-{take}"
                pitch = 150 * (k + 1) + 20 * speaker
                time = np.arange(6_000 + 500 * take + 300 * k) / 16_000
                wave = 0.2 * np.sin(2 * np.pi * pitch * time) + 0.02 * rng.standard_normal(len(time))
                soundfile.write(folder / f"{name}.wav", wave, 16_000)
                lines.append(f"{name},{name}.wav,{emotion},s{speaker}")
    manifest = folder / "tones.csv"
    manifest.write_text("\n".join(lines) + "\n")
    return manifest


def sources_for(name: str, mfcc: Path, hubert: Path) -> list[str]:
    """Features that a row of the table takes, of a spectral run and of one with several layers."""
    row = CLASSIFIERS[name]
    of_input = {LAYERS: f"{hubert}:mean:all", FRAMES: f"{hubert}:none:-1", POOLED: f"{mfcc}:meanstd"}
    return [*([f"{hubert}:none:all"] if row.means_of_frames else []), of_input[row.input]]


def trained(
    features: Sequence[str | Path], classifier: str = "logistic", **options: Any
) -> tuple[Features, Result, FinalModel]:
    """An experiment's rows, what it found, and the model on all rows."""
    experiment = Experiment(tuple(map(str, features)), classifier, **options)
    opened = open_features(experiment)
    return opened, run_experiment(experiment, opened), train_on_all(experiment, opened)


def quickly(classifier: str, **options: Any) -> dict[str, Any]:
    """Options of an experiment of two folds and little training."""
    return {"protocol": "grouped-kfold", "folds": 2, "params": QUICK.get(classifier, {})} | options


def write_trained(folder: Path, features: Sequence[str], classifier: str, **options: Any) -> FinalModel:
    """`trained`, quickly, and written as a model."""
    _, result, made = trained(features, classifier, **quickly(classifier, **options))
    write_model(folder, made.estimator, result, made.sources, projection="pca")
    return made


def model_of(folder: Path, *runs: str | Path, **options: Any) -> Path:
    """A model of runs, written."""
    _, result, made = trained(runs, **options)
    write_model(folder, made.estimator, result, made.sources, projection="pca")
    return folder


def blocks(model: Model, ids: Sequence[str]) -> list[Any]:
    """Stored embeddings of recordings as `Model.predict_proba` takes them: each source with its layers."""
    made: list[Any] = []
    for origin in model.origins:
        store = Store(origin.path)
        rows = [store.ids.index(name) for name in ids]
        if origin.pooling == "none":
            at = [store.layers.index(layer) for layer in origin.layers]
            made.append([store.frames(row)[:, at] for row in rows])
        else:
            made.append(store.load_rows(rows, list(origin.layers), origin.pooling))
    return made


# Results without a model, for the report


def made_up_result(
    classes: Sequence[str] = EMOTIONS,
    num_rows: int = 60,
    seeds: Sequence[int] = (0,),
    skill: float = 1.5,
    seed: int = 0,
    speaker_dependent: bool = False,
    protocol: str = "loso",
    ids: Sequence[str] | None = None,
    labels: Sequence[int] | None = None,
) -> Result:
    """Predictions that are right the more often the higher ``skill`` is."""
    rng = np.random.default_rng(seed)
    y_true = np.arange(num_rows) % len(classes) if labels is None else np.asarray(labels)
    predictions = []
    for _ in seeds:
        logits = rng.standard_normal((num_rows, len(classes)))
        logits[np.arange(num_rows), y_true] += skill
        proba = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        fold = np.arange(num_rows) % 2
        predictions.append(Predictions(np.arange(num_rows), fold, y_true, proba.astype(np.float32)))
    folds = [[FoldInfo(f"s{k}", num_rows // 2, num_rows // 2, layer=3) for k in range(2)] for _ in seeds]
    config = Experiment(("runs/x:mean:3",), "logistic", protocol=protocol).to_dict()
    names = [f"r{k:03}" for k in range(num_rows)] if ids is None else list(ids)
    speakers = [f"s{k % 2}" for k in range(num_rows)]
    return Result(
        config, tuple(classes), names, list(seeds), predictions, folds,
        speaker_dependent=speaker_dependent, speakers=speakers,
    )  # fmt: skip


def write_result(folder: Path, result: Result, **settings: Any) -> Path:
    """What a report reads of a model's folder."""
    result.save(folder)
    (folder / CONFIG).write_text(yaml.safe_dump(dict(result.config)))
    (folder / PROVENANCE).write_text(json.dumps([asdict(origin(**settings))]))
    return folder


def origin(environment: Mapping[str, Any] | None = None, **settings: Any) -> Origin:
    known = {
        "model": "hubert-large", "source": "org/name", "revision": "abc", "weights": "0123", "layers": "all",
        "pooling": "mean", "dtype": "bf16", "channel": "average", "window_seconds": 60.0,
        "storage_dtype": "fp32", "augmentation": "none",
    }  # fmt: skip
    made_with = {"model_spec": "hubert-large", "hser": "0.1.0"} if environment is None else environment
    return Origin("runs/x", "mean", (3,), known | settings, dict(made_with), "fp32", 60)
