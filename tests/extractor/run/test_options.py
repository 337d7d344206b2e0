"""Every option of hser-extract: it changes rows and is refused on resume, or it changes neither.

An option that is dropped on its way, or that a run does not say of itself, is noticed here; one that
is added has to be given its place.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner, Result
from conftest import MakeCheckpoint

import extractor
from extractor.commands.extract import command
from extractor.errors import InputError, SettingsDiffer, SettingsError
from extractor.store import Store

# What each option is tried beside, what it is changed to, and what a refusal on resume names.
SETTINGS: dict[str, tuple[list[str], list[str], str]] = {
    "model": ([], ["--model", "logmel"], "model"),
    "layers": (["--model", "HUBERT"], ["--layers", "0,2"], "layers"),
    "pooling": ([], ["--pooling", "std"], "pooling"),
    "dtype": (["--model", "HUBERT"], ["--dtype", "bf16"], "dtype"),
    "window": (["--model", "HUBERT"], ["--window", "8.5"], "window_seconds"),
    "channel": ([], ["--channel", "1"], "channel"),
    "resample": ([], ["--resample", "gpu"], "resample"),
    "storage_dtype": ([], ["--storage-dtype", "fp16"], "storage_dtype"),
    "augment": ([], ["--augment", "gain:db=3"], "augmentation"),
    "augment_config": ([], ["--augment-config", "CONFIG"], "augmentation"),
    "copies": (["--augment", "gain:db=-6..6"], ["--copies", "2"], "copies"),
    "seed": (["--augment", "gain:db=-6..6"], ["--seed", "1"], "seed"),
    "clean": (["--augment", "gain:db=-6..6"], ["--no-clean"], "clean"),
}
# Options that change no embedding: with them a run goes on, and a new one has the same rows.
NEITHER: dict[str, list[str]] = {
    "device": ["--device", "cpu"],
    "devices": ["--devices", "cpu"],
    "batch_seconds": ["--batch-seconds", "1"],
    "workers": ["--workers", "1"],
    "shard": ["--shard", "0/1"],
    "retry_failed": ["--retry-failed"],
    "index": ["--index", "mean:0"],
    "corpus": ["--corpus", "files"],  # labels, which are no part of an embedding
    "map": ["--map", "calm=neutral"],  # likewise
    "max_hours": ["--max-hours", "1"],  # decides which recordings are errors, and no row
    "decode_memory": ["--decode-memory", "0.5"],
    "prune": ["--prune"],
    "strict": ["--strict"],
    "quiet": ["--quiet"],
}
ABOUT_THE_COMMAND = {"inputs", "out", "version"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two channels that differ, at another rate; one recording is longer than the short window."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "calm").mkdir()  # a label to rename
    rng = np.random.default_rng(0)
    for name, seconds in (("a", 0.6), ("b", 9.0)):
        audio = 0.1 * rng.standard_normal((round(seconds * 22_050), 2))
        soundfile.write(folder / "calm" / f"{name}.wav", audio, 22_050)
    return folder


class Extract:
    """The command, with tiny models and files in the place of their names."""

    def __init__(self, corpus: Path, model: str, config: Path) -> None:
        self.corpus, self.names = corpus, {"HUBERT": model, "CONFIG": str(config)}
        self.made: dict[tuple[str, ...], Path] = {}

    def __call__(self, out: Path, base: Sequence[str], change: Sequence[str] = ()) -> Result:
        common = ["--model", "mfcc", "--dtype", "fp32"]
        words = [self.names.get(word, word) for word in (*common, *base, *change)]
        return CliRunner().invoke(command, [str(self.corpus), "--out", str(out), *words])

    def run(self, out: Path, base: Sequence[str], change: Sequence[str] = ()) -> Store:
        done = self(out, base, change)
        assert done.exit_code == 0, (done.output, done.exception)
        return Store(out)


@pytest.fixture
def extract(
    corpus: Path, checkpoint: MakeCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Extract:
    monkeypatch.setattr("extractor.commands.extract.stop_on_signals", threading.Event)
    config = tmp_path / "augment.yaml"
    config.write_text("augment: gain:db=4\n")
    model = str(checkpoint("hubert", do_stable_layer_norm=True, feat_extract_norm="layer"))
    return Extract(corpus, model, config)


def embeddings(store: Store) -> dict[str, bytes]:
    pooled = {name: store.load(pooling=name) for name in store.poolings}
    shapes = "".join(f"{name}{values.shape}" for name, values in pooled.items()).encode()
    return {"ids": repr(store.ids).encode(), "shapes": shapes} | {
        name: values.tobytes() for name, values in pooled.items()
    }


def test_every_option_has_its_place() -> None:
    names = {parameter.name for parameter in command.params}
    assert names == {*SETTINGS, *NEITHER, *ABOUT_THE_COMMAND}


@pytest.mark.parametrize("option", SETTINGS)
def test_an_option_of_rows_changes_them_and_is_refused_on_resume(
    option: str, extract: Extract, tmp_path: Path
) -> None:
    base, change, named = SETTINGS[option]
    before = embeddings(extract.run(tmp_path / "before", base))
    after = extract.run(tmp_path / "after", base, change)
    assert embeddings(after) != before
    for out, words, differs in (("before", change, named), ("after", [], named)):
        refused = extract(tmp_path / out, base, words)
        assert isinstance(refused.exception, SettingsDiffer), refused.output
        assert f"{differs}: the run has " in str(refused.exception)
    assert embeddings(Store(tmp_path / "before")) == before


@pytest.mark.parametrize("option", NEITHER)
def test_an_option_of_how_changes_no_row_and_lets_a_run_go_on(
    option: str, extract: Extract, tmp_path: Path
) -> None:
    before = embeddings(extract.run(tmp_path / "before", []))
    assert embeddings(extract.run(tmp_path / "after", [], NEITHER[option])) == before
    assert embeddings(extract.run(tmp_path / "before", [], NEITHER[option])) == before


# What cannot work, and words of the refusal.
REFUSED = {
    "--layers some": "--layers",
    "--pooling median": "unknown pooling",
    "--dtype int4": "unknown dtype",
    "--device tpu": "unknown device",
    "--devices tpu": "--devices",
    "--device cpu --devices cpu,cpu": "exclude each other",
    "--batch-seconds 0": "--batch-seconds",
    "--window 5": "--window",
    "--window 30.001": "--window",
    "--channel -1": "--channel -1: channels count from 0",
    "--resample tpu": "--resample",
    "--storage-dtype bf16": "--storage-dtype",
    "--workers 0": "--workers 0: must be at least 1",
    "--shard 2/2": "--shard",
    "--shard 0/2 --prune": "--prune and --shard",
    "--shard 0/2 --index mean:0": "hser-lookup build",
    "--seed 1": "--seed",
    "--copies 2": "--copies",
    "--copies 0 --augment gain": "copies: 0",
    "--augment stretchh": "unknown augmentation",
    "--augment-config nowhere.yaml": "nowhere.yaml",
    "--augment gain --augment-config nowhere.yaml": "exclude each other",
    "--map calm": "--map",
    "--max-hours 0": "--max-hours 0.0: must be more than 0",
    "--max-hours nan": "must be more than 0",
    "--decode-memory 0": "--decode-memory 0.0: must be more than 0",
}


def test_an_option_that_cannot_work_is_refused_before_anything_is_written(
    extract: Extract, tmp_path: Path
) -> None:
    """Nor is anything read: there is no input."""
    extract.corpus = Path("nowhere/at/all")
    for words, says in REFUSED.items():
        refusal = extract(tmp_path / "run", [], words.split()).exception
        assert isinstance(refusal, SettingsError) and says in str(refusal), (words, refusal)
    for words, says in (([], "nowhere"), (["--corpus", "emodbb"], "unknown corpus")):
        refusal = extract(tmp_path / "run", [], words).exception
        assert isinstance(refusal, InputError) and says in str(refusal), (words, refusal)
    with pytest.raises(SettingsError, match="poling"):
        extractor.extract("nowhere/at/all", poling="mean")
    assert not (tmp_path / "run").exists()
