"""What an experiment found: every prediction, and what made it. Written and read here.

predictions.csv   one line a tested row and seed: the numbers that everything else follows from
metrics.json      figures of each seed, mean, deviation, 95 % interval
result.json       the experiment, folds with what was selected, provenance, notes
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from classifiers.results.metrics import Predictions, bootstrap_intervals, mcnemar, scores, scores_by
from extractor.errors import InputError, StoreError
from extractor.store.aside import aside
from extractor.store.run_folder import write_text

FORMAT = 1
PREDICTIONS, METRICS_FILE, RESULT = "predictions.csv", "metrics.json", "result.json"
_TEXT = ("utf-8", "surrogateescape")  # ids may be file names that are no valid UTF-8
_FIXED = ("seed", "fold", "row", "id", "true", "predicted", "confidence")


@dataclass(frozen=True, slots=True)
class FoldInfo:
    """One fold of one seed: its size and what was selected inside its training rows."""

    name: str
    num_train: int
    num_test: int
    layer: int | None = None
    params: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)  # epoch, train_loss, val_loss, ...
    layer_weights: list[float] | None = None

    @property
    def members(self) -> list[dict[str, Any]]:
        """Of each classifier (several in late fusion) what was selected: layer, parameters, weight."""
        one = {"layer": self.layer, "weight": 1.0, **self.params}
        members: list[dict[str, Any]] = self.params.get("members") or [one]
        return members


@dataclass(frozen=True, slots=True)
class Result:
    """An experiment and all that it predicted."""

    config: dict[str, Any]  # plain values, defaults worked out
    classes: tuple[str, ...]
    ids: list[str]  # of all rows of the features, tested or not
    seeds: list[int]
    predictions: list[Predictions]  # one a seed
    folds: list[list[FoldInfo]]  # of each seed
    provenance: dict[str, Any] = field(default_factory=dict)  # of each source
    notes: list[str] = field(default_factory=list)
    speaker_dependent: bool = False
    speakers: list[str] = field(default_factory=list)  # aligned with ids; empty where not known
    incomplete: list[str] = field(default_factory=list)  # runs that were not finished, and what they lacked
    # Aligned with ids, where augmented copies are tested; empty where none is.
    originals: list[str] = field(default_factory=list)
    augmentations: list[str] = field(default_factory=list)  # "none" is a recording as it is
    used: dict[str, Any] = field(default_factory=dict)  # what no key of the config says, see `experiment`

    def figures(self) -> dict[str, Any]:
        """Of each seed, their mean and standard deviation, and bootstrap intervals of the mean.

        ``interval``: over recordings, copies of one drawn together; ``interval_by_speaker``: whole
        speakers drawn, where they are known. ``by_augmentation``: of each that was tested.
        ``folds``: mean and deviation over the folds of UA and WA, first seed. ``deviation`` is NaN where
        there is nothing to deviate: one seed, or seeds that nothing depends on. ``weights``: of each
        classifier of a late fusion, over the folds; None where there is one classifier.
        """
        each = [scores(p.y_true, p.proba, self.classes) for p in self.predictions]
        names = [name for name, value in each[0].items() if isinstance(value, float)]
        values = {name: [one[name] for one in each] for name in names}
        differ = self.seeds_differ
        spread = {name: float(np.std(of, ddof=1)) if differ else math.nan for name, of in values.items()}
        known = bool(self.speakers) and all(self.speakers) and len(set(self.speakers)) > 1
        return {
            "mean": {name: float(np.mean(of)) for name, of in values.items()},
            "deviation": spread,
            "interval": self._intervals(self.originals or None),
            "interval_by_speaker": self._intervals(self.speakers) if known else None,
            "folds": self._over_folds(),
            "seeds": [{"seed": seed, **one} for seed, one in zip(self.seeds, each, strict=True)],
            "seeds_differ": differ,
            "recall": mean_by_class(each, "recall", self.classes),
            "weights": self.weights(),
            "classes": list(self.classes),
            "num_tested": len(self.predictions[0].rows),
            "speaker_dependent": self.speaker_dependent,
            "incomplete": self.incomplete,
            "test_on": self.config.get("test_on", "clean"),
            "by_augmentation": self._by_augmentation(),
        }

    def _by_augmentation(self) -> dict[str, Any]:
        """Means over seeds."""
        if not self.augmentations:
            return {}
        each = [
            scores_by([self.augmentations[row] for row in p.rows.tolist()], p.y_true, p.proba, self.classes)
            for p in self.predictions
        ]
        return {
            name: {key: float(np.mean([of[name][key] for of in each])) for key in figures}
            | {"num_tested": figures["num_tested"]}
            for name, figures in each[0].items()
        }

    @property
    def seeds_differ(self) -> bool:
        """Whether any two seeds gave different predictions. They do not where nothing is drawn."""
        first = self.predictions[0]
        return any(
            not (np.array_equal(first.rows, other.rows) and np.array_equal(first.proba, other.proba))
            for other in self.predictions[1:]
        )

    def selected(self) -> list[dict[str, Any]]:
        """Of each classifier: its features, its mean weight, and how many folds chose which value of what."""
        folds = [fold.members for of_seed in self.folds for fold in of_seed]
        if not folds:
            return []
        sources = list(self.config["features"])
        names = sources if len(folds[0]) == len(sources) else [" + ".join(sources)]
        chosen = []
        for each, name in zip(zip(*folds, strict=True), names, strict=True):
            settings = [{k: v for k, v in member.items() if k != "weight"} for member in each]
            keys = dict.fromkeys(key for setting in settings for key in setting)
            counts = {key: Counter(str(setting.get(key)) for setting in settings) for key in keys}
            weight = float(np.mean([member["weight"] for member in each]))
            chosen.append(
                {"features": name, "weight": weight}
                | {key: dict(count.most_common()) for key, count in counts.items() if set(count) != {"None"}}
            )
        return chosen

    def weights(self) -> list[dict[str, Any]] | None:
        """Of each classifier of a late fusion: its features, mean, lowest and highest weight of the folds."""
        folds = [fold.members for of_seed in self.folds for fold in of_seed]
        if not folds or len(folds[0]) == 1:
            return None
        of_each = zip(*([member["weight"] for member in fold] for fold in folds), strict=True)
        return [
            {"features": name, "mean": float(np.mean(of)), "lowest": min(of), "highest": max(of)}
            for name, of in zip(self.config["features"], of_each, strict=True)
        ]

    def _intervals(self, groups: Sequence[str] | None) -> dict[str, list[float]]:
        of_each = bootstrap_intervals(self.predictions, groups=groups)
        return {name: list(bounds) for name, bounds in of_each.items()}

    def _over_folds(self) -> dict[str, Any]:
        """Some papers average folds; a fold that lacks a class has fewer recalls to average."""
        p = self.predictions[0]
        each = [scores(p.y_true[p.fold == k], p.proba[p.fold == k], self.classes) for k in np.unique(p.fold)]
        values = {name: [one[name] for one in each] for name in ("UA", "WA")}
        return {
            name: {"mean": float(np.mean(of)), "deviation": float(np.std(of))} for name, of in values.items()
        }

    def compare(self, other: Result, seed: int = 0) -> dict[str, Any]:
        """McNemar's test against another result of the same recordings, by id; the seed-th seeds.

        Raises InputError where recordings or labels differ.
        """
        number: dict[str, int] = {}
        mine = _by_id(self, seed, number)
        return mcnemar(mine, _by_id(other, seed, number, self.classes))

    def save(self, folder: str | PathLike[str]) -> None:
        """Write the three files; each appears whole. Raises StoreUnwritable."""
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        with aside(path / PREDICTIONS) as file:
            file.write(self._csv().encode(*_TEXT))
        write_text(path / METRICS_FILE, [to_json(self.figures())])
        rest = {
            "format": FORMAT,
            "config": self.config,
            "classes": self.classes,
            "ids": self.ids,
            "speakers": self.speakers,
            "seeds": self.seeds,
            "folds": [[asdict(fold) for fold in folds] for folds in self.folds],
            "provenance": self.provenance,
            "notes": self.notes,
            "speaker_dependent": self.speaker_dependent,
            "incomplete": self.incomplete,
            "originals": self.originals,
            "augmentations": self.augmentations,
            "used": self.used,
        }
        write_text(path / RESULT, [to_json(rest)])

    def _csv(self) -> str:
        text = io.StringIO(newline="")
        out = csv.writer(text, lineterminator="\n")
        out.writerow([*_FIXED, *(f"p_{name}" for name in self.classes)])
        for seed, p, folds in zip(self.seeds, self.predictions, self.folds, strict=True):
            for row, fold, true, proba in zip(
                p.rows.tolist(), p.fold.tolist(), p.y_true, p.proba, strict=True
            ):
                best = int(proba.argmax())
                # Shortest text that reads back as the same float32.
                shares = [np.format_float_positional(value, unique=True, trim="0") for value in proba]
                fixed = (seed, folds[fold].name, row, self.ids[row], self.classes[true], self.classes[best])
                out.writerow([*fixed, shares[best], *shares])
        return text.getvalue()

    @classmethod
    def load(cls, folder: str | PathLike[str]) -> Result:
        """Raises StoreError where the folder holds no result or a damaged one."""
        path = Path(folder)
        try:
            values = json.loads((path / RESULT).read_text(encoding="utf-8"))
            if values.pop("format") != FORMAT:
                raise StoreError(f"{path / RESULT}: not of format {FORMAT}; use the hser that wrote it")
            folds = [[FoldInfo(**fold) for fold in of_seed] for of_seed in values.pop("folds")]
            classes = tuple(values.pop("classes"))
            text = (path / PREDICTIONS).read_bytes().decode(*_TEXT)
            lines = list(csv.DictReader(io.StringIO(text, newline="")))
            names = [{fold.name: k for k, fold in enumerate(of_seed)} for of_seed in folds]
            predictions = [
                _read_predictions([line for line in lines if line["seed"] == str(seed)], of_seed, classes)
                for seed, of_seed in zip(values["seeds"], names, strict=True)
            ]
            return cls(classes=classes, folds=folds, predictions=predictions, **values)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise StoreError(f"{path}: no result here ({error.filename} is missing)") from error
        except (ValueError, KeyError, TypeError, UnicodeError) as error:
            raise StoreError(f"{path}: the result is damaged ({error!r})") from error


def mean_by_class(
    seeds: Sequence[Mapping[str, Any]], figure: str, classes: Sequence[str]
) -> dict[str, float]:
    """One of recall, precision and f1 of `metrics.scores`, over the seeds in which the class has it."""
    means = {}
    for name in classes:
        known = [seed[figure][name] for seed in seeds if np.isfinite(seed[figure][name])]
        means[name] = float(np.mean(known)) if known else math.nan
    return means


def _read_predictions(
    lines: Sequence[dict[str, str]], fold: dict[str, int], classes: tuple[str, ...]
) -> Predictions:
    code = {name: k for k, name in enumerate(classes)}
    proba = [[float(line[f"p_{name}"]) for name in classes] for line in lines]
    return Predictions(
        rows=np.array([int(line["row"]) for line in lines], np.int64),
        fold=np.array([fold[line["fold"]] for line in lines], np.int64),
        y_true=np.array([code[line["true"]] for line in lines], np.int64),
        proba=np.array(proba, np.float32).reshape(len(lines), len(classes)),
    )


def _by_id(
    result: Result, seed: int, number: dict[str, int], classes: tuple[str, ...] | None = None
) -> Predictions:
    """Predictions with rows numbered by id, the same for every result that shares ``number``."""
    if classes is not None and classes != result.classes:
        raise InputError(f"the models tell different classes apart: {classes} and {result.classes}")
    p = result.predictions[seed]
    rows = [number.setdefault(result.ids[row], len(number)) for row in p.rows.tolist()]
    return Predictions(np.array(rows, np.int64), p.fold, p.y_true, p.proba)


def to_json(value: Any) -> str:
    """JSON with null for what is not a number, since JSON has no NaN."""
    return json.dumps(_plain(value), indent=1) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(of) for key, of in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(of) for of in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
