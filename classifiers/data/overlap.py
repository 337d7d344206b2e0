"""What a model has heard in training, and so must not be tested on: recordings, and their speakers.

A recording is told by the checksum of its audio, not by its path or id: renamed, moved and packed it is
the same. A copy that `hser-extract --augment` made carries its original's checksum. One that was written
as a file (`hser-augment`) has audio of its own; it is told by its original's id, unless both corpora are
known and differ.

Speakers are compared by name where they are of one corpus: where both runs say so, or share recordings.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from extractor.errors import StoreError
from extractor.store import Store
from extractor.store.aside import aside
from extractor.store.run_folder import CORPUS

FILE = "heard.npz"
NO_CORPORA = ("", "files", "folders")  # what `Manifest.corpus` says where it knows of none
_TEXT = ("utf-8", "surrogatepass")


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """Of one source of a model: what its rows were made of. Digests are uint64, ascending."""

    audio: np.ndarray  # of checksums
    originals: np.ndarray  # of ids of recordings, copies as their original
    rendered: np.ndarray  # the same, of copies that are files of their own
    speakers: tuple[str, ...]
    corpus: str  # names joined by +; "" where not known


@dataclass(frozen=True, slots=True)
class Overlap:
    """Rows of a run that a model has heard in training. bool [N] each."""

    audio: np.ndarray  # the recording, by its checksum
    copy: np.ndarray  # by the id of the recording that it is a copy of, or was learned copies of
    speaker: np.ndarray  # not the recording, its speaker
    namesakes: tuple[str, ...]  # speakers of both, of whom nobody knows whether they are the same

    @property
    def rows(self) -> np.ndarray:
        return self.audio | self.copy | self.speaker


def training_set_of(store: Store, rows: np.ndarray) -> TrainingSet:
    """What ``rows`` (int64) of a run were made of."""
    checksums, originals = store.checksums, store.originals
    rendered = _rendered(store)
    chosen = rows.tolist()
    speakers = store.labels("speaker") if "speaker" in store.columns else []
    return TrainingSet(
        np.unique(_digests(checksums[row] for row in chosen)),
        np.unique(_digests(originals[row] for row in chosen)),
        np.unique(_digests(originals[row] for row in chosen if rendered[row])),
        tuple(sorted({speakers[row] for row in chosen} - {""})) if speakers else (),
        str(store.environment.get(CORPUS, "")),
    )


def overlap(heard: TrainingSet, store: Store) -> Overlap:
    """Which rows of a run a model has heard."""
    audio = np.isin(_digests(store.checksums), heard.audio)
    known, here = _corpora(heard.corpus), _corpora(str(store.environment.get(CORPUS, "")))
    copy = np.zeros(len(store), bool)
    if not known or not here or known & here:
        originals = _digests(store.originals)
        copy = np.isin(originals, heard.rendered) | (_rendered(store) & np.isin(originals, heard.originals))
        copy &= ~audio
    names = store.labels("speaker") if "speaker" in store.columns else [""] * len(store)
    common = known & here
    mine = set(heard.speakers)
    if common:
        mine = {_named(name, heard.corpus) for name in heard.speakers}
        names = [_named(name, "+".join(here)) if name else "" for name in names]
    same_name = np.array([bool(name) and name in mine for name in names], bool)
    if common or audio.any():
        return Overlap(audio, copy, same_name & ~audio & ~copy, ())
    both = set(np.array(names, object)[same_name].tolist())
    namesakes = () if known and here else tuple(sorted(both))
    return Overlap(audio, copy, np.zeros(len(store), bool), namesakes)


def _corpora(text: str) -> set[str]:
    return {name for name in text.split("+") if name not in NO_CORPORA}


def _named(speaker: str, corpus: str) -> str:
    """A speaker with the corpus's name; of several corpora read together they have it already."""
    return speaker if "+" in corpus else f"{corpus}-{speaker}"


def _rendered(store: Store) -> np.ndarray:
    """bool [N]: copies whose audio was augmented before the run, and whose checksum is of that."""
    if store.info.augmented:
        return np.zeros(len(store), bool)
    return ~store.clean


def _digests(texts: Iterable[str]) -> np.ndarray:
    """uint64, one each. Of a million against a million the chance of any collision is 1 in 10 million."""
    encoded = (text.encode(*_TEXT) for text in texts)
    raw = b"".join(hashlib.blake2b(each, digest_size=8).digest() for each in encoded)
    return np.frombuffer(raw, "<u8").astype(np.uint64)


# In a model's folder


def write_training_sets(sources: Sequence[TrainingSet], path: Path) -> None:
    """One file of all sources, in their order."""
    arrays: dict[str, np.ndarray] = {}
    for k, each in enumerate(sources):
        arrays |= {f"{name}_{k}": getattr(each, name) for name in ("audio", "originals", "rendered")}
        arrays[f"speakers_{k}"] = np.array([name.encode(*_TEXT) for name in each.speakers], "S")
        arrays[f"corpus_{k}"] = np.array(each.corpus)
    with aside(path) as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def read_training_sets(path: str | PathLike[str], num_sources: int) -> tuple[TrainingSet, ...]:
    """Raises StoreError for a file that is none. No pickle is read."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return tuple(
                TrainingSet(
                    arrays[f"audio_{k}"].astype(np.uint64),
                    arrays[f"originals_{k}"].astype(np.uint64),
                    arrays[f"rendered_{k}"].astype(np.uint64),
                    tuple(name.decode(*_TEXT) for name in arrays[f"speakers_{k}"].tolist()),
                    str(arrays[f"corpus_{k}"]),
                )
                for k in range(num_sources)
            )
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise StoreError(f"{path}: damaged ({error!r}); train again") from error
