"""EmoDB, Berlin: ``03a01Fa.wav`` is speaker, sentence, emotion (the initial of the German word), version.

Burkhardt et al. 2005. Ten speakers; 03 10 11 12 15 are men.
"""

from __future__ import annotations

import re

from extractor.inputs.corpora.labels import Corpus, Labels, stem

EMOTIONS = {
    "W": "anger",
    "L": "boredom",
    "E": "disgust",
    "A": "fear",
    "F": "happiness",
    "T": "sadness",
    "N": "neutral",
}
TEXT = {
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

_NAME = re.compile(rf"(03|08|09|1[0-6])({'|'.join(TEXT)})([WLEAFTN])([a-z])")
_MEN = ("03", "10", "11", "12", "15")


def parse(path: str, root: str) -> Labels | None:
    match = _NAME.fullmatch(stem(path))
    if match is None:
        return None
    speaker, sentence, emotion, version = match.groups()
    return {
        "emotion_raw": emotion,
        "speaker": speaker,
        "gender": "male" if speaker in _MEN else "female",
        "text": TEXT[sentence],
        "sentence": sentence,
        "repetition": version,
    }


EMODB = Corpus(
    name="emodb",
    title="EmoDB, Berlin Database of Emotional Speech",
    emotions=EMOTIONS,
    columns=("gender", "text", "sentence", "repetition"),
    parse=parse,
)
