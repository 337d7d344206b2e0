"""``hser-augment``: augmented copies as audio files and pictures. Thin: everything is in `render`."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import click

from extractor.commands.options import (
    CONTEXT,
    COPIES,
    CORPUS,
    DEVICE,
    EXIT_FAILURES,
    QUIET,
    STRICT,
    run_command,
)
from extractor.run.interruption import EXIT_INTERRUPTED, stop_on_signals

EPILOG = """\b
Augmentations, with their defaults (`a..b` is drawn uniformly for each copy):
  stretch:rate=0.8-1.25                      time stretch, pitch kept
  specaugment:policy=LD                      time warp, frequency and time masks; LB LD SM SS
  noise:snr_db=5-20,color=white              white, pink, brown; or folder=PATH of recordings
  copypaste:kind=n-cp                        n-cp se-cp n+se-cp; order, same_speaker
  pitch:semitones=-2..2                      length kept
  timemask:width=0.05-0.2                    seconds set to zero
  bandpass:band=telephone                    or low=, high= in Hz
  gain:db=-6..6
  latent:time_prob=0.05                      inside the encoder: for hser-extract only
Each takes p=0.5 and the like. `a+b` is one after the other, `(0.6*a|0.4*b)` one of both. A recipe, as
a manifest or a run has it, makes its copy again.

\b
Examples:
  hser-augment RAVDESS/ --augment "noise:snr_db=5-20" --out wavs/
  hser-augment clip.wav --plot --out looks/          # every augmentation, to see what it does
  hser-augment clip.wav --augment "stretch:rate=0.8+gain:db=3" --copies 4 --plot --out wavs/
"""


@click.command(epilog=EPILOG, context_settings=CONTEXT)
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option("--out", required=True, type=click.Path(), help="Folder for the WAV files; made when missing.")
@click.option("--augment", multiple=True, metavar="TEXT", help="What to do; several are alternatives.")
@COPIES
@click.option("--limit", type=int, help="Take the first so many recordings.")
@click.option("--plot", is_flag=True, help="A picture beside each copy: before and after.")
@CORPUS
@DEVICE
@click.option("--force", is_flag=True, help="Overwrite --out where it holds other copies.")
@STRICT
@QUIET
def command(
    inputs: tuple[str, ...],
    out: str,
    augment: tuple[str, ...],
    augment_config: str | None,
    copies: int | None,
    seed: int | None,
    clean: bool | None,
    limit: int | None,
    plot: bool,
    corpus: str | None,
    device: str,
    force: bool,
    strict: bool,
    quiet: bool,
) -> None:
    """Write augmented copies of recordings as WAV files (16 kHz, float32) with a manifest.

    INPUT is what hser-extract takes. Without --augment, every augmentation that needs no labels and no
    folder is done with its defaults, each into a folder of its own.
    """
    from extractor.augment import AUGMENTATIONS, CopyPaste, LatentMask
    from extractor.augment.copies import configured
    from extractor.commands.pictures import draw_copy
    from extractor.progress import failure_reasons, progress_for
    from extractor.run.render import render

    progress = progress_for(sys.stderr, quiet)
    stop = stop_on_signals()
    configs = {Path(out): configured(augment, augment_config, copies, seed, clean, alone=False)}
    if configs[Path(out)] is None:
        configs = {
            Path(out, name): configured(row(), None, copies, seed, clean)
            for name, row in AUGMENTATIONS.items()
            if row not in (CopyPaste, LatentMask)  # which need labels, and an encoder
        }
    failed = False
    for folder, config in configs.items():
        assert config is not None
        draw = draw_copy if plot else None
        done = render(inputs, config, folder, corpus, device, limit, draw, progress, stop, force)
        failed |= bool(done.failures)
        if not quiet:
            click.echo(
                f"{folder}: {done.written:,} recordings written, {done.audio / 60:.1f} minutes, manifest.csv"
            )
            for reason, count in failure_reasons(done.failures):
                click.echo(f"  {count} x {reason}")
        if stop.is_set():
            sys.exit(EXIT_INTERRUPTED)
    if strict and failed:
        sys.exit(EXIT_FAILURES)


main = partial(run_command, command)


if __name__ == "__main__":
    main()
