"""``make demo``: the engine from end to end on a bare machine, or on a corpus and a model of one's own.

    synthetic speech or --corpus -> engine (mfcc, small HuBERT, or --model) -> stores -> neighbours

Without options nothing is downloaded: the recordings are synthetic speech, not recordings of people,
and the HuBERT has random weights. It shows that everything works, and how; it measures nothing.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from extractor.commands.options import quiet_libraries, run_command
from extractor.errors import InputError
from extractor.run.interruption import EXIT_INTERRUPTED, stop_on_signals

if TYPE_CHECKING:
    from extractor.store import Store

POOLING = "mean,std"
NUM_NEIGHBOURS = 3  # shown of each query
MAX_QUERIES = 8  # shown
DISCLAIMER = "Synthetic speech, not recordings of people: this says nothing about real emotion recognition."

# The architecture of the large HuBERTs (layer norm, stable), small enough for seconds on one core.
SMALL_HUBERT: dict[str, Any] = {
    "model_type": "hubert",
    "architectures": ["HubertModel"],
    "hidden_size": 256,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "intermediate_size": 1024,
    "conv_dim": [256] * 7,
    "conv_bias": True,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--corpus", type=click.Path(), help="Recordings.  [default: synthetic speech]")
@click.option("--model", help="As in hser-extract.  [default: mfcc, and without --corpus a random HuBERT]")
@click.option("--out", default="demo", show_default=True, type=click.Path(), help="Folder for all of it.")
def command(corpus: str | None, model: str | None, out: str) -> None:
    """Extract a corpus, show what is stored, and which recordings sound alike.

    Run it again: nothing is done twice.
    """
    quiet_libraries()
    demo(corpus or None, model or None, Path(out))  # `make demo` passes what is not set as ""


main = partial(run_command, command)


def demo(
    corpus: str | None, model: str | None, out: Path, num_speakers: int = 4, num_sentences: int = 6
) -> None:
    """The whole demonstration; speakers and sentences are those of the synthetic corpus."""
    from classifiers.data.runs import open_run
    from classifiers.demo.synthetic import write_corpus
    from extractor.commands.store import info

    synthetic = corpus is None
    if corpus is None:
        folder = out / "synthetic-speech"
        heading("Recordings: synthetic speech, not recordings of people")
        corpus = str(folder / "manifest.csv")
        if Path(corpus).exists():  # written last: where it is, all recordings are
            click.echo(f"{folder}: there already")
        else:
            write_corpus(folder, num_speakers, range(num_sentences))
            num_files = sum(1 for _ in folder.rglob("*.wav"))
            click.echo(f"{folder}: {num_files} clips of {num_speakers} synthetic speakers, written just now")
    runs = out / "runs"
    if model is None and synthetic:
        first = runs / "mfcc"
        embed(corpus, "mfcc", first)
        hubert = out / "small-hubert"  # a config and no weights, for the model spec ``random:FOLDER``
        hubert.mkdir(parents=True, exist_ok=True)
        (hubert / "config.json").write_text(json.dumps(SMALL_HUBERT, indent=2) + "\n", encoding="utf-8")
        embed(corpus, f"random:{hubert}", runs / "small-hubert-random")
    else:
        model = model or "mfcc"
        name = "synthetic-speech" if synthetic else Path(corpus).stem or "recordings"
        first = runs / re.sub(r"[^\w.@-]+", "-", f"{name}-{model.strip('./')}")
        embed(corpus, model, first)
    heading("What is stored")
    invoke("hser-store", info, str(first))
    with open_run(first, incomplete=True) as store:
        if not len(store):
            click.echo("No recording could be embedded, so there are no neighbours to show.")
            return
        show_neighbours(store)
    if synthetic:
        click.echo(DISCLAIMER)


def heading(text: str) -> None:
    click.echo(f"\n== {text}")


def invoke(program: str, command: click.Command, *arguments: str) -> None:
    """A command of the house, shown as it would be typed."""
    click.echo(f"$ {shlex.join([program, str(command.name), *arguments])}")
    command.main(list(arguments), standalone_mode=False)


def embed(corpus: str, model: str, out: Path) -> None:
    """Run the engine as ``hser-extract`` does, and say how it went."""
    from extractor.progress import print_rows, progress_for, summary_rows
    from extractor.run.engine import run
    from extractor.run.options import Options

    note = " (random weights: nothing that it gives means anything)" if model.startswith("random:") else ""
    heading(f"Embeddings: {model}{note}")
    click.echo(f"$ hser-extract {corpus} --model {model} --layers all --pooling {POOLING} --out {out}")
    options = Options(model=model, layers="all", pooling=POOLING)
    summary = run(corpus, options, out, progress_for(sys.stderr), stop_on_signals())
    print_rows(summary_rows(summary))
    if summary.stopped:
        sys.exit(EXIT_INTERRUPTED)
    if summary.stored and not summary.embedded:
        click.echo("All of it was stored by an earlier run: nothing was done twice.")


# Which recordings sound alike


def choose_queries(emotions: list[str], speakers: list[str]) -> list[int]:
    """One recording of each emotion, by different speakers where it can be; without labels a few.

    Where several speakers are known, of the recordings whose speaker is.
    """
    others = parts_speakers(speakers)
    rows = [row for row, speaker in enumerate(speakers) if speaker or not others]
    known = sorted({emotions[row] for row in rows} - {""})[:MAX_QUERIES]
    if not known:
        count = min(4, len(rows))
        return [rows[k * (len(rows) - 1) // max(count - 1, 1)] for k in range(count)]
    # Corpora are often in the order of their speakers: further on for each emotion is someone else.
    of_each = [[row for row in rows if emotions[row] == emotion] for emotion in known]
    return [of[k * len(of) // len(known)] for k, of in enumerate(of_each)]


def parts_speakers(speakers: list[str]) -> bool:
    """Whether neighbours by the same speaker can be left out: at least two are known."""
    return len(set(speakers) - {""}) > 1


def show_neighbours(store: Store) -> None:
    """Neighbours of a few recordings, and how well neighbours tell the emotion, by ``hser-lookup``."""
    from classifiers.commands.lookup import evaluate, search

    heading("Which recordings sound alike")
    emotions, speakers = store.labels("emotion"), store.labels("speaker")
    others = parts_speakers(speakers)
    if not others:
        click.echo("Fewer than two speakers are known, so neighbours may be by the same speaker.")
    run, layer, pooling = str(store.path), str(store.layers[-1]), store.pooled[0]
    rows = [word for row in choose_queries(emotions, speakers) for word in ("--row", store.ids[row])]
    apart = ["--exclude-own-speaker"] if others else []
    where = ["--layer", layer, "--pooling", pooling, "--k", str(NUM_NEIGHBOURS)]
    invoke("hser-lookup", search, run, *rows, *where, *apart)
    # Standardised for each group that is left out: of single recordings that would take very long.
    leave_out = ["speaker", "--normalisation", "standard"] if others else ["id"]
    options = ["--layers", layer, "--pooling", pooling, "--no-duplicates", "--leave-out", *leave_out]
    try:
        invoke("hser-lookup", evaluate, run, *options)
    except InputError as error:  # too few emotions, or speakers, to tell apart
        click.echo(
            f"{error}\nLabels come from the file names of known corpora, from folders named for emotions, or"
            " from a column `emotion`."
        )


if __name__ == "__main__":
    main()
