"""IEMOCAP: ``Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_M003.wav``, a turn of a dialogue.

The speaker is the session with the letter before the turn's number: ``Ses01F_impro01_M003`` is said
by the man Ses01M. The letter after the session only tells who wore the motion-capture markers.

Labels are in ``Session1/dialog/EmoEvaluation/{dialogue}.txt``, one line a turn, columns parted by tabs:
``[start - end]  turn  emotion  [v, a, d]``; texts in ``dialog/transcriptions/{dialogue}.txt``. The
dialogue is the turn without its last five characters. Without those files only names are read.

Recordings of whole dialogues (``dialog/wav``, ``dialog/avi``) are the same speech once more, without
labels of their own: a search of the corpus leaves them out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from extractor.inputs.corpora.labels import GENDER, Corpus, Labels, Spare, beside, by_folder, read_text, stem

EMOTIONS = {
    "neu": "neutral",
    "hap": "happiness",
    "exc": "happiness",  # the four-class task joins them; emotion_raw keeps them apart
    "ang": "anger",
    "sad": "sadness",
    "fea": "fear",
    "sur": "surprise",
    "dis": "disgust",
    "fru": "frustration",  # not of the common set: a class of its own
    "oth": "other",
    # "xxx", where the annotators did not agree, is no label
}

_NAME = re.compile(r"((Ses0([1-5]))[FM]_(?:impro|script)\d\d\w*?)(?:_([FM])\d{3})?")
_LABEL = re.compile(
    r"^\[[\d.]+\s*-\s*[\d.]+\]\s+(\S+)\s+(\w+)\s+\[([\d.]+),\s*([\d.]+),\s*([\d.]+)\]", re.MULTILINE
)
_TEXT = re.compile(r"^(Ses\S+) \[[^\]\n]*\]:[ \t]*(.*?)\s*$", re.MULTILINE)
_LEVELS = 5  # from a turn's folder up past sentences/wav and Session1 to a folder above the corpus


def parse(path: str, root: str) -> Labels | None:
    name = stem(path)
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    dialogue, session, _, letter = match.groups()
    row = {"session": session, "dialogue": dialogue}
    if letter is not None:
        row |= {"id": name, "speaker": session + letter, "gender": GENDER[letter]}
    return row


def annotate(paths: Sequence[str], rows: Sequence[Labels | None], root: str) -> None:
    for folder, positions in by_folder(paths, rows):
        turns: dict[str, Labels] = {}
        for dialogue in sorted({row["dialogue"] for row in filter(None, (rows[i] for i in positions))}):
            turns |= _read_dialogue(folder, dialogue)
        for i in positions:
            row = rows[i]
            assert row is not None
            row |= turns.get(row.get("id", ""), {})


def _read_dialogue(folder: str, dialogue: str) -> dict[str, Labels]:
    """Labels and texts by turn."""
    turns: dict[str, Labels] = {}
    labels = _find(folder, "EmoEvaluation", dialogue)
    if labels is not None:
        for turn, emotion, valence, arousal, dominance in _LABEL.findall(read_text(labels)):
            turns[turn] = {
                "emotion_raw": emotion,
                "valence": valence,
                "arousal": arousal,
                "dominance": dominance,
            }
    texts = _find(folder, "transcriptions", dialogue)
    if texts is not None:
        for turn, text in _TEXT.findall(read_text(texts)):
            turns.setdefault(turn, {})["text"] = text
    return turns


def _find(folder: str, kind: str, dialogue: str) -> str | None:
    file = f"dialog/{kind}/{dialogue}.txt"
    return beside(folder, [file, f"Session{int(dialogue[3:5])}/{file}"], levels=_LEVELS)


IEMOCAP = Corpus(
    name="iemocap",
    title="IEMOCAP, Interactive Emotional Dyadic Motion Capture",
    emotions=EMOTIONS,
    columns=("session", "gender", "text", "valence", "arousal", "dominance", "dialogue"),
    parse=parse,
    annotate=annotate,
    spare=Spare(re.compile(r"/dialog/(wav|avi)/"), "recordings of whole dialogues, whose turns are taken"),
)
