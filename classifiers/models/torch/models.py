"""The networks as scikit-learn estimators: what they have in common, and a row of `MODELS` each.

Their parameters stand in `classifiers.models.torch.parameters`; they are checked in `fit`, by name.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from classifiers.models.torch import parameters
from classifiers.models.torch.fitting import Progress, Training, logits, seeded
from classifiers.models.torch.inputs import Inputs, frames_of, pooled, split_validation, time_means
from classifiers.models.torch.networks import (
    AttentiveStatsNetwork,
    BiLstmNetwork,
    LayerSum,
    PooledNetwork,
    Standardised,
    SuperbNetwork,
    lstm_runs_in_bf16,
)
from extractor.encoders import resolve_device, resolve_dtype
from extractor.errors import InputError, SettingsError, unknown

RECORDINGS_AT_ONCE = 256  # whose frames prediction has in memory
_FITTED = ("history", "best_epoch", "stopped", "num_steps", "validation")  # attributes that a file keeps


class TorchClassifier(ClassifierMixin, parameters.Training, BaseEstimator):
    """Parameters of training, and scikit-learn's methods.

    After `fit`: ``classes_``; ``history_``, a dict an epoch (epoch, train_loss, val_loss, val_ua, lr;
    the middle two only where there are validation rows); ``best_epoch_``; ``stopped_``, why it ended;
    ``validation_``, which rows were held out, in words; ``network_``; ``layer_weights_`` float32 ``[L]``
    where the model has them.
    """

    name: ClassVar[str]
    recurrent: ClassVar[bool] = False  # has an LSTM, which not every machine can run in bf16

    def fit(
        self,
        X: Any,  # noqa: N803 - scikit-learn's name
        y: Any,
        groups: Sequence[Any] | None = None,
        progress: Progress | None = None,
    ) -> Self:
        """Learn from rows ``X`` (as the class says; computed in float32) and labels ``y``, one a row.

        Args:
            groups: one a row, the speaker as a rule: the validation rows are other groups' than those
                learned from. Without them rows are split by class.
            progress: called after each epoch with its row of the history and ``seconds``.

        Raises:
            SettingsError: a parameter, by name; training diverged.
            InputError: shapes, NaN, lengths that differ, fewer than two classes.
        """
        parameters.check(self.name, self.get_params())
        inputs = self._inputs(X)
        self.classes_, codes = np.unique(np.asarray(y), return_inverse=True)
        num_rows = len(inputs.lengths)
        if len(codes) != num_rows or (groups is not None and len(groups) != num_rows):
            of_groups = "" if groups is None else f", {len(groups)} groups"
            raise InputError(
                f"{num_rows} rows of features, but {len(codes)} labels{of_groups}: one of each a row"
            )
        if len(self.classes_) < 2:
            raise InputError(
                f"all {num_rows} training rows have the label {self.classes_[0]!s}: two classes are needed"
            )
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
            self.network_.standardise(*inputs.moments(split.train))
        with seeded(self.random_state, self.device_):
            training = Training(self.network_, inputs, codes, split, self, self._dtype())
            training.run(progress)
        self.history_, self.best_epoch_ = training.history, training.best_epoch
        self.stopped_, self.num_steps_, self.validation_ = training.stopped, training.num_steps, split.how
        self._read_layer_weights()
        return self

    def predict_proba(self, X: Any) -> np.ndarray:  # noqa: N803
        """float32 ``[N, C]``, columns in the order of ``classes_``."""
        check_is_fitted(self, "network_")
        parts = []
        for part in self._parts(X):
            inputs = self._inputs(part)
            if inputs.shape != self.shape_:
                expected, got = list(self.shape_), list(inputs.shape)
                raise InputError(f"{self.name} was trained on rows of shape {expected}, these have {got}")
            parts.append(logits(self.network_, inputs, self._dtype(), self.batch_size))
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
            **{name: getattr(self, f"{name}_") for name in _FITTED},
        }
        tensors = self.network_.state_dict().items()
        return plain, {name: value.detach().cpu().contiguous() for name, value in tensors}

    def _start(self, shape: tuple[int, ...]) -> None:
        """A fresh network for rows of this shape, on its device; the same for the same seed."""
        self.shape_ = shape
        self.n_features_in_ = shape[-1]
        self.device_ = resolve_device(self.device)
        with seeded(self.random_state, torch.device("cpu")):
            network = Standardised(shape, self._network(shape, len(self.classes_)))
        self.network_ = network.to(self.device_)

    def _read_layer_weights(self) -> None:
        layer_sum = getattr(self.network_.body, "layer_sum", None)
        if isinstance(layer_sum, LayerSum):
            self.layer_weights_ = layer_sum.weights().detach().cpu().numpy()

    # Each row of `MODELS` has the next two of its own: what it reads, and its network.

    def _inputs(self, X: Any) -> Inputs:  # noqa: N803
        raise NotImplementedError  # never reached: each class of the table has its own

    def _network(self, shape: tuple[int, ...], num_classes: int) -> nn.Module:
        raise NotImplementedError  # never reached, for the same reason

    def _parts(self, X: Any) -> Iterable[Any]:  # noqa: N803
        """Rows that a prediction has in memory together."""
        return [X]

    def _dtype(self) -> str:
        """That of the forward pass: ``auto``, and what was trained in bf16 elsewhere, run in fp32 where
        this machine cannot do it in bf16."""
        dtype = resolve_dtype(self.dtype, self.device_)
        runs = dtype != "bf16" or not self.recurrent or lstm_runs_in_bf16(self.device_.type)
        return dtype if runs else "fp32"


class Mlp(parameters.Mlp, TorchClassifier):
    """Dense layers with dropout on pooled rows float32 ``[N, D]``."""

    name: ClassVar[str] = "mlp"

    def _inputs(self, X: Any) -> Inputs:  # noqa: N803
        return pooled(X, ndim=2)

    def _network(self, shape: tuple[int, ...], num_classes: int) -> nn.Module:
        return PooledNetwork(shape, [self.hidden] * self.num_hidden, self.dropout, num_classes)


class LayerWeights(parameters.LayerWeights, TorchClassifier):
    """Learned softmax weights over layers on pooled rows float32 ``[N, L, D]``, then a head.

    Standardised layer by layer, so that the weights compare what layers tell and not how large their
    values are.
    """

    name: ClassVar[str] = "layer-weights"

    def _inputs(self, X: Any) -> Inputs:  # noqa: N803
        return pooled(X, ndim=3)

    def _network(self, shape: tuple[int, ...], num_classes: int) -> nn.Module:
        hidden = [self.hidden] if self.head == "mlp" else []
        return PooledNetwork(shape, hidden, self.dropout, num_classes)


class Superb(parameters.Superb, TorchClassifier):
    """SUPERB's emotion head (Yang et al. 2021): softmax weights over layers, linear, mean, linear.

    ``X``: frames of all layers, a sequence of float32 ``[T, L, D]``, or their means over time
    ``[N, L, D]``, which give the same model exactly (see `SuperbNetwork`). Either way a recording costs
    ``L x D`` values of memory, and pooled stores will do.
    """

    name: ClassVar[str] = "superb"

    def _inputs(self, X: Any) -> Inputs:  # noqa: N803
        return pooled(time_means(X), ndim=3)

    def _network(self, shape: tuple[int, ...], num_classes: int) -> nn.Module:
        return SuperbNetwork(shape, self.projection, num_classes)


class FrameClassifier(TorchClassifier):
    """``X``: a sequence of float32 ``[T, D]``, a list, or anything that reads a recording when asked.

    Of such a sequence what fits in memory is read once, the rest again each epoch (`FrameRows`).
    """

    def _inputs(self, X: Any) -> Inputs:  # noqa: N803
        return frames_of(X)

    def _parts(self, X: Any) -> Iterator[Any]:  # noqa: N803
        for start in range(0, max(len(X), 1), RECORDINGS_AT_ONCE):
            yield [X[i] for i in range(start, min(start + RECORDINGS_AT_ONCE, len(X)))]


class BiLstm(parameters.BiLstm, FrameClassifier):
    """Two-layer bidirectional LSTM and a dense layer, on 120-dimensional MFCC as a rule."""

    name: ClassVar[str] = "bilstm"
    recurrent: ClassVar[bool] = True

    def _network(self, shape: tuple[int, ...], num_classes: int) -> nn.Module:
        return BiLstmNetwork(
            shape[0], self.hidden, self.num_layers, self.dense, self.dropout, self.pooling, num_classes
        )


class AttentiveStats(parameters.AttentiveStats, FrameClassifier):
    """Attentive statistics pooling (Okabe et al. 2018): weighted mean and deviation of frames, linear."""

    name: ClassVar[str] = "attentive-stats"

    def _network(self, shape: tuple[int, ...], num_classes: int) -> nn.Module:
        return AttentiveStatsNetwork(shape[0], self.hidden, self.attention, self.dropout, num_classes)


MODELS: Mapping[str, type[TorchClassifier]] = {
    model.name: model for model in (Mlp, BiLstm, AttentiveStats, Superb, LayerWeights)
}


def from_state(plain: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> TorchClassifier:
    """The fitted model that `TorchClassifier.state` was taken of, on the device that its parameters name.

    Raises InputError where it is none of ours, or the two do not fit.
    """
    name = str(plain.get("model"))
    if name not in MODELS:
        raise InputError(unknown("model", name, MODELS))
    try:
        made = MODELS[name](**plain["params"])
        parameters.check(name, made.get_params())
        made.classes_ = np.array(plain["classes"])
        for attribute in _FITTED:
            setattr(made, f"{attribute}_", plain[attribute])
        made._start(tuple(plain["shape"]))
        made.network_.load_state_dict(tensors)
        if made.dtype not in ("auto", made._dtype()):
            warnings.warn(
                f"{name}: was trained in {made.dtype}, which cannot run here; it predicts in {made._dtype()}",
                stacklevel=2,
            )
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"these are not the weights of a saved {name}: {error}") from error
    made._read_layer_weights()
    return made
