"""A trained model as a folder: written whole, read without running anything that it brings.

model.json              what the model is: classes, classifier, files with their SHA-256, versions
model.skops             the estimator, or model.safetensors; of a late fusion model-0.skops, ...
provenance.json         where the embeddings came from: model, weights, layer, pooling, per source
heard.npz               digests of the recordings and names of the speakers it was trained on, per source
config.yaml             the experiment, every value worked out; `hser-train --config` runs it again. What it
                        cannot set is under `used`, what was chosen in each fold and for the model `selected`
metrics.json  predictions.csv  result.json                        (see `results`)
confusion_matrix.csv  training_history.csv  layer_weights.csv  projection.csv
confusion_matrix.png  roc.png  pr.png  reliability.png  training_curves.png  layer_weights.png
embedding_2d.png
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from classifiers.charts import plots
from classifiers.charts.projection import FILE as PROJECTION
from classifiers.charts.projection import TITLES, project_rows, write_projection
from classifiers.data.features import FRAMES, Source
from classifiers.data.overlap import FILE as HEARD
from classifiers.data.overlap import TrainingSet, read_training_sets, training_set_of, write_training_sets
from classifiers.data.runs import open_run
from classifiers.models.files import SAFETENSORS, SKOPS, format_of, read_estimator, write_estimator
from classifiers.models.table import LAYERS, Classifier, row
from classifiers.results.files import (
    folder_aside,
    plain,
    read_csv,
    settled,
    write_csv,
    write_file,
    write_json,
)
from classifiers.results.metrics import confusion_matrix
from classifiers.results.result import METRICS_FILE, Result
from classifiers.training.conditions import conditions_of
from classifiers.training.config import read_yaml, refuse_foreign
from classifiers.training.learner import FusedClassifier, aligned, learned_weights
from extractor.errors import SettingsError, StoreError

FORMAT = 1
MODEL, PROVENANCE, CONFIG = "model.json", "provenance.json", "config.yaml"
LAYER_WEIGHTS, FINAL = "layer_weights.csv", "final"  # the line of the saved model
_VERSIONS = ("hser", "numpy", "scikit-learn", "skops", "torch", "xgboost")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the embeddings of one source came from, and so how to make more of them."""

    path: str  # of the run, as it was named when the model was trained
    pooling: str
    layers: tuple[int, ...]  # that the model takes, in its order
    settings: dict[str, Any]  # of the run, see `extractor.store`
    environment: dict[str, Any]
    storage_dtype: str
    num_rows: int


@dataclass(frozen=True, slots=True)
class Model:
    """A trained model, read."""

    path: Path
    row: Classifier  # of the table of classifiers
    classes: tuple[str, ...]
    origins: tuple[Origin, ...]  # one a source
    estimator: Any  # fitted on codes of ``classes``; a FusedClassifier of one member a source
    config: dict[str, Any]
    heard: tuple[TrainingSet, ...] = ()  # one a source; empty for a folder of before they were kept
    speaker_dependent: bool | None = None  # how it was tested; None where nobody knows

    def predict_proba(self, blocks: Sequence[Any]) -> np.ndarray:
        """float32 [N, C] of embeddings: one block a source, with that source's layers in its order.

        A block is float32 [N, L, D], or of frames a list of N float32 [T, L, D].
        """
        if isinstance(self.estimator, FusedClassifier):
            x: Any = [
                self._inputs([origin], [block]) for origin, block in zip(self.origins, blocks, strict=True)
            ]
        else:
            x = self._inputs(self.origins, blocks)
        return aligned(self.estimator, x, len(self.classes))

    def _inputs(self, origins: Sequence[Origin], blocks: Sequence[Any]) -> Any:
        """X of one estimator, as `learner.Learner.inputs` has it in training."""
        if origins[0].pooling == FRAMES:
            one_layer = len(origins[0].layers) == 1
            return [frames[:, 0] if one_layer else frames for frames in blocks[0]]
        if self.row.input == LAYERS or self.row.means_of_frames:
            return blocks[0]
        return np.hstack([block.reshape(len(block), -1) for block in blocks])


# Writing


def write_model(
    folder: str | PathLike[str],
    estimator: Any,
    result: Result,
    sources: Sequence[Source],
    projection: str | None = None,
) -> None:
    """Write a model's folder; an older model there is replaced, whole.

    A kill leaves the old folder or the new one; at worst the new one without its picture.

    Args:
        estimator: fitted on codes of ``result.classes``; of a late fusion a FusedClassifier.
        result: what its experiment found.
        sources: what the estimator takes, in its order, with poolings and layers by name ("all" is
            every stored one).
        projection: of the picture: "umap", "pca"; None: umap where there are rows enough.

    Raises:
        SettingsError: ``folder`` holds something else; a source whose layer is not chosen.
        StoreUnwritable: it cannot be written.
    """
    import yaml

    folder = Path(folder)
    refuse_foreign(folder)
    experiment = result.config
    origins = [origin_of(source) for source in sources]
    members, weights = [estimator], None
    if isinstance(estimator, FusedClassifier):
        members, weights = estimator.estimators, estimator.weights.tolist()
    learned = learned_weights(members[0])
    under = str(conditions_of(result))
    with folder_aside(folder) as new:
        result.save(new)
        parameters = [row(experiment["classifier"]).parameters_of(member) for member in members]
        of_model = {
            "features": [str(source) for source in sources],
            "classifiers": [
                {"parameters": values, "weight": weight}
                for values, weight in zip(parameters, weights or [1.0], strict=True)
            ],
        }
        # Inside each fold's training rows; folds in which nothing was selected are left out.
        of_folds = [
            {"seed": seed, "fold": fold.name, "layer": fold.layer, **fold.params}
            for seed, folds in zip(result.seeds, result.folds, strict=True)
            for fold in folds
            if fold.layer is not None or fold.params
        ]
        of_folds = [{key: value for key, value in of.items() if value is not None} for of in of_folds]
        written = {"used": result.used, "selected": {"folds": of_folds, "model": of_model}}
        # Tuples and numpy's numbers have no place in a file that people edit.
        config_text = yaml.safe_dump(plain({**experiment, **written}), sort_keys=False, allow_unicode=True)
        write_file(new / CONFIG, config_text)
        write_json(new / PROVENANCE, [asdict(origin) for origin in origins])
        write_training_sets([heard_by(source, result.ids, experiment) for source in sources], new / HEARD)
        files = []
        for number, member in enumerate(members):
            kind = format_of(member)
            name = f"model-{number}.{kind}" if len(members) > 1 else f"model.{kind}"
            write_estimator(member, new / name)
            files.append({"name": name, "kind": kind})
        _write_tables(new, result, members, origins[0])
        for name, draw in plots.charts_of(result, origins[0].layers, learned).items():
            plots.write_png(plots.captioned(draw(), under), new / f"{name}.png")
        about = {
            "format": FORMAT,
            "classifier": experiment["classifier"],
            "classes": result.classes,
            "files": files,
            "weights": weights,
            "sha256": {
                name: _sha256(new / name) for name in (*(f["name"] for f in files), PROVENANCE, CONFIG, HEARD)
            },
            "versions": {name: version(name) for name in _VERSIONS},
        }
        write_json(new / MODEL, about)
    # UMAP takes longer than all the rest: the model is safe before it begins.
    first = result.predictions[0]
    ids = [result.ids[row] for row in first.rows.tolist()]
    picture = project_rows(sources, ids, learned, projection)
    code = dict(zip(ids, first.y_true.tolist(), strict=True))
    codes = np.array([code[name] for name in picture.ids], np.int64)
    figure = plots.embedding_map(picture.points2, codes, result.classes, TITLES[picture.method])
    plots.write_png(plots.captioned(figure, under), folder / "embedding_2d.png")
    write_projection(picture, folder / PROJECTION)


def origin_of(source: Source) -> Origin:
    """What a model keeps of a source. Raises SettingsError unless its pooling and layers are chosen."""
    store = open_run(source.path, incomplete=True)
    if source.pooling is None or source.layers in ("best", "each"):
        raise SettingsError(f"{source}: a model is written with its pooling and layers chosen")
    layers = store.layers if isinstance(source.layers, str) else source.layers
    return Origin(
        source.path,
        source.pooling,
        tuple(layers),
        store.settings,
        store.environment,
        store.info.storage_dtype,
        len(store),
    )


def heard_by(source: Source, ids: Sequence[str], config: Mapping[str, Any]) -> TrainingSet:
    """What a model that was fitted on the rows ``ids`` of a run has heard."""
    store, trained = open_run(source.path, incomplete=True), set(ids)  # the rows that were learned from
    of_model = np.array([name in trained for name in store.ids], bool)
    if config.get("copies") == "none":
        of_model &= store.clean
    return training_set_of(store, np.flatnonzero(of_model))


def _write_tables(new: Path, result: Result, members: Sequence[Any], origin: Origin) -> None:
    y_true, proba = result.tested()
    confusion = confusion_matrix(y_true, proba.argmax(axis=1), len(result.classes)).tolist()
    rows = [[name, *counts] for name, counts in zip(result.classes, confusion, strict=True)]
    write_csv(new / "confusion_matrix.csv", ["true \\ predicted", *result.classes], rows)
    histories: dict[str, Sequence[Mapping[str, float]]] = dict(result.histories())
    for number, member in enumerate(members):
        if getattr(member, "history_", None):
            histories[f"{FINAL} {number}" if len(members) > 1 else FINAL] = member.history_
    if histories:
        names = list(dict.fromkeys(name for h in histories.values() for epoch in h for name in epoch))
        lines = [[fit, *(epoch.get(n, "") for n in names)] for fit, h in histories.items() for epoch in h]
        write_csv(new / "training_history.csv", ["fit", *names], lines)
    fits = {
        f"seed {seed}, {fold.name}": fold.layer_weights
        for seed, folds in zip(result.seeds, result.folds, strict=True)
        for fold in folds
        if fold.layer_weights
    }
    learned = learned_weights(members[0])
    if learned is not None:
        fits[FINAL] = learned
    if fits:
        header = ["fit", *(f"layer {layer}" for layer in origin.layers)]
        write_csv(new / LAYER_WEIGHTS, header, [[fit, *of] for fit, of in fits.items()])


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# Reading


def load_model(folder: str | PathLike[str]) -> Model:
    """Read a model. Nothing that the folder brings is ever run.

    Raises StoreError: no model; of another format or version; a file that is damaged or was changed,
    by name; an estimator of types that are not trusted.
    """
    path = settled(Path(folder))
    about = _checked(path)
    origins = read_origins(path)
    with _damaged(path / MODEL):
        classes, found = tuple(map(str, about["classes"])), row(about["classifier"])
        weights, written_with = about["weights"], str(about["versions"]["scikit-learn"])
        names = [(str(each["name"]), str(each["kind"])) for each in about["files"]]
    minor = ".".join(written_with.split(".")[:2])
    here = version("scikit-learn")
    # scikit-learn promises no estimator across its minor versions: it may load and be wrong.
    if SKOPS in {kind for _, kind in names} and minor != ".".join(here.split(".")[:2]):
        raise StoreError(
            f"{path}: was written with scikit-learn {written_with}, this is {here}. Install scikit-learn"
            f" {minor}, or train again: hser-train --config {path / CONFIG}"
        )
    members = [read_estimator(path / name, kind) for name, kind in names]
    for (name, _), member in zip(names, members, strict=True):
        codes = getattr(member, "classes_", None)
        if codes is None or not hasattr(member, "predict_proba"):
            what = f"holds a {type(member).__name__}, which is no classifier"
            raise StoreError(f"{path / name}: {what}; train again")
        if not np.isin(np.asarray(codes), np.arange(len(classes))).all():
            raise StoreError(f"{path / name}: tells other classes apart than {MODEL} names; train again")
    estimator = members[0]
    if weights is not None:
        if len(weights) != len(members) or len(members) != len(origins):
            raise StoreError(
                f"{path / MODEL}: damaged: a late fusion needs a member and a weight each source"
            )
        estimator = FusedClassifier(members, weights)
    heard = read_training_sets(path / HEARD, len(origins)) if HEARD in about["sha256"] else ()
    try:  # not vital: a folder without its figures still predicts
        dependent = json.loads((path / METRICS_FILE).read_text("utf-8"))["speaker_dependent"]
    except (OSError, ValueError, KeyError, TypeError):
        dependent = None
    dependent = dependent if isinstance(dependent, bool) else None
    config = read_yaml(path / CONFIG)
    return Model(path, found, classes, tuple(origins), estimator, config, heard, dependent)


@contextlib.contextmanager
def _damaged(path: Path) -> Iterator[None]:
    """What is wrong in a file that was written here is told by its name."""
    try:
        yield
    except (ValueError, KeyError, TypeError, SettingsError) as error:
        raise StoreError(f"{path}: damaged ({error!r}); train again") from error


def read_origins(folder: str | PathLike[str]) -> list[Origin]:
    """Where a model's embeddings came from. Raises StoreError."""
    path = settled(Path(folder)) / PROVENANCE
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}; name a folder that hser-train has written") from error
    with _damaged(path):
        return [Origin(**each | {"layers": tuple(map(int, each["layers"]))}) for each in json.loads(text)]


def read_layer_weights(folder: str | PathLike[str]) -> list[float] | None:
    """The saved model's weights of its layers, where it has learned any. Raises StoreError."""
    path = settled(Path(folder)) / LAYER_WEIGHTS
    if not path.is_file():
        return None
    with _damaged(path):
        of_fits = {line.pop("fit"): line for line in read_csv(path)}
        return [float(weight) for weight in of_fits[FINAL].values()] if FINAL in of_fits else None


def _checked(path: Path) -> dict[str, Any]:
    """What `MODEL` says, once every file is as it was written.

    Checksums tell damage and carelessness; the types of an estimator are what guards from malice.
    """
    try:
        about = json.loads((path / MODEL).read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StoreError(
            f"{path}: no model here ({MODEL} is missing); name the --out of hser-train"
        ) from error
    except (OSError, ValueError) as error:
        raise StoreError(f"{path / MODEL}: not readable ({error})") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise StoreError(
            f"{path / MODEL}: not of format {FORMAT}; use the hser that wrote it, or train again"
        )
    sums, files = about.get("sha256"), about.get("files")
    if not isinstance(sums, dict) or not isinstance(files, list) or not files:
        raise StoreError(f"{path / MODEL}: damaged; train again")
    stems = ("model", *(f"model-{number}" for number in range(len(files))))
    allowed = {f"{stem}.{kind}" for stem in stems for kind in (SKOPS, SAFETENSORS)}
    named = [each.get("name") for each in files if isinstance(each, dict)]
    for name in (*named, PROVENANCE, CONFIG, *({HEARD} & sums.keys())):
        if name not in (*allowed, PROVENANCE, CONFIG, HEARD):
            raise StoreError(f"{path / MODEL}: names {name!r}, which is no file of a model; it is not loaded")
        if not (path / name).is_file():
            raise StoreError(f"{path / name}: is missing; the model folder is not complete")
        if sums.get(name) != _sha256(path / name):
            raise StoreError(f"{path / name}: was changed since the model was written; train again")
    return about
