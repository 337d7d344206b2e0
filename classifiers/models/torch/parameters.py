"""Parameters of the networks, their defaults, and what each may be. No heavy imports: help lists them.

They are keyword-only dataclass fields, so that ``get_params``, ``set_params`` and ``clone`` see them all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from extractor.augment.parameters import Flag, Kind, Number, OrNone, Whole
from extractor.errors import SettingsError, unknown

_POSITIVE = Number(0, above=True)

CHECKS: Mapping[str, Kind] = {
    "random_state": Whole(0),
    "learning_rate": _POSITIVE,
    "layer_learning_rate": OrNone(_POSITIVE),
    "weight_decay": Number(0),
    "batch_size": Whole(1),
    "max_epochs": OrNone(Whole(1)),
    "max_steps": OrNone(Whole(1)),
    "max_seconds": OrNone(_POSITIVE),
    "patience": OrNone(Whole(1)),
    "plateau_patience": OrNone(Whole(0)),
    "plateau_factor": Number(0, 1, above=True, below=True),
    "clip": OrNone(_POSITIVE),
    "validation": Number(0, 0.5, words="a share from 0 to 0.5"),
    "standardise": Flag("True or False"),
    "hidden": Whole(1),
    "num_hidden": Whole(0),
    "num_layers": Whole(1),
    "dense": Whole(1),
    "attention": Whole(1),
    "projection": Whole(1),
    "dropout": Number(0, 1, below=True),
}
CHOICES: Mapping[str, tuple[Any, ...]] = {
    "monitor": ("val_loss", "val_ua"),
    "class_weight": (None, "balanced"),
    "dtype": ("auto", "fp32", "bf16"),
    "pooling": ("last", "mean"),
    "head": ("linear", "mlp"),
}


@dataclass(kw_only=True, eq=False, repr=False)
class Training:
    """How to train: parameters that all networks have. `CHECKS` says what each may be."""

    random_state: int = 0
    learning_rate: float = 1e-3
    layer_learning_rate: float | None = None  # of the weights over layers; None: as the rest
    weight_decay: float = 0.0
    batch_size: int = 32  # recordings in one update
    max_epochs: int | None = 100
    max_steps: int | None = None
    max_seconds: float | None = None
    patience: int | None = 10  # epochs without a better one before training stops
    plateau_patience: int | None = 4  # and before the learning rate is lowered
    plateau_factor: float = 0.5
    clip: float | None = 1.0  # norm of the gradient
    monitor: str = "val_loss"  # or "val_ua": what the best epoch is told by
    validation: float = 0.1  # share of the training rows; 0: none, and no early stopping
    class_weight: str | None = None  # "balanced": classes count alike, whatever their size
    standardise: bool = True
    device: str = "auto"
    dtype: str = "fp32"  # or "bf16" (autocast: weights and their sums stay fp32), or "auto"


@dataclass(kw_only=True, eq=False, repr=False)
class Mlp(Training):
    hidden: int = 256
    num_hidden: int = 1  # hidden layers; 0: logistic regression
    dropout: float = 0.3


@dataclass(kw_only=True, eq=False, repr=False)
class LayerWeights(Training):
    head: str = "linear"  # or "mlp"
    hidden: int = 256  # of the mlp
    dropout: float = 0.3  # of the mlp
    # At the head's they would still be near to equal when the head has learned what there is.
    layer_learning_rate: float | None = 1e-2


@dataclass(kw_only=True, eq=False, repr=False)
class Superb(Training):
    """The benchmark's: Adam 1e-4, gradients of 8 batches of 4 added (one update of 32 recordings), 30,000
    updates, clip 1, inputs as they are, the best weights on the validation rows."""

    projection: int = 256
    learning_rate: float = 1e-4
    max_epochs: int | None = None
    max_steps: int | None = 30_000
    patience: int | None = None
    plateau_patience: int | None = None
    monitor: str = "val_ua"
    standardise: bool = False


@dataclass(kw_only=True, eq=False, repr=False)
class BiLstm(Training):
    hidden: int = 256  # of each direction
    num_layers: int = 2
    dense: int = 128
    dropout: float = 0.3
    pooling: str = "mean"  # of the states over time; or the "last" state of either direction


@dataclass(kw_only=True, eq=False, repr=False)
class AttentiveStats(Training):
    hidden: int = 256
    attention: int = 128
    dropout: float = 0.3


def check(model: str, params: Mapping[str, Any]) -> None:
    """Raises SettingsError for the first parameter that cannot work, by name; ``device`` is not checked."""
    for name, value in params.items():
        if name in CHECKS and not CHECKS[name].holds(value):
            raise SettingsError(f"{model}: {name}={value!r} must be {CHECKS[name].expected}")
        if name in CHOICES and value not in CHOICES[name]:
            raise SettingsError(f"{model}: {unknown(name, str(value), list(map(str, CHOICES[name])))}")
    if all(params[name] is None for name in ("max_epochs", "max_steps", "max_seconds", "patience")):
        raise SettingsError(
            f"{model}: training would never end; give max_epochs, max_steps, max_seconds or patience"
        )
