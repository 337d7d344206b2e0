"""What each parameter of the models may be. One table; `check_parameters` names the one that cannot work."""

from __future__ import annotations

from collections.abc import Mapping
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


def check_parameters(model: str, params: Mapping[str, Any]) -> None:
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
