"""Recordings to emotions, by a trained model, through the very same decoding and encoder as its rows.

    predictor = Predictor("models/svm")
    for each in predictor.predict(read_manifest(["clip.wav"]).utterances):
        print(each.label, each.confidence)

The model's folder knows all that is needed: the runs that it was trained on need not be there. A
model that is fused of several sources has each recording encoded once for each of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any, cast

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

    @property
    def recipe(self) -> RowRecipe:
        return self._encode.recipe

    def __call__(
        self, utterances: Sequence[Utterance], decoded: Sequence[Decoded | Failure]
    ) -> dict[str, np.ndarray | Failure]:
        """By id: float32 [L, D], of frames [T, L, D], with the origin's layers in its order."""
        result = self._encode(utterances, decoded)
        found: dict[str, np.ndarray | Failure] = {failure.id: failure for failure in result.failures}
        pooling = self.origin.pooling
        rows = result.frames if pooling == FRAMES else result.pooled[pooling]
        order = [self._encode.layers.index(layer) for layer in self.origin.layers]
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
        self._encoders = [
            SourceEncoder(origin, device, spec) for origin, spec in zip(origins, named, strict=True)
        ]

    @property
    def classes(self) -> tuple[str, ...]:
        return self.model.classes

    def predict(self, utterances: Sequence[Utterance]) -> Iterator[Prediction | Failure]:
        """One each, in order; a recording that cannot be had is a Failure that says why.

        Raises ModelError, SettingsDiffer or StoreError where an encoder cannot be had.
        """
        for start in range(0, len(utterances), RECORDINGS_AT_ONCE):
            yield from self._predict(utterances[start : start + RECORDINGS_AT_ONCE])

    def _predict(self, utterances: Sequence[Utterance]) -> list[Prediction | Failure]:
        audio: dict[DecodeOptions, list[Decoded | Failure]] = {}  # runs may have decoded differently
        embedded: list[Mapping[str, np.ndarray | Failure]] = []
        for encoder in self._encoders:
            options = encoder.recipe.decode_options()
            if options not in audio:
                audio[options] = encoder.recipe.decode(utterances)
            embedded.append(encoder(utterances, audio[options]))
        failed = {
            utterance.id: failure
            for of_source in reversed(embedded)
            for utterance in utterances
            if isinstance(failure := of_source[utterance.id], Failure)
        }
        heard = [utterance for utterance in utterances if utterance.id not in failed]
        made = dict(zip([utterance.id for utterance in heard], self._classify(heard, embedded), strict=True))
        return [failed.get(utterance.id) or made[utterance.id] for utterance in utterances]

    def _classify(
        self, utterances: Sequence[Utterance], embedded: Sequence[Mapping[str, np.ndarray | Failure]]
    ) -> list[Prediction]:
        if not utterances:
            return []
        blocks: list[Any] = []
        for encoder, of_source in zip(self._encoders, embedded, strict=True):
            rows = [of_source[utterance.id] for utterance in utterances]
            blocks.append(
                rows if encoder.origin.pooling == FRAMES else np.stack(cast("list[np.ndarray]", rows))
            )
        proba = self.model.predict_proba(blocks)
        return [
            Prediction(utterance.id, utterance.path, self.classes, row, self.model.speaker_dependent)
            for utterance, row in zip(utterances, proba, strict=True)
        ]
