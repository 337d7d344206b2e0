"""Corpora: what file names and side files say, and whose names are whose."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from conftest import shared, touch

from extractor.errors import InputError
from extractor.inputs.corpora.recognise import recognise
from extractor.inputs.corpora.table import CORPORA
from extractor.inputs.corpora.words import SYNONYMS, common_emotion
from extractor.inputs.manifest import EXTRA_COLUMNS, read_manifest
from extractor.types import EMOTIONS, Manifest


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


def labels(manifest: Manifest) -> dict[str, dict[str, str]]:
    return {u.id: dict(zip(manifest.columns, u.labels, strict=True)) for u in manifest.utterances}


# Names as the corpora have them -> labels that must come out. Paths are relative to the corpus's folder.
NAMES: dict[str, dict[str, dict[str, str]]] = {
    "ravdess": {
        "Actor_12/03-01-06-02-01-02-12.wav": {
            "emotion": "fear",
            "emotion_raw": "06",
            "speaker": "12",
            "gender": "female",
            "intensity": "strong",
            "text": "Kids are talking by the door",
            "repetition": "02",
            "modality": "audio",
            "vocal_channel": "speech",
        },
        "Actor_01/01-02-03-01-02-01-01.mp4": {
            "emotion": "happiness",
            "gender": "male",
            "modality": "audio-video",
            "vocal_channel": "song",
            "text": "Dogs are sitting by the door",
        },
        "Actor_01/02-01-01-01-02-01-01.mp4": {"emotion": "neutral", "modality": "video"},
        "Actor_24/03-01-02-01-02-01-24.flac": {"emotion": "calm", "speaker": "24"},
        "Actor_03/03-01-08-01-02-01-03.wav": {"emotion": "surprise", "intensity": "normal"},
    },
    "cremad": {
        "AudioWAV/1001_DFA_ANG_XX.wav": {
            "emotion": "anger",
            "emotion_raw": "ANG",
            "speaker": "1001",
            "text": "Don't forget a jacket",
            "intensity": "unspecified",
        },
        "AudioWAV/1091_IEO_HAP_HI.wav": {"emotion": "happiness", "intensity": "high", "speaker": "1091"},
        "AudioWAV/1002_IEO_FEA_LO.wav": {"emotion": "fear", "intensity": "low"},
        "AudioWAV/1002_TSI_NEU_MD.wav": {"emotion": "neutral", "intensity": "medium"},
        "AudioWAV/1040_ITH_SAD_X.wav": {"emotion": "sadness", "intensity": "unspecified"},
    },
    "savee": {
        "DC/a01.wav": {"emotion": "anger", "speaker": "DC", "gender": "male", "sentence": "01"},
        "JE/sa15.wav": {"emotion": "sadness", "emotion_raw": "sa", "speaker": "JE"},
        "JK/su03.wav": {"emotion": "surprise", "speaker": "JK"},
        "KL/n30.wav": {"emotion": "neutral", "speaker": "KL"},
        "ALL/KL_h07.wav": {"emotion": "happiness", "speaker": "KL"},
        "ALL/DC_d07.wav": {"emotion": "disgust", "speaker": "DC"},
    },
    "emodb": {
        "wav/03a01Fa.wav": {
            "emotion": "happiness",
            "emotion_raw": "F",
            "speaker": "03",
            "gender": "male",
            "text": "Der Lappen liegt auf dem Eisschrank.",
        },
        "wav/16b10Wb.wav": {"emotion": "anger", "speaker": "16", "gender": "female"},
        "wav/08a07La.wav": {"emotion": "boredom", "gender": "female"},
        "wav/15b03Ec.wav": {"emotion": "disgust", "gender": "male"},
        "wav/10b02Aa.wav": {"emotion": "fear", "gender": "male"},
        "wav/13a02Ta.wav": {"emotion": "sadness", "gender": "female"},
        "wav/12a05Nd.wav": {"emotion": "neutral", "gender": "male"},
    },
    "tess": {
        "OAF_angry/OAF_back_angry.wav": {
            "emotion": "anger",
            "emotion_raw": "angry",
            "speaker": "OAF",
            "gender": "female",
            "text": "Say the word back",
        },
        "YAF_pleasant_surprised/YAF_food_ps.wav": {"emotion": "surprise", "speaker": "YAF"},
        "OAF_neutral/OA_bite_neutral.wav": {"emotion": "neutral", "speaker": "OAF"},
        "OAF_Fear/OAF_gas_fear.wav": {"emotion": "fear"},
    },
    "iemocap": {
        "Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_M003.wav": {
            "speaker": "Ses01M",
            "session": "Ses01",
            "gender": "male",
            "emotion": "",
        },
        "Session5/sentences/wav/Ses05M_script01_1b/Ses05M_script01_1b_F012.wav": {
            "speaker": "Ses05F",
            "gender": "female",
            "dialogue": "Ses05M_script01_1b",
        },
    },
    "meld": {
        "train_splits/dia0_utt0.mp4": {"split": "train", "emotion": "", "dialogue": "0"},
        "dev_splits_complete/dia12_utt3.mp4": {"split": "dev", "utterance": "3"},
        "output_repeated_splits_test/dia12_utt3.mp4": {"split": "test"},
    },
    "urdu": {
        "Angry/SM1_F10_A010.wav": {"emotion": "anger", "speaker": "SM1", "gender": "male"},
        "Happy/SF10_F02_H05.wav": {"emotion": "happiness", "speaker": "SF10", "gender": "female"},
        "Neutral/SM5_F72_N0100.wav": {"emotion": "neutral", "emotion_raw": "N"},
        "Sad/SF9_F1_S01.wav": {"emotion": "sadness"},
    },
    "nemo": {
        "samples/WR0_surprised_64.wav": {"emotion": "surprise", "speaker": "WR0", "sentence": "64"},
        "samples/EB0_anger_1.wav": {"emotion": "anger", "speaker": "EB0"},
        "samples/KD0_happiness_90.wav": {"emotion": "happiness"},
    },
    "folders": {
        "Anger/x1.wav": {"emotion": "anger", "emotion_raw": "Anger", "speaker": ""},
        "speaker7/pleasant_surprise/x2.wav": {"emotion": "surprise", "emotion_raw": "pleasant_surprise"},
        "HAP/session 1/x3.wav": {"emotion": "happiness"},
        "03-neutral/x4.ogg": {"emotion": "neutral"},
        "other/x5.flac": {"emotion": "other"},
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
    found = {u.path: dict(zip(manifest.columns, u.labels, strict=True)) for u in manifest.utterances}
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
    assert set(labels(manifest)["hum"].values()) == {""}
    with pytest.raises(InputError, match=r"1 of 29 files are not named as in emodb .*hum\.wav"):
        read_manifest([tmp_path], corpus="emodb")


def test_a_mixture_is_not_claimed(tmp_path: Path) -> None:
    touch(tmp_path, "03a01Fa.wav", "03a02Wa.wav", "hum.wav", "hiss.wav")
    assert read_manifest([tmp_path]).corpus == "files"


def test_unknown_corpus_lists_the_known(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown corpus 'ravdes'; known: ravdess, "):
        read_manifest([touch(tmp_path, "a.wav")], corpus="ravdes")


def test_files_reads_no_labels_from_names(tmp_path: Path) -> None:
    manifest = read_manifest([touch(tmp_path, "03a01Fa.wav")], corpus="files")
    assert (manifest.corpus, manifest.columns) == ("files", ("emotion", "emotion_raw", "speaker"))


def test_one_emotion_folder_by_itself(tmp_path: Path) -> None:
    touch(tmp_path / "data", "Anger/a.wav", "Happy/b.wav")
    one = read_manifest([tmp_path / "data" / "Anger"])
    both = read_manifest([tmp_path / "data" / "Anger", tmp_path / "data" / "Happy"])
    assert [u.labels[:2] for u in one.utterances] == [("anger", "Anger")]
    assert [u.labels[0] for u in both.utterances] == ["anger", "happiness"]


def test_words_above_the_input_are_not_labels(tmp_path: Path) -> None:
    root = touch(tmp_path / "happy" / "recordings", "a.wav", "b/c.wav")
    assert read_manifest([root]).corpus == "files"


def test_several_corpora_are_recognised_each(tmp_path: Path) -> None:
    emodb = touch(tmp_path / "emodb", "03a01Fa.wav", "08a01Wa.wav")
    ravdess = touch(tmp_path / "ravdess", "03-01-05-01-01-01-03.wav")
    plain = touch(tmp_path / "plain", "x.wav")
    manifest = read_manifest([emodb, ravdess, plain])
    assert manifest.corpus == "emodb+ravdess"
    rows = labels(manifest)
    assert [row["emotion"] for row in rows.values()] == ["happiness", "anger", "anger", ""]
    # speaker 03 of the one is not speaker 03 of the other
    assert [row["speaker"] for row in rows.values()] == ["emodb-03", "emodb-08", "ravdess-03", ""]


@pytest.mark.parametrize("where", ["VideoDemographics.csv", "AudioWAV/VideoDemographics.csv"])
@pytest.mark.parametrize("given", [".", "AudioWAV", "AudioWAV/1001_DFA_ANG_XX.wav"])
def test_cremad_demographics(tmp_path: Path, where: str, given: str) -> None:
    touch(tmp_path, "AudioWAV/1001_DFA_ANG_XX.wav", "AudioWAV/1002_DFA_ANG_XX.wav")
    write(tmp_path / where, "ActorID,Age,Sex,Race,Ethnicity\n1001,51,Male,Caucasian,Not Hispanic\n")
    rows = labels(read_manifest([tmp_path / given]))
    assert (rows["1001_DFA_ANG_XX"]["gender"], rows["1001_DFA_ANG_XX"]["age"]) == ("male", "51")
    assert rows.get("1002_DFA_ANG_XX", {}).get("age", "") == ""


def test_a_broken_side_file_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "1001_DFA_ANG_XX.wav")
    write(tmp_path / "VideoDemographics.csv", "Actor;Age\n1001;51\n")
    with pytest.raises(InputError, match=r"VideoDemographics\.csv: no column 'ActorID', 'Age', 'Sex'"):
        read_manifest([tmp_path])


def iemocap(root: Path) -> Path:
    wavs = "Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_"
    touch(root, *(f"{wavs}{turn}.wav" for turn in ("F000", "M001", "M002")))
    touch(root, "Session1/dialog/wav/Ses01F_impro01.wav", "Session1/dialog/avi/DivX/Ses01F_impro01.avi")
    touch(root, "Session1/dialog/wav/._Ses01F_impro01.wav")
    write(
        root / "Session1/dialog/EmoEvaluation/Ses01F_impro01.txt",
        "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n"
        "[6.2901 - 8.2357]\tSes01F_impro01_F000\tneu\t[2.5000, 2.0000, 3.5000]\n"
        "C-E2:\tNeutral;\t()\nA-E3:\tval 3; act 2; dom  2;\t()\n\n"
        "[10.01 - 11.39]\tSes01F_impro01_M001\texc\t[4.0000, 4.5000, 3.0000]\n"
        "C-E2:\tExcited;\t()\n",
    )
    write(
        root / "Session1/dialog/transcriptions/Ses01F_impro01.txt",
        "Ses01F_impro01_F000 [006.2901-008.2357]: Excuse me.\n"
        "Ses01F_impro01_M001 [010.0100-011.3900]: Do you have your forms?\n",
    )
    return root


@pytest.mark.parametrize("given", [".", "Session1", "Session1/sentences/wav/Ses01F_impro01"])
@pytest.mark.parametrize("corpus", [None, "iemocap"])
def test_iemocap_labels(tmp_path: Path, given: str, corpus: str | None) -> None:
    manifest = read_manifest([iemocap(tmp_path) / given], corpus=corpus)
    rows = labels(manifest)
    assert manifest.corpus == "iemocap"
    excited = rows["Ses01F_impro01_M001"]
    assert (excited["emotion"], excited["emotion_raw"]) == ("happiness", "exc")
    assert (excited["valence"], excited["arousal"], excited["dominance"]) == ("4.0000", "4.5000", "3.0000")
    assert (excited["speaker"], excited["text"]) == ("Ses01M", "Do you have your forms?")
    assert rows["Ses01F_impro01_F000"]["emotion"] == "neutral"
    assert rows["Ses01F_impro01_M002"]["emotion"] == ""
    assert len(rows) == 3  # the two recordings of the whole dialogue are left out
    assert sum("left out" in note for note in manifest.notes) == (0 if "wav" in given else 1)
    assert any("1 of 3 recordings of iemocap have no emotion" in note for note in manifest.notes)


def meld(root: Path) -> Path:
    head = "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode\n"
    write(root / "train_sent_emo.csv", head + '1,"Oh, my God!",Ross,joy,positive,0,0,4,7\n')
    write(root / "dev_sent_emo.csv", head + "1,What?,Monica,surprise,negative,0,0,3,19\n")
    write(root / "csv" / "test_sent_emo.csv", head + "1,No.,Joey,anger,negative,0,0,1,1\n")
    return touch(
        root,
        "train_splits/dia0_utt0.mp4",
        "train_splits/dia0_utt1.mp4",
        "dev_splits_complete/dia0_utt0.mp4",
        "output_repeated_splits_test/dia0_utt0.mp4",
        "output_repeated_splits_test/final_videos_testdia0_utt0.mp4",
    )


def test_meld_splits(tmp_path: Path) -> None:
    rows = labels(read_manifest([meld(tmp_path / "MELD.Raw")]))
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
    write(root / "dev_sent_emo.csv", "Utterance,Speaker,Emotion,Dialogue_ID,Utterance_ID\nHi,Joey,fear,3,4\n")
    rows = labels(read_manifest([root]))
    assert rows["dev_dia3_utt4"]["emotion"] == "fear"


def test_nemo_table(tmp_path: Path) -> None:
    touch(tmp_path, "samples/WR0_surprised_64.wav", "samples/KD0_neutral_2.wav")
    write(
        tmp_path / "data.tsv",
        "file_id\temotion\traw_text\tnormalized_text\tspeaker_id\tgender\tage\n"
        'WR0_surprised_64.wav\tsurprised\t"Ucho" wykrywa dźwięki.\tucho\t        WR0\tmale\t23\n',
    )
    rows = labels(read_manifest([tmp_path]))
    row = rows["WR0_surprised_64"]
    assert (row["speaker"], row["gender"], row["age"]) == ("WR0", "male", "23")
    assert row["text"] == '"Ucho" wykrywa dźwięki.'
    assert rows["KD0_neutral_2"]["age"] == ""


def test_synonyms() -> None:
    assert set(SYNONYMS.values()) == set(EMOTIONS)
    for word, emotion in [
        ("Angry", "anger"),
        ("Pleasant_Surprise", "surprise"),
        ("pleasant-surprised", "surprise"),
        ("neu", "neutral"),
        ("  JOY ", "happiness"),
        ("fearful", "fear"),
        ("bored", "boredom"),
        ("calm", "calm"),
        ("nostalgia", "nostalgia"),
        ("7", "7"),
        ("", ""),
        ("  ", ""),
    ]:
        assert common_emotion(word) == emotion, word
    for emotion in EMOTIONS:
        assert common_emotion(emotion) == emotion


def test_nothing_is_recognised_in_nothing() -> None:
    assert recognise([], "/in") == []


def test_all_are_looked_at_where_all_must_fit() -> None:
    fitting = [f"/in/Anger/{i}.wav" for i in range(5001)]
    (piece,) = recognise(fitting, "/in")
    assert (piece.corpus.name, piece.rows) == ("folders", list(range(5001)))
    assert recognise([*fitting[:4999], "/in/misc/x.wav", *fitting[5000:]], "/in") == []


# --- real recordings


def real(name: str) -> Manifest:
    return read_manifest([shared(name)])


def test_real_emodb() -> None:
    manifest = real("emodb")
    rows = labels(manifest).values()
    assert (manifest.corpus, len(rows)) == ("emodb", 339)
    assert len({row["speaker"] for row in rows}) == 10
    assert Counter(row["emotion"] for row in rows) == {
        "anger": 127,
        "neutral": 79,
        "happiness": 71,
        "sadness": 62,
    }
    assert len({row["speaker"] for row in rows if row["gender"] == "male"}) == 5


def test_real_ravdess() -> None:
    manifest = real("ravdess")
    rows = labels(manifest).values()
    assert (manifest.corpus, len(rows)) == ("ravdess", 1440)
    assert len({row["speaker"] for row in rows}) == 24
    kinds = ("calm", "happiness", "sadness", "anger", "fear", "disgust", "surprise")
    assert Counter(row["emotion"] for row in rows) == {"neutral": 96, **dict.fromkeys(kinds, 192)}
    assert Counter(row["gender"] for row in rows) == {"male": 720, "female": 720}


def test_real_ravdess_48k() -> None:
    manifest = real("ravdess_48k")
    assert (manifest.corpus, len(manifest)) == ("ravdess", 63)


@pytest.mark.parametrize(("name", "count"), [("fsdd", 120), ("librispeech", 40), ("odd", 120)])
def test_real_recordings_without_emotions(name: str, count: int) -> None:
    manifest = real(name)
    assert (manifest.corpus, len(manifest)) == ("files", count)
    assert {u.labels for u in manifest.utterances} == {("", "", "")}
