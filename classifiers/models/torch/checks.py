"""What each parameter of the models may be. One table; `check_parameters` names the one that cannot work."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any, NamedTuple

from extractor.errors import SettingsError, unknown


class Check(NamedTuple):
    """A test, and what it asks in words."""

    holds: Callable[[Any], bool]
    asks: str

    def or_none(self) -> Check:
        return Check(lambda v: v is None or self.holds(v), f"{self.asks}, or None")


def _number(asks: str, holds: Callable[[Any], bool], kind: type = Real) -> Check:
    return Check(lambda v: isinstance(v, kind) and not isinstance(v, bool) and holds(v), asks)


_FROM_0 = _number("a whole number, 0 or more", lambda v: v >= 0, Integral)
_FROM_1 = _number("a whole number, 1 or more", lambda v: v >= 1, Integral)
_POSITIVE = _number("a number above 0", lambda v: 0 < v < math.inf)

CHECKS: Mapping[str, Check] = {
    "random_state": _FROM_0,
    "learning_rate": _POSITIVE,
    "layer_learning_rate": _POSITIVE.or_none(),
    "weight_decay": _number("a number, 0 or more", lambda v: 0 <= v < math.inf),
    "batch_size": _FROM_1,
    "max_epochs": _FROM_1.or_none(),
    "max_steps": _FROM_1.or_none(),
    "max_seconds": _POSITIVE.or_none(),
    "patience": _FROM_1.or_none(),
    "plateau_patience": _FROM_0.or_none(),
    "plateau_factor": _number("a number between 0 and 1", lambda v: 0 < v < 1),
    "clip": _POSITIVE.or_none(),
    "validation": _number("a share from 0 to 0.5", lambda v: 0 <= v <= 0.5),
    "standardise": Check(lambda v: isinstance(v, bool), "True or False"),
    "hidden": _FROM_1,
    "num_hidden": _FROM_0,
    "num_layers": _FROM_1,
    "dense": _FROM_1,
    "attention": _FROM_1,
    "projection": _FROM_1,
    "dropout": _number("a number from 0 up to but not 1", lambda v: 0 <= v < 1),
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
            raise SettingsError(f"{model}: {name}={value!r} must be {CHECKS[name].asks}")
        if name in CHOICES and value not in CHOICES[name]:
            raise SettingsError(f"{model}: {unknown(name, str(value), list(map(str, CHOICES[name])))}")
    if all(params[name] is None for name in ("max_epochs", "max_steps", "max_seconds", "patience")):
        raise SettingsError(
            f"{model}: training would never end; give max_epochs, max_steps, max_seconds or patience"
        )
