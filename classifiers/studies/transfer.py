"""A trained model on recordings of other corpora."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from classifiers.data.features import Features
from classifiers.data.label_maps import LabelMap, map_labels, restricted
from classifiers.data.overlap import overlap
from classifiers.data.runs import augmentations_of, open_run, tested_rows
from classifiers.data.source import CLEAN, FRAMES, Labelling, Source
from classifiers.data.stacked import different_settings
from classifiers.results.files import write_json
from classifiers.results.metrics import augmentation_lines, drop, scores
from classifiers.results.result import Result
from classifiers.studies.cross_corpus import check_normalisation, figures_elsewhere
from classifiers.training.conditions import conditions_of
from classifiers.training.config import Experiment, experiment_from, read_yaml
from classifiers.training.experiment import open_features, run_experiment, train_on_all
from classifiers.training.learner import Say
from classifiers.training.model_folder import Model, heard_by, load_model, origin_of
from extractor.errors import InputError, SettingsError, StoreError, some


@dataclass(frozen=True, slots=True)
class Transfer:
    """A model on one run. Figures are over the classes that both have."""

    run: str
    labels: LabelMap
    classes: tuple[str, ...]  # of the model
    figures: dict[str, Any]  # as `metrics.scores`
    interval: tuple[float, float]  # of UA, 95 %, over recordings
    within: float | None  # UA of the model's own protocol, over the same classes
    notes: tuple[str, ...]
    test_on: str  # "clean", "copies" or an augmentation
    by_augmentation: dict[str, dict[str, Any]]  # of copies that were tested, see `metrics.scores_by`
    heard: int | None  # recordings tested that were heard in training, or whose speakers were; None: unknown
    speaker_dependent: bool  # the model's own protocol, and so ``within``
    conditions: str = ""  # of the model and how its embeddings were brought to one scale

    @property
    def drop(self) -> float | None:
        """See `metrics.drop`; None where what was heard in training is tested: that is no other corpus."""
        return None if self.heard else drop(self.within, self.figures["UA"])


def transfer(
    model_or_config: str | PathLike[str],
    runs: Sequence[str],
    renames: Mapping[str, str] | None = None,
    normalise: str = "none",
    common_only: bool = False,
    say: Say | None = None,
    test_on: str = CLEAN,
    include_heard: bool = False,
    incomplete: bool = False,
) -> list[Transfer]:
    """Test a model folder, or the model that an experiment's YAML file describes, on runs.

    Args:
        runs: RUN each; of a model of several sources their runs with commas, in its order.
        renames: labels of the runs to classes of the model.
        normalise: "corpus" gives each run the training corpus's mean and deviation first.
        common_only: the most probable of the classes that the run has; else any of the model's.
        test_on: rows that are tested, see `runs.tested_rows`.
        include_heard: test on what was heard in training, too.
        incomplete: take runs that are not finished as they are.

    Raises:
        SettingsError: a label in ``renames`` that no run has; a wrong number of runs; one named twice.
        StoreError: no model; a run of another model than the one trained on; one that is not finished.
        InputError: fewer than two classes in common; nothing that was not heard in training.
    """
    check_normalisation(normalise)
    if len(set(runs)) < len(runs):
        raise SettingsError(f"{', '.join(runs)}: a run is named twice")
    model, result = _model(Path(model_or_config), say, incomplete)
    experiment = experiment_from(model.config, str(model_or_config))
    opened = [_open_tested(model, run, test_on, include_heard, incomplete) for run in runs]
    maps = map_labels(
        runs, experiment.label, renames or {}, test_on, incomplete,
        {each.run: each.left_out for each in opened},
    )  # fmt: skip
    maps = restricted(maps, model.classes)
    return [
        _on_run(model, result, each, labels, experiment, normalise, common_only)
        for each, labels in zip(opened, maps, strict=True)
    ]


def _model(path: Path, say: Say | None, incomplete: bool) -> tuple[Model, Result]:
    if path.is_dir():
        return load_model(path), Result.load(path)
    experiment = experiment_from(read_yaml(path), str(path))
    experiment = replace(experiment, incomplete=experiment.incomplete or incomplete)
    features = open_features(experiment)
    result = run_experiment(experiment, features, say)
    trained = train_on_all(experiment, features, say)
    config = experiment.to_dict()
    origins = tuple(origin_of(source) for source in trained.sources)
    heard = tuple(heard_by(source, result.ids, config) for source in trained.sources)
    model = Model(path, experiment.row, result.classes, origins, trained.estimator, result.config, heard)
    return model, result


@dataclass(frozen=True, slots=True)
class _RunToTest:
    """A run that a model is tested on, and what of it the model has heard in training."""

    run: str
    sources: list[Source]
    test_on: str
    incomplete: bool
    heard: set[str] | None  # ids, of rows that would be tested; None where nobody knows
    left_out: set[str]  # of them: all, or none with --include-heard
    notes: list[str]


def _open_tested(model: Model, run: str, test_on: str, include_heard: bool, incomplete: bool) -> _RunToTest:
    """A run, or several with commas, read as the model's sources are.

    Raises StoreError for another model than the one trained on, InputError where nothing is left that was
    not heard in training.
    """
    paths = run.split(",")
    if len(paths) != len(model.origins):
        named = ", ".join(origin.path for origin in model.origins)
        raise SettingsError(
            f"{run}: the model takes {len(model.origins)} runs ({named}); name as many, with commas"
        )
    stores = [open_run(path, incomplete) for path in paths]
    for path, store, origin in zip(paths, stores, model.origins, strict=True):
        if differences := different_settings(origin.settings, store.settings):
            raise StoreError(
                f"{path}: not of the model that {origin.path} was made with: {'; '.join(differences)}."
                " Extract it with the same"
            )
    sources = [Source(path, of.pooling, of.layers) for path, of in zip(paths, model.origins, strict=True)]
    first = stores[0]
    tested = tested_rows(first.clean, augmentations_of(first), test_on, str(first.path))
    if not model.heard:
        note = f"{run}: whether any of it was heard in training is unknown: {model.path} was made before that"
        notes = [f"{note} was kept; train again to know"]
        return _RunToTest(run, sources, test_on, incomplete, None, set(), notes)
    ids = {name for name, each in zip(first.ids, tested.tolist(), strict=True) if each}
    found = [overlap(heard, store) for heard, store in zip(model.heard, stores, strict=True)]
    names = [np.array(store.ids, object) for store in stores]

    def among(masks: Iterable[np.ndarray]) -> set[str]:
        return ids & {name for of, mask in zip(names, masks, strict=True) for name in of[mask].tolist()}

    audio = among(each.audio for each in found)
    copies = among(each.copy for each in found) - audio
    heard = audio | copies | among(each.speaker for each in found)
    notes = []
    for store, origin in zip(stores, model.origins, strict=True):
        here, there = store.settings.get("channel"), origin.settings.get("channel")
        if here != there:
            notes.append(
                f"{run}: was decoded with channel {here!r}, the training run with {there!r}: recordings of"
                " several channels cannot be told by their audio"
            )
    namesakes = sorted({name for each in found for name in each.namesakes})
    if namesakes:
        notes.append(
            f"{run}: speakers {some(namesakes)} have the names of speakers heard in training; whether they"
            " are the same is unknown, as the runs do not say that they are of one corpus"
        )
    if heard:
        counts = {
            "by their audio": len(audio),
            "by the ids of their originals": len(copies),
            "by their speaker": len(heard) - len(audio) - len(copies),
        }
        told = ", ".join(f"{count:,} {how}" for how, count in counts.items() if count)
        what = f"{run}: {len(heard):,} of {len(ids):,} recordings were heard in training ({told})"
        if include_heard:
            notes.append(f"{what} and are tested: the figure is too high for what is new")
        elif len(heard) == len(ids):
            raise InputError(
                f"{what}: nothing is left to test {model.path} on. Name other recordings, or keep these"
                " with --include-heard; the model's figure on what it has not heard is that of hser-train"
            )
        else:
            notes.append(f"{what}: left out; --include-heard keeps them")
    return _RunToTest(run, sources, test_on, incomplete, heard, set() if include_heard else heard, notes)


def _on_run(
    model: Model,
    result: Result,
    tested: _RunToTest,
    labels: LabelMap,
    experiment: Experiment,
    normalise: str,
    common_only: bool,
) -> Transfer:
    run, classes = tested.run, model.classes
    if len(labels.classes) < 2:
        raise InputError(
            f"{run}: {len(labels.classes)} of its classes are the model's ({', '.join(classes)});"
            f" rename with --map old=new. {'; '.join(tested.notes)}".rstrip()
        )
    labelling = Labelling(experiment.label, labels.classes, labels.renames(), "all")
    features = Features.open(tested.sources, labelling, tested.incomplete)
    kept = features.tested(tested.test_on) & np.array([name not in tested.left_out for name in features.ids])
    features.keep(np.flatnonzero(kept))
    scaled_as = experiment if normalise == "corpus" else None
    blocks = [_block(model, features, k, scaled_as) for k in range(len(tested.sources))]
    code = {name: k for k, name in enumerate(classes)}
    common = np.array([code[name] for name in labels.classes])
    y_true = np.array([code[name] for name in features.labels], np.int64)
    proba = model.predict_proba(blocks)
    own = result.predictions[0]
    of_common = np.isin(own.y_true, common)
    own_proba = own.proba[of_common]
    if common_only:
        proba, own_proba = _among(proba, common), _among(own_proba, common)
    notes = [*features.notes, *tested.notes]
    notes += [f"{model.path}: was trained on an unfinished run: {what}" for what in result.incomplete]
    return Transfer(
        run,
        labels,
        classes,
        within=scores(own.y_true[of_common], own_proba, classes)["UA"] if of_common.any() else None,
        notes=tuple(notes),
        test_on=tested.test_on,
        heard=None if tested.heard is None else len(tested.heard & set(features.ids)),
        speaker_dependent=result.speaker_dependent,
        conditions=str(conditions_of(result, model.origins, normalise)),
        **figures_elsewhere(features, np.arange(len(features)), y_true, proba, classes, copies_together=True),
    )


def _block(model: Model, features: Features, number: int, scaled_as: Experiment | None) -> Any:
    """Of one source, as `Model.predict_proba` takes it: float32 [N, L, D], or frames of each row."""
    one, origin = features.only(number), model.origins[number]
    if origin.pooling == FRAMES:
        if scaled_as is not None:
            raise SettingsError("--normalise corpus: of pooled embeddings only")
        read = one.frame_rows()
        frames = (read[row] for row in range(len(one)))
        return [each[:, None] if each.ndim == 2 else each for each in frames]
    if scaled_as is None:
        return one.tensor()
    # As if it had been recorded like the training corpus: its own mean and deviation out, theirs in.
    source = Source(origin.path, origin.pooling, origin.layers)
    trained = Features.open([source], scaled_as.labelling, incomplete=True)
    own = trained.tensor()[trained.trainable]
    one.standardised = True
    return (one.tensor() * own.std(axis=0) + own.mean(axis=0)).astype(np.float32)


def _among(proba: np.ndarray, common: np.ndarray) -> np.ndarray:
    """The other classes have probability 0, and the rest sum to 1."""
    out = np.zeros_like(proba)
    out[:, common] = proba[:, common]
    total = out.sum(axis=1, keepdims=True)
    # All of the probability on classes that the run has not: nothing to choose by.
    even = np.isin(np.arange(proba.shape[1]), common) / np.float32(len(common))
    return np.where(total > 0, out / np.where(total > 0, total, 1), even).astype(np.float32)


def transfer_lines(found: Sequence[Transfer]) -> list[str]:
    """What is printed: the model, labels, then a line a run."""
    lines = [*dict.fromkeys(f"model: {each.conditions}" for each in found)]
    for each in found:
        lines += each.labels.lines()
        low, high = each.interval
        tested = sum(each.figures["support"].values())
        line = f"{each.run}: UA {100 * each.figures['UA']:.1f} % (95 %: {100 * low:.1f} to {100 * high:.1f})"
        line += f", WA {100 * each.figures['WA']:.1f} %, macro-F1 {100 * each.figures['macro_f1']:.1f} %"
        line += f", {tested:,} recordings, {len(each.labels.classes)} classes"
        if each.test_on != CLEAN:
            line += f", tested on {each.test_on}"
        if each.heard:
            line += f", {each.heard:,} of them HEARD IN TRAINING"
        if each.within is not None:
            dependent = " SPEAKER-DEPENDENT" if each.speaker_dependent else ""
            line += f"; own corpus {100 * each.within:.1f} %{dependent}"
        if each.drop is not None:
            line += f", drop {100 * each.drop:.1f}"
        lines += [line, *augmentation_lines(each.by_augmentation), *(f"note: {note}" for note in each.notes)]
    return lines


def save_transfers(found: Sequence[Transfer], folder: str | PathLike[str]) -> None:
    """``transfer.json``. Raises StoreUnwritable."""
    write_json(Path(folder) / "transfer.json", [asdict(each) | {"drop": each.drop} for each in found])
