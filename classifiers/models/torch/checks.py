"""What each parameter of the models may be. One table; `check_parameters` names the one that cannot work."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any, NamedTuple, Protocol

from extractor.errors import SettingsError, unknown


class HasParameters(Protocol):
    name: str

    def get_params(self) -> dict[str, Any]: ...


class Check(NamedTuple):
    """A test, and what it asks in words."""

    holds: Callable[[Any], bool]
    asks: str


def _whole(least: int) -> Check:
    return Check(
        lambda v: isinstance(v, Integral) and not isinstance(v, bool) and int(v) >= least,
        f"a whole number, {least} or more",
    )


def _real(holds: Callable[[float], bool], asks: str) -> Check:
    return Check(lambda v: isinstance(v, Real) and not isinstance(v, bool) and holds(float(v)), asks)


def _optional(check: Check) -> Check:
    return Check(lambda v: v is None or check.holds(v), f"{check.asks}, or None")


def _flag() -> Check:
    return Check(lambda v: isinstance(v, bool), "True or False")


_POSITIVE = _real(lambda v: 0 < v < float("inf"), "a number above 0")
_SHARE = _real(lambda v: 0 <= v < 1, "a number from 0 up to but not 1")

CHECKS: Mapping[str, Check] = {
    "random_state": _whole(0),
    "learning_rate": _POSITIVE,
    "layer_learning_rate": _optional(_POSITIVE),
    "weight_decay": _real(lambda v: 0 <= v < float("inf"), "a number, 0 or more"),
    "batch_size": _whole(1),
    "max_epochs": _optional(_whole(1)),
    "max_steps": _optional(_whole(1)),
    "max_seconds": _optional(_POSITIVE),
    "patience": _optional(_whole(1)),
    "plateau_patience": _optional(_whole(0)),
    "plateau_factor": _real(lambda v: 0 < v < 1, "a number between 0 and 1"),
    "clip": _optional(_POSITIVE),
    "validation": _real(lambda v: 0 <= v <= 0.5, "a share from 0 to 0.5"),
    "standardise": _flag(),
    "hidden": _whole(1),
    "num_hidden": _whole(0),
    "num_layers": _whole(1),
    "dense": _whole(1),
    "attention": _whole(1),
    "projection": _whole(1),
    "dropout": _SHARE,
}

CHOICES: Mapping[str, tuple[Any, ...]] = {
    "monitor": ("val_loss", "val_ua"),
    "class_weight": (None, "balanced"),
    "dtype": ("auto", "fp32", "bf16"),
    "pooling": ("last", "mean"),
    "head": ("linear", "mlp"),
}

ELSEWHERE = ("device",)  # checked where it is resolved


def check_parameters(estimator: HasParameters) -> None:
    """Raises SettingsError for the first parameter that cannot work, by name."""
    params = estimator.get_params()
    for name, value in params.items():
        if name in CHECKS and not CHECKS[name].holds(value):
            raise SettingsError(f"{estimator.name}: {name}={value!r} must be {CHECKS[name].asks}")
        if name in CHOICES and value not in CHOICES[name]:
            known = [str(choice) for choice in CHOICES[name]]
            raise SettingsError(f"{estimator.name}: {unknown(name, str(value), known)}")
    if all(params[name] is None for name in ("max_epochs", "max_steps", "max_seconds", "patience")):
        raise SettingsError(
            f"{estimator.name}: training would never end; give max_epochs, max_steps, max_seconds or patience"
        )
