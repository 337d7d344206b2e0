"""The benchmark of accuracy at toy size, its commands, and what the README says of its figures."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from benchmarks import accuracy, accuracy_tables, egemaps, readme
from benchmarks.accuracy_rows import PROTOCOLS, ROWS, commands
from benchmarks.harness import CANNOT_RUN
from benchmarks.stand_ins import write_clips
from extractor.types import SAMPLE_RATE


@pytest.fixture(scope="module")
def toy_emodb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `emodb/`: three speakers, two emotions that differ in level and are often confused."""
    import soundfile

    folder = tmp_path_factory.mktemp("data")
    (folder / "emodb").mkdir()
    rng = np.random.default_rng(0)
    for speaker in ("03", "08", "09"):
        for letter, loudness in (("W", 0.07), ("N", 0.05)):
            for text in ("a01", "a02", "a04", "a05"):
                noise = rng.standard_normal(SAMPLE_RATE // 4) * loudness * rng.uniform(0.7, 1.3)
                soundfile.write(folder / "emodb" / f"{speaker}{text}{letter}a.wav", noise, SAMPLE_RATE)
    return folder


def test_accuracy_in_plain_scikit_learn_is_that_of_hser_train(toy_emodb: Path, tmp_path: Path) -> None:
    """hser's own embeddings in the place of the outside ones: the two ways must find the same."""
    from extractor.store import Store

    out = tmp_path / "accuracy.json"
    options = ["--data", str(toy_emodb), "--runs", str(tmp_path / "runs"), "--out", str(out), "--only"]
    assert accuracy.main([*options, "emodb-egemaps-svm"]) == CANNOT_RUN  # no outside features yet
    assert not out.exists()
    assert accuracy.main([*options, "emodb-mfcc-svm"]) == 0
    store = Store(tmp_path / "runs" / "emodb-mfcc")
    shuffled = np.random.default_rng(0).permutation(len(store))
    np.savez(
        tmp_path / "runs" / "emodb-egemaps.npz",
        id=np.array(store.ids)[shuffled],
        x=store.load(layer=0)[shuffled],
        opensmile="none",
    )
    assert accuracy.main([*options, "emodb-egemaps-svm"]) == 0
    assert accuracy.main([*options, "emodb-whisper-svm"]) == CANNOT_RUN  # no --whisper
    ours, reference = json.loads(out.read_text())["rows"]
    assert (ours["name"], reference["name"]) == ("emodb-mfcc-svm", "emodb-egemaps-svm")
    assert ours["num_tested"] == 24 and ours["classes"] == ["anger", "neutral"]
    assert ours["figures"] == reference["figures"] and ours["recall"] == reference["recall"]
    assert ours["selected"][0]["C"] == reference["selected"][0]["C"]
    assert 0.5 < ours["figures"]["UA"]["value"] < 1  # else equality would say little
    assert str(tmp_path) not in out.read_text()
    assert "leave one speaker out" in readme.section("figures", tmp_path)


def test_accuracy_rows_are_commands_that_exist() -> None:
    from click.testing import CliRunner

    from classifiers.commands.evaluate import hser_evaluate
    from classifiers.commands.lookup import hser_lookup
    from classifiers.commands.train import command as hser_train
    from extractor.commands.extract import command as hser_extract

    programs = {
        "hser-extract": hser_extract,
        "hser-evaluate": hser_evaluate.commands["matrix"],
        "hser-lookup": hser_lookup.commands["evaluate"],
    }
    for row in ROWS.values():
        for text in commands(row):
            program, *arguments = shlex.split(text)
            if program == "hser-train":
                done = CliRunner().invoke(hser_train, [*arguments, "--print-config"])
                assert done.exit_code == 0, (text, done.output, done.exception)
                assert f"protocol: {PROTOCOLS[row.corpora[0]]}" in done.output
            elif program != "python":
                command = programs[program]
                typed = arguments if command is hser_extract else arguments[1:]
                assert command.make_context(program, typed).params
                # `auto` is another dtype on another machine.
                assert command is not hser_extract or "--dtype fp32" in text


def test_accuracy_keeps_what_was_not_asked_for_and_its_order(tmp_path: Path) -> None:
    first, second, third = list(ROWS)[:3]
    out = tmp_path / "accuracy.json"
    accuracy.write(out, [{"name": third, "value": 1}, {"name": "no longer a row"}])
    accuracy.write(out, [{"name": first, "value": 2}])
    accuracy.write(out, [{"name": third, "value": 3}, {"name": second}])
    rows = json.loads(out.read_text())["rows"]
    assert [row["name"] for row in rows] == [first, second, third] and rows[2]["value"] == 3


def test_a_command_that_fails_is_named_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)hser-extract nothing/.*exit code 2.*nothing"):
        accuracy.carry_out("hser-extract nothing/ --model mfcc --out runs/x", tmp_path)


def test_accuracy_tables_say_what_the_embeddings_were_computed_in() -> None:
    """The dtype that a row was measured with; of older rows what their commands asked for."""
    rows = json.loads((ROOT / "benchmarks" / "results" / "accuracy.json").read_text())["rows"]
    told = {row["name"]: accuracy_tables.dtype(row) for row in rows}
    assert told.pop("emodb-egemaps-svm") == told.pop("ravdess-egemaps-svm") == "-"
    assert told["emodb-mfcc-svm"] == "fp32" and set(told.values()) <= {"fp32", accuracy_tables.UNNAMED}
    for row in (row for row in rows if row["name"] in told):
        named = all("--dtype fp32" in text for text in row["commands"] if text.startswith("hser-extract"))
        spectral = "whisper" not in row["features"].lower()
        assert told[row["name"]] == ("fp32" if named or spectral else "auto")
    text = accuracy_tables.accuracy_text({"rows": rows}) + accuracy_tables.neighbours_text({"rows": rows})
    headers = [line for line in text.splitlines() if line.startswith("| ") and "UA %" in line]
    assert len(headers) == 4 and all("| dtype |" in line for line in headers)


def test_rows_of_one_corpus_must_be_tested_alike() -> None:
    row = {"corpora": ["emodb"], "classes": ["a", "b"], "protocol": "loso", "num_tested": 3, "note": ""}
    with pytest.raises(ValueError, match="not tested alike"):
        accuracy_tables.accuracy_text({"rows": [row, {**row, "num_tested": 4}]})


def test_outside_features_are_found_by_id_and_need_their_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    [first, second] = write_clips(tmp_path / "a", (0.1, 0.1))
    assert egemaps.recordings_in(tmp_path) == {"000000": Path(first), "000001": Path(second)}
    write_clips(tmp_path / "b", (0.1,))
    with pytest.raises(ValueError, match="000000: both"):
        egemaps.recordings_in(tmp_path)
    monkeypatch.setattr(egemaps, "find_spec", lambda name: None)
    assert egemaps.main([str(tmp_path), "--out", str(tmp_path / "x.npz")]) == CANNOT_RUN
    assert "needs opensmile" in capsys.readouterr().out
