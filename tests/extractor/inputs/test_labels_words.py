"""Labels: what is read as an emotion, what says "not known", and what stays a class of its own."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner
from conftest import touch
from inputs_cases import emotions, rows, written

from extractor import Store, extract
from extractor.commands.extract import command
from extractor.errors import InputError, SettingsError
from extractor.inputs.corpora.words import common_emotion, is_missing, parse_renames
from extractor.inputs.manifest import read_manifest

MISSING = (
    "",
    "  ",
    "nan",
    "NaN",
    "NA",
    "N/A",
    "n/a",
    "None",
    "null",
    "NULL",
    "xxx",
    "-",
    "--",
    "?",
    "unknown",
)

# The words that corpora of a language use, in the order of `EMOTIONS_OF`; "" where a language has none here.
EMOTIONS_OF = ("anger", "happiness", "sadness", "neutral", "fear", "disgust", "surprise", "calm", "boredom")
WORDS = {
    "English": "Angry Happy Sad Neutral Fearful Disgusted Surprised Calm Bored",
    "English nouns": "anger joy sadness neutrality fear disgust surprise calmness boredom",
    "German": "Ärger Freude Trauer neutral Angst Ekel Überraschung ruhig Langeweile",
    "German adjectives": "wütend fröhlich traurig neutral ängstlich angeekelt überrascht ruhig gelangweilt",
    "German, ASCII": "Aerger froehlich Trauer Neutral aengstlich Ekel Ueberraschung ruhig Langeweile",
    "French": "colère joie tristesse neutre peur dégoût surprise calme ennui",
    "Italian": "rabbia gioia tristezza neutrale paura disgusto sorpresa calma noia",
    "Italian, EMOVO": "rab gio tri neu pau dis sor - -",
    "Spanish": "ira alegría tristeza neutral miedo asco sorpresa calma aburrimiento",
    "Portuguese": "raiva alegria tristeza neutro medo nojo surpresa calma tédio",
    "Polish": "złość radość smutek neutralny strach wstręt zaskoczenie spokój nuda",
    "Turkish": "kızgın mutlu üzgün nötr korku tiksinti şaşkın sakin -",
    "Persian": "khashm shadi gham khonsa tars - taajob - -",
    "Urdu": "ghussa khushi udaas - khauf - hairat - -",
    "Russian": "гнев радость грусть нейтрально страх отвращение удивление спокойствие скука",
    "Mandarin": "生气 高兴 悲伤 中性 害怕 厌恶 惊讶 - -",
}


def table(folder: Path, column: str, values: list[str]) -> Path:
    cells = [f'x{i}.wav,"{value}"' for i, value in enumerate(values)]
    return written(folder, "\n".join([f"path,{column}", *cells]))


@pytest.mark.parametrize("language", WORDS)
def test_words_of_a_language_mean_the_common_emotions(language: str) -> None:
    for word, emotion in zip(WORDS[language].split(), EMOTIONS_OF, strict=True):
        if word != "-":
            assert common_emotion(word) == emotion, word


@pytest.mark.parametrize("word", ["Ärger", "colère", "Dégoût", "Überraschung", "złość", "kızgın", "ΛΎΠΗ"])
def test_the_form_of_the_letters_does_not_matter(word: str) -> None:
    expected = common_emotion(word)
    assert expected in EMOTIONS_OF
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        made = unicodedata.normalize(form, word)
        spellings = (
            made,
            made.upper(),
            made.lower(),
            made.title(),
            f"  {made}\t",
            f"\ufeff{made}",
            f"3_{made}",
        )
        assert {common_emotion(spelt) for spelt in spellings} == {expected}


def test_names_read_in_another_encoding_are_words_still() -> None:
    """As `unzip` leaves the folders of CaFE."""
    misread = {"ColŠre": "anger", "D‚go–t": "disgust", "Ã„rger": "anger"}
    assert {word: common_emotion(word) for word in misread} == misread


@pytest.mark.parametrize("cell", MISSING)
def test_no_label_is_no_class(cell: str, tmp_path: Path) -> None:
    assert is_missing(cell) and common_emotion(cell) == ""
    text = f"path,emotion,speaker,split,text\na.wav,{cell},{cell},{cell},{cell}\nb.wav,sad,S,dev,x\n"
    first, second = rows(read_manifest(written(tmp_path, text)))
    assert (first["emotion"], first["speaker"], first["split"]) == ("", "", "")
    assert (first["emotion_raw"], first["text"]) == (cell.strip(), cell.strip())  # as they were written
    assert (second["emotion"], second["speaker"], second["split"]) == ("sadness", "S", "dev")


def test_no_label_in_json(tmp_path: Path) -> None:
    text = '{"path": "a.wav", "emotion": NaN, "speaker": null}\n{"path": "b.wav", "emotion": "joy"}\n'
    assert emotions(read_manifest(written(tmp_path, text, "m.jsonl"))) == ["", "happiness"]


def test_what_has_no_counterpart_stays_a_class_of_its_own(tmp_path: Path) -> None:
    values = [
        "Nostalgia",
        " nostalgia ",
        "NOSTALGIA",
        "pure  awe",
        "Pure Awe",
        "1",
        "2",
        "contempt",
        "frustrated",
    ]
    manifest = read_manifest(table(tmp_path, "emotion", values))
    classes = ["nostalgia"] * 3 + ["pure awe"] * 2 + ["1", "2", "contempt", "frustrated"]
    assert emotions(manifest) == classes
    assert [row["emotion_raw"] for row in rows(manifest)] == [value.strip() for value in values]
    # "other" is given by its own word alone
    assert common_emotion("other") == common_emotion("Others") == "other"


def test_what_was_not_mapped_and_what_is_missing_is_listed_with_counts(tmp_path: Path) -> None:
    values = ["W"] * 3 + ["L"] * 2 + ["anger", "nan", "nan", "xxx", ""]
    notes = read_manifest(table(tmp_path, "emotion", values)).notes
    assert len(notes) == 2
    assert "stay classes of their own: W as w (3), L as l (2); --map OLD=NEW" in notes[0]
    assert notes[1].endswith("taken for no emotion: nan (2), xxx (1)")
    assert read_manifest(table(tmp_path, "emotion", ["anger", "sad", ""])).notes == ()


EMODB_CODES = {"W": "anger", "L": "boredom", "E": "disgust", "A": "fear", "F": "happiness", "T": "sadness"}


def test_codes_of_one_letter_mean_something_in_their_corpus_only(tmp_path: Path) -> None:
    file = table(tmp_path, "emotion", [*EMODB_CODES, "N"])
    assert emotions(read_manifest(file)) == ["w", "l", "e", "a", "f", "t", "n"]
    named = read_manifest(file, corpus="emodb")
    assert emotions(named) == [*EMODB_CODES.values(), "neutral"]
    assert named.notes == ()
    assert emotions(read_manifest(file, corpus="urdu"))[3] == "anger"  # another corpus, another A
    file = table(tmp_path, "emotion", ["neu", "hap", "exc", "fru", "oth", "xxx"])
    own = ["neutral", "happiness", "happiness", "frustration", "other", ""]
    assert emotions(read_manifest(file, corpus="iemocap")) == own


@pytest.mark.parametrize(
    ("rows", "read"),
    [
        # A table of EmoDB's own names and codes, with a label that the names do not have.
        ("03a01Fa.wav,F 03a02Wa.wav,w 08a01Na.wav,nostalgia", ["happiness", "anger", "nostalgia"]),
        # English initials for EmoDB's recordings: its F is happiness, theirs is fear.
        ("03a01Fa.wav,H 03a02Aa.wav,F 08a01Na.wav,N 08a01Wa.wav,A", ["h", "f", "n", "a"]),
    ],
)
def test_codes_are_read_where_the_names_tell_the_corpus(rows: str, read: list[str], tmp_path: Path) -> None:
    file = written(tmp_path, "\n".join(["path,emotion", *rows.split()]))
    assert emotions(read_manifest(file)) == read


def test_a_missing_label_is_filled_from_the_corpus(tmp_path: Path) -> None:
    file = written(tmp_path, "path,emotion,speaker\n08a01Fa.wav,nan,NA\n09a02Fa.wav,calm,me\n")
    first, second = rows(read_manifest(file, corpus="emodb"))
    assert (first["emotion"], first["emotion_raw"], first["speaker"]) == ("happiness", "F", "08")
    assert (second["emotion"], second["emotion_raw"], second["speaker"]) == ("calm", "calm", "me")


def test_speakers_in_two_forms_of_unicode_are_one(tmp_path: Path) -> None:
    names = [unicodedata.normalize(form, "José") for form in ("NFC", "NFD")]
    assert len({row["speaker"] for row in rows(read_manifest(table(tmp_path, "speaker", names)))}) == 1


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"fru": "anger"}, ["anger", "neutral", "calm"]),
        ("FRU=Wut,calm=neutral", ["anger", "neutral", "neutral"]),
        (["02=neutral", "fru=anger"], ["anger", "neutral", "neutral"]),
        ("neutral=pure rest", ["fru", "pure rest", "calm"]),
        ("fru=none", ["", "neutral", "calm"]),
    ],
)
def test_map_counts_a_label_as_another(tmp_path: Path, given: object, expected: list[str]) -> None:
    """By the raw label or by its class; ``emotion_raw`` keeps what was written."""
    text = "path,emotion,emotion_raw\na.wav,fru,fru\nb.wav,neutral,01\nc.wav,calm,02\n"
    manifest = read_manifest(written(tmp_path, text), renames=parse_renames(given))  # type: ignore[arg-type]
    assert emotions(manifest) == expected
    assert [row["emotion_raw"] for row in rows(manifest)] == ["fru", "01", "02"]


def test_map_of_a_recognised_corpus(tmp_path: Path) -> None:
    touch(tmp_path, "03a01Fa.wav", "03a02Wa.wav", "03a04La.wav")
    renamed = read_manifest(tmp_path, renames={"L": "calm", "anger": "other"})
    assert emotions(renamed) == ["happiness", "other", "calm"]


def test_map_of_a_label_that_is_not_there_lists_those_that_are(tmp_path: Path) -> None:
    file = table(tmp_path, "emotion", ["sad", "Nostalgia"])
    with pytest.raises(SettingsError, match="--map: unknown class 'nostalgi'; known: nostalgia"):
        read_manifest(file, renames={"nostalgi": "sadness"})


@pytest.mark.parametrize("text", ["calm", "calm=", "=neutral", "calm=neutral,calm=sadness"])
def test_map_is_written_old_equals_new(text: str) -> None:
    with pytest.raises(SettingsError, match="--map"):
        parse_renames([text])


def test_a_label_may_hold_a_comma() -> None:
    assert parse_renames(["hot, loud=anger", "a=b,c=d"]) == {"hot, loud": "anger", "a": "b", "c": "d"}


def test_folders_in_other_languages_and_without_a_label(tmp_path: Path) -> None:
    root = touch(tmp_path / "set", "Wut/a.wav", "Colère/b.wav", "04Sad/c.wav", "xxx/d.wav", "contempt/e.wav")
    manifest = read_manifest(root)
    assert manifest.corpus == "folders"
    found = {Path(u.path).stem: u.labels[0] for u in manifest.utterances}
    assert found == {"a": "anger", "b": "anger", "c": "sadness", "d": "", "e": "contempt"}


def test_a_corpus_given_by_name_needs_its_names_where_there_is_no_label(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"1 of 2 files are not named as in emodb .*x1\.wav"):
        read_manifest(table(tmp_path, "emotion", ["W", ""]), corpus="emodb")


RAW = ("Wut", "Freude", "nan", "Sehnsucht", "calm", "XXX")


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    noise = np.random.default_rng(0).standard_normal((len(RAW), 4000)) * 0.1
    for i, samples in enumerate(noise):
        soundfile.write(tmp_path / f"{i}.wav", samples, 16_000)
    cells = [f"{i}.wav,{raw},N/A,none" for i, raw in enumerate(RAW)]
    return written(tmp_path, "\n".join(["path,emotion,speaker,text", *cells]))


def test_map_and_what_could_not_be_mapped_are_said_and_stored(recorded: Path, tmp_path: Path) -> None:
    words = [str(recorded), "--model", "mfcc", "--out", str(tmp_path / "run")]
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


def test_map_in_the_library_is_the_same(recorded: Path, tmp_path: Path) -> None:
    store = extract(recorded, model="mfcc", out=tmp_path / "run", map={"XXX": "other", "Wut": "fear"})
    assert store.labels("emotion") == ["fear", "happiness", "", "sehnsucht", "calm", "other"]
    with pytest.raises(SettingsError, match="--map: unknown class 'Wt'; known: Wut"):
        extract(recorded, model="mfcc", out=tmp_path / "two", map="Wt=anger")
    assert not (tmp_path / "two").exists()
