"""The classifiers: a row each. All have scikit-learn's interface and are seeded.

Standardisation is part of every estimator, so it is fitted on the rows that the estimator is fitted
on and on no other. Parameters go by the names that the classifier's own package gives them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from extractor.errors import SettingsError, unknown

if TYPE_CHECKING:
    import optuna

POOLED, LAYERS, FRAMES = (
    "pooled",
    "layers",
    "frames",
)  # X: [N, D]; [N, L, D]; a sequence of [T, D] or [T, L, D]

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

    ``make(params, seed, num_classes)`` gives a fresh estimator for labels 0 to ``num_classes`` - 1.
    """

    name: str
    make: Callable[[Params, int, int], Any]
    input: str = POOLED
    grid: dict[str, tuple[Any, ...]] = field(default_factory=dict)  # for `--grid default`
    space: dict[str, Range | Choice] = field(default_factory=dict)  # for `--tune N`
    groups_as: str | None = None  # the fit parameter that takes each row's group, where it wants them
    reports: bool = False  # fit takes ``progress``, called with a dict after each epoch
    least: int = 1  # training rows of each class that it needs
    means_of_frames: bool = False  # takes [T, L, D] a row as well, of which it uses the mean over time
    source: str = ""  # where it is described


def build(name: str, params: Params, seed: int, num_classes: int) -> Any:
    """A fresh estimator. Raises SettingsError for an unknown classifier or parameter."""
    return row(name).make(params, seed, num_classes)


def row(name: str) -> Row:
    """Raises SettingsError for a name, or alias, that is not there."""
    found = CLASSIFIERS.get(ALIASES.get(name, name))
    if found is None:
        raise SettingsError(unknown("classifier", name, [*CLASSIFIERS, *ALIASES]))
    return found


# scikit-learn. Imported where an estimator is made: `--help` lists the table.


def _with_params(estimator: Any, params: Params) -> Any:
    known = estimator.get_params(deep=False)
    for name in params:
        if name not in known:
            raise SettingsError(f"{type(estimator).__name__}: {unknown('parameter', name, sorted(known))}")
    try:
        return estimator.set_params(**params)
    except (TypeError, ValueError) as error:
        raise SettingsError(f"{type(estimator).__name__}: {error}") from error


def _standardised(estimator: Any, params: Params) -> Any:
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import StandardScaler

    return Pipeline([("scaler", StandardScaler()), ("classifier", _with_params(estimator, params))])


def _logistic(params: Params, seed: int, num_classes: int) -> Any:
    from sklearn.linear_model import LogisticRegression

    return _standardised(LogisticRegression(C=LINEAR_C, max_iter=2000, random_state=seed), params)


def _svm(kernel: str, c: float) -> Callable[[Params, int, int], Any]:
    def make(params: Params, seed: int, num_classes: int) -> Any:
        from classifiers.calibrated_svm import CalibratedSVM

        return _with_params(CalibratedSVM(kernel=kernel, C=c, random_state=seed), params)

    return make


def _knn(params: Params, seed: int, num_classes: int) -> Any:
    from sklearn.neighbors import KNeighborsClassifier

    return _standardised(KNeighborsClassifier(n_neighbors=10, metric="cosine", weights="distance"), params)


def _lda(params: Params, seed: int, num_classes: int) -> Any:
    # Shrinkage (Ledoit and Wolf 2004): there are often fewer rows than dimensions.
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    return _standardised(LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto"), params)


def _random_forest(params: Params, seed: int, num_classes: int) -> Any:
    from sklearn.ensemble import RandomForestClassifier

    return _standardised(RandomForestClassifier(n_estimators=500, random_state=seed), params)


def _xgboost(params: Params, seed: int, num_classes: int) -> Any:
    from xgboost import XGBClassifier

    made = XGBClassifier(
        n_estimators=200, max_depth=4, learning_rate=0.1, subsample=0.8, colsample_bytree=0.5,
        tree_method="hist", random_state=seed,
    )  # fmt: skip
    return _standardised(made, params)


def _torch(name: str) -> Callable[[Params, int, int], Any]:
    """A row of `classifiers.torch_models`, found by name so that torch is imported for it alone."""

    def make(params: Params, seed: int, num_classes: int) -> Any:
        models = importlib.import_module("classifiers.torch_models")
        return _with_params(models.MODELS[name](random_state=seed), params)

    return make


_C = (0.0001, 0.001, 0.01, 0.1, 1.0)
_C_SPACE: dict[str, Range | Choice] = {"C": Range(1e-5, 1e1, log=True)}
_TORCH_GRID = {"learning_rate": (1e-4, 1e-3)}
_TORCH_SPACE: dict[str, Range | Choice] = {
    "learning_rate": Range(1e-5, 1e-2, log=True),
    "dropout": Range(0.0, 0.6),
}

_ROWS = (
    Row("logistic", _logistic, grid={"C": _C}, space=_C_SPACE),
    Row("linear-svm", _svm("linear", LINEAR_C), grid={"C": _C}, space=_C_SPACE, groups_as="groups", least=2),
    Row(
        "rbf-svm",
        _svm("rbf", 1.0),
        grid={"C": (0.1, 1.0, 10.0, 100.0)},
        space={"C": Range(1e-2, 1e3, log=True), "gamma": Range(1e-5, 1e-1, log=True)},
        groups_as="groups",
        least=2,
    ),
    Row(
        "xgboost",
        _xgboost,
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
        grid={"n_neighbors": (1, 5, 10, 20, 40)},
        space={"n_neighbors": Range(1, 60, whole=True), "weights": Choice(("uniform", "distance"))},
    ),
    Row(
        "lda",
        _lda,
        grid={"shrinkage": ("auto", 0.1, 0.5, 0.9)},
        space={"shrinkage": Range(0.0, 1.0)},
        least=2,
    ),
    Row(
        "random-forest",
        _random_forest,
        grid={"min_samples_leaf": (1, 2, 4), "max_features": ("sqrt", 0.1)},
        space={"min_samples_leaf": Range(1, 10, whole=True), "max_features": Range(0.01, 0.5, log=True)},
    ),
    Row("mlp", _torch("mlp"), POOLED, _TORCH_GRID, _TORCH_SPACE, "groups", reports=True),
    Row("layer-weights", _torch("layer-weights"), LAYERS, _TORCH_GRID, _TORCH_SPACE, "groups", reports=True),
    Row("bilstm", _torch("bilstm"), FRAMES, _TORCH_GRID, _TORCH_SPACE, "groups", reports=True),
    Row(
        "attentive-stats",
        _torch("attentive-stats"),
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
