"""The files of a checkpoint: in a local folder in the hub's layout, or in a repository of the hub.

What a file names is not trusted. A shard's name stays inside the folder, and JSON is read as data: no
code that a checkpoint brings is ever looked for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from extractor.errors import ModelError

CONFIG = "config.json"
# In the order in which `transformers` looks for weights: in one file, then in shards that an index names.
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_JSON_BYTES = 16 << 20  # at most; an index of a thousand shards has one


@dataclass(frozen=True, slots=True)
class CheckpointFiles:
    """Where a checkpoint's files are. ``spec`` is what the user called it."""

    spec: str
    source: str  # folder or hub id
    revision: str | None = None  # of the hub's repository
    not_cached: list[str] = field(default_factory=list)  # not in the hub's cache, and the hub did not answer

    @property
    def local(self) -> bool:
        return Path(self.source).is_dir()

    @property
    def where(self) -> str:
        """The place, for messages: of what it has, and of what it has not."""
        return (
            f"{self.source} in the hub's cache (the hub itself was not asked)"
            if self.not_cached
            else self.source
        )

    def find(self, name: str) -> Path | None:
        """The file, fetched if it has to be; None where the checkpoint has none of that name.

        Where the hub cannot be asked, what its cache has is all there is: see ``not_cached``.
        """
        if self.local:
            path = Path(self.source) / name
            return path if path.is_file() else None
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

        try:
            # A hub that did not answer once is not waited for again.
            cached = bool(self.not_cached)
            return Path(hf_hub_download(self.source, name, revision=self.revision, local_files_only=cached))
        except LocalEntryNotFoundError:
            self.not_cached.append(name)
            return None
        except EntryNotFoundError:
            return None
        except (OSError, ValueError, HfHubHTTPError) as e:
            raise ModelError(
                f"model {self.spec!r}: cannot read {name} of {self.source}: {first_line(e)}"
            ) from e

    def read_json(self, path: Path) -> dict[str, Any]:
        """An object. Raises ModelError."""
        try:
            with path.open("rb") as file:
                text = file.read(_JSON_BYTES + 1)
            values = json.loads(text) if len(text) <= _JSON_BYTES else None
        except OSError as e:
            raise self.refusal(path, f"cannot be read: {e.strerror}", "") from e
        except (ValueError, RecursionError) as e:
            raise self.refusal(path, f"is not JSON: {first_line(e)}") from e
        if len(text) > _JSON_BYTES:
            raise self.refusal(path, f"has more than {_JSON_BYTES >> 20} MiB")
        if not isinstance(values, dict):
            raise self.refusal(path, f"holds {json_type(values)} where an object belongs")
        return values

    def weights(self) -> list[Path]:
        """The files that hold the weights, in their order. Raises ModelError."""
        for name in WEIGHTS:
            found = self.find(name)
            if found is not None:
                return self._shards(found) if name.endswith(".index.json") else [found]
        raise ModelError(
            f"model {self.spec!r}: cannot read the weights of {self.where}: none of {', '.join(WEIGHTS)} is"
            " there; fetch the whole checkpoint"
        )

    def _shards(self, index: Path) -> list[Path]:
        """Files that an index names: by plain names, and with links followed beside it or in the folder."""
        weight_map = self.read_json(index).get("weight_map")
        if not isinstance(weight_map, Mapping) or not weight_map:
            raise self.refusal(
                index, f"weight_map is {json_type(weight_map)}, not a shard's name for each tensor"
            )
        names = dict.fromkeys(weight_map.values())
        for name in names:
            if not isinstance(name, str) or not _stays_inside(name):
                raise self.refusal(
                    index, f"weight_map names {name!r}, which is not a file of the checkpoint's folder"
                )
        shards = []
        # The hub's cache has a folder of links to files that lie together elsewhere: so does the index.
        inside = (index.parent.resolve(), index.resolve().parent)
        for name in names:
            shard = self.find(name)
            if shard is None:
                raise self.refusal(index, f"names {name}, which is not there; fetch the whole checkpoint", "")
            if not any(shard.resolve().is_relative_to(folder) for folder in inside):
                raise self.refusal(index, f"names {name}, which is a link out of the checkpoint's folder")
            shards.append(shard)
        return shards

    def refusal(
        self, path: Path, problem: str, remedy: str = "fetch the file anew from where the model is from"
    ) -> ModelError:
        return ModelError(f"model {self.spec!r}: {path}: {problem}{remedy and f'; {remedy}'}")


def _stays_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return (
        name not in ("", ".")
        and "\0" not in name
        and "\\" not in name
        and not path.is_absolute()
        and not PureWindowsPath(name).drive
        and ".." not in path.parts
    )


def json_type(value: Any) -> str:
    """What JSON calls it, for messages."""
    names: dict[type, str] = {type(None): "null", bool: "true or false", str: "text", dict: "an object"}
    return names.get(type(value), "a list" if isinstance(value, list) else "a number")


def first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
