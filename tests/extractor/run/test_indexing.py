"""Indexes that are built while a run extracts: level with the store however it went."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from run_cases import stopped

from extractor import SettingsError, Store, extract
from extractor.index import Index, build
from extractor.run.engine import run
from extractor.run.options import Options
from extractor.store.writer import RunWriter


@pytest.fixture(scope="session")
def noises(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fourteen recordings of noise, each of its own colour."""
    folder = tmp_path_factory.mktemp("noises")
    rng = np.random.default_rng(0)
    for i in range(14):
        audio = np.convolve(rng.standard_normal(int(rng.integers(5_000, 20_000))), np.ones(i + 1) / (i + 1))
        soundfile.write(folder / f"n{i:02}.wav", 0.1 * audio, 16_000)
    return folder


def options(**changes: Any) -> Options:
    base: dict[str, Any] = {"pooling": "mean,std", "index": "mean:0,std:-1", "batch_seconds": 2.0}
    return Options("mfcc", **(base | changes))


def agrees(out: Path) -> None:
    """Both indexes hold every row of the store, and find what an index built from it finds."""
    store = Store(out)
    for pooling in ("mean", "std"):
        index = Index.open(out, 0, pooling)
        assert index.positions.tolist() == store.positions.tolist()
        queries = store.load(layer=0, pooling=pooling)
        fed = index.search(queries, 5)
        assert fed[1][:, 0].tolist() == store.positions.tolist()  # each is nearest to itself
        at_once = build(out, 0, pooling).search(queries, 5)
        assert np.array_equal(fed[1], at_once[1]) and np.array_equal(fed[0], at_once[0])


@pytest.mark.parametrize("storage_dtype", ["fp32", "fp16"])
def test_an_index_that_was_fed_is_the_one_built_from_the_store(
    storage_dtype: str, noises: Path, tmp_path: Path
) -> None:
    run(noises, options(storage_dtype=storage_dtype), tmp_path / "run")
    agrees(tmp_path / "run")


def test_a_run_that_was_stopped_ends_with_the_whole_index(noises: Path, tmp_path: Path) -> None:
    assert run(noises, options(), tmp_path / "run", stop=stopped()).stopped
    run(noises, options(), tmp_path / "run")
    agrees(tmp_path / "run")


def test_a_run_that_died_between_commits_ends_with_the_whole_index(
    noises: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit, count = RunWriter.commit, iter(range(100))

    def die(self: RunWriter, result: Any) -> Any:
        if next(count) == 3:
            raise KeyboardInterrupt
        return commit(self, result)

    monkeypatch.setattr(RunWriter, "commit", die)
    with pytest.raises(KeyboardInterrupt):
        run(noises, options(), tmp_path / "run")
    monkeypatch.undo()
    assert 0 < len(Store(tmp_path / "run")) < 14
    run(noises, options(), tmp_path / "run")
    agrees(tmp_path / "run")


def test_an_index_can_be_asked_for_when_all_is_extracted(noises: Path, tmp_path: Path) -> None:
    run(noises, options(index=()), tmp_path / "run")
    assert run(noises, options(), tmp_path / "run").embedded == 0
    agrees(tmp_path / "run")


def test_a_run_that_grows_takes_its_index_along(noises: Path, tmp_path: Path) -> None:
    few = sorted(noises.iterdir())[:5]
    run(few, options(), tmp_path / "run")
    run([noises], options(), tmp_path / "run")
    assert len(Store(tmp_path / "run")) == 14
    agrees(tmp_path / "run")


def test_rows_that_the_store_refuses_are_in_no_index(
    noises: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As half precision would refuse a row with a value beyond it."""
    from extractor.store import writer
    from extractor.types import BatchResult, Failure

    def refuse(result: BatchResult, *_: Any) -> tuple[BatchResult, list[Failure]]:
        keep = [i for i, row in enumerate(result.rows) if row.utterance.id != "n03"]
        refused = [Failure("n03", "n03.wav", "store", "beyond fp16")] * (len(result.rows) - len(keep))
        pooled = {name: values[keep] for name, values in result.pooled.items()}
        rows = [result.rows[i] for i in keep]
        return BatchResult(result.batch, rows, pooled, (), [*result.failures, *refused]), refused

    monkeypatch.setattr(writer, "refuse_overflow", refuse)
    summary = run(noises, options(), tmp_path / "run")
    assert [failure.id for failure in summary.failures] == ["n03"]
    assert len(Index.open(tmp_path / "run", 0, "mean")) == 13
    agrees(tmp_path / "run")


@pytest.mark.parametrize(
    ("index", "says"),
    [
        ("mean", "mean:12"),
        ("maen:0", "unknown pooling 'maen'; known: mean"),
        ("mean:7", "--layers 7"),
        ("mean:0:flatt", "unknown kind 'flatt'; known: flat"),
        ("mean:0,mean:-1", "once"),
        ("none:0", "pooling"),
    ],
)
def test_an_index_that_cannot_be_is_refused_before_anything_runs(
    index: str, says: str, noises: Path, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match=says):
        extract(noises, model="mfcc", out=tmp_path / "run", index=index)
    assert not (tmp_path / "run" / "parts").exists()
