"""``hser-store``: look into a run, check it, make one file of it."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from extractor.cli import run_command

if TYPE_CHECKING:
    from extractor.store import Store

_LABELS_SHOWN = 12  # values of one label; speakers can be thousands
_LABEL_LENGTH = 24  # characters of a value
_REASONS_SHOWN = 10


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def hser_store() -> None:
    """Look into the embeddings of a run, check them, make one file of them."""


@hser_store.command()
@click.argument("run", type=click.Path())
def info(run: str) -> None:
    """What RUN holds: rows, failures, hours, settings, labels.

    RUN is the --out of hser-extract, or a file made by `hser-store pack`.
    """
    from extractor.store import Store

    _show([(key, _printable(value)) for key, value in _facts(Store(run))])


@hser_store.command()
@click.argument("run", type=click.Path())
def verify(run: str) -> None:
    """Recompute all checksums of RUN and count its rows against the manifest.

    Exit code 1, and the list of problems, when anything is not as it should be.
    """
    from extractor.store.verify import verify as problems_of

    problems = problems_of(run)
    for problem in problems:
        click.echo(_printable(problem))
    if problems:
        sys.exit(1)
    click.echo(f"{run}: no problems")


@hser_store.command()
@click.argument("run", type=click.Path())
@click.argument("file", type=click.Path())
@click.option("--force", is_flag=True, help="Overwrite FILE.")
def pack(run: str, file: str, force: bool) -> None:
    """Write RUN into the one self-contained HDF5 file FILE, rows in manifest order."""
    from extractor.store.pack import pack as write_packed

    packed = write_packed(run, file, force=force)
    click.echo(f"{file}: {packed.num_rows} rows, {_size(packed.num_bytes)}")


def main() -> None:
    """Entry point."""
    run_command(hser_store)


def _facts(store: Store) -> list[tuple[str, str]]:
    """What `info` says, in its order."""
    from collections import Counter

    from extractor.progress import failure_reasons
    from extractor.remarks import remarks

    errors = store.errors
    reasons = failure_reasons(errors)
    facts = [
        ("rows", str(len(store))),
        ("hours", f"{store.durations.sum() / 3600:.2f}"),
        ("failed", str(len(errors))),
        *((f"  {count} x", reason) for reason, count in reasons[:_REASONS_SHOWN]),
    ]
    if store.unfinished:
        facts.insert(0, ("unfinished", store.unfinished))
    if len(reasons) > _REASONS_SHOWN:
        facts.append(("  ...", f"{len(reasons) - _REASONS_SHOWN} more reasons, see errors.jsonl"))
    facts += [("note", note) for note in remarks(store)]
    facts += [
        ("poolings", ", ".join(f"{name} ({width})" for name, width in store.shapes.items())),
        ("layers", ", ".join(map(str, store.layers))),
        ("stored as", store.info.storage_dtype),
        ("size", _size(store.num_bytes)),
    ]
    facts += [(key, _text(value)) for key, value in store.settings.items() if key != "layers"]
    for column in store.columns:
        counts = Counter(store.labels(column)).most_common()
        shown = ", ".join(f"{_short(value)} {count}" for value, count in counts[:_LABELS_SHOWN])
        more = f", ... ({len(counts)} values)" if len(counts) > _LABELS_SHOWN else ""
        facts.append((f"label {column}", shown + more))
    return facts


def _show(facts: Iterable[tuple[str, str]]) -> None:
    if not sys.stdout.isatty():
        for key, value in facts:
            click.echo(f"{key}: {value}")
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None)
    table.add_column(style="bold")
    table.add_column()
    for key, value in facts:
        table.add_row(Text(key), Text(value))
    Console().print(table)


def _short(value: str) -> str:
    """A label's value; texts are cut."""
    return f"{value[:_LABEL_LENGTH]}..." if len(value) > _LABEL_LENGTH else value or "(unknown)"


def _printable(text: str) -> str:
    """File names can hold bytes that are no text and that a terminal refuses."""
    return text.encode("utf-8", "backslashreplace").decode()


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)


def _size(num_bytes: int) -> str:
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    power = min(len(units) - 1, max(0, int(num_bytes).bit_length() - 1) // 10)
    return f"{num_bytes / 1024**power:.{min(power, 1)}f} {units[power]}"
