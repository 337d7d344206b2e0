"""A run holds rows of one kind: resuming with other settings is refused, each difference by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from extractor.errors import SettingsDiffer, StoreError
from extractor.store.run_folder import PARTS, RUN, RunInfo, read_run, write_text


def agree(path: Path, asked: RunInfo) -> RunInfo:
    """The run's description, written when there is none. Raises ``SettingsDiffer``.

    Labels are no part of an embedding: other columns are no other settings.
    """
    if not (path / RUN).exists():
        if any((path / PARTS).iterdir()):
            raise StoreError(f"{path}: has parts but no {RUN}; put it back, or name another --out")
        write_text(path / RUN, [asked.to_json(), "\n"])
        return asked
    there = read_run(path)
    found = [
        f"{name}: the run has {was}, you asked for {now}" for name, was, now in differences(there, asked)
    ]
    if found:
        raise SettingsDiffer(
            f"{path}: made with other settings. " + "; ".join(found) + ". "
            "Name another --out, or ask for the run's own settings to resume it"
        )
    return there


def differences(old: RunInfo, new: RunInfo) -> list[tuple[str, str, str]]:
    """Why rows of the two cannot be in one run: name, the old value, the new one, as they are shown."""
    found = _differences(old.settings, new.settings)
    # Follows from the settings; asked again, so that rows of two shapes can never meet in a run.
    for name in ("layers", "dim", "storage_dtype"):
        was, now = getattr(old, name), getattr(new, name)
        if was != now and (name != "dim" or (was and now)) and name not in new.settings:
            found.append((name, _shown(was), _shown(now)))
    return found


def _differences(
    old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = ""
) -> list[tuple[str, str, str]]:
    found: list[tuple[str, str, str]] = []
    for key in dict.fromkeys([*old, *new]):
        was, now = old.get(key), new.get(key)
        if isinstance(was, dict) and isinstance(now, dict):
            found += _differences(was, now, f"{prefix}{key}.")
        elif was != now or (key in old) != (key in new):
            found.append((f"{prefix}{key}", _shown(was), _shown(now)))
    return found


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, list | tuple):
        return ",".join(map(str, value)) or "nothing"
    return value if isinstance(value, str) and value else json.dumps(value)
