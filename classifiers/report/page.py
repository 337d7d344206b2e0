"""The page from its static parts and what the sections say."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from importlib.resources import files
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from classifiers.charts.style import marks_of
from classifiers.report.contents import ModelContents, read_contents
from classifiers.report.sections import body
from classifiers.training.config import refuse_results
from extractor.errors import SettingsError
from extractor.store.aside import aside, writable

PAGE = "index.html"
TITLE = "Emotion recognition report"
_OURS = f"<title>{TITLE}</title>"
_PLACE = re.compile(r"\{\{(\w+)\}\}")


def write_report(
    folders: Sequence[str | PathLike[str]],
    out: str | PathLike[str],
    command: Sequence[str] = (),
    incomplete: bool = False,
) -> Path:
    """Write ``out/index.html`` about models and layer studies; returns its path.

    ``command``: what was typed, to be shown. ``incomplete``: take models of unfinished runs, too.
    Raises StoreError for a folder that is none of these, SettingsError where ``out`` holds something
    else, StoreUnwritable.
    """
    path = Path(out) / PAGE
    refuse_results(out)
    if path.is_file() and _OURS.encode() not in path.read_bytes():
        raise SettingsError(f"--out {out}: its {PAGE} is no report of hser-report; name another folder")
    page = report_html(folders, command, incomplete)
    with writable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with aside(path) as file:
        file.write(page.encode("utf-8", "replace"))  # a file name may hold bytes that are no text
    return path


def report_html(
    folders: Sequence[str | PathLike[str]], command: Sequence[str] = (), incomplete: bool = False
) -> str:
    """The page. It asks for nothing from anywhere: styles, scripts, charts and data are in it."""
    models, studies = read_contents(folders, incomplete)
    # JSON that cannot end the element it stands in.
    data = json.dumps(map_data(models), separators=(",", ":")).replace("<", "\\u003c")
    parts = {
        "title": TITLE,
        "style": _static("base.css") + _static("style.css"),
        "body": body(models, studies, command),
        "data": data,
        "script": _static("map.js"),
    }
    # In one pass: what is put in is not searched for places itself.
    return _PLACE.sub(lambda place: parts[place[1]], _static("page.html"))


def _static(name: str) -> str:
    return files("classifiers.report").joinpath("static", name).read_text("utf-8")


def map_data(models: Sequence[ModelContents]) -> dict[str, Any]:
    """Points, true and predicted classes of each model's map, by its number."""
    found = {}
    for k, model in enumerate(models):
        picture, result = model.picture, model.result
        if picture is not None:
            first = result.predictions[0]
            at = {result.ids[row]: i for i, row in enumerate(first.rows.tolist())}
            chosen = [at[name] for name in picture.ids]
            found[str(k)] = {
                "classes": list(result.classes),
                "marks": [mark.name for mark in marks_of(result.classes)],
                "ids": picture.ids,
                "true": first.y_true[chosen].tolist(),
                "predicted": first.y_pred[chosen].tolist(),
                "points": [_whole(picture.points2), _whole(picture.points3)],
            }
    return found


def _whole(points: np.ndarray) -> list[list[int]]:
    """Columns within -1000 to 1000 around their middle, one scale for all."""
    middle = (points.max(axis=0) + points.min(axis=0)) / 2
    reach = float(np.abs(points - middle).max()) or 1.0
    return np.rint((points - middle) * (1000 / reach)).astype(int).T.tolist()
