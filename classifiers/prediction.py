"""Recordings to emotions, by a trained model, through the very same decoding and encoder as its rows.

    predictor = Predictor("models/svm")
    for each in predictor.predict(read_manifest(["clip.wav"]).utterances):
        print(each.label, each.confidence)

The model's folder knows all that is needed: the runs that it was trained on need not be there. A
model that is fused of several sources has each recording encoded once for each of them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from classifiers.features import FRAMES
from classifiers.lookup.query import decode, refuse_other_model
from classifiers.model_folder import Model, Origin, load_model
from extractor.errors import SettingsError, StoreError
from extractor.types import SAMPLE_RATE, Decoded, Failure, Utterance

if TYPE_CHECKING:
    from extractor.batch import BatchEncoder

RECORDINGS_AT_ONCE = 32  # decoded and in memory together


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
    """Embeds recordings as the rows of one source were. The encoder is loaded at the first of them."""

    def __init__(self, origin: Origin, where: Path, device: str, spec: str | None = None) -> None:
        self.origin, self.device, self.spec = origin, device, spec
        self._where = where  # the model's folder, for messages
        self._encode: BatchEncoder | None = None
        self._loading = threading.Lock()

    def __call__(
        self, utterances: Sequence[Utterance], decoded: Sequence[Decoded | Failure]
    ) -> dict[str, np.ndarray | Failure]:
        """By id: float32 [L, D], of frames [T, L, D], with the origin's layers in its order."""
        from extractor.batch import Job

        with self._loading:
            if self._encode is None:
                self._encode = self._load()
        result = self._encode(Job(0, range(len(utterances)), utterances, decoded))
        found: dict[str, np.ndarray | Failure] = {failure.id: failure for failure in result.failures}
        pooling = self.origin.pooling
        rows = result.frames if pooling == FRAMES else result.pooled[pooling]
        order = [self._encode.layers.index(layer) for layer in self.origin.layers]
        for row, values in zip(result.rows, rows, strict=True):
            found[row.utterance.id] = self._as_stored(values[..., order, :])
        return found

    def _as_stored(self, values: np.ndarray) -> np.ndarray:
        """The rows that were learned from went through the store, and may have been rounded there."""
        if self.origin.storage_dtype == "fp16":
            values = values.astype(np.float16)
        return np.ascontiguousarray(values, np.float32)

    def _load(self) -> BatchEncoder:
        from extractor.batch import BatchEncoder
        from extractor.encoders import Model as Encoder
        from extractor.encoders import resolve_device
        from extractor.engine import CPU_BATCH, LARGE_BATCH

        origin, device = self.origin, resolve_device(self.device)
        spec = self.spec or origin.environment.get("model_spec")
        if spec is None:
            raise StoreError(
                f"{self._where}: does not say how the encoder of {origin.path} is named; name it with --model"
            )
        encoder = Encoder(spec, origin.settings["dtype"], device)
        refuse_other_model(origin, spec, encoder.provenance)
        budget = CPU_BATCH if device.type == "cpu" and not encoder.spectral else LARGE_BATCH
        window = round(origin.settings["window_seconds"] * SAMPLE_RATE)
        layers = tuple(sorted(set(origin.layers)))
        return BatchEncoder(encoder, layers, (origin.pooling,), window, round(budget * SAMPLE_RATE))


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
            SourceEncoder(origin, self.model.path, device, spec)
            for origin, spec in zip(origins, named, strict=True)
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
        audio: dict[str, list[Decoded | Failure]] = {}  # by channel: runs may have taken different ones
        embedded: list[Mapping[str, np.ndarray | Failure]] = []
        for encoder in self._encoders:
            settings = encoder.origin.settings
            channel = str(settings["channel"])
            if channel not in audio:
                audio[channel] = decode(utterances, settings)
            embedded.append(encoder(utterances, audio[channel]))
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
