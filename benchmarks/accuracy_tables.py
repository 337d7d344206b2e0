"""The README's figures of accuracy, from the result of `benchmarks.accuracy`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.accuracy_rows import EGEMAPS, IN_WORDS, WHISPER
from benchmarks.harness import Table
from classifiers.results.metrics import drop

Result = Mapping[str, Any]  # the result file, or one row of it
FIGURES = {"UA": "UA %", "WA": "WA %", "macro_f1": "macro-F1 %"}
SPECTRAL = {words for features, words in IN_WORDS.items() if features != WHISPER}
NAMES = {"emodb": "EmoDB", "ravdess": "RAVDESS"}

LEGEND = """\
Layer and C are selected inside each fold's training recordings (across corpora: the layer, C = 0.01). In
brackets 95 % intervals over recordings; under *speakers drawn* whole speakers are drawn, which says more of
the next speaker. *layer (folds)*: the layer that was selected, in how many folds; of a fusion in brackets
the mean weight of each source. *dtype*: what the embeddings were computed in; `auto` is bf16 where a CPU
computes in it, else fp32, and moves a figure by a recording or two. *UA lost*: UA on unheard speakers of the
training corpus, less that on the other. `python -m benchmarks.accuracy --data FOLDER --whisper FOLDER` makes
all of it anew, extraction included; below is a command a figure.
"""
UNNAMED = "auto"  # of rows that were measured before the dtype was named and kept


def accuracy_text(result: Result) -> str:
    """A table a corpus, one across corpora, what has to be said of some rows, and the commands."""
    rows = [row for row in result["rows"] if "layers" not in row]
    blocks = []
    for corpus, name in NAMES.items():
        of = [row for row in rows if row["corpora"] == [corpus]]
        tested = {(row["num_tested"], len(row["classes"]), row["protocol"]) for row in of}
        if len(tested) > 1:  # the table would mislead
            raise ValueError(f"rows of one corpus were not tested alike: {sorted(tested)}")
        for num_tested, num_classes, protocol in tested:
            about = f"**{name}**: {num_tested:,} recordings, {num_classes} classes, {protocol}"
            blocks.append(f"{about}\n\n{corpus_table(of)}")
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


def table_of(row: Result) -> Table:
    """Of one row, whatever it is of."""
    found = crossed_table if "cells" in row else neighbours_table if "layers" in row else corpus_table
    return found([row])


def corpus_table(rows: Sequence[Result]) -> Table:
    lines = []
    for row in rows:
        figures, selected = row["figures"], row["selected"]
        weights = " + ".join(f"{each['weight']:.2f}" for each in selected)
        # Those that folds selected: `3 (4), 2 (2)`
        counts = [each["layer"] for each in selected if "layer" in each]
        layers = "; ".join(", ".join(f"{layer} ({n})" for layer, n in of.items()) for of in counts)
        lines.append(
            [
                row["features"],
                row["classifier"] + (f" ({weights})" if len(selected) > 1 else ""),
                dtype(row),
                *(_percent(figures[name]["value"], figures[name]["interval"]) for name in FIGURES),
                "{:.1f}-{:.1f}".format(*(100 * x for x in figures["UA"]["interval_by_speaker"])),
                layers or "-",
            ]
        )
    header = ["features", "classifier", "dtype", *FIGURES.values(), "UA, speakers drawn", "layer (folds)"]
    return Table(header, lines, words=3)


def dtype(row: Result) -> str:
    """What the row's embeddings were computed in; spectral ones are in fp32 whatever was asked for.

    Features of another package have none of ours.
    """
    if row["features"] == IN_WORDS[EGEMAPS]:
        return "-"
    spectral = all(name in SPECTRAL for name in row["features"].split("; "))
    found: str = row.get("dtype") or ("fp32" if spectral else UNNAMED)
    return found


def _percent(value: float, interval: Sequence[float]) -> str:
    low, high = interval
    return f"{100 * value:.1f} ({100 * low:.1f}-{100 * high:.1f})"


def crossed_table(rows: Sequence[Result]) -> Table:
    lines = []
    for row in rows:
        own = {cell["train"]: cell["figures"]["UA"] for cell in row["cells"] if cell["within"]}
        for cell in row["cells"]:
            lost = None if cell["within"] else drop(own.get(cell["train"]), cell["figures"]["UA"])
            where = "unheard speakers of the same" if cell["within"] else NAMES[cell["test"]]
            lines.append(
                [
                    NAMES[cell["train"]],
                    f"{where} ({cell['num_tested']:,})",
                    f"`{row['normalise']}`",
                    dtype(row),
                    _percent(cell["figures"]["UA"], cell["interval"]),
                    *(f"{100 * cell['figures'][name]:.1f}" for name in ("WA", "macro_f1")),
                    "-" if lost is None else f"{100 * lost:.1f}",
                    cell["selected"].removeprefix("layer ") or "-",
                ]
            )
    words = ["trained on", "tested on (recordings)", "`--normalise`", "dtype"]
    return Table([*words, *FIGURES.values(), "UA lost", "layer"], lines, words=len(words))


def neighbours_text(result: Result) -> str:
    """The table, and the commands."""
    rows = [row for row in result["rows"] if "layers" in row]
    if not rows:
        return "Not measured yet: `python -m benchmarks.accuracy` writes the result file.\n"
    return f"{neighbours_table(rows)}\n\n{_commands(rows)}\n"


def neighbours_table(rows: Sequence[Result]) -> Table:
    """A line a corpus, features and layer."""
    names = {**FIGURES, "precision_at_k": f"precision@{rows[0]['k']} %"}
    lines = [
        [
            f"{NAMES[row['corpora'][0]]} ({row['num_tested']:,}, {len(row['classes'])} emotions)",
            row["features"],
            dtype(row),
            str(each["layer"]) if len(row["layers"]) > 1 else "-",
            *(f"{100 * each['figures'][name]:.1f}" for name in names),
        ]
        for row in rows
        for each in row["layers"]
    ]
    words = ["corpus (recordings)", "features", "dtype", "layer"]
    return Table([*words, *names.values()], lines, words=len(words))


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
