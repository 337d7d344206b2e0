"""The wav2vec2 family's forward pass: wav2vec 2.0, HuBERT, WavLM (and XLS-R, which is the first).

Sources: Baevski et al. 2020 (wav2vec 2.0), Hsu et al. 2021 (HuBERT), Chen et al. 2021 (WavLM); the
switches are those of the `transformers` configs, and the numbers are held against those models.

Utterances are packed, never padded to one length:

    waveforms  o--------o---o------------o    one row, each starting on a multiple of 320 samples
    CNN        |||||||| ||| ||||||||||||      frames that straddle two utterances are dropped
    frames     [sum of lengths, D]            linear layers, norms, GELU: no padding at all
    pos. conv  [..][0][...][0][......]        64 zero frames between utterances, as at an edge
    attention  each utterance on its own

so a frame never sees another utterance, whatever it is packed with. That is the way of CPUs; on GPUs the
layers are those of `fused`, and the positional convolution needs no zeros between utterances.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cuda_kernels.backend import why_not_triton
from cuda_kernels.packing import TILE_ROWS, Packing
from cuda_kernels.positional_conv import lay_out, positional_conv
from cuda_kernels.waveform import WaveformEdit, edit_waveforms
from extractor.encoders.cnn import Activation, FeatureEncoder
from extractor.encoders.fused import FusedLayers, pack_frames
from extractor.encoders.linear import ROW_MULTIPLE, Conv, blank_rows, round_up
from extractor.encoders.transformer import RelativePositionBias, TransformerLayer
from extractor.encoders.weights import Weights, fold_batch_norm, fold_weight_norm
from extractor.types import FrameSink, LatentMask

_NORMALISED_AT_ONCE = 1 << 20  # samples


class PositionalConv:
    """Convolutional position embedding: a grouped convolution over an utterance's own frames."""

    def __init__(self, weights: Weights, config: Any, activation: Activation) -> None:
        name = "encoder.pos_conv_embed"
        weight = fold_weight_norm(weights, f"{name}.conv")  # [D, D / groups, K]
        groups = config.num_conv_pos_embedding_groups
        bias = weights.raw(f"{name}.conv.bias")
        self.conv = Conv(weight, bias, weights.dtype, weights.device, groups=groups)
        # 'Same' padding whose surplus output of an even kernel is dropped at the end: `left` zeros
        # before an utterance and `kernel - 1 - left <= left` behind it.
        self.left = weight.shape[-1] // 2
        self.affine = fold_batch_norm(weights, f"{name}.batch_norm")
        self.activation = activation
        self.kernels = weights.kernels if activation is F.gelu else None
        if self.kernels:
            self.weight = lay_out(weight.to(weights.device, weights.dtype), groups)
            self.bias = bias.to(weights.device, weights.dtype)

    def add_to(self, x: Tensor, packing: Packing) -> Tensor:
        """``x`` and the embedding of its utterances: ``[N, D] -> [N, D]``."""
        if not self.kernels:
            return x + self(x, packing.lengths)
        y = x if self.affine is None else torch.addcmul(self.affine[1], x, self.affine[0])
        return positional_conv(y, packing, self.weight, self.bias, residual=x, backend=self.kernels)

    def __call__(self, x: Tensor, lengths: Sequence[int]) -> Tensor:
        """``[N, D] -> [N, D]``; each utterance sees zeros before its first and after its last frame."""
        left = self.left
        starts, row = [], left
        for T in lengths:
            starts.append(row)
            row += T + left  # neighbours share the zeros between them
        if self.affine is not None:
            x = torch.addcmul(self.affine[1], x, self.affine[0])
        buffer = x.new_zeros(round_up(row, ROW_MULTIPLE), x.shape[1])
        for start, frames in zip(starts, x.split(list(lengths)), strict=True):
            buffer[start : start + len(frames)] = frames
        y = self.conv.gelu(buffer) if self.activation is F.gelu else self.activation(self.conv(buffer))
        # Output row r is centred on buffer row r + left.
        return torch.cat(
            [y[start - left : start - left + T] for start, T in zip(starts, lengths, strict=True)]
        )


class Wav2Vec2Encoder:
    """A checkpoint of the family, ready to run in one dtype on one device.

    Layer ``0`` is the transformer's input, layer ``k`` the output of its layer ``k``; the last one
    has the final LayerNorm applied where the model has one: it is the model's ``last_hidden_state``.
    """

    max_samples: int | None = None  # positions are relative: any length will do

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        config: Any,
        dtype: torch.dtype,
        device: torch.device,
        do_normalise: bool = False,
        mask_embedding: Tensor | None = None,
        kernels: str | None = None,
        int8: bool = False,
    ) -> None:
        """``tensors``: by the names of the `transformers` base model; ``config``: its config.

        ``mask_embedding [D]``: what masked frames become; without it nothing can be masked.
        ``kernels``: the backend to run `FusedLayers` with; None: Triton on GPUs, elsewhere other layers.
        ``int8``: linear layers in int8, the rest in ``dtype``, which must be bfloat16.
        """
        if kernels is None and device.type == "cuda" and why_not_triton("cuda") is None:
            kernels = "triton"
        weights = Weights(tensors, dtype, device, config.layer_norm_eps, kernels, int8)
        conv_activation = _activation(config.feat_extract_activation)
        hidden_activation = None if config.hidden_act == "gelu" else _activation(config.hidden_act)
        self.dtype, self.device, self.do_normalise = dtype, device, do_normalise
        self.mask_embedding = None if mask_embedding is None else mask_embedding.to(device, dtype)
        self.can_mask = mask_embedding is not None
        self.num_layers, self.dim = config.num_hidden_layers + 1, config.hidden_size
        self.cnn = FeatureEncoder(weights, config, conv_activation)
        self.min_samples, self.stride = self.cnn.field, self.cnn.stride
        projection = "feature_projection"
        has_norm = f"{projection}.layer_norm.weight" in tensors  # HuBERT configs can leave it out
        self.feature_norm = weights.norm(f"{projection}.layer_norm") if has_norm else None
        self.projection = weights.linear(f"{projection}.projection")
        self.positions = PositionalConv(weights, config, conv_activation)
        self.norm = weights.norm("encoder.layer_norm")
        self.pre_norm = config.do_stable_layer_norm
        self.layers = [
            TransformerLayer(weights, config, i, hidden_activation) for i in range(config.num_hidden_layers)
        ]
        table = "encoder.layers.0.attention.rel_attn_embed.weight"
        self.bias = (
            RelativePositionBias(weights.get(table), config.max_bucket_distance) if table in tensors else None
        )
        self.fused = FusedLayers(self.layers, self.norm, self.bias, kernels) if kernels else None

    def num_frames(self, num_samples: int) -> int:
        """Frames of a waveform: the CNN's output length, no padding."""
        return self.cnn.num_frames(num_samples)

    def normalise(self, waveforms: Sequence[Tensor]) -> list[Tensor]:
        """Zero mean and unit variance over all samples of each, where the checkpoint asks for it."""
        if not self.do_normalise or not waveforms:
            return list(waveforms)
        if self.device.type == "cuda":  # two launches for all of them
            lengths = [len(w) for w in waveforms]
            edits = [WaveformEdit()] * len(lengths)
            return [*edit_waveforms(torch.cat([*waveforms]), lengths, edits, normalise=True).split(lengths)]
        return [self._normalised(waveform) for waveform in waveforms]

    def _normalised(self, waveform: Tensor) -> Tensor:
        # In float64, but never with a float64 copy: a recording may be hours long.
        exact = torch.float32 if waveform.device.type == "mps" else torch.float64
        n = len(waveform)
        block = torch.empty(min(n, _NORMALISED_AT_ONCE), dtype=exact, device=waveform.device)
        mean = torch.zeros((), dtype=exact, device=waveform.device)
        squares = torch.zeros_like(mean)
        for part in waveform.split(_NORMALISED_AT_ONCE):
            mean += block[: len(part)].copy_(part).sum()
        mean /= n
        for part in waveform.split(_NORMALISED_AT_ONCE):
            centred = block[: len(part)].copy_(part).sub_(mean)
            squares += torch.dot(centred, centred)
        return (waveform - mean).mul_(torch.rsqrt(squares / n + 1e-7))  # eps: the reference's own

    def operations(self, num_samples: int) -> tuple[float, float]:
        """Floating-point operations for one utterance: useful ones, and those spent on padding.

        Without what a GPU's batch is filled up with: 1 % of a large one (`fused.pack_frames`).
        """
        T, D = self.num_frames(num_samples), self.dim
        cnn = self.cnn.operations()
        layers = len(self.layers)
        dense = 2 * (self.projection.size + layers * self.layers[0].size)
        positions = 2 * self.positions.conv.size
        useful = T * (cnn + dense + positions + 4 * layers * T * D)
        dropped = self.cnn.dropped_frames(num_samples) * cnn
        multiple = ROW_MULTIPLE if self.fused is None else TILE_ROWS
        attention = 4 * layers * (round_up(T, multiple) ** 2 - T * T) * D
        between = self.positions.left if self.fused is None else round_up(T, TILE_ROWS) - T
        return float(useful), float(dropped + between * positions + attention)

    @torch.inference_mode()
    def forward(
        self,
        waveforms: Sequence[Tensor],
        sink: FrameSink,
        last_layer: int | None = None,
        masks: Sequence[LatentMask | None] = (),
    ) -> None:
        """Encode utterances together; each layer goes to ``sink`` when it is produced.

        Args:
            waveforms: float32 ``[num_samples]`` each, at 16 kHz, normalised as the checkpoint asks,
                none shorter than ``min_samples``.
            sink: gets ``(k, [sum of frames, D])`` for ``k = 0, 1, ...``, utterances in their order.
            last_layer: stop behind this one; the layers after it are not computed.
            masks: what to hide of each utterance's projected CNN output, in its own frames (SpecAugment
                on latent features: Baevski et al. 2020, sections 3.1 and 4.2); empty for nothing.
        """
        last = self.num_layers - 1 if last_layer is None else last_layer
        lengths = [self.num_frames(len(w)) for w in waveforms]
        N = sum(lengths)
        if self.fused is not None:
            packing = pack_frames(lengths, self.device)
            x = self.embed(waveforms, lengths, masks, packing)
            sink.add(0, x[:N])
            for k, hidden in enumerate(self.fused(x, packing, last), start=1):
                sink.add(k, hidden[:N])
            return
        x = self.embed(waveforms, lengths, masks)
        sink.add(0, x)
        x = torch.cat([x, blank_rows(round_up(N, ROW_MULTIPLE) - N, x)])
        bias = None if self.bias is None or last == 0 else self.bias.square(max(lengths))
        for k, layer in enumerate(self.layers[:last], start=1):
            x = layer(x, lengths, bias)
            if k == self.num_layers - 1 and self.pre_norm:
                x = self.norm(x)
            sink.add(k, x[:N])

    def embed(
        self,
        waveforms: Sequence[Tensor],
        lengths: Sequence[int],
        masks: Sequence[LatentMask | None] = (),
        packing: Packing | None = None,
    ) -> Tensor:
        """Waveforms to the transformer's input: ``[sum of frames, D]``; all rows of ``packing``, if given."""
        x = self.cnn([w.to(self.device) for w in waveforms])
        if self.feature_norm is not None:
            x = self.feature_norm(x)
        x = self.projection(x)
        if any(mask is not None for mask in masks):
            self.hide(x, lengths, masks)
        if packing is None:
            x = x + self.positions(x, lengths)
        else:
            x = torch.cat([x, blank_rows(packing.num_rows - len(x), x)])
            x = self.positions.add_to(x, packing)
        return x if self.pre_norm else self.norm(x)

    def hide(self, x: Tensor, lengths: Sequence[int], masks: Sequence[LatentMask | None]) -> None:
        """Mask ``x [sum of frames, D]`` in place: frames first, channels over them, as the reference."""
        if self.mask_embedding is None:
            raise ValueError("this checkpoint has no mask embedding (masked_spec_embed)")
        for frames, mask in zip(x.split(list(lengths)), masks, strict=True):  # views
            if mask is not None:
                for first, last in mask.frames:
                    frames[first:last] = self.mask_embedding
                for first, last in mask.channels:
                    frames[:, first:last] = 0.0


def _activation(name: str) -> Activation:
    if name == "gelu":
        return F.gelu
    from transformers.activations import ACT2FN

    return ACT2FN[name]
