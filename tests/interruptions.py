"""Processes that die, or whose file system fails, at a chosen file operation."""

from __future__ import annotations

import errno
import itertools
import os
import traceback
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from extractor.errors import StoreUnwritable

OPERATIONS = ("open", "pwrite", "ftruncate", "fsync", "replace", "unlink", "mkdir")
THROUGH, BROKEN, FAILED, SURVIVED, KILLED = 0, 1, 3, 4, 9  # exit codes of a child
# HDF5 writes a file in some fifty pieces, none of which has the file's name yet: some are tried.
EVERY_PWRITE = 41


def in_child(work: Callable[[], Any]) -> int:
    """Process id of a fork that does ``work`` and exits with what it returns (None is THROUGH)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork beside idle threads of libraries
        pid = os.fork()
    if pid:
        return pid
    code = BROKEN
    try:
        code = work() or THROUGH
    except StoreUnwritable:
        code = FAILED
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        os._exit(code)


def exit_code(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def interrupted_everywhere(
    work: Callable[[Path], Any], folder: Callable[[int], Path], how: str, every_pwrite: int = 1, step: int = 1
) -> Iterator[tuple[Path, int]]:
    """Do ``work`` in a child that is interrupted at operation 0, ``step``, ... until one gets through.

    Yields each ``folder(k)`` as the interruption left it, and how the child ended: the last got THROUGH.
    """

    def child(path: Path, k: int) -> int:
        interrupted = interrupt_at(k, how, every_pwrite)
        work(path)
        return SURVIVED if interrupted else THROUGH

    code = BROKEN
    for k in itertools.count(0, step):
        path = folder(k)
        code = exit_code(in_child(partial(child, path, k)))
        assert code in (THROUGH, FAILED, SURVIVED, KILLED), f"operation {k}: exit code {code}"
        yield path, code
        if code == THROUGH:
            return


def interrupt_at(k: int, how: str, every_pwrite: int = 1) -> list[str]:
    """Make the k-th file operation of this process its last one ("kill"), or one that fails ("fail").

    Of ``pwrite`` each ``every_pwrite``-th counts. Returns a list that is empty until then.
    """
    count, pwrites = itertools.count(), itertools.count()
    interrupted: list[str] = []

    def wrap(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if name == "pwrite" and next(pwrites) % every_pwrite:
                return real(*arguments, **options)
            changes_nothing = name == "fsync" or (name == "open" and not arguments[1] & os.O_CREAT)
            if how == "kill" and changes_nothing:  # dying here is dying before the next one
                return real(*arguments, **options)
            if next(count) == k:
                interrupted.append(name)
                if name == "pwrite":  # half of it gets through
                    real(arguments[0], arguments[1][: len(arguments[1]) // 2], arguments[2])
                if how == "kill":
                    os._exit(KILLED)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*arguments, **options)

        return call

    for name in OPERATIONS:
        setattr(os, name, wrap(name, getattr(os, name)))
    return interrupted
