"""The training loop, one for all networks.

Adam, gradient clipping, the learning rate lowered on a plateau, early stopping on the validation rows,
the best weights restored. Everything that is drawn comes from ``Options.seed``, and torch's own random
state is left as it was; on a CPU the same call gives the same bits again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from classifiers.models.torch.inputs import Inputs, batches, passes
from classifiers.models.torch.splitting import Split
from extractor.errors import SettingsError

# In one forward and backward pass: 1.3 GB in the BiLSTM's (80 kB a frame, measured on a CPU in fp32).
# A larger batch takes several passes, whose gradients are added; the update is the same.
MAX_FRAMES = 16_384

Value = tuple[float, float]  # of an epoch: the lower, the better
NOTHING: Value = (math.inf, math.inf)

Progress = Callable[[dict[str, float]], None]  # told of each epoch: its row of the history


@dataclass(frozen=True, slots=True)
class Options:
    """How to train. Checked where the estimator was made."""

    seed: int
    learning_rate: float
    layer_learning_rate: float | None  # of the weights over layers; None: as the rest
    weight_decay: float
    batch_size: int  # recordings in one update
    max_epochs: int | None
    max_steps: int | None
    max_seconds: float | None
    patience: int | None  # epochs without a better one before training stops
    plateau_patience: int | None  # and before the learning rate is lowered
    plateau_factor: float
    clip: float | None  # norm of the gradient
    monitor: str  # "val_loss" or "val_ua": what the best epoch is told by
    dtype: str  # "fp32" or "bf16" (autocast: weights and their sums stay fp32)


@dataclass(slots=True)
class Fitted:
    """What training came to. The network holds the weights of ``best_epoch``."""

    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0  # 1 is the first
    stopped: str = ""  # "patience", "max_epochs", "max_steps" or "max_seconds"
    num_steps: int = 0


def fit_network(
    network: nn.Module,
    inputs: Inputs,
    targets: np.ndarray,
    split: Split,
    class_weights: np.ndarray,
    options: Options,
    progress: Progress | None = None,
) -> Fitted:
    """Train in place.

    Args:
        network: on its device; called with values and lengths, gives logits ``[B, C]``.
        targets: class codes, int64 ``[N]``.
        class_weights: float32 ``[C]``, of each recording's loss.
        progress: called after each epoch with its row of the history and ``seconds`` since the start.

    Raises:
        SettingsError: the loss is no longer finite.
    """
    training = _Training(network, inputs, targets, class_weights, options)
    best, fitted, began = _Best(network), Fitted(), time.monotonic()
    while not training.stopped:
        row = training.epoch(split)
        if not all(math.isfinite(value) for value in row.values()):
            raise SettingsError(
                f"training diverged in epoch {training.epochs} (train_loss {row['train_loss']}):"
                f" lower learning_rate={options.learning_rate}"
            )
        fitted.history.append(row)
        if progress is not None:
            progress(row | {"seconds": time.monotonic() - began})
        # Without validation rows no epoch is known to be better than another: the last one counts.
        loss = row.get("val_loss", row["train_loss"])
        # Of epochs with the same recall, of which few rows give many, the one with the lower loss.
        value = (-row.get("val_ua", 0.0) if options.monitor == "val_ua" else 0.0, loss)
        if value < best.value or not len(split.validation):
            best = _Best(network, training.epochs, value)
        training.end_epoch(loss, epochs_since_best=training.epochs - best.epoch)
    network.load_state_dict(best.weights)
    fitted.best_epoch, fitted.stopped, fitted.num_steps = best.epoch, training.stopped, training.num_steps
    return fitted


def logits(network: nn.Module, inputs: Inputs, rows: np.ndarray, dtype: str, batch_size: int) -> np.ndarray:
    """float32 ``[len(rows), C]``, in evaluation mode."""
    network.eval()
    order = np.argsort(inputs.lengths[rows], kind="stable")
    cut = [rows[order[i : i + batch_size]] for i in range(0, len(rows), batch_size)]
    with torch.no_grad():
        out = [
            _forward(network, inputs, part, dtype).cpu()
            for batch in cut
            for part in passes(batch, inputs.lengths, MAX_FRAMES)
        ]
    return torch.cat(out).numpy()[np.argsort(order)]


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """torch's random state from ``seed``, and as it was before afterwards."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


class _Best:
    """The weights so far that did best on the validation rows."""

    def __init__(self, network: nn.Module, epoch: int = 0, value: Value = NOTHING) -> None:
        self.epoch, self.value = epoch, value
        self.weights = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


class _Training:
    """A network with its optimiser and schedule, and how far it is."""

    def __init__(
        self,
        network: nn.Module,
        inputs: Inputs,
        targets: np.ndarray,
        class_weights: np.ndarray,
        options: Options,
    ) -> None:
        self.network, self.inputs, self.options = network, inputs, options
        self.device = next(network.parameters()).device
        self.epochs, self.num_steps, self.began = 0, 0, time.monotonic()
        self.stopped = ""  # why training ends
        self.targets = torch.from_numpy(targets).to(self.device)
        self.weights = torch.from_numpy(class_weights).to(self.device)  # [C]
        # AdamW without weight decay, the default, is Adam.
        self.optimizer = torch.optim.AdamW(
            _parameter_groups(network, options),
            lr=options.learning_rate,
            weight_decay=options.weight_decay,
            fused=self.device.type in ("cpu", "cuda"),
        )
        self.schedule = None
        if options.plateau_patience is not None:
            self.schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(
                self.optimizer, factor=options.plateau_factor, patience=options.plateau_patience
            )

    def epoch(self, split: Split) -> dict[str, float]:
        """One pass over the training rows, or what of it the limits allow; its row of the history."""
        self.epochs += 1
        random = np.random.default_rng([self.options.seed, 2, self.epochs])
        row = {"epoch": self.epochs, "train_loss": 0.0}
        seen = 0
        for rows in batches(split.train, self.inputs.lengths, self.options.batch_size, random):
            row["train_loss"] += self.update(rows) * len(rows)
            seen += len(rows)
            self.num_steps += 1
            self.stopped = self.limit()
            if self.stopped:
                break
        row["train_loss"] /= seen
        if len(split.validation):
            row |= self.validate(split.validation)
        return row | {"lr": float(self.optimizer.param_groups[0]["lr"])}

    def end_epoch(self, loss: float, epochs_since_best: int) -> None:
        """Lower the learning rate or stop, where it is time."""
        if self.schedule is not None:
            self.schedule.step(loss)
        if not self.stopped and self.epochs == self.options.max_epochs:
            self.stopped = "max_epochs"
        if not self.stopped and self.options.patience is not None:
            self.stopped = "patience" if epochs_since_best >= self.options.patience else ""

    def limit(self) -> str:
        """Which limit is reached in the midst of an epoch, if any."""
        options = self.options
        if options.max_steps is not None and self.num_steps >= options.max_steps:
            return "max_steps"
        if options.max_seconds is not None and time.monotonic() - self.began >= options.max_seconds:
            return "max_seconds"
        return ""

    def update(self, rows: np.ndarray) -> float:
        """One update from these rows, in as many passes as memory asks; their mean loss."""
        self.network.train()
        self.optimizer.zero_grad()
        total = self.weights[self.targets[rows]].sum()
        loss = 0.0
        for part in passes(rows, self.inputs.lengths, MAX_FRAMES):
            part_loss = self.losses(part).sum() / total
            part_loss.backward()
            loss += part_loss.item()
        if self.options.clip is not None:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.options.clip)
        self.optimizer.step()
        return loss

    def losses(self, rows: np.ndarray) -> Tensor:
        """Cross-entropy of each row times its class's weight: ``[B]``."""
        out = _forward(self.network, self.inputs, rows, self.options.dtype)
        return F.cross_entropy(out, self.targets[rows], self.weights, reduction="none")

    def validate(self, rows: np.ndarray) -> dict[str, float]:
        """Loss, and the mean recall over the classes that occur in these rows."""
        targets = self.targets[rows].cpu()
        out = logits(self.network, self.inputs, rows, self.options.dtype, self.options.batch_size)
        loss = F.cross_entropy(torch.from_numpy(out), targets, self.weights.cpu())
        right = (out.argmax(axis=1) == targets.numpy()).astype(np.float64)
        ua = np.mean([right[targets.numpy() == code].mean() for code in np.unique(targets)])
        return {"val_loss": loss.item(), "val_ua": float(ua)}


def _forward(network: nn.Module, inputs: Inputs, rows: np.ndarray, dtype: str) -> Tensor:
    """float32 ``[B, C]`` on the network's device."""
    device = next(network.parameters()).device
    values = inputs.values(rows).to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bf16"):
        out: Tensor = network(values, inputs.lengths[rows].tolist())
    return out.float()


def _parameter_groups(network: nn.Module, options: Options) -> list[dict[str, object]]:
    """The weights over layers apart: they take larger steps where asked, and no weight decay."""
    of_layers = [p for name, p in network.named_parameters() if name.endswith("layer_sum.logits")]
    others = [p for name, p in network.named_parameters() if not name.endswith("layer_sum.logits")]
    groups: list[dict[str, object]] = [{"params": others}]
    if of_layers:
        rate = options.layer_learning_rate or options.learning_rate
        groups.append({"params": of_layers, "lr": rate, "weight_decay": 0.0})
    return groups
