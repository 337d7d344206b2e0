# ruff: noqa: PTH119, PTH120
# A path is a str here: there may be millions of them.
"""Corpora of emotional speech: how each names its files and codes its labels.

To add one: a row in `CORPORA`, and where it keeps more in files of its own, a function in `side_files`. The
most specific names come first, ``folders`` last: it takes what no other does.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

from extractor.inputs.corpora.side_files import (
    GENDER,
    Labels,
    annotate_cremad,
    annotate_iemocap,
    annotate_meld,
    annotate_nemo,
    stem,
)
from extractor.inputs.corpora.words import SYNONYMS, common_emotion, emotion_word, is_missing, plain

Parse: TypeAlias = Callable[[str, str], Labels | None]


@dataclass(frozen=True)
class Corpus:
    """One row of the table of corpora.

    ``parse(path, root)`` takes an absolute path and the input folder it was found under, and gives
    the labels that the name holds: ``emotion_raw`` as the corpus codes it, ``speaker``, the corpus's own
    ``columns``, and ``id`` where it has ids that are better than file stems; ``None`` if the name is not of
    this corpus. ``annotate(paths, rows, root)`` completes those rows in place from the corpus's own files.
    """

    name: str
    title: str
    emotions: Mapping[str, str]  # raw label -> common emotion
    columns: tuple[str, ...]  # labels beside emotion, emotion_raw, speaker
    parse: Parse
    annotate: Callable[[Sequence[str], Sequence[Labels | None], str], None] | None = None
    # Recordings that a search of its folder leaves out, by their path with slashes, and why. Only where
    # others are there: naming their own folder takes them.
    spare: tuple[re.Pattern[str], str] | None = None
    share: float = 0.9  # of the files must fit for the corpus to be recognised: strays are common

    def emotion(self, raw: str) -> str:
        """In the common set by the corpus's own codes, in any case, else as `common_emotion` has it."""
        if raw not in self.emotions:
            for code, emotion in self.emotions.items():
                if plain(code) == plain(raw):
                    return emotion
        return self.emotions.get(raw) or common_emotion(raw)


def words(*codes: str) -> dict[str, str]:
    """Codes that are words, or short for one, with the common emotion that they mean."""
    return {code: common_emotion(code) for code in codes}


def by_name(pattern: str, **means: tuple[str, Mapping[str, str]]) -> Parse:
    """Labels by the file's name: the groups of ``pattern``, and those of ``means``, each with the group that
    it follows from and what the codes there mean; a code that is not among them means itself."""
    compiled = re.compile(pattern)

    def parse(path: str, root: str) -> Labels | None:
        match = compiled.fullmatch(stem(path))
        if match is None:
            return None
        labels = match.groupdict()
        return labels | {name: codes.get(labels[of], labels[of]) for name, (of, codes) in means.items()}

    return parse


# RAVDESS: ``03-01-05-02-01-02-12.wav``, seven two-digit fields (Livingstone and Russo 2018). Odd actors are
# men. Modality 02 is video without sound: such files stay in the manifest and fail at decoding.
RAVDESS = Corpus(
    name="ravdess",
    title="RAVDESS, Ryerson Audio-Visual Database of Emotional Speech and Song",
    emotions={
        "01": "neutral",
        "02": "calm",
        "03": "happiness",
        "04": "sadness",
        "05": "anger",
        "06": "fear",
        "07": "disgust",
        "08": "surprise",
    },
    columns=("gender", "text", "sentence", "intensity", "repetition", "modality", "vocal_channel"),
    parse=by_name(
        r"(?P<modality>0[1-3])-(?P<vocal_channel>0[12])-(?P<emotion_raw>0[1-8])-(?P<intensity>0[12])"
        r"-(?P<sentence>0[12])-(?P<repetition>0[12])-(?P<speaker>0[1-9]|1\d|2[0-4])",
        gender=("speaker", {f"{actor:02}": "male" if actor % 2 else "female" for actor in range(1, 25)}),
        text=("sentence", {"01": "Kids are talking by the door", "02": "Dogs are sitting by the door"}),
        intensity=("intensity", {"01": "normal", "02": "strong"}),
        modality=("modality", {"01": "audio-video", "02": "video", "03": "audio"}),
        vocal_channel=("vocal_channel", {"01": "speech", "02": "song"}),
    ),
)

# CREMA-D: ``1001_DFA_ANG_XX.wav`` is actor, sentence, emotion, intensity. One file of the corpus has a cut
# intensity: ``1040_ITH_SAD_X``.
CREMAD_TEXTS = {
    "IEO": "It's eleven o'clock",
    "TIE": "That is exactly what happened",
    "IOM": "I'm on my way to the meeting",
    "IWW": "I wonder what this is about",
    "TAI": "The airplane is almost full",
    "MTI": "Maybe tomorrow it will be cold",
    "IWL": "I would like a new alarm clock",
    "ITH": "I think I have a doctor's appointment",
    "DFA": "Don't forget a jacket",
    "ITS": "I think I've seen this before",
    "TSI": "The surface is slick",
    "WSI": "We'll stop in a couple of minutes",
}
CREMAD_INTENSITIES = {"LO": "low", "MD": "medium", "HI": "high", "XX": "unspecified", "X": "unspecified"}
CREMAD = Corpus(
    name="cremad",
    title="CREMA-D, Crowd-sourced Emotional Multimodal Actors Dataset",
    emotions=words("ANG", "DIS", "FEA", "HAP", "NEU", "SAD"),
    columns=("gender", "age", "text", "sentence", "intensity"),
    parse=by_name(
        rf"(?P<speaker>1\d\d\d)_(?P<sentence>{'|'.join(CREMAD_TEXTS)})_(?P<emotion_raw>ANG|DIS|FEA|HAP|NEU|SAD)"
        r"_(?P<intensity>LO|MD|HI|XX|X)",
        text=("sentence", CREMAD_TEXTS),
        intensity=("intensity", CREMAD_INTENSITIES),
    ),
    annotate=annotate_cremad,
    spare=(re.compile(r"/(AudioMP3|VideoFlash)/"), "copies of AudioWAV in other formats"),
)

# EmoDB, Berlin: ``03a01Fa.wav`` is speaker, sentence, emotion (the initial of the German word), version
# (Burkhardt et al. 2005). Of its ten speakers, 03 10 11 12 15 are men.
EMODB_GENDERS = dict.fromkeys(("03", "10", "11", "12", "15"), "male")
EMODB_GENDERS |= dict.fromkeys(("08", "09", "13", "14", "16"), "female")
EMODB_TEXTS = {
    "a01": "Der Lappen liegt auf dem Eisschrank.",
    "a02": "Das will sie am Mittwoch abgeben.",
    "a04": "Heute abend könnte ich es ihm sagen.",
    "a05": "Das schwarze Stück Papier befindet sich da oben neben dem Holzstück.",
    "a07": "In sieben Stunden wird es soweit sein.",
    "b01": "Was sind denn das für Tüten, die da unter dem Tisch stehen?",
    "b02": "Sie haben es gerade hochgetragen und jetzt gehen sie wieder runter.",
    "b03": "An den Wochenenden bin ich jetzt immer nach Hause gefahren und habe Agnes besucht.",
    "b09": "Ich will das eben wegbringen und dann mit Karl was trinken gehen.",
    "b10": "Die wird auf dem Platz sein, wo wir sie immer hinlegen.",
}
EMODB = Corpus(
    name="emodb",
    title="EmoDB, Berlin Database of Emotional Speech",
    emotions={
        "W": "anger",
        "L": "boredom",
        "E": "disgust",
        "A": "fear",
        "F": "happiness",
        "T": "sadness",
        "N": "neutral",
    },
    columns=("gender", "text", "sentence", "repetition"),
    parse=by_name(
        rf"(?P<speaker>03|08|09|1[0-6])(?P<sentence>{'|'.join(EMODB_TEXTS)})(?P<emotion_raw>[WLEAFTN])"
        r"(?P<repetition>[a-z])",
        gender=("speaker", EMODB_GENDERS),
        text=("sentence", EMODB_TEXTS),
    ),
)

# TESS, Toronto: ``OAF_back_angry.wav`` is speaker, word, emotion; ``ps`` is pleasant surprise. Two women, an
# older (OAF) and a younger (YAF), say "Say the word ...". One file is misnamed: ``OA_bite_neutral.wav`` is
# spoken by OAF.
_tess_name = by_name(
    r"(?P<speaker>OAF|OA|YAF)_(?P<sentence>[A-Za-z]+)_(?P<emotion_raw>angry|disgust|fear|happy|neutral|ps|sad)",
    speaker=("speaker", {"OA": "OAF"}),
)


def _tess(path: str, root: str) -> Labels | None:
    labels = _tess_name(path, root)
    return labels and {**labels, "gender": "female", "text": f"Say the word {labels['sentence']}"}


TESS = Corpus(
    name="tess",
    title="TESS, Toronto Emotional Speech Set",
    emotions=words("angry", "disgust", "fear", "happy", "neutral", "ps", "sad"),
    columns=("gender", "text", "sentence"),
    parse=_tess,
)

# SAVEE: ``DC/a01.wav``, or ``DC_a01.wav`` where the folders of the four men were joined; one or two letters
# of emotion, then the sentence's number.
_savee_name = by_name(r"(?:(?P<speaker>DC|JE|JK|KL)_)?(?P<emotion_raw>a|d|f|h|n|sa|su)(?P<sentence>\d\d?)")


def _savee(path: str, root: str) -> Labels | None:
    labels = _savee_name(path, root)
    if labels is None:
        return None
    speaker = labels["speaker"] or os.path.basename(os.path.dirname(path))
    known = speaker in ("DC", "JE", "JK", "KL")
    return {**labels, "speaker": speaker, "gender": "male"} if known else None


SAVEE = Corpus(
    name="savee",
    title="SAVEE, Surrey Audio-Visual Expressed Emotion",
    emotions={
        "a": "anger",
        "d": "disgust",
        "f": "fear",
        "h": "happiness",
        "n": "neutral",
        "sa": "sadness",
        "su": "surprise",
    },
    columns=("gender", "sentence"),
    parse=_savee,
)

# URDU (Latif et al. 2018): ``SM1_F10_A010.wav`` is speaker, file, emotion with a running number. The speaker
# is S, the gender, and a number that counts over both genders.
URDU = Corpus(
    name="urdu",
    title="URDU, emotional speech from Urdu talk shows",
    emotions={"A": "anger", "H": "happiness", "N": "neutral", "S": "sadness"},
    columns=("gender",),
    parse=by_name(
        r"(?P<speaker>S(?P<gender>[MF])\d+)_F\d+_(?P<emotion_raw>[AHNS])\d+", gender=("gender", GENDER)
    ),
)

# nEMO, Polish: ``WR0_surprised_64.wav`` is speaker, emotion, sentence.
NEMO = Corpus(
    name="nemo",
    title="nEMO, Dataset of Emotional Speech in Polish",
    emotions=words("anger", "fear", "happiness", "neutral", "sadness", "surprised", "surprise"),
    columns=("gender", "age", "text", "sentence"),
    parse=by_name(
        r"(?P<speaker>[A-Z][A-Z]\d)"
        r"_(?P<emotion_raw>anger|fear|happiness|neutral|sadness|surprised|surprise)_(?P<sentence>\d+)"
    ),
    annotate=annotate_nemo,
)

# IEMOCAP: ``Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_M003.wav``, a turn of a dialogue. The
# speaker is the session with the letter before the turn's number: that turn is said by the man Ses01M. The
# letter after the session only tells who wore the motion-capture markers.
_IEMOCAP_NAME = re.compile(r"((Ses0[1-5])[FM]_(?:impro|script)\d\d\w*?)(?:_([FM])\d{3})?")


def _iemocap(path: str, root: str) -> Labels | None:
    match = _IEMOCAP_NAME.fullmatch(stem(path))
    if match is None:
        return None
    dialogue, session, letter = match.groups()
    row = {"session": session, "dialogue": dialogue}
    if letter is not None:
        row |= {"id": stem(path), "speaker": session + letter, "gender": GENDER[letter]}
    return row


IEMOCAP = Corpus(
    name="iemocap",
    title="IEMOCAP, Interactive Emotional Dyadic Motion Capture",
    # The four-class task joins excitement and happiness; emotion_raw keeps them apart. Frustration is not of
    # the common set: a class of its own. "xxx", where the annotators did not agree, is no label.
    emotions=words("neu", "hap", "exc", "ang", "sad", "fea", "sur", "dis", "oth") | {"fru": "frustration"},
    columns=("session", "gender", "text", "valence", "arousal", "dominance", "dialogue"),
    parse=_iemocap,
    annotate=annotate_iemocap,
    spare=(re.compile(r"/dialog/(wav|avi)/"), "recordings of whole dialogues, whose turns are taken"),
)

# MELD: ``train_splits/dia0_utt3.mp4``. The same dialogue and utterance numbers occur in every split, so the
# folder's name decides the split, and ids are ``{split}_{stem}``. The test folder of the original archive
# also holds second cuts of some clips as ``final_videos_testdia0_utt3.mp4``.
_MELD_NAME = re.compile(r"(final_videos_test)?dia(\d+)_utt(\d+)")
_MELD_FOLDER = re.compile(r"(?<![a-z])(train|dev|test)(?![a-z])")


def _meld(path: str, root: str) -> Labels | None:
    match = _MELD_NAME.fullmatch(stem(path))
    if match is None:
        return None
    split = "test" if match[1] else _meld_split(os.path.dirname(path), root)
    return {"split": split, "dialogue": str(int(match[2])), "utterance": str(int(match[3]))}


@lru_cache(maxsize=4096)
def _meld_split(folder: str, root: str) -> str:
    """By the nearest folder, up to the input folder, that names one: ``output_repeated_splits_test``."""
    for above in _upwards(folder, root):
        found = _MELD_FOLDER.findall(os.path.basename(above).lower())
        if found:
            return str(found[-1])
    return ""


def _upwards(folder: str, root: str) -> list[str]:
    """The folder and those around it, up to the input folder."""
    folders = [folder]
    while folders[-1] not in (root, os.path.dirname(folders[-1])):
        folders.append(os.path.dirname(folders[-1]))
    return folders


MELD = Corpus(
    name="meld",
    title="MELD, Multimodal EmotionLines Dataset",
    emotions=words("neutral", "joy", "sadness", "surprise", "disgust", "anger", "fear"),
    columns=("split", "text", "dialogue", "utterance", "sentiment", "season", "episode"),
    parse=_meld,
    annotate=annotate_meld,
)


# Any corpus with one folder an emotion: ``root/Anger/x.wav``, ``root/speaker7/happy/x.wav``. Recognised only
# if that holds for every recording. Speakers are unknown.
def _folders(path: str, root: str) -> Labels | None:
    raw = _emotion_folder(os.path.dirname(path), root)
    return None if raw is None else {"emotion_raw": raw}


@lru_cache(maxsize=4096)
def _emotion_folder(folder: str, root: str) -> str | None:
    """The name of the nearest folder, up to and including the input folder itself, that is an emotion word;
    where there is none, of one that says "not known"."""
    unlabelled = None
    for above in _upwards(folder, root):
        word = os.path.basename(above)
        if emotion_word(word) is not None:
            return word
        if unlabelled is None and above != root and is_missing(word):
            unlabelled = word
    return unlabelled


FOLDERS = Corpus(
    name="folders",
    title="one folder an emotion",
    emotions=SYNONYMS,
    columns=(),
    parse=_folders,
    share=1.0,
)

NAMED = (RAVDESS, CREMAD, IEMOCAP, EMODB, TESS, URDU, NEMO, MELD, SAVEE)  # known by their file names
CORPORA: dict[str, Corpus] = {corpus.name: corpus for corpus in (*NAMED, FOLDERS)}
