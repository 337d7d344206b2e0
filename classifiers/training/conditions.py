"""Under what a figure was found, in the words that every table and chart of it has.

encoder, layer, pooling   of the embeddings; of several sources one after the other, with +
classifier, parameters    what tells it from another; every value that was used is in config.yaml
protocol, normalisation   how it was tested, and by which rows dimensions were brought to one scale
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from typing import Any

from classifiers.data.features import Features
from classifiers.data.runs import NOT_RECORDED, encoder_words
from classifiers.results.result import Result
from classifiers.training.config import GATE, Experiment
from classifiers.training.learner import PRIOR
from classifiers.training.protocols import about

BY_TRAINING_ROWS = "standardised by the training rows"
AS_STORED = "as stored"
BY_CORPUS = "each corpus standardised by all of its own rows, the tested ones included"


@dataclass(frozen=True, slots=True)
class Conditions:
    """A figure's, each in words."""

    encoder: str
    layer: str
    pooling: str
    classifier: str
    parameters: str
    protocol: str
    normalisation: str

    def __str__(self) -> str:
        """One line, for a chart or above a table."""
        where = f"{self.encoder}, layer {self.layer}, pooling {self.pooling}"
        return f"{where}; {self.classifier} ({self.parameters}); {self.protocol}; {self.normalisation}"

    def pairs(self) -> list[tuple[str, str]]:
        return list(asdict(self).items())


def conditions_of(result: Result, origins: Sequence[Any] = (), normalise: str = "none") -> Conditions:
    """``origins``: `model_folder.Origin`s, which tell what a result of an earlier version does not."""
    used = result.used or {
        "sources": [_source_values(of.path, of.settings, of.pooling, of.layers) for of in origins]
    }
    return conditions(result.config, used, result.selected(), result.speaker_dependent, normalise)


def conditions(
    config: Mapping[str, Any],
    used: Mapping[str, Any],
    selected: Sequence[Mapping[str, Any]] = (),
    speaker_dependent: bool = False,
    normalise: str = "none",
) -> Conditions:
    """Of an experiment's plain values and `used_values`.

    ``selected``: as `Result.selected`; ``normalise``: as `cross_corpus` has it.
    """
    sources = used.get("sources", [])
    chosen = [each.get("layer") for each in selected]
    if len(chosen) == 1:  # one classifier of all sources
        chosen *= len(sources)
    layers = [
        _counted(of) if of and source["layers"] == "best" else _layers(source["layers"])
        for source, of in zip_longest(sources, chosen[: len(sources)])
    ]
    fusion = f", fusion {config['fusion']}" if len(sources) > 1 else ""
    protocol = about(str(config["protocol"])).replace("--folds", str(config["folds"]))
    if config.get("test_on", "clean") != "clean":
        protocol += f", tested on {config['test_on']}"
    marked = "(speaker-dependent)"
    if speaker_dependent and marked not in protocol:
        protocol += f" {marked}"
    normalisation = BY_TRAINING_ROWS
    if normalise == "corpus":
        normalisation = BY_CORPUS
    elif config.get("params", {}).get("standardise") is False:
        normalisation = AS_STORED
    return Conditions(
        encoder=_joined(str(source["encoder"]) for source in sources),
        layer=_joined(layers),
        pooling=_joined(source["pooling"] for source in sources),
        classifier=f"{config['classifier']}{fusion}",
        parameters=_parameters(config, used, selected),
        protocol=protocol,
        normalisation=normalisation,
    )


def _parameters(
    config: Mapping[str, Any], used: Mapping[str, Any], selected: Sequence[Mapping[str, Any]]
) -> str:
    """Fixed values, those that folds selected in their place, and weights of a fusion."""
    values = dict(used.get("parameters", config.get("params", {})))
    by_folds: dict[str, list[str]] = {}
    for each in selected:
        for name, count in each.items():
            if name not in ("features", "weight", "layer"):
                by_folds.setdefault(name, []).append(_counted(count))
    words = []
    for name, value in (values | dict.fromkeys(by_folds)).items():
        shown = f"{value:g}" if isinstance(value, float) else "none" if value is None else value
        words.append(f"{name} {_joined(by_folds[name])} selected" if name in by_folds else f"{name}={shown}")
    if "parameters" not in used:
        words.append(f"defaults {NOT_RECORDED}")
    if len(selected) > 1:
        words.append("weights " + " + ".join(f"{each['weight']:.2f}" for each in selected))
    return ", ".join(words)


def _counted(count: Mapping[str, int]) -> str:
    """What folds selected, most frequent first: ``3 (4 folds), 2 (2)``; alone where all agree."""
    if len(count) == 1:
        return next(iter(count))
    (first, number), *rest = Counter(count).most_common()
    return ", ".join([f"{first} ({number} folds)", *(f"{value} ({n})" for value, n in rest)])


def _layers(layers: Sequence[int] | str) -> str:
    if isinstance(layers, str):
        return layers
    if len(layers) > 2 and list(layers) == list(range(layers[0], layers[0] + len(layers))):
        return f"{layers[0]}-{layers[-1]}"
    return ",".join(map(str, layers))


def _joined(parts: Iterable[str]) -> str:
    """One word where all are alike."""
    every = list(parts)
    return " + ".join(every if len(set(every)) > 1 else every[:1]) or NOT_RECORDED


# What was used


def used_values(experiment: Experiment, features: Features) -> dict[str, Any]:
    """What was used and no key of the experiment says, as plain values.

    ``sources``: run, encoder, pooling and layers of each; ``parameters``: those of the classifier that
    tell it from another, see `Classifier.shown_parameters`; ``classes``; ``asked``: the experiment
    before its defaults were worked out; ``search``: what a search drew from; ``gate_prior``.
    """
    used: dict[str, Any] = {
        "sources": [
            _source_values(source.path, store.settings, source.pooling, source.layers)
            for source, store in zip(features.sources, features.stores, strict=True)
        ],
        "parameters": experiment.row.shown_parameters(experiment.params),
        "classes": list(features.classes),
        "asked": experiment.to_dict(),
    }
    if experiment.tune:
        used["search"] = {
            name: {"values": of} if isinstance(of, tuple) else asdict(of)
            for name, of in experiment.row.space.items()
        }
    if experiment.fusion == GATE:
        used["gate_prior"] = PRIOR
    return used


def _source_values(
    path: str, settings: Mapping[str, Any], pooling: str | None, layers: Sequence[int] | str
) -> dict[str, Any]:
    """One of ``sources`` of `used_values`."""
    chosen = layers if isinstance(layers, str) else list(layers)
    return {"run": path, "encoder": encoder_words(settings), "pooling": pooling, "layers": chosen}


def resolved_config(experiment: Experiment, features: Features) -> dict[str, Any]:
    """The experiment's plain values with its defaults worked out; it does what the experiment does."""
    layers = {source.layers for source in features.sources}
    poolings = {source.pooling for source in features.sources}
    layer = experiment.layer
    if layer is None:
        fixed = features.sources[0].layers
        layer = fixed if isinstance(fixed, str) else ",".join(map(str, fixed))
        if len(layers) > 1:
            layer = experiment.open_layers
    made = replace(
        experiment,
        params=experiment.row.all_parameters(experiment.params),
        grid=experiment.grid_values,
        layer=layer,
        pooling=experiment.pooling or (features.sources[0].pooling if len(poolings) == 1 else None),
    )
    return made.to_dict()
