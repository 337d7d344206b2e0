"""The models: a row of `MODELS` each, with its parameters, their defaults and their source."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from classifiers.models.torch.estimator import TorchClassifier
from classifiers.models.torch.inputs import Frames, Inputs, Pooled, time_means
from classifiers.models.torch.networks import (
    AttentiveStatsNetwork,
    BiLstmNetwork,
    LayerWeightsNetwork,
    MlpNetwork,
    SuperbNetwork,
    lstm_runs_in_bf16,
)
from extractor.errors import InputError, unknown

RECORDINGS_AT_ONCE = 256  # whose frames prediction has in memory


@dataclass(kw_only=True, eq=False, repr=False)
class Mlp(TorchClassifier):
    """Dense layers with dropout on pooled rows float32 ``[N, D]``."""

    hidden: int = 256
    num_hidden: int = 1  # hidden layers; 0: logistic regression
    dropout: float = 0.3

    name: ClassVar[str] = "mlp"
    input: ClassVar[str] = "pooled"

    def _inputs(self, X: Any) -> Inputs:  # noqa: N803
        return Pooled(X, ndim=2)

    def _network(self, shape: tuple[int, ...], num_classes: int) -> nn.Module:
        return MlpNetwork(shape[0], self.hidden, self.num_hidden, self.dropout, num_classes)


@dataclass(kw_only=True, eq=False, repr=False)
class LayerWeights(TorchClassifier):
    """Learned softmax weights over layers on pooled rows float32 ``[N, L, D]``, then a head.

    Standardised layer by layer, so that the weights compare what layers tell and not how large their
    values are. The weights take larger steps than the head (``layer_learning_rate``): at the head's
    rate they would still be near to equal when the head has learned what there is.
    """

    head: str = "linear"  # or "mlp"
    hidden: int = 256  # of the mlp
    dropout: float = 0.3  # of the mlp
    layer_learning_rate: float | None = 1e-2

    name: ClassVar[str] = "layer-weights"
    input: ClassVar[str] = "layers"

    def _inputs(self, X: Any) -> Inputs:  # noqa: N803
        return Pooled(X, ndim=3)

    def _network(self, shape: tuple[int, ...], num_classes: int) -> nn.Module:
        hidden = [self.hidden] if self.head == "mlp" else []
        return LayerWeightsNetwork((shape[0], shape[1]), hidden, self.dropout, num_classes)


@dataclass(kw_only=True, eq=False, repr=False)
class Superb(TorchClassifier):
    """SUPERB's emotion head (Yang et al. 2021): softmax weights over layers, linear, mean, linear.

    ``X``: frames of all layers, a sequence of float32 ``[T, L, D]``, or their means over time
    ``[N, L, D]``, which give the same model exactly (see `SuperbNetwork`). Either way a recording costs
    ``L x D`` values of memory, and pooled stores will do.

    The defaults are the benchmark's: Adam 1e-4, gradients of 8 batches of 4 added (one update of 32
    recordings), 30,000 updates, clip 1, inputs as they are, the best weights on the validation rows.
    """

    projection: int = 256
    learning_rate: float = 1e-4
    max_epochs: int | None = None
    max_steps: int | None = 30_000
    patience: int | None = None
    plateau_patience: int | None = None
    monitor: str = "val_ua"
    standardise: bool = False

    name: ClassVar[str] = "superb"
    input: ClassVar[str] = "frames"

    def _inputs(self, X: Any) -> Inputs:  # noqa: N803
        return Pooled(time_means(X), ndim=3)

    def _network(self, shape: tuple[int, ...], num_classes: int) -> nn.Module:
        return SuperbNetwork((shape[0], shape[1]), self.projection, num_classes)


@dataclass(kw_only=True, eq=False, repr=False)
class FrameClassifier(TorchClassifier):
    """``X``: a sequence of float32 ``[T, D]``, a list, or anything that reads a recording when asked.

    Such a sequence is read once, and again each epoch if it is larger than `inputs.HOLD_BYTES`.
    """

    input: ClassVar[str] = "frames"

    def _inputs(self, X: Any) -> Inputs:  # noqa: N803
        return Frames(X)

    def _parts(self, X: Any) -> Iterator[Any]:  # noqa: N803
        for start in range(0, max(len(X), 1), RECORDINGS_AT_ONCE):
            yield [X[i] for i in range(start, min(start + RECORDINGS_AT_ONCE, len(X)))]


@dataclass(kw_only=True, eq=False, repr=False)
class BiLstm(FrameClassifier):
    """Two-layer bidirectional LSTM and a dense layer, on 120-dimensional MFCC as a rule."""

    hidden: int = 256  # of each direction
    num_layers: int = 2
    dense: int = 128
    dropout: float = 0.3
    pooling: str = "mean"  # of the states over time; or the "last" state of either direction

    name: ClassVar[str] = "bilstm"

    def _network(self, shape: tuple[int, ...], num_classes: int) -> nn.Module:
        return BiLstmNetwork(
            shape[0], self.hidden, self.num_layers, self.dense, self.dropout, self.pooling, num_classes
        )

    def _runs_in_bf16(self) -> bool:
        return lstm_runs_in_bf16(self.device_.type)


@dataclass(kw_only=True, eq=False, repr=False)
class AttentiveStats(FrameClassifier):
    """Attentive statistics pooling (Okabe et al. 2018): weighted mean and deviation of frames, linear."""

    hidden: int = 256
    attention: int = 128
    dropout: float = 0.3

    name: ClassVar[str] = "attentive-stats"

    def _network(self, shape: tuple[int, ...], num_classes: int) -> nn.Module:
        return AttentiveStatsNetwork(shape[0], self.hidden, self.attention, self.dropout, num_classes)


MODELS: Mapping[str, type[TorchClassifier]] = {
    model.name: model for model in (Mlp, BiLstm, AttentiveStats, Superb, LayerWeights)
}


def from_state(
    plain: dict[str, Any], tensors: dict[str, Tensor], device: str | None = None
) -> TorchClassifier:
    """The fitted model that ``state()`` was taken of. Raises InputError where it is none of ours.

    ``device``: where it is to run; None: where it was trained.
    """
    name = str(plain.get("model"))
    if name not in MODELS:
        raise InputError(unknown("model", name, MODELS))
    return MODELS[name].from_state(plain, tensors, device)
