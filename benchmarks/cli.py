"""``hser-bench``: how fast is it here, and against what else? Thin: the benchmarks are beside it."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import click

from extractor.commands.options import CONTEXT, DEVICE, quiet_libraries, run_command
from extractor.errors import SettingsError, unknown

# Imports beyond these happen inside: `--help` must not wait seconds for torch.

STAGES = ("encoder", "decode", "write", "command", "all")
EXIT_CANNOT_RUN = 1  # something that was asked for cannot be measured here; it was said what

EPILOG = """\b
Stages:     encoder   the encoder alone, and the baselines, on the same audio
            decode    files to waveforms, against soundfile
            write     rows to a store, against plain h5py
            command   all of hser-extract, against the encoder alone
            all       all of these
Lengths:    emodb, ravdess (the corpora's own, or noise of their lengths),
            or seconds
Baselines:  loop        transformers, file by file in fp32
            best        transformers, the fastest way that was tried
            torchaudio  the architecture of its bundles; or none

\b
Examples:
  hser-bench encoder --model hubert-large,wavlm-large --lengths 1,4,10,30,emodb
  hser-bench all --out results/mine.json
  hser-bench --profile --model hubert-large --lengths 4 --traces traces

\b
Nothing is downloaded: weights are random. The machine should be idle.
"""


@click.command(epilog=EPILOG, context_settings=CONTEXT)
@click.argument("stage", default="encoder", metavar="[encoder|decode|write|command|all]")
@click.option("--model", default="hubert-large,wavlm-large", show_default=True, help="With commas.")
@click.option("--lengths", default="emodb", show_default=True, help="Of the recordings, with commas.")
@DEVICE
@click.option("--dtype", default="auto", show_default=True, help="auto, fp32, bf16 or fp16.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="That count.")
@click.option("--baselines", default="loop,best,torchaudio", show_default=True, help="With commas, or none.")
@click.option("--compile/--no-compile", "compiled", default=None, help="torch.compile.  [default: on CUDA]")
@click.option("--seconds", type=float, help="Audio for each contender.  [default: by device]")
@click.option("--loop-seconds", type=float, help="Audio for the loop.  [default: by device]")
@click.option("--int8", is_flag=True, help="hser in int8 beside it.")
@click.option("--profile", is_flag=True, help="A trace and a breakdown by stage of each model, too.")
@click.option("--traces", type=click.Path(), default="traces", show_default=True, help="Folder for them.")
@click.option("--out", type=click.Path(dir_okay=False), help="Result file.  [default: benchmarks/results]")
def command(
    stage: str,
    model: str,
    lengths: str,
    baselines: str,
    int8: bool,
    profile: bool,
    traces: str,
    out: str | None,
    **options: Any,
) -> None:
    """Measure hser on this machine, side by side with what one would run otherwise."""
    if stage not in STAGES:
        raise SettingsError(unknown("stage", stage, STAGES))
    quiet_libraries()
    from benchmarks import breakdown, decode, encoder, write

    file = None if out is None else Path(out)
    rounds = str(options["rounds"])
    cannot = False
    if stage in ("encoder", "command", "all"):
        others = [] if stage == "command" or baselines == "none" else _names(baselines)
        contenders = (*others, "hser", *["command"] * (stage != "encoder"), *["int8"] * int8)
        settings = encoder.Settings(_names(model), _names(lengths), contenders, **options)
        rows = encoder.measure_all(settings)
        if profile:
            breakdown.profile_rows(rows, settings, Path(traces))
        encoder.write_rows("command" if stage == "command" else "encoder", rows, file)
    elif profile:
        raise SettingsError(f"--profile: there is no profile of {stage}; it is of the encoder")
    if stage in ("decode", "all"):
        cannot = bool(decode.main(["--rounds", rounds, *_out(file, stage, "decode")]))
    if stage in ("write", "all"):
        write.main(["--repeats", rounds, *_out(file, stage, "write")])
    if cannot:
        click.echo("not measured, it cannot run here: decode", err=True)
        sys.exit(EXIT_CANNOT_RUN)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _out(file: Path | None, stage: str, name: str) -> list[str]:
    """Where a result goes: ``all`` writes several, the others beside the encoder's."""
    if file is None:
        return []
    return ["--out", str(file if stage == name else file.with_name(f"{file.stem}-{name}{file.suffix}"))]


main = partial(run_command, command)


if __name__ == "__main__":
    main()
