"""What can go wrong, as a user meets it. Bottom of the package: imports nothing of ours.

    HserError
    ├── InputError        the recordings or the manifest that were named
    ├── SettingsError     an option's value: layers, pooling, dtype, device, ...
    ├── ModelError        the model: unknown, unreadable, of an unsupported kind
    ├── StoreError        the run folder
    │   ├── SettingsDiffer    the run was made with other settings
    │   ├── StoreLocked       another process is writing to it
    │   └── StoreUnwritable   disk full, read-only, no permission
    ├── ProcessDied       one of several processes of a run ended before its work was done
    ├── CannotAugment     one recording, as asked; becomes a row of errors.jsonl, never ends a run
    └── DecodeError       one recording; becomes a row of errors.jsonl, never ends a run

Every message names the file or the option and the remedy. The commands print it after
``error:`` and exit with 2; anything else that escapes is a bug and shows its traceback.
"""

from __future__ import annotations

import difflib
import errno
import re
from collections.abc import Iterable, Sequence


class HserError(Exception):
    """Base of every error that hser raises on purpose."""


class InputError(HserError):
    """The recordings or the manifest that were named cannot be used as they are."""


class SettingsError(HserError):
    """An option has a value that cannot work."""


class ModelError(HserError):
    """The model is unknown, unreadable or of a kind that hser does not run."""


class StoreError(HserError):
    """The run folder cannot be used as it is."""


class SettingsDiffer(StoreError):
    """The run folder was made with other settings than those asked for."""


class StoreLocked(StoreError):
    """Another process is writing to the run folder."""


class StoreUnwritable(StoreError):
    """The run folder cannot be written: disk full, read-only or no permission."""


class ProcessDied(HserError):
    """One of the processes of a run on several devices ended before its work was done."""


class CannotAugment(HserError):
    """One recording cannot be augmented as asked; the message is the reason shown to the user."""


class DecodeError(HserError):
    """One recording cannot be decoded; the message is the reason shown to the user."""


LONGEST_MESSAGE = 200  # characters of what a library says
UNREADABLE = (
    (FileNotFoundError, None, "no such file"),
    (IsADirectoryError, None, "a folder, not a file"),
    (PermissionError, None, "no permission to read the file"),
    (OSError, errno.ENXIO, "not a regular file"),  # how a socket refuses to be opened
    (OSError, errno.ELOOP, "a link that leads back to itself"),
)


def why_unusable(error: Exception) -> str:
    """The reason in the error row of one recording, whatever was raised while it was read or decoded."""
    if isinstance(error, DecodeError):
        return str(error)
    for kind, number, reason in UNREADABLE:
        if isinstance(error, kind) and number in (None, error.errno):
            return reason
    if isinstance(error, OSError):
        return f"cannot be read: {error.strerror or error}"
    # What nobody expected, as it was raised: one line, and no addresses of memory.
    said = " ".join(re.sub(r"\b0x[0-9a-fA-F]+", "?", str(error)).split())[:LONGEST_MESSAGE]
    return f"cannot be decoded: {type(error).__name__}{said and ': ' + said}"


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """Message for a name that is in no table: lists the known ones, the nearest first."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    ordered = near + [k for k in known if k not in near]
    return f"unknown {kind} {name!r}; known: {', '.join(ordered)}"


def some(names: Sequence[str], most: int = 5) -> str:
    """The first few of many names."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
