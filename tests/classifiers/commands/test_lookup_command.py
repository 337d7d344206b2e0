"""``hser-lookup``: what it prints and what it exits with."""

from __future__ import annotations

import csv
import io
import json
import shutil
import signal
import subprocess
import sys
import urllib.request
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import ROOT

from classifiers import lookup
from classifiers.commands.lookup import hser_lookup
from classifiers.lookup.evaluation import evaluate
from extractor import extract
from extractor.index import list_indexes
from tests.classifier_cases import clustered, ran, refused, write_embeddings

hser = partial(ran, hser_lookup)


@pytest.fixture(scope="module")
def tones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six recordings."""
    folder = tmp_path_factory.mktemp("tones")
    noise = np.random.default_rng(0).standard_normal(12_000)
    for i in range(6):
        tone = np.sin(2 * np.pi * 300 * (i + 1) * np.arange(12_000) / 16_000)
        soundfile.write(folder / f"n{i}.wav", 0.2 * tone + 0.02 * noise, 16_000)
    return folder


@pytest.fixture(scope="module")
def run(tones: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tones, embedded; the second one's speaker has a name that a table must survive."""
    manifest = tones / "tones.csv"
    lines = [f"{i},n{i}.wav,{('anger', 'fear')[i % 2]},s{i % 3}" for i in range(6)]
    lines[1] = '1,n1.wav,fear,"two\nlines, ü"'
    manifest.write_text("\n".join(["id,path,emotion,speaker", *lines]) + "\n")
    path = tmp_path_factory.mktemp("runs") / "tones"
    extract(manifest, model="mfcc", out=path)
    return path


@pytest.fixture
def given(tmp_path: Path) -> Path:
    vectors, labels = clustered(60, 6, num_layers=2)
    return write_embeddings(tmp_path / "given", vectors, labels)


def test_search_is_what_is_done_when_no_command_is_named(given: Path) -> None:
    asked = ("--row", "r001", "--layer", 0, "--json")
    outputs = {hser(*words).stdout for words in ((given, *asked), ("search", given, *asked), (*asked, given))}
    assert len(outputs) == 1
    assert "Commands:" in hser("--help").output
    assert "--exclude-own-speaker" in hser(given, "--help").output


def test_json_and_csv_say_what_the_library_says(run: Path, tones: Path) -> None:
    queries = [tones / "n0.wav", tones / "n4.wav"]
    opened = lookup.open(run)
    expected = [opened.search(query, k=3, exclude_own_file=True) for query in queries]
    words = (run, *queries, "--k", 3, "--exclude-own-file")
    said = [json.loads(line) for line in hser(*words, "--json").stdout.splitlines()]
    assert said == [json.loads(json.dumps(hits.to_dict())) for hits in expected]
    rows = list(csv.DictReader(io.StringIO(hser(*words, "--csv").stdout)))
    assert [(row["query"], row["id"], row["rank"]) for row in rows] == [
        (hits.query, n.id, str(n.rank)) for hits in expected for n in hits.neighbours
    ]
    assert [row["speaker"] for row in rows] == [n.labels["speaker"] for h in expected for n in h.neighbours]
    assert {row["winner"] for row in rows} == {hits.winner for hits in expected}


def test_a_table_has_a_line_a_neighbour_whatever_the_labels_hold(run: Path) -> None:
    lines = hser(run, "--row", 0, "--k", 9).stdout.splitlines()
    assert lines[0] == "0  (mean:0)"
    assert [line.split()[0] for line in lines[2:7]] == ["1", "2", "3", "4", "5"]
    assert sum("two\\nlines" in line for line in lines) == 1
    assert lines[7] == "  5 of the 9 asked for: no more rows may be neighbours"
    assert lines[8].startswith("vote: ")


def test_the_corpus_of_the_queries_names_is_the_one_that_was_given(
    run: Path, tones: Path, tmp_path: Path
) -> None:
    query = tmp_path / "03a01Fa.wav"  # as EmoDB names what speaker 03 says
    samples, rate = soundfile.read(tones / "n3.wav")
    soundfile.write(query, samples[::-1], rate)  # no recording of the run, whose speaker would be known
    own = (run, query, "--exclude-own-speaker", "--json")
    assert json.loads(hser(*own).stdout)["neighbours"]
    assert "own speaker" in hser(*own, "--corpus", "files", code=1).stderr
    assert "not named as in ravdess" in refused(hser_lookup, *own, "--corpus", "ravdess")
    assert "unknown corpus 'emodbb'" in refused(hser_lookup, *own, "--corpus", "emodbb")


def test_a_recording_that_fails_is_named_and_the_others_go_on(run: Path, tones: Path, tmp_path: Path) -> None:
    shutil.copy(tones / "n2.wav", tmp_path / "good.wav")
    (tmp_path / "bad.wav").write_bytes(b"no audio")
    result = hser(run, tmp_path, "--json", code=1)
    assert [Path(json.loads(line)["query"]).name for line in result.stdout.splitlines()] == ["good.wav"]
    (message,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert "bad.wav: " in message


def test_an_error_is_a_line_and_exit_code_2(given: Path) -> None:
    command = [sys.executable, "-m", "classifiers.commands.lookup", str(given), "--row", "r1", "--layer", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith(f"error: {given}: no row has the id 'r1'")
    assert "Traceback" not in done.stderr


def test_what_cannot_be_done_says_why(given: Path, tmp_path: Path) -> None:
    assert refused(hser_lookup, given, "--row", "r001", "--layer", 0, "--k", 0) == "--k 0: must be at least 1"
    assert "name a QUERY or a --row" in refused(hser_lookup, given, "--layer", 0)
    assert "no such run" in refused(hser_lookup, tmp_path / "nowhere", "a.wav")
    assert "name a --layer" in refused(hser_lookup, given, "a.wav")
    assert "does not exist" in refused(hser_lookup, given, tmp_path / "nowhere.wav", "--layer", 0)
    assert "unknown column" in refused(
        hser_lookup, given, "--row", "r001", "--layer", 0, "--where", "emo == 'anger'"
    )
    assert "name a --layer; there are: [0, 1]" in refused(hser_lookup, "build", given)
    assert "write all, or numbers" in refused(hser_lookup, "evaluate", given, "--layers", "0-1")


def test_an_index_that_was_built_is_the_one_that_is_searched(given: Path) -> None:
    before = hser(given, "--layer", 1, "--row", "r007", "--json")
    assert "no index of mean:1" in before.stderr
    built = hser("build", given, "--layer", 1, "--kind", "flat").stdout
    assert built == f"{given}: flat index of mean:1, 60 rows\n"
    assert list_indexes(given) == [("mean", 1, "flat", 60)]
    after = hser(given, "--row", "r007", "--json")
    assert after.stderr == ""
    old, new = (json.loads(result.stdout)["neighbours"] for result in (before, after))
    assert [neighbour["id"] for neighbour in old] == [neighbour["id"] for neighbour in new]


def test_evaluations_are_printed_as_they_were_measured(given: Path, tmp_path: Path) -> None:
    words = ("evaluate", given, "--k", 5, "--normalisation", "standard")
    expected = evaluate(given, k=5, normalisation="standard")
    told = json.loads(hser(*words, "--json").stdout)
    assert told == json.loads(json.dumps(expected.to_dict()))
    assert told["best_layer"] == expected.best.layer
    rows = list(csv.DictReader(io.StringIO(hser(*words, "--csv", "--layers", "1,0").stdout)))
    assert [(row["layer"], float(row["ua"])) for row in rows] == [
        (str(layer), expected.layers[layer].ua) for layer in (1, 0)
    ]
    table = hser(*words, "--chart", tmp_path / "layers.png").stdout.splitlines()
    assert table[0].endswith("5 nearest neighbours, leave one speaker out of 4, mean, normalisation standard")
    assert f"{expected.layers[1].ua:.1%}" in next(line for line in table if line.startswith("  1"))
    assert any(line.startswith("near-duplicates") for line in table)
    assert (tmp_path / "layers.png").exists()
    assert not any("near-dup" in line for line in hser(*words, "--no-duplicates").stdout.splitlines())


def test_the_command_serves_until_it_is_interrupted(run: Path) -> None:
    pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
    words = [sys.executable, "-m", "classifiers.commands.lookup", "serve", str(run), "--projection", "pca"]
    with subprocess.Popen([*words, "--port", "0"], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().split()[0]
            with urllib.request.urlopen(f"{address}api/run", timeout=30) as answer:
                assert json.load(answer)["num_rows"] == 6
            port = address.rstrip("/").rpartition(":")[2]
            assert "Address already in use; take another --port" in refused(
                hser_lookup, "serve", run, "--port", port
            )
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0
        finally:
            process.kill()
