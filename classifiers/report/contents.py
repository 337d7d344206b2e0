"""What is read of the folders that a report is about. No estimator is loaded for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from classifiers.charts.projection import FILE as PROJECTION
from classifiers.charts.projection import Picture, read_projection
from classifiers.results.files import settled
from classifiers.results.result import Result
from classifiers.studies.layers import LayerStudy, read_study
from classifiers.training.conditions import Conditions, conditions_of
from classifiers.training.config import read_yaml
from classifiers.training.model_folder import (
    CONFIG,
    Origin,
    read_layer_weights,
    read_origins,
)
from extractor.errors import InputError, StoreError


@dataclass(frozen=True, slots=True)
class ModelContents:
    """One model's folder."""

    name: str  # the shortest end of its path that tells it from the others
    path: str
    config: Mapping[str, Any]
    result: Result
    figures: Mapping[str, Any]  # `Result.figures`
    origins: Sequence[Origin]
    picture: Picture | None
    conditions: Conditions
    layer_weights: list[float] | None  # of the saved model, where it has learned any


def read_contents(
    folders: Sequence[str | PathLike[str]], incomplete: bool = False
) -> tuple[list[ModelContents], dict[str, LayerStudy]]:
    """Models, and studies by name, in the order in which they are named; a folder may hold both.

    Raises StoreError for a folder that holds neither, is damaged, or is of a run that was not finished,
    unless ``incomplete``; InputError for one named twice.
    """
    paths = [Path(folder) for folder in folders]
    resolved = [path.resolve() for path in paths]
    for number, path in enumerate(paths):
        if resolved[number] in resolved[:number]:
            raise InputError(f"{path}: is named twice")
    models: list[ModelContents] = []
    studies: dict[str, LayerStudy] = {}
    lacking_studies: dict[str, list[str]] = {}
    for path, name in zip(paths, _names(resolved), strict=True):
        at = settled(path)
        study = read_study(at)
        if study is not None:
            studies[name], lacking_studies[str(path)] = study, study.incomplete
        if study is None or (at / "model.json").is_file():
            models.append(_read_model(path, name))
    lacking = {model.path: model.result.incomplete for model in models} | lacking_studies
    for where, what in lacking.items():
        if what and not incomplete:
            raise StoreError(
                f"{where}: was trained on an unfinished run ({'; '.join(what)}); train again, or report it as"
                " it is with --incomplete"
            )
    return models, studies


def _read_model(path: Path, name: str) -> ModelContents:
    at = settled(path)
    result = Result.load(at)
    picture, origins = at / PROJECTION, read_origins(at)
    return ModelContents(
        name,
        str(path),
        read_yaml(at / CONFIG),
        result,
        result.figures(),
        origins,
        read_projection(picture) if picture.is_file() else None,
        conditions_of(result, origins),
        read_layer_weights(at),
    )


def _names(paths: Sequence[Path]) -> list[str]:
    """Of each path as many last parts as tell it from all others."""
    names = []
    for path in paths:
        length = 1
        others = [other for other in paths if other != path]
        while any(other.parts[-length:] == path.parts[-length:] for other in others):
            length += 1
        names.append("/".join(path.parts[-length:]))
    return names
