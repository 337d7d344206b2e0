"""What all commands share: options that mean the same in each of them, and how a command runs and ends."""

from __future__ import annotations

import csv
import io
import json
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import click

from extractor.errors import HserError
from extractor.run.interruption import EXIT_INTERRUPTED, end_on_signals

# Imports beyond these happen inside the commands: `--help` must not wait seconds for torch.

EXIT_FAILURES = 1  # some recordings failed
EXIT_ERROR = 2  # nothing could be done as asked

CONTEXT: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


def together(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Several options as one decorator, in the order in which the help lists them."""

    def decorate(function: Any) -> Any:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


DEVICE = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps.")
CORPUS = click.option("--corpus", help="How file names code labels.  [default: recognised]")
MAP = click.option(
    "--map", multiple=True, metavar="OLD=NEW", help="A label counts as another, such as calm=neutral."
)
STRICT = click.option("--strict", is_flag=True, help="Exit with 1 when a recording failed.")
QUIET = click.option("--quiet", "-q", is_flag=True, help="Say nothing but errors.")
FORM = together(
    click.option("--json", "form", flag_value="json", help="One JSON object a line."),
    click.option("--csv", "form", flag_value="csv", help="CSV with a header."),
)
COPIES = together(
    click.option("--augment-config", type=click.Path(), help="YAML file with augment, copies, seed, clean."),
    click.option("--copies", type=int, help="Augmented copies of each recording.  [default: 1]"),
    click.option("--seed", type=int, help="Of all that is drawn for the copies.  [default: 0]"),
    click.option("--clean/--no-clean", default=None, help="Each recording as it is, too.  [default: clean]"),
)


class GroupWithDefault(click.Group):
    """A group whose first word may be left out: then it is ``default``."""

    def __init__(self, *args: Any, default: str, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.default = default

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = [self.default, *args]
        return super().parse_args(ctx, args)


def say(line: str) -> None:
    """What is no result goes to stderr, so that a result can be piped."""
    click.echo(line, err=True)


def printer(
    form: str | None,
    header: Sequence[str],
    rows: Callable[[Any], Iterable[Sequence[object]]],
    lines: Callable[[Any], Iterable[str]],
) -> Callable[[Any], None]:
    """Prints a result, and the next one after it, in the form that `FORM` names.

    That is one JSON object a line, rows of CSV under one ``header``, or by default ``lines`` for a person.
    """
    if form == "json":
        return lambda result: click.echo(json.dumps(result.to_dict()))
    if form == "csv":
        write = csv.writer(sys.stdout, lineterminator="\n")
        write.writerow(header)
        return lambda result: write.writerows(rows(result))
    return lambda result: click.echo("\n".join(lines(result)))


def table_lines(
    rows: Sequence[Sequence[str]], indent: str = "", align: Callable[[str, int], str] = str.ljust
) -> list[str]:
    """Columns as wide as what is in them; all but the first as ``align`` says."""
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        (indent + "  ".join([row[0].ljust(widths[0]), *map(align, row[1:], widths[1:])])).rstrip()
        for row in rows
    ]


def printable(text: str) -> str:
    """On one line, whatever a label or a file name holds."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def path_end(path: str, most: int = 48) -> str:
    """The last characters of a path, for a table."""
    return path if len(path) <= most else f"...{path[3 - most :]}"


def quiet_libraries() -> None:
    """Keep `transformers` from writing advice into our output."""
    from transformers.utils import logging

    logging.set_verbosity_error()


def run_command(command: click.Command) -> None:
    """Run a command: an error that a user can act on is a line, not a traceback; nor is Ctrl-C."""
    leaving = end_on_signals()
    for stream in (sys.stdout, sys.stderr):
        # Names of files that are not valid UTF-8 must not end a run when they are printed.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    # Where in our sources a warning was raised says nothing to a user.
    warnings.formatwarning = lambda message, *_place, **_line: f"warning: {message}\n"
    try:
        command(standalone_mode=True)
    except HserError as error:
        say(f"error: {error}")
        sys.exit(EXIT_ERROR)
    except Exception:  # raised again, but for one case:
        # A library may answer the SystemExit in its midst, an import for one, by an error of its own.
        if not leaving.is_set():
            raise
        sys.exit(EXIT_INTERRUPTED)
