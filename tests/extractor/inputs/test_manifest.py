"""Manifest: every recording that was named appears once, and what is wrong is refused by line."""

from __future__ import annotations

import csv
import io
import json
import os
import string
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from conftest import ROOT, touch
from hypothesis import given, settings
from hypothesis import strategies as st
from inputs_cases import ids, rows, written

from extractor.errors import InputError
from extractor.inputs.corpora.words import known
from extractor.inputs.manifest import read_manifest
from extractor.inputs.walk import AUDIO_SUFFIXES
from extractor.types import Utterance

BASE = ("emotion", "emotion_raw", "speaker")


def test_a_folder_in_a_fixed_order_without_hidden_files(tmp_path: Path) -> None:
    touch(tmp_path, "b/2.WAV", "b/1.flac", "a/3.mp3", "z.ogg", "notes.txt", ".trash/x.wav", "a/._3.mp3")
    manifest = read_manifest([tmp_path])
    assert [u.path for u in manifest.utterances] == [
        str(tmp_path / name) for name in ("a/3.mp3", "b/1.flac", "b/2.WAV", "z.ogg")
    ]
    assert ids(manifest) == ["3", "1", "2", "z"]
    assert manifest.columns == BASE
    assert manifest.corpus == "files"


@pytest.mark.parametrize("suffix", sorted(AUDIO_SUFFIXES))
def test_audio_suffixes_are_found(tmp_path: Path, suffix: str) -> None:
    assert len(read_manifest([touch(tmp_path, f"a{suffix}", f"b{suffix.upper()}")])) == 2


def test_paths_are_absolute_and_links_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "real/a.wav")
    (tmp_path / "link").symlink_to(tmp_path / "real", target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    assert read_manifest(["link/../link"]).utterances[0].path == str(tmp_path / "link" / "a.wav")
    (recording,) = read_manifest(["."]).utterances  # one folder, two names: its own is taken
    assert recording.path == str(tmp_path / "real" / "a.wav")


def test_named_files_are_taken_whatever_their_suffix(tmp_path: Path) -> None:
    names = ("a.xyz", "noext", ".hidden.wav", "take[1].wav")  # a name with a bracket is a name
    touch(tmp_path, *names)
    assert ids(read_manifest([tmp_path / name for name in names])) == ["a", "noext", ".hidden", "take[1]"]
    assert ids(read_manifest(str(tmp_path / "a.xyz"))) == ["a"]


def test_each_file_is_taken_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "d/a.wav", "d/b.wav")
    monkeypatch.chdir(tmp_path)
    for inputs in (["d", "d/a.wav"], ["d/a.wav", "d"], ["d/a.wav", "./d/a.wav", "d/*.wav"], ["d", "d", "d/"]):
        assert ids(read_manifest(inputs)) == ["a", "b"]
    m = written(tmp_path, "path,id,emotion\nd/b.wav,second,sad\n")
    manifest = read_manifest(["d", m])  # the row that says more is the one that is kept
    assert ids(manifest) == ["a", "second"]
    assert rows(manifest)[1]["emotion"] == "sadness"


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*.wav", ["x"]),
        ("**/*.wav", ["sub/x", "x"]),
        ("**", ["sub/x", "sub/y", "x"]),
        ("*", ["sub/x", "sub/y", "x"]),
        ("sub/?.*", ["x", "y"]),
        ("*.txt", ["notes"]),
        ("[x].wav", ["x"]),
    ],
)
def test_patterns_that_the_shell_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, found: list[str]
) -> None:
    touch(tmp_path, "x.wav", "notes.txt", "sub/x.wav", "sub/y.mp3", "sub/._x.wav")
    monkeypatch.chdir(tmp_path)
    assert sorted(ids(read_manifest([pattern]))) == found


def test_nothing_to_do_is_refused_by_name(tmp_path: Path) -> None:
    touch(tmp_path, "empty/notes.txt", "full/a.wav")
    for inputs, message in [
        ([], "no input was named; accepted are folders"),
        ([tmp_path / "gone"], "gone' does not exist; accepted are folders"),
        ([tmp_path / "gone.csv"], "does not exist"),
        ([""], "'' does not exist"),
        ([tmp_path / "*.wav"], "matches no recording; accepted"),
        ([tmp_path / "full", tmp_path / "empty"], r"no audio in the folder '.*empty'.*\.wav"),
    ]:
        with pytest.raises(InputError, match=message):
            read_manifest(inputs)


def test_ids_are_the_shortest_that_tell_all_apart(tmp_path: Path) -> None:
    touch(tmp_path, "one/a.wav", "one/b.wav")
    assert ids(read_manifest([tmp_path])) == ["a", "b"]
    touch(tmp_path, "two/a.wav")
    assert ids(read_manifest([tmp_path])) == ["one/a", "one/b", "two/a"]
    assert ids(read_manifest([tmp_path / "one", tmp_path / "two"])) == ["one/a", "one/b", "two/a"]
    touch(tmp_path, "two/a.mp3")
    assert ids(read_manifest([tmp_path])) == ["one/a.wav", "one/b.wav", "two/a.mp3", "two/a.wav"]


def test_a_file_name_that_is_not_text_has_an_id_that_is(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.wav")
    try:
        (tmp_path / name).touch()
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    manifest = read_manifest([tmp_path])
    assert Path(manifest.utterances[0].path).exists()
    manifest.utterances[0].id.encode()


@pytest.mark.parametrize(
    ("files", "inputs", "found"),
    [
        (("p/q/one/a.wav", "r/two/a.wav"), ("p/q/one", "r/two"), ["one/a", "two/a"]),
        (("p/wav/a.wav", "q/wav/a.wav"), ("p/wav", "q/wav"), ["p/wav/a", "q/wav/a"]),
        (("p/one/a.wav", "q/r/two/a.wav"), ("p/one/a.wav", "q/r/two/a.wav"), ["one/a", "two/a"]),
        (("p/one/a.wav", "q/two/a.wav"), ("p/one", "q/two/a.wav"), ["one/a", "two/a"]),
        (("p/one/a.wav", "p/two/b/a.wav"), ("p/*/**/*.wav",), ["b/a", "one/a"]),
        (("p/one/a.wav", "p/one/b/a.wav", "q/a.wav"), ("p/one", "q"), ["one/a", "one/b/a", "q/a"]),
        (("p/one/a.wav", "p/one/b/a.wav"), ("p/one/b", "p/one"), ["b/a", "a"]),
    ],
)
def test_ids_tell_inputs_apart_by_their_names_and_hold_no_path_of_the_machine(
    files: tuple[str, ...], inputs: tuple[str, ...], found: list[str], tmp_path: Path
) -> None:
    """However far apart they lie: relative to what was named, not to a folder that all have in common."""
    touch(tmp_path, *files)
    assert sorted(ids(read_manifest([str(tmp_path / name) for name in inputs]))) == sorted(found)


@pytest.mark.parametrize(
    ("paths", "found"),
    [
        (
            ("wav/one/a.wav", "wav/two/a.wav", "/disk/x/corpus/a.wav", "/audio/me/three/a.wav"),
            ["wav/one/a", "wav/two/a", "corpus/a", "three/a"],
        ),
        (("wav/one/a.wav", "wav/two/a.wav"), ["one/a", "two/a"]),
        (("/disk/x/one/a.wav", "/audio/me/two/a.wav"), ["one/a", "two/a"]),
    ],
)
def test_ids_of_a_manifest_whose_files_lie_elsewhere_hold_no_path_of_the_machine(
    paths: tuple[str, ...], found: list[str], tmp_path: Path
) -> None:
    assert ids(read_manifest([written(tmp_path, "\n".join(["path", *paths]))])) == found


def test_a_corpus_s_own_ids_that_are_there_twice_become_longer(tmp_path: Path) -> None:
    """As in copies of a corpus that hold it twice; the others keep theirs."""
    names = ("Ses01F_impro01_F000", "Ses01F_impro01_F001")
    touch(tmp_path, *(f"one/{name}.wav" for name in names), f"two/{names[0]}.wav")
    found = ids(read_manifest([tmp_path], "iemocap"))
    assert found == [f"one/{names[0]}", names[1], f"two/{names[0]}"]


def test_a_recording_s_names_are_its_forms_or_the_one_that_was_given(tmp_path: Path) -> None:
    manifest = read_manifest([written(tmp_path, "path,id\nx/a.wav,b\ny/b.wav,\n")])
    assert ids(manifest) == ["b", "y/b"]  # a given id wins, and others avoid it
    named = ["b", "y/b", "y/b.wav", f"{tmp_path.name}/y/b.wav"]
    assert [list(names) for names in manifest.names] == [["b"], named]


def test_segments(tmp_path: Path) -> None:
    m = written(tmp_path, "path,start,end\nlong.wav,0,1.5\nlong.wav,1.5,\nlong.wav,,2\nshort.wav,,\n")
    manifest = read_manifest([m])
    assert ids(manifest) == ["long@0-1.5", "long@1.5-end", "long@0-2", "short"]
    spans = [(u.start, u.end) for u in manifest.utterances]
    assert spans == [(0.0, 1.5), (1.5, None), (None, 2.0), (None, None)]


def test_columns(tmp_path: Path) -> None:
    m = written(
        tmp_path,
        "\ufeff,note, Path ,Speaker,Emotion,text,split,session\r\n"
        '0, x ,../in/a.wav,S1,Joy,"one, ""two""\nthree",train,1\r\n'
        "\r\n"
        "1,y,/abs/b.wav,S1,,,test,2\r\n"
        "2,,/abs//c/../c.wav,S2,Nostalgia,,test,2\r\n",
    )
    manifest = read_manifest([m])
    assert manifest.columns == (*BASE, "session", "split", "text", "note")
    assert manifest.utterances == [
        Utterance(
            "a",
            str(tmp_path.parent / "in" / "a.wav"),
            labels=("happiness", "Joy", "S1", "1", "train", 'one, "two"\nthree', "x"),
        ),
        Utterance("b", "/abs/b.wav", labels=("", "", "S1", "2", "test", "", "y")),
        Utterance("c", "/abs/c.wav", labels=("nostalgia", "Nostalgia", "S2", "2", "test", "", "")),
    ]
    speakers = [u.labels[2] for u in manifest.utterances]
    assert speakers[0] is speakers[1]  # a million rows hold each label once


def test_tsv_and_jsonl(tmp_path: Path) -> None:
    tsv = written(tmp_path, "path\temotion\tspeaker\na.wav\tangry\tA, B\n", "m.tsv")
    jsonl = written(
        tmp_path,
        '{"path": "b.wav", "emotion": "sad", "speaker": 7, "start": 1, "end": 2.5, "id": "B"}\n'
        "\n"
        '{"path": "c.wav", "emotion": null, "take": 1.5, "good": true, "end": null}\n',
        "m.jsonl",
    )
    manifest = read_manifest([tsv, jsonl])
    assert manifest.columns == (*BASE, "take", "good")
    assert manifest.utterances == [
        Utterance("a", str(tmp_path / "a.wav"), labels=("anger", "angry", "A, B", "", "")),
        Utterance("B", str(tmp_path / "b.wav"), 1.0, 2.5, ("sadness", "sad", "7", "", "")),
        Utterance("c", str(tmp_path / "c.wav"), labels=("", "", "", "1.5", "true")),
    ]


@pytest.mark.parametrize(
    ("header", "cells", "expected"),
    [
        ("emotion", "Wut", ("anger", "Wut")),
        ("emotion_raw", "joy", ("happiness", "joy")),
        ("emotion,emotion_raw", "happiness,exc", ("happiness", "exc")),
        ("emotion_raw,emotion", "05,anger", ("anger", "05")),
        ("emotion,emotion_raw", ",05", ("", "05")),
        ("speaker", "S", ("", "")),
    ],
)
def test_emotion_columns(tmp_path: Path, header: str, cells: str, expected: tuple[str, str]) -> None:
    manifest = read_manifest([written(tmp_path, f"path,{header}\na.wav,{cells}\n")])
    assert manifest.columns == BASE
    assert manifest.utterances[0].labels[:2] == expected


def test_a_runs_manifest_is_read_back(tmp_path: Path) -> None:
    labels = {"emotion": "", "emotion_raw": "05", "speaker": "S", "split": "train"}
    line = {"position": 0, "id": "a", "path": "/in/a.wav", "start": None, "end": 2.5, "labels": labels}
    m = written(tmp_path, json.dumps(line | {"num_samples": 40000, "batch": -1, "stage": "probe"}), "m.jsonl")
    manifest = read_manifest([m])
    assert manifest.columns == (*BASE, "split")
    assert manifest.utterances == [Utterance("a", "/in/a.wav", None, 2.5, ("", "05", "S", "train"))]


def test_jsonl_labels_may_come_late_or_nested(tmp_path: Path) -> None:
    nested = '{"path": "b.wav", "labels": {"emotion": "anger", "emotion_raw": "05", "speaker": "T"}}'
    manifest = read_manifest([written(tmp_path, '{"path": "a.wav", "speaker": "S"}\n' + nested, "m.jsonl")])
    assert manifest.columns == BASE
    assert [u.labels for u in manifest.utterances] == [("", "", "S"), ("anger", "05", "T")]


def test_a_manifest_without_labels_is_recognised(tmp_path: Path) -> None:
    m = written(tmp_path, "path,split\nwav/03a01Fa.wav,train\nwav/16b10Wb.wav,test\n")
    manifest = read_manifest([m])
    assert manifest.corpus == "emodb"
    assert [(r["emotion"], r["split"]) for r in rows(manifest)] == [("happiness", "train"), ("anger", "test")]
    # side files are looked for where the manifest says the recordings are, even if they are not
    assert read_manifest([written(tmp_path, "path\nno/such/dia0_utt0.mp4\n")]).corpus == "meld"


def test_a_manifests_labels_win_over_a_forced_corpus(tmp_path: Path) -> None:
    text = "path,emotion,speaker\n03a01Fa.wav,calm,\n16b10Wb.wav,,me\n"
    assert read_manifest([written(tmp_path, text)]).corpus == "files"
    manifest = read_manifest([written(tmp_path, text)], corpus="emodb")
    assert [u.labels[:3] for u in manifest.utterances] == [("calm", "calm", "03"), ("anger", "W", "me")]


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("", ["line 1: no header"]),
        ("path,emotion\n", ["line 1: no recording in it"]),
        ("file,emotion\na.wav,sad\n", ["line 1: no column 'path' (found: file, emotion)", "rename 'file'"]),
        ("paths,emotion\na.wav,sad\n", ["rename 'paths' to 'path'"]),
        ("path;emotion\na.wav;sad\n", ["no column 'path' (found: path;emotion)", "parted by commas"]),
        ("path,speaker,Speaker\na,b,c\n", ["line 1: more than one column 'speaker'"]),
        ("path,emotion\na.wav,sad\n,sad\n  ,sad\n", ["line 3: 'path' is empty", "line 4: 'path' is empty"]),
        ("path,emotion\na.wav\nb.wav,sad,3\n", ["line 2: 1 cells where the header has 2", "line 3: 3 cells"]),
        (
            "path,start,end\na,x,\na,,1e\n",
            ["line 2: 'start' is not a number of seconds: 'x'", "line 3: 'end'"],
        ),
        ("path,start,end\na,-1,\na,nan,\na,,inf\n", ["line 2: 'start' must be", "line 3: ", "line 4: 'end'"]),
        ("path,start,end\na,2,2\na,,0\n", ["line 2: 'end' (2) is not after 'start' (2)", "line 3: "]),
        ("path,id\na,x\nb,y\n\nc,x\n", ["line 5: the id 'x' is taken by line 2"]),
        ('path,text\na,"one\ntwo"\nb\n', ["line 4: 1 cells"]),
        ('path,text\na,b\nb,"open\nc,d\n', ["line 3: cannot be read as a table"]),
        ("path,text\na,b\nc\0,d\n", ["line 3: contains a NUL"]),
        (b"path,text\na,ok\nb,\xe9\n", ["line 3: not UTF-8"]),
        ("path\na.wav".encode("utf-16"), ["line 1: not UTF-8"]),
    ],
)
def test_malformed_tables_are_refused_by_line(tmp_path: Path, text: str | bytes, messages: list[str]) -> None:
    refused(written(tmp_path, text), ["m.csv: not a usable manifest", *messages])


def refused(file: Path, messages: list[str]) -> str:
    with pytest.raises(InputError) as caught:
        read_manifest([file])
    for message in messages:
        assert message in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("", ["no recording"]),
        ('{"path": "a"}\n{"path": "b"\n', ["line 2: not JSON"]),
        ('["a.wav"]\n', ["line 1: not a JSON object"]),
        ('{"path": "a"}\n{"file": "b"}\n', ["line 2: no 'path'", "found: file", "rename 'file'"]),
        ('{"path": 3}\n{"path": ""}\n', ["line 1: no 'path' with a text", "line 2: 'path' is empty"]),
        ('{"path": "a", "start": true}\n{"path": "b", "end": [1]}\n', ["line 1: 'start'", "line 2: 'end'"]),
        ('{"path": "a", "start": NaN}\n{"path": "b", "end": 1e999}\n', ["line 1: 'start'", "line 2: 'end'"]),
        ('{"path": "a", "x": [1]}\n', ["line 1: 'x' must be a text or a number, not a list"]),
        ('{"path": "a", "id": "\\ud800"}\n{"path": "b", "x": "\\u0000"}\n', ["line 1: 'id'", "line 2: 'x'"]),
        ('{"path": "a\\u0000"}\n', ["line 1: no 'path'"]),
        ("[" * 100_000 + "\n", ["line 1: not JSON"]),
    ],
)
def test_malformed_jsonl_is_refused_by_line(tmp_path: Path, text: str, messages: list[str]) -> None:
    refused(written(tmp_path, text, "m.jsonl"), messages)


def test_problems_come_ten_at_a_time(tmp_path: Path) -> None:
    said = refused(written(tmp_path, "path,end\n" + "a,0\n" * 50), ["there may be more"])
    assert said.count("line ") == 10


def test_the_same_recording_in_two_rows_needs_ids(tmp_path: Path) -> None:
    m = written(tmp_path, "path,emotion\na.wav,sad\nb.wav,sad\na.wav,happy\n")
    with pytest.raises(InputError, match=r"'a\.wav': .*m\.csv, line 2 and .*m\.csv, line 4"):
        read_manifest([m])
    assert len(read_manifest([written(tmp_path, "path,id\na.wav,1\na.wav,2\n")])) == 2


def test_the_same_id_in_two_manifests_names_both(tmp_path: Path) -> None:
    one = written(tmp_path, "path,id\na.wav,x\n", "one.csv")
    two = written(tmp_path, "path,id\nb.wav,y\nc.wav,x\n", "two.csv")
    with pytest.raises(InputError, match=r"'x': .*one\.csv, line 2 and .*two\.csv, line 3"):
        read_manifest([one, two])


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
LABEL = TEXT.map(str.strip)
SECONDS = st.floats(0, 1e6, allow_nan=False)
ROWS = st.lists(
    st.tuples(
        TEXT.map(lambda name: f"/in/{name.replace('/', '_')}.wav"),
        LABEL.filter(bool),
        st.one_of(st.just((None, None)), st.tuples(SECONDS, SECONDS).filter(lambda x: x[0] < x[1])),
        st.tuples(LABEL, LABEL, LABEL),
    ),
    min_size=1,
    max_size=8,
    unique_by=lambda row: row[1],
)


@settings(deadline=None, max_examples=150)
@given(ROWS, st.sampled_from(["csv", "tsv", "jsonl"]))
def test_what_was_written_is_read(tmp_path_factory: pytest.TempPathFactory, found: list, kind: str) -> None:
    names = ["path", "id", "start", "end", "emotion_raw", "speaker", string.punctuation.replace('"', "")]
    records = [[path, name, *span, *labels] for path, name, span, labels in found]
    stream = io.StringIO(newline="")
    if kind == "jsonl":
        stream.writelines(json.dumps(dict(zip(names, record, strict=True))) + "\n" for record in records)
    else:
        csv.writer(stream, delimiter="," if kind == "csv" else "\t").writerows([names, *records])
    file = tmp_path_factory.mktemp("rows") / f"m.{kind}"
    file.write_bytes(stream.getvalue().encode())
    manifest = read_manifest([file])
    assert manifest.columns == (*BASE, names[-1])
    for record in records:
        record[5] = known(unicodedata.normalize("NFC", record[5]))  # a speaker "?" is none
    assert [[u.path, u.id, u.start, u.end, *u.labels[1:]] for u in manifest.utterances] == records


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=200), st.sampled_from(["csv", "tsv", "jsonl"]))
def test_any_bytes_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, kind: str
) -> None:
    file = tmp_path_factory.mktemp("bytes") / f"m.{kind}"
    head = b"" if kind == "jsonl" else b"path,id\n" if kind == "csv" else b"path\tstart\n"
    file.write_bytes(head + data)
    try:
        manifest = read_manifest([file])
    except InputError as error:
        assert "line " in str(error)
    else:
        assert len(set(ids(manifest))) == len(manifest) > 0


@pytest.mark.parametrize(
    ("code", "heavy"),
    [
        ("import extractor.inputs.manifest", "torch numpy pandas transformers h5py"),
        ("import extractor.audio.probe", "torch numpy soundfile av"),
        (
            "from extractor.augment import Pool, parse; parse(['stretch+gain', '0.5*noise']).check(Pool())",
            "torch numpy yaml click",
        ),
    ],
)
def test_import_is_light(code: str, heavy: str) -> None:
    command = [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert not set(heavy.split()) & set(loaded.split())
