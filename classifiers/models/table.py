"""The classifiers: a row each. All have scikit-learn's interface and are seeded.

Standardisation is part of every estimator, so it is fitted on the rows that the estimator is fitted
on and on no other. Parameters go by the names that the classifier's own package gives them.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from extractor.errors import SettingsError, unknown

if TYPE_CHECKING:
    import optuna

POOLED, LAYERS, FRAMES = (
    "pooled",
    "layers",
    "frames",
)  # X: [N, D]; [N, L, D]; a sequence of [T, D] or [T, L, D]
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

    def suggest(self, trial: optuna.Trial, name: str) -> float:
        if self.whole:
            return trial.suggest_int(name, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(name, self.low, self.high, log=self.log)


@dataclass(frozen=True, slots=True)
class Choice:
    """Values that a search may draw from."""

    values: tuple[Any, ...]

    def suggest(self, trial: optuna.Trial, name: str) -> Any:
        return trial.suggest_categorical(name, self.values)


@dataclass(frozen=True, slots=True)
class Row:
    """A classifier.

    ``construct(defaults, seed)`` gives its package's estimator with these parameters. What ``defaults``
    does not name is as the package has it: `all_parameters` tells.
    """

    name: str
    construct: Callable[[Params, int], Any]
    defaults: dict[str, Any] = field(default_factory=dict)
    input: str = POOLED
    grid: dict[str, tuple[Any, ...]] = field(default_factory=dict)  # for `--grid default`
    space: dict[str, Range | Choice] = field(default_factory=dict)  # for `--tune N`
    groups_as: str | None = None  # the fit parameter that takes each row's group, where it wants them
    reports: bool = False  # fit takes ``progress``, called with a dict after each epoch
    least: int = 1  # training rows of each class that it needs
    means_of_frames: bool = False  # takes [T, L, D] a row as well, of which it uses the mean over time
    source: str = ""  # where it is described

    def make(self, params: Params, seed: int, num_classes: int) -> Any:
        """A fresh estimator for labels 0 to ``num_classes`` - 1. Raises SettingsError for a parameter."""
        return _with_params(self.construct(self.defaults, seed), params)

    def all_parameters(self, params: Params) -> dict[str, Any]:
        """Every parameter that a fit with these is made with, its package's defaults included.

        Without the seed, which is the experiment's, and what the package no longer wants to be given.
        None is what the package itself works out.
        """
        return self.parameters_of(self.make(params, 0, 2), params)

    def parameters_of(self, estimator: Any, named: Iterable[str] = ()) -> dict[str, Any]:
        """`all_parameters` of an estimator; those that were ``named`` whatever they are."""
        kept = set(named)
        return {
            name: value
            for name, value in _classifier_in(estimator).get_params(deep=False).items()
            if name in kept or not (name == "random_state" or value == "deprecated" or _is_nan(value))
        }

    def shown_parameters(self, params: Params) -> dict[str, Any]:
        """Those that tell this fit from another: what is searched, and what is not the package's default."""
        every, plain = self.all_parameters(params), self.all_parameters({})
        always = {*self.defaults, *self.grid, *self.space}
        return {
            name: value for name, value in every.items() if name in always or value != plain.get(name, value)
        }


def build(name: str, params: Params, seed: int, num_classes: int) -> Any:
    """A fresh estimator. Raises SettingsError for an unknown classifier or parameter."""
    return row(name).make(params, seed, num_classes)


def row(name: str) -> Row:
    """Raises SettingsError for a name, or alias, that is not there."""
    found = CLASSIFIERS.get(ALIASES.get(name, name))
    if found is None:
        raise SettingsError(unknown("classifier", name, [*CLASSIFIERS, *ALIASES]))
    return found


def defaults_lines() -> list[str]:
    """The table for a terminal: a line a classifier with its defaults. Imports none of their packages."""
    short = {name: alias for alias, name in ALIASES.items()}
    lines = []
    for each in _ROWS:
        own = {
            name: value
            for name, value in each.defaults.items()
            if not each.reports or _TRAINING.get(name, _TRAINING) != value
        }
        name = f"{short[each.name]}, {each.name}" if each.name in short else each.name
        lines += _indented(name, f"{READS[each.input]}; {_as_flags(own)}")
    networks = ", ".join(each.name for each in _ROWS if each.reports)
    return [*lines, *_indented("", f"{networks}, where nothing else is said: {_as_flags(_TRAINING)}")]


def _as_flags(params: Params) -> str:
    """As `--param` takes them."""
    return " ".join(f"{name}={'none' if value is None else value}" for name, value in params.items())


def _indented(name: str, text: str) -> list[str]:
    first, *rest = wrap(text, 58, break_long_words=False, break_on_hyphens=False)
    return [f"{name:<16} {first}", *(f"{'':<16} {line}" for line in rest)]


# scikit-learn. Imported where an estimator is made: `--help` lists the table.


def _with_params(estimator: Any, params: Params) -> Any:
    inner = _classifier_in(estimator)
    known, name = inner.get_params(deep=False), type(inner).__name__
    for key in params:
        if key not in known:
            raise SettingsError(f"{name}: {unknown('parameter', key, sorted(known))}")
    try:
        inner.set_params(**params)
    except (TypeError, ValueError) as error:
        raise SettingsError(f"{name}: {error}") from error
    return estimator


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _classifier_in(estimator: Any) -> Any:
    """What takes the parameters: the last step behind a scaler."""
    return getattr(estimator, "named_steps", {}).get("classifier", estimator)


def _standardised(estimator: Any) -> Any:
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import StandardScaler

    return Pipeline([("scaler", StandardScaler()), ("classifier", estimator)])


def _logistic(defaults: Params, seed: int) -> Any:
    from sklearn.linear_model import LogisticRegression

    return _standardised(LogisticRegression(random_state=seed, **defaults))


def _svm(defaults: Params, seed: int) -> Any:
    from classifiers.models.calibrated_svm import CalibratedSVM

    return CalibratedSVM(random_state=seed, **defaults)


def _knn(defaults: Params, seed: int) -> Any:
    from sklearn.neighbors import KNeighborsClassifier

    return _standardised(KNeighborsClassifier(**defaults))


def _lda(defaults: Params, seed: int) -> Any:
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    return _standardised(LinearDiscriminantAnalysis(**defaults))


def _random_forest(defaults: Params, seed: int) -> Any:
    from sklearn.ensemble import RandomForestClassifier

    return _standardised(RandomForestClassifier(random_state=seed, **defaults))


def _xgboost(defaults: Params, seed: int) -> Any:
    from xgboost import XGBClassifier

    return _standardised(XGBClassifier(random_state=seed, **defaults))


def _torch(name: str) -> Callable[[Params, int], Any]:
    """A row of `classifiers.models.torch`, found by name so that torch is imported for it alone."""

    def construct(defaults: Params, seed: int) -> Any:
        models = importlib.import_module("classifiers.models.torch.models")
        return models.MODELS[name](random_state=seed, **defaults)

    return construct


_C = (0.0001, 0.001, 0.01, 0.1, 1.0)
_C_SPACE: dict[str, Range | Choice] = {"C": Range(1e-5, 1e1, log=True)}
_TORCH_GRID = {"learning_rate": (1e-4, 1e-3)}
_TORCH_SPACE: dict[str, Range | Choice] = {
    "learning_rate": Range(1e-5, 1e-2, log=True),
    "dropout": Range(0.0, 0.6),
}

# Those of every network; `superb` has SUPERB's own.
_TRAINING: dict[str, Any] = {
    "learning_rate": 1e-3,
    "weight_decay": 0.0,
    "batch_size": 32,
    "max_epochs": 100,
    "patience": 10,
    "plateau_patience": 4,
    "plateau_factor": 0.5,
    "clip": 1.0,
    "monitor": "val_loss",
    "validation": 0.1,
    "standardise": True,
    "dtype": "fp32",
}

_ROWS = (
    Row("logistic", _logistic, {"C": LINEAR_C, "max_iter": 2000}, grid={"C": _C}, space=_C_SPACE),
    Row(
        "linear-svm",
        _svm,
        {"kernel": "linear", "C": LINEAR_C},
        grid={"C": _C},
        space=_C_SPACE,
        groups_as="groups",
        least=2,
    ),
    Row(
        "rbf-svm",
        _svm,
        {"kernel": "rbf", "C": 1.0, "gamma": "scale"},
        grid={"C": (0.1, 1.0, 10.0, 100.0)},
        space={"C": Range(1e-2, 1e3, log=True), "gamma": Range(1e-5, 1e-1, log=True)},
        groups_as="groups",
        least=2,
    ),
    Row(
        "xgboost",
        _xgboost,
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
        source="Chen and Guestrin 2016",
    ),
    Row(
        "knn",
        _knn,
        {"n_neighbors": 10, "metric": "cosine", "weights": "distance"},
        grid={"n_neighbors": (1, 5, 10, 20, 40)},
        space={"n_neighbors": Range(1, 60, whole=True), "weights": Choice(("uniform", "distance"))},
    ),
    Row(
        "lda",
        _lda,
        # Shrinkage (Ledoit and Wolf 2004): there are often fewer rows than dimensions.
        {"solver": "lsqr", "shrinkage": "auto"},
        grid={"shrinkage": ("auto", 0.1, 0.5, 0.9)},
        space={"shrinkage": Range(0.0, 1.0)},
        least=2,
    ),
    Row(
        "random-forest",
        _random_forest,
        {"n_estimators": 500, "min_samples_leaf": 1, "max_features": "sqrt"},
        grid={"min_samples_leaf": (1, 2, 4), "max_features": ("sqrt", 0.1)},
        space={"min_samples_leaf": Range(1, 10, whole=True), "max_features": Range(0.01, 0.5, log=True)},
    ),
    Row(
        "mlp",
        _torch("mlp"),
        {"hidden": 256, "num_hidden": 1, "dropout": 0.3, **_TRAINING},
        POOLED,
        _TORCH_GRID,
        _TORCH_SPACE,
        "groups",
        reports=True,
    ),
    Row(
        "layer-weights",
        _torch("layer-weights"),
        {"head": "linear", "hidden": 256, "dropout": 0.3, "layer_learning_rate": 1e-2, **_TRAINING},
        LAYERS,
        _TORCH_GRID,
        _TORCH_SPACE,
        "groups",
        reports=True,
    ),
    Row(
        "bilstm",
        _torch("bilstm"),
        {"hidden": 256, "num_layers": 2, "dense": 128, "dropout": 0.3, "pooling": "mean", **_TRAINING},
        FRAMES,
        _TORCH_GRID,
        _TORCH_SPACE,
        "groups",
        reports=True,
    ),
    Row(
        "attentive-stats",
        _torch("attentive-stats"),
        {"hidden": 256, "attention": 128, "dropout": 0.3, **_TRAINING},
        FRAMES,
        _TORCH_GRID,
        _TORCH_SPACE,
        "groups",
        reports=True,
        source="Okabe et al. 2018",
    ),
    Row(
        "superb",
        _torch("superb"),
        {
            "projection": 256,
            **_TRAINING,
            "learning_rate": 1e-4,
            "max_epochs": None,
            "max_steps": 30_000,
            "patience": None,
            "plateau_patience": None,
            "monitor": "val_ua",
            "standardise": False,
        },
        LAYERS,
        _TORCH_GRID,
        {"learning_rate": _TORCH_SPACE["learning_rate"]},
        "groups",
        reports=True,
        means_of_frames=True,
        source="SUPERB, Yang et al. 2021: emotion recognition",
    ),
)

CLASSIFIERS = {each.name: each for each in _ROWS}
ALIASES = {"svm": "linear-svm"}
