"""What classifiers make of the embeddings, on speakers they have not heard: every figure of the README.

    python -m benchmarks.accuracy --data FOLDER --whisper FOLDER [--only NAME ...] [--runs FOLDER]

``--data`` holds `emodb/` and `ravdess/`, ``--whisper`` is a folder of whisper-tiny.en in the hub's layout;
``--runs`` (default `runs/`) is where embeddings are looked for, and where those that are missing go. Each
row runs the commands that stand in its result, as a user types them, in a folder where `emodb/`,
`ravdess/`, `whisper-tiny-en/` and `runs/` are. Rows that are not asked for stay as they are in
`benchmarks/results/accuracy.json`; that file names no machine, since a figure depends on it by rounding
alone: every extraction names its dtype, which is kept with each row.
The outside reference is openSMILE's eGeMAPSv02, see `benchmarks.egemaps`.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.accuracy_rows import (
    EGEMAPS,
    MATRIX,
    NEIGHBOURS,
    PROTOCOLS,
    REFERENCE,
    ROWS,
    TRAIN,
    WHISPER,
    Row,
    commands,
    extraction,
)
from benchmarks.harness import CANNOT_RUN, RESULTS, SHARED_DATA, print_table
from benchmarks.outside_reference import EXPERIMENT, reference_figures

RESULT = "accuracy.json"
FIGURES = ("UA", "WA", "macro_f1")
INTERVALS = ("interval", "interval_by_speaker")
DIGITS = 4  # what is stored of a share: a recording of RAVDESS is 0.0007
VERSIONS = ("torch", "scikit-learn", "numpy")

# Of a program: its module, and options that change no figure.
PROGRAMS = {
    "hser-extract": ("extractor.commands.extract", ("-q",)),
    "hser-train": ("classifiers.commands.train", ("-q", "--projection", "pca")),
    "hser-evaluate": ("classifiers.commands.evaluate", ("-q",)),
    "hser-lookup": ("classifiers.commands.lookup", ("--json", "--no-duplicates")),
}


class CannotRunError(Exception):
    """Something that a row needs is not here."""


# --- The commands -------------------------------------------------------------------------------


def carry_out(command: str, place: Path) -> str:
    """What one of `PROGRAMS` prints in ``place``. Raises RuntimeError with what it said where it fails."""
    program, *arguments = shlex.split(command)
    module, quiet = PROGRAMS[program]
    run = [sys.executable, "-m", module, *arguments, *quiet]
    done = subprocess.run(run, cwd=place, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command}\nended with exit code {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout


def prepare(row: Row, place: Path) -> None:
    """Extract what is missing of a row's runs.

    Raises CannotRunError where something is not here, RuntimeError where recordings failed.
    """
    for corpus in row.corpora:
        if not (place / corpus).is_dir():
            raise CannotRunError(f"{corpus}/ is not in --data")
    for run in row.runs:
        if num_missing(place / "runs" / run) == 0:
            continue
        if run.endswith(WHISPER) and not (place / "whisper-tiny-en").is_dir():
            raise CannotRunError("--whisper names no folder")
        print(f"{row.name}: {extraction(run)}", flush=True)
        carry_out(extraction(run), place)
        if missing := num_missing(place / "runs" / run):
            raise RuntimeError(f"{run}: {missing} recordings are not in it; see its errors.jsonl")


def dtype_of(row: Row, place: Path) -> str:
    """What the row's embeddings were computed in, as its runs say."""
    from extractor.store import Store

    return ", ".join(dict.fromkeys(Store(place / "runs" / run).settings["dtype"] for run in row.runs))


def num_missing(run: Path) -> int | None:
    """Recordings that a run has yet to store; None where it is not there, or has not been closed."""
    from extractor.store import Store
    from extractor.store.run_folder import CONTENTS, MANIFEST, read_manifest, read_run

    if not (run / CONTENTS).exists():
        return None
    planned = read_manifest(run / MANIFEST, read_run(run).columns)
    return len(planned) - len(Store(run))


# --- The figures --------------------------------------------------------------------------------


def measure(row: Row, place: Path) -> dict[str, Any]:
    """The row of the result file. Raises CannotRunError where something is not here."""
    prepare(row, place)
    about = {
        "name": row.name,
        "corpora": list(row.corpora),
        "features": row.features,
        "classifier": row.classifier,
        "kind": row.kind,
        "note": row.note,
        "dtype": dtype_of(row, place),
        "commands": commands(row),
        "versions": {"python": ".".join(map(str, sys.version_info[:3]))} | {p: version(p) for p in VERSIONS},
    }
    return about | HOW[row.kind](row, place)


def _trained(row: Row, place: Path) -> dict[str, Any]:
    from classifiers.results.result import Result
    from classifiers.training.protocols import about

    carry_out(commands(row)[-1], place)
    result = Result.load(place / "models" / row.name)
    return {"protocol": about(result.config["protocol"]), **figures_of(result), "selected": selected(result)}


def figures_of(result: Any) -> dict[str, Any]:
    """Of a `Result`: each figure with its interval over rows, and with whole speakers drawn."""
    found = result.figures()
    return {
        "num_tested": found["num_tested"],
        "classes": found["classes"],
        "speaker_dependent": found["speaker_dependent"],
        "figures": {
            name: {"value": round(found["mean"][name], DIGITS)}
            | {kind: [round(bound, DIGITS) for bound in found[kind][name]] for kind in INTERVALS}
            for name in FIGURES
        },
        "recall": {name: round(value, DIGITS) for name, value in found["seeds"][0]["recall"].items()},
    }


def selected(result: Any) -> list[dict[str, Any]]:
    """`Result.selected`, its weights rounded."""
    return [each | {"weight": round(each["weight"], DIGITS)} for each in result.selected()]


def _crossed(row: Row, place: Path) -> dict[str, Any]:
    carry_out(commands(row)[-1], place)
    found = json.loads((place / "studies" / row.name / "cross_corpus.json").read_text(encoding="utf-8"))
    return {
        "normalise": found["normalise"],
        "classes": found["classes"],
        "cells": [
            {
                "train": cell["train"].removesuffix(f"-{WHISPER}"),
                "test": cell["test"].removesuffix(f"-{WHISPER}"),
                "within": cell["within"],
                "num_tested": sum(cell["figures"]["support"].values()),
                "figures": {name: round(cell["figures"][name], DIGITS) for name in FIGURES},
                "interval": [round(bound, DIGITS) for bound in cell["interval"]],  # of UA
                "selected": cell["selected"],
            }
            for cell in found["cells"]
        ],
    }


def _neighbours(row: Row, place: Path) -> dict[str, Any]:
    found = json.loads(carry_out(commands(row)[-1], place))
    names = {"UA": "ua", "WA": "wa", "macro_f1": "macro_f1", "precision_at_k": "precision_at_k"}
    return {
        "protocol": f"leave one {found['leave_out']} out",
        "num_tested": found["queries"],
        "classes": sorted(found["emotions"]),
        "k": found["k"],
        "layers": [
            {
                "layer": each["layer"],
                "figures": {name: round(each[key], DIGITS) for name, key in names.items()},
            }
            for each in found["layers"]
        ],
    }


def _reference(row: Row, place: Path) -> dict[str, Any]:
    """The folds are those of the run; only labels, speakers and ids are taken from it."""
    from classifiers.training.protocols import about

    path = place / "runs" / f"{row.corpora[0]}-{EGEMAPS}.npz"
    if not path.exists():
        raise CannotRunError(f"make runs/{path.name} with `{commands(row)[-2]}`")
    result, smile = reference_figures(path, place / "runs" / row.runs[0], row.arguments)
    return {
        "protocol": about(row.arguments),
        **figures_of(result),
        "selected": selected(result),
        "experiment": EXPERIMENT,
        "opensmile": smile,
    }


HOW = {TRAIN: _trained, MATRIX: _crossed, NEIGHBOURS: _neighbours, REFERENCE: _reference}


# --- The result file ----------------------------------------------------------------------------


def merge(path: Path, new: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Rows of the file with the new ones in their place, in the order of `ROWS`."""
    before = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    rows = {row["name"]: row for row in [*before, *new]}
    return [rows[name] for name in ROWS if name in rows]


def write(path: Path, new: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"rows": merge(path, new)}, indent=1) + "\n", encoding="utf-8")


def print_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    lines = []
    for row in rows:
        for cell in row.get("cells") or row.get("layers") or [row]:
            where = f", {cell['train']} -> {cell['test']}" if "train" in cell else ""
            where += f", layer {cell['layer']}" if "layer" in cell else ""
            values = [cell["figures"][name] for name in FIGURES]
            shares = [value["value"] if isinstance(value, dict) else value for value in values]
            lines.append([row["name"] + where, *(f"{100 * share:.1f}" for share in shares)])
    print_table(["", *(f"{name} %" for name in FIGURES)], lines)


def workplace(place: Path, data: Path, whisper: Path | None, runs: Path) -> None:
    """Links under the names that the commands have."""
    runs.mkdir(parents=True, exist_ok=True)
    links = {"runs": runs, **{corpus: data / corpus for corpus in PROTOCOLS}}
    if whisper is not None:
        links["whisper-tiny-en"] = whisper
    for name, target in links.items():
        (place / name).symlink_to(target.resolve(), target_is_directory=True)


def main(argv: Sequence[str] | None = None) -> int:
    """0; CANNOT_RUN when something that every row needs is not here."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, default=SHARED_DATA, help="folder with emodb/ and ravdess/")
    parser.add_argument("--whisper", type=Path, help="whisper-tiny.en in the hub's layout")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path, default=RESULTS / RESULT)
    args = parser.parse_args(argv)
    measured = []
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        workplace(place, args.data, args.whisper, args.runs)
        for name in args.only:
            try:
                measured.append(measure(ROWS[name], place))
            except CannotRunError as error:
                print(f"{name}: skipped, {error}", flush=True)
                continue
            print_rows(measured[-1:])
            write(args.out, measured[-1:])  # now: all rows take long
    if not measured:
        return CANNOT_RUN
    print(f"written to {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
