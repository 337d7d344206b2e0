"""What a report says: figures of all models, tests between them, then each model by itself."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from classifiers.charts import plots
from classifiers.charts.plots import TITLES, charts_of
from classifiers.charts.projection import TITLES as METHODS
from classifiers.data.source import CLEAN, Source
from classifiers.report.contents import ModelContents
from classifiers.report.markup import (
    NOTHING,
    Html,
    facts,
    inline_svg,
    interval,
    join,
    number,
    p_value,
    percent,
    table,
    tag,
)
from classifiers.results.metrics import CAUTION, unweighted_accuracy
from classifiers.results.result import mean_by_class
from classifiers.studies.layers import CAUTION as STUDY_CAUTION
from classifiers.studies.layers import LayerStudy
from classifiers.training.config import WRITTEN
from classifiers.training.model_folder import Origin
from classifiers.training.protocols import about
from extractor.errors import HserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHARES = {"UA": "UA", "WA": "WA", "macro_f1": "macro-F1", "weighted_f1": "weighted F1"}
SPEAKER_DEPENDENT = "speaker-dependent"
EXPLAINED = (
    "UA is the mean recall of the classes, WA the share of recordings that is right; both, and F1, in per"
    " cent. Below each its 95 % bootstrap interval, over recordings, and where they are known over whole"
    " speakers. ± is the deviation over seeds, where they differ."
)
MCNEMAR = (
    "McNemar's test, two-sided, of the first seeds: do two models err on different recordings? Holm's"
    " correction is for all pairs together. It takes recordings as independent, which those of one"
    " speaker are not quite."
)


def body(models: Sequence[ModelContents], studies: Mapping[str, LayerStudy], command: Sequence[str]) -> Html:
    """All of the page that is to be read."""
    links = [tag("a", "Figures", href="#figures")] if models else []
    links += [tag("a", name + ", layers", href=f"#study-{k}") for k, name in enumerate(studies)]
    links += [tag("a", model.name, href=f"#model-{k}") for k, model in enumerate(models)]
    title = tag("h1", tag("span", "hser", class_="mark"), " report")
    parts: list[Html] = [tag("header", title, tag("nav", *links))]
    if models:
        parts.append(_figures(models))
    if len(models) > 1:
        parts.append(_tests(models))
    parts += [_study(study, name, k) for k, (name, study) in enumerate(studies.items())]
    parts += [_model(model, k) for k, model in enumerate(models)]
    if command:
        parts.append(_section("this-report", "This report", _commands([shlex.join(command)])))
    return tag("main", *parts)


def _section(name: str, title: str, *inside: Any) -> Html:
    return tag("section", tag("h2", title), *inside, id=name)


def _note(*words: Any) -> Html:
    return tag("p", *words, class_="note")


def _code(text: Any) -> Html:
    return tag("span", text, class_="code")


def _commands(lines: Sequence[str]) -> Html:
    return tag("pre", tag("code", "\n".join(lines)), tabindex="0")


def _charts(charts: Iterable[tuple[Figure, str, str, Html | str]]) -> Html:
    """Figure, name for its ids, what it is for who does not see it, caption."""
    drawn = (
        tag("figure", inline_svg(figure, name, label), tag("figcaption", caption))
        for figure, name, label, caption in charts
    )
    return tag("div", *drawn, class_="charts")


def _protocol(config: Mapping[str, Any], speaker_dependent: bool, incomplete: Sequence[str]) -> Html:
    """In words, and marked wherever speakers were trained on and tested, or recordings were missing."""
    words = about(str(config["protocol"])).replace("--folds", str(config["folds"]))
    warnings = []
    if speaker_dependent:
        words = words.replace(f" ({SPEAKER_DEPENDENT})", "")
        warnings.append(SPEAKER_DEPENDENT)
    if config.get("test_on", CLEAN) != CLEAN:
        warnings.append(f"tested on {config['test_on']}")
    if incomplete:
        warnings.append("incomplete")
    return join([words, *(x for each in warnings for x in (" ", tag("strong", each, class_="warn")))])


def _tested_as(model: ModelContents) -> Html:
    return _protocol(model.config, model.result.speaker_dependent, model.result.incomplete)


# All models


def _figures(models: Sequence[ModelContents]) -> Html:
    rows, captions = [], []
    for k, model in enumerate(models):
        mean, under = model.figures["mean"], model.conditions
        # Folders of the runs that it was trained on: models of several corpora may stand in one table.
        runs = " + ".join(Path(Source.parse(each).path).name for each in model.config["features"])
        small = (f"of {runs}", _tested_as(model), under.normalisation)
        name = join([tag("a", model.name, href=f"#model-{k}"), *(tag("small", each) for each in small)])
        features = [tag("span", each, class_="words") for each in (under.encoder, under.layer, under.pooling)]
        features.append(join([tag("span", under.classifier, class_="words"), tag("small", under.parameters)]))
        shares = [_share(model.figures, key) for key in SHARES]
        rows.append([name, *features, *shares, number(mean.get("roc_auc")), number(mean.get("ece"))])
        test_on = model.config.get("test_on", CLEAN)
        copies = "" if test_on == CLEAN else f", tested on {test_on}"
        captions.append(f"{runs}: {under.encoder}:{under.layer}, {under.classifier}{copies}")
    values = {m.name: (m.figures["mean"]["UA"], *m.figures["interval"]["UA"]) for m in models}
    figure = plots.intervals(values, [1 / len(m.result.classes) for m in models], captions)
    header = ["model", "encoder", "layer", "pooling", "classifier", *SHARES.values(), "ROC-AUC", "ECE"]
    return _section(
        "figures",
        "Figures",
        table(header, rows),
        _note(EXPLAINED),
        _note(f"Of several models {CAUTION}.") if len(models) > 1 else None,
        _charts([(figure, "ua", "UA of each model with its interval", "UA, 95 % interval over recordings")]),
    )


def _share(figures: Mapping[str, Any], key: str) -> Html:
    spread = f" ± {percent(figures['deviation'][key])}" if figures["seeds_differ"] else None
    by_speaker = figures["interval_by_speaker"]
    return join(
        [
            tag("span", tag("b", percent(figures["mean"][key])), spread),
            tag("small", interval(figures["interval"][key])),
            tag("small", f"speakers {interval(by_speaker[key])}") if by_speaker else None,
        ]
    )


def _tests(models: Sequence[ModelContents]) -> Html:
    rows: list[list[Any]] = []
    found: list[float] = []
    for a, b in combinations(models, 2):
        uneven = a.result.speaker_dependent != b.result.speaker_dependent
        warning = tag("small", f"only one of them is {SPEAKER_DEPENDENT}: not a fair comparison")
        pair = join([f"{a.name} against {b.name}", warning if uneven else None])
        if a.result.classes != b.result.classes:
            rows.append([pair, *[NOTHING] * 3, "they tell different classes apart"])
            continue
        try:
            test = a.result.compare(b.result)
        except HserError as error:
            rows.append([pair, *[NOTHING] * 3, str(error)])
            continue
        rows.append([pair, test["n10"], test["n01"], p_value(test["p_value"]), len(found)])
        found.append(test["p_value"])
    corrected = holm(found)
    for row in rows:
        if isinstance(row[4], int):
            row[4] = p_value(corrected[row[4]])
    header = ["pair", "only the first right", "only the second right", "p", "p, Holm"]
    return _section("tests", "Differences", table(header, rows), _note(MCNEMAR))


def holm(p_values: Sequence[float]) -> list[float]:
    """Corrected for the number of tests (Holm 1979): never below p, never above 1, in the same order."""
    p = np.array(p_values, np.float64)
    order = np.argsort(p, kind="stable")
    p[order] = np.maximum.accumulate(np.minimum(p[order] * np.arange(len(p), 0, -1), 1.0))
    return p.tolist()


def _study(study: LayerStudy, folder: str, k: int) -> Html:
    rows = []
    for score in study.scores:
        others = (percent(score.get(key)) for key in list(SHARES)[1:])
        bounds = interval([score["low"], score["high"]])
        rows.append([f"{score['pooling']}:{score['layer']}", tag("b", percent(score["UA"])), bounds, *others])
    under = study.conditions
    told = [
        f"{under.encoder}, {under.classifier} ({under.parameters}), ",
        _protocol(study.config, study.speaker_dependent, study.incomplete),
        f"; {under.normalisation}; {study.num_tested:,} recordings",
    ]
    name = f"study-{k}"
    header = ["layer", "UA", "95 % interval", *list(SHARES.values())[1:]]
    return _section(
        name,
        f"Layers: {folder}",
        tag("p", *told),
        _note("Caution: ", STUDY_CAUTION),
        _charts([(study.chart(), name, "UA of each layer with its interval", "UA by layer, 95 % interval")]),
        tag("details", tag("summary", "All layers"), table(header, rows)),
    )


# One model


def _model(model: ModelContents, k: int) -> Html:
    result, under = model.result, str(model.conditions)
    rows = result.predictions[0].rows.tolist()
    speakers = {result.speakers[row] for row in rows} if result.speakers else set()
    told: list[tuple[str, Any]] = [pair for pair in model.conditions.pairs() if pair[0] != "protocol"]
    told.append(("protocol", _tested_as(model)))
    if each := model.figures["weights"]:  # of a late fusion: mean of the folds, lowest and highest
        words = (f"{w['features']} {w['mean']:.2f} ({w['lowest']:.2f} to {w['highest']:.2f})" for w in each)
        told.append(("weights, over folds", ", ".join(words)))
    of_speakers = f" of {len(speakers)} speakers" if any(speakers) else ""
    told += [
        ("tested", f"{len(rows):,} recordings{of_speakers}"),
        ("classes", ", ".join(result.classes)),
        ("seeds", ", ".join(map(str, result.seeds))),
    ]
    if model.config.get("copies") == "all":
        told.append(("augmented copies", "tested as well"))
    told += [("incomplete", what) for what in result.incomplete]
    charts = [
        (draw(), f"m{k}-{name}", f"{TITLES[name]}, {model.name}", join([TITLES[name], tag("small", under)]))
        for name, draw in charts_of(result, model.origins[0].layers, model.layer_weights).items()
    ]
    seeds = model.figures["seeds"]
    # Means over seeds; a class that no seed has a figure for has none.
    means = [mean_by_class(seeds, figure, result.classes) for figure in ("recall", "precision", "f1")]
    by_class = [
        [name, f"{seeds[0]['support'][name]:,}", *(percent(mean[name]) for mean in means)]
        for name in result.classes
    ]
    several = _note("Charts show the predictions of all seeds together.") if len(result.seeds) > 1 else None
    return _section(
        f"model-{k}",
        model.name,
        facts(told),
        tag("ul", *(tag("li", note) for note in result.notes), class_="notes") if result.notes else None,
        tag("h3", "Classes"),
        _note(under),
        table(["class", "recordings", "recall", "precision", "F1"], by_class, cards=False),
        _by_augmentation(model),
        tag("h3", "Charts"),
        several,
        _charts(charts),
        _map(model, k),
        _folds(model),
        _values(model),
        tag("h3", "Where the embeddings came from"),
        *map(_origin, model.origins),
        tag("h3", "Commands"),
        _commands(commands_of(model)),
    )


def _by_augmentation(model: ModelContents) -> Html | None:
    """Where augmented copies were tested."""
    found = model.figures["by_augmentation"]
    if not found:
        return None
    rows = [
        [name, f"{of['num_tested']:,}", *(percent(of[key]) for key in SHARES)] for name, of in found.items()
    ]
    return join([tag("h3", "Augmentations"), table(["augmentation", "tested", *SHARES.values()], rows)])


def _button(text: str, **attributes: str | bool) -> Html:
    return tag("button", text, type="button", **attributes)


def _map(model: ModelContents, k: int) -> Html | None:
    if model.picture is None:
        return None
    method = METHODS[model.picture.method]
    shown, there = len(model.picture.ids), len(model.result.predictions[0].rows)
    part = f"{shown:,} of {there:,} recordings" if shown < there else f"{shown:,} recordings"
    note = (
        f"{method} of the standardised embeddings that the model takes, {part}; what is not tested right is"
        " ringed. Drag, or use the arrow keys, to turn the view in three dimensions; plus and minus zoom."
    )
    dims = (
        _button("2-D", data_dims="2", aria_pressed="true"),
        _button("3-D", data_dims="3", aria_pressed="false"),
    )
    zoom = (
        _button("−", data_zoom="out", aria_label="Zoom out"),
        _button("+", data_zoom="in", aria_label="Zoom in"),
    )
    groups = (
        tag("span", *buttons, class_="group", role="group", aria_label=name)
        for name, buttons in (("Dimensions", dims), ("Zoom", zoom))
    )
    wrong = _button("only errors", data_wrong=True, aria_pressed="false")
    label = f"Map of {part} of {model.name} by {method}"
    canvas = tag("canvas", tabindex="0", role="application", aria_roledescription="map", aria_label=label)
    inside = [
        tag("div", *groups, wrong, class_="tools"),
        tag("div", canvas, tag("div", class_="tip", hidden=True), class_="stage"),
        tag("ul", class_="legend", aria_label="Classes; press one to hide or show it"),
        _note(note),
    ]
    script = "The map needs JavaScript; embedding_2d.png in the model's folder shows it."
    return join(
        [
            tag("h3", "Map"),
            tag("div", *inside, class_="map", data_map=str(k)),
            tag("noscript", tag("p", script)),
        ]
    )


def _folds(model: ModelContents) -> Html:
    result = model.result
    rows = []
    for seed, predictions, folds in zip(result.seeds, result.predictions, result.folds, strict=True):
        for number_, fold in enumerate(folds):
            here = predictions.fold == number_
            y_true, y_pred = predictions.y_true[here], predictions.y_pred[here]
            ua = unweighted_accuracy(y_true, y_pred, len(result.classes)) if here.any() else None
            name = f"{fold.name}, seed {seed}" if len(result.seeds) > 1 else fold.name
            layer = NOTHING if fold.layer is None else str(fold.layer)
            chosen = "; ".join(filter(None, map(_chosen, fold.members))) or NOTHING
            rows.append([name, f"{fold.num_train:,}", f"{fold.num_test:,}", percent(ua), layer, chosen])
    header = ["fold", "trained on", "tested", "UA", "layer selected", "parameters selected"]
    summary = tag("summary", f"Folds ({len(rows)})")
    return tag("details", summary, _note(str(model.conditions)), table(header, rows))


def _chosen(member: Mapping[str, Any]) -> str:
    """Of one classifier of a fold; its layer where it is one of several, as that has no column then."""
    late = member["weight"] != 1.0
    return ", ".join(
        f"{key} {number(value, 2) if key == 'weight' else value}" if late else f"{key}={value}"
        for key, value in member.items()
        if value is not None and (late or key not in ("layer", "weight"))
    )


def _values(model: ModelContents) -> Html:
    """Every value of the experiment, as the model's config.yaml has it."""
    every = {key: value for key, value in model.config.items() if key not in WRITTEN}
    parameters = every.pop("params", {})
    every |= {f"param {name}": value for name, value in parameters.items()}
    known = "" if model.result.used else ": what an earlier version wrote; its defaults were not recorded"
    shown = ((k, NOTHING if v is None or v in ({}, []) else str(v)) for k, v in every.items())
    summary = tag("summary", f"All values that were used ({len(every)}){known}")
    return tag("details", summary, facts((name, _code(value)) for name, value in shown))


# Where a model's embeddings came from, and what makes them and the model again

_ORIGIN = (
    "model",
    "source",
    "revision",
    "weights",
    "dtype",
    "normalisation",
    "channel",
    "window_seconds",
    "augmentation",
)
# Settings and the flags of hser-extract that give them, where they are not the default.
_FLAGS: dict[str, tuple[str, Any]] = {
    "channel": ("--channel", "average"),
    "window_seconds": ("--window", 60.0),
    "storage_dtype": ("--storage-dtype", "fp32"),
    "augmentation": ("--augment", "none"),
    "copies": ("--copies", 1),
    "seed": ("--seed", 0),
}


def _origin(origin: Origin) -> Html:
    made_with = {name: origin.environment.get(name) for name in ("hser", "torch", "transformers")}
    settings = {name: origin.settings[name] for name in _ORIGIN if name in origin.settings}
    return facts(
        [
            ("run", _code(origin.path)),
            ("pooling, layers", f"{origin.pooling}, {', '.join(map(str, origin.layers))}"),
            *((name.replace("_", " "), _code(value)) for name, value in settings.items()),
            ("rows", f"{origin.num_rows:,}, stored as {origin.storage_dtype}"),
            ("made with", ", ".join(f"{name} {v}" for name, v in made_with.items() if v is not None)),
        ]
    )


def commands_of(model: ModelContents) -> list[str]:
    """What makes this model again, from the recordings on."""
    config = f"{model.path.rstrip('/')}/config.yaml"
    return [
        *(extract_command(origin) for origin in model.origins),
        shlex.join(["hser-train", "--config", config, "--out", model.path]),
        shlex.join(["hser-predict", model.path]) + " RECORDINGS",
    ]


def extract_command(origin: Origin) -> str:
    """The hser-extract that made a run, but for the recordings' own place."""
    settings = origin.settings
    words = ["--model", str(origin.environment.get("model_spec", settings["model"]))]
    words += ["--layers", str(settings["layers"]), "--pooling", str(settings["pooling"])]
    words += ["--dtype", str(settings["dtype"]), "--out", origin.path]
    for name, (flag, default) in _FLAGS.items():
        if settings.get(name, default) != default:
            words += [flag, str(settings[name])]
    if settings.get("clean") is False:
        words.append("--no-clean")
    return "hser-extract RECORDINGS " + shlex.join(words)
