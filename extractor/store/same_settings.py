"""A run holds rows of one kind: resuming with other settings is refused, each difference by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from extractor.errors import SettingsDiffer, StoreError
from extractor.store.run_folder import CORPUS, NOTES, PARTS, RUN, RunInfo, read_run, write_text


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
    return _with_input_of_now(path, there, asked)


def _with_input_of_now(path: Path, there: RunInfo, asked: RunInfo) -> RunInfo:
    """The run's description with what there is to say of its input and its model now."""
    old, new = ({key: info.environment.get(key) for key in (*NOTES, CORPUS)} for info in (there, asked))
    if old == new:
        return there
    kept = {key: value for key, value in there.environment.items() if key not in new}
    now = replace(there, environment=kept | {key: value for key, value in new.items() if value})
    write_text(path / RUN, [now.to_json(), "\n"])
    return now


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
        elif not same_setting(key, was, now) or (key in old) != (key in new):
            found.append((f"{prefix}{key}", _shown(was), _shown(now)))
    return found


def same_setting(name: str, was: Any, now: Any) -> bool:
    """Whether two values make the same rows.

    `normalisation` says behind its value, in parentheses, where it was read: that alone makes no other row.
    """
    if name == "normalisation" and isinstance(was, str) and isinstance(now, str):
        return was.partition(" (")[0] == now.partition(" (")[0]
    return bool(was == now)


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, list | tuple):
        return ",".join(map(str, value)) or "nothing"
    return value if isinstance(value, str) and value else json.dumps(value)
