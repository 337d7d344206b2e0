"""One device's process of a run on several: ``python -m extractor.run.device_worker``.

    stdin    a pickled `Share`; then a line, which means: stop after the batches in flight
    stdout   what it has to report, a JSON object a line
    stderr   whatever libraries have to say, and the traceback where it ends by a bug

The end of stdin is the end of the parent, however that came, and of this process at once: none is left
behind, in whatever forward pass it is. What is committed is safe, as from any kill.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from extractor.errors import HserError
from extractor.progress import Counts
from extractor.run.interruption import end_now
from extractor.types import Seconds

if TYPE_CHECKING:
    from extractor.run.options import Inputs, Options

EXIT_ERROR = 2  # it has been reported

Report = Callable[..., None]


@dataclass(frozen=True, slots=True)
class Share:
    """What one process is to do."""

    inputs: Inputs
    options: Options
    out: str


class Reporting:
    """Progress that is reported to the parent."""

    def __init__(self, report: Report) -> None:
        self.report = report

    def note(self, message: str) -> None:
        self.report("note", message=message)

    def start(self, what: str, recordings: int, audio: Seconds, padding_share: float) -> None:
        self.report("start", what=what, recordings=recordings, audio=audio, padding_share=padding_share)

    def update(self, counts: Counts) -> None:
        self.report("update", recordings=counts.recordings, audio=counts.audio)

    def stop(self) -> None:
        self.report("stop")


def work(commands: BinaryIO, report: Report, stop: threading.Event, abandoned: Callable[[], object]) -> int:
    """Read what to do, do it, report; the exit code. ``abandoned`` is called when the parent is gone."""
    from extractor.run.one_device import run_here

    try:
        share: Share = pickle.load(commands)  # from the process that started this one
    except EOFError:  # it was not wanted after all
        return 0

    def listen() -> None:
        while commands.readline():
            stop.set()
        abandoned()

    threading.Thread(target=listen, name="commands", daemon=True).start()
    try:
        summary = run_here(share.inputs, share.options, share.out, Reporting(report), stop, index_later=True)
    except HserError as error:
        report("error", kind=type(error).__name__, message=str(error))
        return EXIT_ERROR
    report("summary", **{name: value for name, value in asdict(summary).items() if name != "failures"})
    return 0


def load_packages() -> None:
    """Import what takes seconds, while others plan."""
    import torch  # noqa: F401
    import transformers  # noqa: F401

    import extractor.run.batch
    import extractor.store  # noqa: F401


def main() -> None:
    stop = threading.Event()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent says what to do
    signal.signal(signal.SIGTERM, lambda number, frame: stop.set())
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is not a report
    lock = threading.Lock()

    def report(event: str, **values: Any) -> None:
        with lock:
            print(json.dumps({"event": event, **values}), file=out, flush=True)

    load_packages()
    code = work(sys.stdin.buffer, report, stop, end_now)
    # At once: the thread that waits for commands holds stdin, which closing would wait for.
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
