"""Where results may be written: nobody's work is overwritten in silence.

Results of the same name and settings replace each other. A model's folder is replaced whole, so nothing
else is written into it.
"""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from classifiers.data.source import Source
from classifiers.results.files import settled
from classifiers.training.config import Experiment, experiment_from
from extractor.errors import HserError, SettingsDiffer, SettingsError
from extractor.store.run_folder import RUN

_NOT_COMPARED = ("incomplete",)  # a run that has been finished since gives a better model, not another
_MODEL_FILES = ("model.json", "result.json")


def refuse_results(folder: str | PathLike[str]) -> None:
    """Raises SettingsError where results must not be written: into a file, a run, a model's folder."""
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise SettingsError(f"--out {folder}: is a file; name a folder")
    for names, what in (((RUN,), "run"), (_MODEL_FILES, "model")):
        if any((folder / name).exists() for name in names):
            raise SettingsError(f"--out {folder}: holds a {what}; name another folder")


def refuse_other_settings(
    folder: str | PathLike[str], there: Mapping[str, Any] | None, asked: Experiment
) -> None:
    """Raises SettingsDiffer where ``folder`` holds what other settings made, each by name.

    ``there``: the experiment that it holds, as plain values; None where there is none.
    """
    if there is None:
        return
    try:
        # As it was asked, and as it was written with its defaults worked out: either does the same.
        worked_out = _comparable(experiment_from(there, str(folder)))
        before = there.get("used", {}).get("asked", there)
        old = _comparable(experiment_from(before, str(folder)))
    except HserError as error:
        raise SettingsDiffer(
            f"--out {folder}: its settings cannot be compared ({error}); name another folder, or overwrite"
            " it with --force"
        ) from error
    new = _comparable(asked)
    if new == worked_out:
        return
    differences = [
        f"{name}: there is {_shown(old[name])}, you asked for {_shown(new[name])}"
        for name in new
        if old[name] != new[name]
    ]
    if differences:
        raise SettingsDiffer(
            f"--out {folder}: made with other settings. {'; '.join(differences)}. Name another folder, or"
            " overwrite it with --force"
        )


def model_config(folder: str | PathLike[str]) -> dict[str, Any] | None:
    """The experiment of the model in a folder; None where there is none."""
    from classifiers.training.config import read_yaml

    path = settled(Path(folder)) / "config.yaml"
    return read_yaml(path) if path.is_file() else None


def _comparable(experiment: Experiment) -> dict[str, Any]:
    """Its plain values; a run is the same by whichever path."""
    values = experiment.to_dict()
    default = experiment.layer or "best"
    sources = [Source.parse(text, default) for text in experiment.features]
    values["features"] = [str(Source(str(Path(s.path).resolve()), s.pooling, s.layers)) for s in sources]
    return {name: value for name, value in values.items() if name not in _NOT_COMPARED}


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "nothing" if value in (None, {}, "") else str(value)
