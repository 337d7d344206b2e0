"""torch models with scikit-learn's interface.

model            reads                       what it is
mlp              pooled [N, D]               dense layers with dropout
layer-weights    pooled [N, L, D]            learned weights over layers, linear or mlp
superb           frames [T, L, D], or means  SUPERB's emotion head, learned weights over layers
bilstm           frames [T, D]               two-layer bidirectional LSTM
attentive-stats  frames [T, D]               attentive statistics pooling
"""
