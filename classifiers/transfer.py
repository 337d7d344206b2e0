"""A trained model on recordings of other corpora."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from classifiers.config import Experiment, experiment_from
from classifiers.cross_corpus import check_normalisation
from classifiers.experiment import open_features, run_experiment, train_on_all
from classifiers.features import Features
from classifiers.fit_progress import Say
from classifiers.label_maps import LabelMap, map_labels, restricted
from classifiers.metrics import bootstrap_interval, drop, scores
from classifiers.model_folder import Model, conditions_of_model, load_model, origin_of
from classifiers.results import Predictions, Result, to_json
from classifiers.source import FRAMES, Labelling, Source
from classifiers.stacked import different_settings
from extractor.errors import InputError, SettingsError, StoreError
from extractor.store import Store
from extractor.store.run_folder import write_text


@dataclass(frozen=True, slots=True)
class Transferred:
    """A model on one run. Figures are over the classes that both have."""

    run: str
    labels: LabelMap
    classes: tuple[str, ...]  # of the model
    figures: dict[str, Any]  # as `metrics.scores`
    interval: tuple[float, float]  # of UA, 95 %, over rows
    within: float | None  # UA of the model's own protocol, over the same classes
    notes: tuple[str, ...]
    conditions: str = ""  # of the model and how its embeddings were brought to one scale

    @property
    def drop(self) -> float | None:
        """See `metrics.drop`."""
        return drop(self.within, self.figures["UA"])


def transfer(
    model_or_config: str | PathLike[str],
    runs: Sequence[str],
    renames: Mapping[str, str] | None = None,
    normalise: str = "none",
    common_only: bool = False,
    say: Say | None = None,
) -> list[Transferred]:
    """Test a model folder, or the model that an experiment's YAML file describes, on runs.

    Args:
        runs: RUN each; of a model of several sources their runs with commas, in its order.
        renames: labels of the runs to classes of the model.
        normalise: "corpus" gives each run the training corpus's mean and deviation first.
        common_only: the most probable of the classes that the run has; else any of the model's.

    Raises:
        SettingsError: a label in ``renames`` that no run has; a wrong number of runs.
        StoreError: no model; a run of another model than the one trained on.
        InputError: fewer than two classes in common.
    """
    check_normalisation(normalise)
    model, result = _model(Path(model_or_config), say)
    experiment = experiment_from(model.config, str(model_or_config))
    maps = map_labels([run.split(",")[0] for run in runs], experiment.label, renames or {})
    maps = restricted(maps, model.classes)
    return [
        _on_run(model, result, run, labels, experiment, normalise, common_only)
        for run, labels in zip(runs, maps, strict=True)
    ]


def _model(path: Path, say: Say | None) -> tuple[Model, Result]:
    if path.is_dir():
        return load_model(path), Result.load(path)
    from classifiers.config import read_yaml

    experiment = experiment_from(read_yaml(path), str(path))
    features = open_features(experiment)
    result = run_experiment(experiment, features, say)
    trained = train_on_all(experiment, features, say)
    origins = tuple(origin_of(source) for source in trained.sources)
    model = Model(path, experiment.row, result.classes, origins, trained.estimator, result.config)
    return model, result


def _on_run(
    model: Model,
    result: Result,
    run: str,
    labels: LabelMap,
    experiment: Experiment,
    normalise: str,
    common_only: bool,
) -> Transferred:
    if len(labels.classes) < 2:
        raise InputError(
            f"{run}: {len(labels.classes)} of its classes are the model's ({', '.join(model.classes)});"
            " rename with --map old=new"
        )
    sources = _sources(model, run)
    labelling = Labelling(experiment.label, labels.classes, labels.renames(), "none")
    features = Features.open(sources, labelling)
    proba = model.predict_proba([
        _block(model, features, k, experiment if normalise == "corpus" else None) for k in range(len(sources))
    ])  # fmt: skip
    code = {name: k for k, name in enumerate(model.classes)}
    common = np.array([code[name] for name in labels.classes])
    y_true = np.array([code[name] for name in features.labels], np.int64)
    rows = np.arange(len(features))
    made = Predictions(rows, np.zeros(len(rows), np.int64), y_true, _chosen(proba, common, common_only))
    own = result.predictions[0]
    of_common = np.isin(own.y_true, common)
    within = None
    if of_common.any():
        chosen = _chosen(own.proba[of_common], common, common_only)
        within = scores(own.y_true[of_common], chosen, model.classes)["UA"]
    notes = list(features.notes)
    heard = set(result.ids) & set(features.ids)
    if heard and {origin.path for origin in model.origins} & {source.path for source in sources}:
        notes.append(f"{run}: {len(heard):,} of its recordings are among those that the model was trained on")
    figures = scores(y_true, made.proba, model.classes)
    under = str(conditions_of_model(result, model.origins, normalise))
    interval = bootstrap_interval(made)
    return Transferred(run, labels, model.classes, figures, interval, within, tuple(notes), under)


def _sources(model: Model, run: str) -> list[Source]:
    """A run, or several with commas, read as the model's sources are. Raises StoreError."""
    paths = run.split(",")
    if len(paths) != len(model.origins):
        named = ", ".join(origin.path for origin in model.origins)
        raise SettingsError(
            f"{run}: the model takes {len(model.origins)} runs ({named}); name as many, with commas"
        )
    for path, origin in zip(paths, model.origins, strict=True):
        differences = different_settings(origin.settings, Store(path).settings)
        if differences:
            raise StoreError(
                f"{path}: not of the model that {origin.path} was made with: {'; '.join(differences)}."
                " Extract it with the same"
            )
    return [
        Source(path, origin.pooling, origin.layers) for path, origin in zip(paths, model.origins, strict=True)
    ]


def _block(model: Model, features: Features, number: int, scaled_as: Experiment | None) -> Any:
    """Of one source, as `Model.predict_proba` takes it: float32 [N, L, D], or frames of each row."""
    one = features.only(number)
    if model.origins[number].pooling == FRAMES:
        if scaled_as is not None:
            raise SettingsError("--normalise corpus: of pooled embeddings only")
        frames = [one.frames(row) for row in range(len(one))]
        return [each[:, None] if each.ndim == 2 else each for each in frames]
    if scaled_as is None:
        return one.tensor()
    # As if it had been recorded like the training corpus: its own mean and deviation out, theirs in.
    origin = model.origins[number]
    source = Source(origin.path, origin.pooling, origin.layers)
    labelling = Labelling(scaled_as.label, scaled_as.classes, scaled_as.map, scaled_as.copies)
    trained = Features.open([source], labelling).tensor()
    one.standardised = True
    return (one.tensor() * trained.std(axis=0) + trained.mean(axis=0)).astype(np.float32)


def _chosen(proba: np.ndarray, common: np.ndarray, common_only: bool) -> np.ndarray:
    """With ``common_only`` the other classes have probability 0, and the rest sum to 1."""
    if not common_only:
        return proba
    out = np.zeros_like(proba)
    out[:, common] = proba[:, common]
    total = out.sum(axis=1, keepdims=True)
    # All of the probability on classes that the run has not: nothing to choose by.
    even = np.isin(np.arange(proba.shape[1]), common) / np.float32(len(common))
    return np.where(total > 0, out / np.where(total > 0, total, 1), even).astype(np.float32)


def transfer_lines(found: Sequence[Transferred]) -> list[str]:
    """What is printed: the model, labels, then a line a run."""
    lines = [*dict.fromkeys(f"model: {each.conditions}" for each in found)]
    for each in found:
        lines += each.labels.lines()
        low, high = each.interval
        tested = sum(each.figures["support"].values())
        line = f"{each.run}: UA {100 * each.figures['UA']:.1f} % (95 %: {100 * low:.1f} to {100 * high:.1f})"
        line += f", WA {100 * each.figures['WA']:.1f} %, macro-F1 {100 * each.figures['macro_f1']:.1f} %"
        line += f", {tested:,} recordings, {len(each.labels.classes)} classes"
        if each.drop is not None and each.within is not None:
            line += f"; own corpus {100 * each.within:.1f} %, drop {100 * each.drop:.1f}"
        lines += [line, *(f"note: {note}" for note in each.notes)]
    return lines


def save_transfers(found: Sequence[Transferred], folder: str | PathLike[str]) -> None:
    """``transfer.json``. Raises StoreUnwritable."""
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    write_text(path / "transfer.json", [to_json([asdict(each) | {"drop": each.drop} for each in found])])
