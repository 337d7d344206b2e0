"""The networks. Each takes packed frames or pooled rows and gives logits ``[B, C]``.

No recording's values meet another's, nor padding's (there is no batch normalisation), so its logits do
not depend on its batch mates.
"""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

MIN_VARIANCE = 1e-8  # of a weighted standard deviation: one frame has none, and its root no gradient


class Standardised(nn.Module):
    """A network behind the standardisation of its inputs; the identity until it is told of any."""

    mean: Tensor  # [*shape] of a frame or a pooled row
    scale: Tensor

    def __init__(self, shape: tuple[int, ...], body: nn.Module) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("scale", torch.ones(shape))
        self.body = body

    def standardise(self, mean: np.ndarray, std: np.ndarray) -> None:
        self.mean.copy_(torch.from_numpy(mean).float())
        self.scale.copy_(torch.from_numpy(1 / std).float())

    def forward(self, x: Tensor, lengths: list[int]) -> Tensor:
        out: Tensor = self.body((x - self.mean) * self.scale, lengths)
        return out


class LayerSum(nn.Module):
    """Softmax weights over layers, learned; equal at first."""

    def __init__(self, num_layers: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(num_layers))

    def weights(self) -> Tensor:
        return self.logits.softmax(dim=0)  # [L]

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("nld,l->nd", x, self.weights())


def dense(sizes: list[int], dropout: float) -> nn.Sequential:
    """Linear layers of these sizes, ReLU and dropout between them."""
    layers: list[nn.Module] = []
    for i, (before, after) in enumerate(pairwise(sizes)):
        layers += [nn.ReLU(), nn.Dropout(dropout)] if i else []
        layers.append(nn.Linear(before, after))
    return nn.Sequential(*layers)


class PooledNetwork(nn.Module):
    """Pooled rows ``[B, D]``, or of all layers ``[B, L, D]`` and their weighted sum, then dense layers.

    ``shape`` is of a row; ``hidden`` the sizes of the layers between it and the classes.
    """

    def __init__(self, shape: tuple[int, ...], hidden: list[int], dropout: float, num_classes: int) -> None:
        super().__init__()
        self.layer_sum = LayerSum(shape[0]) if len(shape) == 2 else nn.Identity()
        self.head = dense([shape[-1], *hidden, num_classes], dropout)

    def forward(self, x: Tensor, lengths: list[int]) -> Tensor:
        return self.head(self.layer_sum(x))


class SuperbNetwork(nn.Module):
    """SUPERB's emotion head (Yang et al. 2021) on the mean over time of all layers, ``[B, L, D]``.

    The head is: weighted sum over layers, linear, mean over time, linear. All that stands before the
    mean is affine, and an affine map of a mean is the mean of the map: the mean may be taken first, and
    the head costs one frame a recording instead of hundreds.
    """

    def __init__(self, shape: tuple[int, ...], projection: int, num_classes: int) -> None:
        super().__init__()
        self.layer_sum = LayerSum(shape[0])
        self.projector = nn.Linear(shape[1], projection)
        self.output = nn.Linear(projection, num_classes)

    def forward(self, x: Tensor, lengths: list[int]) -> Tensor:
        return self.output(self.projector(self.layer_sum(x)))


class BiLstmLayer(nn.Module):
    """One bidirectional LSTM layer over recordings of different lengths.

    Padded at the end, and each recording turned round by itself for the second direction, so that
    either direction meets padding only after a recording's last frame: nothing of it comes back.
    Not torch's packed sequences: where lengths differ, their backward pass on a CPU fills a tensor of
    the whole batch for each frame, and a training step takes 20 times as long.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.forwards = nn.LSTM(dim, hidden)
        self.backwards = nn.LSTM(dim, hidden)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """``[T, B, D]``, int64 ``[B]`` to states ``[T, B, 2 H]`` and last states ``[B, 2 H]``.

        States beyond a recording's end are without meaning.
        """
        time = torch.arange(len(x), device=x.device)[:, None]
        row = torch.arange(len(lengths), device=x.device)
        turned = torch.where(time < lengths, lengths - 1 - time, time)  # [T, B]
        ahead = self.forwards(x)[0]
        back = self.backwards(x[turned, row])[0]
        last = torch.cat([ahead[lengths - 1, row], back[lengths - 1, row]], dim=1)
        return torch.cat([ahead, back[turned, row]], dim=2), last


@cache
def lstm_runs_in_bf16(device: str) -> bool:
    """Whether torch can run an LSTM under bf16 autocast on a device of this type.

    On CPUs without AVX-512 it has no such kernel and raises. It is asked, not the CPU: which
    instructions suffice is the library's own affair and changes with its versions.
    """
    try:
        with torch.no_grad(), torch.autocast(device, torch.bfloat16):
            nn.LSTM(1, 1, device=device)(torch.zeros(1, 1, 1, device=device))
    except RuntimeError:
        return False
    return True


class BiLstmNetwork(nn.Module):
    """Packed frames ``[sum of lengths, D]``: bidirectional LSTM, one vector, dense, classes.

    The vector is the last state of either direction, each after a pass over the whole recording, or
    the mean over time of all states.
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        num_layers: int,
        dense_size: int,
        dropout: float,
        pooling: str,
        num_classes: int,
    ) -> None:
        super().__init__()
        self.pooling = pooling
        widths = [dim, *[2 * hidden] * (num_layers - 1)]
        self.layers = nn.ModuleList(BiLstmLayer(width, hidden) for width in widths)
        self.dropout = nn.Dropout(dropout)
        self.head = dense([2 * hidden, dense_size, num_classes], dropout)

    def forward(self, x: Tensor, lengths: list[int]) -> Tensor:
        states = pad_sequence(x.split(lengths))  # [T, B, D]
        ends = torch.tensor(lengths, device=x.device)
        for number, layer in enumerate(self.layers):
            states, vector = layer(self.dropout(states) if number else states, ends)
        if self.pooling == "mean":
            rows = [states[:length, i].float().mean(dim=0) for i, length in enumerate(lengths)]
            return self.head(torch.stack(rows))
        return self.head(self.dropout(vector))  # [B, 2 H] to [B, C]


class AttentiveStatsNetwork(nn.Module):
    """Packed frames ``[sum of lengths, D]``: attentive statistics pooling (Okabe et al. 2018).

    ``e_t = v . tanh(W h_t + b)``, weights ``a = softmax(e)`` over the recording's frames (equations 4
    and 5; their constant k cancels in the softmax), mean ``m = sum a_t h_t`` and standard deviation
    ``sqrt(sum a_t h_t^2 - m^2)`` (6 to 8), the latter here as ``sqrt(sum a_t (h_t - m)^2)``, which is
    the same without cancellation.
    """

    def __init__(self, dim: int, hidden: int, attention: int, dropout: float, num_classes: int) -> None:
        super().__init__()
        self.frame = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Dropout(dropout))
        self.score = nn.Sequential(
            nn.Linear(hidden, attention), nn.Tanh(), nn.Linear(attention, 1, bias=False)
        )
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(2 * hidden, num_classes)

    def forward(self, x: Tensor, lengths: list[int]) -> Tensor:
        hidden = self.frame(x)  # [sum of lengths, H]
        scores = self.score(hidden).squeeze(1).float()
        statistics = []
        for frames, score in zip(hidden.float().split(lengths), scores.split(lengths), strict=True):
            weights = score.softmax(dim=0)[:, None]  # [T, 1]: no matrix product, which autocast would round
            mean = (weights * frames).sum(dim=0)
            variance = (weights * (frames - mean).square()).sum(dim=0)
            statistics.append(torch.cat([mean, variance.clamp(min=MIN_VARIANCE).sqrt()]))
        return self.output(self.dropout(torch.stack(statistics)))
