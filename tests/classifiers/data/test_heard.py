"""What a model has heard in training is told by its audio, and left out of what it is tested on."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_cases import model_of, write_tones

from classifiers.commands.evaluate import hser_evaluate
from classifiers.commands.predict import command as hser_predict
from classifiers.commands.report import command as hser_report
from classifiers.commands.train import result_lines
from classifiers.data.overlap import FILE
from classifiers.results.result import Result
from classifiers.studies.cross_corpus import cross_matrix
from classifiers.studies.transfer import Transfer, save_transfers, transfer, transfer_lines
from classifiers.training.config import Experiment
from classifiers.training.model_folder import MODEL, load_model
from extractor import extract
from extractor.errors import InputError
from extractor.store.pack import pack
from tests.classifier_cases import Corpus, corpus, labelled, num_tested, part, said, write_run

pytestmark = pytest.mark.usefixtures("without_charts")
EMODB, RAVDESS = {"corpus": "emodb"}, {"corpus": "ravdess"}


@pytest.fixture
def rows() -> Corpus:
    """Six speakers, 12 recordings each."""
    return corpus(6, signal=0.9)


@pytest.fixture
def model(tmp_path: Path, rows: Corpus) -> Path:
    """Trained on the first three of them."""
    return model_of(tmp_path / "model", write_run(tmp_path / "trained", part(rows, [0, 1, 2])))


def on_run(model: Path, run: Path, **options: Any) -> Transfer:
    (found,) = transfer(model, [str(run)], **options)
    return found


# By audio


def test_recordings_of_other_names_are_known_by_their_audio(
    rows: Corpus, model: Path, tmp_path: Path
) -> None:
    """Renamed, and beside others, of speakers whose names are other ones."""
    other = labelled(rows, "speaker", [f"x{row['speaker']}" for row in rows.labels])
    run = write_run(tmp_path / "renamed", replace(other, ids=[f"renamed-{k}" for k in range(len(rows.ids))]))
    found = on_run(model, run)
    assert (num_tested(found), found.heard) == (36, 0)
    assert any("36 of 72 recordings were heard in training" in note for note in found.notes)
    new = write_run(tmp_path / "new", part(rows, [3, 4, 5]))
    assert on_run(model, new).figures == found.figures
    kept = on_run(model, run, include_heard=True)
    assert kept.heard and kept.drop is None  # no corpus that it has not heard
    assert (num_tested(kept), kept.heard) == (72, 36)
    assert "36 of them HEARD IN TRAINING" in "\n".join(transfer_lines([kept]))
    assert "HEARD" not in "\n".join(transfer_lines([found]))
    save_transfers([kept], tmp_path / "out")
    assert json.loads((tmp_path / "out" / "transfer.json").read_text())[0]["heard"] == 36


@pytest.mark.parametrize("form", ["the same path", "an absolute path", "a link", "moved", "packed"])
def test_a_run_is_the_same_by_whichever_path(
    form: str, rows: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = write_run(Path("run"), rows)
    model = model_of(Path("model"), run)
    if form == "an absolute path":
        run = run.resolve()
    elif form == "a link":
        (tmp_path / "link").symlink_to(run.resolve())
        run = Path("link")
    elif form == "moved":
        run = run.rename("moved")
    elif form == "packed":
        pack(run, "packed.h5")
        run = Path("packed.h5")
    with pytest.raises(InputError, match=r"72 of 72 recordings were heard .*--include-heard"):
        on_run(model, run)
    assert on_run(model, run, include_heard=True).heard == 72


def test_of_a_fused_model_what_any_source_heard_is_heard(rows: Corpus, tmp_path: Path) -> None:
    some = part(rows, [0, 1, 2])
    a, b = write_run(tmp_path / "a", some), write_run(tmp_path / "b", replace(some, x=-some.x))
    # The first source's audio is another recording's, the second's is not.
    whole = write_run(tmp_path / "whole-a", rows, audio=[f"new-{name}" for name in rows.ids])
    other = write_run(tmp_path / "whole-b", replace(rows, x=-rows.x))
    for fusion in ("concat", "average"):
        model = model_of(tmp_path / fusion, a, b, fusion=fusion)
        assert num_tested(transfer(model, [f"{whole},{other}"])[0]) == 36


def test_a_model_without_checksums_does_not_know(rows: Corpus, model: Path, tmp_path: Path) -> None:
    """As it was written before they were kept."""
    (model / FILE).unlink()
    about = json.loads((model / MODEL).read_text())
    del about["sha256"][FILE]
    (model / MODEL).write_text(json.dumps(about))
    found = on_run(model, tmp_path / "trained")
    assert (found.heard, num_tested(found)) == (None, 36)
    assert any("heard in training is unknown" in note for note in found.notes)


def test_an_experiment_s_file_knows_what_it_trains_on(rows: Corpus, model: Path, tmp_path: Path) -> None:
    assert num_tested(on_run(model / "config.yaml", write_run(tmp_path / "all", rows))) == 36


# Copies


def test_copies_are_heard_as_their_original_is(rows: Corpus, model: Path, tmp_path: Path) -> None:
    """`hser-extract --augment` keeps the original's checksum."""
    every = corpus(6, signal=0.9, copies=1)
    clean = np.array([row["copy"] == "0" for row in every.labels])
    x = np.where(clean[:, None, None], np.repeat(rows.x, 2, axis=0), every.x)
    run = write_run(tmp_path / "copies", replace(every, x=x), settings={"augmentation": "gain"})
    found = on_run(model, run, test_on="copies")
    assert num_tested(found) == found.by_augmentation["gain"]["num_tested"] == 36


def rendered(rows: Corpus) -> Corpus:
    """As `hser-augment --no-clean` writes them: copies alone, with audio of their own."""
    labels = [
        row | {"original": name, "copy": "1", "augmentation": "noise:snr_db=5.0,color=white,key=1"}
        for name, row in zip(rows.ids, rows.labels, strict=True)
    ]
    return Corpus(rows.x + np.float32(0.01), labels, [f"{name}~1" for name in rows.ids])


def test_copies_in_files_of_their_own_are_heard_as_their_original_is(
    rows: Corpus, model: Path, tmp_path: Path
) -> None:
    assert num_tested(on_run(model, write_run(tmp_path / "noisy", rendered(rows)), test_on="copies")) == 36
    with pytest.raises(InputError, match="heard in training"):
        on_run(model, write_run(tmp_path / "old", rendered(part(rows, [0, 1]))), test_on="copies")


def test_originals_are_heard_where_their_copies_were_trained_on(rows: Corpus, tmp_path: Path) -> None:
    run = write_run(tmp_path / "noisy", rendered(part(rows, [0, 1, 2])))
    model = model_of(tmp_path / "of-copies", run, test_on="copies")
    assert num_tested(on_run(model, write_run(tmp_path / "clean", rows))) == 36


def test_the_same_ids_of_another_corpus_are_not_the_same_recordings(rows: Corpus, tmp_path: Path) -> None:
    model = model_of(tmp_path / "m", write_run(tmp_path / "a", part(rows, [0, 1, 2]), environment=EMODB))
    run = write_run(tmp_path / "b", rendered(corpus(3, seed=5)), environment=RAVDESS)
    assert num_tested(on_run(model, run, test_on="copies")) == 36


# Speakers


def test_speakers_of_the_same_corpus_are_left_out(rows: Corpus, tmp_path: Path) -> None:
    """Other recordings of a speaker that was heard."""
    more = corpus(6, signal=0.9, seed=3)
    model = model_of(tmp_path / "m", write_run(tmp_path / "a", part(rows, [0, 1, 2]), environment=EMODB))
    same = write_run(tmp_path / "same", more, environment=EMODB)
    found = on_run(model, same)
    assert num_tested(found) == 36
    assert any("heard in training (36 by their speaker)" in note for note in found.notes)
    kept = on_run(model, same, include_heard=True)
    assert (num_tested(kept), kept.heard) == (72, 36)
    found = on_run(model, write_run(tmp_path / "another", more, environment=RAVDESS))
    assert num_tested(found) == 72
    assert not any("speakers" in note for note in found.notes)
    found = on_run(model, write_run(tmp_path / "unknown", more))
    assert num_tested(found) == 72
    assert any("s0, s1, s2 have the names of speakers heard in training" in note for note in found.notes)


def test_runs_that_share_recordings_are_of_one_corpus(rows: Corpus, model: Path, tmp_path: Path) -> None:
    """Nobody says which: half of what a speaker said was heard, and the rest of it is left out too."""
    mine, more = part(rows, [2, 3]), part(corpus(6, signal=0.9, seed=3), [2, 3])
    labels, ids = [*mine.labels, *more.labels], [*mine.ids, *(f"more-{name}" for name in more.ids)]
    found = on_run(model, write_run(tmp_path / "both", Corpus(np.concatenate([mine.x, more.x]), labels, ids)))
    assert num_tested(found) == 24
    assert any("(12 by their audio, 12 by their speaker)" in note for note in found.notes)


def test_a_corpus_among_several_is_the_same_corpus(rows: Corpus, tmp_path: Path) -> None:
    """Read together, speakers carry their corpus's name."""
    model = model_of(tmp_path / "m", write_run(tmp_path / "a", part(rows, [0, 1, 2]), environment=EMODB))
    more = labelled(corpus(6, seed=3), "speaker", [f"emodb-{row['speaker']}" for row in rows.labels])
    run = write_run(tmp_path / "b", more, environment={"corpus": "emodb+ravdess"})
    assert num_tested(on_run(model, run)) == 36


def test_a_run_says_of_which_corpus_it_is(tmp_path: Path) -> None:
    write_tones(tmp_path)
    files = [tmp_path / f"{name}.wav" for name in ("03-01-05-01-01-01-01", "03-01-04-01-01-01-02")]
    for file in files:
        shutil.copy(tmp_path / "s0-anger-0.wav", file)
    assert extract(files, model="mfcc", out=tmp_path / "run").environment["corpus"] == "ravdess"


# The matrix of corpora


def test_the_matrix_leaves_out_what_both_corpora_have(rows: Corpus, tmp_path: Path) -> None:
    a, b, c = (
        str(write_run(tmp_path / name, part(rows, speakers)))
        for name, speakers in (("a", [0, 1, 2]), ("b", [2, 3, 4]), ("c", [0, 1, 2]))
    )
    matrix = cross_matrix([a, b], Experiment((a,)))
    for cell in matrix.cells:
        assert sum(cell.figures["support"].values()) == (36 if cell.within else 24)
    assert any("12 of 36 recordings are trained on" in note for note in matrix.notes)
    kept = cross_matrix([a, b], Experiment((a,)), include_heard=True)
    assert all(kept.drop(cell) is None for cell in kept.cells if cell.heard)
    assert [cell.heard for cell in kept.cells if not cell.within] == [12, 12]
    with pytest.raises(InputError, match="--include-heard"):
        cross_matrix([a, c], Experiment((a,)))


# What is speaker-dependent is called so


def test_a_speaker_dependent_model_is_called_so_with_every_figure(rows: Corpus, tmp_path: Path) -> None:
    wavs, out = tmp_path / "wavs", tmp_path / "o"
    wavs.mkdir()
    run = tmp_path / "run"
    extract(write_tones(wavs), model="mfcc", pooling="meanstd", out=run)
    for protocol, dependent in (("stratified-kfold", True), ("grouped-kfold", False)):
        model = model_of(tmp_path / protocol, run, protocol=protocol, folds=2)
        found = Result.load(model)
        assert found.speaker_dependent is dependent
        assert any("speaker-dependent" in note for note in found.notes) is dependent
        assert ("SPEAKER-DEPENDENT" in "\n".join(result_lines(found))) is dependent
        output = said(hser_predict, model, wavs / "s0-anger-0.wav", "--json")
        (line,) = [line for line in output.splitlines() if line.startswith("{")]
        assert json.loads(line)["speaker_dependent"] is dependent
        assert ("SPEAKER-DEPENDENT" in output) is dependent
        output = said(hser_evaluate, model, run, "--include-heard", "--out", out)
        assert ("SPEAKER-DEPENDENT" in output) is dependent
        assert json.loads((out / "transfer.json").read_text())[0]["speaker_dependent"] is dependent
        said(hser_report, model, "--out", tmp_path / "r")
        assert ("speaker-dependent" in (tmp_path / "r" / "index.html").read_text()) is dependent
    runs = [write_run(tmp_path / name, corpus(3, seed=seed)) for seed, name in enumerate(("other", "o2"))]
    matrix = said(hser_evaluate, "matrix", *runs, "--protocol", "stratified-kfold", "-q")
    assert "other -> other: SPEAKER-DEPENDENT" in matrix


def test_a_folder_without_its_figures_does_not_know(model: Path) -> None:
    assert load_model(model).speaker_dependent is False
    assert Result.load(model).speaker_dependent is False
    (model / "metrics.json").unlink()
    assert load_model(model).speaker_dependent is None


def test_another_channel_is_another_audio(rows: Corpus, model: Path, tmp_path: Path) -> None:
    """Of a stereo recording: that nothing is found says nothing."""
    run = write_run(tmp_path / "left", corpus(3, seed=5), settings={"channel": 0})
    assert any("cannot be told by their audio" in note for note in on_run(model, run).notes)
