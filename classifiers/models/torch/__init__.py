"""torch models with scikit-learn's interface.

    model            reads                       what it is
    mlp              pooled [N, D]               dense layers with dropout
    layer-weights    pooled [N, L, D]            learned weights over layers, linear or mlp
    superb           frames [T, L, D], or means  SUPERB's emotion head, learned weights over layers
    bilstm           frames [T, D]               two-layer bidirectional LSTM
    attentive-stats  frames [T, D]               attentive statistics pooling

``inputs`` reads and checks rows, ``splitting`` keeps validation rows apart, ``networks`` holds the
modules, ``fitting`` the one training loop, ``estimator`` scikit-learn's methods, ``models`` the table.
"""

from classifiers.models.torch.estimator import TorchClassifier
from classifiers.models.torch.models import (
    MODELS,
    AttentiveStats,
    BiLstm,
    LayerWeights,
    Mlp,
    Superb,
    from_state,
)

__all__ = [
    "MODELS",
    "AttentiveStats",
    "BiLstm",
    "LayerWeights",
    "Mlp",
    "Superb",
    "TorchClassifier",
    "from_state",
]
