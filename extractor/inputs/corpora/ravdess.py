"""RAVDESS, speech and song: ``03-01-05-02-01-02-12.wav``.

Seven two-digit fields: modality, vocal channel, emotion, intensity, sentence, repetition, actor
(Livingstone and Russo 2018). Odd actors are men. Modality 02 is video without sound: such files
stay in the manifest and fail at decoding, with a reason.
"""

from __future__ import annotations

import re

from extractor.inputs.corpora.labels import Corpus, Labels, stem

EMOTIONS = {
    "01": "neutral",
    "02": "calm",
    "03": "happiness",
    "04": "sadness",
    "05": "anger",
    "06": "fear",
    "07": "disgust",
    "08": "surprise",
}
MODALITY = {"01": "audio-video", "02": "video", "03": "audio"}
VOCAL_CHANNEL = {"01": "speech", "02": "song"}
INTENSITY = {"01": "normal", "02": "strong"}
TEXT = {"01": "Kids are talking by the door", "02": "Dogs are sitting by the door"}

_NAME = re.compile(r"(0[1-3])-(0[12])-(0[1-8])-(0[12])-(0[12])-(0[12])-(0[1-9]|1\d|2[0-4])")


def parse(path: str, root: str) -> Labels | None:
    match = _NAME.fullmatch(stem(path))
    if match is None:
        return None
    modality, channel, emotion, intensity, sentence, repetition, actor = match.groups()
    return {
        "emotion_raw": emotion,
        "speaker": actor,
        "gender": "male" if int(actor) % 2 else "female",
        "text": TEXT[sentence],
        "sentence": sentence,
        "intensity": INTENSITY[intensity],
        "repetition": repetition,
        "modality": MODALITY[modality],
        "vocal_channel": VOCAL_CHANNEL[channel],
    }


RAVDESS = Corpus(
    name="ravdess",
    title="RAVDESS, Ryerson Audio-Visual Database of Emotional Speech and Song",
    emotions=EMOTIONS,
    columns=("gender", "text", "sentence", "intensity", "repetition", "modality", "vocal_channel"),
    parse=parse,
)
