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

import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.accuracy_rows import (
    EGEMAPS,
    MATRIX,
    NEIGHBOURS,
    PROTOCOLS,
    REFERENCE,
    ROWS,
    TRAIN,
    WHISPER,
    Figure,
    commands,
    extraction,
)
from benchmarks.accuracy_tables import table_of
from benchmarks.harness import CANNOT_RUN, RESULTS, SHARED_DATA, arguments, rows_by

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

# Of the outside reference
CLASSIFIER, INNER_FOLDS, SEED = "svm", 5, 0
EXPERIMENT = f"--classifier {CLASSIFIER} --grid default, in plain scikit-learn on the same folds"


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


def prepare(row: Figure, place: Path) -> None:
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


def num_missing(run: Path) -> int | None:
    """Recordings that a run has yet to store; None where it is not there, or has not been closed."""
    from extractor.store import Store
    from extractor.store.run_folder import CONTENTS, read_lines, read_run

    if not (run / CONTENTS).exists():
        return None
    planned = read_lines(run, read_run(run).columns)
    return len(planned.rows) - len(Store(run))


# --- The figures --------------------------------------------------------------------------------


def measure(row: Figure, place: Path) -> dict[str, Any]:
    """The row of the result file. Raises CannotRunError where something is not here."""
    from extractor.store import Store

    prepare(row, place)
    about = {
        "name": row.name,
        "corpora": list(row.corpora),
        "features": row.features,
        "classifier": row.classifier,
        "kind": row.kind,
        "note": row.note,
        # What the embeddings were computed in, as the runs say
        "dtype": ", ".join(dict.fromkeys(Store(place / "runs" / run).settings["dtype"] for run in row.runs)),
        "commands": commands(row),
        "versions": {"python": ".".join(map(str, sys.version_info[:3]))} | {p: version(p) for p in VERSIONS},
    }
    return about | KINDS[row.kind](row, place)


def rounded(figures: Mapping[str, float], names: Sequence[str] = FIGURES) -> dict[str, float]:
    return {name: round(figures[name], DIGITS) for name in names}


def of_result(result: Any, protocol: str) -> dict[str, Any]:
    """Of a `Result`: each figure with its interval over rows, and with whole speakers drawn."""
    from classifiers.training.protocols import about

    found = result.figures()
    recall = found["seeds"][0]["recall"]
    return {
        "protocol": about(protocol),
        "num_tested": found["num_tested"],
        "classes": found["classes"],
        "speaker_dependent": found["speaker_dependent"],
        "figures": {
            name: {"value": value}
            | {kind: [round(bound, DIGITS) for bound in found[kind][name]] for kind in INTERVALS}
            for name, value in rounded(found["mean"]).items()
        },
        "recall": rounded(recall, list(recall)),
        "selected": [each | rounded(each, ["weight"]) for each in result.selected()],
    }


def trained(row: Figure, place: Path) -> dict[str, Any]:
    from classifiers.results.result import Result

    carry_out(commands(row)[-1], place)
    result = Result.load(place / "models" / row.name)
    return of_result(result, result.config["protocol"])


def crossed(row: Figure, place: Path) -> dict[str, Any]:
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
                "figures": rounded(cell["figures"]),
                "interval": [round(bound, DIGITS) for bound in cell["interval"]],  # of UA
                "selected": cell["selected"],
            }
            for cell in found["cells"]
        ],
    }


def neighbours(row: Figure, place: Path) -> dict[str, Any]:
    found = json.loads(carry_out(commands(row)[-1], place))
    return {
        "protocol": f"leave one {found['leave_out']} out",
        "num_tested": found["queries"],
        "classes": sorted(found["emotions"]),
        "k": found["k"],
        "layers": [
            {
                "layer": each["layer"],
                "figures": rounded(
                    {**each, "UA": each["ua"], "WA": each["wa"]}, (*FIGURES, "precision_at_k")
                ),
            }
            for each in found["layers"]
        ],
    }


def reference(row: Figure, place: Path) -> dict[str, Any]:
    """Features of another package; the folds are those of the run.

    Only labels, speakers and ids are taken from it.
    """
    path = place / "runs" / f"{row.corpora[0]}-{EGEMAPS}.npz"
    if not path.exists():
        raise CannotRunError(f"make runs/{path.name} with `{commands(row)[-2]}`")
    result, smile = reference_figures(path, place / "runs" / row.runs[0], row.arguments)
    return of_result(result, row.arguments) | {"experiment": EXPERIMENT, "opensmile": smile}


KINDS = {TRAIN: trained, MATRIX: crossed, NEIGHBOURS: neighbours, REFERENCE: reference}


# --- The outside reference ----------------------------------------------------------------------


def reference_figures(path: Path, run: Path, protocol: str) -> tuple[Any, str]:
    """Test features of an .npz (``id``, ``x``, ``opensmile``) as ``protocol`` says, in plain scikit-learn.

    What hser-train does by `classifiers.training.experiment` is written out here a second time: the loop over
    folds, the selection of C inside their training rows, the scores. Given hser's own embeddings it must
    therefore find what hser-train finds, which the tests hold it to.
    ``run`` gives ids, labels and speakers. Returns a `Result` and openSMILE's version. Raises ValueError
    where the run has recordings that the file has not.
    """
    from sklearn.metrics import recall_score

    from classifiers.models.table import row as classifier
    from classifiers.results.metrics import Predictions
    from classifiers.results.result import FoldInfo, Result
    from classifiers.training.config import Experiment
    from classifiers.training.experiment import open_features
    from classifiers.training.protocols import fit_groups, inner_splits, make_folds

    with np.load(path, allow_pickle=False) as file:
        row_of = {name: i for i, name in enumerate(file["id"].tolist())}
        all_x, smile = file["x"], str(file["opensmile"])
    experiment = Experiment((str(run),), CLASSIFIER, protocol=protocol, grid="default")
    features = open_features(experiment)
    missing = [name for name in features.ids if name not in row_of]
    if missing:
        raise ValueError(f"{path}: {len(missing)} recordings of {run} are not in it, such as {missing[0]}")
    x, y = all_x[[row_of[name] for name in features.ids]], features.y
    groups = fit_groups(features, protocol)
    folds, notes = make_folds(features, protocol, seed=SEED)
    proba = np.empty((len(y), len(features.classes)), np.float32)
    fold_of = np.empty(len(y), np.int64)
    infos = []

    def fitted(rows: np.ndarray, c: float) -> Any:
        """The table's classifier, which standardises. Every class must be among ``rows``."""
        return classifier(CLASSIFIER).make({"C": c}, SEED).fit(x[rows], y[rows], groups=groups[rows])

    def inner_ua(splits: Sequence[tuple[np.ndarray, np.ndarray]], c: float) -> float:
        """Over the validation rows of all splits."""
        truth = np.concatenate([y[validation] for _, validation in splits])
        guess = [fitted(train, c).predict(x[validation]) for train, validation in splits]
        return float(recall_score(truth, np.concatenate(guess), average="macro"))

    for k, fold in enumerate(folds):
        splits = inner_splits(features, fold, protocol, INNER_FOLDS, SEED)
        # Of equals the first.
        c = max(map(float, experiment.grid_values["C"]), key=partial(inner_ua, splits))
        proba[fold.test] = fitted(fold.train, c).predict_proba(x[fold.test])
        fold_of[fold.test] = k
        infos.append(FoldInfo(fold.name, len(fold.train), len(fold.test), params={"C": c}))
    rows = np.sort(np.concatenate([fold.test for fold in folds]))
    result = Result(
        config=experiment.to_dict() | {"features": [path.stem]},
        classes=features.classes,
        ids=features.ids,
        seeds=[SEED],
        predictions=[Predictions(rows, fold_of[rows], y[rows], proba[rows])],
        folds=[infos],
        notes=notes,
        speakers=features.column("speaker"),
    )
    return result, smile


# --- The result file ----------------------------------------------------------------------------


def write(path: Path, new: Sequence[Mapping[str, Any]]) -> None:
    """Rows of the file with the new ones in their place, in the order of `ROWS`."""
    rows = rows_by(lambda row: row["name"], path, new)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"rows": [rows[name] for name in ROWS if name in rows]}, indent=1)
    path.write_text(f"{text}\n", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """0; CANNOT_RUN when something that every row needs is not here."""
    args = arguments(
        __doc__,
        argv,
        data=(SHARED_DATA, "folder with emodb/ and ravdess/"),
        whisper=(Path, "whisper-tiny.en in the hub's layout"),
        only={"nargs": "+", "metavar": "NAME", "choices": list(ROWS), "default": list(ROWS)},
        runs=Path("runs"),
        out=RESULTS / "accuracy.json",
    )
    measured = []
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        args.runs.mkdir(parents=True, exist_ok=True)
        # Links under the names that the commands have
        links = {"runs": args.runs, **{corpus: args.data / corpus for corpus in PROTOCOLS}}
        if args.whisper is not None:
            links["whisper-tiny-en"] = args.whisper
        for name, target in links.items():
            (place / name).symlink_to(target.resolve(), target_is_directory=True)
        for name in args.only:
            try:
                measured.append(measure(ROWS[name], place))
            except CannotRunError as error:
                print(f"{name}: skipped, {error}", flush=True)
                continue
            print(f"{name}\n{table_of(measured[-1]).text()}")
            write(args.out, measured[-1:])  # now: all rows take long
    if not measured:
        return CANNOT_RUN
    print(f"written to {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
