"""The README's figures of accuracy, from the result of `benchmarks.accuracy`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.markdown import table

Result = Mapping[str, Any]  # the result file, or one row of it
FIGURES = {"UA": "UA %", "WA": "WA %", "macro_f1": "macro-F1 %"}
NAMES = {"emodb": "EmoDB", "ravdess": "RAVDESS"}

LEGEND = """\
Layer and C are selected inside each fold's training recordings (across corpora: the layer, C = 0.01). In
brackets 95 % intervals over recordings; under *speakers drawn* whole speakers are drawn, which says more of
the next speaker. *layer (folds)*: the layer that was selected, in how many folds. `python -m
benchmarks.accuracy --data FOLDER --whisper FOLDER` makes all of it anew, extraction included; below is a
command a figure.
"""


def accuracy_text(result: Result) -> str:
    """A table a corpus, one across corpora, what has to be said of some rows, and the commands."""
    rows = [row for row in result["rows"] if "layers" not in row]
    blocks = [
        f"{_about_corpus(of)}\n\n{accuracy_table(of)}"
        for corpus in NAMES
        if (of := [row for row in rows if row["corpora"] == [corpus]])
    ]
    crossed = [row for row in rows if "cells" in row]
    if crossed:
        classes = ", ".join(crossed[0]["classes"])
        about = f"**Across corpora**: {crossed[0]['features']}, {crossed[0]['classifier']}; {classes}"
        blocks.append(f"{about}\n\n{crossed_table(crossed)}")
    noted: dict[str, dict[str, None]] = {}  # in order, each once
    for row in rows:
        if row["note"]:
            noted.setdefault(row["note"], {})[f"{row['features']}, {row['classifier']}"] = None
    notes = [f"- {'; '.join(named)}: {note}." for note, named in noted.items()]
    return "\n\n".join([LEGEND.rstrip(), *blocks, *["\n".join(notes)] * bool(notes), _commands(rows)]) + "\n"


def _about_corpus(rows: Sequence[Result]) -> str:
    """Recordings, classes and protocol: the same for all rows of a corpus, or the table would mislead."""
    kinds = {(row["num_tested"], len(row["classes"]), row["protocol"]) for row in rows}
    if len(kinds) > 1:
        raise ValueError(f"rows of one corpus were not tested alike: {sorted(kinds)}")
    [(num_tested, num_classes, protocol)] = kinds
    name = NAMES[rows[0]["corpora"][0]]
    return f"**{name}**: {num_tested:,} recordings, {num_classes} classes, {protocol}"


def accuracy_table(rows: Sequence[Result]) -> str:
    lines = [
        [
            row["features"],
            row["classifier"],
            *(_percent(row["figures"][name]["value"], row["figures"][name]["interval"]) for name in FIGURES),
            "{:.1f}-{:.1f}".format(*(100 * x for x in row["figures"]["UA"]["interval_by_speaker"])),
            _layers(row),
        ]
        for row in rows
    ]
    header = ["features", "classifier", *FIGURES.values(), "UA, speakers drawn", "layer (folds)"]
    return table(header, lines, words=2)


def _percent(value: float, interval: Sequence[float]) -> str:
    low, high = interval
    return f"{100 * value:.1f} ({100 * low:.1f}-{100 * high:.1f})"


def _layers(row: Result) -> str:
    """Layers that folds selected: ``3 (4), 2 (2)``."""
    counts = [each["layer"] for each in row["selected"] if "layer" in each]
    return "; ".join(", ".join(f"{layer} ({n})" for layer, n in of.items()) for of in counts) or "-"


def crossed_table(rows: Sequence[Result]) -> str:
    lines = []
    for row in rows:
        for cell in row["cells"]:
            where = "unheard speakers of the same" if cell["within"] else NAMES[cell["test"]]
            lines.append(
                [
                    NAMES[cell["train"]],
                    f"{where} ({cell['num_tested']:,})",
                    f"`{row['normalise']}`",
                    _percent(cell["figures"]["UA"], cell["interval"]),
                    *(f"{100 * cell['figures'][name]:.1f}" for name in ("WA", "macro_f1")),
                    "-" if cell["drop"] is None else f"{100 * cell['drop']:.1f}",
                    cell["selected"].removeprefix("layer ") or "-",
                ]
            )
    header = ["trained on", "tested on (recordings)", "`--normalise`", *FIGURES.values(), "UA lost", "layer"]
    return table(header, lines, words=3)


def neighbours_text(result: Result) -> str:
    """A line a corpus, features and layer; and the commands."""
    rows = [row for row in result["rows"] if "layers" in row]
    if not rows:
        return "Not measured yet: `python -m benchmarks.accuracy` writes the result file.\n"
    names = {**FIGURES, "precision_at_k": f"precision@{rows[0]['k']} %"}
    lines = [
        [
            f"{NAMES[row['corpora'][0]]} ({row['num_tested']:,}, {len(row['classes'])} emotions)",
            row["features"],
            str(each["layer"]) if len(row["layers"]) > 1 else "-",
            *(f"{100 * each['figures'][name]:.1f}" for name in names),
        ]
        for row in rows
        for each in row["layers"]
    ]
    header = ["corpus (recordings)", "features", "layer", *names.values()]
    return f"{table(header, lines, words=3)}\n\n{_commands(rows)}\n"


def _commands(rows: Sequence[Result]) -> str:
    """Folded away: extraction once a run, then a command a figure."""
    made = dict.fromkeys(command for row in rows for command in row["commands"][:-1])
    figures = [row["commands"][-1] for row in rows]
    versions = {name: dict.fromkeys(row["versions"][name] for row in rows) for name in rows[0]["versions"]}
    used = ", ".join(f"{name} {', '.join(found)}" for name, found in versions.items())
    block = "\n".join([*made, "", *figures])
    return (
        f"<details><summary>The commands, a figure each ({used})</summary>\n\n```\n{block}\n```\n\n</details>"
    )
