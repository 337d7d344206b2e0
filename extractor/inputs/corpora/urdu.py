"""URDU (Latif et al. 2018): ``SM1_F10_A010.wav`` is speaker, file, emotion with a running number.

The speaker is S, the gender, and a number that counts over both genders.
"""

from __future__ import annotations

import re

from extractor.inputs.corpora.labels import GENDER, Corpus, Labels, stem

EMOTIONS = {"A": "anger", "H": "happiness", "N": "neutral", "S": "sadness"}

_NAME = re.compile(r"(S([MF])\d+)_F\d+_([AHNS])\d+")


def parse(path: str, root: str) -> Labels | None:
    match = _NAME.fullmatch(stem(path))
    if match is None:
        return None
    return {"emotion_raw": match[3], "speaker": match[1], "gender": GENDER[match[2]]}


URDU = Corpus(
    name="urdu",
    title="URDU, emotional speech from Urdu talk shows",
    emotions=EMOTIONS,
    columns=("gender",),
    parse=parse,
)
