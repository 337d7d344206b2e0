"""How much does an embedding move when its recording is augmented? By layer and augmentation.

cosine   between a copy and its original, mean over pairs; 1 where nothing moved
cka      linear centred kernel alignment (Kornblith et al. 2019, eq. 4) between all originals and
         their copies: whether recordings keep their places among each other. 1 where they do,
         however the whole is turned or scaled. With fewer pairs than dimensions it is too high;
         the number of pairs stands beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from classifiers.data.runs import augmentations_of, encoder_words, missing_notes, open_run
from classifiers.results.files import write_csv, write_json
from extractor.errors import InputError, StoreError

EVERY = "all copies"  # the kind that holds all


@dataclass(frozen=True, slots=True)
class Stability:
    """All layers and kinds of a run.

    ``scores``: of each layer and kind of augmentation (names of its operations, joined by +) how many
    ``pairs``; ``cosine``, ``cosine_deviation`` and ``cosine_lowest`` of them; ``cka``, NaN of a single pair.
    """

    run: str
    pooling: str
    scores: tuple[dict[str, Any], ...]
    unpaired: int  # copies whose original is not there as it is
    encoder: str = ""  # with its dtype
    notes: tuple[str, ...] = ()

    @property
    def conditions(self) -> str:
        return f"{self.encoder}, pooling {self.pooling}, embeddings as stored"

    def save(self, folder: str | PathLike[str]) -> None:
        """``stability.json``, ``.csv``, ``.png``. Raises StoreUnwritable."""
        from classifiers.charts import plots

        path = Path(folder)
        write_json(path / "stability.json", asdict(self))
        write_csv(path / "stability.csv", list(self.scores[0]), (score.values() for score in self.scores))
        by_kind: dict[str, list[tuple[int, float, float]]] = {}
        for score in self.scores:
            of_kind = by_kind.setdefault(score["kind"], [])
            of_kind.append((score["layer"], score["cosine"], score["cka"]))
        figure = plots.stability(by_kind)
        plots.write_png(plots.captioned(figure, self.conditions), path / "stability.png")


def measure_stability(
    run: str | PathLike[str],
    pooling: str | None = None,
    layers: Sequence[int] | None = None,
    incomplete: bool = False,
) -> Stability:
    """Compare copies with their originals, one layer in memory at a time.

    Raises StoreError for a run without augmented copies, or one that is not finished unless
    ``incomplete``; InputError where no copy has its original in the run; SettingsError for an unknown
    pooling or layer.
    """
    store = open_run(run, incomplete)
    if not store.has_copies:
        raise StoreError(f"{store.path}: has no augmented copies; extract with --augment")
    numbers, pooling = store.resolve(layers, pooling)
    original, is_copy = store.originals, np.flatnonzero(~store.clean).tolist()
    clean_row = {original[row]: row for row in np.flatnonzero(store.clean).tolist()}
    copies = np.array([row for row in is_copy if original[row] in clean_row], np.int64)
    originals = np.array([clean_row[original[row]] for row in copies.tolist()], np.int64)
    if not len(copies):
        raise InputError(f"{store.path}: no copy has its original beside it; extract without --no-clean")
    kinds = np.array(augmentations_of(store), object)[copies]
    groups = {kind: np.flatnonzero(kinds == kind) for kind in sorted(set(kinds.tolist()))}
    if len(groups) > 1:
        groups[EVERY] = np.arange(len(copies))
    found = []
    for layer in numbers:
        clean = store.load_rows(originals, layer, pooling)
        moved = store.load_rows(copies, layer, pooling)
        cosine = cosines(clean, moved)
        for kind, pairs in groups.items():
            of = cosine[pairs]
            found.append({
                "pooling": pooling,
                "layer": layer,
                "kind": kind,
                "pairs": len(pairs),
                "cosine": float(of.mean()),
                "cosine_deviation": float(of.std()),
                "cosine_lowest": float(of.min()),
                "cka": linear_cka(clean[pairs], moved[pairs]),
            })  # fmt: skip
    notes, encoder = tuple(missing_notes(store)), encoder_words(store.settings)
    return Stability(str(store.path), pooling, tuple(found), len(is_copy) - len(copies), encoder, notes)


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """float64 [N] of rows of float [N, D] each. A zero row has cosine 0 to all."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    norm = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.divide((a * b).sum(axis=1), norm, out=np.zeros(len(a)), where=norm > 0)


def linear_cka(a: np.ndarray, b: np.ndarray) -> float:
    """Of float [N, D] and [N, E], rows aligned; NaN where either does not vary.

    Kornblith et al. 2019, eq. 4 with linear kernels, in whichever of N and D is smaller.
    """
    a, b = a.astype(np.float64), b.astype(np.float64)
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    if len(a) < max(a.shape[1], b.shape[1]):  # through N x N kernels
        k, m = a @ a.T, b @ b.T
        cross, own = (k * m).sum(), np.linalg.norm(k) * np.linalg.norm(m)
    else:
        cross = np.square(a.T @ b).sum()
        own = np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b)
    return float(cross / own) if own > 0 else float("nan")


def stability_lines(stability: Stability) -> list[str]:
    """A table: a line a layer and kind."""
    width = max(12, *(len(score["kind"]) for score in stability.scores))
    lines = [f"{stability.run}: {stability.conditions}"]
    lines += [f"{'layer':>5}  {'augmentation':<{width}} {'pairs':>7} {'cosine':>8} {'lowest':>8} {'CKA':>8}"]
    for s in stability.scores:
        values = " ".join(f"{s[name]:>8.4f}" for name in ("cosine", "cosine_lowest", "cka"))
        lines.append(f"{s['layer']:>5}  {s['kind']:<{width}} {s['pairs']:>7,} {values}")
    if stability.unpaired:
        lines.append(f"note: {stability.unpaired:,} copies have no original in the run: left out")
    return [*lines, *(f"note: {note}" for note in stability.notes)]
