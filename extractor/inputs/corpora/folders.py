"""Any corpus with one folder an emotion: ``root/Anger/x.wav``, ``root/speaker7/happy/x.wav``.

The label is the nearest folder, up to and including the input folder itself, whose name is an emotion
word (``words.emotion_word``), or says that there is none. Recognised only if that holds for every
recording. Speakers are unknown.
"""

from __future__ import annotations

from functools import lru_cache

from extractor.inputs.corpora.labels import Corpus, Labels, name, parent
from extractor.inputs.corpora.words import SYNONYMS, emotion_word, is_missing


def parse(path: str, root: str) -> Labels | None:
    raw = _label(parent(path), root)
    return None if raw is None else {"emotion_raw": raw}


@lru_cache(maxsize=4096)
def _label(folder: str, root: str) -> str | None:
    """The nearest emotion word; where there is none, a folder's name that says "not known"."""
    unlabelled = None
    while True:
        word = name(folder)
        if emotion_word(word) is not None:
            return word
        if unlabelled is None and folder != root and is_missing(word):
            unlabelled = word
        if folder in (root, parent(folder)):
            return unlabelled
        folder = parent(folder)


FOLDERS = Corpus(
    name="folders",
    title="one folder an emotion",
    emotions=SYNONYMS,
    columns=(),
    parse=parse,
    share=1.0,
)
