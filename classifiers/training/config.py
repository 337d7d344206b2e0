"""An experiment as plain values: what the flags of ``hser-train`` and a YAML file can say.

    features: [runs/emodb:mean:best]
    classifier: logistic
    grid: default
    protocol: loso

Unknown keys and values are refused by name, before any run is opened; and so is a folder for results that
holds what other settings made, or something else: nobody's work is overwritten in silence.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

from classifiers.data.source import COPIES, Labelling, Source
from classifiers.models.table import FRAMES, LAYERS, Classifier, row
from classifiers.results.files import settled
from extractor.errors import HserError, InputError, SettingsDiffer, SettingsError, unknown
from extractor.store.run_folder import RUN

CONCAT, AVERAGE, GATE = "concat", "average", "gate"
FUSIONS = (CONCAT, AVERAGE, GATE)
DEFAULT_GRID = "default"
_MODEL_FILES = ("model.json", "result.json")
WRITTEN = ("used", "selected")  # what a model's config.yaml says beside its experiment; not read back


@dataclass(frozen=True, slots=True)
class Experiment:
    """What to train and how to test it. Field names are the keys of the YAML file."""

    features: tuple[str, ...]  # RUN[:pooling[:layers]], see `features.Source`
    classifier: str = "logistic"
    params: Mapping[str, Any] = field(default_factory=dict)
    layer: str | None = None  # of features that name none: a number, 6,12, all, best, each
    pooling: str | None = None  # likewise
    fusion: str = CONCAT  # of several features
    protocol: str = "loso"
    folds: int = 5  # of the k-fold protocols
    grid: Mapping[str, tuple[Any, ...]] | str = field(default_factory=dict)  # "default": the classifier's own
    tune: int = 0  # trials of a search instead
    inner_folds: int = 5  # that layers and parameters are selected on
    seeds: int = 1  # how many
    seed: int = 0  # the first of them
    label: str = "emotion"
    classes: tuple[str, ...] | None = None
    map: Mapping[str, str] = field(default_factory=dict)  # renames classes before `classes`
    copies: str = "train"  # augmented copies: train, none, all
    test_on: str = "clean"  # rows that are tested: clean, copies, or an augmentation's name
    incomplete: bool = False  # take runs that are not finished as they are

    def __post_init__(self) -> None:
        """Raises SettingsError for values that cannot work."""
        from classifiers.training.protocols import PROTOCOLS

        known = {"fusion": FUSIONS, "protocol": PROTOCOLS, "copies": COPIES}
        for name, values in known.items():
            if getattr(self, name) not in values:
                raise SettingsError(unknown(name, str(getattr(self, name)), values))
        least = {"folds": 2, "inner_folds": 2, "seeds": 1, "tune": 0, "seed": 0}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                flag = f"--{name.replace('_', '-')}"
                raise SettingsError(f"{flag} {getattr(self, name)}: must be at least {bound}")
        if not self.features:
            raise SettingsError("name a RUN, or --features")
        if self.grid and self.tune:
            raise SettingsError("--grid and --tune exclude each other: two ways to select parameters")
        if self.fusion != CONCAT and len(self.features) < 2:
            raise SettingsError(f"--fusion {self.fusion}: of several --features; there is one")
        found = self.row
        if found.input == FRAMES and self.fusion == CONCAT and len(self.features) > 1:
            raise SettingsError(
                f"--classifier {found.name}: frames of several runs; use --fusion average or gate"
            )
        if isinstance(self.grid, str) and self.grid != DEFAULT_GRID:
            raise SettingsError(f"--grid {self.grid!r}: write default, or parameter=value,value")

    @property
    def row(self) -> Classifier:
        return row(self.classifier)

    @property
    def grid_values(self) -> Mapping[str, tuple[Any, ...]]:
        return self.row.grid if isinstance(self.grid, str) else self.grid

    @property
    def tested(self) -> str:
        """Which rows are tested, as `runs.tested_rows` takes it."""
        return "all" if self.copies == "all" and self.test_on == "clean" else self.test_on

    @property
    def labelling(self) -> Labelling:
        """Which label is learned, and from which rows."""
        return Labelling(self.label, self.classes, self.map, self.copies, self.tested)

    @property
    def open_layers(self) -> str:
        """Layers of features that name none."""
        return "all" if self.row.input == LAYERS else "best"

    @property
    def all_seeds(self) -> list[int]:
        return list(range(self.seed, self.seed + self.seeds))

    def to_dict(self) -> dict[str, Any]:
        """As YAML and JSON have it; `experiment_from` reads it back."""
        return {each.name: _plain(getattr(self, each.name)) for each in fields(self)}

    def to_yaml(self) -> str:
        import yaml

        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)


def experiment_from(values: Mapping[str, Any], where: str = "experiment") -> Experiment:
    """Raises SettingsError, naming ``where``, for unknown keys and values of the wrong kind."""
    made: dict[str, Any] = {}
    for key, value in values.items():
        if key in WRITTEN:
            continue
        if key not in _KEYS:
            raise SettingsError(f"{where}: {unknown('key', str(key), sorted(_KEYS))}")
        read, expected = _KEYS[key]
        try:
            made[key] = read(value)
        except (TypeError, ValueError) as error:
            raise SettingsError(f"{where}: {key}: {value!r} is not {expected}") from error
    if "features" not in made:
        raise SettingsError(f"{where}: `features` is missing: name a run")
    return Experiment(**made)


def read_yaml(path: str | PathLike[str]) -> dict[str, Any]:
    """The file's keys. Raises InputError where it cannot be read, SettingsError where it is no mapping."""
    import yaml

    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeError) as error:
        raise SettingsError(f"{path}: not YAML ({error})") from error
    if not isinstance(values, dict):
        raise SettingsError(f"{path}: write keys and values, such as `classifier: logistic`")
    return values


def parse_value(text: str) -> Any:
    """A parameter's value as it is written on the command line: number, true, none, or a word."""
    import yaml

    if text.lower() == "none":
        return None
    if not text.lstrip("+-").isdigit():  # 1e-3 is a word to YAML, which wants 1.0e-3
        with contextlib.suppress(ValueError):
            return float(text)
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SettingsError(f"{text!r}: not a value ({error})") from error


# Kinds of values, as YAML gives them.


def _exactly(kind: type) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if type(value) is not kind:
            raise TypeError
        return value

    return read


def _or_none(kind: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else kind(value)


def _text(value: Any) -> str:
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise TypeError
    return str(value)


def _texts(value: Any) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(_text(each) for each in value)


def _layer(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ",".join(str(_whole(each)) for each in value)
    return _text(value)


def _mapping(value: Any, kind: Callable[[Any], Any] = lambda value: value) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise TypeError
    return {_text(key): kind(of) for key, of in value.items()}


def _grid(value: Any) -> Mapping[str, tuple[Any, ...]] | str:
    def values(of: Any) -> tuple[Any, ...]:
        return tuple(of) if isinstance(of, Sequence) and not isinstance(of, str) else (of,)

    return value if isinstance(value, str) else _mapping(value, values)


_whole = _exactly(int)
# Each key's kind, and what a value that is not of it is told to be.
_KEYS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "features": (_texts, "a list of words"),
    "classes": (_or_none(_texts), "a list of words"),
    "params": (_mapping, "a mapping of names to values"),
    "map": (partial(_mapping, kind=_text), "a mapping of words to words"),
    "grid": (_grid, "default, or a mapping of names to lists of values"),
    "layer": (_or_none(_layer), "a layer"),
    "pooling": (_or_none(_text), "a word"),
    "incomplete": (_exactly(bool), "true or false"),
    **dict.fromkeys(("classifier", "fusion", "protocol", "label", "copies", "test_on"), (_text, "a word")),
    **dict.fromkeys(("folds", "tune", "inner_folds", "seeds", "seed"), (_whole, "a whole number")),
}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(of) for key, of in value.items()}
    return [_plain(each) for each in value] if isinstance(value, tuple) else value


# Where results may be written. Results of the same name and settings replace each other. A model's folder is
# replaced whole, so nothing else is written into it.


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
