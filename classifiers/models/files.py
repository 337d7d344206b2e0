"""One fitted estimator, one file; reading it never runs code that the file brings.

skops         scikit-learn's estimators, and xgboost inside a pipeline: JSON and arrays in a zip file
              (``skops.io``); every type in it is compared with `TYPES` before anything is made
safetensors   torch models: weights, and in the header their parameters as JSON

Neither is a pickle, and a pickle under such a name is refused as what it is.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from extractor.errors import InputError, StoreError
from extractor.store.aside import aside

SKOPS, SAFETENSORS = "skops", "safetensors"

# Every type that a file may name: those of the table's rows. skops has a list of types that it trusts,
# all of scikit-learn among them; this one is shorter on purpose. State is numbers and texts in all of
# these, and making one calls nothing that the file names.
TYPES = frozenset(
    {
        *(
            f"builtins.{name}"
            for name in ("bool", "bytearray", "dict", "float", "int", "list", "NoneType", "str", "tuple")
        ),
        *(f"numpy.{name}" for name in ("bool", "float32", "float64", "int32", "int64", "ndarray", "dtype")),
        "classifiers.models.calibrated_svm.CalibratedSVM",
        "sklearn.calibration.CalibratedClassifierCV",
        "sklearn.calibration._CalibratedClassifier",
        "sklearn.calibration._SigmoidCalibration",
        "sklearn.discriminant_analysis.LinearDiscriminantAnalysis",
        "sklearn.ensemble._forest.RandomForestClassifier",
        "sklearn.linear_model._logistic.LogisticRegression",
        "sklearn.metrics._dist_metrics.EuclideanDistance64",
        "sklearn.metrics._dist_metrics.ManhattanDistance64",
        "sklearn.metrics._dist_metrics.MinkowskiDistance64",
        "sklearn.neighbors._ball_tree.BallTree",
        "sklearn.neighbors._classification.KNeighborsClassifier",
        "sklearn.neighbors._kd_tree.KDTree",
        "sklearn.pipeline.Pipeline",
        "sklearn.preprocessing._data.StandardScaler",
        "sklearn.svm._classes.LinearSVC",
        "sklearn.svm._classes.SVC",
        "sklearn.tree._classes.DecisionTreeClassifier",
        "sklearn.tree._tree.Tree",
        "xgboost.core.Booster",
        "xgboost.sklearn.XGBClassifier",
    }
)
# Where our own types stood when older files were written.
FORMER_MODULES = {"classifiers.calibrated_svm": "classifiers.models.calibrated_svm"}
# How skops makes them. Those that call functions or methods by name are not among them.
LOADERS = frozenset(
    f"{kind}Node"
    for kind in ("Bytearray", "Dict", "Json", "List", "NdArray", "Object", "Tree", "Tuple", "Type")
)

_SCHEMA = "schema.json"  # in the zip file
_ZIP, _PICKLES = b"PK\x03\x04", (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_HEADER_KEY = "hser"  # of the safetensors header, whose values are texts


def format_of(estimator: Any) -> str:
    """How it is written."""
    return SAFETENSORS if hasattr(estimator, "state") else SKOPS


def write_estimator(estimator: Any, path: Path) -> None:
    """Write a fitted estimator, by `format_of`. Raises StoreUnwritable."""
    if format_of(estimator) == SAFETENSORS:
        from safetensors.torch import save

        plain, tensors = estimator.state()
        data = save(tensors, {_HEADER_KEY: json.dumps(plain)})
    else:
        import skops.io

        data = skops.io.dumps(estimator)
    with aside(path) as file:
        file.write(data)


def read_estimator(path: Path, kind: str) -> Any:
    """The fitted estimator. Raises StoreError for a file that is damaged, or of a type not trusted."""
    from safetensors import SafetensorError

    try:
        data = path.read_bytes()  # once: what is checked is what is loaded
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}; the model folder is not complete") from error
    if data.startswith(_PICKLES):
        raise StoreError(f"{path}: is a pickle; those can run code and are never loaded")
    if kind == SKOPS and not data.startswith(_ZIP):
        raise StoreError(f"{path}: not a skops file; train again")
    damaged = (  # what skops and safetensors raise for a file that is not what its name says
        *(zipfile.BadZipFile, SafetensorError, InputError, ValueError, TypeError, KeyError),
        *(AttributeError, ImportError, EOFError, RuntimeError, OSError),
    )
    try:
        return _read_skops(path, data) if kind == SKOPS else _read_torch(path)
    except damaged as error:
        raise StoreError(
            f"{path}: cannot be read as a model ({type(error).__name__}: {error}); train again"
        ) from error


def _read_skops(path: Path, data: bytes) -> Any:
    import skops.io

    with zipfile.ZipFile(io.BytesIO(data)) as files:
        schema = json.loads(files.read(_SCHEMA))
        former = [node for node in _nodes(schema) if node.get("__module__") in FORMER_MODULES]
        for node in former:
            node["__module__"] = FORMER_MODULES[node["__module__"]]
        if former:
            out = io.BytesIO()
            with zipfile.ZipFile(out, "w") as written:
                for name in files.namelist():
                    written.writestr(name, json.dumps(schema) if name == _SCHEMA else files.read(name))
            data = out.getvalue()
    named = {(f"{n.get('__module__')}.{n.get('__class__')}", str(n["__loader__"])) for n in _nodes(schema)}
    foreign = sorted({name for name, _ in named} - TYPES | {loader for _, loader in named} - LOADERS)
    if foreign:
        raise StoreError(f"{path}: holds what no model of hser has, and is not loaded: {', '.join(foreign)}")
    return skops.io.loads(data, trusted=sorted(TYPES))


def _nodes(node: Any) -> Iterator[dict[str, Any]]:
    """The node of the schema, and all below it."""
    if isinstance(node, dict):
        if "__loader__" in node:
            yield node
        node = list(node.values())
    if isinstance(node, list):
        for each in node:
            yield from _nodes(each)


def _read_torch(path: Path) -> Any:
    from safetensors import safe_open

    from classifiers.models.torch.models import from_state

    with safe_open(path, framework="pt") as file:
        plain = json.loads((file.metadata() or {})[_HEADER_KEY])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    return from_state(plain, tensors)
