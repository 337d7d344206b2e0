"""The CNN of the wav2vec 2.0 family: waveforms to frames, without padding.

Two kinds. With a LayerNorm a frame, waveforms are laid end to end and convolved as one row; frames
that straddle two of them are dropped. With a GroupNorm behind the first layer (each channel over the
time of the whole utterance), a CPU takes utterances one by one, and the norm costs next to nothing: the
first layer is linear in windows of ten samples, so the mean and variance of its 512 channels follow from
the mean and the 10 x 10 covariance of those windows, and fold into its weights. On CUDA that would be
dozens of launches an utterance: there they are convolved as one row too, and one kernel norms each
utterance's own rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cuda_kernels.norm_gelu import group_norm_gelu
from extractor.encoders.linear import Conv, receptive_field, round_up
from extractor.encoders.weights import DEFAULT_EPS, Weights

Activation = Callable[[Tensor], Tensor]

# Frames of CNN output made at a time: on a CPU so many that the widest layer's rows stay in a core's
# cache, elsewhere so many that they fill the device and still take no more than 0.3 GB.
_BLOCK_FRAMES = {"cpu": 64}
_BLOCK_FRAMES_ELSEWHERE = 4096
_NORMED_SAMPLES = 1 << 20  # of audio whose first layer's output is held at once: 0.2 GB in bf16
_FRAME_MULTIPLE = 8  # of the frames in the last block: see linear.ROW_MULTIPLE


class ConvLayer:
    """One layer on rows: ``[T, C_in] -> [T', C_out]``."""

    def __init__(
        self, weights: Weights, index: int, stride: int, norm: str, activation: Activation, rows: int
    ) -> None:
        name = f"feature_extractor.conv_layers.{index}"
        bias = weights.raw(f"{name}.conv.bias") if f"{name}.conv.bias" in weights else None
        weight = weights.raw(f"{name}.conv.weight")
        self.conv = Conv(weight, bias, weights.dtype, weights.device, stride, typical_rows=rows)
        self.norm = weights.norm(f"{name}.layer_norm", DEFAULT_EPS) if norm == "layer" else None
        self.activation = activation
        self.kernels = weights.kernels if activation is F.gelu else None

    def __call__(self, x: Tensor) -> Tensor:
        if self.norm is not None:
            x = self.conv(x)
            return self.norm.gelu(x, self.kernels) if self.kernels else self.activation(self.norm(x))
        return self.conv.gelu(x) if self.activation is F.gelu else self.activation(self.conv(x))


class NormedFirstLayer:
    """The first layer with its GroupNorm, folded into weights of its own for each utterance."""

    def __init__(self, weights: Weights, layer: ConvLayer, eps: float, rows: int) -> None:
        name = "feature_extractor.conv_layers.0"
        self.layer, self.eps, self.rows = layer, eps, rows
        self.dtype, self.device = weights.dtype, weights.device
        # In float64 where there is one: the fold must not show in fp32.
        self.exact = torch.float32 if weights.device.type == "mps" else torch.float64
        weight = weights.raw(f"{name}.conv.weight")[:, 0]  # [C, K]
        self.weight = weight.to(self.device, self.exact)
        self.gain, self.shift = (
            weights.raw(f"{name}.layer_norm.{p}").to(self.device, self.exact) for p in ("weight", "bias")
        )

    def of(self, waveform: Tensor) -> Callable[[Tensor], Tensor]:
        """The layer for one utterance, given all its samples ``[n]``; its conv bias cancels."""
        conv, activation = self.layer.conv, self.layer.activation
        windows = waveform.to(self.exact).unfold(0, conv.kernel, conv.stride)  # [T, K], a view
        mean = windows.mean(dim=0)
        centred = windows - mean
        covariance = centred.t() @ centred / len(windows)  # [K, K]
        variance = ((self.weight @ covariance) * self.weight).sum(dim=1)  # [C], of the layer's output
        scale = self.gain * torch.rsqrt(variance + self.eps)
        weight = self.weight * scale[:, None]
        bias = self.shift - weight @ mean
        folded = Conv(weight[:, None], bias, self.dtype, self.device, conv.stride, typical_rows=self.rows)
        return folded.gelu if activation is F.gelu else lambda x: activation(folded(x))


class FeatureEncoder:
    """The whole CNN."""

    def __init__(self, weights: Weights, config: Any, activation: Activation) -> None:
        strides, kernels = list(config.conv_stride), list(config.conv_kernel)
        self.stride = math.prod(strides)
        self.field = receptive_field(kernels, strides)
        self.block = _BLOCK_FRAMES.get(weights.device.type, _BLOCK_FRAMES_ELSEWHERE)
        self.layers = []
        for i, stride in enumerate(strides):
            # Input rows of this layer for one block of output.
            rows = (self.block - 1) * math.prod(strides[i:]) + receptive_field(kernels[i:], strides[i:])
            self.layers.append(ConvLayer(weights, i, stride, config.feat_extract_norm, activation, rows))
        self.dtype, self.device = weights.dtype, weights.device
        group = config.feat_extract_norm == "group"
        rows = (self.block - 1) * self.stride + self.field
        self.first = NormedFirstLayer(weights, self.layers[0], DEFAULT_EPS, rows) if group else None
        self.at_once = weights.device.type == "cuda" and activation is F.gelu

    def num_frames(self, num_samples: int) -> int:
        return (num_samples - self.field) // self.stride + 1

    def operations(self) -> int:
        """Floating-point operations for one frame."""
        rows, total = self.stride, 0
        for layer in self.layers:
            rows //= layer.conv.stride
            total += 2 * layer.conv.size * rows
        return total

    def dropped_frames(self, num_samples: int) -> int:
        """Frames that are computed for one utterance and dropped.

        They straddle it and the next; utterances that go one by one are rounded up.
        """
        T = self.num_frames(num_samples)
        slot_frames = round_up(num_samples, self.stride) // self.stride
        one_by_one = self.first is not None and not self.at_once
        return round_up(T, _FRAME_MULTIPLE) - T if one_by_one else slot_frames - T

    def __call__(self, waveforms: Sequence[Tensor]) -> Tensor:
        """float32 ``[num_samples]`` each, on the device, to ``[sum of frames, C]``."""
        if self.first is None:
            row, slots = self._end_to_end(waveforms)
            return self._own(self._blocks(row[:, None], self.layers), slots, waveforms)
        if self.at_once:
            return torch.cat([self._normed(group, self.first) for group in _groups(waveforms)])
        frames = []
        for w in waveforms:
            row, _ = self._end_to_end([w])
            layers: list[Activation] = [self.first.of(w), *self.layers[1:]]
            frames.append(self._blocks(row[:, None], layers)[: self.num_frames(len(w))])
        return torch.cat(frames)

    def _own(self, frames: Tensor, slots: Sequence[int], waveforms: Sequence[Tensor]) -> Tensor:
        """Of the frames of a row, those that lie within one waveform."""
        starts = [slot // self.stride for slot in slots]
        own = [self.num_frames(len(w)) for w in waveforms]
        between = [b - a - n for a, b, n in zip(starts, [*starts[1:], len(frames)], own, strict=True)]
        pieces = frames.split([n for pair in zip(own, between, strict=True) for n in pair])
        return torch.cat(pieces[::2])

    def _normed(self, waveforms: Sequence[Tensor], first: NormedFirstLayer) -> Tensor:
        """Utterances end to end, the first layer normed over each one's own rows."""
        row, slots = self._end_to_end(waveforms)
        conv = first.layer.conv
        lengths = [(len(w) - conv.kernel) // conv.stride + 1 for w in waveforms]
        starts = [slot // conv.stride for slot in slots]
        norm = first.gain.float(), first.shift.float(), first.eps
        x = group_norm_gelu(conv(row[:, None]), starts, lengths, *norm)  # rows of no utterance become zero
        return self._own(self._blocks(x, self.layers[1:]), slots, waveforms)

    def _end_to_end(self, waveforms: Sequence[Tensor]) -> tuple[Tensor, list[int]]:
        """One row ``[P]`` and where each waveform starts in it, a multiple of the stride.

        It is long enough for a multiple of `_FRAME_MULTIPLE` frames.
        """
        slots, end = [], 0
        for w in waveforms:
            slots.append(end)
            end += round_up(len(w), self.stride)
        num_frames = round_up(self.num_frames(end), _FRAME_MULTIPLE)
        end = max(end, (num_frames - 1) * self.stride + self.field)
        between = [b - a - len(w) for a, b, w in zip(slots, [*slots[1:], end], waveforms, strict=True)]
        gaps = blank(sum(between), torch.float32, self.device).split(between)
        row = torch.cat([piece for pair in zip(waveforms, gaps, strict=True) for piece in pair])
        return row.to(self.dtype), slots

    def _blocks(self, rows: Tensor, layers: Sequence[Callable[[Tensor], Tensor]]) -> Tensor:
        """``[P, C'] -> [(P - field) // stride + 1, C]`` through the last layers, a block of frames at a time.

        ``stride`` and ``field`` are those of the layers together.
        """
        last = self.layers[len(self.layers) - len(layers) :]
        strides = [layer.conv.stride for layer in last]
        stride, field = math.prod(strides), receptive_field([layer.conv.kernel for layer in last], strides)
        num_frames = (len(rows) - field) // stride + 1
        blocks = []
        for start in range(0, num_frames, self.block):
            stop = min(start + self.block, num_frames)
            x = rows[start * stride : (stop - 1) * stride + field]
            for layer in layers:
                x = layer(x)
            blocks.append(x)
        return torch.cat(blocks)


def _groups(waveforms: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Runs of waveforms with up to `_NORMED_SAMPLES` together, or a longer one alone."""
    group: list[Tensor] = []
    filled = 0
    for waveform in waveforms:
        if group and filled + len(waveform) > _NORMED_SAMPLES:
            yield group
            group, filled = [], 0
        group.append(waveform)
        filled += len(waveform)
    yield group


def blank(num_samples: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """What lies between waveforms in the row that they are laid out in; it reaches no frame that is kept."""
    return torch.zeros(num_samples, dtype=dtype, device=device)
