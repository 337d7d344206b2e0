"""The page from its static parts and what the sections say."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from os import PathLike
from pathlib import Path

from classifiers.report.contents import read_contents
from classifiers.report.sections import body, map_data
from classifiers.training.outputs import refuse_results
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
    return _filled(
        {
            "title": TITLE,
            "style": _static("base.css") + _static("style.css"),
            "body": body(models, studies, command),
            "data": _as_script(map_data(models)),
            "script": _static("map.js"),
        }
    )


def _filled(parts: Mapping[str, str]) -> str:
    """In one pass: what is put in is not searched for places itself."""
    return _PLACE.sub(lambda place: parts[place[1]], _static("page.html"))


def _static(name: str) -> str:
    return files("classifiers.report").joinpath("static", name).read_text("utf-8")


def _as_script(value: object) -> str:
    """JSON that cannot end the element it stands in."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")
