"""Which layer knows most? A score for each layer and pooling of a run, with intervals.

Nothing is selected here, every layer is tested on the same rows, and so the highest score is a little
too high for what a new recording will see: `--layer best` selects inside the training rows.

    layer_study.json  layer_study.csv  layer_study.png
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, astuple, dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any

from classifiers.data.runs import open_run
from classifiers.data.source import Source
from classifiers.models.table import POOLED
from classifiers.results.files import write_csv, write_json
from classifiers.results.metrics import CAUTION as OF_SEVERAL
from classifiers.training.conditions import Conditions, conditions
from classifiers.training.config import Experiment
from classifiers.training.experiment import open_features, run_experiment
from classifiers.training.learner import Say
from extractor.errors import SettingsError, StoreError

NAME = "layer_study"
CAUTION = f"{OF_SEVERAL}; --layer best is not"
_FIGURES = ("UA", "WA", "macro_f1", "weighted_f1")


@dataclass(frozen=True, slots=True)
class LayerScore:
    """One layer with one pooling. Shares 0 to 1, means over seeds."""

    pooling: str
    layer: int
    UA: float
    WA: float
    macro_f1: float
    weighted_f1: float
    deviation: float  # of UA over seeds, NaN where they do not differ
    low: float  # 95 % interval of UA, over rows
    high: float


@dataclass(frozen=True, slots=True)
class LayerStudy:
    """All layers of a run."""

    config: dict[str, Any]
    classes: tuple[str, ...]
    num_tested: int
    speaker_dependent: bool
    scores: tuple[LayerScore, ...]
    notes: list[str]
    incomplete: list[str] = field(default_factory=list)  # as `Result.incomplete`
    used: dict[str, Any] = field(default_factory=dict)  # see `conditions.used_values`

    @property
    def best(self) -> LayerScore:
        """The highest UA; of equals the first."""
        return max(self.scores, key=lambda score: score.UA)

    def save(self, folder: str | PathLike[str]) -> None:
        """Write the three files. Raises StoreUnwritable."""
        path = Path(folder)
        write_json(path / f"{NAME}.json", asdict(self) | {"caution": CAUTION})
        write_csv(path / f"{NAME}.csv", list(asdict(self.scores[0])), map(astuple, self.scores))
        self._draw(path / f"{NAME}.png")

    def _draw(self, path: Path) -> None:
        from classifiers.charts import plots

        lines: dict[str, list[tuple[float, float, float]]] = {}
        for score in self.scores:
            lines.setdefault(score.pooling, []).append((score.UA, score.low, score.high))
        layers = list(dict.fromkeys(score.layer for score in self.scores))
        figure = plots.layer_scores(layers, lines, 1 / len(self.classes))
        plots.write_png(plots.captioned(figure, f"{self.conditions}. {CAUTION}"), path)

    @property
    def conditions(self) -> Conditions:
        """Of all its figures: the layer is each in turn."""
        return conditions(self.config, self.used, speaker_dependent=self.speaker_dependent)


def study_config(folder: str | PathLike[str]) -> dict[str, Any] | None:
    """The experiment of the study in a folder; None where there is none. Raises StoreError."""
    path = Path(folder) / f"{NAME}.json"
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text("utf-8"))
        config: dict[str, Any] = values["config"] | {"used": values.get("used", {})}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{path}: not readable as a layer study ({error!r}); overwrite it with --force"
        ) from error
    return config


def run_layer_study(experiment: Experiment, say: Say | None = None) -> LayerStudy:
    """Test the experiment with each layer of its only run, and each pooling where none is named.

    Raises SettingsError where there is more than one run, or the classifier takes several layers at
    once; and what `run_experiment` raises.
    """
    if len(experiment.features) != 1 or experiment.row.input != POOLED:
        raise SettingsError("--layer each: compares layers of one run, with a classifier of pooled rows")
    scores, notes, result = [], [], None
    for source in _sources(Source.parse(experiment.features[0]), experiment.pooling, experiment.incomplete):
        assert not isinstance(source.layers, str)
        one = replace(experiment, features=(str(source),), layer=None)
        result = run_experiment(one, open_features(one))
        figures = result.figures()
        low, high = figures["interval"]["UA"]
        mean = {name: figures["mean"][name] for name in _FIGURES}
        pooling, layer = source.pooling or "", source.layers[0]
        scores.append(
            LayerScore(pooling, layer, **mean, deviation=figures["deviation"]["UA"], low=low, high=high)
        )
        notes += [note for note in result.notes if note not in notes]
        if say is not None:
            interval = f"{100 * low:.1f} to {100 * high:.1f}"
            say(f"{pooling}:{layer}: UA {100 * mean['UA']:.1f} % ({interval})")
    if result is None:
        raise SettingsError(f"{experiment.features[0]}: nothing pooled is stored there")
    poolings = list(dict.fromkeys(score.pooling for score in scores))
    [source] = result.used["sources"]
    used = result.used | {
        "sources": [source | {"pooling": ", ".join(poolings), "layers": "each"}],
        "asked": experiment.to_dict() | {"layer": "each"},
    }
    config = result.config | {
        "features": list(experiment.features),
        "layer": "each",
        "pooling": experiment.pooling,
    }
    tested = len(result.predictions[0].rows)
    return LayerStudy(
        config,
        result.classes,
        tested,
        result.speaker_dependent,
        tuple(scores),
        notes,
        result.incomplete,
        used,
    )


def _sources(source: Source, pooling: str | None, incomplete: bool) -> Iterator[Source]:
    """The run with each pooling, and each layer, fixed."""
    store = open_run(source.path, incomplete)
    named = source.pooling or pooling
    poolings = [named] if named else store.pooled
    for name in poolings:
        for layer in store.layers:
            yield Source(source.path, name, (layer,))
