"""A file appears whole or not at all: it is written aside, synced and renamed.

    FILE.tmp  ->  fsync  ->  rename to FILE  ->  fsync of the folder

``AsideFile`` is at once what plain bytes are written to and the Python file object that h5py
writes HDF5 through. A full disk must not be met inside the HDF5 library: after a failed write
HDF5 can neither flush nor close a file, and the process is left with a broken handle. So the
first error is held back, what HDF5 still writes goes to memory (it reads its own writes, and
crashes on anything else), its file is closed in peace, and only then is the error raised and the
temporary file removed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

from extractor.errors import StoreUnwritable

TMP = ".tmp"  # what a file is called beyond its name until it is complete
EARLY_BYTES = 16 << 20  # written before the disk is told of them, so that the sync finds little left

_FULL = (
    "{path}: no space left ({cause}); free space and run the same command again: what is committed is kept"
)
_DENIED = (
    "{path}: cannot be written ({cause}); name another --out, or correct the permissions "
    "and run the same command again"
)
_NOT_FOLDER = "{path}: a file is where a folder should be ({cause}); name another --out"

# What each errno means to a user. Any other OSError is not the target's fault and passes as it is.
UNWRITABLE = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: _FULL,
    errno.EROFS: _DENIED,
    errno.EACCES: _DENIED,
    errno.EPERM: _DENIED,
    errno.EEXIST: _NOT_FOLDER,
    errno.ENOTDIR: _NOT_FOLDER,
}

# A folder that cannot be synced (some network file systems) still has its rename in order.
_NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EBADF}


@contextlib.contextmanager
def writable(path: Path) -> Iterator[None]:
    """Turn what makes a target unwritable into ``StoreUnwritable`` with ``path`` and the remedy."""
    try:
        yield
    except OSError as error:
        message = UNWRITABLE.get(error.errno or 0)
        if message is None:
            raise
        raise StoreUnwritable(message.format(path=path, cause=error.strerror)) from error


class AsideFile:
    """A new file, written at a position; the file object that h5py's ``fileobj`` driver expects.

    ``write`` never raises an ``OSError``; ``check`` and ``finish`` do (see the module's docstring).
    """

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        self._position = 0
        self._held: OSError | None = None
        self._unwritten: list[tuple[int, bytes]] = []  # offset and bytes, since the error
        self._told = 0  # of the file's bytes, those that the disk was told to begin with

    def write(self, data: bytes | memoryview) -> int:
        view = memoryview(data).cast("B")
        size, at = len(view), self._position
        self._position += size
        try:
            while self._held is None and len(view):
                count = os.pwrite(self._fd, view, at)
                view, at = view[count:], at + count
        except OSError as error:
            self._held = error
        if len(view):
            self._unwritten.append((at, bytes(view)))
        if at - self._told >= EARLY_BYTES:
            self._begin_writing(at)
        return size

    def _begin_writing(self, end: int) -> None:
        """Let the disk write while more is computed. Only a hint: `finish` is what counts."""
        if hasattr(os, "posix_fadvise"):
            with contextlib.suppress(OSError):
                # On Linux "not needed" starts the writing of what is dirty, and keeps it until it is clean.
                os.posix_fadvise(self._fd, self._told, end - self._told, os.POSIX_FADV_DONTNEED)
        self._told = end

    def check(self) -> None:
        """Raise the error that was held back. To be called now and then, to stop writing in vain."""
        if self._held is not None:
            raise self._held

    def finish(self) -> None:
        """Bytes on the disk, or the error that was held back."""
        self.check()
        os.fsync(self._fd)

    def close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    # The rest of the file object that HDF5 needs.

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: os.fstat(self._fd).st_size}
        self._position = base[whence] + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, size: int) -> bytes:
        data = bytearray(size)  # zeros where nothing was written yet, as HDF5 expects
        start, stop = self._position, self._position + size
        found = os.pread(self._fd, size, start)
        data[: len(found)] = found
        for offset, written in self._unwritten:
            low, high = max(start, offset), min(stop, offset + len(written))
            if low < high:
                data[low - start : high - start] = written[low - offset : high - offset]
        self._position = stop
        return bytes(data)

    def readinto(self, buffer: memoryview) -> int:
        buffer[:] = self.read(len(buffer))
        return len(buffer)

    def truncate(self, size: int) -> int:
        try:
            if self._held is None:
                os.ftruncate(self._fd, size)
        except OSError as error:
            self._held = error
        return size

    def flush(self) -> None:
        """HDF5 flushes often; the one sync that matters is in ``finish``."""


def sync_folder(folder: Path) -> None:
    """Make renames and deletions in ``folder`` survive a power cut."""
    fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(fd)


@contextlib.contextmanager
def aside(path: Path) -> Iterator[AsideFile]:
    """Write ``path`` through the yielded file; it takes its name when the block ends well.

    When it does not, the temporary file is removed and ``path`` is what it was before.
    Raises ``StoreUnwritable`` when the target is full, read-only or forbidden.
    """
    tmp = path.with_name(path.name + TMP)
    with writable(path):
        file = AsideFile(tmp)
        try:
            yield file
            file.finish()
            file.close()
            tmp.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                file.close()
            with contextlib.suppress(OSError):
                tmp.unlink()
            raise
        sync_folder(path.parent)


@contextlib.contextmanager
def interrupt_later() -> Iterator[None]:
    """Hold Ctrl-C, and the signal of job schedulers, back until the block ends.

    HDF5 calls ``AsideFile`` back, and an exception in such a call (a handler in Python raises
    wherever it is) leaves HDF5 with a file that it cannot close.
    Signals reach only the main thread, so elsewhere there is nothing to hold back.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    found = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    handlers = {number: handler for number, handler in found.items() if callable(handler)}
    seen: list[int] = []
    for number in handlers:
        signal.signal(number, lambda number, _frame: seen.append(number))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if seen:
            # Called, not raised again, which would count as a second one (see `interruption`).
            handlers[signal.Signals(seen[0])](seen[0], None)
