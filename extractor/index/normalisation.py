"""What is done to an embedding before its direction is compared: rows and queries alike.

    x [n, D]  ->  none | whiten | speaker  ->  divided by its length: cosine is then an inner product

``whiten``: ``(x - mean) V diag(variance)^-1/2 V'`` with the covariance shrunk towards a multiple of
the identity as Ledoit and Wolf (2004), *A well-conditioned estimator for large-dimensional
covariance matrices*, derive it; so it is invertible with fewer rows than dimensions, too.
``speaker``: each speaker's rows less their own mean, over their own deviation (population's).
A speaker who is unknown, or of whom there is one row only (which would become zero), gets the
corpus's mean and deviation; so does, of any speaker, a dimension that does not vary.
Statistics are accumulated in float64, two passes over the rows, a block at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from extractor.errors import InputError, SettingsError, StoreError, unknown
from extractor.index.exact import WIDE_ROWS, unit

Blocks = Callable[[], Iterable[tuple[np.ndarray, np.ndarray]]]  # row indices [n], float32 [n, D]
Names = Sequence[str] | np.ndarray

# A deviation below this share of the corpus's is rounding (float32 keeps 7 digits), not variation.
LEAST_DEVIATION = 1e-6


@dataclass(frozen=True, slots=True)
class Normalisation:
    """A fitted normalisation; ``arrays`` is all of it, as it is stored."""

    name: str
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def needs_speakers(self) -> bool:
        return self.name == "speaker"

    def __call__(self, x: np.ndarray, speakers: Names | None = None) -> np.ndarray:
        """Unit vectors float32 ``[n, D]`` of embeddings float32 ``[n, D]``; a zero vector stays zero.

        ``speakers``: n names, ``""`` where not known; needed by ``speaker`` alone.
        Raises ``SettingsError`` without them, ``InputError`` for a value that is not finite.
        """
        finite = np.isfinite(x).all(axis=1)
        if not finite.all():
            raise InputError(f"embedding {np.flatnonzero(~finite)[0]} has values that are not finite")
        if self.needs_speakers and (speakers is None or len(speakers) != len(x)):
            raise SettingsError(
                "the index is normalised by speaker: name the speaker of each query "
                "('' where not known: the corpus's mean and deviation are used)"
            )
        units = np.empty(x.shape, np.float32)
        for start in range(0, len(x), WIDE_ROWS):
            rows = slice(start, start + WIDE_ROWS)
            names = speakers[rows] if speakers is not None else ()
            units[rows] = unit(NORMALISATIONS[self.name].apply(self.arrays, x[rows], names))
        return units


@dataclass(frozen=True, slots=True)
class Method:
    fit: Callable[[Blocks, Names], dict[str, np.ndarray]]
    apply: Callable[[Mapping[str, np.ndarray], np.ndarray, Names], np.ndarray]


def fit(name: str, blocks: Blocks, speakers: Names | None = None) -> Normalisation:
    """Fit to rows that come in blocks. ``speakers``: of row k; None where no speaker is needed."""
    if name not in NORMALISATIONS:
        raise SettingsError(unknown("normalisation", name, NORMALISATIONS))
    return Normalisation(name, NORMALISATIONS[name].fit(blocks, () if speakers is None else speakers))


def _mean(blocks: Blocks) -> tuple[int, np.ndarray]:
    count, total = 0, np.zeros(1)
    for _, x in blocks():
        count, total = count + len(x), total + x.sum(axis=0, dtype=np.float64)
    if not count:
        raise StoreError("a normalisation cannot be fitted: the store has no rows; use --normalisation none")
    return count, total / count


def _fit_whiten(blocks: Blocks, _speakers: Names) -> dict[str, np.ndarray]:
    count, mean = _mean(blocks)
    products, fourth = np.zeros((len(mean), len(mean))), 0.0
    for _, x in blocks():
        centred = x - mean  # float64
        products += centred.T @ centred
        fourth += float(np.square(np.square(centred).sum(axis=1)).sum())
    covariance = products / count
    identity = np.trace(covariance) / len(mean)  # the multiple of the identity to shrink to
    if identity <= 0:
        raise StoreError("whitening cannot be fitted: all rows are equal; use --normalisation none")
    squared = float(np.square(covariance).sum())
    # Ledoit and Wolf's d^2, b^2 and the intensity b^2 / d^2, all times D
    distance = squared - len(mean) * identity**2
    error = (fourth / count - squared) / count
    shrinkage = min(error, distance) / distance if distance > 0 else 0.0
    shrunk = (1 - shrinkage) * covariance + shrinkage * identity * np.eye(len(mean))
    variances, axes = np.linalg.eigh(shrunk)
    # Two rows on a line, or a dimension that is constant, with hardly any shrinkage
    variances = np.maximum(variances, LEAST_DEVIATION**2 * identity)
    whitening = (axes / np.sqrt(variances)) @ axes.T  # [D, D], symmetric: axes keep their meaning
    return {"mean": mean, "whitening": whitening, "shrinkage": np.array(shrinkage)}


def _whiten(arrays: Mapping[str, np.ndarray], x: np.ndarray, _speakers: Names) -> np.ndarray:
    return (x - arrays["mean"]) @ arrays["whitening"]


def _fit_speaker(blocks: Blocks, speakers: Names) -> dict[str, np.ndarray]:
    count, mean = _mean(blocks)
    names, codes = np.unique(np.array(speakers, dtype=str), return_inverse=True)
    means, squares = np.zeros((len(names), len(mean))), np.zeros((len(names), len(mean)))
    counts = np.zeros(len(names))
    total = np.zeros(len(mean))
    for rows, x in blocks():
        for code in np.unique(codes[rows]):
            own = x[codes[rows] == code]
            means[code] += own.sum(axis=0, dtype=np.float64)
            counts[code] += len(own)
        total += np.square(x - mean).sum(axis=0)
    means /= counts[:, None]
    for rows, x in blocks():
        for code in np.unique(codes[rows]):
            squares[code] += np.square(x[codes[rows] == code] - means[code]).sum(axis=0)
    deviation = np.sqrt(total / count)
    deviation[deviation == 0] = 1.0  # constant in the whole corpus: less its mean it is 0 anyway
    deviations = np.sqrt(squares / counts[:, None])
    deviations = np.where(deviations > LEAST_DEVIATION * deviation, deviations, deviation)
    own = (names != "") & (counts > 1)
    return {
        "mean": mean,
        "deviation": deviation,
        "speakers": names[own],
        "means": means[own],
        "deviations": deviations[own],
    }


def _normalise_speakers(arrays: Mapping[str, np.ndarray], x: np.ndarray, speakers: Names) -> np.ndarray:
    code_of = {name: code for code, name in enumerate(arrays["speakers"].tolist())}
    codes = np.array([code_of.get(name, -1) for name in speakers], np.int64)
    means = np.concatenate([arrays["means"], arrays["mean"][None]])  # the last one is the corpus's
    deviations = np.concatenate([arrays["deviations"], arrays["deviation"][None]])
    return (x - means[codes]) / deviations[codes]


NORMALISATIONS: dict[str, Method] = {
    "none": Method(lambda blocks, speakers: {}, lambda arrays, x, speakers: x),
    "whiten": Method(_fit_whiten, _whiten),
    "speaker": Method(_fit_speaker, _normalise_speakers),
}
