"""Recordings to query vectors, through the very same decoding and model as the run's rows.

Everything is taken from what the run says of itself: ``settings`` and ``environment["model_spec"]``.
A model that is not the run's is refused by name of what differs, before anything is encoded.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from extractor.errors import SettingsDiffer, StoreError
from extractor.types import SAMPLE_RATE, Decoded, Failure, Header, Utterance

if TYPE_CHECKING:
    from extractor.batch import BatchEncoder
    from extractor.store import Store

RECORDINGS_AT_ONCE = 32  # decoded and in memory together


@dataclass(frozen=True, slots=True)
class Query:
    """Something to look up."""

    name: str
    vector: np.ndarray  # float32 [D'], as the store has its rows
    path: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    checksum: str | None = None  # of its audio (``Decoded.checksum``)
    row: int | None = None  # where it is a row of the store


class QueryEncoder:
    """Embeds recordings as ``store`` has them, for one layer and pooling. Safe to call from threads.

    The model is loaded at the first recording. ``model`` names it where the run's own name for it
    does not reach it from here.
    """

    def __init__(
        self, store: Store, layer: int, pooling: str, device: str = "auto", model: str | None = None
    ) -> None:
        self.store, self.layer, self.pooling = store, layer, pooling
        self.device, self.model = device, model
        self._encode: BatchEncoder | None = None
        self._loading = threading.Lock()

    def embed(
        self, utterances: Sequence[Utterance], columns: Sequence[str] = ()
    ) -> Iterator[Query | Failure]:
        """One each, in order; a recording that cannot be embedded is a Failure that says why.

        ``columns`` names the utterances' labels. Raises ModelError, SettingsDiffer or StoreError
        where the run's model cannot be had.
        """
        encode = self._encoder()
        for start in range(0, len(utterances), RECORDINGS_AT_ONCE):
            yield from self._embed(encode, utterances[start : start + RECORDINGS_AT_ONCE], columns)

    def _embed(
        self, encode: BatchEncoder, utterances: Sequence[Utterance], columns: Sequence[str]
    ) -> list[Query | Failure]:
        from extractor.batch import Job

        decoded = decode(utterances, self.store.settings)
        result = encode(Job(0, range(len(utterances)), utterances, decoded))
        found: dict[str, Query | Failure] = {failure.id: failure for failure in result.failures}
        for row, vector in zip(result.rows, result.pooled[self.pooling][:, 0], strict=True):
            utterance = row.utterance
            if not vector.any():
                reason = "its embedding is zero: it has no direction to compare"
                found[utterance.id] = Failure(utterance.id, utterance.path, "encode", reason)
                continue
            labels = dict(zip(columns, utterance.labels, strict=False))
            found[utterance.id] = Query(utterance.path, vector, utterance.path, labels, row.checksum)
        return [found[utterance.id] for utterance in utterances]

    def _encoder(self) -> BatchEncoder:
        with self._loading:
            if self._encode is None:
                self._encode = self._load()
            return self._encode

    def _load(self) -> BatchEncoder:
        from extractor.batch import BatchEncoder
        from extractor.encoders import Model, resolve_device
        from extractor.engine import CPU_BATCH, LARGE_BATCH

        settings, device = self.store.settings, resolve_device(self.device)
        spec = self.model or self.store.environment.get("model_spec")
        if spec is None:
            raise StoreError(f"{self.store.path}: does not say how its model is named; name it with --model")
        model = Model(spec, settings["dtype"], device)
        refuse_other_model(self.store, spec, model.provenance)
        budget = CPU_BATCH if device.type == "cpu" and not model.spectral else LARGE_BATCH
        window = round(settings["window_seconds"] * SAMPLE_RATE)
        return BatchEncoder(model, (self.layer,), (self.pooling,), window, round(budget * SAMPLE_RATE))


class Extracted(Protocol):
    """What is known of how embeddings were made: a store, or a model's memory of one."""

    @property
    def path(self) -> str | Path: ...
    @property
    def settings(self) -> Mapping[str, Any]: ...


def refuse_other_model(origin: Extracted, spec: str, provenance: Mapping[str, str]) -> None:
    """Raises SettingsDiffer unless the model, and what hser makes of it, are those of the run's rows."""
    from extractor.encoders import LAYER_CONVENTION
    from extractor.store.same_settings import same_setting
    from extractor.windows import OVERLAP

    here: dict[str, Any] = {
        "layer_convention": LAYER_CONVENTION,  # a model that has another says so itself
        **provenance,
        "sample_rate": SAMPLE_RATE,
        "window_overlap_seconds": OVERLAP,
    }
    differences = [
        f"{name}: the run has {origin.settings.get(name)!r}, this is {value!r}"
        for name, value in here.items()
        if not same_setting(name, origin.settings.get(name), value)
    ]
    if differences:
        raise SettingsDiffer(
            f"{origin.path}: model {spec!r} is not the one that made this run. {'; '.join(differences)}."
            " Name the run's own with --model, or extract again"
        )


def decode(utterances: Sequence[Utterance], settings: Mapping[str, Any]) -> list[Decoded | Failure]:
    """Aligned with ``utterances``; as the engine decodes, with the run's channel."""
    from extractor.decode import DecodeOptions, decode_batch
    from extractor.probe import probe

    channel = settings["channel"]
    options = DecodeOptions(channel=None if channel == "average" else int(channel))
    headers = probe(utterances, options.workers)
    readable = [(u, h) for u, h in zip(utterances, headers, strict=True) if isinstance(h, Header)]
    decoded = iter(decode_batch([u for u, _ in readable], [h for _, h in readable], options))
    return [h if isinstance(h, Failure) else next(decoded) for h in headers]
