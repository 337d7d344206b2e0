"""``hser-lookup``: which stored recordings sound like this one, and what emotion do they have?"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from classifiers.commands.lookup_tables import EVALUATION_FORMS, HITS_FORMS
from classifiers.commands.options import INCOMPLETE
from extractor.commands.options import (
    CONTEXT,
    DEVICE,
    EXIT_FAILURES,
    FORM,
    MAP,
    GroupWithDefault,
    quiet_libraries,
    run_command,
    say,
    together,
)
from extractor.errors import SettingsError

if TYPE_CHECKING:
    from classifiers.lookup import Hits
    from extractor.types import Failure

# Imports beyond these happen inside: `--help` must not wait seconds for torch.

EPILOG = """\b
Examples:
  hser-lookup runs/ravdess query.wav --k 10
  hser-lookup runs/ravdess recordings/ --csv > neighbours.csv
  hser-lookup runs/ravdess --row 03-01-05-02-01-01-12 --exclude-own-speaker
  hser-lookup runs/ravdess query.wav \\
      --where "speaker != '12' and emotion in ('anger', 'neutral')"
  hser-lookup build runs/ravdess --layer 12 --pooling mean --kind auto
  hser-lookup evaluate runs/ravdess --leave-out speaker --chart layers.png
  hser-lookup serve runs/ravdess

\b
A RUN whose folder is named as a command: ./build, or `hser-lookup search build`.
"""

SEARCH_EPILOG = """\b
--where compares labels, id and path with values:
  speaker != '12' and emotion in ('anger', 'neutral')
  not (age < 30 or session == 2) and label['my column'] == 'x'
Operators: == != < <= > >= in, not in, and, or, not. Texts in quotes compare
exactly; against numbers, and for < <= > >=, a label counts as the number that
it spells.

\b
A neighbour votes for its emotion with its similarity as weight; one below 0,
or without an emotion, does not vote.
Exit code: 0 done, 1 when a recording could not be looked up, 2 an error.
"""


_RUN = click.argument("run", type=click.Path())
_PLACE = together(
    click.option("--layer", type=int, help="The model's number of it.  [default: the only one]"),
    click.option("--pooling", help="[default: the only one]"),
)
_VOTE = together(
    click.option("--k", type=int, default=10, show_default=True, help="Neighbours."),
    click.option(
        "--temperature", type=float, help="Votes weigh exp(similarity / this).  [default: similarity]"
    ),
    click.option("--copies", is_flag=True, help="Augmented copies may be neighbours too."),
)


@click.group(cls=GroupWithDefault, default="search", epilog=EPILOG, context_settings=CONTEXT)
def hser_lookup() -> None:
    """Find the stored recordings nearest to a query, and what emotion they have.

    `hser-lookup RUN QUERY...` is `hser-lookup search RUN QUERY...`; see its --help.
    """


@hser_lookup.command(epilog=SEARCH_EPILOG)
@_RUN
@click.argument("queries", nargs=-1, metavar="[QUERY]...")
@click.option("--row", "rows", multiple=True, metavar="ID", help="A stored recording as the query.")
@_VOTE
@click.option("--where", help="Only rows whose labels satisfy this; see below.")
@click.option("--exclude-speaker", multiple=True, metavar="S", help="Leave this speaker's rows out.")
@click.option("--exclude-own-speaker", is_flag=True, help="Leave rows of the query's speaker out.")
@click.option("--exclude-own-file", is_flag=True, help="Leave rows of the query's own recording out.")
@_PLACE
@DEVICE
@click.option("--model", help="The run's model, where it is found now.  [default: as the run names it]")
@click.option("--corpus", help="How queries' file names code labels.  [default: recognised]")
@FORM
def search(
    run: str,
    queries: tuple[str, ...],
    rows: tuple[str, ...],
    k: int,
    layer: int | None,
    pooling: str | None,
    device: str,
    model: str | None,
    corpus: str | None,
    form: str | None,
    **rules: Any,
) -> None:
    """The neighbours of recordings in RUN, and their vote. This command's name may be left out.

    QUERY is a recording, a folder, a glob or a manifest, as for hser-extract. It goes through the
    decoding and the model that made RUN.
    """
    from classifiers import lookup
    from extractor.types import Failure

    if not queries and not rows:
        raise SettingsError("name a QUERY or a --row")
    opened = lookup.open(run, layer, pooling, device, model)
    for note in opened.notes:
        say(note)
    show = HITS_FORMS[form](opened.store.columns)
    for row in rows:
        show(opened.search(row=row, k=k, **rules))
    if not queries:
        return
    quiet_libraries()
    failures = []
    found: Iterable[Hits | Failure] = opened.search_batch(queries, k, corpus, **rules)
    for each in found:
        if isinstance(each, Failure):
            say(f"error: {each.path}: {each.reason}")
            failures.append(each)
        else:
            show(each)
    if failures:
        sys.exit(EXIT_FAILURES)


@hser_lookup.command()
@_RUN
@_PLACE
@click.option("--kind", default="auto", show_default=True, help="flat, ivf, ivfpq, hnsw, or by size.")
@click.option("--normalisation", default="none", show_default=True, help="none, whiten or speaker.")
def build(run: str, layer: int | None, pooling: str | None, kind: str, normalisation: str) -> None:
    """Build the index of a layer of RUN, or build it again; searching large runs needs one."""
    from classifiers.data.runs import missing_notes, open_run
    from extractor.index import build as build_index

    store = open_run(run, incomplete=True)
    for note in missing_notes(store):
        say(f"note: {note}")
    if layer is None:
        layers = store.layers
        if len(layers) != 1:
            raise SettingsError(f"{run}: name a --layer; there are: {layers}")
        layer = layers[0]
    index = build_index(run, layer, pooling, kind, normalisation)
    click.echo(f"{run}: {index.kind} index of {index.pooling}:{index.layer}, {len(index):,} rows")


@hser_lookup.command()
@_RUN
@click.option(
    "--leave-out", default="speaker", show_default=True, help="Label whose rows are left out together."
)
@_VOTE
@click.option("--layers", default="all", show_default=True, help="all, or numbers with commas.")
@click.option("--pooling", help="[default: the only one]")
@click.option("--classes", help="Only these emotions, with commas.  [default: all]")
@MAP
@click.option(
    "--normalisation",
    default="none",
    show_default=True,
    help="none; standard: by the rows of the others; group: each group by its own rows.",
)
@click.option("--chart", type=click.Path(), help="Draw layer against score into this PNG.")
@click.option("--duplicates-above", type=float, default=0.999, show_default=True, help="Cosine.")
@click.option("--no-duplicates", is_flag=True, help="Do not look for near-duplicates.")
@INCOMPLETE
@FORM
def evaluate(
    run: str,
    layers: str,
    classes: str | None,
    chart: str | None,
    duplicates_above: float,
    no_duplicates: bool,
    form: str | None,
    **options: Any,
) -> None:
    """How well neighbours tell the emotion: leave-one-speaker-out kNN for each layer of RUN.

    UA is the mean recall of the emotions, WA the share that is right; precision@k the share of
    neighbours that have the row's emotion. All rows are scored together. Near-duplicates are
    recordings of different files with all but the same embedding, in the layer of the best UA.
    """
    from classifiers.lookup.evaluation import evaluate as evaluate_run

    result = evaluate_run(
        run,
        progress=say,
        layers=_layer_numbers(layers),
        classes=classes.split(",") if classes else None,
        duplicates_above=None if no_duplicates else duplicates_above,
        **options,
    )
    if chart is not None:
        from classifiers.charts.plots import write_chart

        write_chart(result, chart)
    for note in result.notes:
        say(f"note: {note}")
    EVALUATION_FORMS[form](result)


@hser_lookup.command()
@_RUN
@_PLACE
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65_535), default=8000, show_default=True, help="0: any free.")
@click.option("--projection", help="umap or pca.  [default: umap where it is installed]")
@DEVICE
@click.option("--model", help="The run's model, where it is found now.  [default: as the run names it]")
def serve(
    run: str,
    layer: int | None,
    pooling: str | None,
    host: str,
    port: int,
    projection: str | None,
    device: str,
    model: str | None,
) -> None:
    """A web page of RUN: its map, to hear its recordings, and to ask with a file or the microphone.

    Needs hser[serve]. What is uploaded is not kept; other machines reach the page only with --host.
    """
    from classifiers.service.server import require_extra
    from classifiers.service.server import serve as serve_page

    require_extra()
    from classifiers import lookup

    opened = lookup.open(run, layer, pooling, device, model)
    for note in opened.notes:
        say(note)
    quiet_libraries()
    serve_page(opened, projection, host, port, click.echo)


main = partial(run_command, hser_lookup)


def _layer_numbers(spec: str) -> tuple[int, ...] | None:
    if spec == "all":
        return None
    try:
        return tuple(int(part) for part in spec.split(","))
    except ValueError as error:
        raise SettingsError(f"--layers {spec!r}: write all, or numbers such as 0,6,12") from error


if __name__ == "__main__":
    main()
