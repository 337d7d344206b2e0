"""Under what a figure was found, in the words that every table and chart of it has.

encoder, layer, pooling   of the embeddings; of several sources one after the other, with +
classifier, parameters    what tells it from another; every value that was used is in config.yaml
protocol, normalisation   how it was tested, and by which rows dimensions were brought to one scale
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from classifiers.data.runs import NOT_RECORDED, encoder_words
from classifiers.training.protocols import about

if TYPE_CHECKING:
    from classifiers.results.result import Result

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
        return list(zip(NAMES, astuple(self), strict=True))


NAMES = tuple(each.name for each in fields(Conditions))


def conditions_of(
    result: Result, sources: Sequence[Mapping[str, Any]] = (), normalise: str = "none"
) -> Conditions:
    """``sources``: of a result that an earlier version wrote, see `experiment.used_values`."""
    used = result.used or {"sources": list(sources)}
    return conditions(result.config, used, result.selected(), result.speaker_dependent, normalise)


def conditions(
    config: Mapping[str, Any],
    used: Mapping[str, Any],
    selected: Sequence[Mapping[str, Any]] = (),
    speaker_dependent: bool = False,
    normalise: str = "none",
) -> Conditions:
    """Of an experiment's plain values and `experiment.used_values`.

    ``selected``: as `Result.selected`; ``normalise``: as `cross_corpus` has it.
    """
    sources = used.get("sources", [])
    chosen = [each.get("layer") for each in selected]
    if len(chosen) == 1:  # one classifier of all sources
        chosen *= len(sources)
    layers = [
        counted(of) if of and source["layers"] == "best" else _layers(source)
        for source, of in zip_longest(sources, chosen[: len(sources)])
    ]
    return Conditions(
        encoder=_joined(str(source["encoder"]) for source in sources),
        layer=_joined(layers),
        pooling=_joined(source["pooling"] for source in sources),
        classifier=_classifier(config, len(sources)),
        parameters=_parameters(config, used, selected),
        protocol=_protocol(config, speaker_dependent),
        normalisation=_normalisation(config, normalise),
    )


def source_values(
    path: str, settings: Mapping[str, Any], pooling: str | None, layers: Sequence[int] | str
) -> dict[str, Any]:
    """One of ``sources`` of `experiment.used_values`."""
    chosen = layers if isinstance(layers, str) else list(layers)
    return {"run": path, "encoder": encoder_words(settings), "pooling": pooling, "layers": chosen}


def counted(count: Mapping[str, int]) -> str:
    """What folds selected, most frequent first: ``3 (4 folds), 2 (2)``; alone where all agree."""
    if len(count) == 1:
        return next(iter(count))
    (first, number), *rest = Counter(count).most_common()
    return ", ".join([f"{first} ({number} folds)", *(f"{value} ({n})" for value, n in rest)])


def _layers(source: Mapping[str, Any]) -> str:
    layers = source["layers"]
    if isinstance(layers, str):
        return layers
    one_by_one = list(range(layers[0], layers[0] + len(layers)))
    if len(layers) > 2 and list(layers) == one_by_one:
        return f"{layers[0]}-{layers[-1]}"
    return ",".join(map(str, layers))


def _joined(parts: Iterable[str]) -> str:
    """One word where all are alike."""
    every = list(parts)
    return " + ".join(every if len(set(every)) > 1 else every[:1]) or NOT_RECORDED


def _classifier(config: Mapping[str, Any], num_sources: int) -> str:
    name = str(config["classifier"])
    return f"{name}, fusion {config['fusion']}" if num_sources > 1 else name


def _parameters(
    config: Mapping[str, Any], used: Mapping[str, Any], selected: Sequence[Mapping[str, Any]]
) -> str:
    """Fixed values, those that folds selected in their place, and weights of a fusion."""
    fixed = dict(used.get("parameters", config.get("params", {})))
    by_name: dict[str, list[str]] = {}
    for each in selected:
        for name, count in each.items():
            if name not in ("features", "weight", "layer"):
                by_name.setdefault(name, []).append(counted(count))
    words = [
        f"{name} {_joined(by_name[name])} selected" if name in by_name else f"{name}={_word(value)}"
        for name, value in (fixed | dict.fromkeys(by_name)).items()
    ]
    if "parameters" not in used:
        words.append(f"defaults {NOT_RECORDED}")
    if len(selected) > 1:
        words.append("weights " + " + ".join(f"{each['weight']:.2f}" for each in selected))
    return ", ".join(words)


def _word(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return "none" if value is None else str(value)


def _protocol(config: Mapping[str, Any], speaker_dependent: bool) -> str:
    words = about(str(config["protocol"])).replace("--folds", str(config["folds"]))
    if config.get("test_on", "clean") != "clean":
        words += f", tested on {config['test_on']}"
    marked = "(speaker-dependent)"
    return f"{words} {marked}" if speaker_dependent and marked not in words else words


def _normalisation(config: Mapping[str, Any], normalise: str) -> str:
    if normalise == "corpus":
        return BY_CORPUS
    return AS_STORED if config.get("params", {}).get("standardise") is False else BY_TRAINING_ROWS
