"""TESS, Toronto: ``OAF_back_angry.wav`` is speaker, word, emotion.

Two women, an older (OAF) and a younger (YAF), say "Say the word ..."; ``ps`` is pleasant surprise.
One file of the corpus is misnamed: ``OA_bite_neutral.wav`` is spoken by OAF.
"""

from __future__ import annotations

import re

from extractor.inputs.corpora.labels import Corpus, Labels, stem

EMOTIONS = {
    "angry": "anger",
    "disgust": "disgust",
    "fear": "fear",
    "happy": "happiness",
    "neutral": "neutral",
    "ps": "surprise",
    "sad": "sadness",
}

_NAME = re.compile(rf"(OAF|OA|YAF)_([A-Za-z]+)_({'|'.join(EMOTIONS)})")


def parse(path: str, root: str) -> Labels | None:
    match = _NAME.fullmatch(stem(path))
    if match is None:
        return None
    speaker, word, emotion = match.groups()
    return {
        "emotion_raw": emotion,
        "speaker": "OAF" if speaker == "OA" else speaker,
        "gender": "female",
        "text": f"Say the word {word}",
        "sentence": word,
    }


TESS = Corpus(
    name="tess",
    title="TESS, Toronto Emotional Speech Set",
    emotions=EMOTIONS,
    columns=("gender", "text", "sentence"),
    parse=parse,
)
