"""The README's tables and its chart come from the result files."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from conftest import ROOT

from benchmarks import readme

TOY_SPEEDS = {
    "machine": "toy-2-cores",
    "rows": [
        {
            "model": "hubert-large",
            "dtype": "bf16",
            "mfu": 0.8,
            "speeds": {"loop": [2.0, 3.0, 4.0], "best": [15.0], "hser": [1500.0]},
            "ratios": {"hser/loop": 500.0, "hser/best": 100.0},
        }
    ],
}


def test_readme_tables_come_from_result_files(tmp_path: Path) -> None:
    page, results = tmp_path / "README.md", tmp_path / "results"
    results.mkdir()
    (results / "encoder-toy.json").write_text(json.dumps(TOY_SPEEDS))
    page.write_text("# Toy\n<!-- speed -->\nold\n<!-- /speed -->\nkept\n<!-- decode --><!-- /decode -->\n")
    arguments = [str(page), "--results", str(results)]
    assert readme.main([*arguments, "--check"]) == 1
    assert "old" in page.read_text()  # --check writes nothing
    assert readme.main(arguments) == 0
    text = page.read_text()
    assert "3.0 (2.0-4.0)" in text and "1,500" in text and "**100.00x**" in text and "toy-2-cores" in text
    assert "kept" in text and "old" not in text and "Not measured yet" in text
    assert (tmp_path / readme.CHART).read_text().count("<rect") == 3  # no int8
    assert readme.main([*arguments, "--check"]) == 0
    page.write_text(text.replace("1,500", "9,999"))
    assert readme.main([*arguments, "--check"]) == 1


def test_readme_marker_without_its_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="<!-- /write -->"):
        readme.fill("<!-- write -->\n", tmp_path)


def test_readme_shows_the_result_files() -> None:
    """Fails after a benchmark: `python -m benchmarks.readme README.md` makes the tables anew."""
    assert readme.main([str(ROOT / "README.md"), "--check"]) == 0
    assert ElementTree.fromstring((ROOT / readme.CHART).read_text()).tag.endswith("svg")
