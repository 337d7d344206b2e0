"""``hser-evaluate``: a model on other corpora, corpora against each other, embeddings against copies."""

from __future__ import annotations

from functools import partial
from typing import Any

import click

from classifiers.commands.options import (
    INCLUDE_HEARD,
    INCOMPLETE,
    LAYERS,
    POOLING,
    QUIET,
    TEST_ON,
    experiment_of,
    layer_numbers,
)
from classifiers.data.source import CLEAN
from extractor.commands.options import CONTEXT, MAP, GroupWithDefault, run_command, say
from extractor.inputs.corpora.words import parse_renames

# Imports beyond these happen inside: `--help` must not wait seconds for scikit-learn and torch.

EPILOG = """\b
Examples:
  hser-evaluate models/svm runs/savee                    # a model on other runs
  hser-evaluate experiment.yaml runs/savee --map calm=neutral
  hser-evaluate matrix runs/emodb runs/ravdess --classifier svm --layer 3 \\
      --normalise corpus --out studies/cross
  hser-evaluate stability runs/augmented --out studies/stability
"""


_NORMALISE = click.option(
    "--normalise",
    default="none",
    show_default=True,
    help="none, or corpus: each by its own mean and deviation.",
)
_OUT = click.option("--out", type=click.Path(), help="Folder of the figures as JSON, and charts.")


@click.group(cls=GroupWithDefault, default="model", epilog=EPILOG, context_settings=CONTEXT)
def hser_evaluate() -> None:
    """How well does it do elsewhere?

    `hser-evaluate MODEL RUN...` is `hser-evaluate model MODEL RUN...`; see its --help.
    """


@hser_evaluate.command()
@click.argument("model", type=click.Path(), metavar="MODEL_OR_CONFIG")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@MAP
@_NORMALISE
@click.option(
    "--common-only", is_flag=True, help="Choose among the classes that RUN has, not all of the model's."
)
@TEST_ON
@INCLUDE_HEARD
@INCOMPLETE
@_OUT
@QUIET
def model(model: str, runs: tuple[str, ...], out: str | None, quiet: bool, **options: Any) -> None:
    """Test a model folder on other runs, or what an experiment's YAML file trains.

    Labels are compared by name; every label is printed with the class it counts as. The drop is
    against the model's own protocol over the same classes. RUN of a model of several sources: its
    runs with commas. What the model has heard in training, by its audio whatever it is called, is
    left out, and so are its speakers where RUN is of the same corpus.
    """
    from classifiers.studies.transfer import save_transfers, transfer, transfer_lines

    _check_out(out)
    renames, test_on = parse_renames(options.pop("map")), options.pop("test_on") or CLEAN
    found = transfer(model, runs, renames, say=None if quiet else say, test_on=test_on, **options)
    click.echo("\n".join(transfer_lines(found)))
    if out is not None:
        save_transfers(found, out)


@hser_evaluate.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN RUN...")
@click.option("--config", type=click.Path(), help="Experiment as of hser-train; its features are not read.")
@click.option("--classifier", help="As of hser-train.  [default: logistic]")
@click.option("--layer", help="As of hser-train.  [default: best, selected inside the training corpus]")
@POOLING
@click.option("--protocol", help="Of the diagonal.  [default: loso]")
@click.option("--classes", help="Only these, with commas.  [default: all that the runs have in common]")
@click.option("--label", help="Column to learn.  [default: emotion]")
@click.option("--seed", type=int, help="[default: 0]")
@MAP
@_NORMALISE
@click.option("--leave-one-out", is_flag=True, help="Train on all other runs together, too.")
@TEST_ON
@INCLUDE_HEARD
@INCOMPLETE
@_OUT
@QUIET
def matrix(
    runs: tuple[str, ...],
    config: str | None,
    normalise: str,
    leave_one_out: bool,
    include_heard: bool,
    out: str | None,
    quiet: bool,
    **options: Any,
) -> None:
    """Train on each RUN and test on every other, over the classes they have in common."""
    from classifiers.studies.cross_corpus import cross_matrix, matrix_lines

    _check_out(out)
    experiment = experiment_of("hser-evaluate", config, {"features": [runs[0]], **options})
    tell = None if quiet else say
    found = cross_matrix(runs, experiment, normalise, leave_one_out, tell, include_heard, out)
    for each in found.labels:
        click.echo("\n".join(each.lines()))
    click.echo("\n".join(matrix_lines(found)))
    if out is not None:
        found.save(out)


@hser_evaluate.command()
@click.argument("run", type=click.Path())
@POOLING
@LAYERS
@INCOMPLETE
@_OUT
def stability(run: str, pooling: str | None, layers: str, incomplete: bool, out: str | None) -> None:
    """How far augmented copies move from their originals: cosine and linear CKA, by layer.

    RUN is one that was extracted with --augment, the recordings as they are among it. CKA over fewer
    pairs than an embedding has dimensions is too high.
    """
    from classifiers.studies.stability import measure_stability, stability_lines

    numbers = layer_numbers(layers)
    _check_out(out)
    found = measure_stability(run, pooling, numbers, incomplete)
    click.echo("\n".join(stability_lines(found)))
    if out is not None:
        found.save(out)


def _check_out(out: str | None) -> None:
    """Before anything is computed."""
    from classifiers.training.config import refuse_results

    if out is not None:
        refuse_results(out)


main = partial(run_command, hser_evaluate)


if __name__ == "__main__":
    main()
