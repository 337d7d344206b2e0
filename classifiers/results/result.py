"""What an experiment found: every prediction, and what made it. Written and read here.

predictions.csv   one line a tested row and seed: the numbers that everything else follows from
metrics.json      figures of each seed, mean, deviation, 95 % interval
result.json       the experiment, folds with what was selected, provenance, notes
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from classifiers.results.files import read_csv, write_csv, write_json
from classifiers.results.metrics import Predictions, bootstrap_intervals, mcnemar, scores, scores_by
from extractor.errors import InputError, StoreError

FORMAT = 1
PREDICTIONS, METRICS_FILE, RESULT = "predictions.csv", "metrics.json", "result.json"
_COLUMNS = ("seed", "fold", "row", "id", "true", "predicted", "confidence")


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
        known = all(self.speakers) and len(set(self.speakers)) > 1
        # Some papers average folds; a fold that lacks a class has fewer recalls to average.
        folds = scores_by(self.predictions[0].fold.tolist(), self.predictions[0]).values()
        of_folds = {name: [fold[name] for fold in folds] for name in ("UA", "WA")}
        return {
            "mean": {name: float(np.mean(of)) for name, of in values.items()},
            "deviation": spread,
            "interval": self._intervals(self.originals or None),
            "interval_by_speaker": self._intervals(self.speakers) if known else None,
            "folds": {
                name: {"mean": float(np.mean(of)), "deviation": float(np.std(of))}
                for name, of in of_folds.items()
            },
            "seeds": [{"seed": seed, **one} for seed, one in zip(self.seeds, each, strict=True)],
            "seeds_differ": differ,
            "recall": mean_by_class(each, "recall", self.classes),
            "weights": self._weights(),
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
        each = [scores_by([self.augmentations[row] for row in p.rows.tolist()], p) for p in self.predictions]
        return {
            name: {key: float(np.mean([of[name][key] for of in each])) for key in figures}
            | {"num_tested": figures["num_tested"]}
            for name, figures in each[0].items()
        }

    def tested(self) -> tuple[np.ndarray, np.ndarray]:
        """True classes int [S * M] and probabilities float32 [S * M, C], seed after seed."""
        truth, proba = zip(*((p.y_true, p.proba) for p in self.predictions), strict=True)
        return np.concatenate(truth), np.concatenate(proba)

    def histories(self) -> dict[str, list[dict[str, float]]]:
        """Training histories of the folds that have one, by seed and name of the fold."""
        return {
            f"seed {seed}, {fold.name}": fold.history
            for seed, folds in zip(self.seeds, self.folds, strict=True)
            for fold in folds
            if fold.history
        }

    @property
    def seeds_differ(self) -> bool:
        """Whether any two seeds gave different predictions. They do not where nothing is drawn."""
        first = self.predictions[0]
        return any(
            not (np.array_equal(first.rows, other.rows) and np.array_equal(first.proba, other.proba))
            for other in self.predictions[1:]
        )

    def _by_classifier(self) -> list[tuple[str, list[dict[str, Any]]]]:
        """Of each classifier its features, and what was selected for it in every fold of every seed."""
        folds = [fold.members for of_seed in self.folds for fold in of_seed]
        if not folds:
            return []
        sources = list(self.config.get("features", ()))
        names = sources if len(folds[0]) == len(sources) else [" + ".join(sources)]
        return list(zip(names, map(list, zip(*folds, strict=True)), strict=True))

    def selected(self) -> list[dict[str, Any]]:
        """Of each classifier: its features, its mean weight, and how many folds chose which value of what."""
        chosen = []
        for name, members in self._by_classifier():
            weight = float(np.mean([member["weight"] for member in members]))
            keys = dict.fromkeys(key for member in members for key in member if key != "weight")
            counts = {key: Counter(str(member.get(key)) for member in members) for key in keys}
            chosen.append(
                {"features": name, "weight": weight}
                | {key: dict(count.most_common()) for key, count in counts.items() if set(count) != {"None"}}
            )
        return chosen

    def _weights(self) -> list[dict[str, Any]] | None:
        """Of each classifier of a late fusion: its features, mean, lowest and highest weight of the folds."""
        of_each = [(name, [each["weight"] for each in members]) for name, members in self._by_classifier()]
        if len(of_each) < 2:
            return None
        return [
            {"features": name, "mean": float(np.mean(of)), "lowest": min(of), "highest": max(of)}
            for name, of in of_each
        ]

    def _intervals(self, groups: Sequence[str] | None) -> dict[str, list[float]]:
        of_each = bootstrap_intervals(self.predictions, groups)
        return {name: list(bounds) for name, bounds in of_each.items()}

    def compare(self, other: Result) -> dict[str, Any]:
        """McNemar's test against another result of the same recordings, by id; the first seeds.

        Raises InputError where recordings, labels or classes differ.
        """
        if self.classes != other.classes:
            raise InputError(f"the models tell different classes apart: {self.classes} and {other.classes}")
        number: dict[str, int] = {}  # rows by id, the same for both
        first, second = (
            replace(
                p, rows=np.array([number.setdefault(of.ids[row], len(number)) for row in p.rows.tolist()])
            )
            for of, p in ((self, self.predictions[0]), (other, other.predictions[0]))
        )
        return mcnemar(first, second)

    def save(self, folder: str | PathLike[str]) -> None:
        """Write the three files; each appears whole. Raises StoreUnwritable."""
        path = Path(folder)
        header = [*_COLUMNS, *(f"p_{name}" for name in self.classes)]
        write_csv(path / PREDICTIONS, header, self._lines())
        write_json(path / METRICS_FILE, self.figures())
        plain = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "predictions"}
        write_json(
            path / RESULT,
            {"format": FORMAT} | plain | {"folds": [[asdict(fold) for fold in of] for of in self.folds]},
        )

    def _lines(self) -> Iterator[list[Any]]:
        """Of the predictions; probabilities as the shortest text that reads back as the same float32."""
        for seed, p, folds in zip(self.seeds, self.predictions, self.folds, strict=True):
            for row, fold, true, best, proba in zip(
                p.rows.tolist(), p.fold.tolist(), p.y_true, p.y_pred, p.proba, strict=True
            ):
                shares = [np.format_float_positional(value, unique=True, trim="0") for value in proba]
                named = (self.ids[row], self.classes[true], self.classes[best], shares[best])
                yield [seed, folds[fold].name, row, *named, *shares]

    @classmethod
    def load(cls, folder: str | PathLike[str]) -> Result:
        """Raises StoreError where the folder holds no result or a damaged one."""
        path = Path(folder)
        try:
            values = json.loads((path / RESULT).read_text(encoding="utf-8"))
            if values.pop("format") != FORMAT:
                raise StoreError(f"{path / RESULT}: not of format {FORMAT}; use the hser that wrote it")
            values["classes"] = tuple(values["classes"])
            values["folds"] = [[FoldInfo(**fold) for fold in of_seed] for of_seed in values["folds"]]
            lines = read_csv(path / PREDICTIONS)
            code = {name: k for k, name in enumerate(values["classes"])}
            predictions = []
            for seed, folds in zip(values["seeds"], values["folds"], strict=True):
                number = {fold.name: k for k, fold in enumerate(folds)}
                of_seed = [line for line in lines if line["seed"] == str(seed)]
                proba = [[float(line[f"p_{name}"]) for name in code] for line in of_seed]
                predictions.append(
                    Predictions(
                        rows=np.array([int(line["row"]) for line in of_seed], np.int64),
                        fold=np.array([number[line["fold"]] for line in of_seed], np.int64),
                        y_true=np.array([code[line["true"]] for line in of_seed], np.int64),
                        proba=np.array(proba, np.float32).reshape(len(of_seed), len(code)),
                    )
                )
            return cls(predictions=predictions, **values)
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
