"""``hser-predict``: what emotion does a trained model hear in these recordings?"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import click

from extractor.commands.options import (
    CONTEXT,
    CORPUS,
    DEVICE,
    EXIT_FAILURES,
    FORM,
    quiet_libraries,
    run_command,
    say,
)

if TYPE_CHECKING:
    from classifiers.training.prediction import Prediction

# Imports beyond these happen inside: `--help` must not wait seconds for torch.

EPILOG = """\b
Examples:
  hser-predict models/svm clip.wav folder/
  hser-predict models/svm recordings/ --csv > predictions.csv
  hser-predict models/svm clips.csv --json --model ./hubert-large

\b
Recordings go through the decoding, the encoder, the layer and the pooling that
made the rows the model was trained on; its folder knows them.
Exit code: 0 done, 1 when a recording could not be predicted, 2 an error.
"""

_ID_SHOWN = 48  # characters of a path in the table, its end


@click.command(epilog=EPILOG, context_settings=CONTEXT)
@click.argument("model", type=click.Path(), metavar="MODEL")
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@FORM
@DEVICE
@click.option(
    "--model",
    "specs",
    multiple=True,
    metavar="SPEC",
    help="Where the encoder is found now; once for each source.  [default: as the runs named it]",
)
@CORPUS
def command(
    model: str,
    inputs: tuple[str, ...],
    form: str | None,
    device: str,
    specs: tuple[str, ...],
    corpus: str | None,
) -> None:
    """Emotions of recordings, by a MODEL that hser-train has written.

    INPUT is a recording, a folder, a glob or a manifest, as for hser-extract. For each: the label,
    its probability, and the probabilities of all classes.
    """
    from classifiers.training.prediction import Predictor
    from extractor.inputs.manifest import read_manifest
    from extractor.types import Failure

    predictor = Predictor(model, device, specs)  # before anything is decoded
    if predictor.model.speaker_dependent:
        say(f"note: {model}: was tested SPEAKER-DEPENDENT: on speakers it was trained on")
    manifest = read_manifest(inputs, corpus)
    for note in manifest.notes:
        say(note)
    quiet_libraries()
    show = FORMS[form](predictor.classes)
    failures = 0
    for each in predictor.predict(manifest.utterances):
        if isinstance(each, Failure):
            say(f"error: {each.path}: {each.reason}")
            failures += 1
        else:
            show(each)
    if failures:
        say(f"{failures} of {len(manifest.utterances)} recordings could not be predicted")
        sys.exit(EXIT_FAILURES)


Show = Callable[["Prediction"], None]


def _as_json(classes: tuple[str, ...]) -> Show:
    import json

    return lambda made: click.echo(json.dumps(made.to_dict()))


def _as_csv(classes: tuple[str, ...]) -> Show:
    import csv

    write = csv.writer(sys.stdout, lineterminator="\n").writerow
    write(["id", "path", "label", "confidence", *(f"p_{name}" for name in classes)])

    def show(made: Prediction) -> None:
        shares = [f"{float(value):.6f}" for value in made.proba]
        write([made.id, made.path, made.label, f"{made.confidence:.6f}", *shares])

    return show


def _as_lines(classes: tuple[str, ...]) -> Show:
    width = max(map(len, classes))

    def show(made: Prediction) -> None:
        order = made.proba.argsort()[::-1].tolist()
        others = ", ".join(f"{classes[code]} {made.proba[code]:.0%}" for code in order[1:])
        path = made.path if len(made.path) <= _ID_SHOWN else f"...{made.path[3 - _ID_SHOWN :]}"
        line = f"{path:{_ID_SHOWN}}  {made.label:{width}}  {made.confidence:6.1%}  ({others})"
        click.echo("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line))

    return show


FORMS: dict[str | None, Callable[[tuple[str, ...]], Show]] = {
    None: _as_lines,
    "json": _as_json,
    "csv": _as_csv,
}


main = partial(run_command, command)


if __name__ == "__main__":
    main()
