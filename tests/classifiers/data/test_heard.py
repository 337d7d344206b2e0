"""What a model has heard in training is told by its audio, and left out of what it is tested on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from model_cases import model_of, write_tones

from classifiers.commands.evaluate import hser_evaluate
from classifiers.commands.predict import command as hser_predict
from classifiers.commands.report import command as hser_report
from classifiers.data.heard import FILE
from classifiers.results.result import Result
from classifiers.studies.cross_corpus import cross_matrix
from classifiers.studies.transfer import Transferred, save_transfers, transfer, transfer_lines
from classifiers.training.config import Experiment
from classifiers.training.model_folder import MODEL, load_model
from extractor import extract
from extractor.errors import InputError, StoreError
from extractor.store.pack import pack
from tests.classifier_cases import Corpus, corpus, write_run

EMODB, RAVDESS = {"corpus": "emodb"}, {"corpus": "ravdess"}


pytestmark = pytest.mark.usefixtures("without_charts")


def part(rows: Corpus, speakers: Sequence[int]) -> Corpus:
    kept = [i for i, row in enumerate(rows.labels) if int(row["speaker"][1:]) in speakers]
    return Corpus(rows.x[kept], [rows.labels[i] for i in kept], [rows.ids[i] for i in kept])


def num_tested(found: Transferred) -> int:
    return sum(found.figures["support"].values())


@pytest.fixture
def rows() -> Corpus:
    """Six speakers, 12 recordings each."""
    return corpus(6, signal=0.9)


@pytest.fixture
def model(tmp_path: Path, rows: Corpus) -> Path:
    """Trained on the first three of them."""
    run = write_run(tmp_path / "trained", part(rows, [0, 1, 2]))
    return model_of(tmp_path / "model", run)


# By audio


def test_recordings_of_other_names_are_known_by_their_audio(
    rows: Corpus, model: Path, tmp_path: Path
) -> None:
    """Renamed, and beside others, of speakers whose names are other ones."""
    labels = [row | {"speaker": f"x{row['speaker']}"} for row in rows.labels]
    other = replace(rows, ids=[f"renamed-{k}" for k in range(len(rows.ids))], labels=labels)
    run = write_run(tmp_path / "renamed", other)
    (found,) = transfer(model, [str(run)])
    assert num_tested(found) == 36
    assert found.heard == 0
    assert any("36 of 72 recordings were heard in training" in note for note in found.notes)
    new = write_run(tmp_path / "new", part(rows, [3, 4, 5]))
    assert transfer(model, [str(new)])[0].figures == found.figures
    (kept,) = transfer(model, [str(run)], include_heard=True)
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
        transfer(model, [str(run)])
    (kept,) = transfer(model, [str(run)], include_heard=True)
    assert kept.heard == 72


def test_of_a_fused_model_what_any_source_heard_is_heard(rows: Corpus, tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", part(rows, [0, 1, 2]))
    b = write_run(tmp_path / "b", replace(part(rows, [0, 1, 2]), x=-part(rows, [0, 1, 2]).x))
    for fusion in ("concat", "average"):
        model = model_of(tmp_path / fusion, a, b, fusion=fusion)
        # The first source's audio is another recording's, the second's is not.
        whole = write_run(tmp_path / f"{fusion}-a", rows, audio=[f"new-{name}" for name in rows.ids])
        other = write_run(tmp_path / f"{fusion}-b", replace(rows, x=-rows.x))
        (found,) = transfer(model, [f"{whole},{other}"])
        assert num_tested(found) == 36


def test_a_model_without_checksums_does_not_know(rows: Corpus, model: Path, tmp_path: Path) -> None:
    """As it was written before they were kept."""
    (model / FILE).unlink()
    about = json.loads((model / MODEL).read_text())
    del about["sha256"][FILE]
    (model / MODEL).write_text(json.dumps(about))
    (found,) = transfer(model, [str(tmp_path / "trained")])
    assert (found.heard, num_tested(found)) == (None, 36)
    assert any("heard in training is unknown" in note for note in found.notes)


def test_what_was_heard_cannot_be_taken_out_of_a_folder(model: Path) -> None:
    (model / FILE).write_bytes(b"nothing")
    with pytest.raises(StoreError, match="was changed"):
        load_model(model)
    (model / FILE).unlink()
    with pytest.raises(StoreError, match="is missing"):
        load_model(model)


def test_an_experiment_s_file_knows_what_it_trains_on(rows: Corpus, model: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "all", rows)
    (found,) = transfer(model / "config.yaml", [str(run)])
    assert num_tested(found) == 36


# Copies


def test_copies_are_heard_as_their_original_is(rows: Corpus, model: Path, tmp_path: Path) -> None:
    """`hser-extract --augment` keeps the original's checksum."""
    every = corpus(6, signal=0.9, copies=1)
    clean = [row["copy"] == "0" for row in every.labels]
    x = np.where(np.array(clean)[:, None, None], np.repeat(rows.x, 2, axis=0), every.x)
    run = write_run(tmp_path / "copies", replace(every, x=x), settings={"augmentation": "gain"})
    (found,) = transfer(model, [str(run)], test_on="copies")
    assert num_tested(found) == 36
    assert found.by_augmentation["gain"]["num_tested"] == 36


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
    run = write_run(tmp_path / "noisy", rendered(rows))
    (found,) = transfer(model, [str(run)], test_on="copies")
    assert num_tested(found) == 36
    with pytest.raises(InputError, match="heard in training"):
        transfer(model, [str(write_run(tmp_path / "old", rendered(part(rows, [0, 1]))))], test_on="copies")


def test_originals_are_heard_where_their_copies_were_trained_on(rows: Corpus, tmp_path: Path) -> None:
    run = write_run(tmp_path / "noisy", rendered(part(rows, [0, 1, 2])))
    model = model_of(tmp_path / "of-copies", run, test_on="copies")
    (found,) = transfer(model, [str(write_run(tmp_path / "clean", rows))])
    assert num_tested(found) == 36


def test_the_same_ids_of_another_corpus_are_not_the_same_recordings(rows: Corpus, tmp_path: Path) -> None:
    model = model_of(tmp_path / "m", write_run(tmp_path / "a", part(rows, [0, 1, 2]), environment=EMODB))
    run = write_run(tmp_path / "b", rendered(corpus(3, seed=5)), environment=RAVDESS)
    (found,) = transfer(model, [str(run)], test_on="copies")
    assert num_tested(found) == 36


# Speakers


def test_speakers_of_the_same_corpus_are_left_out(rows: Corpus, tmp_path: Path) -> None:
    """Other recordings of a speaker that was heard."""
    more = corpus(6, signal=0.9, seed=3)
    model = model_of(tmp_path / "m", write_run(tmp_path / "a", part(rows, [0, 1, 2]), environment=EMODB))
    same = write_run(tmp_path / "same", more, environment=EMODB)
    (found,) = transfer(model, [str(same)])
    assert num_tested(found) == 36
    assert any("heard in training (36 by their speaker)" in note for note in found.notes)
    (kept,) = transfer(model, [str(same)], include_heard=True)
    assert (num_tested(kept), kept.heard) == (72, 36)
    another = write_run(tmp_path / "another", more, environment=RAVDESS)
    (found,) = transfer(model, [str(another)])
    assert num_tested(found) == 72
    assert not any("speakers" in note for note in found.notes)
    unknown = write_run(tmp_path / "unknown", more)
    (found,) = transfer(model, [str(unknown)])
    assert num_tested(found) == 72
    assert any("s0, s1, s2 have the names of speakers heard in training" in note for note in found.notes)


def test_runs_that_share_recordings_are_of_one_corpus(rows: Corpus, model: Path, tmp_path: Path) -> None:
    """Nobody says which: half of what a speaker said was heard, and the rest of it is left out too."""
    mine, more = part(rows, [2, 3]), part(corpus(6, signal=0.9, seed=3), [2, 3])
    labels, ids = [*mine.labels, *more.labels], [*mine.ids, *(f"more-{name}" for name in more.ids)]
    both = Corpus(np.concatenate([mine.x, more.x]), labels, ids)
    (found,) = transfer(model, [str(write_run(tmp_path / "both", both))])
    assert num_tested(found) == 24
    assert any("(12 by their audio, 12 by their speaker)" in note for note in found.notes)


def test_a_corpus_among_several_is_the_same_corpus(rows: Corpus, tmp_path: Path) -> None:
    """Read together, speakers carry their corpus's name."""
    labels = [row | {"speaker": f"emodb-{row['speaker']}"} for row in rows.labels]
    several = write_run(tmp_path / "a", part(replace(rows, labels=rows.labels), [0, 1, 2]), environment=EMODB)
    model = model_of(tmp_path / "m", several)
    more = replace(corpus(6, seed=3), labels=labels)
    run = write_run(tmp_path / "b", more, environment={"corpus": "emodb+ravdess"})
    assert num_tested(transfer(model, [str(run)])[0]) == 36


def test_a_run_says_of_which_corpus_it_is(tmp_path: Path) -> None:
    write_tones(tmp_path)
    for name in ("03-01-05-01-01-01-01", "03-01-04-01-01-01-02"):
        shutil.copy(tmp_path / "s0-anger-0.wav", tmp_path / f"{name}.wav")
    files = [tmp_path / f"{name}.wav" for name in ("03-01-05-01-01-01-01", "03-01-04-01-01-01-02")]
    assert extract(files, model="mfcc", out=tmp_path / "run").environment["corpus"] == "ravdess"


# The matrix of corpora


def test_the_matrix_leaves_out_what_both_corpora_have(rows: Corpus, tmp_path: Path) -> None:
    a = str(write_run(tmp_path / "a", part(rows, [0, 1, 2])))
    b = str(write_run(tmp_path / "b", part(rows, [2, 3, 4])))
    matrix = cross_matrix([a, b], Experiment((a,)))
    for cell in matrix.cells:
        assert sum(cell.figures["support"].values()) == (36 if cell.within else 24)
    assert any("12 of 36 recordings are trained on" in note for note in matrix.notes)
    kept = cross_matrix([a, b], Experiment((a,)), include_heard=True)
    assert all(kept.drop(cell) is None for cell in kept.cells if cell.heard)
    assert [cell.heard for cell in kept.cells if not cell.within] == [12, 12]
    with pytest.raises(InputError, match="--include-heard"):
        cross_matrix([a, str(write_run(tmp_path / "c", part(rows, [0, 1, 2])))], Experiment((a,)))


# What is speaker-dependent is called so


def test_a_speaker_dependent_model_is_called_so_with_every_figure(rows: Corpus, tmp_path: Path) -> None:
    wavs = tmp_path / "wavs"
    wavs.mkdir()
    run = tmp_path / "run"
    extract(write_tones(wavs), model="mfcc", pooling="meanstd", out=run)
    other = write_run(tmp_path / "other", corpus(3))
    for protocol, dependent in (("stratified-kfold", True), ("grouped-kfold", False)):
        model = model_of(tmp_path / protocol, run, protocol=protocol, folds=2)
        done = CliRunner().invoke(hser_predict, [str(model), str(wavs / "s0-anger-0.wav"), "--json"])
        assert done.exit_code == 0, done.output
        (line,) = [line for line in done.output.splitlines() if line.startswith("{")]
        assert json.loads(line)["speaker_dependent"] is dependent
        assert ("SPEAKER-DEPENDENT" in done.output) is dependent
        done = CliRunner().invoke(
            hser_evaluate, [str(model), str(run), "--include-heard", "--out", str(tmp_path / "o")]
        )
        assert done.exit_code == 0, done.output
        assert ("SPEAKER-DEPENDENT" in done.output) is dependent
        assert json.loads((tmp_path / "o" / "transfer.json").read_text())[0]["speaker_dependent"] is dependent
        done = CliRunner().invoke(hser_report, [str(model), "--out", str(tmp_path / "r")])
        assert done.exit_code == 0, done.output
        assert ("speaker-dependent" in (tmp_path / "r" / "index.html").read_text()) is dependent
    done = CliRunner().invoke(
        hser_evaluate,
        [
            "matrix",
            str(other),
            str(write_run(tmp_path / "o2", corpus(3, seed=1))),
            "--protocol",
            "stratified-kfold",
            "-q",
        ],
    )
    assert "other -> other: SPEAKER-DEPENDENT" in done.output


def test_a_folder_without_its_figures_does_not_know(model: Path) -> None:
    assert load_model(model).speaker_dependent is False
    assert Result.load(model).speaker_dependent is False
    (model / "metrics.json").unlink()
    assert load_model(model).speaker_dependent is None


def test_another_channel_is_another_audio(rows: Corpus, model: Path, tmp_path: Path) -> None:
    """Of a stereo recording: that nothing is found says nothing."""
    run = write_run(tmp_path / "left", corpus(3, seed=5), settings={"channel": 0})
    (found,) = transfer(model, [str(run)])
    assert any("cannot be told by their audio" in note for note in found.notes)
