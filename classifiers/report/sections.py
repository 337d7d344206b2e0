"""What a report says: figures of all models, tests between them, then each model by itself."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from classifiers.charts import plots
from classifiers.charts.projection import TITLES as METHODS
from classifiers.charts.results import TITLES, charts_of
from classifiers.charts.style import marks_of
from classifiers.data.source import CLEAN, Source
from classifiers.report.contents import ModelContents, StudyContents
from classifiers.report.markup import (
    NOTHING,
    Html,
    facts,
    interval,
    join,
    number,
    p_value,
    percent,
    table,
    tag,
)
from classifiers.report.origins import command_block, commands_of, origin_facts
from classifiers.report.svg import inline_svg
from classifiers.results.metrics import CAUTION, unweighted_accuracy
from classifiers.results.result import mean_by_class
from classifiers.training.config import WRITTEN
from classifiers.training.protocols import about
from extractor.errors import HserError

SHARES = {"UA": "UA", "WA": "WA", "macro_f1": "macro-F1", "weighted_f1": "weighted F1"}
SPEAKER_DEPENDENT = "speaker-dependent"
EXPLAINED = (
    "UA is the mean recall of the classes, WA the share of recordings that is right; both, and F1, in per"
    " cent. Below each its 95 % bootstrap interval, over recordings, and where they are known over whole"
    " speakers. ± is the deviation over seeds, where they differ."
)


def body(models: Sequence[ModelContents], studies: Sequence[StudyContents], command: Sequence[str]) -> Html:
    """All of the page that is to be read."""
    parts: list[Html] = [_header(models, studies)]
    if models:
        parts.append(_figures(models))
    if len(models) > 1:
        parts.append(_tests(models))
    parts += [_study(study, k) for k, study in enumerate(studies)]
    parts += [_model(model, k) for k, model in enumerate(models)]
    if command:
        parts.append(_section("this-report", "This report", command_block([shlex.join(command)])))
    return tag("main", *parts)


def _section(name: str, title: str, *inside: Any, badges: Html | None = None) -> Html:
    return tag("section", tag("h2", title), badges, *inside, id=name)


def _header(models: Sequence[ModelContents], studies: Sequence[StudyContents]) -> Html:
    links = [tag("a", "Figures", href="#figures")] if models else []
    links += [tag("a", study.name + ", layers", href=f"#study-{k}") for k, study in enumerate(studies)]
    links += [tag("a", model.name, href=f"#model-{k}") for k, model in enumerate(models)]
    return tag("header", tag("h1", tag("span", "hser", class_="mark"), " report"), tag("nav", *links))


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
    rows = []
    for k, model in enumerate(models):
        mean = model.figures["mean"]
        under = model.conditions
        name = join(
            [
                tag("a", model.name, href=f"#model-{k}"),
                tag("small", f"of {_runs(model)}"),
                tag("small", _tested_as(model)),
                tag("small", under.normalisation),
            ]
        )
        classifier = join([tag("span", under.classifier, class_="words"), tag("small", under.parameters)])
        features = [tag("span", each, class_="words") for each in (under.encoder, under.layer, under.pooling)]
        features.append(classifier)
        shares = [_share(model.figures, key) for key in SHARES]
        rows.append([name, *features, *shares, number(mean.get("roc_auc")), number(mean.get("ece"))])
    values = {m.name: _interval_values(m.figures) for m in models}
    captions = [
        f"{_runs(m)}: {m.conditions.encoder}:{m.conditions.layer}, {m.conditions.classifier}{_copies(m)}"
        for m in models
    ]
    chart = inline_svg(
        plots.intervals(values, [1 / len(m.result.classes) for m in models], captions),
        "ua",
        "UA of each model with its interval",
    )
    header = ["model", "encoder", "layer", "pooling", "classifier", *SHARES.values(), "ROC-AUC", "ECE"]
    return _section(
        "figures",
        "Figures",
        table(header, rows),
        tag("p", EXPLAINED, class_="note"),
        tag("p", f"Of several models {CAUTION}.", class_="note") if len(models) > 1 else None,
        tag(
            "div",
            tag("figure", chart, tag("figcaption", "UA, 95 % interval over recordings")),
            class_="charts",
        ),
    )


def _runs(model: ModelContents) -> str:
    """Folders of the runs that it was trained on: models of several corpora may stand in one table."""
    return " + ".join(Path(Source.parse(each).path).name for each in model.config["features"])


def _copies(model: ModelContents) -> str:
    """Which copies were tested, where it was not recordings as they are."""
    test_on = model.config.get("test_on", CLEAN)
    return "" if test_on == CLEAN else f", tested on {test_on}"


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


def _interval_values(figures: Mapping[str, Any]) -> tuple[float, float, float]:
    low, high = figures["interval"]["UA"]
    return figures["mean"]["UA"], low, high


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
            rows.append([pair, NOTHING, NOTHING, NOTHING, str(error)])
            continue
        rows.append([pair, test["n10"], test["n01"], p_value(test["p_value"]), len(found)])
        found.append(test["p_value"])
    corrected = holm(found)
    for row in rows:
        if isinstance(row[4], int):
            row[4] = p_value(corrected[row[4]])
    header = ["pair", "only the first right", "only the second right", "p", "p, Holm"]
    note = (
        "McNemar's test, two-sided, of the first seeds: do two models err on different recordings? Holm's"
        " correction is for all pairs together. It takes recordings as independent, which those of one"
        " speaker are not quite."
    )
    return _section("tests", "Differences", table(header, rows), tag("p", note, class_="note"))


def holm(p_values: Sequence[float]) -> list[float]:
    """Corrected for the number of tests (Holm 1979): never below p, never above 1, in the same order."""
    corrected = [0.0] * len(p_values)
    largest = 0.0
    order = sorted(range(len(p_values)), key=lambda k: p_values[k])
    for rank, k in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[k]))
        corrected[k] = largest
    return corrected


def _study(study: StudyContents, k: int) -> Html:
    scores: dict[str, list[tuple[float, float, float]]] = {}
    layers: list[int] = []
    for score in study.values["scores"]:
        scores.setdefault(score["pooling"], []).append((score["UA"], score["low"], score["high"]))
        layers += [score["layer"]] if score["layer"] not in layers else []
    figure = plots.layer_scores(layers, scores, 1 / len(study.values["classes"]))
    rows = [
        [
            f"{score['pooling']}:{score['layer']}",
            tag("b", percent(score["UA"])),
            interval([score["low"], score["high"]]),
            *(percent(score.get(key)) for key in list(SHARES)[1:]),
        ]
        for score in study.values["scores"]
    ]
    header = ["layer", "UA", "95 % interval", *list(SHARES.values())[1:]]
    config = study.values["config"]
    protocol = _protocol(config, study.values["speaker_dependent"], study.values.get("incomplete", ()))
    under = study.conditions
    told = join(
        [
            f"{under.encoder}, {under.classifier} ({under.parameters}), ",
            protocol,
            f"; {under.normalisation}; {study.values['num_tested']:,} recordings",
        ]
    )
    chart = inline_svg(figure, f"study-{k}", "UA of each layer with its interval")
    return _section(
        f"study-{k}",
        f"Layers: {study.name}",
        tag("p", told),
        tag("p", "Caution: ", study.values["caution"], class_="note"),
        tag("div", tag("figure", chart, tag("figcaption", "UA by layer, 95 % interval")), class_="charts"),
        tag("details", tag("summary", "All layers"), table(header, rows)),
    )


# One model


def _model(model: ModelContents, k: int) -> Html:
    result = model.result
    tested = len(result.predictions[0].rows)
    speakers = (
        {result.speakers[row] for row in result.predictions[0].rows.tolist()} if result.speakers else set()
    )
    told = [
        *((name, words) for name, words in model.conditions.pairs() if name != "protocol"),
        ("protocol", _tested_as(model)),
        *_weights(model),
        ("tested", f"{tested:,} recordings" + (f" of {len(speakers)} speakers" if any(speakers) else "")),
        ("classes", ", ".join(result.classes)),
        ("seeds", ", ".join(map(str, result.seeds))),
    ]
    if model.config.get("copies") == "all":
        told.append(("augmented copies", "tested as well"))
    told += [("incomplete", what) for what in result.incomplete]
    return _section(
        f"model-{k}",
        model.name,
        facts(told),
        tag("ul", *(tag("li", note) for note in result.notes), class_="notes") if result.notes else None,
        _by_class(model),
        _by_augmentation(model),
        _charts(model, k),
        _map(model, k),
        _folds(model),
        _values(model),
        tag("h3", "Where the embeddings came from"),
        *(origin_facts(origin) for origin in model.origins),
        tag("h3", "Commands"),
        command_block(commands_of(model)),
    )


def _by_class(model: ModelContents) -> Html:
    """Means over seeds; a class that no seed has a figure for has none."""
    seeds, classes = model.figures["seeds"], model.result.classes
    means = [mean_by_class(seeds, figure, classes) for figure in ("recall", "precision", "f1")]
    rows = [
        [name, f"{seeds[0]['support'][name]:,}", *(percent(mean[name]) for mean in means)] for name in classes
    ]
    header = ["class", "recordings", "recall", "precision", "F1"]
    return join([tag("h3", "Classes"), _under(model), table(header, rows, cards=False)])


def _under(model: ModelContents) -> Html:
    return tag("p", str(model.conditions), class_="note")


def _by_augmentation(model: ModelContents) -> Html | None:
    """Where augmented copies were tested."""
    found = model.figures["by_augmentation"]
    if not found:
        return None
    rows = [
        [name, f"{of['num_tested']:,}", *(percent(of[key]) for key in SHARES)] for name, of in found.items()
    ]
    return join([tag("h3", "Augmentations"), table(["augmentation", "tested", *SHARES.values()], rows)])


def _charts(model: ModelContents, k: int) -> Html:
    layers = model.origins[0].layers
    drawn = [
        tag(
            "figure",
            inline_svg(draw(), f"m{k}-{name}", f"{TITLES[name]}, {model.name}"),
            tag("figcaption", TITLES[name], tag("small", str(model.conditions))),
        )
        for name, draw in charts_of(model.result, layers, model.layer_weights).items()
    ]
    several = len(model.result.seeds) > 1
    note = tag("p", "Charts show the predictions of all seeds together.", class_="note") if several else None
    return join([tag("h3", "Charts"), note, tag("div", *drawn, class_="charts")])


def _group(label: str, *buttons: Html) -> Html:
    return tag("span", *buttons, class_="group", role="group", aria_label=label)


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
    dims = _group(
        "Dimensions",
        tag("button", "2-D", type="button", data_dims="2", aria_pressed="true"),
        tag("button", "3-D", type="button", data_dims="3", aria_pressed="false"),
    )
    zoom = _group(
        "Zoom",
        tag("button", "−", type="button", data_zoom="out", aria_label="Zoom out"),
        tag("button", "+", type="button", data_zoom="in", aria_label="Zoom in"),
    )
    wrong = tag("button", "only errors", type="button", data_wrong=True, aria_pressed="false")
    label = f"Map of {part} of {model.name} by {method}"
    canvas = tag("canvas", tabindex="0", role="application", aria_roledescription="map", aria_label=label)
    tip = tag("div", class_="tip", hidden=True)
    return join(
        [
            tag("h3", "Map"),
            tag(
                "div",
                tag("div", dims, zoom, wrong, class_="tools"),
                tag("div", canvas, tip, class_="stage"),
                tag("ul", class_="legend", aria_label="Classes; press one to hide or show it"),
                tag("p", note, class_="note"),
                class_="map",
                data_map=str(k),
            ),
            tag(
                "noscript",
                tag("p", "The map needs JavaScript; embedding_2d.png in the model's folder shows it."),
            ),
        ]
    )


def map_data(models: Sequence[ModelContents]) -> dict[str, Any]:
    """Points, true and predicted classes of each model's map, by its number."""
    return {str(k): _points(model) for k, model in enumerate(models) if model.picture is not None}


def _points(model: ModelContents) -> dict[str, Any]:
    picture, result = model.picture, model.result
    assert picture is not None
    first = result.predictions[0]
    at = {result.ids[row]: i for i, row in enumerate(first.rows.tolist())}
    chosen = [at[name] for name in picture.ids]
    return {
        "classes": list(result.classes),
        "marks": [mark.name for mark in marks_of(result.classes)],
        "ids": picture.ids,
        "true": first.y_true[chosen].tolist(),
        "predicted": first.y_pred[chosen].tolist(),
        "points": [_whole(picture.points2), _whole(picture.points3)],
    }


def _whole(points: np.ndarray) -> list[list[int]]:
    """Columns within -1000 to 1000 around their middle, one scale for all."""
    middle = (points.max(axis=0) + points.min(axis=0)) / 2
    reach = float(np.abs(points - middle).max()) or 1.0
    return np.rint((points - middle) * (1000 / reach)).astype(int).T.tolist()


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
    return tag("details", summary, _under(model), table(header, rows))


def _chosen(member: Mapping[str, Any]) -> str:
    """Of one classifier of a fold; its layer where it is one of several, as that has no column then."""
    late = member["weight"] != 1.0
    return ", ".join(
        f"{key} {number(value, 2) if key == 'weight' else value}" if late else f"{key}={value}"
        for key, value in member.items()
        if value is not None and (late or key not in ("layer", "weight"))
    )


def _weights(model: ModelContents) -> list[tuple[str, str]]:
    """Of a late fusion: mean of the folds, lowest and highest."""
    each = model.figures["weights"] or []
    words = (f"{w['features']} {w['mean']:.2f} ({w['lowest']:.2f} to {w['highest']:.2f})" for w in each)
    return [("weights, over folds", ", ".join(words))] if each else []


def _values(model: ModelContents) -> Html:
    """Every value of the experiment, as the model's config.yaml has it."""
    every = {key: value for key, value in model.config.items() if key not in WRITTEN}
    parameters = every.pop("params", {})
    pairs = [*every.items(), *((f"param {name}", value) for name, value in parameters.items())]
    known = "" if model.result.used else ": what an earlier version wrote; its defaults were not recorded"
    summary = tag("summary", f"All values that were used ({len(pairs)}){known}")
    return tag(
        "details", summary, facts((name, tag("span", _plain(value), class_="code")) for name, value in pairs)
    )


def _plain(value: Any) -> str:
    return NOTHING if value is None or value in ({}, []) else str(value)
