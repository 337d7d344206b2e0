"""MELD: ``train_splits/dia0_utt3.mp4`` with ``train_sent_emo.csv``, ``dev_...``, ``test_...``.

The same dialogue and utterance numbers occur in every split, so the folder's name decides the split,
and ids are ``{split}_{stem}``. A clip whose folder names no split takes it from the one table found
beside or above it. The test folder of the original archive also holds second cuts of some clips as
``final_videos_testdia0_utt3.mp4``: a second cut keeps its speaker and text, but has an emotion only
if the first is not there, so that no utterance counts twice.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from extractor.inputs.corpora.labels import Corpus, Labels, beside, by_folder, name, parent, read_table, stem

EMOTIONS = {
    "neutral": "neutral",
    "joy": "happiness",
    "sadness": "sadness",
    "surprise": "surprise",
    "disgust": "disgust",
    "anger": "anger",
    "fear": "fear",
}
SPLITS = ("train", "dev", "test")

_NAME = re.compile(r"(final_videos_test)?dia(\d+)_utt(\d+)")
_FOLDER = re.compile(r"(?<![a-z])(train|dev|test)(?![a-z])")
_TABLE_COLUMNS = ("Dialogue_ID", "Utterance_ID", "Speaker", "Emotion")
_FROM_TABLE = {
    "emotion_raw": "Emotion",
    "speaker": "Speaker",
    "text": "Utterance",
    "sentiment": "Sentiment",
    "season": "Season",
    "episode": "Episode",
}


def parse(path: str, root: str) -> Labels | None:
    match = _NAME.fullmatch(stem(path))
    if match is None:
        return None
    split = "test" if match[1] else _split(parent(path), root)
    return {"split": split, "dialogue": str(int(match[2])), "utterance": str(int(match[3]))}


@lru_cache(maxsize=4096)
def _split(folder: str, root: str) -> str:
    """By the nearest folder, up to the input folder, that names one: ``output_repeated_splits_test``."""
    while True:
        found = _FOLDER.findall(name(folder).lower())
        if found:
            return str(found[-1])
        if folder in (root, parent(folder)):
            return ""
        folder = parent(folder)


def annotate(paths: Sequence[str], rows: Sequence[Labels | None], root: str) -> None:
    tables: dict[str, dict[tuple[str, str], Labels]] = {}
    for folder, positions in by_folder(paths, rows):
        files = {split: beside(folder, [f"{split}_sent_emo.csv"], root) for split in SPLITS}
        there = [split for split in SPLITS if files[split] is not None]
        for i in positions:
            row = rows[i]
            assert row is not None
            row["split"] = row["split"] or (there[0] if len(there) == 1 else "")
            file = files.get(row["split"])
            if file is not None:
                if file not in tables:
                    tables[file] = _read(file)
                row |= tables[file].get((row["dialogue"], row["utterance"]), {})
            if row["split"]:
                row["id"] = f"{row['split']}_{stem(paths[i])}"
    _count_once(paths, rows)


def _read(file: str) -> dict[tuple[str, str], Labels]:
    return {
        (row["Dialogue_ID"], row["Utterance_ID"]): {
            ours: row.get(theirs, "") for ours, theirs in _FROM_TABLE.items()
        }
        for row in read_table(file, _TABLE_COLUMNS)
    }


def _count_once(paths: Sequence[str], rows: Sequence[Labels | None]) -> None:
    first, second = set(), []
    for path, row in zip(paths, rows, strict=True):
        if row is not None and stem(path).startswith("final"):
            second.append(row)
        elif row is not None and row["split"] == "test":
            first.add((row["dialogue"], row["utterance"]))
    for row in second:
        if (row["dialogue"], row["utterance"]) in first:
            row["emotion_raw"] = ""


MELD = Corpus(
    name="meld",
    title="MELD, Multimodal EmotionLines Dataset",
    emotions=EMOTIONS,
    columns=("split", "text", "dialogue", "utterance", "sentiment", "season", "episode"),
    parse=parse,
    annotate=annotate,
)
