"""``hser-predict``: what emotion does a trained model hear in these recordings?"""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING

import click

from extractor.commands.options import (
    CONTEXT,
    CORPUS,
    DEVICE,
    EXIT_FAILURES,
    FORM,
    path_end,
    printable,
    printer,
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
    classes = predictor.classes
    width = max(map(len, classes))

    def row(made: Prediction) -> list[list[object]]:
        shares = [f"{float(value):.6f}" for value in made.proba]
        return [[made.id, made.path, made.label, f"{made.confidence:.6f}", *shares]]

    def line(made: Prediction) -> list[str]:
        order = made.proba.argsort()[::-1].tolist()
        others = ", ".join(f"{classes[code]} {made.proba[code]:.0%}" for code in order[1:])
        path = f"{path_end(made.path):48}"
        return [printable(f"{path}  {made.label:{width}}  {made.confidence:6.1%}  ({others})")]

    header = ["id", "path", "label", "confidence", *(f"p_{name}" for name in classes)]
    show = printer(form, header, row, line)
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


main = partial(run_command, command)


if __name__ == "__main__":
    main()
