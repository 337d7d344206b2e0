"""Labels through the command: what is printed, what is stored, and what is no difference of settings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner

from extractor import SettingsError, extract
from extractor.commands.extract import command
from extractor.store import Store

RAW = ("Wut", "Freude", "nan", "Sehnsucht", "calm", "XXX")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    noise = np.random.default_rng(0).standard_normal((len(RAW), 4000)) * 0.1
    for i, samples in enumerate(noise):
        soundfile.write(tmp_path / f"{i}.wav", samples, 16_000)
    rows = [f"{i}.wav,{raw},N/A,none" for i, raw in enumerate(RAW)]
    file = tmp_path / "m.csv"
    file.write_text("\n".join(["path,emotion,speaker,text", *rows]) + "\n")
    return file


def test_map_and_what_could_not_be_mapped_are_said_and_stored(table: Path, tmp_path: Path) -> None:
    words = [str(table), "--model", "mfcc", "--out", str(tmp_path / "run")]
    done = CliRunner().invoke(command, words)
    assert done.exit_code == 0, done.output
    store = Store(tmp_path / "run")
    assert store.labels("emotion") == ["anger", "happiness", "", "sehnsucht", "calm", ""]
    assert store.labels("emotion_raw") == list(RAW)
    assert store.labels("speaker") == [""] * 6
    assert store.labels("text") == ["none"] * 6  # a text is no class
    assert "stay classes of their own: Sehnsucht as sehnsucht (1)" in done.output.replace("\n", " ")
    assert "taken for no emotion: nan (1), XXX (1)" in done.output.replace("\n", " ")
    again = CliRunner().invoke(command, [*words, "--map", "sehnsucht=sadness", "--map", "calm=neutral"])
    assert again.exit_code == 0, again.output  # no setting
    mapped = CliRunner().invoke(
        command, [*words[:-1], str(tmp_path / "other"), "--map", "Sehnsucht=traurig,calm=neutral"]
    )
    assert mapped.exit_code == 0, mapped.output
    assert Store(tmp_path / "other").labels("emotion") == ["anger", "happiness", "", "sadness", "neutral", ""]
    assert Store(tmp_path / "other").labels("emotion_raw") == list(RAW)


def test_map_in_the_library_is_the_same(table: Path, tmp_path: Path) -> None:
    store = extract(table, model="mfcc", out=tmp_path / "run", map={"XXX": "other", "Wut": "fear"})
    assert store.labels("emotion") == ["fear", "happiness", "", "sehnsucht", "calm", "other"]
    with pytest.raises(SettingsError, match="--map: unknown class 'Wt'; known: Wut"):
        extract(table, model="mfcc", out=tmp_path / "two", map="Wt=anger")
    assert not (tmp_path / "two").exists()
