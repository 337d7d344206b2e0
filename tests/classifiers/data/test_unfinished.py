"""A run that is not finished is called so by all that read it, and learned from only on request."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from store_cases import batches, opened, utterance_at

from classifiers import lookup
from classifiers.commands.evaluate import hser_evaluate
from classifiers.commands.lookup import hser_lookup
from classifiers.commands.report import command as hser_report
from classifiers.commands.train import command as hser_train
from classifiers.lookup.evaluation import evaluate
from classifiers.studies.stability import measure_stability
from classifiers.training.config import Experiment
from classifiers.training.experiment import run_experiment
from extractor.commands.store import hser_store
from extractor.errors import StoreError
from extractor.store import Store
from extractor.store.pack import pack
from extractor.store.run_folder import MANIFEST, ManifestRow
from extractor.store.verify import verify
from extractor.types import BatchResult, Failure
from tests.classifier_cases import corpus, invoke, refused, said, without, write_run
from tests.store_cases import write_run as write_batches

pytestmark = pytest.mark.usefixtures("without_charts")
DONE, ALL = 36, 48
train = partial(said, hser_train, "-q", "--projection", "pca")
SAID = f"{ALL - DONE} of {ALL} not done yet; run the same command again"


@pytest.fixture
def unfinished(tmp_path: Path) -> Path:
    """Three speakers of four."""
    return write_run(tmp_path / "unfinished", corpus(4), done=DONE)


# The store


def test_what_has_neither_a_row_nor_a_failure_is_missing(tmp_path: Path) -> None:
    results = batches(4, rows=5, failing=0.3)
    run = tmp_path / "run"
    write_batches(run, results)
    store = Store(run)
    assert store.errors
    assert (store.num_planned, store.num_missing, store.unfinished) == (20, 0, "")
    half = tmp_path / "half"
    with opened(half) as writer:
        writer.write_manifest(_manifest(results))
        writer.commit(results[0])
        assert Store(half).num_missing == 15  # while it is written, too
    assert Store(half).num_missing == 15
    with opened(half) as writer:
        for result in results[1:]:
            writer.commit(result)
    assert Store(half).num_missing == 0


def _manifest(results: Sequence[BatchResult]) -> list[ManifestRow]:
    batch_of = {row.utterance.id: result.batch for result in results for row in result.rows}
    batch_of |= {failure.id: result.batch for result in results for failure in result.failures}
    utterances = map(utterance_at, range(len(batch_of)))
    return [ManifestRow(k, each, 400, batch_of[each.id]) for k, each in enumerate(utterances)]


def test_a_header_that_could_not_be_read_is_a_failure_not_missing(tmp_path: Path) -> None:
    results = batches(1, rows=3, failing=0.0)
    unreadable = utterance_at(3)
    failure = Failure(unreadable.id, unreadable.path, "probe", "not audio")
    with opened(tmp_path / "run") as writer:
        writer.write_manifest([*_manifest(results), ManifestRow(3, unreadable, 0, -1, failure)])
        assert Store(tmp_path / "run").num_missing == 3
        writer.commit(results[0])
    assert Store(tmp_path / "run").num_missing == 0


def test_shards_that_are_not_done_are_missing(tmp_path: Path) -> None:
    results = batches(4, failing=0.0)
    write_batches(tmp_path / "run", results, shard=(0, 2))
    assert Store(tmp_path / "run").num_missing == 6
    write_batches(tmp_path / "run", results, shard=(1, 2))
    assert not Store(tmp_path / "run").unfinished


def test_a_run_without_its_manifest_is_not_whole(unfinished: Path, tmp_path: Path) -> None:
    (unfinished / MANIFEST).unlink()
    store = Store(unfinished)
    assert store.num_missing is None
    assert store.unfinished
    packed = tmp_path / "packed.h5"
    pack(unfinished, packed)
    assert Store(packed).num_missing is None
    with pytest.raises(StoreError, match="--incomplete"):
        run_experiment(Experiment((str(packed),)))


def test_a_packed_file_knows_what_its_run_lacked(unfinished: Path, tmp_path: Path) -> None:
    packed, again = tmp_path / "packed.h5", tmp_path / "again.h5"
    pack(unfinished, packed)
    pack(packed, again)
    for path in (packed, again):
        assert Store(path).num_missing == ALL - DONE
        assert any("12 of 48" in problem for problem in verify(path))
        with pytest.raises(StoreError, match=r"12 of 48 .*--incomplete"):
            run_experiment(Experiment((str(path),)))


def test_info_and_verify_say_it(unfinished: Path, tmp_path: Path) -> None:
    assert f"unfinished: {SAID}" in invoke(hser_store, "info", unfinished)[1]
    code, output = invoke(hser_store, "verify", unfinished)
    assert code == 1
    assert "12 of 48 recordings are not done yet; run the same command again" in output
    whole = write_run(tmp_path / "whole", corpus(4))
    assert "unfinished" not in invoke(hser_store, "info", whole)[1]


# All that learns or reports


def test_no_reader_opens_a_run_but_where_it_is_checked() -> None:
    """A call of `Store(...)` in the package is one in `runs.open_run`."""
    calls = [
        (path.name, node.func.id)
        for path in sorted((ROOT / "classifiers").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    ]
    assert [name for name, called in calls if called == "Store"] == ["runs.py"]


READERS: dict[str, Callable[[Path, Path, Path], tuple[Any, list[object]]]] = {
    "train": lambda run, whole, out: (hser_train, [run, "-q"]),
    "train two": lambda run, whole, out: (hser_train, ["--features", whole, "--features", run, "-q"]),
    "layers": lambda run, whole, out: (hser_train, [run, "--layer", "each", "-q", "--out", out]),
    "matrix": lambda run, whole, out: (hser_evaluate, ["matrix", whole, run, "-q"]),
    "config": lambda run, whole, out: (hser_evaluate, [_config(out, run), whole, "-q"]),
    "lookup": lambda run, whole, out: (hser_lookup, ["evaluate", run]),
}


def _config(out: Path, run: Path) -> Path:
    out.mkdir()
    (out / "experiment.yaml").write_text(f"features: ['{run}']\n")
    return out / "experiment.yaml"


@pytest.mark.parametrize("name", READERS)
def test_readers_refuse_it_and_say_what_is_missing(name: str, unfinished: Path, tmp_path: Path) -> None:
    whole = write_run(tmp_path / "whole", corpus(4, seed=1))
    command, arguments = READERS[name](unfinished, whole, tmp_path / "a")
    message = refused(command, *arguments)
    assert f"{unfinished}: {SAID}, or take what is there with --incomplete" in message
    command, arguments = READERS[name](unfinished, whole, tmp_path / "b")
    assert f": {SAID}" in said(command, *arguments, "--incomplete")


def test_stability_refuses_it(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", corpus(2, copies=1), done=40)
    with pytest.raises(StoreError, match="8 of 48 not done"):
        measure_stability(run)
    assert "INCOMPLETE" in measure_stability(run, incomplete=True).notes[0]
    said(hser_evaluate, "stability", run, "--incomplete")


def test_a_search_only_notes_it(unfinished: Path) -> None:
    opened_run = lookup.open(unfinished)
    assert any(SAID in note for note in opened_run.notes)
    assert opened_run.search(row="s0-anger-0").neighbours
    assert SAID in invoke(hser_lookup, "build", unfinished)[1]


def test_a_model_of_it_is_called_so_wherever_its_figure_is_printed(unfinished: Path, tmp_path: Path) -> None:
    model, other = tmp_path / "model", write_run(tmp_path / "other", corpus(4, seed=1))
    train(unfinished, "--out", model, "--incomplete")
    assert json.loads((model / "metrics.json").read_text())["incomplete"] == [f"{unfinished}: {SAID}"]
    assert "was trained on an unfinished run" in invoke(hser_evaluate, model, other)[1]
    assert "--incomplete" in refused(hser_report, model, "--out", tmp_path / "report")
    said(hser_report, model, "--out", tmp_path / "report", "--incomplete")
    page = (tmp_path / "report" / "index.html").read_text()
    assert SAID in page
    assert ">incomplete<" in page


def test_a_model_is_tested_on_it_only_on_request(unfinished: Path, tmp_path: Path) -> None:
    model, whole = tmp_path / "model", write_run(tmp_path / "whole", corpus(4, seed=1))
    train(whole, "--out", model)
    assert SAID in refused(hser_evaluate, model, unfinished)
    assert f"INCOMPLETE: {SAID}" in said(hser_evaluate, model, unfinished, "--incomplete")


def test_failed_recordings_are_counted(tmp_path: Path) -> None:
    rows = corpus(3)
    lost = without(rows, np.arange(len(rows.ids)) < len(rows.ids) - 1)
    run = write_run(tmp_path / "run", lost, failed=["s9-anger-0"])
    notes = run_experiment(Experiment((str(run),))).notes
    assert any("1 failed recordings have no row" in note for note in notes)
    assert evaluate(run, duplicates_above=None).notes


# What is there already


def test_another_model_s_folder_is_not_overwritten(tmp_path: Path) -> None:
    run, out = write_run(tmp_path / "run", corpus(3, num_layers=2)), tmp_path / "model"
    train(run, "--out", out, "--layer", 0)
    before = (out / "model.json").read_bytes()
    for changed, named in (
        (("--classifier", "lda", "--layer", 0), "classifier: there is logistic, you asked for lda"),
        (("--layer", 1), "layer: there is 0, you asked for 1"),
        (("--layer", 0, "--classes", "anger,sadness"), "classes: there is nothing"),
        (("--layer", 0, "--param", "C=0.5"), "params: "),
    ):
        message = refused(hser_train, run, "--out", out, *changed)
        assert named in message and "--force" in message
    assert (out / "model.json").read_bytes() == before
    elsewhere = write_run(tmp_path / "elsewhere", corpus(3, num_layers=2, seed=1))
    assert "features: there is" in refused(hser_train, elsewhere, "--out", out, "--layer", 0)
    train(run.resolve(), "--out", out, "--layer", 0)  # the same settings train again
    train(run, "--out", out, "--layer", 1, "--force")
    assert "layer: '1'" in (out / "config.yaml").read_text()


def test_a_model_of_before_can_be_trained_again(tmp_path: Path) -> None:
    """Its configuration lacks keys that have come since."""
    run, out = write_run(tmp_path / "run", corpus(3)), tmp_path / "model"
    train(run, "--out", out)
    config = out / "config.yaml"
    config.write_text(re.sub(r"(?m)^(test_on|incomplete).*\n", "", config.read_text()))
    train(run, "--out", out)


def test_studies_and_figures_are_not_written_over_something_else(tmp_path: Path) -> None:
    run, other = write_run(tmp_path / "run", corpus(3)), write_run(tmp_path / "other", corpus(3, seed=1))
    model, study = tmp_path / "model", tmp_path / "study"
    train(run, "--out", model)
    each = ("--layer", "each", "-q", "--out", study)
    for _ in range(2):  # the same settings
        said(hser_train, run, *each)
    message = refused(hser_train, run, *each, "--classifier", "lda")
    assert "classifier: there is logistic, you asked for lda" in message
    said(hser_train, run, *each, "--classifier", "lda", "--force")
    file = tmp_path / "file"
    file.write_text("mine")
    for out, what in ((model, "holds a model"), (run, "holds a run"), (file, "is a file")):
        for command, *arguments in (
            (hser_train, run, "--layer", "each"),
            (hser_evaluate, model, other),
            (hser_evaluate, "matrix", run, other),
            (hser_report, model),
        ):
            assert what in refused(command, *arguments, "--out", out)
    site = tmp_path / "site"
    site.mkdir()
    (site / "index.html").write_text("<title>My site</title>")
    assert "no report of hser-report" in refused(hser_report, model, "--out", site)
    for _ in range(2):
        said(hser_report, model, "--out", tmp_path / "report")
