"""Which layer knows most? A score for each layer and pooling of a run, with intervals.

Nothing is selected here, every layer is tested on the same rows, and so the highest score is a little
too high for what a new recording will see: `--layer best` selects inside the training rows.

    layer_study.json  layer_study.csv  layer_study.png
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from classifiers.data.runs import open_run
from classifiers.data.source import Source
from classifiers.models.table import POOLED
from classifiers.results.files import write_csv, write_json
from classifiers.results.metrics import CAUTION as OF_SEVERAL
from classifiers.results.metrics import METRICS
from classifiers.training.conditions import Conditions, conditions
from classifiers.training.config import Experiment
from classifiers.training.experiment import run_experiment
from classifiers.training.learner import Say
from extractor.errors import SettingsError, StoreError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "layer_study"
CAUTION = f"{OF_SEVERAL}; --layer best is not"


@dataclass(frozen=True, slots=True)
class LayerStudy:
    """All layers of a run.

    ``scores``: of each pooling and layer UA, WA, macro_f1 and weighted_f1, shares that are means over
    seeds; ``deviation`` of UA over seeds, NaN where they do not differ; ``low`` and ``high``, the 95 %
    interval of UA over rows.
    """

    config: dict[str, Any]
    classes: tuple[str, ...]
    num_tested: int
    speaker_dependent: bool
    scores: tuple[dict[str, Any], ...]
    notes: list[str]
    incomplete: list[str] = field(default_factory=list)  # as `Result.incomplete`
    used: dict[str, Any] = field(default_factory=dict)  # see `conditions.used_values`

    @property
    def conditions(self) -> Conditions:
        """Of all its figures: the layer is each in turn."""
        return conditions(self.config, self.used, speaker_dependent=self.speaker_dependent)

    def save(self, folder: str | PathLike[str]) -> None:
        """Write the three files. Raises StoreUnwritable."""
        from classifiers.charts import plots

        path = Path(folder)
        write_json(path / f"{NAME}.json", asdict(self) | {"caution": CAUTION})
        write_csv(path / f"{NAME}.csv", list(self.scores[0]), (score.values() for score in self.scores))
        plots.write_png(plots.captioned(self.chart(), f"{self.conditions}. {CAUTION}"), path / f"{NAME}.png")

    def chart(self) -> Figure:
        """UA of each layer with its interval, a line a pooling."""
        from classifiers.charts import plots

        lines: dict[str, list[tuple[float, float, float]]] = {}
        for score in self.scores:
            lines.setdefault(score["pooling"], []).append((score["UA"], score["low"], score["high"]))
        layers = list(dict.fromkeys(score["layer"] for score in self.scores))
        return plots.layer_scores(layers, lines, 1 / len(self.classes))


def read_study(folder: str | PathLike[str], remedy: str = "make it again") -> LayerStudy | None:
    """The study in a folder; None where there is none. Raises StoreError for one that is damaged."""
    path = Path(folder) / f"{NAME}.json"
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text("utf-8"))
        for score in values["scores"]:
            tuple(score[key] for key in ("pooling", "layer", "UA", "low", "high"))
        needed = ("config", "classes", "num_tested", "speaker_dependent", "scores")
        # An earlier version wrote not all of the others.
        others: dict[str, Any] = {"notes": [], "incomplete": [], "used": {}}
        read = {name: values.get(name, default) for name, default in others.items()}
        return LayerStudy(**{name: values[name] for name in needed}, **read)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path}: not readable as a layer study ({error!r}); {remedy}") from error


def run_layer_study(experiment: Experiment, say: Say | None = None) -> LayerStudy:
    """Test the experiment with each layer of its only run, and each pooling where none is named.

    Raises SettingsError where there is more than one run, or the classifier takes several layers at
    once; and what `run_experiment` raises.
    """
    if len(experiment.features) != 1 or experiment.row.input != POOLED:
        raise SettingsError("--layer each: compares layers of one run, with a classifier of pooled rows")
    source = Source.parse(experiment.features[0])
    store = open_run(source.path, experiment.incomplete)
    pooling = source.pooling or experiment.pooling
    poolings = [pooling] if pooling else store.pooled
    scores, notes, result = [], [], None
    for pooling, layer in product(poolings, store.layers):
        fixed = Source(source.path, pooling, (layer,))
        result = run_experiment(replace(experiment, features=(str(fixed),), layer=None))
        figures = result.figures()
        mean, (low, high) = figures["mean"], figures["interval"]["UA"]
        score = {"pooling": pooling, "layer": layer} | {name: mean[name] for name in METRICS}
        scores.append(score | {"deviation": figures["deviation"]["UA"], "low": low, "high": high})
        notes += [note for note in result.notes if note not in notes]
        if say is not None:
            interval = f"{100 * low:.1f} to {100 * high:.1f}"
            say(f"{pooling}:{layer}: UA {100 * mean['UA']:.1f} % ({interval})")
    if result is None:
        raise SettingsError(f"{experiment.features[0]}: nothing pooled is stored there")
    [used] = result.used["sources"]
    return LayerStudy(
        result.config
        | {"features": list(experiment.features), "layer": "each", "pooling": experiment.pooling},
        result.classes,
        len(result.predictions[0].rows),
        result.speaker_dependent,
        tuple(scores),
        notes,
        result.incomplete,
        result.used
        | {
            "sources": [used | {"pooling": ", ".join(poolings), "layers": "each"}],
            "asked": experiment.to_dict() | {"layer": "each"},
        },
    )
