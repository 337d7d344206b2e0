"""Several devices of one machine: a process each, over shares of one plan, into one store.

    the first process plans -> all embed, process d the batches of shard d of n -> parts of their own
    -> the parent brings the indexes level with the store and adds up what it took

A process is ``python -m extractor.run.devices``, which is `one_device.run_here` with a shard of its own:

    stdin    pickled inputs, options, run folder; then a line: stop after the batches in flight
    stdout   what it has to report, a JSON object a line
    stderr   whatever libraries have to say, and the traceback where it ends by a bug

One that dies takes its batches in flight along; the others go on, and the same command does what is left.
The end of stdin is the end of the parent, however that came, and of the process at once: none is left
behind, in whatever forward pass it is. What is committed is safe, as from any kill.
"""

from __future__ import annotations

import json
import os
import pickle
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from extractor import errors
from extractor.audio.room import room_of
from extractor.errors import HserError, ProcessDied, SettingsError
from extractor.progress import Changes, Counts, Progress, Silent, Summary
from extractor.run.indexing import Indexes, IndexOption
from extractor.run.interruption import end_now
from extractor.run.pipeline import EMBEDDING, num_cores
from extractor.run.remarks import remarks

if TYPE_CHECKING:
    from extractor.run.options import Inputs, Options

LAST_LINES = 12  # of what a process wrote, shown when it died
POLL_SECONDS = 0.2  # how soon Ctrl-C is passed on
EXIT_ERROR = 2  # of a process: it has reported the error


def parse_devices(spec: str | Sequence[str | int]) -> list[str]:
    """``0,1,2,3``, ``cuda:0,cuda:1`` or ``cpu,cpu`` to names of devices. Raises SettingsError."""
    from extractor.encoders import resolve_device

    parts = spec.split(",") if isinstance(spec, str) else [str(part) for part in spec]
    names = [f"cuda:{part}" if part.isdigit() else part for part in map(str.strip, parts) if part]
    for name in names:
        if not re.fullmatch(r"cpu|cuda:\d+", name):
            raise SettingsError(f"--devices {name!r}: write numbers of CUDA devices, such as 0,1,2,3")
        if name != "cpu" and names.count(name) > 1:
            raise SettingsError(f"--devices: {name} is named twice")
        resolve_device(name)
    return names


def run_on(
    devices: Sequence[str],
    inputs: Inputs,
    options: Options,
    out: str | os.PathLike[str],
    progress: Progress,
    stop: threading.Event,
) -> Summary:
    """`engine.run` on several devices. Raises what ended one of their processes, once all have ended."""
    from extractor.store import Store

    index, count = options.shard
    shares = [
        pickle.dumps((
            inputs,
            replace(
                options,
                device="cuda" if device.startswith("cuda") else device,
                devices=(),
                workers=options.workers or max(1, min(8, num_cores() // len(devices))),
                decode_memory=room_of(options.decode_memory).budget / 2**30 / len(devices),
                shard=(index + count * d, count * len(devices)),
                # What is to be tried again is planned by the first; planned twice it would be done twice.
                retry_failed=options.retry_failed and d == 0,
                prune=options.prune and d == 0,
            ),
            str(out),
        ))
        for d, device in enumerate(devices)
    ]  # fmt: skip
    with Workers(devices, shares, progress) as running:
        running.work(stop)
    summary = running.summary()
    with Store(out) as store:
        summary.stored, summary.failures, layers = len(store), store.errors, store.layers
        summary.notes = remarks(store)
    if summary.indexes:
        indexes = [IndexOption(*index) for index in summary.indexes]
        with Indexes(out, indexes, layers, options.storage_dtype, summary.stored, progress):
            pass  # nothing was fed: what is missing is read from the store
    return summary


@dataclass(slots=True)
class Worker:
    """A device's process, and what it has reported."""

    device: str
    process: subprocess.Popen[bytes]
    stderr: IO[bytes]
    at_work: bool = False  # it was told what to do
    share: tuple[int, float, float] | None = None  # recordings, audio, padding: it has begun to embed
    done: Counts = field(default_factory=lambda: Counts(0, 0.0))
    summary: dict[str, Any] | None = None
    error: HserError | None = None
    ended: bool = False

    def begin(self, share: bytes) -> None:
        self.at_work = True
        self._tell(share)

    def stop(self) -> None:
        """After its batches in flight; at once where it has none."""
        self._tell(b"stop\n" if self.at_work else None)

    def let_go(self) -> None:
        """It ends at once, if it has not."""
        self._tell(None)

    def _tell(self, message: bytes | None) -> None:
        stdin = cast("IO[bytes]", self.process.stdin)
        with suppress(OSError):  # it is gone: its end is reported by itself
            if message is None:
                stdin.close()
            else:
                stdin.write(message)
                stdin.flush()

    def died(self) -> HserError | None:
        """Why it ended without a summary, if it did."""
        if self.error is not None or self.summary is not None or not self.at_work:
            return self.error
        self.stderr.seek(0)
        lines = self.stderr.read().decode(errors="replace").splitlines()[-LAST_LINES:]
        code = self.process.returncode
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        last = "".join(f"\n    {line}" for line in lines) or " it had said nothing"
        return ProcessDied(
            f"the process of {self.device} {how}; what is stored stays, run the same command again to do the"
            f" rest. Its last lines:{last}"
        )


class Workers:
    """The processes. Left by an error, they are killed; when this process ends, they do."""

    def __init__(self, devices: Sequence[str], shares: Sequence[bytes], progress: Progress) -> None:
        self.shares, self.progress, self.display = shares, progress, Display(progress)
        self.reports: queue.Queue[tuple[Worker, dict[str, Any] | None]] = queue.Queue()
        self.workers: list[Worker] = []
        for device in devices:
            self.workers.append(_start(device))
            threading.Thread(target=self._read, args=(self.workers[-1],), daemon=True).start()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.progress.stop()
        for worker in self.workers:
            if worker.process.poll() is None and error is not None:
                worker.process.kill()
            worker.let_go()
            worker.process.wait()
            worker.stderr.close()

    def _read(self, worker: Worker) -> None:
        with cast("IO[bytes]", worker.process.stdout) as lines:
            for line in lines:
                self.reports.put((worker, json.loads(line)))
        worker.process.wait()
        self.reports.put((worker, None))

    def work(self, stop: threading.Event) -> None:
        """Until all processes have ended. Raises what ended one of them, the first in their order."""
        first, stopping = self.workers[0], False
        first.begin(self.shares[0])
        while not all(worker.ended for worker in self.workers):
            if stop.is_set() and not stopping:
                stopping = True
                for worker in self.workers:
                    worker.stop()
            try:
                worker, report = self.reports.get(timeout=POLL_SECONDS)
            except queue.Empty:
                continue
            self._take(worker, report)
            if first.ended and first.share is None:  # nothing was planned: there is nothing to do
                for worker in self.workers:
                    worker.stop()
            elif first.share is not None and not stopping:
                for worker, share in zip(self.workers, self.shares, strict=True):
                    if not worker.at_work:
                        worker.begin(share)
        for worker in self.workers:
            if (error := worker.died()) is not None:
                raise error

    def _take(self, worker: Worker, report: dict[str, Any] | None) -> None:
        if report is None:
            worker.ended = True
            going_on = self.workers[0].share is not None and not all(each.ended for each in self.workers)
            if (error := worker.died()) is not None and going_on:
                self.progress.note(f"error: {error}\nthe other devices go on")
            self.display.show(self.workers)
            return
        match report.pop("event"):
            case "note":
                self.display.note(report["message"])
            case "start" if report["what"] == EMBEDDING:
                worker.share = (report["recordings"], report["audio"], report["padding_share"])
                self.display.show(self.workers)
            case "update" if worker.share is not None:
                worker.done = Counts(**report)
                self.display.show(self.workers)
            case "summary":
                worker.summary = report
            case "error":  # as it would have been raised here
                kind = getattr(errors, report["kind"], HserError)
                worker.error = kind(f"{worker.device}: {report['message']}")
            case "start" if worker is self.workers[0]:  # it reads headers
                self.progress.start(**report)
            case "update" if worker is self.workers[0]:
                self.progress.update(Counts(**report))

    def summary(self) -> Summary:
        """What the processes took together: sums of what they did, means of where their time went."""
        each = [worker.summary for worker in self.workers if worker.summary is not None]
        together = {name: each[0][name] for name in ("out", "model", "recordings", "padding_share")}
        for name in ("embedded", "audio", "rerun_in_fp32"):
            together[name] = sum(s[name] for s in each)
        for name in ("decode_wait", "write_seconds", "commit_wait", "encode_seconds"):
            together[name] = sum(s[name] for s in each) / len(each)
        for name in ("seconds", "setup_seconds"):
            together[name] = max(s[name] for s in each)
        for name, extreme in (("smallest_pass", min), ("warm_up", max)):
            together[name] = extreme((s[name] for s in each if s[name] is not None), default=None)
        return Summary(
            **together,
            stopped=len(each) < len(self.workers) or any(s["stopped"] for s in each),
            indexes=[tuple(index) for index in each[0]["indexes"]],
            # The first brings the run level with its input; the others find it so.
            changes=Changes(**each[0]["changes"]),
        )


class Display:
    """One progress of several processes, which says each thing once."""

    def __init__(self, progress: Progress) -> None:
        self.progress, self.said, self.begun = progress, set[str](), False

    def note(self, message: str) -> None:
        if message not in self.said:
            self.said.add(message)
            self.progress.note(message)

    def show(self, workers: Sequence[Worker]) -> None:
        """How far all are together, once each has begun to embed or ended."""
        shares = [worker.share for worker in workers if worker.share is not None]
        if not self.begun and shares and all(worker.share or worker.ended for worker in workers):
            self.begun = True
            recordings, audio = sum(share[0] for share in shares), sum(share[1] for share in shares)
            self.progress.start(EMBEDDING, recordings, audio, shares[0][2])
        if self.begun:
            done = [worker.done for worker in workers]
            self.progress.update(Counts(sum(c.recordings for c in done), sum(c.audio for c in done)))


def _start(device: str) -> Worker:
    # Named by its address, so that it finds this package wherever it was started from.
    path = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
    if device.startswith("cuda:"):
        # It sees its own device only, as the first: no library can take another by mistake.
        number, seen = int(device.removeprefix("cuda:")), os.environ.get("CUDA_VISIBLE_DEVICES")
        environment["CUDA_VISIBLE_DEVICES"] = seen.split(",")[number] if seen else str(number)
    stderr = tempfile.TemporaryFile()  # noqa: SIM115 - read when the process died, closed behind it
    process = subprocess.Popen(
        [sys.executable, "-m", "extractor.run.devices"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        env=environment,
        process_group=0,  # a terminal's Ctrl-C is for the parent, which says what to do
    )
    return Worker(device, process, stderr)


# In the process of a device


@dataclass(frozen=True, slots=True)
class ReportingProgress(Silent):
    """Progress that is reported to the parent."""

    report: Callable[..., None]

    def note(self, message: str) -> None:
        self.report("note", message=message)

    def start(self, what: str, recordings: int, audio: float, padding_share: float) -> None:
        self.report("start", what=what, recordings=recordings, audio=audio, padding_share=padding_share)

    def update(self, counts: Counts) -> None:
        self.report("update", **asdict(counts))


def main() -> None:
    """Read what to do, do it, report."""
    stop, lock = threading.Event(), threading.Lock()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent says what to do
    signal.signal(signal.SIGTERM, lambda number, frame: stop.set())
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is not a report

    def report(event: str, **values: Any) -> None:
        with lock:
            print(json.dumps({"event": event, **values}), file=out, flush=True)

    def listen() -> None:
        while sys.stdin.buffer.readline():
            stop.set()
        end_now()

    # What takes seconds is imported while others plan.
    import torch  # noqa: F401
    import transformers  # noqa: F401

    import extractor.run.batch
    import extractor.store  # noqa: F401
    from extractor.run.one_device import run_here

    try:
        inputs, options, run = pickle.load(sys.stdin.buffer)  # from the process that started this one
    except EOFError:  # it was not wanted after all
        os._exit(0)
    threading.Thread(target=listen, name="commands", daemon=True).start()
    code = 0
    try:
        summary = run_here(inputs, options, run, ReportingProgress(report), stop, index_later=True)
    except HserError as error:
        report("error", kind=type(error).__name__, message=str(error))
        code = EXIT_ERROR
    else:
        report("summary", **{k: value for k, value in asdict(summary).items() if k != "failures"})
    # At once: the thread that waits for commands holds stdin, which closing would wait for.
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
