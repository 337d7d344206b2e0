"""SAVEE: ``DC/a01.wav``, or ``DC_a01.wav`` where the speakers' folders were joined.

Four men (DC JE JK KL); one or two letters of emotion, then the sentence's number.
"""

from __future__ import annotations

import re

from extractor.inputs.corpora.labels import Corpus, Labels, name, parent, stem

EMOTIONS = {
    "a": "anger",
    "d": "disgust",
    "f": "fear",
    "h": "happiness",
    "n": "neutral",
    "sa": "sadness",
    "su": "surprise",
}

_NAME = re.compile(r"(?:(DC|JE|JK|KL)_)?(a|d|f|h|n|sa|su)(\d\d?)")
_SPEAKERS = ("DC", "JE", "JK", "KL")


def parse(path: str, root: str) -> Labels | None:
    match = _NAME.fullmatch(stem(path))
    if match is None:
        return None
    speaker = match[1] or name(parent(path))
    if speaker not in _SPEAKERS:
        return None
    return {"emotion_raw": match[2], "speaker": speaker, "gender": "male", "sentence": match[3]}


SAVEE = Corpus(
    name="savee",
    title="SAVEE, Surrey Audio-Visual Expressed Emotion",
    emotions=EMOTIONS,
    columns=("gender", "sentence"),
    parse=parse,
)
