"""``hser-train``: a classifier on embeddings, tested as its protocol says, and kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from classifiers.commands.options import FORCE, INCOMPLETE, POOLING, QUIET, TEST_ON, experiment_of
from classifiers.models.table import defaults_lines
from extractor.commands.options import CONTEXT, MAP, run_command, say
from extractor.errors import SettingsError

if TYPE_CHECKING:
    from classifiers.results.result import Result
    from classifiers.studies.layers import LayerStudy
    from classifiers.training.config import Experiment

# Imports beyond these happen inside: `--help` must not wait seconds for scikit-learn and torch.

# The classifiers stand above this, from their table.
EPILOG = """\b
Protocols:   loso                 leave one speaker out
             session              leave one session out
             grouped-kfold        speakers in --folds parts
             emobox-ravdess emobox-savee   EmoBox's folds of speakers
             split                the run's own column split
             stratified-kfold stratified-80-10-10   speaker-dependent
Layers:      12; 6,12 side by side; best: selected inside each fold's
             training rows; all: for layer-weights; each: a score for every
             layer (and pooling), no model

\b
Examples:
  hser-train runs/ravdess --classifier svm --layer 12 --out models/svm
  hser-train runs/emodb --layer best --grid default --out models/logistic
  hser-train runs/emodb --layer each --out studies/emodb
  hser-train --features runs/mfcc --features runs/hubert:mean:9 \\
      --fusion average --classifier svm --out models/fused
  hser-train --config experiment.yaml --out models/x

\b
Layer and parameters are selected on inner splits of each fold's training
rows; the test rows have no part in it. Flags win over --config, whose keys
are their names. Augmented copies stay with their original; clean rows are
tested, or those that --test-on names. Exit code: 0 done, 2 an error.
"""


@click.command(
    epilog="\n".join(
        ["\b", "Classifiers, what they read, and their defaults for --param:", *defaults_lines(), "", EPILOG]
    ),
    context_settings=CONTEXT,
)
@click.argument("run", required=False, type=click.Path())
@click.option(
    "--features", multiple=True, metavar="RUN[:POOLING[:LAYER]]", help="Instead of RUN; several fuse."
)
@click.option("--config", type=click.Path(), help="YAML file with any of these options.")
@click.option("--classifier", help="See below.  [default: logistic]")
@click.option("--param", multiple=True, metavar="NAME=VALUE", help="Of the classifier, such as C=0.1.")
@click.option("--layer", help="See below.  [default: best]")
@POOLING
@click.option("--fusion", help="Of several features: concat, average or gate.  [default: concat]")
@click.option("--protocol", help="See below.  [default: loso]")
@click.option("--folds", type=int, help="Of the k-fold protocols.  [default: 5]")
@click.option(
    "--grid", multiple=True, metavar="NAME=V,V", help="Select from these; default: the classifier's own."
)
@click.option("--tune", type=int, metavar="N", help="Select by a search of N trials.")
@click.option("--inner-folds", type=int, help="That layer and parameters are selected on.  [default: 5]")
@click.option("--seeds", type=int, help="How many; each is a whole test.  [default: 1]")
@click.option("--seed", type=int, help="The first.  [default: 0]")
@click.option("--label", help="Column to learn.  [default: emotion]")
@click.option("--classes", help="Only these, with commas.  [default: all]")
@MAP
@click.option(
    "--copies", help="Augmented copies: train (on them), none, or all (tested too).  [default: train]"
)
@TEST_ON
@INCOMPLETE
@click.option("--out", type=click.Path(), help="Folder of the model; without it figures are printed only.")
@FORCE
@click.option(
    "--projection", help="Of the picture of the recordings: umap or pca, which is quick.  [default: umap]"
)
@click.option("--print-config", is_flag=True, help="Print the experiment as YAML, and stop.")
@QUIET
def command(
    run: str | None,
    features: tuple[str, ...],
    config: str | None,
    out: str | None,
    force: bool,
    projection: str | None,
    print_config: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Train a classifier on the embeddings of RUN and test it on speakers it has not heard."""
    from classifiers.data.source import Source

    if run is not None and features:
        raise SettingsError("name a RUN or --features, not both")
    options["features"] = list(features or ([run] if run is not None else [])) or None
    experiment = experiment_of("hser-train", config, options)
    if print_config:
        click.echo(experiment.to_yaml(), nl=False)
        return
    tell = None if quiet else say
    if tell is not None:
        tell(experiment.to_yaml().rstrip())
    sources = [Source.parse(text, experiment.layer or "best") for text in experiment.features]
    if any(source.layers == "each" for source in sources):
        _study(experiment, out, force, tell)
    else:
        _train(experiment, out, projection, force, tell)


def _train(experiment: Experiment, out: str | None, projection: str | None, force: bool, tell: Any) -> None:
    from classifiers.charts.projection import choose_projection
    from classifiers.training.config import model_config, refuse_foreign, refuse_other_settings
    from classifiers.training.experiment import open_features, run_experiment, train_on_all
    from classifiers.training.model_folder import write_model

    if out is not None:  # now: training may take hours
        refuse_foreign(out)
        refuse_other_settings(out, None if force else model_config(out), experiment)
    opened = open_features(experiment)
    if out is not None:
        choose_projection(projection, len(opened))
    result = run_experiment(experiment, opened, tell)
    click.echo("\n".join(result_lines(result)))
    if out is None:
        return
    trained = train_on_all(experiment, opened, tell)
    for note in trained.notes:
        click.echo(f"note: final model: {note}")
    words = [str(setting) for setting in trained.settings if str(setting)]
    if len(trained.settings) > 1:
        words.append("weights " + ", ".join(f"{weight:.2f}" for weight in trained.estimator.weights))
    write_model(out, trained.estimator, result, trained.sources, projection)
    click.echo(f"model     {out}" + (f" (on all rows: {'; '.join(words)})" if words else ""))


def _study(experiment: Experiment, out: str | None, force: bool, tell: Any) -> None:
    from classifiers.studies.layers import read_study, run_layer_study
    from classifiers.training.config import refuse_other_settings, refuse_results

    if out is not None:
        refuse_results(out)
        there = None if force else read_study(out, "overwrite it with --force")
        settings = None if there is None else there.config | {"used": there.used}
        refuse_other_settings(out, settings, replace(experiment, layer="each"))
    study = run_layer_study(experiment, tell)
    click.echo("\n".join(study_lines(study)))
    if out is not None:
        study.save(out)
        click.echo(f"study     {out}")


def study_lines(study: LayerStudy) -> list[str]:
    """A table: a line a pooling and layer."""
    from classifiers.studies.layers import CAUTION

    lines = [f"tested    {study.num_tested:,} recordings, {len(study.classes)} classes; {study.conditions}"]
    lines += [f"{'pooling':<10} {'layer':>5} {'UA %':>6}  {'95 % interval':<13} {'WA %':>6} {'mac-F1':>6}"]
    for score in study.scores:
        interval = f"{100 * score['low']:.1f} to {100 * score['high']:.1f}"
        lines.append(
            f"{score['pooling']:<10} {score['layer']:>5} {100 * score['UA']:>6.1f}  {interval:<13}"
            f" {100 * score['WA']:>6.1f} {100 * score['macro_f1']:>6.1f}"
        )
    lines += [f"note: {note}" for note in study.notes]
    return [*lines, f"note: {CAUTION}"]


def result_lines(result: Result) -> list[str]:
    """What is printed of a result."""
    from classifiers.results.metrics import augmentation_lines
    from classifiers.training.conditions import conditions_of

    figures = result.figures()
    dependent = ", SPEAKER-DEPENDENT" if result.speaker_dependent else ""
    test_on = result.config.get("test_on", "clean")
    seeds = f", {len(result.seeds)} seeds" if len(result.seeds) > 1 else ""
    lines = [
        f"tested    {figures['num_tested']:,} recordings, {len(result.classes)} classes{dependent}"
        f"{'' if test_on == 'clean' else f', tested on {test_on}'}{seeds}",
        *(f"{name:<15}{words}" for name, words in conditions_of(result).pairs()),
    ]
    if seeds and not figures["seeds_differ"]:
        lines.append(f"note: {SEEDS_ALIKE}")
    names = {"UA": "UA", "WA": "WA", "macro_f1": "macro-F1", "weighted_f1": "weighted-F1"}
    for key, name in names.items():
        spread = f" ± {100 * figures['deviation'][key]:.1f} over seeds" if figures["seeds_differ"] else ""
        interval = f"95 %: {_interval(figures['interval'][key])}"
        if figures["interval_by_speaker"]:
            interval += f"; speakers drawn: {_interval(figures['interval_by_speaker'][key])}"
        lines.append(f"{name:<11} {100 * figures['mean'][key]:5.1f} %{spread}  ({interval})")
    mean = figures["mean"]
    lines.append(f"ROC-AUC {mean['roc_auc']:.3f}, ECE {mean['ece']:.3f}")
    recall = {k: f"{100 * v:.0f} %" if math.isfinite(v) else "-" for k, v in figures["recall"].items()}
    lines.append("recall    " + ", ".join(f"{name} {value}" for name, value in recall.items()))
    lines += augmentation_lines(figures["by_augmentation"])
    weights = [  # of a late fusion: mean of the folds, lowest and highest
        f"{w['features']} {w['mean']:.2f} ({w['lowest']:.2f} to {w['highest']:.2f})"
        for w in figures["weights"] or []
    ]
    lines += ["weights   " + ", ".join(weights)] if weights else []
    return lines + [f"note: {note}" for note in result.notes]


SEEDS_ALIKE = "all seeds gave the same predictions: nothing here is drawn, and there is no deviation to show"


def _interval(bounds: Sequence[float]) -> str:
    low, high = bounds
    return f"{100 * low:.1f} to {100 * high:.1f}"


main = partial(run_command, command)


if __name__ == "__main__":
    main()
