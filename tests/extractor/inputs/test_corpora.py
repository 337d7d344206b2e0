"""Corpora: what file names and side files say, and whose names are whose."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from conftest import shared, touch
from inputs_cases import by_id, emotions, rows, written

from extractor.errors import InputError
from extractor.inputs.corpora.recognise import recognise
from extractor.inputs.corpora.table import CORPORA
from extractor.inputs.corpora.words import SYNONYMS, common_emotion
from extractor.inputs.manifest import EXTRA_COLUMNS, read_manifest
from extractor.types import EMOTIONS


def has(emotion: str, speaker: str | None = None, **others: str) -> dict[str, str]:
    return {"emotion": emotion, **({} if speaker is None else {"speaker": speaker}), **others}


# Names as the corpora have them -> labels that must come out. Paths are relative to the corpus's folder.
KIDS, DOGS = "Kids are talking by the door", "Dogs are sitting by the door"
NAMES: dict[str, dict[str, dict[str, str]]] = {
    "ravdess": {
        "Actor_12/03-01-06-02-01-02-12.wav": has("fear", "12", emotion_raw="06", gender="female", text=KIDS)
        | {"intensity": "strong", "repetition": "02", "modality": "audio", "vocal_channel": "speech"},
        "Actor_01/01-02-03-01-02-01-01.mp4": has("happiness", gender="male", text=DOGS)
        | {"modality": "audio-video", "vocal_channel": "song"},
        "Actor_01/02-01-01-01-02-01-01.mp4": has("neutral", modality="video"),
        "Actor_24/03-01-02-01-02-01-24.flac": has("calm", "24"),
        "Actor_03/03-01-08-01-02-01-03.wav": has("surprise", intensity="normal"),
    },
    "cremad": {
        "AudioWAV/1001_DFA_ANG_XX.wav": has("anger", "1001", emotion_raw="ANG", intensity="unspecified")
        | {"text": "Don't forget a jacket"},
        "AudioWAV/1091_IEO_HAP_HI.wav": has("happiness", "1091", intensity="high"),
        "AudioWAV/1002_IEO_FEA_LO.wav": has("fear", intensity="low"),
        "AudioWAV/1002_TSI_NEU_MD.wav": has("neutral", intensity="medium"),
        "AudioWAV/1040_ITH_SAD_X.wav": has("sadness", intensity="unspecified"),
    },
    "savee": {
        "DC/a01.wav": has("anger", "DC", gender="male", sentence="01"),
        "JE/sa15.wav": has("sadness", "JE", emotion_raw="sa"),
        "JK/su03.wav": has("surprise", "JK"),
        "KL/n30.wav": has("neutral", "KL"),
        "ALL/KL_h07.wav": has("happiness", "KL"),
        "ALL/DC_d07.wav": has("disgust", "DC"),
    },
    "emodb": {
        "wav/03a01Fa.wav": has("happiness", "03", emotion_raw="F", gender="male")
        | {"text": "Der Lappen liegt auf dem Eisschrank."},
        "wav/16b10Wb.wav": has("anger", "16", gender="female"),
        "wav/08a07La.wav": has("boredom", gender="female"),
        "wav/15b03Ec.wav": has("disgust", gender="male"),
        "wav/10b02Aa.wav": has("fear", gender="male"),
        "wav/13a02Ta.wav": has("sadness", gender="female"),
        "wav/12a05Nd.wav": has("neutral", gender="male"),
    },
    "tess": {
        "OAF_angry/OAF_back_angry.wav": has("anger", "OAF", emotion_raw="angry", gender="female")
        | {"text": "Say the word back"},
        "YAF_pleasant_surprised/YAF_food_ps.wav": has("surprise", "YAF"),
        "OAF_neutral/OA_bite_neutral.wav": has("neutral", "OAF"),
        "OAF_Fear/OAF_gas_fear.wav": has("fear"),
    },
    "iemocap": {
        "Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_M003.wav": has("", "Ses01M", gender="male")
        | {"session": "Ses01"},
        "Session5/sentences/wav/Ses05M_script01_1b/Ses05M_script01_1b_F012.wav": has("", "Ses05F")
        | {"gender": "female", "dialogue": "Ses05M_script01_1b"},
    },
    "meld": {
        "train_splits/dia0_utt0.mp4": has("", split="train", dialogue="0"),
        "dev_splits_complete/dia12_utt3.mp4": has("", split="dev", utterance="3"),
        "output_repeated_splits_test/dia12_utt3.mp4": has("", split="test"),
    },
    "urdu": {
        "Angry/SM1_F10_A010.wav": has("anger", "SM1", gender="male"),
        "Happy/SF10_F02_H05.wav": has("happiness", "SF10", gender="female"),
        "Neutral/SM5_F72_N0100.wav": has("neutral", emotion_raw="N"),
        "Sad/SF9_F1_S01.wav": has("sadness"),
    },
    "nemo": {
        "samples/WR0_surprised_64.wav": has("surprise", "WR0", sentence="64"),
        "samples/EB0_anger_1.wav": has("anger", "EB0"),
        "samples/KD0_happiness_90.wav": has("happiness"),
    },
    "folders": {
        "Anger/x1.wav": has("anger", "", emotion_raw="Anger"),
        "speaker7/pleasant_surprise/x2.wav": has("surprise", emotion_raw="pleasant_surprise"),
        "HAP/session 1/x3.wav": has("happiness"),
        "03-neutral/x4.ogg": has("neutral"),
        "other/x5.flac": has("other"),
    },
}


@pytest.mark.parametrize("forced", [False, True])
@pytest.mark.parametrize("name", CORPORA)
def test_names_give_the_labels(tmp_path: Path, name: str, forced: bool) -> None:
    root = touch(tmp_path / "in put", *NAMES[name])
    manifest = read_manifest([root], corpus=name if forced else None)
    assert manifest.corpus == name
    assert manifest.columns[:3] == ("emotion", "emotion_raw", "speaker")
    assert set(manifest.columns) == {"emotion", "emotion_raw", "speaker", *CORPORA[name].columns}
    assert len(manifest) == len(NAMES[name])
    found = dict(zip((u.path for u in manifest.utterances), rows(manifest), strict=True))
    for path, expected in NAMES[name].items():
        row = found[str(root / path)]
        assert {key: row[key] for key in expected} == expected, path


@pytest.mark.parametrize("name", CORPORA)
def test_raw_labels_map_into_the_common_set(name: str) -> None:
    corpus = CORPORA[name]
    assert corpus.name == name
    assert corpus.emotions
    outside = {"frustration"} if name == "iemocap" else set()  # a class of its own, spelt out
    assert {corpus.emotion(raw) for raw in corpus.emotions} - set(EMOTIONS) == outside
    assert set(corpus.columns) <= set(EXTRA_COLUMNS)


@pytest.mark.parametrize("name", [name for name in CORPORA if name != "folders"])
def test_no_adapter_claims_anothers_names(name: str) -> None:
    for path in NAMES[name]:
        fitting = [c.name for c in CORPORA.values() if c.name != "folders" and c.parse(f"/in/{path}", "/in")]
        assert fitting == [name]


@pytest.mark.parametrize(
    "names",
    [
        ["0_george_1.wav", "7_nicolas_33.wav"],  # spoken digits
        ["1688-142285-0000.flac", "2033-164914-0002.flac"],  # LibriSpeech
        ["p225_001.wav", "p225_002.wav"],  # VCTK
        ["a01.wav", "n02.wav"],  # SAVEE's names, but no speaker of it
        ["XX_back_angry.wav", "OAF_back_elated.wav"],
        ["SX1_F1_A01.wav", "SM1_F1_B01.wav"],
        ["WRO_surprised_64.wav", "WR0_bored_64.wav"],
        ["04a01Fa.wav", "03c01Fa.wav", "03a01Xa.wav"],
        ["03-01-09-01-01-01-01.wav", "04-01-01-01-01-01-01.wav", "03-01-01-01-01-01-25.wav"],
        ["dialogue1_utt2.wav", "dia1_utt.wav"],
        ["Ses06F_impro01_F000.wav", "Ses01X_impro01_F000.wav"],
        ["1001_DFA_JOY_XX.wav", "1001_XYZ_ANG_XX.wav"],
        ["other/a.wav", "other/b.wav"],  # says nothing: any folder may be called so
        ["Anger/a.wav", "recordings/b.wav"],
        ["03a01Fa.wav", "03a02Wa.wav", "hum.wav", "hiss.wav"],  # a mixture
    ],
)
def test_lookalikes_are_plain_files(tmp_path: Path, names: list[str]) -> None:
    root = touch(tmp_path / "x", *names)
    manifest = read_manifest([root])
    assert manifest.corpus == "files"
    assert len(manifest) == len(names)
    assert {u.labels for u in manifest.utterances} == {("", "", "")}


def test_strays_in_a_recognised_corpus_are_kept_without_labels(tmp_path: Path) -> None:
    names = [f"03a0{i}{e}a.wav" for i in (1, 2, 4, 5) for e in "WLEAFTN"]
    manifest = read_manifest([touch(tmp_path, *names, "hum.wav")])
    assert manifest.corpus == "emodb"
    assert len(manifest) == 29
    assert set(by_id(manifest)["hum"].values()) == {""}
    with pytest.raises(InputError, match=r"1 of 29 files are not named as in emodb .*hum\.wav"):
        read_manifest([tmp_path], corpus="emodb")


def test_unknown_corpus_lists_the_known(tmp_path: Path) -> None:
    touch(tmp_path, "03a01Fa.wav")
    with pytest.raises(InputError, match="unknown corpus 'ravdes'; known: ravdess, "):
        read_manifest([tmp_path], corpus="ravdes")
    manifest = read_manifest([tmp_path], corpus="files")  # reads no labels from names
    assert (manifest.corpus, manifest.columns) == ("files", ("emotion", "emotion_raw", "speaker"))


def test_one_emotion_folder_by_itself(tmp_path: Path) -> None:
    touch(tmp_path / "data", "Anger/a.wav", "Happy/b.wav")
    one = read_manifest([tmp_path / "data" / "Anger"])
    both = read_manifest([tmp_path / "data" / "Anger", tmp_path / "data" / "Happy"])
    assert [u.labels[:2] for u in one.utterances] == [("anger", "Anger")]
    assert emotions(both) == ["anger", "happiness"]


def test_words_above_the_input_are_not_labels(tmp_path: Path) -> None:
    root = touch(tmp_path / "happy" / "recordings", "a.wav", "b/c.wav")
    assert read_manifest([root]).corpus == "files"


@pytest.mark.parametrize("where", ["VideoDemographics.csv", "AudioWAV/VideoDemographics.csv"])
@pytest.mark.parametrize("given", [".", "AudioWAV", "AudioWAV/1001_DFA_ANG_XX.wav"])
def test_cremad_demographics(tmp_path: Path, where: str, given: str) -> None:
    touch(tmp_path, "AudioWAV/1001_DFA_ANG_XX.wav", "AudioWAV/1002_DFA_ANG_XX.wav")
    written(tmp_path, "ActorID,Age,Sex,Race,Ethnicity\n1001,51,Male,Caucasian,Not Hispanic\n", where)
    rows = by_id(read_manifest([tmp_path / given]))
    assert (rows["1001_DFA_ANG_XX"]["gender"], rows["1001_DFA_ANG_XX"]["age"]) == ("male", "51")
    assert rows.get("1002_DFA_ANG_XX", {}).get("age", "") == ""


def test_a_broken_side_file_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "1001_DFA_ANG_XX.wav")
    written(tmp_path, "Actor;Age\n1001;51\n", "VideoDemographics.csv")
    with pytest.raises(InputError, match=r"VideoDemographics\.csv: no column 'ActorID', 'Age', 'Sex'"):
        read_manifest([tmp_path])


@pytest.mark.parametrize("given", [".", "Session1", "Session1/sentences/wav/Ses01F_impro01"])
@pytest.mark.parametrize("corpus", [None, "iemocap"])
def test_iemocap_labels(tmp_path: Path, given: str, corpus: str | None) -> None:
    folder, dialogues = tmp_path / "Session1", "dialog/wav/Ses01F_impro01.wav"
    touch(
        folder / "sentences/wav/Ses01F_impro01",
        *(f"Ses01F_impro01_{t}.wav" for t in ("F000", "M001", "M002")),
    )
    touch(folder, dialogues, "dialog/avi/DivX/Ses01F_impro01.avi", "dialog/wav/._Ses01F_impro01.wav")
    written(
        folder,
        "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n"
        "[6.2901 - 8.2357]\tSes01F_impro01_F000\tneu\t[2.5000, 2.0000, 3.5000]\n"
        "C-E2:\tNeutral;\t()\nA-E3:\tval 3; act 2; dom  2;\t()\n\n"
        "[10.01 - 11.39]\tSes01F_impro01_M001\texc\t[4.0000, 4.5000, 3.0000]\n"
        "C-E2:\tExcited;\t()\n",
        "dialog/EmoEvaluation/Ses01F_impro01.txt",
    )
    written(
        folder,
        "Ses01F_impro01_F000 [006.2901-008.2357]: Excuse me.\n"
        "Ses01F_impro01_M001 [010.0100-011.3900]: Do you have your forms?\n",
        "dialog/transcriptions/Ses01F_impro01.txt",
    )
    manifest = read_manifest([tmp_path / given], corpus=corpus)
    rows = by_id(manifest)
    assert manifest.corpus == "iemocap"
    excited = rows["Ses01F_impro01_M001"]
    assert (excited["emotion"], excited["emotion_raw"]) == ("happiness", "exc")
    assert (excited["valence"], excited["arousal"], excited["dominance"]) == ("4.0000", "4.5000", "3.0000")
    assert (excited["speaker"], excited["text"]) == ("Ses01M", "Do you have your forms?")
    assert rows["Ses01F_impro01_F000"]["emotion"] == "neutral"
    assert rows["Ses01F_impro01_M002"]["emotion"] == ""
    assert len(rows) == 3  # the two recordings of the whole dialogue are left out
    *left_out, without = manifest.notes
    assert "1 of 3 recordings of iemocap have no emotion" in without
    for note in left_out:
        assert "2 files left out: recordings of whole dialogues" in note and str(folder / "dialog") in note
    assert len(left_out) == (0 if "wav" in given else 1)
    assert len(read_manifest([folder / "sentences", folder / dialogues], "iemocap")) == 4, (
        "named they are taken"
    )
    assert len(read_manifest(folder / "dialog/wav", "iemocap")) == 1


def test_meld_splits(tmp_path: Path) -> None:
    head = "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode\n"
    for name, row in (
        ("train_sent_emo.csv", '1,"Oh, my God!",Ross,joy,positive,0,0,4,7\n'),
        ("dev_sent_emo.csv", "1,What?,Monica,surprise,negative,0,0,3,19\n"),
        ("csv/test_sent_emo.csv", "1,No.,Joey,anger,negative,0,0,1,1\n"),
    ):
        written(tmp_path, head + row, name)
    touch(tmp_path / "train_splits", "dia0_utt0.mp4", "dia0_utt1.mp4")
    touch(tmp_path / "dev_splits_complete", "dia0_utt0.mp4")
    touch(tmp_path / "output_repeated_splits_test", "dia0_utt0.mp4", "final_videos_testdia0_utt0.mp4")
    rows = by_id(read_manifest([tmp_path]))
    assert {key: (r["split"], r["speaker"], r["emotion_raw"], r["emotion"]) for key, r in rows.items()} == {
        "train_dia0_utt0": ("train", "Ross", "joy", "happiness"),
        "train_dia0_utt1": ("train", "", "", ""),
        "dev_dia0_utt0": ("dev", "Monica", "surprise", "surprise"),
        "test_dia0_utt0": ("test", "Joey", "anger", "anger"),
        "test_final_videos_testdia0_utt0": ("test", "Joey", "", ""),
    }
    assert rows["train_dia0_utt0"]["text"] == "Oh, my God!"


def test_meld_split_from_the_only_table(tmp_path: Path) -> None:
    root = touch(tmp_path / "clips", "dia3_utt4.wav")
    written(
        root, "Utterance,Speaker,Emotion,Dialogue_ID,Utterance_ID\nHi,Joey,fear,3,4\n", "dev_sent_emo.csv"
    )
    rows = by_id(read_manifest([root]))
    assert rows["dev_dia3_utt4"]["emotion"] == "fear"


def test_nemo_table(tmp_path: Path) -> None:
    touch(tmp_path, "samples/WR0_surprised_64.wav", "samples/KD0_neutral_2.wav")
    written(
        tmp_path,
        "file_id\temotion\traw_text\tnormalized_text\tspeaker_id\tgender\tage\n"
        'WR0_surprised_64.wav\tsurprised\t"Ucho" wykrywa dźwięki.\tucho\t        WR0\tmale\t23\n',
        "data.tsv",
    )
    rows = by_id(read_manifest([tmp_path]))
    row = rows["WR0_surprised_64"]
    assert (row["speaker"], row["gender"], row["age"]) == ("WR0", "male", "23")
    assert row["text"] == '"Ucho" wykrywa dźwięki.'
    assert rows["KD0_neutral_2"]["age"] == ""


def test_synonyms() -> None:
    assert set(SYNONYMS.values()) == set(EMOTIONS)
    spelt = {"Angry": "anger", "Pleasant_Surprise": "surprise", "pleasant-surprised": "surprise"}
    spelt |= {"neu": "neutral", "  JOY ": "happiness", "fearful": "fear", "bored": "boredom"}
    own = {"calm": "calm", "nostalgia": "nostalgia", "7": "7", "": "", "  ": ""}
    for word, emotion in {**spelt, **own, **dict(zip(EMOTIONS, EMOTIONS, strict=True))}.items():
        assert common_emotion(word) == emotion, word


def test_all_are_looked_at_where_all_must_fit() -> None:
    assert recognise([], "/in") == []
    fitting = [f"/in/Anger/{i}.wav" for i in range(5001)]
    (piece,) = recognise(fitting, "/in")
    assert (piece.corpus.name, piece.rows) == ("folders", list(range(5001)))
    assert recognise([*fitting[:4999], "/in/misc/x.wav", *fitting[5000:]], "/in") == []


ACTED = ("calm", "happiness", "sadness", "anger", "fear", "disgust", "surprise")


@pytest.mark.parametrize(
    ("name", "speakers", "men", "counts"),
    [
        ("emodb", 10, 5, {"anger": 127, "neutral": 79, "happiness": 71, "sadness": 62}),
        ("ravdess", 24, 12, {"neutral": 96, **dict.fromkeys(ACTED, 192)}),
    ],
)
def test_real_emodb(name: str, speakers: int, men: int, counts: dict[str, int]) -> None:
    manifest = read_manifest([shared(name)])
    found = rows(manifest)
    assert (manifest.corpus, len(found)) == (name, sum(counts.values()))
    assert len({row["speaker"] for row in found}) == speakers
    assert len({row["speaker"] for row in found if row["gender"] == "male"}) == men
    assert Counter(emotions(manifest)) == counts


@pytest.mark.parametrize(
    ("name", "corpus", "count"),
    [
        ("ravdess_48k", "ravdess", 63),
        ("fsdd", "files", 120),
        ("librispeech", "files", 40),
        ("odd", "files", 120),
    ],
)
def test_real_recordings_without_emotions(name: str, corpus: str, count: int) -> None:
    manifest = read_manifest([shared(name)])
    assert (manifest.corpus, len(manifest)) == (corpus, count)
    if corpus == "files":
        assert {u.labels for u in manifest.utterances} == {("", "", "")}
