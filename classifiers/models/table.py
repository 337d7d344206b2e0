"""The classifiers: a row each. All have scikit-learn's interface and are seeded.

Standardisation is part of every estimator, so it is fitted on the rows that the estimator is fitted
on and on no other. Parameters go by the names that the classifier's own package gives them.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from classifiers.models.torch import parameters
from extractor.errors import SettingsError, unknown

if TYPE_CHECKING:
    import optuna

POOLED, LAYERS, FRAMES = "pooled", "layers", "frames"  # X: [N, D]; [N, L, D]; N of [T, D] or [T, L, D]
READS = {POOLED: "one layer", LAYERS: "all layers", FRAMES: "frames (runs with --pooling none)"}

# Default of linear classifiers: with as many dimensions as embeddings have, less is better than 1.
LINEAR_C = 0.01

Params = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers that a search may draw from."""

    low: float
    high: float
    log: bool = False
    whole: bool = False


Space = Mapping[str, Range | tuple[Any, ...]]  # what a search draws each parameter from


def suggested(trial: optuna.Trial, space: Space) -> dict[str, Any]:
    """A value of each parameter, drawn by the search."""
    values = {}
    for name, of in space.items():
        if isinstance(of, tuple):
            values[name] = trial.suggest_categorical(name, of)
        elif of.whole:
            values[name] = trial.suggest_int(name, int(of.low), int(of.high), log=of.log)
        else:
            values[name] = trial.suggest_float(name, of.low, of.high, log=of.log)
    return values


@dataclass(frozen=True, slots=True)
class Classifier:
    """A classifier. What ``defaults`` does not name is as its package has it: `all_parameters` tells."""

    name: str
    estimator: str  # its class, imported where one is made: `--help` lists the table
    defaults: dict[str, Any]
    input: str = POOLED
    grid: dict[str, tuple[Any, ...]] = field(default_factory=dict)  # for `--grid default`
    space: Space = field(default_factory=dict)  # for `--tune N`
    scaled: bool = True  # stands behind a scaler; else it standardises by itself
    groups: bool = False  # fit takes each row's group
    reports: bool = False  # fit takes ``progress``, called with a dict after each epoch: a network
    least: int = 1  # training rows of each class that it needs
    means_of_frames: bool = False  # takes [T, L, D] a row as well, of which it uses the mean over time

    def make(self, params: Params, seed: int) -> Any:
        """A fresh estimator. Raises SettingsError for a parameter that it does not have."""
        module, _, name = self.estimator.rpartition(".")
        made = getattr(importlib.import_module(module), name)(**self.defaults)
        known = made.get_params(deep=False)
        for key in params:
            if key not in known:
                raise SettingsError(f"{name}: {unknown('parameter', key, sorted(known))}")
        try:
            made.set_params(**({"random_state": seed} if "random_state" in known else {}) | dict(params))
        except (TypeError, ValueError) as error:
            raise SettingsError(f"{name}: {error}") from error
        if not self.scaled:
            return made
        from sklearn.pipeline import Pipeline
        from sklearn.preprocessing import StandardScaler

        return Pipeline([("scaler", StandardScaler()), ("classifier", made)])

    def all_parameters(self, params: Params) -> dict[str, Any]:
        """Every parameter that a fit with these is made with, its package's defaults included.

        Without the seed, which is the experiment's, and what the package no longer wants to be given.
        None is what the package itself works out.
        """
        return self.parameters_of(self.make(params, 0), params)

    def parameters_of(self, estimator: Any, named: Iterable[str] = ()) -> dict[str, Any]:
        """`all_parameters` of an estimator; those that were ``named`` whatever they are."""
        classifier = estimator.named_steps["classifier"] if self.scaled else estimator
        kept = set(named)
        return {
            name: value
            for name, value in classifier.get_params(deep=False).items()
            if name in kept or not (name == "random_state" or value == "deprecated" or value != value)  # NaN
        }

    def shown_parameters(self, params: Params) -> dict[str, Any]:
        """Those that tell this fit from another: what is searched, and what is not the package's default."""
        every, plain = self.all_parameters(params), self.all_parameters({})
        always = {*self.defaults, *self.grid, *self.space}
        return {
            name: value for name, value in every.items() if name in always or value != plain.get(name, value)
        }


def row(name: str) -> Classifier:
    """Raises SettingsError for a name, or alias, that is not there."""
    found = CLASSIFIERS.get(ALIASES.get(name, name))
    if found is None:
        raise SettingsError(unknown("classifier", name, [*CLASSIFIERS, *ALIASES]))
    return found


def defaults_lines() -> list[str]:
    """The table for a terminal: a line a classifier with its defaults. Imports none of their packages."""

    def line(name: str, text: str, params: Params) -> list[str]:
        flags = (f"{name}={'none' if value is None else value}" for name, value in params.items())
        words = wrap(f"{text} {' '.join(flags)}", 58, break_long_words=False, break_on_hyphens=False)
        return [f"{name if not k else '':<16} {part}" for k, part in enumerate(words)]

    short = {name: alias for alias, name in ALIASES.items()}
    lines = []
    for each in _ROWS:
        common = _TRAINING.items() if each.reports else ()
        own = {name: value for name, value in each.defaults.items() if (name, value) not in common}
        name = f"{short[each.name]}, {each.name}" if each.name in short else each.name
        lines += line(name, f"{READS[each.input]};", own)
    networks = ", ".join(each.name for each in _ROWS if each.reports)
    return [*lines, *line("", f"{networks}, where nothing else is said:", _TRAINING)]


def _defaults(of: type[parameters.Training]) -> dict[str, Any]:
    """A network's own first; without seed and device, and what all networks leave to None."""
    every = {each.name: each.default for each in fields(of)}
    common = {each.name: each.default for each in fields(parameters.Training)}
    hidden = {"random_state", "device", *(name for name in common if common[name] is every[name] is None)}
    names = sorted(every, key=lambda name: (name in common) + (common.get(name, name) is None))
    return {name: every[name] for name in names if name not in hidden}


_TRAINING = _defaults(parameters.Training)
_LEARNING_RATE = Range(1e-5, 1e-2, log=True)


def _network(
    name: str,
    reads: str,
    of: type[parameters.Training],
    space: Space | None = None,
    **more: Any,
) -> Classifier:
    """A row of `classifiers.models.torch`."""
    return Classifier(
        name,
        f"classifiers.models.torch.models.{of.__name__}",
        _defaults(of),
        reads,
        grid={"learning_rate": (1e-4, 1e-3)},
        space={"learning_rate": _LEARNING_RATE, "dropout": Range(0.0, 0.6)} if space is None else space,
        scaled=False,
        groups=True,
        reports=True,
        **more,
    )


def _svm(kernel: str, defaults: Params, grid: tuple[float, ...], space: Space) -> Classifier:
    return Classifier(
        f"{kernel}-svm",
        "classifiers.models.calibrated_svm.CalibratedSVM",
        {"kernel": kernel, **defaults},
        grid={"C": grid},
        space=space,
        scaled=False,
        groups=True,
        least=2,
    )


_C = (0.0001, 0.001, 0.01, 0.1, 1.0)
_C_SPACE = {"C": Range(1e-5, 1e1, log=True)}

_ROWS = (
    Classifier(
        "logistic",
        "sklearn.linear_model.LogisticRegression",
        {"C": LINEAR_C, "max_iter": 2000},
        grid={"C": _C},
        space=_C_SPACE,
    ),
    _svm("linear", {"C": LINEAR_C}, _C, _C_SPACE),
    _svm(
        "rbf",
        {"C": 1.0, "gamma": "scale"},
        (0.1, 1.0, 10.0, 100.0),
        {"C": Range(1e-2, 1e3, log=True), "gamma": Range(1e-5, 1e-1, log=True)},
    ),
    Classifier(
        "xgboost",  # Chen and Guestrin 2016
        "xgboost.XGBClassifier",
        {
            "n_estimators": 200,
            "max_depth": 4,
            "learning_rate": 0.1,
            "subsample": 0.8,
            "colsample_bytree": 0.5,
            "tree_method": "hist",
        },
        grid={"max_depth": (2, 4, 6), "n_estimators": (100, 300)},
        space={
            "max_depth": Range(2, 8, whole=True),
            "n_estimators": Range(50, 500, whole=True),
            "learning_rate": Range(0.01, 0.3, log=True),
            "min_child_weight": Range(0.5, 10, log=True),
        },
    ),
    Classifier(
        "knn",
        "sklearn.neighbors.KNeighborsClassifier",
        {"n_neighbors": 10, "metric": "cosine", "weights": "distance"},
        grid={"n_neighbors": (1, 5, 10, 20, 40)},
        space={"n_neighbors": Range(1, 60, whole=True), "weights": ("uniform", "distance")},
    ),
    Classifier(
        "lda",
        "sklearn.discriminant_analysis.LinearDiscriminantAnalysis",
        # Shrinkage (Ledoit and Wolf 2004): there are often fewer rows than dimensions.
        {"solver": "lsqr", "shrinkage": "auto"},
        grid={"shrinkage": ("auto", 0.1, 0.5, 0.9)},
        space={"shrinkage": Range(0.0, 1.0)},
        least=2,
    ),
    Classifier(
        "random-forest",
        "sklearn.ensemble.RandomForestClassifier",
        {"n_estimators": 500, "min_samples_leaf": 1, "max_features": "sqrt"},
        grid={"min_samples_leaf": (1, 2, 4), "max_features": ("sqrt", 0.1)},
        space={"min_samples_leaf": Range(1, 10, whole=True), "max_features": Range(0.01, 0.5, log=True)},
    ),
    _network("mlp", POOLED, parameters.Mlp),
    _network("layer-weights", LAYERS, parameters.LayerWeights),
    _network("bilstm", FRAMES, parameters.BiLstm),
    _network("attentive-stats", FRAMES, parameters.AttentiveStats),  # Okabe et al. 2018
    # SUPERB, Yang et al. 2021: emotion recognition
    _network("superb", LAYERS, parameters.Superb, {"learning_rate": _LEARNING_RATE}, means_of_frames=True),
)

CLASSIFIERS = {each.name: each for each in _ROWS}
ALIASES = {"svm": "linear-svm"}
