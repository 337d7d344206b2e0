"""``hser-report``: one page about trained models."""

from __future__ import annotations

from functools import partial

import click

from classifiers.commands.options import INCOMPLETE
from extractor.commands.options import CONTEXT, run_command

# Imports beyond these happen inside: `--help` must not wait seconds for matplotlib.

EPILOG = """\b
Examples:
  hser-report models/svm models/mlp --out report/
  hser-report studies/emodb models/* --out report/

\b
The page is one file, report/index.html: figures with intervals, McNemar's test
between models, classes, confusion matrices, ROC and precision-recall curves,
reliability, training curves, layers, a map of the recordings in two and three
dimensions, where the embeddings came from, and the commands. It asks for
nothing from the net.
"""


@click.command(epilog=EPILOG, context_settings=CONTEXT)
@click.argument("folders", nargs=-1, required=True, type=click.Path(), metavar="MODEL...")
@click.option("--out", required=True, type=click.Path(), help="Folder of the page; made when missing.")
@INCOMPLETE
def command(folders: tuple[str, ...], out: str, incomplete: bool) -> None:
    """One HTML page about MODELs and layer studies that hser-train has written."""
    from classifiers.report import write_report

    typed = ["hser-report", *folders, *(["--incomplete"] if incomplete else []), "--out", out]
    path = write_report(folders, out, typed, incomplete)
    click.echo(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


main = partial(run_command, command)


if __name__ == "__main__":
    main()
