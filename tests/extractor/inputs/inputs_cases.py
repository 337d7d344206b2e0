"""Tables to read and what is read of them, for the tests of inputs."""

from __future__ import annotations

from pathlib import Path

from extractor.inputs.manifest import read_manifest
from extractor.types import Manifest


def written(folder: Path, text: str | bytes, name: str = "m.csv") -> Path:
    """A file below ``folder``, whose own folders are made."""
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def ids(manifest: Manifest) -> list[str]:
    return [u.id for u in manifest.utterances]


def rows(manifest: Manifest) -> list[dict[str, str]]:
    """The labels of each recording by their columns."""
    return [dict(zip(manifest.columns, u.labels, strict=True)) for u in manifest.utterances]


def by_id(manifest: Manifest) -> dict[str, dict[str, str]]:
    return dict(zip(ids(manifest), rows(manifest), strict=True))


def by_name(manifest: Manifest) -> dict[str, dict[str, str]]:
    """By the file's name, with its suffix."""
    return dict(zip((Path(u.path).name for u in manifest.utterances), rows(manifest), strict=True))


def emotions(manifest: Manifest) -> list[str]:
    return [row["emotion"] for row in rows(manifest)]


def names(*inputs: Path | str) -> list[str]:
    """Of the files that are found in the inputs."""
    return [Path(u.path).name for u in read_manifest(list(inputs)).utterances]
