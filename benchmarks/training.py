"""Training on one layer of a store: time, what it goes into, and memory.

    python -m benchmarks.training [--rows 10000] [--layers 25] [--dim 1024]
        [--classifiers logistic,svm,mlp] [--repeats 3] [--out FILE.json]

Of synthetic rows with classes that can be learned, written to a run's store first. Each measurement is a
fresh process that does what ``hser-train RUN --classifier C --layer 12 --protocol grouped-kfold --folds 5``
does, the middle layer if there are not 25. The other contender is what is done without hser: the whole
array is read into memory, the layer taken out of it, and scikit-learn's same classifier trained and tested
on the same folds, which finds the same UA. Classifiers in torch have no such contender. Memory is the
process's peak above what it had after its imports; the store was just written, so it is read from the
system's cache. Classifiers that are not asked for stay as they are in the result file, if it is of the same
size.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, ParamSpec, TypeVar

import numpy as np

from benchmarks import harness
from benchmarks.readme import show
from benchmarks.stand_ins import write_store
from extractor.store.run_folder import CONTENTS
from extractor.types import Seconds

P = ParamSpec("P")
T = TypeVar("T")

POOLING = "mean"
LABELS = ("emotion", "speaker")
BATCH_ROWS = 1000
NUM_CLASSES, NUM_SPEAKERS = 8, 20
# Of a dimension's noise: between the classes, so that some rows are mistaken; between speakers.
CLASSES_APART, SPEAKERS_APART = 0.1, 0.3
FOLDS = 5
LONG: Seconds = 60.0  # a classifier that takes longer is measured once

READ, FIT, TEST, FIGURES = "read", "fit", "test", "figures"
# What hser-train calls, by stage; a call inside another one counts for the outer.
STAGES = {
    "classifiers.data.features.Features.open": READ,
    "extractor.store.reader.Store.load_rows": READ,
    "classifiers.training.learner.Learner.fit": FIT,
    "classifiers.training.learner.FittedClassifier.proba": TEST,
    "classifiers.results.result.Result.figures": FIGURES,
}


def write_rows(run: Path, num_rows: int, num_layers: int, dim: int) -> None:
    """A store in which every layer tells the class as well as any other."""
    rng = np.random.default_rng(0)
    classes, speakers = (
        rng.standard_normal((count, num_layers, dim), dtype=np.float32) * np.float32(apart)
        for count, apart in ((NUM_CLASSES, CLASSES_APART), (NUM_SPEAKERS, SPEAKERS_APART))
    )
    y, speaker = (rng.integers(0, count, num_rows) for count in (NUM_CLASSES, NUM_SPEAKERS))

    def batches() -> Iterator[np.ndarray]:
        for start in range(0, num_rows, BATCH_ROWS):
            some = slice(start, min(num_rows, start + BATCH_ROWS))
            x = rng.standard_normal((some.stop - start, num_layers, dim), dtype=np.float32)
            yield x + (classes[y[some]] + speakers[speaker[some]])

    def labels(position: int) -> tuple[str, str, str]:
        emotion = f"class{y[position]}"
        return emotion, emotion, f"speaker{speaker[position]:02d}"

    write_store(run, num_rows, batches(), BATCH_ROWS, labels)


@dataclass(slots=True)
class Stages:
    """Seconds by stage; what is begun inside a stage is part of it."""

    seconds: dict[str, float] = field(default_factory=dict)
    _inside: bool = False

    def timed(self, function: Callable[P, T], stage: str) -> Callable[P, T]:
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            if self._inside:
                return function(*args, **kwargs)
            self._inside = True
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - began
                self._inside = False

        return call


def with_hser(run: Path, classifier: str, layer: int, stages: Stages) -> float:
    """What ``hser-train`` does without ``--out``, up to its figures. Returns UA."""
    from classifiers.training.config import Experiment
    from classifiers.training.experiment import open_features, run_experiment

    protocol = {"protocol": "grouped-kfold", "folds": FOLDS}
    experiment = Experiment((str(run),), classifier, layer=str(layer), **protocol)  # type: ignore[arg-type]
    with harness.replaced({path: stages.timed(resolve_name(path), stage) for path, stage in STAGES.items()}):
        figures = run_experiment(experiment, open_features(experiment)).figures()
    return float(figures["mean"]["UA"])


def by_hand(run: Path, classifier: str, layer: int, stages: Stages) -> float:
    """The whole array in memory, and scikit-learn. Returns UA."""
    import h5py
    from sklearn.metrics import recall_score
    from sklearn.model_selection import StratifiedGroupKFold

    def read() -> tuple[np.ndarray, ...]:
        with h5py.File(run / CONTENTS) as h5:
            labels = [np.unique(h5[f"labels/{name}"][:], return_inverse=True)[1] for name in LABELS]
            return h5["embeddings"][POOLING][:], *labels

    whole, y, speaker = stages.timed(read, READ)()
    x = whole[:, layer]
    guess = np.empty_like(y)
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
    for train, test in folds.split(x, y, speaker):
        fit = stages.timed(partial(fit_by_hand, classifier), FIT)
        fitted = fit(x[train], y[train], speaker[train])
        guess[test] = stages.timed(fitted.predict_proba, TEST)(x[test]).argmax(axis=1)
    return float(recall_score(y, guess, average="macro"))


def fit_by_hand(classifier: str, x: np.ndarray, y: np.ndarray, speaker: np.ndarray) -> Any:
    """An SVM's probabilities as hser's has them: a sigmoid on the scores of speakers held out."""
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    from classifiers.models.table import LINEAR_C

    if classifier == "logistic":
        return make_pipeline(StandardScaler(), LogisticRegression(C=LINEAR_C, max_iter=2000)).fit(x, y)
    machine = make_pipeline(StandardScaler(), SVC(kernel="linear", C=LINEAR_C))
    splits = list(StratifiedGroupKFold(5).split(x, y, speaker))
    return CalibratedClassifierCV(machine, cv=splits, ensemble=False).fit(x, y)


BY_HAND = ("logistic", "svm")
CONTENDERS = {"hser-train": with_hser, "by hand": by_hand}


def measure(contender: str, run: Path, classifier: str, layer: int) -> dict[str, Any]:
    """In a process of its own: memory that was used before is used again, and not seen.

    Bytes are of resident memory; None where a peak cannot be measured.
    """
    import sklearn.metrics  # noqa: F401
    from threadpoolctl import threadpool_info

    import classifiers.training.experiment  # noqa: F401
    from classifiers.models.table import row

    # Some of what is imported on the way is imported by a fit only.
    y = np.arange(40) % 2
    row(classifier).make({}, 0).fit(np.random.default_rng(0).standard_normal((40, 2), np.float32), y)
    stages, found = Stages(), [0.0]

    def work() -> None:
        found[0] = CONTENDERS[contender](run, classifier, layer, stages)

    began = time.perf_counter()
    above = harness.working_bytes(work)
    if above is None:
        work()
    return {
        "seconds": time.perf_counter() - began,
        "above_imports": above,
        "whole_process": harness.peak_bytes(),
        "stages": stages.seconds,
        "UA": found[0],  # between 0 and 1
        "threads": max((pool["num_threads"] for pool in threadpool_info()), default=1),
    }


def measure_classifier(run: Path, classifier: str, layer: int, repeats: int) -> dict[str, Any]:
    """By contender, what every process found: lists in the order of the repeats, what does not vary once.

    Repeated while a process takes less than `LONG`.
    """
    contenders = {
        name: partial(harness.in_child, measure, name, run, classifier, layer)
        for name in CONTENDERS
        if name == "hser-train" or classifier in BY_HAND
    }
    found = harness.take_turns(contenders, 1, warm_up=False)
    if all(first["seconds"] < LONG for [first] in found.values()):
        for name, more in harness.take_turns(contenders, repeats - 1, warm_up=False).items():
            found[name] += more
    together = {}
    for name, each in found.items():
        lists = {of: [one[of] for one in each] for of in ("seconds", "above_imports", "whole_process")}
        names = dict.fromkeys(stage for one in each for stage in one["stages"])
        stages = {stage: [one["stages"].get(stage, 0.0) for one in each] for stage in names}
        together[name] = lists | {"stages": stages, "UA": each[0]["UA"], "threads": each[0]["threads"]}
    return together


def main(argv: Sequence[str] | None = None) -> None:
    args = harness.arguments(
        __doc__,
        argv,
        rows=10_000,
        layers=25,
        dim=1024,
        classifiers="logistic,svm,mlp",
        repeats=3,
        scratch=(Path, "folder for the store (default: temporary)"),
    )
    layer = args.layers // 2
    about = {
        "what": "hser-train on one layer of a store: seconds by stage, bytes of memory",
        "rows": args.rows,
        "layers": args.layers,
        "dim": args.dim,
        "layer": layer,
        "folds": FOLDS,
    }
    results = harness.measured_before(harness.result_path("training", args.out), about, "classifiers")
    with tempfile.TemporaryDirectory(prefix="hser-training-", dir=args.scratch) as folder:
        run = Path(folder) / "run"
        write_rows(run, args.rows, args.layers, args.dim)
        for classifier in args.classifiers.split(","):
            results[classifier] = measure_classifier(run, classifier, layer, args.repeats)
            # A classifier may take many minutes: what is measured is kept.
            harness.write_result("training", {**about, "classifiers": results}, args.out)
    show("training", {**about, "classifiers": results})


if __name__ == "__main__":
    main()
