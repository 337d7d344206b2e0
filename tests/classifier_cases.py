"""Runs to learn from, for the tests of the classifiers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import CliRunner, Result

from classifiers.studies.transfer import Transfer
from extractor.errors import HserError
from extractor.store.run_folder import ManifestRow
from extractor.store.writer import RunWriter
from extractor.types import BatchResult, Failure, Row, Utterance

BASE = ("emotion", "emotion_raw", "speaker")
EMOTIONS = ("anger", "happiness", "neutral", "sadness")
DIM = 8


@dataclass(frozen=True, slots=True)
class Corpus:
    """Rows of a made-up corpus. x: float32 [N, L, D]."""

    x: np.ndarray
    labels: list[dict[str, str]]
    ids: list[str]


def corpus(
    num_speakers: int = 4,
    takes: int = 3,
    num_layers: int = 1,
    signal_layer: int = 0,
    signal: float = 2.0,
    emotions: Sequence[str] = EMOTIONS,
    copies: int = 0,
    dim: int = DIM,
    seed: int = 0,
    speakers_apart: float = 0.5,
) -> Corpus:
    """Every speaker says every emotion ``takes`` times. One layer tells the emotion, the rest do not.

    Rows have their speaker's offset too. Copies are the original and a little noise, and come behind
    their original with the labels that the engine gives them.
    """
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(1234).standard_normal((len(EMOTIONS), dim)) * signal  # of every corpus
    x, labels, ids = [], [], []
    for speaker in range(num_speakers):
        offset = rng.standard_normal(dim) * speakers_apart
        for emotion in emotions:
            for take in range(takes):
                layers = rng.standard_normal((num_layers, dim)) + offset
                layers[signal_layer] += centres[EMOTIONS.index(emotion)]
                name = f"s{speaker}-{emotion}-{take}"
                own = {
                    "emotion": emotion,
                    "speaker": f"s{speaker}",
                    "session": f"S{speaker // 2}",
                    "split": ("train", "dev", "test")[min(speaker, 2)],
                }
                for copy in range(copies + 1):
                    x.append(layers + 0.1 * copy * rng.standard_normal(layers.shape))
                    recipe = "gain:db=3.0" if copy else "none"
                    extra = {"original": name, "copy": str(copy), "augmentation": recipe} if copies else {}
                    labels.append(own | extra)
                    ids.append(f"{name}~{copy}" if copy else name)
    return Corpus(np.array(x, np.float32), labels, ids)


def write_run(
    path: Path,
    rows: Corpus,
    pooling: str = "mean",
    settings: Mapping[str, Any] | None = None,
    frames: Sequence[np.ndarray] | None = None,
    done: int | None = None,
    environment: Mapping[str, Any] | None = None,
    audio: Sequence[str] | None = None,
    failed: Sequence[str] = (),
    paths: Sequence[str] | None = None,
) -> Path:
    """A run of these embeddings, layers 0 to L - 1. ``frames``: [T, L, D] a row, as pooling none.

    ``done``: so many of its rows, as of a run that was killed. ``audio``: checksums.
    ``failed``: ids of recordings without a row.
    """
    columns = tuple(dict.fromkeys([*BASE, *(name for row in rows.labels for name in row)]))
    paths = paths or [f"/corpus/{name}.wav" for name in rows.ids]
    utterances = [
        Utterance(name, of, labels=tuple(row.get(column, "") for column in columns))
        for name, of, row in zip(rows.ids, paths, rows.labels, strict=True)
    ]
    lengths = [49] * len(rows.ids) if frames is None else [len(each) for each in frames]
    stored = [
        Row(i, each, 400 + 320 * length, length, checksum, "fp32")
        for i, (each, length, checksum) in enumerate(
            zip(utterances, lengths, audio or checksums(rows), strict=True)
        )
    ]
    dim = {pooling: rows.x.shape[2]} | ({} if frames is None else {"none": frames[0].shape[2]})
    with RunWriter.open(
        path,
        settings={"model": "given", "weights": "none", "pooling": pooling, "layers": "all", "dtype": "fp32"}
        | dict(settings or {}),
        environment=dict(environment or {}),
        columns=columns,
        layers=tuple(range(rows.x.shape[1])),
        dim=dim,
    ) as writer:
        without_row = [Utterance(name, f"/corpus/{name}.wav", labels=("",) * len(columns)) for name in failed]
        failures = [Failure(each.id, each.path, "decode", "cut short") for each in without_row]
        planned = enumerate([*utterances, *without_row])
        writer.write_manifest([ManifestRow(i, each, 16_000, 0) for i, each in planned])
        some = slice(done)
        writer.commit(BatchResult(0, stored[some], {pooling: rows.x[some]}, (frames or [])[some], failures))
    return path


def checksums(rows: Corpus) -> list[str]:
    """Of the audio that each row was made of: other embeddings, other audio; a copy has its original's."""
    of = {name: hashlib.sha256(x.tobytes()).hexdigest() for name, x in zip(rows.ids, rows.x, strict=True)}
    originals = [row.get("original") or name for name, row in zip(rows.ids, rows.labels, strict=True)]
    return [of.get(original, of[name]) for original, name in zip(originals, rows.ids, strict=True)]


# Runs to look things up in


def write_embeddings(
    run: Path,
    vectors: np.ndarray,
    labels: Sequence[Mapping[str, str]],
    ids: Sequence[str] | None = None,
    paths: Sequence[str] | None = None,
    checksums: Sequence[str] | None = None,
) -> Path:
    """A run of given embeddings float32 ``[N, L, D]``, pooling ``mean``, layers 0 to L - 1."""
    ids = ids or [f"r{i:03}" for i in range(len(vectors))]
    rows = Corpus(vectors.astype(np.float32), [dict(row) for row in labels], list(ids))
    audio = checksums or [f"sum-{name}" for name in ids]
    return write_run(run, rows, settings={"augmentation": "none"}, audio=audio, paths=paths)


def clustered(
    num_rows: int, dim: int, num_layers: int = 1, num_emotions: int = 3, num_speakers: int = 4, seed: int = 0
) -> tuple[np.ndarray, list[dict[str, str]]]:
    """Vectors ``[N, L, D]`` that lie around their emotion, less so in each further layer, and labels."""
    rng = np.random.default_rng(seed)
    emotion = rng.integers(num_emotions, size=num_rows)
    speaker = rng.integers(num_speakers, size=num_rows)
    centres = rng.standard_normal((num_emotions, dim))
    noise = rng.standard_normal((num_rows, num_layers, dim)) * (1 + np.arange(num_layers))[:, None]
    vectors = (centres[emotion][:, None] + noise).astype(np.float32)
    names = ("anger", "neutral", "sadness", "fear")
    return vectors, [
        {"emotion": names[e], "speaker": f"s{s}", "age": str(20 + s)}
        for e, s in zip(emotion.tolist(), speaker.tolist(), strict=True)
    ]


# Some of the rows, and commands


def without(rows: Corpus, keep: Sequence[bool]) -> Corpus:
    """Some of the rows."""
    kept = np.flatnonzero(keep).tolist()
    return Corpus(rows.x[kept], [rows.labels[i] for i in kept], [rows.ids[i] for i in kept])


def part(rows: Corpus, speakers: Sequence[int]) -> Corpus:
    """The rows of some speakers."""
    return without(rows, [int(row["speaker"][1:]) in speakers for row in rows.labels])


def labelled(rows: Corpus, column: str, values: Sequence[str]) -> Corpus:
    """The same rows with another label."""
    return replace(rows, labels=[row | {column: of} for row, of in zip(rows.labels, values, strict=True)])


def num_tested(found: Transfer) -> int:
    return sum(found.figures["support"].values())


def invoke(command: Any, *arguments: object) -> tuple[int, str]:
    """Exit code and all that was printed, the message of an error too."""
    done = CliRunner().invoke(command, [*map(str, arguments)])
    return done.exit_code, done.output + (str(done.exception) if done.exception else "")


def ran(command: Any, *arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(command, [*map(str, arguments)])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def said(command: Any, *arguments: object) -> str:
    """What a command that does its work prints."""
    return ran(command, *arguments).output


def refused(command: Any, *arguments: object, error: type[HserError] = HserError) -> str:
    """The message of the error that a user gets to see."""
    result = CliRunner().invoke(command, [*map(str, arguments)])
    assert isinstance(result.exception, error), result.output
    return str(result.exception)
