"""An experiment: train and test as its protocol says, then train on everything.

    result = run_experiment(Experiment(("runs/emodb:mean:best",), "logistic"))
    result.figures()["mean"]["UA"]

Per seed: folds -> select inside each fold's training rows -> fit on them -> test. Nothing of a fold's
test rows reaches what is fitted or selected for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from classifiers.data.features import Features
from classifiers.data.source import FRAMES, Source, parse_layers
from classifiers.models.table import FRAMES as ROW_FRAMES
from classifiers.results.metrics import Predictions, unweighted_accuracy
from classifiers.results.result import FoldInfo, Result
from classifiers.training.conditions import resolved_config, used_values
from classifiers.training.config import CONCAT, GATE, Experiment
from classifiers.training.learner import (
    PRIOR,
    FitProgress,
    FusedClassifier,
    Learner,
    Say,
    Setting,
    Splits,
    by_layer,
    fused,
    learned_weights,
    mixture_weights,
    take,
)
from classifiers.training.protocols import (
    PROTOCOLS,
    Fold,
    fit_groups,
    inner_splits,
    make_folds,
    shares_speakers,
)
from extractor.errors import SettingsError


@dataclass(frozen=True, slots=True)
class FinalModel:
    """What `train_on_all` gives: an estimator for everything that is to come."""

    estimator: Any  # a FusedClassifier where several classifiers are fused
    sources: tuple[Source, ...]  # with the layers that were selected
    settings: tuple[Setting, ...]  # of each classifier
    notes: list[str]


def open_features(experiment: Experiment) -> Features:
    """The rows of an experiment. Raises as `Features.open` does."""
    row, every = experiment.row, experiment.open_layers
    default = parse_layers(experiment.layer) if experiment.layer is not None else every
    pooling = experiment.pooling or (FRAMES if row.input == ROW_FRAMES else None)
    sources = [Source.parse(text, default) for text in experiment.features]
    sources = [replace(source, pooling=source.pooling or pooling) for source in sources]
    features = Features.open(sources, experiment.labelling, experiment.incomplete)
    for source in features.sources:
        if source.layers == "all" and every != "all":
            raise SettingsError(
                f"--layer all: {row.name} takes one layer; name it, or best, or take layer-weights"
            )
        if source.layers == "each":
            raise SettingsError("--layer each compares layers; it is a study, not a model: see layer_study")
    return features


class _Classifiers:
    """One for all sources together, or in late fusion one for each, on the rows of an experiment."""

    def __init__(self, experiment: Experiment, features: Features, say: Say | None = None) -> None:
        self.experiment, self.features, self.progress = experiment, features, FitProgress(say)
        groups, members = fit_groups(features, experiment.protocol), [features]
        if experiment.fusion != CONCAT:
            members = [features.only(k) for k in range(len(features.sources))]
        self.learners = [Learner(experiment, member, groups, self.progress) for member in members]

    @property
    def notes(self) -> list[str]:
        return [note for learner in self.learners for note in learner.notes()]

    def inner(self, folds: Sequence[Fold], seed: int) -> list[Splits]:
        """Inner splits of each fold; empty where nothing is selected or learned on them.

        From here on the progress expects the fits of these folds.
        """
        experiment, gate = self.experiment, self.experiment.fusion == GATE
        a_split = sum(learner.fits_a_split() for learner in self.learners) + gate * len(self.learners)
        splits_of: list[Splits] = [[] for _ in folds]
        if a_split:
            splits_of = [
                inner_splits(self.features, fold, experiment.protocol, experiment.inner_folds, seed)
                for fold in folds
            ]
        self.progress.total += sum(map(len, splits_of)) * a_split + len(folds) * len(self.learners)
        return splits_of

    def tested(
        self, folds: Sequence[Fold], splits_of: Sequence[Splits], seed: int
    ) -> tuple[Predictions, list[FoldInfo]]:
        """Predictions of every fold's test rows, each fold with its own selection."""
        of_learners = [learner.select(splits_of, seed) for learner in self.learners]
        settings = list(zip(*of_learners, strict=True))  # of each fold
        proba: list[list[np.ndarray]] = [[] for _ in folds]
        fitted: list[list[Any]] = [[] for _ in folds]
        scored: list[int] = []
        for learner, of_folds in zip(self.learners, of_learners, strict=True):
            self.progress.doing = "testing"
            for layer, numbers in by_layer([setting.layer for setting in of_folds]):
                x = learner.inputs(layer)
                for k in numbers:
                    made = learner.fit(x, folds[k].train, of_folds[k].params, seed)
                    fitted[k].append(made.estimator)
                    proba[k].append(made.proba(take(x, folds[k].test)))
                    if learner is self.learners[-1]:
                        scored.append(k)
                        self._say_fold(folds, scored, proba, of_folds[k])
        weights = [self.weights(of, splits, seed) for of, splits in zip(settings, splits_of, strict=True)]
        test = np.concatenate([fold.test for fold in folds])
        order = np.argsort(test, kind="stable")
        rows = test[order]
        number = np.repeat(np.arange(len(folds)), [len(fold.test) for fold in folds])[order]
        together = np.concatenate([fused(p, w) for p, w in zip(proba, weights, strict=True)])[order]
        infos = [_info(*of_fold) for of_fold in zip(folds, settings, fitted, weights, strict=True)]
        return Predictions(rows, number, self.features.y[rows], together), infos

    def weights(self, settings: Sequence[Setting], splits: Splits, seed: int) -> np.ndarray:
        """Weights of the members. Of a gate: learned on out-of-fold probabilities of training rows."""
        if self.experiment.fusion != GATE:
            return np.full(len(self.learners), 1 / len(self.learners))
        held = np.concatenate([validation for _, validation in splits])
        proba = []
        for learner, setting in zip(self.learners, settings, strict=True):
            x = learner.inputs(setting.layer)
            parts = [
                learner.fit(x, train, setting.params, seed).proba(take(x, validation))
                for train, validation in splits
            ]
            proba.append(np.concatenate(parts))
        return mixture_weights(np.stack(proba), self.features.y[held], PRIOR)

    def _say_fold(
        self, folds: Sequence[Fold], scored: Sequence[int], proba: Sequence[Sequence[np.ndarray]], of: Setting
    ) -> None:
        rows = np.concatenate([folds[k].test for k in scored])
        so_far = np.concatenate([sum(proba[k][1:], proba[k][0]).argmax(axis=1) for k in scored])
        ua = unweighted_accuracy(self.features.y[rows], so_far, len(self.features.classes))
        selected = f" ({of})" if str(of) else ""
        equal = " (weights equal, before the gate)" if self.experiment.fusion == GATE else ""
        self.progress.say(
            f"fold {len(scored)}/{len(folds)} ({folds[scored[-1]].name}){selected}:"
            f" UA so far{equal} {100 * ua:.1f} %"
        )


def _info(fold: Fold, settings: Sequence[Setting], fitted: Sequence[Any], weights: np.ndarray) -> FoldInfo:
    """Of late fusion: layers and parameters by member, in ``params``."""
    info = FoldInfo(fold.name, len(fold.train), len(fold.test))
    if len(settings) > 1:
        members = [
            {"layer": setting.layer, "weight": float(weight), **setting.params}
            for setting, weight in zip(settings, weights, strict=True)
        ]
        return replace(info, params={"members": members})
    [setting], [estimator] = settings, fitted
    return replace(
        info,
        layer=setting.layer,
        params=dict(setting.params),
        history=list(getattr(estimator, "history_", [])),
        layer_weights=learned_weights(estimator),
    )


def check_protocol(experiment: Experiment, features: Features) -> None:
    """Raises what `run_experiment` would of these rows once it fits: no speakers, too small a class."""
    classifiers = _Classifiers(experiment, features)
    for seed in experiment.all_seeds:
        folds, _ = make_folds(features, experiment.protocol, experiment.folds, seed, experiment.tested)
        classifiers.inner(folds, seed)
        for fold in folds:
            for learner in classifiers.learners:
                learner.refuse_too_few(fold.train)


def run_experiment(
    experiment: Experiment, features: Features | None = None, say: Say | None = None
) -> Result:
    """Test as the protocol says. ``features``: the opened rows where there are any yet.

    Raises what `open_features`, `make_folds` and the classifiers raise.
    """
    features = features or open_features(experiment)
    classifiers = _Classifiers(experiment, features, say)
    notes, plans = list(features.notes), []
    for seed in experiment.all_seeds:
        folds, found = make_folds(features, experiment.protocol, experiment.folds, seed, experiment.tested)
        notes += [note for note in found if note not in notes]
        plans.append((folds, classifiers.inner(folds, seed), seed))
    shared = shares_speakers(features, plans[0][0])
    if shared is None:
        notes.append("speakers are not known: whether any is trained on and tested cannot be told")
    elif shared:
        notes.append("speaker-dependent: speakers are trained on and tested")
    made = [classifiers.tested(*plan) for plan in plans]
    with_copies = not features.clean[made[0][0].rows].all()
    return Result(
        config=resolved_config(experiment, features),
        used=used_values(experiment, features),
        classes=features.classes,
        ids=features.ids,
        seeds=experiment.all_seeds,
        predictions=[predictions for predictions, _ in made],
        folds=[infos for _, infos in made],
        provenance=features.provenance(),
        notes=notes + classifiers.notes,
        speaker_dependent=PROTOCOLS[experiment.protocol].speaker_dependent or bool(shared),
        speakers=features.column("speaker") if "speaker" in features.columns else [],
        incomplete=features.unfinished,
        originals=features.originals if with_copies else [],
        augmentations=features.augmentations if with_copies else [],
    )


def train_on_all(experiment: Experiment, features: Features, say: Say | None = None) -> FinalModel:
    """Fit on every row that may be trained on, with what is selected on inner splits of them all."""
    classifiers, seed = _Classifiers(experiment, features, say), experiment.seed
    every = Fold("all rows", np.flatnonzero(features.trainable), np.zeros(0, np.int64))
    splits_of = classifiers.inner([every], seed)
    settings = [learner.select(splits_of, seed)[0] for learner in classifiers.learners]
    estimators, sources = [], []
    for learner, setting in zip(classifiers.learners, settings, strict=True):
        made = learner.fit(learner.inputs(setting.layer), every.train, setting.params, seed)
        estimators.append(made.estimator)
        for source in learner.features.sources:
            if isinstance(source.layers, str) and setting.layer is not None:
                source = replace(source, layers=(setting.layer,))
            sources.append(source)
    notes, estimator = classifiers.notes, estimators[0]
    if len(estimators) > 1:
        estimator = FusedClassifier(estimators, classifiers.weights(settings, splits_of[0], seed).tolist())
    return FinalModel(estimator, tuple(sources), tuple(settings), notes)
