"""What a person sees of a run: a live line on a terminal, plain lines in a log, a table at the end."""

from __future__ import annotations

import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, TextIO

from extractor.types import Failure, Seconds

LOG_INTERVAL: Seconds = 30.0  # between lines where there is no terminal
HELD_UP = 0.1  # of a run's time: an encoder that was busy less than the rest of it was held up


@dataclass(frozen=True, slots=True)
class Counts:
    """How far a run is."""

    recordings: int  # done by this command, failed ones among them
    audio: Seconds  # of audio in them


@dataclass(slots=True)
class Changes:
    """What a run was brought level with: what its input had become since."""

    relabelled: int = 0  # rows that have other labels now
    replaced: int = 0  # recordings whose audio is another now: encoded again
    redrawn: int = 0  # augmented copies that are made again: what they are drawn by is another now
    moved: int = 0  # recordings that lie elsewhere or under another name now, and kept their rows
    renamed: int = 0  # recordings that a manifest gives another id now
    missing: int = 0  # recordings that are named and whose file is not there
    left: int = 0  # recordings that are not in the input any more
    pruned: int = 0  # of these, dropped by this command


@dataclass(slots=True)
class Summary:
    """What a run came to, and where its time went."""

    out: str
    model: str
    recordings: int = 0  # in the run's manifest
    embedded: int = 0  # by this command
    stored: int = 0  # rows in the store, those of earlier commands included
    failures: Sequence[Failure] = ()  # all that stand in the store's errors
    notes: Sequence[str] = ()  # what a person should know of the run besides: see `remarks`
    audio: Seconds = 0.0  # embedded by this command
    padding_share: float = 0.0  # of all arithmetic
    rerun_in_fp32: int = 0
    seconds: Seconds = 0.0  # encoding and all that goes with it, from the first decode on
    setup_seconds: Seconds = 0.0  # manifest, model, headers, plan
    decode_wait: Seconds = 0.0  # the encoder had nothing to do
    write_seconds: Seconds = 0.0  # committing batches, meanwhile the encoder goes on
    commit_wait: Seconds = 0.0  # results had to wait for those before them to be written
    encode_seconds: Seconds = 0.0  # busy, averaged over the streams
    warm_up: Seconds | None = None  # on CUDA: the first batch, in which kernels are compiled, and graphs
    smallest_pass: Seconds | None = None  # of audio in a forward pass, where memory ran out
    stopped: bool = False  # by the user, before the end
    # To be built behind several processes, each of which has a share of the rows: pooling, layer, kind.
    indexes: Sequence[tuple[str, int, str]] = ()
    changes: Changes = field(default_factory=Changes)

    @property
    def speed(self) -> float:
        """Audio seconds per second."""
        return self.audio / self.seconds if self.seconds else 0.0


class Progress(Protocol):
    """Told of a run as it goes."""

    def note(self, message: str) -> None: ...
    def start(self, what: str, recordings: int, audio: Seconds, padding_share: float) -> None: ...
    def update(self, counts: Counts) -> None: ...
    def stop(self) -> None: ...


class Silent:
    """For library use: `extract` says nothing unless asked."""

    def note(self, message: str) -> None: ...
    def start(self, what: str, recordings: int, audio: Seconds, padding_share: float) -> None: ...
    def update(self, counts: Counts) -> None: ...
    def stop(self) -> None: ...


class Log(Silent):
    """Plain lines, one every `LOG_INTERVAL`: for files, pipes and job logs."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def note(self, message: str) -> None:
        print(message, file=self.stream, flush=True)

    def start(self, what: str, recordings: int, audio: Seconds, padding_share: float) -> None:
        self.what, self.recordings, self.audio = what, recordings, audio
        self.padding_share = padding_share
        self.began = self.printed = time.monotonic()

    def update(self, counts: Counts) -> None:
        now = time.monotonic()
        if now - self.printed < LOG_INTERVAL and counts.recordings < self.recordings:
            return
        self.printed = now
        self.note(f"{self.what}: {self.line(counts, now - self.began)}")

    def line(self, counts: Counts, elapsed: Seconds) -> str:
        text = f"{counts.recordings:,}/{self.recordings:,} recordings"
        if not self.audio:
            return text
        speed = counts.audio / elapsed if elapsed else 0.0
        left = clock_time((self.audio - counts.audio) / speed) if speed else "?"
        padding = f", padding {self.padding_share:.1%}" if self.padding_share else ""
        return f"{text}, {speed:.1f} audio s/s{padding}, {left} left"


class Terminal(Log):
    """One live line on a terminal."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self.live: object | None = None

    def note(self, message: str) -> None:
        self.stop()
        super().note(message)

    def start(self, what: str, recordings: int, audio: Seconds, padding_share: float) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar

        self.stop()
        super().start(what, recordings, audio, padding_share)
        self.bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[line]}"),
            console=Console(file=self.stream),
            transient=False,
        )
        self.task = self.bar.add_task(what, total=audio or recordings, line="")
        self.bar.start()
        self.live = self.bar

    def update(self, counts: Counts) -> None:
        line = self.line(counts, time.monotonic() - self.began)
        self.bar.update(self.task, completed=counts.audio if self.audio else counts.recordings, line=line)

    def stop(self) -> None:
        if self.live is not None:
            self.bar.stop()
            self.live = None


@contextmanager
def showing(
    progress: Progress, what: str, recordings: int, audio: Seconds = 0.0, padding_share: float = 0.0
) -> Iterator[Progress]:
    """Progress that is taken off the screen whatever happens inside."""
    progress.start(what, recordings, audio, padding_share)
    try:
        yield progress
    finally:
        progress.stop()


def progress_for(stream: TextIO, quiet: bool = False) -> Progress:
    """The progress that fits a stream: nothing, a live line, or lines in a log."""
    if quiet:
        return Silent()
    return Terminal(stream) if stream.isatty() else Log(stream)


def clock_time(seconds: Seconds) -> str:
    """``1:02:03`` or ``2:03``."""
    minutes, s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{s:02}" if hours else f"{minutes}:{s:02}"


def failure_reasons(failures: Sequence[Failure]) -> list[tuple[str, int]]:
    """Reasons with how often each occurs, most frequent first; numbers in them do not count."""
    kinds = Counter(f"{f.stage}: {re.sub(r'[0-9][0-9.,]*', '#', f.reason)}" for f in failures)
    return kinds.most_common()


def summary_rows(s: Summary) -> list[tuple[str, str]]:
    """The table at the end of a run, as pairs of text."""
    rows = [
        ("run", f"{s.out} ({'stopped; run the same command again to go on' if s.stopped else 'complete'})"),
        ("model", s.model),
        ("recordings", f"{s.recordings:,}"),
        ("stored", f"{s.stored:,} ({s.embedded:,} by this command)"),
        ("failed", f"{len(s.failures):,}" + (" (see errors.jsonl)" if s.failures else "")),
    ]
    rows += [("", f"{count:,} x {reason}") for reason, count in failure_reasons(s.failures)[:8]]
    rows += [("note", note) for note in s.notes]
    changed = [f"{getattr(s.changes, name):,} {what}" for name, what in CHANGES if getattr(s.changes, name)]
    staying = s.changes.left - s.changes.pruned
    changed += [f"{staying:,} recordings that left the input (--prune drops them)"] if staying else []
    rows += [("since then" if i == 0 else "", line) for i, line in enumerate(changed)]
    if not s.embedded:
        return rows
    rows += [
        ("audio", f"{s.audio / 3600:.2f} h in {clock_time(s.seconds)}"),
        ("set-up", f"{clock_time(s.setup_seconds)} for manifest, model, headers and plan"),
        ("speed", f"{s.speed:.1f} audio seconds per second"),
        ("padding", f"{s.padding_share:.1%} of all arithmetic"),
    ]
    if s.warm_up is not None:
        rows.append(("warm-up", f"{s.warm_up:.1f} s of the encoding, for the first batch and CUDA graphs"))
    for stage in _stages(s):
        of_all = (
            f"{clock_time(stage.seconds)} ({stage.seconds / s.seconds:.0%} of the time)" if s.seconds else "-"
        )
        rows.append((stage.row, of_all))
    rows.append(("bottleneck", bottleneck(s)))
    if s.smallest_pass is not None:
        rows.append(
            ("memory", f"ran out; at most {s.smallest_pass:.1f} s of audio in a forward pass at last")
        )
    if s.rerun_in_fp32:
        rows.append(("rerun in fp32", f"{s.rerun_in_fp32:,} that were not finite"))
    return rows


CHANGES = (  # as the summary says them
    ("relabelled", "rows with other labels"),
    ("replaced", "recordings with other audio, encoded again"),
    ("redrawn", "augmented copies made again"),
    ("moved", "recordings found elsewhere, rows kept"),
    ("renamed", "recordings with another id"),
    ("missing", "recordings whose file is not there"),
    ("pruned", "recordings that left the input, dropped"),
)


class _Stage(NamedTuple):
    """A row of the summary: a stage, or what the encoder waited for it, and how to shorten it."""

    name: str
    row: str
    seconds: Seconds
    advice: str


def _stages(s: Summary) -> tuple[_Stage, _Stage, _Stage, _Stage]:
    """Where the time went, as the summary shows it. The stages overlap: shares may add up to more than 1."""
    encode = (
        "faster with --dtype bf16 where the hardware has it, more --devices, or --layers that end earlier"
    )
    decode = "more --workers where there are cores, recordings on a faster disk or as 16 kHz WAV"
    disk = "a faster disk for --out, --storage-dtype fp16, fewer --layers"
    return (
        _Stage("encoding", "encoding", s.encode_seconds, encode),
        _Stage("decoding", "waiting for decode", s.decode_wait, decode),
        _Stage("writing", "writing", s.write_seconds, disk),
        _Stage("writing", "waiting for the disk", s.commit_wait, disk),
    )


def bottleneck(s: Summary) -> str:
    """The stage whose row of the summary is the largest, its share, and what to change: one line.

    Where that is encoding, and it was held up for more than `HELD_UP` of the time, what it waited for
    longest is what to change.
    """
    if not s.seconds:
        return "-"
    encoding, decode, writing, disk = _stages(s)
    most = max((encoding, decode, writing, disk), key=lambda stage: stage.seconds)
    share = most.seconds / s.seconds
    if most is not encoding:
        spent = "" if most is writing else " spent waiting"
        return f"{most.name}: {share:.0%} of the time{spent}; {most.advice}"
    held_up = max(decode, disk, key=lambda stage: stage.seconds)
    if share >= 1 - HELD_UP:
        rest = f", as it should be; {encoding.advice}"
    elif held_up.seconds > HELD_UP * s.seconds:
        rest = f", {held_up.row} {held_up.seconds / s.seconds:.0%}; {held_up.advice}"
    else:
        rest = "; a larger --batch-seconds or a longer run would fill it"
    return f"encoding: busy {share:.0%} of the time{rest}"


def print_rows(rows: Sequence[tuple[str, str]], stream: TextIO | None = None) -> None:
    """Aligned pairs, the same on a terminal and in a log."""
    stream = stream or sys.stdout
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}", file=stream)
