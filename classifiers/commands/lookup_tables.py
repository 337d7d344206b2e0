"""What ``hser-lookup`` prints: hits and evaluations as tables, JSON or CSV."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from classifiers.lookup import Hits
    from classifiers.lookup.evaluation import Evaluation
    from classifiers.lookup.near_duplicates import NearDuplicates

_PATH_SHOWN = 48  # characters of a path in a table, its end


# Hits, printed


def _hits_as_json(columns: tuple[str, ...]) -> Callable[[Hits], None]:
    return lambda hits: _print_json(hits.to_dict())


def _hits_as_csv(columns: tuple[str, ...]) -> Callable[[Hits], None]:
    """A row a neighbour; a query without any has a row with nothing behind its name."""
    write = _csv_writer()
    decided = ("winner", "confidence", "margin")
    write(["query", "rank", "similarity", "id", "path", *columns, *decided])

    def show(hits: Hits) -> None:
        vote = [hits.winner or "", hits.confidence, hits.margin]
        for n in hits.neighbours:
            labels = [n.labels[column] for column in columns]
            write([hits.query, n.rank, n.similarity, n.id, n.path, *labels, *vote])
        if not hits.neighbours:
            write([hits.query, *[""] * (4 + len(columns)), *vote])

    return show


def _hits_as_table(columns: tuple[str, ...]) -> Callable[[Hits], None]:
    def show(hits: Hits) -> None:
        click.echo(f"{hits.query}  ({hits.pooling}:{hits.layer})")
        rows = [
            [f"{n.rank}", f"{n.similarity:.4f}", *_shown(n.labels), n.id, _end(n.path)]
            for n in hits.neighbours
        ]
        _print_table(["", "cosine", "emotion", "speaker", "id", "path"], rows)
        if len(hits.neighbours) < hits.k:
            click.echo(f"  {len(hits.neighbours)} of the {hits.k} asked for: no more rows may be neighbours")
        if hits.winner is None:
            click.echo("vote: none, no neighbour has an emotion")
        else:
            shares = ", ".join(f"{emotion} {share:.0%}" for emotion, share in hits.vote.items())
            click.echo(
                f"vote: {hits.winner} (confidence {hits.confidence:.2f}, margin {hits.margin:.2f}): {shares}"
            )
        click.echo()

    return show


HITS_FORMS: dict[str | None, Callable[[tuple[str, ...]], Callable[[Hits], None]]] = {
    None: _hits_as_table,
    "json": _hits_as_json,
    "csv": _hits_as_csv,
}


def _shown(labels: dict[str, str]) -> list[str]:
    return [labels.get(name, "") or "-" for name in ("emotion", "speaker")]


def _end(path: str) -> str:
    return path if len(path) <= _PATH_SHOWN else f"...{path[3 - _PATH_SHOWN :]}"


# Evaluations, printed

_SCORES = {
    "ua": "UA",
    "wa": "WA",
    "macro_f1": "macro-F1",
    "weighted_f1": "weighted-F1",
    "precision_at_k": "precision@k",
}


def _evaluation_as_json(result: Evaluation) -> None:
    _print_json(result.to_dict())


def _evaluation_as_csv(result: Evaluation) -> None:
    write = _csv_writer()
    emotions = list(result.emotions)
    write(["layer", *_SCORES, *(f"recall_{emotion}" for emotion in emotions)])
    for score in result.layers:
        recalls = [score.recall[emotion] for emotion in emotions]
        write([score.layer, *(getattr(score, name) for name in _SCORES), *recalls])


def _evaluation_as_table(result: Evaluation) -> None:
    emotions = ", ".join(f"{emotion} {count}" for emotion, count in result.emotions.items())
    click.echo(
        f"{result.run}: {result.encoder}, {result.k} nearest neighbours, leave one {result.leave_out} out of"
        f" {result.groups}, {result.pooling}, normalisation {result.normalisation}"
    )
    click.echo(f"{result.queries:,} recordings against {result.candidates:,} ({emotions})")
    if result.no_emotion or result.no_group:
        click.echo(
            f"left out: {result.no_emotion:,} without an emotion, {result.no_group:,} without a"
            f" {result.leave_out}"
        )
    rows = [
        [f"{score.layer}", *(f"{getattr(score, name):.1%}" for name in _SCORES)] for score in result.layers
    ]
    _print_table(["layer", *_SCORES.values()], rows)
    best = result.best
    recalls = ", ".join(f"{emotion} {value:.0%}" for emotion, value in best.recall.items())
    click.echo(f"best UA: layer {best.layer}, {best.ua:.1%}; recall: {recalls}")
    if result.caution:
        click.echo(f"note: {result.caution}")
    if result.duplicates is not None:
        _print_duplicates(result.duplicates, result.leave_out)


def _print_duplicates(found: NearDuplicates, group: str) -> None:
    click.echo(
        f"near-duplicates (cosine > {found.threshold:g} between files, layer {found.layer}):"
        f" {found.pairs:,} pairs of {found.recordings:,} recordings; {found.across_groups:,} across {group}s,"
        f" {found.other_emotion:,} with different emotions, {found.same_audio:,} of the same audio"
    )
    rows = [
        [
            f"{pair.similarity:.5f}",
            " = ".join(pair.ids),
            " / ".join(emotion or "-" for emotion in pair.emotions),
            " / ".join(value or "-" for value in pair.groups),
            "same audio" if pair.same_audio else "",
        ]
        for pair in found.shown
    ]
    if rows:
        _print_table(["cosine", "ids", "emotions", f"{group}s", ""], rows)


EVALUATION_FORMS: dict[str | None, Callable[[Evaluation], None]] = {
    None: _evaluation_as_table,
    "json": _evaluation_as_json,
    "csv": _evaluation_as_csv,
}


def _print_json(value: dict[str, Any]) -> None:
    import json

    click.echo(json.dumps(value))


def _csv_writer() -> Callable[[Iterable[object]], object]:
    import csv

    return csv.writer(sys.stdout, lineterminator="\n").writerow


def _print_table(header: list[str], rows: list[list[str]]) -> None:
    """Columns as wide as what is in them."""
    rows = [[_printable(cell) for cell in row] for row in [header, *rows]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo("  " + "  ".join(cells).rstrip())


def _printable(text: str) -> str:
    """On one line, whatever a label or a file name holds."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
