"""``hser-extract``: the main job on the command line. Thin: everything is in the library."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import click

from extractor.commands.options import (
    CONTEXT,
    COPIES,
    CORPUS,
    DEVICE,
    EXIT_FAILURES,
    MAP,
    QUIET,
    STRICT,
    quiet_libraries,
    run_command,
)
from extractor.run.interruption import EXIT_INTERRUPTED, stop_on_signals

EPILOG = """\b
Models:   hubert-base hubert-large hubert-xlarge hubert-large-er wavlm-base
          wavlm-base-plus wavlm-large wav2vec2-base wav2vec2-large xls-r,
          whisper-tiny whisper-base whisper-small whisper-medium and, English
          only, whisper-tiny.en whisper-base.en whisper-small.en
          whisper-medium.en, whisper-large-v2 whisper-large-v3
          whisper-large-v3-turbo (their encoders),
          logmel, mfcc; a folder in the hub's layout; org/name[@revision] on
          the hub; random:NAME[@SEED] is an architecture with random weights
Layers:   all, last, 0,6,12, 0-24, -4--1; 0 is the transformer's input
Pooling:  mean std min max first last meanstd, or none for all frames
Corpora:  ravdess cremad savee emodb tess iemocap meld urdu nemo folders,
          recognised from the file names unless named

\b
Examples:
  hser-extract RAVDESS/ --model hubert-large --layers all --out runs/ravdess
  hser-extract clips.csv --model wavlm-large --layers 6,12,24 \\
      --pooling mean,std,max --out runs/x
  hser-extract a.wav b.mp3 --model ./my-checkpoint --layers last --out runs/y

\b
Run the same command again to go on after a stop, a crash or a full disk,
and to bring a run up to date with its input: labels, new and changed files.
Exit code: 0 done, 1 with --strict when recordings failed, 2 an error,
130 stopped by Ctrl-C.
"""


def _shard(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, int]:
    index, slash, count = value.partition("/")
    if not (slash and index.isdigit() and count.isdigit()):
        raise click.BadParameter(f"{value!r} is not of the form i/n, such as 0/4", ctx, param)
    return int(index), int(count)


@click.command(epilog=EPILOG, context_settings=CONTEXT)
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option("--model", default="hubert-large", show_default=True, help="Name, folder or hub id; see below.")
@click.option("--layers", default="all", show_default=True, help="Which layers to keep.")
@click.option("--pooling", default="mean", show_default=True, help="One or several, with commas.")
@click.option("--out", required=True, type=click.Path(), help="Folder of the run; made when missing.")
@click.option("--dtype", default="auto", show_default=True, help="auto, fp32, bf16, fp16 or int8.")
@DEVICE
@click.option(
    "--devices", default="", metavar="0,1,...", help="Several GPUs of this machine, a process each."
)
@CORPUS
@MAP
@click.option("--batch-seconds", type=float, help="Audio in a batch.  [default: 30 on a CPU, 240 on a GPU]")
@click.option(
    "--window", type=float, default=60.0, show_default=True, help="Seconds; longer recordings are windowed."
)
@click.option("--channel", type=int, help="Take this channel, from 0.  [default: the average of all]")
@click.option(
    "--resample",
    default="cpu",
    show_default=True,
    help="Where to resample: cpu (soxr), or gpu while encoding.",
)
@click.option("--storage-dtype", default="fp32", show_default=True, help="fp32 or fp16.")
@click.option("--workers", type=int, help="Decoding threads a process.  [default: its cores, at most 8]")
@click.option(
    "--max-hours", type=float, default=24.0, show_default=True, help="What is longer is an error row."
)
@click.option(
    "--decode-memory",
    type=float,
    metavar="GIB",
    help="For all that is being decoded.  [default: a quarter of the machine's]",
)
@click.option(
    "--shard",
    callback=_shard,
    default="0/1",
    metavar="I/N",
    show_default=True,
    help="Do the i-th of n shares.",
)
@click.option("--retry-failed", is_flag=True, help="Try recordings again that failed before.")
@click.option("--prune", is_flag=True, help="Drop recordings that are not in the input any more.")
@click.option(
    "--index", metavar="POOLING:LAYER", help="Build a search index on the way, e.g. mean:12; for hser-lookup."
)
@click.option(
    "--augment",
    multiple=True,
    metavar="TEXT",
    help="Embed augmented copies too, e.g. stretch:rate=0.8-1.25; a+b chains, several are alternatives.",
)
@COPIES
@STRICT
@QUIET
@click.version_option(package_name="hser", prog_name="hser")
def command(inputs: tuple[str, ...], out: str, strict: bool, quiet: bool, **options: Any) -> None:
    """Embed recordings: every layer of a speech encoder, pooled, into HDF5.

    INPUT is a folder, a recording, a glob, or a CSV, TSV or JSONL manifest with a column `path`
    (and `id emotion speaker split text start end` where there are any).
    """
    from extractor.progress import print_rows, progress_for, summary_rows
    from extractor.run.engine import run
    from extractor.run.options import Options

    quiet_libraries()
    progress = progress_for(sys.stderr, quiet)
    stop = stop_on_signals()
    options["index"] = options["index"] or ()
    summary = run(inputs, Options(**options), out, progress, stop)
    if not quiet:
        print_rows(summary_rows(summary))
    if summary.stopped:
        sys.exit(EXIT_INTERRUPTED)
    if strict and summary.failures:
        sys.exit(EXIT_FAILURES)


main = partial(run_command, command)

if __name__ == "__main__":
    main()
