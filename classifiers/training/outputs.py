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
from classifiers.training.config import Experiment, experiment_from, read_yaml
from extractor.errors import HserError, SettingsDiffer, SettingsError
from extractor.store.run_folder import RUN

_MODEL_FILES = ("model.json", "result.json")


def _is_ours(folder: Path, *names: str) -> bool:
    """Whether there is one of these files in it. Raises SettingsError where ``folder`` is a file."""
    if folder.exists() and not folder.is_dir():
        raise SettingsError(f"--out {folder}: is a file; name a folder")
    return any((folder / name).exists() for name in names)


def refuse_results(folder: str | PathLike[str]) -> None:
    """Raises SettingsError where results must not be written: into a file, a run, a model's folder."""
    for what, names in (("run", (RUN,)), ("model", _MODEL_FILES)):
        if _is_ours(Path(folder), *names):
            raise SettingsError(f"--out {folder}: holds a {what}; name another folder")


def refuse_foreign(folder: str | PathLike[str]) -> None:
    """Raises SettingsError unless a model may be written there: what is somebody else's is not replaced.

    To be called before training, too, which may take hours.
    """
    path = Path(folder)
    if not _is_ours(path, *_MODEL_FILES) and path.exists() and any(path.iterdir()):
        raise SettingsError(
            f"--out {folder}: holds files of something else than a model; name another folder"
        )


def refuse_other_settings(
    folder: str | PathLike[str], there: Mapping[str, Any] | None, asked: Experiment
) -> None:
    """Raises SettingsDiffer where ``folder`` holds what other settings made, each by name.

    ``there``: the experiment that it holds, as plain values; None where there is none.
    """
    if there is None:
        return
    try:
        # As it was written with its defaults worked out, and as it was asked: either does the same.
        worked_out, old = (
            _compared(experiment_from(values, str(folder)))
            for values in (there, there.get("used", {}).get("asked", there))
        )
    except HserError as error:
        raise SettingsDiffer(
            f"--out {folder}: its settings cannot be compared ({error}); name another folder, or overwrite"
            " it with --force"
        ) from error
    new = _compared(asked)
    differences = [
        f"{name}: there is {_shown(old[name])}, you asked for {_shown(new[name])}"
        for name in new
        if old[name] != new[name]
    ]
    if differences and new != worked_out:
        raise SettingsDiffer(
            f"--out {folder}: made with other settings. {'; '.join(differences)}. Name another folder, or"
            " overwrite it with --force"
        )


def model_config(folder: str | PathLike[str]) -> dict[str, Any] | None:
    """The experiment of the model in a folder; None where there is none."""
    path = settled(Path(folder)) / "config.yaml"
    return read_yaml(path) if path.is_file() else None


def _compared(experiment: Experiment) -> dict[str, Any]:
    """Its plain values. A run is the same by whichever path, and a finished one gives a better model."""
    values = experiment.to_dict()
    del values["incomplete"]
    sources = [Source.parse(text, experiment.layer or "best") for text in experiment.features]
    values["features"] = [str(Source(str(Path(s.path).resolve()), s.pooling, s.layers)) for s in sources]
    return values


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "nothing" if value in (None, {}, "") else str(value)
