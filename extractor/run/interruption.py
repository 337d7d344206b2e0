"""Ctrl-C, and the signal of job schedulers: the first asks a command to end, the second ends it.

A command ends at the first one as soon as its main thread comes to it, or with `stop_on_signals` after
its batches in flight. The second has to end the process whatever its threads are in: a forward pass of
minutes, a fit, a queue. So it is not left to Python's handlers, which run in the main thread alone and
between its own steps: the handler in C also writes the signal's number into a pipe, which a thread of
ours reads. Both end with `EXIT_INTERRUPTED` and without a traceback.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import NoReturn

EXIT_INTERRUPTED = 130  # stopped by Ctrl-C; what is done is stored
SIGNALS = (signal.SIGINT, signal.SIGTERM)
SAME_SECONDS = 0.05  # `timeout` and schedulers signal a process and then its group: that is one request
FLUSH_SECONDS = 0.5  # for what was printed, where a pipe may be full

STOPPING = (
    "\nstopping after the batches in flight; run the same command again to go on"
    " (Ctrl-C again: stop at once)\n"
)


def end_on_signals() -> threading.Event:
    """From now on the first signal raises SystemExit in the main thread, and the second ends the process.

    To be called once, by a command, in the main thread. The event is set once SystemExit was raised: what
    fails from then on fails because of it.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    # The pipe of a forked process would be this one's, and the child's signals would count here.
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
    threading.Thread(target=_watch, args=(reading,), name="signals", daemon=True).start()
    leaving = threading.Event()
    # The threads have ended by then. At its very end the interpreter would put the system's own handlers
    # back, and another signal would change the exit code of a command that has done its work.
    atexit.register(_handle, signal.SIG_IGN)

    def leave(number: int, frame: FrameType | None) -> None:
        _handle(_nothing)  # the first has been heard; another exception would only disturb its way out
        leaving.set()
        sys.exit(EXIT_INTERRUPTED)

    _handle(leave)
    return leaving


def stop_on_signals() -> threading.Event:
    """Set by the first signal, instead: end after the batches in flight."""
    stop = threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:
        _handle(_nothing)
        stop.set()
        # Not by `print`: the main thread may be in the midst of printing, which cannot be entered twice.
        os.write(2, STOPPING.encode())

    _handle(ask)
    return stop


def _handle(handler: object) -> None:
    for number in SIGNALS:
        signal.signal(number, handler)  # type: ignore[arg-type]


def _nothing(number: int, frame: FrameType | None) -> None:
    """Unlike SIG_IGN it leaves the handler in C in its place, which tells `_watch`."""


def _watch(reading: int) -> None:
    last: float | None = None
    while numbers := os.read(reading, 64):
        if not any(number in SIGNALS for number in numbers):
            continue
        now = time.monotonic()
        if last is not None and now - last > SAME_SECONDS:
            end_now()
        last = now if last is None else last


def end_now() -> NoReturn:
    """End this process. Nothing that is committed is lost: each file of ours appears by a rename when it
    is complete, so the process may be killed at any moment, and this is no worse."""
    flushing = threading.Thread(target=lambda: [sys.stdout.flush(), sys.stderr.flush()], daemon=True)
    try:
        flushing.start()
        flushing.join(FLUSH_SECONDS)
    finally:  # where the interpreter is ending already there are no new threads
        os._exit(EXIT_INTERRUPTED)
