"""nEMO, Polish: ``WR0_surprised_64.wav`` is speaker, emotion, sentence.

``data.tsv`` beside or above the recordings has text, gender and age; it is used where it is found.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from extractor.inputs.corpora.labels import GENDER, Corpus, Labels, beside, by_folder, read_table, stem

EMOTIONS = {
    "anger": "anger",
    "fear": "fear",
    "happiness": "happiness",
    "neutral": "neutral",
    "sadness": "sadness",
    "surprised": "surprise",
    "surprise": "surprise",
}

_NAME = re.compile(rf"([A-Z][A-Z]\d)_({'|'.join(EMOTIONS)})_(\d+)")


def parse(path: str, root: str) -> Labels | None:
    match = _NAME.fullmatch(stem(path))
    if match is None:
        return None
    return {"emotion_raw": match[2], "speaker": match[1], "sentence": match[3]}


def annotate(paths: Sequence[str], rows: Sequence[Labels | None], root: str) -> None:
    tables: dict[str | None, dict[str, Labels]] = {None: {}}
    for folder, positions in by_folder(paths, rows):
        file = beside(folder, ["data.tsv"], root)
        if file not in tables:
            assert file is not None
            # file_id is a file name; some copies of the table leave the suffix out
            tables[file] = {stem(row["file_id"]): row for row in read_table(file, ["file_id"], "\t")}
        for i in positions:
            row, more = rows[i], tables[file].get(stem(paths[i]), {})
            assert row is not None
            gender = (more.get("gender") or more.get("sex") or "").lower()
            row["gender"] = GENDER.get(gender.capitalize(), gender)
            row["age"] = more.get("age", "")
            row["text"] = more.get("raw_text") or more.get("normalized_text", "")


NEMO = Corpus(
    name="nemo",
    title="nEMO, Dataset of Emotional Speech in Polish",
    emotions=EMOTIONS,
    columns=("gender", "age", "text", "sentence"),
    parse=parse,
    annotate=annotate,
)
