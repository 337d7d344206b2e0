"""The networks as scikit-learn estimators: one row of the table each.

Parameters are keyword-only dataclass fields, so that ``get_params``, ``set_params`` and ``clone`` see
them all. They are checked in `fit`, by name.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from classifiers.models.torch.checks import check_parameters
from classifiers.models.torch.fitting import Options, Progress, fit_network, logits, seeded
from classifiers.models.torch.inputs import Inputs
from classifiers.models.torch.networks import Standardised
from classifiers.models.torch.splitting import split_validation
from extractor.encoders import resolve_device, resolve_dtype
from extractor.errors import InputError, SettingsError


@dataclass(kw_only=True, eq=False, repr=False)
class TorchClassifier(ClassifierMixin, BaseEstimator):
    """What all have in common: parameters of training, and scikit-learn's methods.

    After `fit`: ``classes_``; ``history_``, a dict an epoch (epoch, train_loss, val_loss, val_ua, lr;
    the middle two only where there are validation rows); ``best_epoch_``; ``stopped_``, why it ended;
    ``validation_``, which rows were held out, in words; ``network_``; ``layer_weights_`` float32 ``[L]``
    where the model has them.
    """

    random_state: int = 0
    learning_rate: float = 1e-3
    layer_learning_rate: float | None = None
    weight_decay: float = 0.0
    batch_size: int = 32
    max_epochs: int | None = 100
    max_steps: int | None = None
    max_seconds: float | None = None
    patience: int | None = 10
    plateau_patience: int | None = 4
    plateau_factor: float = 0.5
    clip: float | None = 1.0
    monitor: str = "val_loss"
    validation: float = 0.1  # share of the training rows; 0: none, and no early stopping
    class_weight: str | None = None  # "balanced": classes count alike, whatever their size
    standardise: bool = True
    device: str = "auto"
    dtype: str = "fp32"

    name: ClassVar[str]
    input: ClassVar[str]  # "pooled" [N, D], "layers" [N, L, D] or "frames": N of [T, D]

    def fit(
        self,
        X: Any,  # noqa: N803 - scikit-learn's name
        y: Any,
        groups: Sequence[Any] | None = None,
        progress: Progress | None = None,
    ) -> Self:
        """Learn from rows ``X`` (see ``input``; computed in float32) and labels ``y``, one a row.

        Args:
            groups: one a row, the speaker as a rule: the validation rows are other groups' than those
                learned from. Without them rows are split by class.
            progress: called after each epoch with its row of the history and ``seconds``.

        Raises:
            SettingsError: a parameter, by name; training diverged.
            InputError: shapes, NaN, lengths that differ, fewer than two classes.
        """
        check_parameters(self)
        inputs = self._inputs(X)
        self.classes_, codes = np.unique(np.asarray(y), return_inverse=True)
        _check_rows(len(inputs.lengths), codes, groups, self.classes_)
        split = split_validation(codes, groups, self.validation, self.random_state)
        if not len(split.validation) and self.max_epochs is self.max_steps is self.max_seconds is None:
            raise SettingsError(
                f"{self.name}: there are no validation rows ({split.how}), so patience stops nothing;"
                " give max_epochs or max_steps"
            )
        self._start(inputs.shape)
        if self.dtype != "auto" and self._dtype() != self.dtype:
            raise SettingsError(
                f"{self.name}: dtype={self.dtype} cannot run on this {self.device_.type} (torch has no"
                f" {self.dtype} kernel of it here); take dtype=fp32 or dtype=auto"
            )
        if self.standardise:
            moments = inputs.moments(split.train)
            self.network_.standardise(moments.mean, moments.std)
        weights = _class_weights(codes[split.train], len(self.classes_), self.class_weight)
        with seeded(self.random_state, self.device_):
            fitted = fit_network(self.network_, inputs, codes, split, weights, self._options(), progress)
        self.history_, self.best_epoch_ = fitted.history, fitted.best_epoch
        self.stopped_, self.num_steps_, self.validation_ = fitted.stopped, fitted.num_steps, split.how
        self._read_layer_weights()
        return self

    def predict_proba(self, X: Any) -> np.ndarray:  # noqa: N803
        """float32 ``[N, C]``, columns in the order of ``classes_``."""
        check_is_fitted(self, "network_")
        parts = [self._logits(part) for part in self._parts(X)]
        scores = np.concatenate(parts).astype(np.float64)
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        return (scores / scores.sum(axis=1, keepdims=True)).astype(np.float32)

    def predict(self, X: Any) -> np.ndarray:  # noqa: N803
        """The most probable label of each row."""
        return self.classes_[self.predict_proba(X).argmax(axis=1)]

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The fitted model as plain values (for JSON) and tensors on the CPU (for safetensors)."""
        check_is_fitted(self, "network_")
        plain = {
            "model": self.name,
            "params": {
                # A search may have set numpy's numbers, which JSON does not know.
                key: value.item() if isinstance(value, np.generic) else value
                for key, value in self.get_params().items()
            },
            "classes": self.classes_.tolist(),
            "shape": list(self.shape_),
            "history": self.history_,
            "best_epoch": self.best_epoch_,
            "stopped": self.stopped_,
            "num_steps": self.num_steps_,
            "validation": self.validation_,
        }
        tensors = self.network_.state_dict().items()
        return plain, {name: value.detach().cpu().contiguous() for name, value in tensors}

    @classmethod
    def from_state(cls, plain: dict[str, Any], tensors: dict[str, Tensor], device: str | None = None) -> Self:
        """The model that `state` was taken of, on ``device`` (None: as it was trained).

        Raises InputError where the two do not fit.
        """
        try:
            made = cls(**plain["params"])
            made.device = made.device if device is None else device
            check_parameters(made)
            made.classes_ = np.array(plain["classes"])
            made.history_, made.best_epoch_ = plain["history"], plain["best_epoch"]
            made.stopped_, made.num_steps_ = plain["stopped"], plain["num_steps"]
            made.validation_ = plain["validation"]
            made._start(tuple(plain["shape"]))
            made.network_.load_state_dict(tensors)
            if made.dtype not in ("auto", made._dtype()):
                warnings.warn(
                    f"{cls.name}: was trained in {made.dtype}, which cannot run here; it predicts in"
                    f" {made._dtype()}",
                    stacklevel=2,
                )
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"these are not the weights of a saved {cls.name}: {error}") from error
        made._read_layer_weights()
        return made

    def _start(self, shape: tuple[int, ...]) -> None:
        """A fresh network for rows of this shape, on its device; the same for the same seed."""
        self.shape_ = shape
        self.n_features_in_ = shape[-1]
        self.device_ = resolve_device(self.device)
        with seeded(self.random_state, torch.device("cpu")):
            network = Standardised(shape, self._network(shape, len(self.classes_)))
        self.network_ = network.to(self.device_)

    def _read_layer_weights(self) -> None:
        weights = self.network_.layer_weights()
        if weights is not None:
            self.layer_weights_ = weights

    def _logits(self, X: Any) -> np.ndarray:  # noqa: N803
        inputs = self._inputs(X)
        if inputs.shape != self.shape_:
            expected, got = list(self.shape_), list(inputs.shape)
            raise InputError(f"{self.name} was trained on rows of shape {expected}, these have {got}")
        rows = np.arange(len(inputs.lengths))
        return logits(self.network_, inputs, rows, self._dtype(), self.batch_size)

    def _parts(self, X: Any) -> Iterable[Any]:  # noqa: N803
        return [X]

    # Each row of `models.MODELS` has the next two of its own: what it reads, and its network.

    def _inputs(self, X: Any) -> Inputs:  # noqa: N803
        raise NotImplementedError  # see above: no row of the table is without its own

    def _network(self, shape: tuple[int, ...], num_classes: int) -> nn.Module:
        raise NotImplementedError  # likewise

    def _runs_in_bf16(self) -> bool:
        """Whether this machine can run the network in bf16."""
        return True

    def _dtype(self) -> str:
        """That of the forward pass: ``auto``, and what was trained in bf16 elsewhere, run in fp32 where
        this machine cannot do it in bf16."""
        dtype = resolve_dtype(self.dtype, self.device_)
        return "fp32" if dtype == "bf16" and not self._runs_in_bf16() else dtype

    def _options(self) -> Options:
        shared = {f.name for f in fields(Options)} & set(self.get_params())
        values = {name: getattr(self, name) for name in shared}
        return Options(**values | {"seed": self.random_state, "dtype": self._dtype()})


def _check_rows(num_rows: int, codes: np.ndarray, groups: Sequence[Any] | None, classes: np.ndarray) -> None:
    if len(codes) != num_rows or (groups is not None and len(groups) != num_rows):
        of_groups = "" if groups is None else f", {len(groups)} groups"
        raise InputError(
            f"{num_rows} rows of features, but {len(codes)} labels{of_groups}: one of each a row"
        )
    if len(classes) < 2:
        raise InputError(
            f"all {num_rows} training rows have the label {classes[0]!s}: two classes are needed"
        )


def _class_weights(codes: np.ndarray, num_classes: int, kind: str | None) -> np.ndarray:
    """float32 ``[C]``: 1, or inversely as a class's rows to learn from ("balanced", mean 1 over rows)."""
    if kind is None:
        return np.ones(num_classes, np.float32)
    counts = np.bincount(codes, minlength=num_classes)
    return (len(codes) / (num_classes * counts)).astype(np.float32)
