"""Several corpora at once: each keeps its own speakers and codes, whatever lies beside it."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

import pytest
from conftest import shared, touch
from inputs_cases import by_name

from extractor.inputs.corpora.recognise import recognise
from extractor.inputs.manifest import read_manifest

URDU = ("Angry/SM1_F10_A010.wav", "Happy/SF10_F02_H05.wav", "Neutral/SM5_F72_N0100.wav")
ASED = ("04Sad/s4-04-02-01-29.wav", "05Angry/a5-01-01-02-18.wav", "02Happy/h1-01-01-01-01.wav")
EMODB = ("wav/03a01Fa.wav", "wav/08a01Wa.wav", "wav/16b10Ta.wav")
RAVDESS = ("Actor_03/03-01-05-01-01-01-03.wav", "Actor_04/03-01-02-01-01-01-04.wav")
CREMAD = ("AudioWAV/1001_DFA_ANG_XX.wav", "AudioWAV/1002_TSI_NEU_MD.wav")


@pytest.mark.parametrize("order", [("urdu", "ased"), ("ased", "urdu")])
@pytest.mark.parametrize("how", ["inputs", "folder", "deep"])
def test_a_corpus_of_folders_costs_the_corpus_beside_it_nothing(
    tmp_path: Path, order: tuple[str, str], how: str
) -> None:
    data = tmp_path / "data"
    touch(data / "urdu", *URDU)
    touch(data / "ased", *ASED)
    inputs = {"inputs": [data / name for name in order], "folder": [data], "deep": [tmp_path]}[how]
    manifest = read_manifest(inputs)
    assert sorted(manifest.corpus.split("+")) == ["folders", "urdu"]
    rows = by_name(manifest)
    own = {"emotion": "anger", "emotion_raw": "A", "speaker": "urdu-SM1", "gender": "male"}
    assert rows["SM1_F10_A010.wav"].items() >= own.items()
    own = {"emotion": "anger", "emotion_raw": "05Angry", "speaker": ""}
    assert rows["a5-01-01-02-18.wav"].items() >= own.items()


def test_a_folder_of_corpora_is_taken_as_several(tmp_path: Path) -> None:
    folders = {"Berlin": EMODB, "RAV/audio": RAVDESS, "CREMA-D": CREMAD, "plain": ("x.wav",)}
    for name, files in folders.items():
        touch(tmp_path / "data" / name, *files)
    (tmp_path / "data" / "CREMA-D" / "VideoDemographics.csv").write_text("ActorID,Age,Sex\n1001,51,Male\n")
    manifest = read_manifest(tmp_path / "data")
    assert sorted(manifest.corpus.split("+")) == ["cremad", "emodb", "ravdess"]
    rows = by_name(manifest)
    # speaker 03 of the one is not speaker 03 of the other
    assert rows["03a01Fa.wav"]["speaker"] == "emodb-03"
    assert rows["03-01-05-01-01-01-03.wav"]["speaker"] == "ravdess-03"
    assert rows["1001_DFA_ANG_XX.wav"]["age"] == "51"
    assert rows["03a01Fa.wav"]["age"] == ""
    assert set(rows["x.wav"].values()) == {""}
    assert [u.path for u in manifest.utterances] == sorted(u.path for u in manifest.utterances)


def test_a_small_corpus_inside_a_large_one_is_no_stray(tmp_path: Path) -> None:
    """At nine tenths of the files the large one would have been taken for all."""
    touch(tmp_path / "a", *(f"AudioWAV/1{i:03}_DFA_ANG_XX.wav" for i in range(1, 92)))
    touch(tmp_path / "b", *URDU)
    touch(tmp_path / "c", *ASED[:2])
    rows = by_name(read_manifest(tmp_path))
    assert rows["SM1_F10_A010.wav"]["speaker"] == "urdu-SM1"
    assert rows["s4-04-02-01-29.wav"]["emotion"] == "sadness"
    assert rows["1091_DFA_ANG_XX.wav"]["speaker"] == "cremad-1091"


def test_corpora_mixed_in_one_folder_are_told_apart_by_their_names(tmp_path: Path) -> None:
    files = [Path(name).name for name in (*EMODB, *RAVDESS, *CREMAD)]
    manifest = read_manifest(touch(tmp_path, *files))
    assert sorted(manifest.corpus.split("+")) == ["cremad", "emodb", "ravdess"]
    assert {row["emotion"] for row in by_name(manifest).values()} >= {"happiness", "anger", "calm", "neutral"}


def test_a_manifest_of_paths_of_several_corpora(tmp_path: Path) -> None:
    lines = ["path,split", *(f"urdu/{name},train" for name in URDU), *(f"ased/{name},test" for name in ASED)]
    (tmp_path / "m.csv").write_text("\n".join(lines))
    manifest = read_manifest(tmp_path / "m.csv")
    rows = by_name(manifest)
    assert manifest.corpus == "urdu+folders"
    assert rows["SM1_F10_A010.wav"]["speaker"] == "urdu-SM1"
    assert (rows[Path(ASED[0]).name]["emotion"], rows[Path(ASED[0]).name]["split"]) == ("sadness", "test")


def test_one_corpus_in_several_inputs_keeps_its_speakers_names(tmp_path: Path) -> None:
    touch(tmp_path, *RAVDESS)
    manifest = read_manifest([tmp_path / "Actor_03", tmp_path / "Actor_04"])
    assert manifest.corpus == "ravdess"
    assert [row["speaker"] for row in by_name(manifest).values()] == ["03", "04"]


@pytest.mark.parametrize(
    "names",
    [
        "Anger/a.wav recordings/b.wav notes/deep/Happy/c.wav",  # an emotion's folder beside others
        # OreauFR is named as EmoDB is; in one of its folders all happens to fit.
        "sessn/09a01Na.wav sessn/10a02Na.wav sessj/09a01Ja.wav sessj/09a01Na.wav x/07a01Ca.wav x/08a01Na.wav",
    ],
)
def test_names_that_are_only_like_a_corpus_are_not_claimed_in_part(names: str, tmp_path: Path) -> None:
    touch(tmp_path / "data", *names.split())
    assert read_manifest(tmp_path / "data").corpus == "files"


def test_what_is_left_out_is_said_with_what_is_taken(tmp_path: Path) -> None:
    """A half-downloaded CREMA-D: nearly all of it lies in the folder that is spare."""
    touch(tmp_path / "c", "AudioWAV/1001_DFA_ANG_XX.wav")
    touch(tmp_path / "c", *(f"AudioMP3/1{i:03}_DFA_ANG_XX.mp3" for i in range(1, 92)))
    touch(tmp_path / "e", *EMODB)
    manifest = read_manifest(tmp_path)
    assert len(manifest) == 4
    assert by_name(manifest)["1001_DFA_ANG_XX.wav"]["speaker"] == "cremad-1001"
    (note,) = manifest.notes
    assert "91 files left out: copies of AudioWAV in other formats (1 taken)" in note


ADAPTER = {"cremad", "emodb", "iemocap", "meld", "ravdess", "savee", "tess", "urdu"}  # of the layouts
FOLDERS = {"aesdd", "ased", "cafe", "casia", "enterface", "turevdb", "esd", "mead"}


def test_layouts_of_32_corpora_together_are_recognised_as_each_alone() -> None:
    layouts: dict[str, list[str]] = defaultdict(list)
    with (shared("layouts") / "paths.tsv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            layouts[row["corpus"]].append(f"/in/{row['path']}")
    alone = {}
    for name, paths in layouts.items():
        alone[name] = {piece.corpus.name: len(piece.rows) for piece in recognise(paths, f"/in/{name}")}
        expected = name if name in ADAPTER else "folders" if name in FOLDERS else None
        assert alone[name] == ({expected: len(paths)} if expected else {}), name
    every = [path for paths in layouts.values() for path in paths]
    together: dict[str, dict[str, int]] = defaultdict(dict)
    for piece in recognise(every, "/in"):
        together[Path(piece.root).name][piece.corpus.name] = len(piece.rows)
        assert all(every[row].startswith(f"{piece.root}/") for row in piece.rows)
    assert together == {name: found for name, found in alone.items() if found}


def test_recordings_whose_label_files_are_not_there_are_counted(tmp_path: Path) -> None:
    touch(tmp_path, *(f"dia{k}_utt0.mp4" for k in range(3)))
    (note,) = read_manifest([tmp_path]).notes
    assert note.startswith(f"{tmp_path}: 3 of 3 recordings of meld have no emotion")
