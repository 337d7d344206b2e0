"""Features of an outside package under hser's folds, in plain scikit-learn.

What hser-train does by `classifiers.training.experiment` is written out here a second time: the loop over
folds, the selection of C inside their training rows, the scores. Given hser's own embeddings it must
therefore find what hser-train finds, which the tests hold it to.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import recall_score

CLASSIFIER, INNER_FOLDS, SEED = "svm", 5, 0
EXPERIMENT = f"--classifier {CLASSIFIER} --grid default, in plain scikit-learn on the same folds"


def reference_figures(path: Path, run: Path, protocol: str) -> tuple[Any, str]:
    """Test the features of an .npz (``id``, ``x``, ``opensmile``) as ``protocol`` says.

    ``run`` gives ids, labels and speakers. Returns a `Result` and openSMILE's version. Raises ValueError
    where the run has recordings that the file has not.
    """
    from classifiers.results.metrics import Predictions
    from classifiers.results.result import FoldInfo, Result
    from classifiers.training.config import Experiment
    from classifiers.training.experiment import open_features
    from classifiers.training.protocols import fit_groups, inner_splits, make_folds

    with np.load(path, allow_pickle=False) as file:
        row_of = {name: i for i, name in enumerate(file["id"].tolist())}
        all_x, smile = file["x"], str(file["opensmile"])
    experiment = Experiment((str(run),), CLASSIFIER, protocol=protocol, grid="default")
    features = open_features(experiment)
    missing = [name for name in features.ids if name not in row_of]
    if missing:
        raise ValueError(f"{path}: {len(missing)} recordings of {run} are not in it, such as {missing[0]}")
    x, y = all_x[[row_of[name] for name in features.ids]], features.y
    groups = fit_groups(features, protocol)
    folds, notes = make_folds(features, protocol, seed=SEED)
    proba = np.empty((len(y), len(features.classes)), np.float32)
    fold_of = np.empty(len(y), np.int64)
    infos = []
    for k, fold in enumerate(folds):
        splits = inner_splits(features, fold, protocol, INNER_FOLDS, SEED)
        c = best_c(x, y, groups, splits, experiment.grid_values["C"])
        proba[fold.test] = fitted(x, y, groups, fold.train, c).predict_proba(x[fold.test])
        fold_of[fold.test] = k
        infos.append(FoldInfo(fold.name, len(fold.train), len(fold.test), params={"C": c}))
    rows = np.sort(np.concatenate([fold.test for fold in folds]))
    result = Result(
        config=experiment.to_dict() | {"features": [path.stem]},
        classes=features.classes,
        ids=features.ids,
        seeds=[SEED],
        predictions=[Predictions(rows, fold_of[rows], y[rows], proba[rows])],
        folds=[infos],
        notes=notes,
        speakers=features.column("speaker"),
    )
    return result, smile


def fitted(x: np.ndarray, y: np.ndarray, groups: np.ndarray, rows: np.ndarray, c: float) -> Any:
    """The table's classifier, which standardises, on ``rows``. Every class must be among them."""
    from classifiers.models.table import row

    return row(CLASSIFIER).make({"C": c}, SEED).fit(x[rows], y[rows], groups=groups[rows])


def best_c(x: np.ndarray, y: np.ndarray, groups: np.ndarray, splits: Any, candidates: Any) -> float:
    """The C with the highest UA over the validation rows of all splits; of equals the first."""
    truth = np.concatenate([y[validation] for _, validation in splits])
    scored = []
    for c in candidates:
        guess = [fitted(x, y, groups, train, c).predict(x[validation]) for train, validation in splits]
        scored.append(recall_score(truth, np.concatenate(guess), average="macro"))
    return float(candidates[int(np.argmax(scored))])
