"""``hser-lookup``: which stored recordings sound like this one, and what emotion do they have?"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from classifiers.commands.options import INCOMPLETE, LAYERS, POOLING, layer_numbers
from extractor.commands.options import (
    CONTEXT,
    DEVICE,
    EXIT_FAILURES,
    FORM,
    MAP,
    GroupWithDefault,
    path_end,
    printer,
    quiet_libraries,
    run_command,
    say,
    table_lines,
    together,
)
from extractor.errors import SettingsError

if TYPE_CHECKING:
    from classifiers.lookup import Hits, Lookup
    from classifiers.lookup.evaluation import Evaluation

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

SCORES = {
    "ua": "UA",
    "wa": "WA",
    "macro_f1": "macro-F1",
    "weighted_f1": "weighted-F1",
    "precision_at_k": "precision@k",
}
_RUN = click.argument("run", type=click.Path())
_PLACE = together(
    click.option("--layer", type=int, help="The model's number of it.  [default: the only one]"), POOLING
)
_ENCODER = together(
    DEVICE,
    click.option("--model", help="The run's model, where it is found now.  [default: as the run names it]"),
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
@_ENCODER
@click.option("--corpus", help="How queries' file names code labels.  [default: recognised]")
@FORM
def search(
    run: str,
    queries: tuple[str, ...],
    rows: tuple[str, ...],
    corpus: str | None,
    form: str | None,
    k: int,
    **options: Any,
) -> None:
    """The neighbours of recordings in RUN, and their vote. This command's name may be left out.

    QUERY is a recording, a folder, a glob or a manifest, as for hser-extract. It goes through the
    decoding and the model that made RUN.
    """
    from extractor.types import Failure

    if not queries and not rows:
        raise SettingsError("name a QUERY or a --row")
    opened, rules = _opened(run, options), options
    columns = opened.store.columns
    vote = ("winner", "confidence", "margin")
    header = ["query", "rank", "similarity", "id", "path", *columns, *vote]
    show = printer(form, header, partial(_hits_rows, columns), _hits_lines)
    for row in rows:
        show(opened.search(row=row, k=k, **rules))
    if not queries:
        return
    quiet_libraries()
    failed = False
    for each in opened.search_batch(queries, k, corpus, **rules):
        if isinstance(each, Failure):
            say(f"error: {each.path}: {each.reason}")
            failed = True
        else:
            show(each)
    if failed:
        sys.exit(EXIT_FAILURES)


def _opened(run: str, options: dict[str, Any]) -> Lookup:
    """By the options of `_PLACE` and `_ENCODER`, which are taken out of ``options``."""
    from classifiers import lookup

    opened = lookup.open(run, *(options.pop(name) for name in ("layer", "pooling", "device", "model")))
    for note in opened.notes:
        say(note)
    return opened


def _hits_rows(columns: tuple[str, ...], hits: Hits) -> Iterator[list[object]]:
    """A row a neighbour; a query without any has a row with nothing behind its name."""
    vote = [hits.winner or "", hits.confidence, hits.margin]
    for n in hits.neighbours:
        yield [hits.query, n.rank, n.similarity, n.id, n.path, *(n.labels[c] for c in columns), *vote]
    if not hits.neighbours:
        yield [hits.query, *[""] * (4 + len(columns)), *vote]


def _hits_lines(hits: Hits) -> Iterator[str]:
    yield f"{hits.query}  ({hits.pooling}:{hits.layer})"
    rows = [["", "cosine", "emotion", "speaker", "id", "path"]]
    for n in hits.neighbours:
        labels = [n.labels.get(name, "") or "-" for name in ("emotion", "speaker")]
        rows.append([f"{n.rank}", f"{n.similarity:.4f}", *labels, n.id, path_end(n.path)])
    yield from table_lines(rows, indent="  ")
    if len(hits.neighbours) < hits.k:
        yield f"  {len(hits.neighbours)} of the {hits.k} asked for: no more rows may be neighbours"
    if hits.winner is None:
        yield "vote: none, no neighbour has an emotion"
    else:
        shares = ", ".join(f"{emotion} {share:.0%}" for emotion, share in hits.vote.items())
        yield f"vote: {hits.winner} (confidence {hits.confidence:.2f}, margin {hits.margin:.2f}): {shares}"
    yield ""


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
        if len(store.layers) != 1:
            raise SettingsError(f"{run}: name a --layer; there are: {store.layers}")
        layer = store.layers[0]
    index = build_index(run, layer, pooling, kind, normalisation)
    click.echo(f"{run}: {index.kind} index of {index.pooling}:{index.layer}, {len(index):,} rows")


@hser_lookup.command()
@_RUN
@click.option(
    "--leave-out", default="speaker", show_default=True, help="Label whose rows are left out together."
)
@_VOTE
@LAYERS
@POOLING
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
        layers=layer_numbers(layers),
        classes=classes.split(",") if classes else None,
        duplicates_above=None if no_duplicates else duplicates_above,
        **options,
    )
    if chart is not None:
        from classifiers.charts.plots import write_chart

        write_chart(result, chart)
    for note in result.notes:
        say(f"note: {note}")
    header = ["layer", *SCORES, *(f"recall_{emotion}" for emotion in result.emotions)]
    printer(form, header, _evaluation_rows, _evaluation_lines)(result)


def _evaluation_rows(result: Evaluation) -> Iterator[list[object]]:
    for score in result.layers:
        recalls = [score.recall[emotion] for emotion in result.emotions]
        yield [score.layer, *(getattr(score, name) for name in SCORES), *recalls]


def _evaluation_lines(result: Evaluation) -> Iterator[str]:
    yield (
        f"{result.run}: {result.encoder}, {result.k} nearest neighbours, leave one {result.leave_out} out of"
        f" {result.groups}, {result.pooling}, normalisation {result.normalisation}"
    )
    emotions = ", ".join(f"{emotion} {count}" for emotion, count in result.emotions.items())
    yield f"{result.queries:,} recordings against {result.candidates:,} ({emotions})"
    if result.no_emotion or result.no_group:
        yield (
            f"left out: {result.no_emotion:,} without an emotion, {result.no_group:,} without a"
            f" {result.leave_out}"
        )
    rows = [["layer", *SCORES.values()]]
    rows += [[f"{each.layer}", *(f"{getattr(each, name):.1%}" for name in SCORES)] for each in result.layers]
    yield from table_lines(rows, indent="  ")
    best = result.best
    recalls = ", ".join(f"{emotion} {value:.0%}" for emotion, value in best.recall.items())
    yield f"best UA: layer {best.layer}, {best.ua:.1%}; recall: {recalls}"
    if result.caution:
        yield f"note: {result.caution}"
    found, group = result.duplicates, result.leave_out
    if found is None:
        return
    yield (
        f"near-duplicates (cosine > {found.threshold:g} between files, layer {found.layer}):"
        f" {found.pairs:,} pairs of {found.recordings:,} recordings; {found.across_groups:,} across {group}s,"
        f" {found.other_emotion:,} with different emotions, {found.same_audio:,} of the same audio"
    )
    rows = [["cosine", "ids", "emotions", f"{group}s", ""]]
    for pair in found.shown:
        labels = [" / ".join(value or "-" for value in each) for each in (pair.emotions, pair.groups)]
        same = "same audio" if pair.same_audio else ""
        rows.append([f"{pair.similarity:.5f}", " = ".join(pair.ids), *labels, same])
    if found.shown:
        yield from table_lines(rows, indent="  ")


@hser_lookup.command()
@_RUN
@_PLACE
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65_535), default=8000, show_default=True, help="0: any free.")
@click.option("--projection", help="umap or pca.  [default: umap where it is installed]")
@_ENCODER
def serve(run: str, host: str, port: int, projection: str | None, **options: Any) -> None:
    """A web page of RUN: its map, to hear its recordings, and to ask with a file or the microphone.

    Needs hser[serve]. What is uploaded is not kept; other machines reach the page only with --host.
    """
    from classifiers.service.server import require_extra
    from classifiers.service.server import serve as serve_page

    require_extra()
    opened = _opened(run, options)
    quiet_libraries()
    serve_page(opened, projection, host, port, click.echo)


main = partial(run_command, hser_lookup)


if __name__ == "__main__":
    main()
