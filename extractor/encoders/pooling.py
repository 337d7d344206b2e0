"""Pooling over an utterance's frames, layer by layer, while the model runs.

Hidden states are reduced to running statistics the moment a layer is produced and never kept. A
recording that is encoded in windows has its statistics merged (Chan, Golub and LeVeque 1983), so
its pooled values are those of all its frames at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cuda_kernels.packing import on_device
from cuda_kernels.pool import pool_rows, row_starts
from extractor.errors import SettingsError, unknown
from extractor.types import Piece

Statistics = Mapping[str, Tensor]  # each [U, L, D]


def _std(s: Statistics) -> Tensor:
    return (s["m2"] / s["count"]).clamp(min=0).sqrt()


@dataclass(frozen=True, slots=True)
class Pooling:
    """One row of the table: what it needs, and how it is read off the statistics."""

    needs: tuple[str, ...]
    finish: Callable[[Statistics], Tensor] | None  # [U, L, D] or [U, L, width * D]; None: frames
    width: int = 1  # of the result, in model widths


# `std` is the population's (divided by n, as numpy's): one frame gives 0, not NaN.
POOLINGS: dict[str, Pooling] = {
    "mean": Pooling(("mean",), lambda s: s["mean"]),
    "std": Pooling(("mean", "m2"), _std),
    "min": Pooling(("min",), lambda s: s["min"]),
    "max": Pooling(("max",), lambda s: s["max"]),
    "first": Pooling(("first",), lambda s: s["first"]),
    "last": Pooling(("last",), lambda s: s["last"]),
    "meanstd": Pooling(("mean", "m2"), lambda s: torch.cat([s["mean"], _std(s)], dim=-1), width=2),
    "none": Pooling((), None),
}


def parse_poolings(spec: str | Sequence[str]) -> tuple[str, ...]:
    """``"mean,std"`` or ``["mean", "std"]`` to names in the order given; an unknown one raises."""
    names = [n.strip() for n in spec.split(",")] if isinstance(spec, str) else list(spec)
    for name in names:
        if name not in POOLINGS:
            raise SettingsError(unknown("pooling", name, POOLINGS))
    if not names or len(set(names)) != len(names):
        raise SettingsError(f"--pooling {','.join(names)!r}: name each pooling once")
    return tuple(names)


def _to_pinned(values: Tensor) -> Tensor:
    return torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)


@dataclass(frozen=True, slots=True)
class Embeddings:
    """What a batch was pooled to. On CUDA it is on its way from the device: `wait` before it is read."""

    pooled: dict[str, np.ndarray]  # float32 [U, L, width * D] by pooling, but for `none`
    finite: np.ndarray  # bool [U]: no frame of any wanted layer holds a NaN or an infinity
    frames: list[np.ndarray]  # for the pooling `none`, float32 [T, L, D] an utterance
    copied: torch.cuda.Event | None = None

    def wait(self) -> Embeddings:
        if self.copied is not None:
            self.copied.synchronize()
        return self


class Pooler:
    """Running statistics of a batch. Call `begin` before each forward pass it is the sink of."""

    def __init__(
        self,
        num_utterances: int,
        layers: Sequence[int],
        dim: int,
        poolings: Sequence[str],
        device: torch.device,
        windowed: bool = False,
    ) -> None:
        """``windowed``: utterances come in several pieces, which are merged in float64."""
        self.slot = {layer: i for i, layer in enumerate(layers)}
        self.poolings = tuple(poolings)
        self.device = device
        self.windowed = windowed
        dtype = torch.float64 if windowed and device.type != "mps" else torch.float32
        # The mean is always kept: a NaN or an infinity in any frame shows in it.
        needed = {"mean"}.union(*(POOLINGS[p].needs for p in poolings))
        shape = (num_utterances, len(layers), dim)
        self.state = {name: torch.empty(shape, dtype=dtype, device=device) for name in sorted(needed)}
        self.count = np.zeros((num_utterances, len(layers)), dtype=np.int64)
        self.frames: list[list[list[Tensor]]] = [[[] for _ in layers] for _ in range(num_utterances)]
        self.pieces: Sequence[Piece] = ()

    def begin(self, pieces: Sequence[Piece]) -> None:
        self.pieces = pieces
        starts = np.cumsum([0, *(p.num_frames for p in pieces)])
        self.lengths = [p.keep.stop - p.keep.start for p in pieces]
        partial = any(length != p.num_frames for length, p in zip(self.lengths, pieces, strict=True))
        kept = [
            torch.arange(s + p.keep.start, s + p.keep.stop) for s, p in zip(starts[:-1], pieces, strict=True)
        ]
        self.utterances = [p.utterance for p in pieces]
        self.indices = on_device(torch.tensor(self.utterances), self.device)
        self.kept = on_device(torch.cat(kept), self.device) if partial else None
        self.starts = row_starts(self.lengths, self.device)
        self.before = self._saved()

    def _saved(self) -> tuple[list[int], dict[str, Tensor], np.ndarray, list[list[int]]]:
        """What a forward pass changes and cannot simply write again (see `undo`)."""
        touched = sorted(set(self.utterances))
        merged: dict[str, Tensor] = {}
        if self.windowed:
            indices = on_device(torch.tensor(touched), self.device)
            merged = {name: s[indices] for name, s in self.state.items()}
        num_frames = [[len(rows) for rows in self.frames[u]] for u in touched]
        return touched, merged, self.count[touched], num_frames

    def undo(self) -> None:
        """Forget what was added since `begin`: that forward pass did not get through."""
        touched, state, count, num_frames = self.before
        for name, values in state.items():
            self.state[name][touched] = values
        self.count[touched] = count
        for u, lengths in zip(touched, num_frames, strict=True):
            for rows, length in zip(self.frames[u], lengths, strict=True):
                del rows[length:]

    def add(self, layer: int, hidden: Tensor) -> None:
        """``hidden [sum of frames, D]`` of the pieces that `begin` was told of."""
        if layer not in self.slot:
            return
        if self.kept is not None:
            hidden = hidden[self.kept]
        slot = self.slot[layer]
        values = pool_rows(hidden, self.lengths, tuple(self.state), starts=self.starts)  # each [pieces, D]
        if self.windowed:
            for i, (piece, length) in enumerate(zip(self.pieces, self.lengths, strict=True)):
                self._merge(piece.utterance, slot, length, {name: v[i] for name, v in values.items()})
        else:
            self.count[self.utterances, slot] = self.lengths
            for name, value in values.items():
                self.state[name][:, slot].index_copy_(0, self.indices, value)
        if "none" in self.poolings:
            for piece, rows in zip(self.pieces, hidden.float().split(self.lengths), strict=True):
                self.frames[piece.utterance][slot].append(rows.cpu())

    def _merge(self, utterance: int, slot: int, num_frames: int, values: Mapping[str, Tensor]) -> None:
        """Join one piece's statistics, each ``[D]``, to what its utterance has so far."""
        state = {name: s[utterance, slot] for name, s in self.state.items()}  # views
        before = int(self.count[utterance, slot])
        total = self.count[utterance, slot] = before + num_frames
        if before == 0:
            for name, s in state.items():
                s.copy_(values[name])
            return
        delta = values["mean"].to(state["mean"].dtype) - state["mean"]
        state["mean"].add_(delta, alpha=num_frames / float(total))
        if "m2" in state:
            state["m2"].add_(values["m2"] + delta.square() * (before * num_frames / float(total)))
        if "min" in state:
            torch.minimum(state["min"], values["min"].to(delta.dtype), out=state["min"])
        if "max" in state:
            torch.maximum(state["max"], values["max"].to(delta.dtype), out=state["max"])
        if "last" in state:
            state["last"].copy_(values["last"])

    def embeddings(self) -> Embeddings:
        """Begin to move everything to the host: on CUDA into pinned memory, with one wait for all."""
        count = on_device(torch.from_numpy(self.count[:, :, None]), self.device).to(self.state["mean"].dtype)
        statistics = {**self.state, "count": count}
        finishers = {name: POOLINGS[name].finish for name in self.poolings}
        results = {name: f(statistics).float() for name, f in finishers.items() if f is not None}
        on_cuda = self.device.type == "cuda"
        to_host = _to_pinned if on_cuda else Tensor.cpu
        pooled = {name: to_host(values).numpy() for name, values in results.items()}
        finite = to_host(self.state["mean"].isfinite().all(dim=(1, 2))).numpy()
        copied = torch.cuda.Event() if on_cuda else None
        if copied is not None:
            copied.record(torch.cuda.current_stream(self.device))
        return Embeddings(pooled, finite, self.frame_rows(), copied)

    def frame_rows(self) -> list[np.ndarray]:
        """For the pooling ``none``: float32 ``[T, L, D]`` an utterance."""
        if "none" not in self.poolings:
            return []
        return [torch.stack([torch.cat(rows) for rows in layers], dim=1).numpy() for layers in self.frames]
