"""The README's figures, from the result files: tables between markers, and a chart.

    python -m benchmarks.readme README.md [--check]

Between ``<!-- speed -->`` and ``<!-- /speed -->`` (also the other names of `SECTIONS`) stands what the
newest result of each machine gives; ``docs/speed.svg`` beside the README shows the speeds as bars. With
``--check`` nothing is written, and the exit code is 1 where anything differs.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from html import escape
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.accuracy_tables import accuracy_text, neighbours_text
from benchmarks.harness import MIB, RESULTS, Columns, Table, number, with_range, write_result

CHART = Path("docs/speed.svg")
Result = Mapping[str, Any]  # one result file
WAYS = ("loop", "best", "torchaudio")  # without hser
BARS = ("loop", "best", "hser", "int8")
NATURAL = ("emodb", "ravdess")  # lengths that the main table shows, where there are several; the first found
KERNEL_WAYS = ("ours", "definition", "compiled", "library")
TRAINING_WAYS = {"hser-train": "`hser-train`", "by hand": "whole array and scikit-learn"}


def read_results(folder: Path, *names: str) -> list[Result]:
    """Result files of some benchmarks, in their order, by machine. A new run replaces a machine's old one."""
    paths = [path for name in names for path in sorted(folder.glob(f"{name}-*.json"))]
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def middle(values: Sequence[float]) -> str:
    return number(median(values))


def padding_table(result: Result) -> Table:
    def range_of(who: str, row: Result) -> str:
        return f"{min(row[who]):.1e} to {max(row[who]):.1e}"

    columns: Columns = {
        "relative distance from each clip alone": "{model} ({norm} norm)",
        "transformers, padded batch": partial(range_of, "transformers"),
        "hser, one batch": partial(range_of, "hser"),
    }
    return Table.of(result["rows"], columns)


def precision_table(result: Result) -> Table:
    """A column a dtype: rows as they are stored by default, and frames."""

    def lowest(dtype: str, row: Result) -> str:
        return f"{min(row['pooled'][dtype]):.5f}, {min(row['frames'][dtype]):.5f}"

    dtypes = dict.fromkeys(dtype for row in result["rows"] for dtype in row["pooled"])
    columns: Columns = {"lowest cosine to fp32: embedding, frames": "{model}, {weights} weights"}
    return Table.of(result["rows"], {**columns, **{dtype: partial(lowest, dtype) for dtype in dtypes}})


def main_rows(result: Result) -> list[Result]:
    """One row a model: its recordings of natural lengths, where it was measured with several lengths."""

    def rank(row: Result) -> int:
        return (*NATURAL, row.get("lengths")).index(row.get("lengths"))

    models = dict.fromkeys(row["model"] for row in result["rows"])
    return [min((row for row in result["rows"] if row["model"] == model), key=rank) for model in models]


def quantised(row: Result) -> str:
    ratios = {f"int8/{other}": row["ratios"].get(f"int8/{other}") for other in ("hser", "best", "loop")}
    times = ["-" if ratio is None else f"{ratio:.2f}x" for ratio in ratios.values()]
    return f"{middle(row['speeds']['int8'])} ({', '.join(times)})"


SPEEDS: Columns = {
    "audio s/s": "{model}, {dtype}",
    **{f"`{way}`": f"{{speeds[{way}]:range}}" for way in WAYS},
    "hser": "{speeds[hser]:range}",
    "`command`": "{speeds[command]:range}",
    "hser / `loop`": "**{ratios[hser/loop]:.1f}x**",
    **{f"hser / `{way}`": f"**{{ratios[hser/{way}]:.2f}}x**" for way in WAYS[1:]},
    "`command` / hser": "{ratios[command/hser]:.1%}",
    "of the roof": "{mfu:.0%}",
    "int8 (/ hser, / `best`, / `loop`)": quantised,
}


def speed_table(result: Result) -> Table:
    return Table.of(main_rows(result), SPEEDS)


def lengths_table(result: Result) -> Table:
    """hser by length: audio seconds per second, times `best`, share of the roof."""
    rows = [row for row in result["rows"] if "lengths" in row and "hser" in row["speeds"]]
    lengths = list(dict.fromkeys(row["lengths"] for row in rows))
    measured = Counter((row["model"], row["dtype"]) for row in rows)
    cells = {}
    for row in rows:
        times = f"{ratio:.2f}x, " if (ratio := row["ratios"].get("hser/best")) is not None else ""
        cells[row["model"], row["lengths"]] = f"{middle(row['speeds']['hser'])} ({times}{row['mfu']:.0%})"
    lines = [
        [f"{model}, {dtype}", *(cells.get((model, of), "-") for of in lengths)]
        for (model, dtype), count in measured.items()
        if count > 1
    ]
    return Table(["audio s/s (`best`, of the roof)", *lengths], lines)


def choices_table(result: Result) -> Table:
    """A line a choice, a column a model."""
    rows, instead = result["rows"], result["instead"]
    speeds = []
    for what in rows[0]["speeds"]:
        cells = [middle(row["speeds"][what]) for row in rows]
        gains = [f" ({row['gain'][what]:.2f}x)" if what in row["gain"] else "" for row in rows]
        named = f"without {what}" if what in instead else what
        speeds.append([named, instead.get(what, "-"), *map("{}{}".format, cells, gains)])
    models = [f"{row['model']}, {row['dtype']}" for row in rows]
    return Table(["audio s/s (what it gives)", "in its place", *models], speeds, words=2)


def stages_table(result: Result) -> Table:
    """Where the time goes, without any choice and with all."""
    columns = {
        f"{row['model']}, {which}": of for row in result["rows"] for which, of in row["stages"].items()
    }
    stages = dict.fromkeys(stage for of in columns.values() for stage in of)
    times = [[stage, *(f"{of.get(stage, 0.0):.1f}" for of in columns.values())] for stage in stages]
    return Table(["ms of one core an audio second", *columns], times)


def decode_table(result: Result) -> Table:
    columns = {
        "audio s/s": "{files}, {recordings:,} files",
        **{who: f"{{speeds[{who}]:range}}" for who in ("soundfile", "hser", "hser + checksum")},
        "hser / soundfile": "**{ratios[hser/soundfile]:.2f}x**",
    }
    return Table.of(result["rows"], columns)


def write_table(result: Result) -> Table:
    columns: Columns = {
        f"{result['row_bytes'] / 1e3:.0f} kB a row": "{name}",
        "rows/s": "{speeds:range}",
        "MB/s": lambda row: number(median(row["speeds"]) * result["row_bytes"] / 1e6),
    }
    return Table.of(({"name": name, "speeds": each} for name, each in result["speeds"].items()), columns)


def memory_table(result: Result) -> Table:
    corpus, plan = result["corpus"], result["plan"]
    (few, many), (least, most) = corpus["recordings"], corpus["peak_mib"]
    seconds = plan["plan_seconds"] + plan["write_seconds"]
    rows = [
        [
            f"{many:,} short recordings, against {few:,} ({corpus['model']})",
            f"{most:,.0f} MiB against {least:,.0f} MiB: {corpus['growth']:.2f}x",
            f"{corpus['aim']:.2f}x",
        ],
        *(
            [
                f"{row['hours']:g} h, {row['recording']}, {row['model']}, above one of 10 s",
                f"{row['above_mib']:,.0f} MiB ({row['waveforms']:.1f} waveforms)",
                f"{row['bound_mib']:,.0f} MiB",
            ]
            for row in result["long"]
        ),
        [
            f"planning {plan['recordings']:,} recordings whose headers are read",
            f"{seconds:.1f} s, {plan['read_seconds']:.1f} s on resume, peak {plan['peak_mib']:,.0f} MiB",
            "-",
        ],
    ]
    return Table(["peak resident memory of the process", "measured", "at most"], rows)


def augment_table(result: Result) -> Table:
    """Masks inside the encoder make no audio: they are no part of what is measured."""
    columns: Columns = {
        "ms of one core an audio second": lambda row: f"`{row['augmentation']}`".replace("|", "\\|"),
        "hser": "{ms:range}",
        "torchaudio": "{torchaudio_ms:range}",
        f"share of {result['model']}, {result['dtype']}, {middle(result['encode_ms'])} ms": "{share:.1%}",
        "aim": "{aim:.0%}",
    }
    return Table.of((row for row in result["rows"] if not row["latent"]), columns)


def kernels_table(result: Result) -> Table:
    """On a CPU ours is the definition, and kernels are not timed alone."""

    def ratio(way: str, row: Result) -> str:
        return f"{median(row['calls'][way]) / median(row['calls']['ours']):.1f}x"

    columns: Columns = {
        "ms a call": "{kernel}, {what}",
        **{way: f"{{calls[{way}]:ms}}" for way in KERNEL_WAYS},
        **{f"{way} / ours": partial(ratio, way) for way in KERNEL_WAYS[1:]},
        "ours, kernels alone": lambda row: f"{row['kernels']['ours'] * 1e3:.3g}",
        "of a copy's speed": "{share_of_copy:.0%}",
    }
    return Table.of(result["rows"], columns)


def index_table(result: Result) -> Table:
    size = f"{result['rows']:,} rows of {result['dim']:,}"
    columns: Columns = {
        f"{size}, batches of {result['queries']} queries, threads: {result['threads']}": "{kind}",
        "built in": "{build_seconds:,.0f} s",
        "memory per million": lambda each: f"{each['memory_bytes'] / result['rows'] / 1e3:.2f} GB",
        "recall@10": "{recall_at_10:.3f}",
        "queries/s": lambda each: with_range(next(iter(each["queries_per_second"].values()))),
        "plain FAISS": "{queries_per_second[FAISS]:range}",
    }
    return Table.of(({"kind": kind, **each} for kind, each in result["kinds"].items()), columns)


def training_table(result: Result) -> Table:
    def mebibytes(what: str, row: Result) -> str:
        sizes = [size for size in row[what] if size is not None]
        return f"{median(sizes) / MIB:,.0f} MiB" if sizes else "-"

    rows = [
        {"who": f"{classifier}, {TRAINING_WAYS[name]}", **each}
        for classifier, contenders in result["classifiers"].items()
        for name, each in contenders.items()
    ]
    threads = max((row["threads"] for row in rows), default=0)
    size = f"{result['rows']:,} x {result['layers']} x {result['dim']:,}"
    columns: Columns = {
        f"layer {result['layer']} of {size}, {result['folds']} folds, threads: {threads}": "{who}",
        "seconds": lambda row: (with_range if len(row["seconds"]) > 1 else middle)(row["seconds"]),
        "reading": lambda row: middle(row["stages"].get("read", [0.0])),
        "fitting": lambda row: middle(row["stages"].get("fit", [0.0])),
        "peak above imports": partial(mebibytes, "above_imports"),
        "whole process": partial(mebibytes, "whole_process"),
        "UA": "{UA:.1%}",
    }
    return Table.of(rows, columns)


# Marker -> the result files it shows, and how.
SECTIONS: dict[str, tuple[tuple[str, ...], tuple[Callable[[Result], Table], ...]]] = {
    "padding": (("padding",), (padding_table,)),
    "precision": (("precision",), (precision_table,)),
    "speed": (("encoder", "gpu-check"), (speed_table,)),
    "lengths": (("encoder",), (lengths_table,)),
    "choices": (("choices",), (choices_table, stages_table)),
    "decode": (("decode",), (decode_table,)),
    "write": (("write",), (write_table,)),
    "memory": (("memory",), (memory_table,)),
    "augment": (("augment",), (augment_table,)),
    "kernels": (("kernels",), (kernels_table,)),
    "index": (("index",), (index_table,)),
    "training": (("training",), (training_table,)),
}

# Marker -> a result that is one file whatever the machine, and how it is shown.
ONE_FILE: dict[str, tuple[str, Callable[[Result], str]]] = {
    "figures": ("accuracy.json", accuracy_text),
    "neighbours": ("accuracy.json", neighbours_text),
}


def show(name: str, result: Result) -> None:
    """Print the tables of a section on the terminal."""
    print("\n\n".join(make(result).text() for make in SECTIONS[name][1]))


def publish(name: str, result: Result, out: Path | None) -> None:
    """Print a benchmark's tables, and write its result file."""
    show(name, result)
    write_result(name, result, out)


def section(name: str, folder: Path) -> str:
    """What belongs between a marker's two ends."""
    if name in ONE_FILE:
        file, show = ONE_FILE[name]
        if not (folder / file).exists():
            return "Not measured yet: `python -m benchmarks.accuracy` writes the result file.\n"
        return show(json.loads((folder / file).read_text(encoding="utf-8")))
    sources, tables = SECTIONS[name]
    results = [r for r in read_results(folder, *sources) if r.get("rows", True)]
    if name == "lengths":
        results = [r for r in results if len({row.get("lengths") for row in r["rows"]}) > 1]
    if not results:
        return "Not measured yet: `make bench` writes the result files.\n"
    blocks = [
        "\n\n".join([f"Machine: `{result['machine']}`", *(str(make(result)) for make in tables)]) + "\n"
        for result in results
    ]
    chart = f"![Audio seconds per second]({CHART.as_posix()})\n\n" if name == "speed" else ""
    return chart + "\n".join(blocks)


def fill(text: str, folder: Path) -> str:
    """The README with its sections made anew. Raises ValueError for a marker without its end."""
    for name in (*SECTIONS, *ONE_FILE):
        opening, closing = f"<!-- {name} -->", f"<!-- /{name} -->"
        if text.count(opening) != text.count(closing) or text.count(opening) > 1:
            raise ValueError(f"{opening} and {closing} must both stand there once, or not at all")
        between = f"{opening}\n{section(name, folder)}{closing}"
        pattern = f"{re.escape(opening)}.*?{re.escape(closing)}"
        text = re.sub(pattern, lambda _, new=between: new, text, flags=re.DOTALL)  # type: ignore[misc]
    return text


# --- The chart ----------------------------------------------------------------------------------

WIDTH, LABELS, FIGURES = 720, 190, 90  # px: all of it, what the names take, what the figures take
BAR, GAP, TITLE = 16, 4, 30  # px
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #1f2328 }
.title { font-weight: 600 } .loop { fill: #9aa4af } .best { fill: #6b8fb3 } .hser { fill: #d9622b }
.int8 { fill: #e8a26f }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .loop { fill: #6e7681 } }
"""


def chart(results: Sequence[Result]) -> str:
    """SVG: a panel a machine, with a scale of its own; bars by model. No background: fits any page."""
    parts: list[str] = []
    y = 0
    for result in results:
        y += TITLE
        title = f"Audio seconds per second, {result['machine']}"
        parts.append(f'<text class="title" x="0" y="{y - 10}">{escape(title)}</text>')
        rows = main_rows(result)
        fastest = max(median(row["speeds"][bar]) for row in rows for bar in BARS if bar in row["speeds"])
        for row in rows:
            for bar in (bar for bar in BARS if bar in row["speeds"]):
                label = escape(f"{row['model']}: {'hser, int8' if bar == 'int8' else bar}")
                speed = median(row["speeds"][bar])
                width = max(1.0, speed * (WIDTH - LABELS - FIGURES) / fastest)
                at = f'y="{y + BAR - 4}"'  # where the words of this bar stand
                parts += [
                    f'<text x="0" {at}>{label}</text>',
                    f'<rect class="{bar}" x="{LABELS}" y="{y}" width="{width:.1f}" height="{BAR}" rx="2"/>',
                    f'<text x="{LABELS + width + 6:.1f}" {at}>{number(speed)}</text>',
                ]
                y += BAR + GAP
            y += 2 * GAP
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" width="{WIDTH}" height="{y}">'
    return "\n".join([head, f"<style>{STYLE}</style>", *parts, "</svg>"]) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("readme", type=Path)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where a file differs")
    args = parser.parse_args(argv)
    files = {args.readme: fill(args.readme.read_text(encoding="utf-8"), args.results)}
    measured = [r for r in read_results(args.results, *SECTIONS["speed"][0]) if r["rows"]]
    if measured:
        files[args.readme.parent / CHART] = chart(measured)
    stale = [
        path for path, text in files.items() if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    for path in stale:
        print(f"{path}: {'is not what the result files give' if args.check else 'written'}")
        if not args.check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(files[path], encoding="utf-8")
    return 1 if args.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
