"""The training loop, one for all networks.

Adam, gradient clipping, the learning rate lowered on a plateau, early stopping on the validation rows,
the best weights restored. Everything that is drawn comes from ``random_state``, and torch's own random
state is left as it was; on a CPU the same call gives the same bits again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from classifiers.models.torch.inputs import Inputs, Split, batches, passes
from classifiers.models.torch.parameters import Training as Parameters
from extractor.errors import SettingsError

# In one forward and backward pass: 1.3 GB in the BiLSTM's (80 kB a frame, measured on a CPU in fp32).
# A larger batch takes several passes, whose gradients are added; the update is the same.
MAX_FRAMES = 16_384

Progress = Callable[[dict[str, float]], None]  # told of each epoch: its row of the history


class Training:
    """The training of a network in place, and what it came to.

    ``history``: a dict an epoch; ``best_epoch``, 1 is the first; ``stopped``: "patience", "max_epochs",
    "max_steps" or "max_seconds"; ``num_steps``.
    """

    def __init__(
        self,
        network: nn.Module,
        inputs: Inputs,
        targets: np.ndarray,
        split: Split,
        parameters: Parameters,
        dtype: str,
    ) -> None:
        """``network``: on its device, gives logits ``[B, C]``; ``targets``: class codes, int64 ``[N]``."""
        self.network, self.inputs, self.split = network, inputs, split
        self.parameters, self.dtype = parameters, dtype
        device = next(network.parameters()).device
        self.history: list[dict[str, float]] = []
        self.best_epoch, self.num_steps, self.stopped = 0, 0, ""
        self.targets = torch.from_numpy(targets).to(device)
        counts = np.bincount(targets[split.train], minlength=int(targets.max()) + 1)
        weights = (
            len(split.train) / (len(counts) * counts) if parameters.class_weight else np.ones(len(counts))
        )
        self.weights = torch.from_numpy(weights.astype(np.float32)).to(device)  # [C], mean 1 over rows
        # The weights over layers take larger steps where asked, and no weight decay.
        of_layers = [p for name, p in network.named_parameters() if name.endswith("layer_sum.logits")]
        others = [p for name, p in network.named_parameters() if not name.endswith("layer_sum.logits")]
        groups: list[dict[str, object]] = [{"params": others}]
        if of_layers:
            rate = parameters.layer_learning_rate or parameters.learning_rate
            groups.append({"params": of_layers, "lr": rate, "weight_decay": 0.0})
        # AdamW without weight decay, the default, is Adam.
        self.optimizer = torch.optim.AdamW(
            groups,
            lr=parameters.learning_rate,
            weight_decay=parameters.weight_decay,
            fused=device.type in ("cpu", "cuda"),
        )

    def run(self, progress: Progress | None = None) -> None:
        """Train, and leave the network with the weights of ``best_epoch``.

        ``progress`` is called after each epoch with its row of the history and ``seconds`` since the
        start. Raises SettingsError when the loss is no longer finite.
        """
        parameters, schedule = self.parameters, None
        if parameters.plateau_patience is not None:
            schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(
                self.optimizer, factor=parameters.plateau_factor, patience=parameters.plateau_patience
            )
        best = (math.inf, math.inf)  # the lower, the better
        weights: dict[str, Tensor] = {}
        began = time.monotonic()
        while not self.stopped:
            row = self._epoch(began)
            epoch = len(self.history) + 1
            if not all(math.isfinite(value) for value in row.values()):
                raise SettingsError(
                    f"training diverged in epoch {epoch} (train_loss {row['train_loss']}):"
                    f" lower learning_rate={parameters.learning_rate}"
                )
            self.history.append(row)
            if progress is not None:
                progress(row | {"seconds": time.monotonic() - began})
            # Without validation rows no epoch is known to be better than another: the last one counts.
            loss = row.get("val_loss", row["train_loss"])
            # Of epochs with the same recall, of which few rows give many, the one with the lower loss.
            value = (-row.get("val_ua", 0.0) if parameters.monitor == "val_ua" else 0.0, loss)
            if value < best or not len(self.split.validation):
                best, self.best_epoch = value, epoch
                weights = {name: each.detach().clone() for name, each in self.network.state_dict().items()}
            if schedule is not None:
                schedule.step(loss)
            if not self.stopped and epoch == parameters.max_epochs:
                self.stopped = "max_epochs"
            patience = parameters.patience
            if not self.stopped and patience is not None and epoch - self.best_epoch >= patience:
                self.stopped = "patience"
        self.network.load_state_dict(weights)

    def _epoch(self, began: float) -> dict[str, float]:
        """One pass over the training rows, or what of it the limits allow; its row of the history."""
        parameters, epoch = self.parameters, len(self.history) + 1
        random = np.random.default_rng([parameters.random_state, 2, epoch])
        row = {"epoch": epoch, "train_loss": 0.0}
        seen = 0
        for rows in batches(self.split.train, self.inputs.lengths, parameters.batch_size, random):
            row["train_loss"] += self._update(rows) * len(rows)
            seen += len(rows)
            self.num_steps += 1
            if parameters.max_steps is not None and self.num_steps >= parameters.max_steps:
                self.stopped = "max_steps"
            elif parameters.max_seconds is not None and time.monotonic() - began >= parameters.max_seconds:
                self.stopped = "max_seconds"
            if self.stopped:
                break
        row["train_loss"] /= seen
        rows = self.split.validation
        if len(rows):
            truth = self.targets[rows].cpu()
            out = logits(self.network, self.inputs, self.dtype, parameters.batch_size, rows)
            right = (out.argmax(axis=1) == truth.numpy()).astype(np.float64)
            # The mean recall over the classes that occur in these rows.
            recalls = [right[truth.numpy() == code].mean() for code in np.unique(truth)]
            loss = F.cross_entropy(torch.from_numpy(out), truth, self.weights.cpu())
            row |= {"val_loss": loss.item(), "val_ua": float(np.mean(recalls))}
        return row | {"lr": float(self.optimizer.param_groups[0]["lr"])}

    def _update(self, rows: np.ndarray) -> float:
        """One update from these rows, in as many passes as memory asks; their mean loss."""
        self.network.train()
        self.optimizer.zero_grad()
        total = self.weights[self.targets[rows]].sum()
        loss = 0.0
        for part in passes(rows, self.inputs.lengths, MAX_FRAMES):
            out = _forward(self.network, self.inputs, part, self.dtype)
            losses = F.cross_entropy(out, self.targets[part], self.weights, reduction="none")
            part_loss = losses.sum() / total
            part_loss.backward()
            loss += part_loss.item()
        if self.parameters.clip is not None:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.parameters.clip)
        self.optimizer.step()
        return loss


def logits(
    network: nn.Module, inputs: Inputs, dtype: str, batch_size: int, rows: np.ndarray | None = None
) -> np.ndarray:
    """float32 ``[len(rows), C]`` of some rows or of all, in evaluation mode."""
    network.eval()
    rows = np.arange(len(inputs.lengths)) if rows is None else rows
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


def _forward(network: nn.Module, inputs: Inputs, rows: np.ndarray, dtype: str) -> Tensor:
    """float32 ``[B, C]`` on the network's device."""
    device = next(network.parameters()).device
    values = inputs.values(rows).to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bf16"):
        out: Tensor = network(values, inputs.lengths[rows].tolist())
    return out.float()
