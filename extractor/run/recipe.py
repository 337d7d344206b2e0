"""How the rows of a run are made, from its settings alone: by the engine, and of what is compared with them.

    settings -> RowRecipe -> decode options -> waveforms -> batch encoder -> rows, as they are stored

A recording that is looked up in a run, or that a model trained on it predicts, becomes a vector here
just as the run's own recordings did.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from extractor.errors import SettingsDiffer, StoreError
from extractor.types import SAMPLE_RATE, BatchResult, Decoded, Failure, Seconds, Utterance

if TYPE_CHECKING:
    import torch

    from extractor.audio.decode import DecodeOptions
    from extractor.encoders import Model
    from extractor.run.batch import BatchEncoder
    from extractor.run.memory import Memory

CPU_BATCH: Seconds = 30.0  # frames enough for full-speed products, few enough to stay in cache
LARGE_BATCH: Seconds = 240.0  # on a GPU, and for spectral encoders: there a commit costs more than a batch
RESAMPLING = ("cpu", "gpu")  # soxr while decoding; `cuda_kernels.resample` on the model's device
AVERAGE = "average"  # of all channels, as the settings say it
RECORDINGS_AT_ONCE = 32  # of those that are no rows: decoded and in memory together


@dataclass(frozen=True, slots=True)
class RowRecipe:
    """What of a run's settings decides the numbers in its rows, beside model, layers and poolings."""

    channel: int | None  # None: the average
    resample: str  # see `RESAMPLING`
    dtype: str  # that the model runs in
    window: Seconds
    storage_dtype: str

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> RowRecipe:
        """As a run's settings say it; the other way round is `settings`."""
        return cls(
            channel=channel_of(settings),
            resample=settings.get("resample", RESAMPLING[0]),
            dtype=settings["dtype"],
            window=settings["window_seconds"],
            storage_dtype=settings["storage_dtype"],
        )

    def settings(self) -> dict[str, object]:
        return {
            "dtype": self.dtype,
            "channel": AVERAGE if self.channel is None else self.channel,
            "window_seconds": self.window,
            "storage_dtype": self.storage_dtype,
            # Named only where it is not soxr, so that runs which were begun without it can go on.
            **({} if self.resample == RESAMPLING[0] else {"resample": self.resample}),
        }

    def decode_options(self, workers: int = 2, checksum: bool = True) -> DecodeOptions:
        from extractor.audio.decode import DecodeOptions

        return DecodeOptions(
            self.channel, workers=workers, checksum=checksum, resample=self.resample == RESAMPLING[0]
        )

    def decode(self, utterances: Sequence[Utterance]) -> list[Decoded | Failure]:
        """Recordings that are in no plan, aligned with ``utterances``."""
        from extractor.audio.decode import decode_batch
        from extractor.audio.probe import probe

        options = self.decode_options()
        return decode_batch(utterances, probe(utterances, options.workers), options)

    def encoder(
        self,
        model: Model,
        layers: Sequence[int],
        poolings: Sequence[str],
        a_pass: Seconds | None = None,
        memory: Memory | None = None,
    ) -> BatchEncoder:
        """``a_pass``: audio in a forward pass, which rows do not depend on; None: by the device."""
        from extractor.run.batch import BatchEncoder
        from extractor.run.memory import Memory

        seconds = batch_seconds(model.device, model.spectral) if a_pass is None else a_pass
        return BatchEncoder(
            model,
            tuple(layers),
            tuple(poolings),
            round(self.window * SAMPLE_RATE),
            round(seconds * SAMPLE_RATE),
            memory or Memory(),
        )


def channel_of(settings: Mapping[str, Any]) -> int | None:
    """The channel that a run's recordings were heard by; None: the average of all."""
    channel = settings.get("channel", AVERAGE)
    return None if channel == AVERAGE else int(channel)


def batch_seconds(device: torch.device, spectral: bool) -> Seconds:
    """Audio in a batch where nobody says how much."""
    return CPU_BATCH if device.type == "cpu" and not spectral else LARGE_BATCH


def settings_of_model(provenance: Mapping[str, str]) -> dict[str, object]:
    """What a run says of its model, and of what hser makes of it."""
    from extractor.encoders import LAYER_CONVENTION
    from extractor.plan.windows import OVERLAP

    return {
        "layer_convention": LAYER_CONVENTION,  # a model that has another says so itself
        **provenance,
        "sample_rate": SAMPLE_RATE,
        "window_overlap_seconds": OVERLAP,
    }


class Provenance(Protocol):
    """What is known of how embeddings were made: a store, or a trained model's memory of one."""

    @property
    def path(self) -> str | Path: ...
    @property
    def settings(self) -> Mapping[str, Any]: ...
    @property
    def environment(self) -> Mapping[str, Any]: ...


class RowEncoder:
    """Recordings that are no rows, as the rows of ``origin`` are. Safe to call from several threads.

    The model is loaded at the first call, or by `load`. ``spec`` names it where the run's own name for
    it does not reach it from here.
    """

    def __init__(
        self,
        origin: Provenance,
        layers: Sequence[int],
        poolings: Sequence[str],
        device: str = "auto",
        spec: str | None = None,
    ) -> None:
        self.origin, self.layers, self.poolings = origin, tuple(layers), tuple(poolings)
        self._device, self._spec = device, spec
        self._encode: BatchEncoder | None = None
        self._loading = threading.Lock()

    @property
    def recipe(self) -> RowRecipe:
        return RowRecipe.of(self.origin.settings)

    def __call__(self, utterances: Sequence[Utterance], decoded: Sequence[Decoded | Failure]) -> BatchResult:
        """Rows as a reader of the run would have them, rounded as it stores them.

        ``decoded``: by ``recipe``, aligned with ``utterances``. Raises what `load` raises.
        """
        from extractor.run.batch import DecodedBatch
        from extractor.store.parts import as_stored

        result = self.load()(DecodedBatch.of(0, range(len(utterances)), utterances, decoded))
        return as_stored(result, self.layers, self.recipe.storage_dtype)

    def load(self) -> BatchEncoder:
        """Raises ModelError, SettingsDiffer or StoreError where the run's model cannot be had."""
        from extractor.encoders import Model, resolve_device

        with self._loading:
            if self._encode is None:
                origin, spec = self.origin, self._spec or self.origin.environment.get("model_spec")
                if spec is None:
                    raise StoreError(
                        f"{origin.path}: does not say how its model is named; name it with --model"
                    )
                model = Model(spec, self.recipe.dtype, resolve_device(self._device))
                refuse_other_model(origin, spec, model.provenance)
                self._encode = self.recipe.encoder(model, self.layers, self.poolings)
            return self._encode

    def warm_up(self) -> None:
        """`load`, and a pass over a second of noise: libraries and kernels are set up in their first."""
        import numpy as np

        noise = 0.1 * np.random.default_rng(0).standard_normal(SAMPLE_RATE)
        self([Utterance("noise", "noise")], [Decoded(noise.astype(np.float32), "")])


def refuse_other_model(origin: Provenance, spec: str, provenance: Mapping[str, str]) -> None:
    """Raises SettingsDiffer unless the model, and what hser makes of it, are those of the run's rows."""
    from extractor.store.run_folder import same_setting

    differences = [
        f"{name}: the run has {origin.settings.get(name)!r}, this is {value!r}"
        for name, value in settings_of_model(provenance).items()
        if not same_setting(name, origin.settings.get(name), value)
    ]
    if differences:
        raise SettingsDiffer(
            f"{origin.path}: model {spec!r} is not the one that made this run. {'; '.join(differences)}."
            " Name the run's own with --model, or extract again"
        )
