"""An experiment: train and test as its protocol says, then train on everything.

    result = run_experiment(Experiment(("runs/emodb:mean:best",), "logistic"))
    result.figures()["mean"]["UA"]

Per seed: folds -> select inside each fold's training rows -> fit on them -> test. Nothing of a fold's
test rows reaches what is fitted or selected for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from classifiers.data.features import Features
from classifiers.data.source import FRAMES, Labelling, Source, parse_layers
from classifiers.models.table import FRAMES as ROW_FRAMES
from classifiers.models.table import LAYERS
from classifiers.results.metrics import Predictions, unweighted_accuracy
from classifiers.results.result import FoldInfo, Result
from classifiers.training.conditions import source_values
from classifiers.training.config import CONCAT, GATE, Experiment
from classifiers.training.fit_progress import FitProgress, Say
from classifiers.training.fusion import PRIOR, FusedClassifier, fused, mixture_weights
from classifiers.training.learner import Fitted, Learner, Setting, Splits, take
from classifiers.training.protocols import (
    PROTOCOLS,
    Fold,
    Rows,
    fit_groups,
    inner_splits,
    make_folds,
    shares_speakers,
)
from classifiers.training.selection import by_layer, num_selection_fits, select, selects
from extractor.errors import SettingsError


@dataclass(frozen=True, slots=True)
class Trained:
    """What `train_on_all` gives: an estimator for everything that is to come."""

    estimator: Any  # a FusedClassifier where several classifiers are fused
    sources: tuple[Source, ...]  # with the layers that were selected
    settings: tuple[Setting, ...]  # of each classifier
    notes: list[str]


def open_features(experiment: Experiment) -> Features:
    """The rows of an experiment. Raises as `Features.open` does."""
    row, every = experiment.row, _open_layers(experiment)
    default = parse_layers(experiment.layer) if experiment.layer is not None else every
    sources = [Source.parse(text, default) for text in experiment.features]
    sources = [replace(s, pooling=s.pooling or experiment.pooling or _frames(experiment)) for s in sources]
    features = Features.open(sources, labelling_of(experiment), experiment.incomplete)
    for source in features.sources:
        if source.layers == "all" and every != "all":
            raise SettingsError(
                f"--layer all: {row.name} takes one layer; name it, or best, or take layer-weights"
            )
        if source.layers == "each":
            raise SettingsError("--layer each compares layers; it is a study, not a model: see layer_study")
    return features


def used_values(experiment: Experiment, features: Features) -> dict[str, Any]:
    """What was used and no key of the experiment says, as plain values.

    ``sources``: run, encoder, pooling and layers of each; ``parameters``: those of the classifier
    that tell it from another, see `Row.shown_parameters`; ``classes``; ``asked``: the experiment before
    its defaults were worked out; ``search``: what a search drew from; ``gate_prior``.
    """
    used: dict[str, Any] = {
        "sources": [
            source_values(source.path, store.settings, source.pooling, source.layers)
            for source, store in zip(features.sources, features.stores, strict=True)
        ],
        "parameters": experiment.row.shown_parameters(experiment.params),
        "classes": list(features.classes),
        "asked": experiment.to_dict(),
    }
    if experiment.tune:
        used["search"] = {
            name: {"values": of} if isinstance(of, tuple) else asdict(of)
            for name, of in experiment.row.space.items()
        }
    if experiment.fusion == GATE:
        used["gate_prior"] = PRIOR
    return used


def resolved_config(experiment: Experiment, features: Features) -> dict[str, Any]:
    """The experiment's plain values with its defaults worked out; it does what the experiment does."""
    layers = dict.fromkeys(source.layers for source in features.sources)
    poolings = dict.fromkeys(source.pooling for source in features.sources)
    layer = experiment.layer
    if layer is None:
        [of_all, *others] = layers
        fixed = of_all if isinstance(of_all, str) else ",".join(map(str, of_all))
        layer = _open_layers(experiment) if others else fixed
    made = replace(
        experiment,
        params=experiment.row.all_parameters(experiment.params),
        grid=experiment.grid_values,
        layer=layer,
        pooling=experiment.pooling or (next(iter(poolings)) if len(poolings) == 1 else None),
    )
    return made.to_dict()


def _open_layers(experiment: Experiment) -> str:
    return "all" if experiment.row.input == LAYERS else "best"


def labelling_of(experiment: Experiment) -> Labelling:
    """Which label is learned, and from which rows."""
    return Labelling(
        experiment.label, experiment.classes, experiment.map, experiment.copies, experiment.tested
    )


def _frames(experiment: Experiment) -> str | None:
    return FRAMES if experiment.row.input == ROW_FRAMES else None


def check_protocol(experiment: Experiment, features: Features) -> None:
    """Raises what `run_experiment` would of these rows once it fits: no speakers, too small a class."""
    learners = _learners(experiment, features, FitProgress())
    for seed in experiment.all_seeds:
        folds, _ = make_folds(features, experiment.protocol, experiment.folds, seed, experiment.tested)
        _inner(experiment, features, learners, folds, seed)
        for fold in folds:
            for learner in learners:
                learner.refuse_too_few(fold.train)


def run_experiment(
    experiment: Experiment, features: Features | None = None, say: Say | None = None
) -> Result:
    """Test as the protocol says. ``features``: the opened rows where there are any yet.

    Raises what `open_features`, `make_folds` and the classifiers raise.
    """
    features = features or open_features(experiment)
    progress = FitProgress(say)
    learners = _learners(experiment, features, progress)
    notes = list(features.notes)
    predictions, folds_of, dependent = [], [], False
    plans = []
    for seed in experiment.all_seeds:
        folds, found = make_folds(features, experiment.protocol, experiment.folds, seed, experiment.tested)
        notes += [note for note in found if note not in notes]
        plans.append((seed, folds, _inner(experiment, features, learners, folds, seed)))
        progress.expect(_num_fits(experiment, learners, plans[-1][2], len(folds)))
    shared = shares_speakers(features, plans[0][1])
    dependent = PROTOCOLS[experiment.protocol].speaker_dependent or bool(shared)
    if shared is None:
        notes.append("speakers are not known: whether any is trained on and tested cannot be told")
    elif shared:
        notes.append("speaker-dependent: speakers are trained on and tested")
    for seed, folds, splits_of in plans:
        made, infos = _run_seed(experiment, features, learners, folds, splits_of, seed)
        predictions.append(made)
        folds_of.append(infos)
    for learner in learners:
        notes += learner.notes()
    with_copies = not features.clean[predictions[0].rows].all()
    return Result(
        config=resolved_config(experiment, features),
        used=used_values(experiment, features),
        classes=features.classes,
        ids=features.ids,
        seeds=experiment.all_seeds,
        predictions=predictions,
        folds=folds_of,
        provenance=features.provenance(),
        notes=notes,
        speaker_dependent=dependent,
        speakers=features.column("speaker") if "speaker" in features.columns else [],
        incomplete=features.unfinished,
        originals=features.originals if with_copies else [],
        augmentations=features.augmentations if with_copies else [],
    )


def train_on_all(experiment: Experiment, features: Features, say: Say | None = None) -> Trained:
    """Fit on every row that may be trained on, with what is selected on inner splits of them all."""
    progress = FitProgress(say)
    learners = _learners(experiment, features, progress)
    every = Fold("all rows", np.flatnonzero(features.trainable), np.zeros(0, np.int64))
    seed = experiment.seed
    splits_of = _inner(experiment, features, learners, [every], seed)
    progress.expect(_num_fits(experiment, learners, splits_of, 1))
    settings = [_select(experiment, learner, splits_of, seed)[0] for learner in learners]
    estimators = []
    for learner, setting in zip(learners, settings, strict=True):
        x = learner.inputs(setting.layer)
        estimators.append(learner.fit(x, every.train, setting.params, seed).estimator)
    sources = [
        _chosen(source, setting)
        for learner, setting in zip(learners, settings, strict=True)
        for source in learner.features.sources
    ]
    notes = [note for learner in learners for note in learner.notes()]
    estimator = estimators[0]
    if len(learners) > 1:
        weights = _weights(experiment, learners, settings, splits_of[0], seed)
        estimator = FusedClassifier(estimators, weights.tolist(), [str(source) for source in sources])
    return Trained(estimator, tuple(sources), tuple(settings), notes)


def _chosen(source: Source, setting: Setting) -> Source:
    if isinstance(source.layers, str) and setting.layer is not None:
        return replace(source, layers=(setting.layer,))
    return source


def _learners(experiment: Experiment, features: Features, progress: FitProgress) -> list[Learner]:
    """One for each classifier: of all sources together, or in late fusion one each."""
    groups = fit_groups(features, experiment.protocol)
    members = [features]
    if experiment.fusion != CONCAT:
        members = [features.only(k) for k in range(len(features.sources))]
    return [Learner(experiment.row, member, groups, experiment.params, progress) for member in members]


def _inner(
    experiment: Experiment, features: Features, learners: Sequence[Learner], folds: Sequence[Fold], seed: int
) -> list[Splits]:
    """Inner splits of each fold; empty where nothing is selected or learned on them."""
    any_selects = any(selects(learner, experiment.grid_values, experiment.tune) for learner in learners)
    if not any_selects and experiment.fusion != GATE:
        return [[] for _ in folds]
    return [inner_splits(features, fold, experiment.protocol, experiment.inner_folds, seed) for fold in folds]


def _num_fits(
    experiment: Experiment, learners: Sequence[Learner], splits_of: Sequence[Splits], num_folds: int
) -> int:
    gate = sum(map(len, splits_of)) if experiment.fusion == GATE else 0
    selection = sum(
        num_selection_fits(learner, splits_of, experiment.grid_values, experiment.tune)
        for learner in learners
    )
    return selection + (num_folds + gate) * len(learners)


def _select(
    experiment: Experiment, learner: Learner, splits_of: Sequence[Splits], seed: int
) -> list[Setting]:
    return select(learner, splits_of, experiment.grid_values, experiment.tune, seed)


def _run_seed(
    experiment: Experiment,
    features: Features,
    learners: Sequence[Learner],
    folds: Sequence[Fold],
    splits_of: Sequence[Splits],
    seed: int,
) -> tuple[Predictions, list[FoldInfo]]:
    """Predictions of every fold's test rows, each fold with its own selection."""
    settings = [_select(experiment, learner, splits_of, seed) for learner in learners]
    proba: list[list[np.ndarray]] = [[] for _ in folds]
    fitted: list[list[Fitted]] = [[] for _ in folds]
    scored: list[int] = []
    for learner, of_folds in zip(learners, settings, strict=True):
        learner.progress.doing("testing")
        for layer, numbers in by_layer([setting.layer for setting in of_folds]):
            x = learner.inputs(layer)
            for k in numbers:
                made = learner.fit(x, folds[k].train, of_folds[k].params, seed)
                fitted[k].append(made)
                proba[k].append(made.proba(take(x, folds[k].test)))
                if learner is learners[-1]:
                    scored.append(k)
                    _say_fold(learner, features, folds, scored, proba, of_folds[k], experiment.fusion == GATE)
    weights = [
        _weights(experiment, learners, [of[k] for of in settings], splits_of[k], seed)
        for k in range(len(folds))
    ]
    infos = []
    for k, fold in enumerate(folds):
        infos.append(_info(experiment, fold, [of[k] for of in settings], fitted[k], weights[k]))
    order = np.argsort(np.concatenate([fold.test for fold in folds]), kind="stable")
    rows = np.concatenate([fold.test for fold in folds])[order]
    number = np.concatenate([np.full(len(fold.test), k) for k, fold in enumerate(folds)])[order]
    together = np.concatenate([fused(p, w) for p, w in zip(proba, weights, strict=True)])[order]
    return Predictions(rows, number, features.y[rows], together), infos


def _weights(
    experiment: Experiment,
    learners: Sequence[Learner],
    settings: Sequence[Setting],
    splits: Splits,
    seed: int,
) -> np.ndarray:
    """Weights of the members. Of a gate: learned on out-of-fold probabilities of training rows."""
    if experiment.fusion != GATE:
        return np.full(len(learners), 1 / len(learners))
    held = np.concatenate([validation for _, validation in splits])
    proba = []
    for learner, setting in zip(learners, settings, strict=True):
        x = learner.inputs(setting.layer)
        parts = [
            learner.fit(x, train, setting.params, seed).proba(take(x, validation))
            for train, validation in splits
        ]
        proba.append(np.concatenate(parts))
    return mixture_weights(np.stack(proba), learners[0].features.y[held], PRIOR)


def _info(
    experiment: Experiment,
    fold: Fold,
    settings: Sequence[Setting],
    fitted: Sequence[Fitted],
    weights: np.ndarray,
) -> FoldInfo:
    """Of late fusion: layers and parameters by member, in ``params``."""
    common: dict[str, Any] = {"name": fold.name, "num_train": len(fold.train), "num_test": len(fold.test)}
    if len(settings) > 1:
        members = [
            {"layer": setting.layer, "weight": float(weight), **setting.params}
            for setting, weight in zip(settings, weights, strict=True)
        ]
        return FoldInfo(**common, params={"members": members})
    estimator = fitted[0].estimator
    learned = getattr(estimator, "layer_weights_", None)
    return FoldInfo(
        **common,
        layer=settings[0].layer,
        params=dict(settings[0].params),
        history=list(getattr(estimator, "history_", [])),
        layer_weights=None if learned is None else [float(weight) for weight in learned],
    )


def _say_fold(
    learner: Learner,
    features: Features,
    folds: Sequence[Fold],
    scored: Sequence[int],
    proba: Sequence[Sequence[np.ndarray]],
    setting: Setting,
    gate: bool,
) -> None:
    rows: Rows = np.concatenate([folds[k].test for k in scored])
    so_far = np.concatenate([sum(proba[k][1:], proba[k][0]).argmax(axis=1) for k in scored])
    ua = unweighted_accuracy(features.y[rows], so_far, len(features.classes))
    selected = f" ({setting})" if str(setting) else ""
    fold = folds[scored[-1]]
    equal = " (weights equal, before the gate)" if gate else ""
    learner.progress.say(
        f"fold {len(scored)}/{len(folds)} ({fold.name}){selected}: UA so far{equal} {100 * ua:.1f} %"
    )
