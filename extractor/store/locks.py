"""Who may write to a run folder.

Each writer holds ``lock-i-of-n`` (shard i of n; alone it is 0 of 1) for as long as it is open.
``lock`` is held for moments only, around what all shards share: starting, ``run.json``, the
manifest, the table of contents. The kernel drops a lock when its process dies, however it dies,
so no lock file has ever to be removed by hand.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
from collections.abc import Iterator
from pathlib import Path

from extractor.errors import StoreLocked
from extractor.store.aside import writable
from extractor.store.run_folder import LOCK

_SHARD_LOCK = re.compile(r"lock-(\d+)-of-(\d+)")
# Some cluster file systems are mounted without locks (Lustre needs the option `flock`).
_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK}


class FileLock:
    """An ``flock`` on ``path``, taken by the constructor; the file says which process has it.

    ``supported`` is False where the file system has no locks: then nothing was locked.
    Raises ``BlockingIOError`` when another has it and ``wait`` is False.
    """

    def __init__(self, path: Path, *, wait: bool = False) -> None:
        self.path = path
        self.supported = True
        with writable(path):
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                os.close(self._fd)
                raise
            self.supported = False

    def sign(self) -> None:
        """Write this process's number into the file, for the message that others will see."""
        with writable(self.path):
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, str(os.getpid()).encode(), 0)

    def release(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)


@contextlib.contextmanager
def folder_lock(run: Path) -> Iterator[None]:
    """The short lock around what all shards share; waits for its turn."""
    lock = FileLock(run / LOCK, wait=True)
    try:
        yield
    finally:
        lock.release()


def lock_shard(run: Path, index: int, count: int) -> FileLock:
    """Become the writer of shard ``index`` of ``count``. To be called under ``folder_lock``.

    Raises ``StoreLocked`` when this shard has a writer, or any shard of another ``count``:
    the two divisions of the batches overlap.
    """
    for path in sorted(run.glob(f"{LOCK}-*-of-*")):
        match = _SHARD_LOCK.fullmatch(path.name)
        if match and int(match[2]) != count:
            _take(path, run).release()
            path.unlink()  # nobody had it: left by a writer that was killed
    lock = _take(run / f"{LOCK}-{index}-of-{count}", run)
    try:
        lock.sign()
    except BaseException:
        lock.release()
        raise
    return lock


def unlock_shard(run: Path, lock: FileLock) -> None:
    """Give the shard up. The file goes under ``folder_lock``, so that nobody locks a deleted one."""
    with folder_lock(run):
        lock.path.unlink(missing_ok=True)
        lock.release()


def _take(path: Path, run: Path) -> FileLock:
    try:
        return FileLock(path)
    except BlockingIOError as error:
        match = _SHARD_LOCK.fullmatch(path.name)
        shard = f" (shard {match[1]} of {match[2]})" if match and match[2] != "1" else ""
        pid = path.read_text().strip() or "?"
        raise StoreLocked(
            f"{run}: process {pid} is writing to it{shard}; wait until it ends, or name another --out"
        ) from error
