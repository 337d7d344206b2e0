"""What hser 0.1.0 wrote before its modules moved into folders opens, goes on and predicts as it did.

`fixtures/before_the_house` was made by that version; nothing here names a module inside the packages.
"""

from __future__ import annotations

import importlib
import json
import re
import shlex
import shutil
import tomllib
from pathlib import Path

import click
import numpy as np
import pytest
import sklearn
import soundfile
import yaml
from click.testing import CliRunner

from classifiers import lookup
from extractor import Store

ROOT = Path(__file__).parents[1]
MADE = Path(__file__).parent / "fixtures" / "before_the_house"
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
EXPECTED = json.loads((MADE / "expected.json").read_text())
MODELS = sorted(folder.name for folder in (MADE / "models").iterdir())
NUM_RECORDINGS = 12
EMOTIONS = {"04": "sadness", "05": "anger"}  # in the recordings' names

EXTRACT = (
    "hser-extract recordings --model checkpoint --layers all --pooling mean,std --dtype fp32"
    " --index mean:-1 --out store"
)
# Another CPU's matrix products add in another order: embeddings move by 1e-6 or so, standardising divides
# them by deviations below one, and a calibrated SVM's sigmoid is steep. On one machine it is 0.
PROBABILITY = 1e-4


def hser(line: str) -> str:
    """Run an installed command; what it printed to stdout.

    The click command is the one that its entry point runs, without the entry point's signal handlers.
    """
    name, *arguments = shlex.split(line)
    module, _, function = SCRIPTS[name].partition(":")
    (command,) = getattr(importlib.import_module(module), function).args  # of a partial
    assert isinstance(command, click.Command)
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """All of it elsewhere than it was made, as the folder that commands run in."""
    folder = tmp_path / "elsewhere"
    shutil.copytree(MADE, folder)
    for recording in (folder / "recordings").iterdir():
        recording.touch()  # as in a fresh checkout, so that size and time do not tell it
    monkeypatch.chdir(folder)
    return folder


def skip_where_refused(name: str) -> None:
    """hser itself refuses a skops file of another minor version of scikit-learn."""
    about = json.loads((MADE / "models" / name / "model.json").read_text())
    made_with, here = (
        text.split(".")[:2] for text in (about["versions"]["scikit-learn"], sklearn.__version__)
    )
    if about["files"][0]["kind"] == "skops" and made_with != here:
        pytest.skip(f"made with scikit-learn {'.'.join(made_with)}, this is {'.'.join(here)}")


def parts_of(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((store / "parts").iterdir())}


def test_a_store_opens(house: Path) -> None:
    with Store(house / "store") as store:
        assert len(store) == NUM_RECORDINGS and not len(store.errors)
        assert set(store.labels("emotion")) == {"anger", "sadness"}
        assert set(store.labels("speaker")) == {"01", "02", "03"}
        row = store.load(layer=2, pooling="mean")[0]
        assert store.load(layer=0, pooling="std").shape == (NUM_RECORDINGS, 16)
    np.testing.assert_array_equal(row, np.float32(EXPECTED["first_row"]))
    hser("hser-store verify store")


def test_the_same_command_encodes_nothing_again(house: Path) -> None:
    """Though all its recordings lie elsewhere now: they are told by their audio."""
    before = parts_of(house / "store")
    hser(EXTRACT)
    assert parts_of(house / "store") == before
    with Store(house / "store") as store:
        assert len(store) == NUM_RECORDINGS
        assert {Path(path).parent for path in store.paths} == {house / "recordings"}


def test_the_same_command_goes_on(house: Path) -> None:
    """A new recording is encoded and found, beside the old rows."""
    before = parts_of(house / "store")
    wave = 0.2 * np.sin(2 * np.pi * 500 * np.arange(4_800) / 16_000)
    soundfile.write(house / "recordings" / "03-01-05-01-02-01-01.wav", wave, 16_000)
    hser(EXTRACT)
    after = parts_of(house / "store")
    assert before.items() < after.items()
    with Store(house / "store") as store:
        assert len(store) == NUM_RECORDINGS + 1
    assert (
        len(lookup.open(house / "store").search(row="03-01-05-01-02-01-01", k=99).neighbours)
        == NUM_RECORDINGS
    )


def test_its_index_opens(house: Path) -> None:
    """A recording's nearest is itself. Of several layers and poolings none is named: the index is the one."""
    found = lookup.open(house / "store", model="checkpoint")
    assert (found.layer, found.pooling, found.index.kind, found.notes) == (2, "mean", "flat", ())
    for path in sorted((house / "recordings").iterdir()):
        nearest = found.search(path, k=3).neighbours[0]
        assert nearest.id == path.stem and nearest.similarity > 1 - 1e-6  # cosine of what is equal, in fp32


def test_the_lookup_command_reads_it(house: Path) -> None:
    line = hser("hser-lookup store recordings/03-01-04-01-01-01-01.wav --model checkpoint --json")
    assert json.loads(line)["neighbours"][0]["id"] == "03-01-04-01-01-01-01"


@pytest.mark.parametrize("name", MODELS)
def test_a_model_predicts_as_it_did(house: Path, name: str) -> None:
    skip_where_refused(name)
    encoders = "--model checkpoint " * (2 if name == "fused" else 1)
    lines = hser(f"hser-predict models/{name} recordings --json {encoders}").splitlines()
    made = {each["id"]: each["probabilities"] for each in map(json.loads, lines)}
    expected = EXPECTED["predicted"][name]
    assert made.keys() == expected.keys()
    for recording, probabilities in expected.items():
        assert made[recording] == pytest.approx(probabilities, abs=PROBABILITY)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_evaluated(house: Path, name: str) -> None:
    """On the rows that it was trained on: as many are right as of what it predicted of their recordings."""
    skip_where_refused(name)
    runs = "store,store" if name == "fused" else "store"
    hser(f"hser-evaluate models/{name} {runs} --include-heard --quiet --out evaluated")
    figures = json.loads((house / "evaluated" / "transfer.json").read_text())[0]["figures"]
    right = [
        max(probabilities, key=probabilities.__getitem__) == EMOTIONS[recording.split("-")[2]]
        for recording, probabilities in EXPECTED["predicted"][name].items()
    ]
    assert figures["WA"] == pytest.approx(np.mean(right))


@pytest.mark.parametrize("name", MODELS)
def test_a_config_says_its_experiment(house: Path, name: str) -> None:
    """``config.yaml`` is the experiment to the last value: given to the command, it comes out as it is."""
    path = house / "models" / name / "config.yaml"
    kept = yaml.safe_load(path.read_text())
    printed = yaml.safe_load(hser(f"hser-train --config {path} --print-config"))
    assert printed == {key: value for key, value in kept.items() if key in printed}
    assert kept.keys() - printed.keys() == {"used", "selected"}


def test_models_and_a_layer_study_are_reported(house: Path) -> None:
    folders = " ".join(f"models/{name}" for name in MODELS)
    hser(f"hser-report {folders} study --out report")
    page = (house / "report" / "index.html").read_text()
    assert all(name in page for name in (*MODELS, "study"))


def test_a_matrix_goes_on(house: Path) -> None:
    """None of its cells is worked out again: each would be written as it is finished."""
    cells = house / "matrix" / "cells.json"
    before = cells.stat().st_mtime_ns, cells.read_bytes()
    shutil.copytree("store", "half")
    hser("hser-store drop half --where speaker=03")
    hser("hser-evaluate matrix store half --layer 2 --pooling mean --include-heard --quiet --out matrix")
    assert (cells.stat().st_mtime_ns, cells.read_bytes()) == before


def test_no_machine_is_named() -> None:
    """Absolute paths in it are of the folder that it was made in, which is nobody's."""
    texts = [path.read_text() for kind in ("json", "jsonl", "yaml") for path in MADE.rglob(f"*.{kind}")]
    paths = [path for text in texts for path in re.findall(r"[\"' ](/\w[^\"'\n]*)", text)]
    assert paths and {Path(*Path(path).parts[:3]) for path in paths} == {Path("/tmp/before_the_house")}
