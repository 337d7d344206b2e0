"""``hser-store``: look into a run, check it, edit it, make one file of it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from extractor.commands.options import CORPUS, MAP, printable, run_command, table_lines
from extractor.errors import some

if TYPE_CHECKING:
    from extractor.store import Store

_LABELS_SHOWN = 12  # values of one label; speakers can be thousands
_LABEL_LENGTH = 24  # characters of a value
_REASONS_SHOWN = 10
_IDS_SHOWN = 10


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def hser_store() -> None:
    """Look into the embeddings of a run, check them, edit their labels, make one file of them."""


@hser_store.command()
@click.argument("run", type=click.Path())
def info(run: str) -> None:
    """What RUN holds: rows, failures, hours, settings, labels.

    RUN is the --out of hser-extract, or a file made by `hser-store pack`.
    """
    from extractor.store import Store

    facts = _facts(Store(run))
    for line in table_lines(facts) if sys.stdout.isatty() else [f"{key}: {value}" for key, value in facts]:
        _echo(line)


@hser_store.command()
@click.argument("run", type=click.Path())
def verify(run: str) -> None:
    """Recompute all checksums of RUN and count its rows against the manifest.

    Exit code 1, and the list of problems, when anything is not as it should be.
    """
    from extractor.store.verify import verify as problems_of

    problems = problems_of(run)
    for problem in problems:
        _echo(problem)
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


@hser_store.command()
@click.argument("run", type=click.Path())
@click.argument("inputs", nargs=-1, required=True, metavar="MANIFEST...")
@CORPUS
@MAP
def relabel(run: str, inputs: tuple[str, ...], corpus: str | None, **options: Any) -> None:
    """Give the rows of RUN the labels that MANIFEST has for them; nothing is encoded again.

    MANIFEST is what hser-extract takes: a .csv, .tsv or .jsonl, or recordings whose names code labels.
    Rows are matched by path and segment, else by id, else by file name. Columns that MANIFEST adds
    are added; one that it leaves empty stays as it is.
    """
    from extractor.inputs.corpora.words import parse_renames
    from extractor.inputs.manifest import read_manifest
    from extractor.store.edit import relabel as give_labels

    manifest = read_manifest(inputs, corpus, parse_renames(options["map"]))
    done = give_labels(run, manifest)
    for note in manifest.notes:
        _echo(f"note: {note}")
    click.echo(f"{run}: {_count(len(done.changed), 'row')} of {done.num_rows} have other labels now")
    _say_ids(f"not in {' '.join(inputs)}, labels as they were", done.not_named)
    _say_ids(f"of {' '.join(inputs)} not in the run", done.not_stored)
    if done.kept_columns:
        click.echo(f"columns as they were: {', '.join(done.kept_columns)}")
    _follow(run)


@hser_store.command()
@click.argument("run", type=click.Path())
@click.option("--where", required=True, help="Of labels, id, path: \"speaker == '03' and age < 30\".")
@click.option("--dry-run", is_flag=True, help="Show the rows, drop none.")
def drop(run: str, where: str, dry_run: bool) -> None:
    """Drop the rows of RUN that satisfy a condition. They stay out when the run goes on."""
    from extractor.store.edit import drop as drop_rows

    gone = drop_rows(run, where, dry_run)
    if dry_run:
        for utterance_id in gone:
            _echo(utterance_id)
    click.echo(f"{run}: {_count(len(gone), 'row')} {'would be ' if dry_run else ''}dropped")
    if not dry_run:
        _follow(run)


@hser_store.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN RUN...", type=click.Path())
@click.option("--out", required=True, type=click.Path(), help="Folder of the new run.")
@click.option("--incomplete", is_flag=True, help="Take runs that are not done, too: the new one goes on.")
def merge(runs: tuple[str, ...], out: str, incomplete: bool) -> None:
    """Make one new run of several that have the same settings. They stay as they are.

    An id that an earlier run has gets the later run's folder name before it.
    """
    from extractor.store.merge import merge as merge_runs

    merged = merge_runs(runs, out, incomplete)
    click.echo(f"{out}: {_count(merged.num_rows, 'row')}, {merged.num_failed} failed")
    _say_ids("of one id in several runs, now called", merged.renamed)


def _facts(store: Store) -> list[tuple[str, str]]:
    """What `info` says, in its order."""
    from collections import Counter

    from extractor.progress import failure_reasons
    from extractor.run.remarks import remarks

    errors = store.errors
    reasons = failure_reasons(errors)
    more = len(reasons) - _REASONS_SHOWN
    facts = [
        ("unfinished", store.unfinished),
        ("rows", str(len(store))),
        ("hours", f"{store.durations.sum() / 3600:.2f}"),
        ("dropped", str(store.num_dropped or "")),
        ("failed", str(len(errors))),
        *((f"  {count} x", reason) for reason, count in reasons[:_REASONS_SHOWN]),
        ("  ...", f"{more} more reasons, see errors.jsonl" if more > 0 else ""),
        *(("note", note) for note in remarks(store)),
        ("poolings", ", ".join(f"{name} ({width})" for name, width in store.shapes.items())),
        ("layers", ", ".join(map(str, store.layers))),
        ("stored as", store.info.storage_dtype),
        ("size", _size(store.num_bytes)),
    ]
    facts = [(key, value) for key, value in facts if value]
    for key, value in store.settings.items():
        if key != "layers":
            facts.append((key, ", ".join(map(str, value)) if isinstance(value, list) else str(value)))
    for column in store.columns:
        counts = Counter(store.labels(column)).most_common()
        shown = [
            f"{value[:_LABEL_LENGTH]}... {count}"
            if len(value) > _LABEL_LENGTH
            else f"{value or '(unknown)'} {count}"
            for value, count in counts[:_LABELS_SHOWN]
        ]
        if len(counts) > _LABELS_SHOWN:
            shown.append(f"... ({len(counts)} values)")
        facts.append((f"label {column}", ", ".join(shown)))
    return facts


def _echo(text: str) -> None:
    click.echo(printable(text))


def _follow(run: str) -> None:
    """Indexes of a run that was edited: those that cannot follow are named."""
    from extractor.index import follow

    for problem in follow(run):
        _echo(f"note: {problem}")


def _say_ids(what: str, ids: Sequence[str]) -> None:
    if ids:
        _echo(f"{_count(len(ids), 'recording')} {what}: {some(ids, _IDS_SHOWN)}")


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def _size(num_bytes: int) -> str:
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    power = min(len(units) - 1, max(0, int(num_bytes).bit_length() - 1) // 10)
    return f"{num_bytes / 1024**power:.{min(power, 1)}f} {units[power]}"


main = partial(run_command, hser_store)
