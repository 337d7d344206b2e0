"""The wav2vec2 family's forward pass: wav2vec 2.0, HuBERT, WavLM (and XLS-R, which is the first).

Sources: Baevski et al. 2020 (wav2vec 2.0), Hsu et al. 2021 (HuBERT), Chen et al. 2021 (WavLM); the
switches are those of the `transformers` configs, and the numbers are held against those models.

Utterances are packed, never padded to one length:

    waveforms  o--------o---o------------o    one row, each starting on a multiple of 320 samples
    CNN        |||||||| ||| ||||||||||||      frames that straddle two utterances are dropped
    frames     [sum of lengths, D]            linear layers, norms, GELU: no padding at all
    pos. conv  [..][0][...][0][......]        64 zero frames between utterances, as at an edge
    attention  each utterance on its own

so a frame never sees another utterance, whatever it is packed with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from extractor.encoders.attention import RelativePositionBias, attend, padded_keys
from extractor.encoders.linear import Linear
from extractor.types import FrameSink

Activation = Callable[[Tensor], Tensor]

# Frames of CNN output made at a time: on a CPU so many that the widest layer's rows stay in a core's
# cache, elsewhere so many that they fill the device and still take no more than 0.3 GB.
_CONV_BLOCK_FRAMES = {"cpu": 64}
_CONV_BLOCK_FRAMES_ELSEWHERE = 4096
_NORMALISED_AT_ONCE = 1 << 20  # samples


@dataclass(frozen=True, slots=True)
class Norm:
    """LayerNorm over the last axis."""

    weight: Tensor
    bias: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


@dataclass(frozen=True, slots=True)
class Weights:
    """A checkpoint's tensors by the names of the `transformers` model, cast on the way out."""

    tensors: Mapping[str, Tensor]
    dtype: torch.dtype
    device: torch.device
    eps: float

    def raw(self, name: str) -> Tensor:
        return self.tensors[name]

    def get(self, name: str) -> Tensor:
        return self.tensors[name].to(self.device, self.dtype).contiguous()

    def norm(self, name: str) -> Norm:
        return Norm(self.get(f"{name}.weight"), self.get(f"{name}.bias"), self.eps)

    def linear(self, name: str) -> Linear:
        return Linear(self.raw(f"{name}.weight"), self.raw(f"{name}.bias"), self.dtype, self.device)


class ConvLayer:
    """One layer of the CNN on rows: ``[T, C_in] -> [T', C_out]``, no padding."""

    def __init__(self, weights: Weights, index: int, stride: int, norm: str, activation: Activation) -> None:
        name = f"feature_extractor.conv_layers.{index}"
        weight = weights.get(f"{name}.conv.weight")  # [C_out, C_in, K]
        bias = f"{name}.conv.bias"
        self.kernel, self.stride = weight.shape[-1], stride
        # Channels-last keeps a frame's channels together, which is what norms and products want.
        self.weight = weight[:, :, None].contiguous(memory_format=torch.channels_last)
        self.bias = weights.get(bias) if bias in weights.tensors else None
        self.activation = activation
        self.frame_norm = weights.norm(f"{name}.layer_norm") if norm == "layer" else None
        self.group_norm = weights.norm(f"{name}.layer_norm") if norm == "group" and index == 0 else None

    def convolve(self, x: Tensor) -> Tensor:
        x4 = x[None, None].permute(0, 3, 1, 2)  # [1, C, 1, T], channels last without a copy
        y = F.conv2d(x4, self.weight, self.bias, stride=(1, self.stride))
        return y.permute(0, 2, 3, 1).reshape(y.shape[-1], -1)

    def __call__(self, x: Tensor) -> Tensor:
        y = self.convolve(x)
        return self.activation(y if self.frame_norm is None else self.frame_norm(y))

    def utterance_norm(self, y: Tensor, spans: Sequence[tuple[int, int]]) -> None:
        """GroupNorm with a channel a group, over each span of rows on its own; in place."""
        assert self.group_norm is not None
        for start, stop in spans:
            rows = y[start:stop]
            var, mean = torch.var_mean(rows.float(), dim=0, correction=0)
            scale = self.group_norm.weight.float() * torch.rsqrt(var + self.group_norm.eps)
            shift = self.group_norm.bias.float() - mean * scale
            rows.copy_(torch.addcmul(shift, rows.float(), scale))


class FeatureEncoder:
    """The CNN: packed waveforms ``[P]`` to frames, ``total stride`` samples apart."""

    def __init__(self, weights: Weights, config: Any, activation: Activation) -> None:
        self.layers = [
            ConvLayer(weights, i, stride, config.feat_extract_norm, activation)
            for i, stride in enumerate(config.conv_stride)
        ]
        self.stride = math.prod(config.conv_stride)

    def __call__(self, packed: Tensor, slots: Sequence[int], num_samples: Sequence[int]) -> Tensor:
        """``packed [P]`` to ``[(P - 400) // 320 + 1, C]``.

        Utterance ``i`` has ``num_samples[i]`` samples from ``packed[slots[i]]`` on, a multiple of
        the stride; its frames start at row ``slots[i] // stride``.
        """
        x, layers = packed[:, None], self.layers
        if layers[0].group_norm is not None:
            first = layers[0]
            x = first.convolve(x)
            spans = [
                (slot // first.stride, slot // first.stride + (n - first.kernel) // first.stride + 1)
                for slot, n in zip(slots, num_samples, strict=True)
            ]
            first.utterance_norm(x, spans)
            x, layers = first.activation(x), layers[1:]
        return self._in_blocks(x, layers)

    def _in_blocks(self, x: Tensor, layers: Sequence[ConvLayer]) -> Tensor:
        stride = math.prod(layer.stride for layer in layers)
        field = receptive_field(layers)
        num_frames = (x.shape[0] - field) // stride + 1
        size = _CONV_BLOCK_FRAMES.get(x.device.type, _CONV_BLOCK_FRAMES_ELSEWHERE)
        blocks = []
        for start in range(0, num_frames, size):
            stop = min(start + size, num_frames)
            y = x[start * stride : (stop - 1) * stride + field]
            for layer in layers:
                y = layer(y)
            blocks.append(y)
        return torch.cat(blocks)


def receptive_field(layers: Sequence[ConvLayer]) -> int:
    """Input rows that one output row sees."""
    field = 1
    for layer in reversed(layers):
        field = (field - 1) * layer.stride + layer.kernel
    return field


class PositionalConv:
    """Convolutional position embedding: a grouped convolution over an utterance's own frames."""

    def __init__(self, weights: Weights, config: Any, activation: Activation) -> None:
        name = "encoder.pos_conv_embed"
        weight = _fold_weight_norm(weights.tensors, f"{name}.conv")  # [D, D / groups, K]
        weight = weight.to(weights.device, weights.dtype)
        self.weight = weight[:, :, None].contiguous(memory_format=torch.channels_last)
        self.bias = weights.get(f"{name}.conv.bias")
        self.groups = config.num_conv_pos_embedding_groups
        # 'Same' padding whose surplus output of an even kernel is dropped at the end: `left` zeros
        # before an utterance and `kernel - 1 - left <= left` behind it.
        self.left = weight.shape[-1] // 2
        self.affine = _fold_batch_norm(weights, f"{name}.batch_norm")
        self.activation = activation

    def __call__(self, x: Tensor, lengths: Sequence[int]) -> Tensor:
        """``[N, D] -> [N, D]``; each utterance sees zeros before its first and after its last frame."""
        left = self.left
        starts, row = [], left
        for T in lengths:
            starts.append(row)
            row += T + left  # neighbours share the zeros between them
        if self.affine is not None:
            x = torch.addcmul(self.affine[1], x, self.affine[0])
        buffer = x.new_zeros(row, x.shape[1])
        for start, frames in zip(starts, x.split(list(lengths)), strict=True):
            buffer[start : start + len(frames)] = frames
        x4 = buffer[None, None].permute(0, 3, 1, 2)  # [1, D, 1, row]
        y = F.conv2d(x4, self.weight, self.bias, groups=self.groups)
        y = y.permute(0, 2, 3, 1).reshape(y.shape[-1], -1)
        # Output row r is centred on buffer row r + left.
        y = torch.cat([y[start - left : start - left + T] for start, T in zip(starts, lengths, strict=True)])
        return self.activation(y)


class TransformerLayer:
    """One layer, with the norm before each half ('stable') or behind it."""

    def __init__(self, weights: Weights, config: Any, index: int, activation: Activation | None) -> None:
        name = f"encoder.layers.{index}"
        self.num_heads = config.num_attention_heads
        self.gated = f"{name}.attention.gru_rel_pos_linear.weight" in weights.tensors
        self.qkv = _fold_qkv(weights, f"{name}.attention", self.num_heads, self.gated)
        if self.gated:
            self.gate_const = weights.get(f"{name}.attention.gru_rel_pos_const").view(-1)  # [H]
        self.out = weights.linear(f"{name}.attention.out_proj")
        self.fc1 = weights.linear(f"{name}.feed_forward.intermediate_dense")
        self.fc2 = weights.linear(f"{name}.feed_forward.output_dense")
        self.norm1 = weights.norm(f"{name}.layer_norm")
        self.norm2 = weights.norm(f"{name}.final_layer_norm")
        self.activation = activation  # None is the exact GELU, which the first product takes along
        self.norm_first = config.do_stable_layer_norm
        adapter = f"{name}.adapter_layer"
        self.adapter = Adapter(weights, adapter) if f"{adapter}.norm.weight" in weights.tensors else None

        self.size = self.qkv.size + self.out.size + self.fc1.size + self.fc2.size

    def __call__(self, x: Tensor, lengths: Sequence[int], bias: Tensor | None) -> Tensor:
        """``[N, D] -> [N, D]``; ``bias [H, Tmax, Tmax]`` or None as `attend` takes it."""
        if self.norm_first:
            x = self.out.add(self.attention(self.norm1(x), lengths, bias), x)
            x = self.fc2.add(self.feed_forward(self.norm2(x)), x)
            return x if self.adapter is None else self.adapter(x)
        x = self.norm1(self.out.add(self.attention(x, lengths, bias), x))
        return self.norm2(self.fc2.add(self.feed_forward(x), x))

    def feed_forward(self, x: Tensor) -> Tensor:
        return self.fc1.gelu(x) if self.activation is None else self.activation(self.fc1(x))

    def attention(self, x: Tensor, lengths: Sequence[int], bias: Tensor | None) -> Tensor:
        D, H = x.shape[1], self.num_heads
        qkv = self.qkv(x)  # [N, 3 D], WavLM: [N, 3 D + 2 H]
        if not self.gated:
            return attend(qkv, lengths, H)
        a, b = torch.sigmoid(qkv[:, 3 * D :]).split(H, dim=1)
        gate = a * (b * self.gate_const - 1.0) + 2.0  # Chen et al. 2021, equation 5
        return attend(qkv[:, : 3 * D], lengths, H, bias, gate)


class Adapter:
    """Language adapter of MMS checkpoints: ``x + W2 relu(W1 norm(x))``."""

    def __init__(self, weights: Weights, name: str) -> None:
        # Built with LayerNorm's default eps in the reference, not with the config's.
        self.norm = Norm(weights.get(f"{name}.norm.weight"), weights.get(f"{name}.norm.bias"), 1e-5)
        self.down, self.up = weights.linear(f"{name}.linear_1"), weights.linear(f"{name}.linear_2")

    def __call__(self, x: Tensor) -> Tensor:
        return self.up.add(F.relu(self.down(self.norm(x))), x)


class Wav2Vec2Encoder:
    """A checkpoint of the family, ready to run in one dtype on one device.

    Layer ``0`` is the transformer's input, layer ``k`` the output of its layer ``k``; the last one
    has the final LayerNorm applied where the model has one: it is the model's ``last_hidden_state``.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        config: Any,
        dtype: torch.dtype,
        device: torch.device,
        do_normalise: bool = False,
    ) -> None:
        """``tensors``: by the names of the `transformers` base model; ``config``: its config."""
        weights = Weights(tensors, dtype, device, config.layer_norm_eps)
        conv_activation = _activation(config.feat_extract_activation)
        hidden_activation = None if config.hidden_act == "gelu" else _activation(config.hidden_act)
        self.dtype, self.device, self.do_normalise = dtype, device, do_normalise
        self.num_layers, self.dim = config.num_hidden_layers + 1, config.hidden_size
        self.cnn = FeatureEncoder(weights, config, conv_activation)
        self.min_samples, self.stride = receptive_field(self.cnn.layers), self.cnn.stride
        projection = "feature_projection"
        has_norm = f"{projection}.layer_norm.weight" in tensors  # HuBERT configs can leave it out
        self.feature_norm = weights.norm(f"{projection}.layer_norm") if has_norm else None
        self.projection = weights.linear(f"{projection}.projection")
        self.positions = PositionalConv(weights, config, conv_activation)
        self.norm = weights.norm("encoder.layer_norm")
        self.norm_first = config.do_stable_layer_norm
        self.layers = [
            TransformerLayer(weights, config, i, hidden_activation) for i in range(config.num_hidden_layers)
        ]
        table = "encoder.layers.0.attention.rel_attn_embed.weight"
        self.bias = (
            RelativePositionBias(weights.get(table), config.max_bucket_distance) if table in tensors else None
        )

    def num_frames(self, num_samples: int) -> int:
        """Frames of a waveform: the CNN's output length, no padding."""
        return (num_samples - self.min_samples) // self.stride + 1

    def normalise(self, waveform: Tensor) -> Tensor:
        """Zero mean and unit variance over all of its samples, where the checkpoint asks for it."""
        if not self.do_normalise:
            return waveform
        # In float64, but never with a float64 copy: a recording may be hours long.
        centred = waveform - waveform.mean(dtype=torch.float64)
        squares = [part.double().square().sum() for part in centred.split(_NORMALISED_AT_ONCE)]
        variance = torch.stack(squares).sum() / len(centred)
        return centred.mul_(torch.rsqrt(variance + 1e-7))  # eps: the reference's own

    def operations(self, num_samples: int) -> tuple[float, float]:
        """Floating-point operations for one utterance: useful ones, and those spent on padding."""
        T, D = self.num_frames(num_samples), self.dim
        slot_frames = -(-num_samples // self.stride)
        cnn = sum(2 * layer.weight.numel() * rows for layer, rows in self._conv_rows())
        layers = len(self.layers)
        dense = 2 * (self.projection.size + layers * self.layers[0].size)
        positions = 2 * self.positions.weight.numel()
        keys = padded_keys(T)
        useful = T * (cnn + dense + positions + 4 * layers * T * D)
        padded = (slot_frames - T) * cnn + self.positions.left * positions + 4 * layers * T * (keys - T) * D
        return float(useful), float(padded)

    def _conv_rows(self) -> list[tuple[ConvLayer, int]]:
        """Each CNN layer and its output rows for one frame."""
        rows, out = self.stride, []
        for layer in self.cnn.layers:
            rows //= layer.stride
            out.append((layer, rows))
        return out

    @torch.inference_mode()
    def forward(self, waveforms: Sequence[Tensor], sink: FrameSink, last_layer: int | None = None) -> None:
        """Encode utterances together; each layer goes to ``sink`` when it is produced.

        Args:
            waveforms: float32 ``[num_samples]`` each, at 16 kHz, normalised as the checkpoint asks,
                none shorter than ``min_samples``.
            sink: gets ``(k, [sum of frames, D])`` for ``k = 0, 1, ...``, utterances in their order.
            last_layer: stop behind this one; the layers after it are not computed.
        """
        last = self.num_layers - 1 if last_layer is None else last_layer
        lengths = [self.num_frames(len(w)) for w in waveforms]
        x = self.embed(waveforms, lengths)
        sink.add(0, x)
        bias = None if self.bias is None or last == 0 else self.bias.square(max(lengths))
        for k, layer in enumerate(self.layers[:last], start=1):
            x = layer(x, lengths, bias)
            if k == self.num_layers - 1 and self.norm_first:
                x = self.norm(x)
            sink.add(k, x)

    def embed(self, waveforms: Sequence[Tensor], lengths: Sequence[int]) -> Tensor:
        """Waveforms to the transformer's input: ``[sum of frames, D]``."""
        stride = self.stride
        slots, end = [], 0
        for w in waveforms:
            slots.append(end)
            end += -(-len(w) // stride) * stride
        packed = blank(end, self.dtype, self.device)
        for slot, w in zip(slots, waveforms, strict=True):
            packed[slot : slot + len(w)] = w.to(self.device, self.dtype)
        frames = self.cnn(packed, slots, [len(w) for w in waveforms])
        x = torch.cat([frames[s // stride : s // stride + T] for s, T in zip(slots, lengths, strict=True)])
        if self.feature_norm is not None:
            x = self.feature_norm(x)
        x = self.projection(x)
        x = x + self.positions(x, lengths)
        return x if self.norm_first else self.norm(x)


def blank(num_samples: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The row that waveforms are laid out in; what lies between them reaches no frame that is kept."""
    return torch.zeros(num_samples, dtype=dtype, device=device)


def _activation(name: str) -> Activation:
    if name == "gelu":
        return F.gelu
    from transformers.activations import ACT2FN

    return ACT2FN[name]


def _fold_weight_norm(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """Weight norm over the kernel axis, ``w = g v / |v|``, in its old and its new parametrisation."""
    if f"{name}.weight" in tensors:
        return tensors[f"{name}.weight"]
    old, new = f"{name}.weight_", f"{name}.parametrizations.weight.original"
    g, v = (
        (tensors[f"{old}g"], tensors[f"{old}v"])
        if f"{old}g" in tensors
        else (tensors[f"{new}0"], tensors[f"{new}1"])
    )
    return v * (g / v.norm(dim=(0, 1), keepdim=True))


def _fold_batch_norm(weights: Weights, name: str) -> tuple[Tensor, Tensor] | None:
    """BatchNorm in evaluation as ``scale, shift``, each ``[D]``, or None where there is none."""
    if f"{name}.running_var" not in weights.tensors:
        return None
    # Built with BatchNorm1d's default eps in the reference, not with the config's.
    scale = weights.raw(f"{name}.weight") * torch.rsqrt(weights.raw(f"{name}.running_var") + 1e-5)
    shift = weights.raw(f"{name}.bias") - weights.raw(f"{name}.running_mean") * scale
    return scale.to(weights.device, weights.dtype), shift.to(weights.device, weights.dtype)


def _fold_qkv(weights: Weights, name: str, num_heads: int, gated: bool) -> Linear:
    """Queries (scaled), keys and values as one product, WavLM's two gate logits a head behind them."""
    parts = [(weights.raw(f"{name}.{p}_proj.weight"), weights.raw(f"{name}.{p}_proj.bias")) for p in "qkv"]
    D = parts[0][0].shape[0]
    scale = (D // num_heads) ** -0.5
    parts[0] = (parts[0][0] * scale, parts[0][1] * scale)
    if gated:
        # The reference projects each head's slice of the input to 8 values and sums them in fours.
        weight = weights.raw(f"{name}.gru_rel_pos_linear.weight").view(2, 4, -1).sum(1)  # [2, d]
        bias = weights.raw(f"{name}.gru_rel_pos_linear.bias").view(2, 4).sum(1)  # [2]
        for w, b in zip(weight, bias, strict=True):
            parts.append((torch.block_diag(*[w[None]] * num_heads), b.expand(num_heads)))  # [H, D], [H]
    weight = torch.cat([w for w, _ in parts])
    return Linear(weight, torch.cat([b for _, b in parts]), weights.dtype, weights.device)
