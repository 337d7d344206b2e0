"""``make demo`` from end to end on a small corpus, and the neighbours that it shows."""

from __future__ import annotations

import csv
import json
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoConfig

from classifiers.demo import command as cli_demo
from classifiers.demo.command import DISCLAIMER, choose_queries, command, demo
from classifiers.demo.synthetic import write_corpus
from extractor import Store
from tests.classifier_cases import said

# The whole


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """The demo's folder and what it printed, the first time and the second."""
    out = tmp_path_factory.mktemp("demo")
    texts = []
    for _ in range(2):
        with redirect_stdout(StringIO()) as stdout:
            demo(None, None, out, num_speakers=2, num_sentences=2)
        texts.append(stdout.getvalue())
    return out, texts[0], texts[1]


def test_the_first_run_embeds_with_both_models(shown: tuple[Path, str, str]) -> None:
    out, text, _ = shown
    assert "16 clips of 2 synthetic speakers, written just now" in text
    assert text.count("16 (16 by this command)") == 2
    mfcc, hubert = Store(out / "runs" / "mfcc"), Store(out / "runs" / "small-hubert-random")
    assert mfcc.load(0, "mean").shape == mfcc.load(0, "std").shape == (16, 120)
    assert hubert.layers == list(range(7))
    assert hubert.load(6, "mean").shape == (16, 256)
    assert sorted(set(mfcc.labels("speaker"))) == ["spk00", "spk01"]
    assert not mfcc.errors
    assert not hubert.errors
    assert np.isfinite(hubert.load(pooling="std")).all()


def test_everything_is_called_what_it_is(shown: tuple[Path, str, str]) -> None:
    """And the commands that it runs are shown, with what they print."""
    out, text, _ = shown
    for words in (
        "synthetic speech, not recordings of people",
        "random weights",
        DISCLAIMER,
        f"$ hser-store info {out / 'runs' / 'mfcc'}",
        "label emotion: anger 4, happiness 4, neutral 4, sadness 4",
    ):
        assert words in text
    assert text.count("$ hser-extract ") == 2


def test_neighbours_are_by_the_other_speaker(shown: tuple[Path, str, str]) -> None:
    _, text, _ = shown
    table = text[text.index("$ hser-lookup search") : text.index("$ hser-lookup evaluate")]
    queries = [block.splitlines() for block in table.split("\n", 1)[1].split("\n\n") if "cosine" in block]
    assert len(queries) == 4  # one of each emotion
    for query, _, *neighbours, vote in queries:
        assert query.endswith("(mean:0)") and len(neighbours) == 3
        (speaker,) = {line.split()[3] for line in neighbours}
        assert speaker not in query
        assert vote.startswith("vote: ")
    assert "leave one speaker out of 2, mean, normalisation standard" in text


def test_the_second_run_does_nothing_twice(shown: tuple[Path, str, str]) -> None:
    _, first, second = shown
    assert second.count("nothing was done twice") == 2
    assert second.count("16 (0 by this command)") == 2
    assert ": there already" in second
    sounds_alike = "Which recordings sound alike"
    assert second[second.index(sounds_alike) :] == first[first.index(sounds_alike) :]


def test_the_small_hubert_is_a_config_that_transformers_reads(shown: tuple[Path, str, str]) -> None:
    out, _, _ = shown
    folder = out / "small-hubert"
    assert [file.name for file in folder.iterdir()] == ["config.json"]
    config = AutoConfig.from_pretrained(folder)
    asked = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert (config.model_type, config.hidden_size, config.do_stable_layer_norm) == ("hubert", 256, True)
    assert list(config.conv_dim) == asked["conv_dim"]


# A corpus of one's own


def test_a_folder_without_speakers(tmp_path: Path) -> None:
    write_corpus(tmp_path / "clips", 1, (0, 2))
    (tmp_path / "clips" / "manifest.csv").unlink()
    printed = said(command, "--corpus", tmp_path / "clips", "--out", tmp_path / "out")
    assert "Fewer than two speakers are known" in printed
    assert "leave one id out of 8" in printed
    assert DISCLAIMER not in printed
    assert len(Store(tmp_path / "out" / "runs" / "clips-mfcc")) == 8


def test_without_emotions_no_share_is_given(tmp_path: Path) -> None:
    manifest = write_corpus(tmp_path / "clips", 2, (0, 2))
    rows = list(csv.DictReader(manifest.read_text(encoding="utf-8").splitlines()))
    manifest.write_text(
        "path,speaker\n" + "".join(f"{r['path']},{r['speaker']}\n" for r in rows), encoding="utf-8"
    )
    printed = said(command, "--corpus", manifest, "--model", "logmel", "--out", tmp_path / "out")
    assert "two values of 'emotion' are needed, there is none" in printed
    assert "best UA" not in printed


def test_what_cannot_be_done_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = str(tmp_path / "nope")
    monkeypatch.setattr("sys.argv", ["demo", "--corpus", missing, "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        cli_demo.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: '{missing}' does not exist")


def test_options_that_make_passes_empty_are_not_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[tuple[object, ...]] = []
    monkeypatch.setattr(cli_demo, "demo", lambda *arguments: called.append(arguments))
    said(command, "--corpus", "", "--model", "", "--out", tmp_path)
    assert called == [(None, None, tmp_path)]


# Queries


def test_queries_are_one_an_emotion_by_different_speakers() -> None:
    emotions, speakers = list("xxxxyyyy"), list("aabbaabb")
    queries = choose_queries(emotions, speakers)
    assert [emotions[row] for row in queries] == ["x", "y"]
    assert len({speakers[row] for row in queries}) == 2
    assert choose_queries(["x", "x", "x"], ["", "a", "b"]) == [1]  # its speaker is to be left out


@pytest.mark.parametrize("count", [1, 3, 4, 50])
def test_queries_without_labels_are_a_few_and_different(count: int) -> None:
    queries = choose_queries([""] * count, [""] * count)
    assert len(set(queries)) == len(queries) == min(4, count)
