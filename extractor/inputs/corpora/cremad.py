"""CREMA-D: ``1001_DFA_ANG_XX.wav`` is actor, sentence, emotion, intensity.

Sex and age are in ``VideoDemographics.csv`` (ActorID,Age,Sex,Race,Ethnicity), looked for beside
and above the recordings. One file of the corpus has a cut intensity: ``1040_ITH_SAD_X``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from extractor.inputs.corpora.labels import GENDER, Corpus, Labels, Spare, beside, by_folder, read_table, stem

EMOTIONS = {
    "ANG": "anger",
    "DIS": "disgust",
    "FEA": "fear",
    "HAP": "happiness",
    "NEU": "neutral",
    "SAD": "sadness",
}
INTENSITY = {"LO": "low", "MD": "medium", "HI": "high", "XX": "unspecified", "X": "unspecified"}
TEXT = {
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

_NAME = re.compile(rf"(1\d\d\d)_({'|'.join(TEXT)})_({'|'.join(EMOTIONS)})_({'|'.join(INTENSITY)})")


def parse(path: str, root: str) -> Labels | None:
    match = _NAME.fullmatch(stem(path))
    if match is None:
        return None
    actor, sentence, emotion, intensity = match.groups()
    return {
        "emotion_raw": emotion,
        "speaker": actor,
        "text": TEXT[sentence],
        "sentence": sentence,
        "intensity": INTENSITY[intensity],
    }


def annotate(paths: Sequence[str], rows: Sequence[Labels | None], root: str) -> None:
    actors: dict[str | None, dict[str, Labels]] = {None: {}}
    for folder, positions in by_folder(paths, rows):
        file = beside(folder, ["VideoDemographics.csv"], root)
        if file not in actors:
            assert file is not None
            actors[file] = {row["ActorID"]: row for row in read_table(file, ["ActorID", "Age", "Sex"])}
        for row in filter(None, (rows[i] for i in positions)):
            person = actors[file].get(row["speaker"], {})
            row["gender"] = GENDER.get(person.get("Sex", ""), "")
            row["age"] = person.get("Age", "")


CREMAD = Corpus(
    name="cremad",
    title="CREMA-D, Crowd-sourced Emotional Multimodal Actors Dataset",
    emotions=EMOTIONS,
    columns=("gender", "age", "text", "sentence", "intensity"),
    parse=parse,
    annotate=annotate,
    spare=Spare(re.compile(r"/(AudioMP3|VideoFlash)/"), "copies of AudioWAV in other formats"),
)
