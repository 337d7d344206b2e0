"""Corpora of emotional speech: how each names its files and codes its labels.

To add one: a file beside these with a ``Corpus``, and a row in ``CORPORA``. The most specific names
come first, ``folders`` last: the first of the best fitting is taken.
"""

from __future__ import annotations

from collections.abc import Sequence

from extractor.corpora.cremad import CREMAD
from extractor.corpora.emodb import EMODB
from extractor.corpora.folders import FOLDERS
from extractor.corpora.iemocap import IEMOCAP
from extractor.corpora.labels import SYNONYMS, Corpus, Labels, Spare, common_emotion
from extractor.corpora.meld import MELD
from extractor.corpora.nemo import NEMO
from extractor.corpora.ravdess import RAVDESS
from extractor.corpora.savee import SAVEE
from extractor.corpora.tess import TESS
from extractor.corpora.urdu import URDU

__all__ = ["CORPORA", "SYNONYMS", "Corpus", "Labels", "Spare", "common_emotion", "recognise"]

CORPORA: dict[str, Corpus] = {
    corpus.name: corpus
    for corpus in (RAVDESS, CREMAD, IEMOCAP, EMODB, TESS, URDU, NEMO, MELD, SAVEE, FOLDERS)
}

_SAMPLE = 1000  # files looked at before all are: rules most corpora out at no cost


def recognise(recordings: Sequence[tuple[str, str]]) -> Corpus | None:
    """The corpus whose naming (nearly) all ``recordings`` follow, or ``None``.

    ``recordings`` are pairs of an absolute path and the input folder it was found under.
    """
    sample = recordings[:: max(1, len(recordings) // _SAMPLE)]
    best, best_share = None, 0.0
    for corpus in CORPORA.values():
        share = _share(corpus, sample)
        if share >= corpus.share and len(sample) < len(recordings):
            share = _share(corpus, recordings)
        if share >= corpus.share and share > best_share:
            best, best_share = corpus, share
    return best


def _share(corpus: Corpus, recordings: Sequence[tuple[str, str]]) -> float:
    """The share of the names that fit; 0 if all that they say is "other", as any folder might."""
    count, raw = 0, set()
    for path, root in recordings:
        row = corpus.parse(path, root)
        if row is not None:
            count += 1
            raw.add(row.get("emotion_raw", ""))
    if raw and {corpus.emotion(label) for label in raw} == {"other"}:
        return 0.0
    return count / len(recordings) if recordings else 0.0
