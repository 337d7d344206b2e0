"""Recordings to emotions, by a trained model, through the very same decoding and encoder as its rows.

    predictor = Predictor("models/svm")
    for each in predictor.predict(read_manifest(["clip.wav"]).utterances):
        print(each.label, each.confidence)

The model's folder knows all that is needed: the runs that it was trained on need not be there. A
model that is fused of several sources has each recording encoded once for each of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np

from classifiers.data.features import FRAMES
from classifiers.training.model_folder import Model, Origin, load_model
from extractor.errors import SettingsError
from extractor.run.recipe import RECORDINGS_AT_ONCE, RowEncoder, RowRecipe
from extractor.types import Decoded, Failure, Utterance

if TYPE_CHECKING:
    from extractor.audio.decode import DecodeOptions


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the model makes of one recording."""

    id: str
    path: str
    classes: tuple[str, ...]
    proba: np.ndarray  # float32 [C]
    speaker_dependent: bool | None = None  # how the model was tested; None where nobody knows

    @property
    def label(self) -> str:
        return self.classes[int(self.proba.argmax())]

    @property
    def confidence(self) -> float:
        """The label's probability."""
        return float(self.proba.max())

    def to_dict(self) -> dict[str, Any]:
        shares = {name: float(value) for name, value in zip(self.classes, self.proba, strict=True)}
        return {
            "id": self.id,
            "path": self.path,
            "label": self.label,
            "confidence": self.confidence,
            "probabilities": shares,
            "speaker_dependent": self.speaker_dependent,
        }


class SourceEncoder:
    """Embeds recordings as the rows of one source were."""

    def __init__(self, origin: Origin, device: str, spec: str | None = None) -> None:
        self.origin = origin
        self._encode = RowEncoder(origin, sorted(set(origin.layers)), [origin.pooling], device, spec)
        self.recipe: RowRecipe = self._encode.recipe

    def __call__(
        self, utterances: Sequence[Utterance], decoded: Sequence[Decoded | Failure]
    ) -> dict[str, np.ndarray | Failure]:
        """By id: float32 [L, D], of frames [T, L, D], with the origin's layers in its order."""
        result, pooling = self._encode(utterances, decoded), self.origin.pooling
        rows = result.frames if pooling == FRAMES else result.pooled[pooling]
        order = [self._encode.layers.index(layer) for layer in self.origin.layers]
        found: dict[str, np.ndarray | Failure] = {failure.id: failure for failure in result.failures}
        for row, values in zip(result.rows, rows, strict=True):
            found[row.utterance.id] = np.ascontiguousarray(values[..., order, :])
        return found


class Predictor:
    """A trained model and the encoders that it needs."""

    def __init__(self, folder: str | PathLike[str], device: str = "auto", specs: Sequence[str] = ()) -> None:
        """``specs`` name the sources' encoders, in the sources' order, where they are found now.

        Raises StoreError for a model that cannot be loaded, SettingsError for too many ``specs``.
        """
        self.model: Model = load_model(folder)
        origins = self.model.origins
        if specs and len(specs) != len(origins):
            paths = ", ".join(origin.path for origin in origins)
            raise SettingsError(f"--model: name one for each of the {len(origins)} sources: {paths}")
        named: Sequence[str | None] = specs or [None] * len(origins)
        self._encoders = [SourceEncoder(of, device, spec) for of, spec in zip(origins, named, strict=True)]

    @property
    def classes(self) -> tuple[str, ...]:
        return self.model.classes

    def predict(self, utterances: Sequence[Utterance]) -> Iterator[Prediction | Failure]:
        """One each, in order; a recording that cannot be had is a Failure that says why.

        Raises ModelError, SettingsDiffer or StoreError where an encoder cannot be had.
        """
        for start in range(0, len(utterances), RECORDINGS_AT_ONCE):
            some = utterances[start : start + RECORDINGS_AT_ONCE]
            audio: dict[DecodeOptions, list[Decoded | Failure]] = {}  # runs may have decoded differently
            embedded: dict[str, list[np.ndarray | Failure]] = {utterance.id: [] for utterance in some}
            for encoder in self._encoders:
                options = encoder.recipe.decode_options()
                if options not in audio:
                    audio[options] = encoder.recipe.decode(some)
                for name, values in encoder(some, audio[options]).items():
                    embedded[name].append(values)
            failed = {
                name: next((each for each in of if isinstance(each, Failure)), None)
                for name, of in embedded.items()
            }
            proba = iter(self._proba([of for name, of in embedded.items() if failed[name] is None]))
            for utterance in some:
                yield failed[utterance.id] or Prediction(
                    utterance.id, utterance.path, self.classes, next(proba), self.model.speaker_dependent
                )

    def _proba(self, rows: Sequence[Sequence[Any]]) -> np.ndarray:
        """float32 [N, C] of embeddings of N recordings, of every source each."""
        if not rows:
            return np.zeros((0, len(self.classes)), np.float32)
        blocks = [
            list(of) if encoder.origin.pooling == FRAMES else np.stack(of)
            for encoder, of in zip(self._encoders, zip(*rows, strict=True), strict=True)
        ]
        return self.model.predict_proba(blocks)
