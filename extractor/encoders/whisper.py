"""The Whisper encoder's forward pass (Radford et al. 2022), all of its layers.

It was trained on log-mel spectrograms of exactly 30 s, shorter recordings with zeros behind them, and it
attends to the zeros too: that context is part of what the model computes, and so each recording gets it
here. What comes out are the recording's own frames alone:

    waveform   o------o                       its own samples
    log-mel    ||||||||____ _ _ _ ________    computed where there is sound: behind it all frames are equal
    conv., +p  ||||||||____ _ _ _ ________    likewise; then positions, 1,500 of them
    layers     |||||||||||||||||||||||||||    every position, as trained; of the last layer wanted,
    frames     ||||||||                       the recording's own only

A recording never shares a row, a sum or a maximum with another, whatever it is encoded with.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from extractor.encoders.linear import ROW_MULTIPLE, Conv, round_up
from extractor.encoders.weights import Weights
from extractor.types import SAMPLE_RATE, FrameSink, LatentMask

if TYPE_CHECKING:
    from collections.abc import Mapping

    from extractor.encoders.cnn import Activation

FFT_SAMPLES = 400  # 25 ms
HOP_SAMPLES = 160  # 10 ms
STRIDE = 2 * HOP_SAMPLES  # samples a frame: the second convolution takes every other one
LOG_FLOOR = 1e-10  # power that counts as silence
DYNAMIC_RANGE = 8.0  # decades below the loudest point of the recording that are kept

_LAYER_NORM_EPS = 1e-5  # LayerNorm's default, as the reference builds it
# Spectrogram frames of silence from which the convolutions make all that they can make of it: an output
# that sees nothing else, and the last one, which has the border behind it.
_SILENT_FRAMES = 6
_MEL_MULTIPLE = 2 * ROW_MULTIPLE  # of spectrogram frames; oneDNN makes a program for each number of them
# Recordings that go through the layers together. On CPUs 1,500 rows are as fast as more and stay in cache.
_TOGETHER = {"cpu": 1}
_TOGETHER_ELSEWHERE = 16
_QUERIES_AT_ONCE = 512  # a head's scores of so many rows: 1.5 MB in bf16


class LogMel:
    """The spectrogram of `WhisperFeatureExtractor`."""

    def __init__(self, num_mels: int, device: torch.device) -> None:
        from transformers.audio_utils import mel_filter_bank

        filters = mel_filter_bank(
            num_frequency_bins=FFT_SAMPLES // 2 + 1,
            num_mel_filters=num_mels,
            min_frequency=0.0,
            max_frequency=8_000.0,
            sampling_rate=SAMPLE_RATE,
            norm="slaney",
            mel_scale="slaney",
        )
        self.filters = torch.from_numpy(filters).to(device, torch.float32)  # [F, C]
        self.window = torch.hann_window(FFT_SAMPLES, device=device)

    def __call__(self, waveforms: Sequence[Tensor], num_frames: int) -> Tensor:
        """float32 ``[num_samples]`` each, with zeros behind it: ``[B, num_frames, C]``, float32."""
        audio = self.window.new_zeros(len(waveforms), num_frames * HOP_SAMPLES)
        for row, waveform in zip(audio, waveforms, strict=True):
            row[: len(waveform)] = waveform
        spectrum = torch.stft(audio, FFT_SAMPLES, HOP_SAMPLES, window=self.window, return_complex=True)
        power = (spectrum.real.square() + spectrum.imag.square())[..., :-1]  # [B, F, T]
        log_mel = (power.transpose(1, 2) @ self.filters).clamp(min=LOG_FLOOR).log10()
        # The maximum over the recording: behind `num_frames` there is silence only.
        floor = log_mel.amax(dim=(1, 2), keepdim=True) - DYNAMIC_RANGE
        return (torch.maximum(log_mel, floor) + 4.0) / 4.0


class TransformerLayer:
    """One layer, with the norm before each half.

    Keys and values are a product of their own beside the queries: of the last layer that is wanted, only
    a recording's own frames ask, but all positions answer.
    """

    def __init__(self, weights: Weights, name: str, num_heads: int, activation: Activation | None) -> None:
        attention = f"{name}.self_attn"
        self.num_heads = num_heads
        query, query_bias = (weights.raw(f"{attention}.q_proj.{p}") for p in ("weight", "bias"))
        key, value = (weights.raw(f"{attention}.{p}_proj.weight") for p in "kv")
        value_bias = weights.raw(f"{attention}.v_proj.bias")
        scale = (len(query) // num_heads) ** -0.5
        self.queries = weights.linear_of(query * scale, query_bias * scale)
        keys_bias = torch.cat([torch.zeros_like(value_bias), value_bias])  # keys have none
        self.keys_values = weights.linear_of(torch.cat([key, value]), keys_bias)
        self.out = weights.linear(f"{attention}.out_proj")
        self.fc1, self.fc2 = weights.linear(f"{name}.fc1"), weights.linear(f"{name}.fc2")
        self.norm1 = weights.norm(f"{name}.self_attn_layer_norm")
        self.norm2 = weights.norm(f"{name}.final_layer_norm")
        self.activation = activation  # None is the exact GELU, which the first product takes along
        self.query_size = self.queries.size + self.out.size + self.fc1.size + self.fc2.size

    def __call__(self, x: Tensor, num_rows: int) -> Tensor:
        """The first rows of each recording, seeing all: ``[B, P, D] -> [B, num_rows, D]``."""
        B, _, D = x.shape
        H = self.num_heads
        normed = self.norm1(x)
        keys, values = self.keys_values(normed.view(-1, D)).view(B, -1, 2, H, D // H).unbind(2)
        queries = self.queries(normed[:, :num_rows].reshape(-1, D)).view(B, num_rows, H, D // H)
        heard = attend(queries, keys, values).view(B * num_rows, D)
        x = self.out.add(heard, x[:, :num_rows].reshape(-1, D))
        normed = self.norm2(x)
        hidden = self.fc1.gelu(normed) if self.activation is None else self.activation(self.fc1(normed))
        return self.fc2.add(hidden, x).view(B, num_rows, D)


def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention of each recording to itself: ``[B, Q, H, d], [B, P, H, d] (twice) -> [B, Q, H, d]``.

    Queries come scaled. Never more than a few rows of a head's scores are in memory. SDPA is fastest but
    for bf16 on CPUs, where plain products take two thirds of its time at these lengths.
    """
    q, k, v = (x.transpose(1, 2) for x in (queries, keys, values))  # [B, H, Q, d], [B, H, P, d]
    if q.device.type != "cpu" or q.dtype == torch.float32:
        return F.scaled_dot_product_attention(q, k, v, scale=1.0).transpose(1, 2).contiguous()
    out = torch.empty_like(queries, memory_format=torch.contiguous_format)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            for i in range(0, q.shape[2], _QUERIES_AT_ONCE):
                rows = slice(i, i + _QUERIES_AT_ONCE)
                weights = torch.softmax(q[b, h, rows] @ k[b, h].t(), dim=-1)  # [q, P]
                out[b, rows, h] = weights @ v[b, h]
    return out


class WhisperEncoder:
    """A Whisper checkpoint's encoder, ready to run in one dtype on one device.

    Layer ``0`` is the transformer's input, after the two convolutions and with the positions; layer ``k``
    the output of its layer ``k``, the last one with the final LayerNorm: it is the model's
    ``last_hidden_state``. ``n`` samples give ``n // 320`` frames.
    """

    stride = min_samples = STRIDE
    can_mask = False  # Whisper has no mask embedding
    max_samples: int | None  # the context that it was trained on: 30 s

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        config: Any,
        dtype: torch.dtype,
        device: torch.device,
        int8: bool = False,
    ) -> None:
        """``tensors``: by the names of the `transformers` WhisperEncoder; ``config``: its WhisperConfig.

        ``int8``: linear layers in int8, the rest in ``dtype``, which must be bfloat16.
        """
        from transformers.activations import ACT2FN

        weights = Weights(tensors, dtype, device, _LAYER_NORM_EPS, int8=int8)
        gelu = config.activation_function == "gelu"
        activation = None if gelu else ACT2FN[config.activation_function]
        self.dtype, self.device = dtype, device
        self.num_layers, self.dim = config.encoder_layers + 1, config.d_model
        self.num_positions = config.max_source_positions
        self.max_samples = self.num_positions * STRIDE
        self.log_mel = LogMel(config.num_mel_bins, device)
        self.conv1 = self._conv(weights, "conv1", stride=1)
        self.conv2 = self._conv(weights, "conv2", stride=2)
        self.positions = weights.get("embed_positions.weight")  # [P, D]
        self.layers = [
            TransformerLayer(weights, f"layers.{i}", config.encoder_attention_heads, activation)
            for i in range(config.encoder_layers)
        ]
        self.norm = weights.norm("layer_norm")

    def _conv(self, weights: Weights, name: str, stride: int) -> Conv:
        weight, bias = weights.raw(f"{name}.weight"), weights.raw(f"{name}.bias")
        return Conv(
            weight, bias, weights.dtype, weights.device, stride=stride, typical_rows=2 * self.num_positions
        )

    def num_frames(self, num_samples: int) -> int:
        """Frames that lie wholly within the recording."""
        return num_samples // STRIDE

    def normalise(self, waveforms: Sequence[Tensor]) -> list[Tensor]:
        """As they are: the loudest point is found in the spectrogram."""
        return list(waveforms)

    def operations(self, num_samples: int) -> tuple[float, float]:
        """Floating-point operations for one recording: what its own frames cost, and the silence behind.

        Without those of the spectrogram, which are below one in a hundred.
        """
        T, D, positions = self.num_frames(num_samples), self.dim, self.num_positions
        layers, one = len(self.layers), self.layers[0]
        dense = 2 * (one.query_size + one.keys_values.size)
        useful = T * (4 * self.conv1.size + 2 * self.conv2.size + layers * (dense + 4 * T * D))
        cnn = self._mel_frames(num_samples) * (2 * self.conv1.size + self.conv2.size)
        whole = (layers - 1) * positions * (dense + 4 * positions * D)
        asking = self._wanted_rows(T) * (2 * one.query_size + 4 * positions * D)
        total = cnn + whole + asking + 2 * positions * one.keys_values.size
        return float(useful), float(total - useful)

    def _mel_frames(self, num_samples: int) -> int:
        """Spectrogram frames to compute: all that hold sound, and enough of the silence."""
        sounding = (num_samples + FFT_SAMPLES // 2 - 1) // HOP_SAMPLES + 1
        return min(2 * self.num_positions, round_up(sounding + _SILENT_FRAMES, _MEL_MULTIPLE))

    def _wanted_rows(self, num_frames: int) -> int:
        return min(self.num_positions, round_up(num_frames, ROW_MULTIPLE))

    @torch.inference_mode()
    def forward(
        self,
        waveforms: Sequence[Tensor],
        sink: FrameSink,
        last_layer: int | None = None,
        masks: Sequence[LatentMask | None] = (),
    ) -> None:
        """Encode recordings; each layer's frames go to ``sink``, utterances in their order.

        Args:
            waveforms: float32 ``[num_samples]`` each, at 16 kHz, none shorter than ``min_samples`` or
                longer than ``max_samples``.
            sink: gets ``(k, [sum of frames, D])`` for ``k = 0, 1, ...``.
            last_layer: stop behind this one; the layers after it are not computed.
            masks: must be empty or all None.

        Each recording takes 30 s of work, so that few go through the layers together. What is held
        meanwhile is the others' own frames, which are as many as the audio is long.
        """
        if any(mask is not None for mask in masks):
            raise ValueError("Whisper's latent features cannot be masked: it has no mask embedding")
        longest = max(len(w) for w in waveforms)
        if longest > self.num_positions * STRIDE:
            raise ValueError(f"{longest} samples: this encoder takes {self.max_samples} at once")
        last = self.num_layers - 1 if last_layer is None else last_layer
        together = _TOGETHER.get(self.device.type, _TOGETHER_ELSEWHERE)
        kept: list[list[Tensor]] = [[] for _ in range(last + 1)]
        for i in range(0, len(waveforms), together):
            group = [w.to(self.device) for w in waveforms[i : i + together]]
            lengths = [self.num_frames(len(w)) for w in group]
            for frames, x in zip(kept, self._states(group, last), strict=True):
                frames.append(torch.cat([rows[:T] for rows, T in zip(x, lengths, strict=True)]))
        for k, frames in enumerate(kept):
            x = torch.cat(frames)
            frames.clear()
            sink.add(k, self.norm(x) if k == self.num_layers - 1 else x)

    def _states(self, waveforms: Sequence[Tensor], last: int) -> Iterator[Tensor]:
        """Layers 0 to ``last`` before the final norm, ``[B, P, D]`` each; the last has fewer rows."""
        longest = max(len(w) for w in waveforms)
        x = self.embed(waveforms)
        yield x
        for layer in self.layers[: max(0, last - 1)]:
            x = layer(x, self.num_positions)
            yield x
        if last:
            yield self.layers[last - 1](x, self._wanted_rows(self.num_frames(longest)))

    def embed(self, waveforms: Sequence[Tensor]) -> Tensor:
        """Waveforms to the transformer's input: ``[B, P, D]``."""
        B, T = len(waveforms), self._mel_frames(max(len(w) for w in waveforms))
        mel = self.log_mel(waveforms, T).to(self.dtype)
        # Recordings end to end, a row of zeros before and behind each: what the convolutions pad with.
        rows = F.pad(mel, (0, 0, 1, 1)).flatten(0, 1)  # [B (T + 2), C]
        hidden = rows.new_zeros(len(rows), self.dim)
        hidden[1:-1] = self.conv1.gelu(rows)  # each output at the row that it is centred on
        # The first and the last: named in a list, they would be copied to the device, and waited for.
        hidden.view(B, T + 2, -1)[:, :: T + 1] = 0
        x = hidden.new_zeros(len(rows) // 2, self.dim)
        x[:-1] = self.conv2.gelu(hidden)  # the outputs between two recordings are dropped
        x = x.view(B, T // 2 + 1, -1)[:, :-1]
        # The last output has the border behind it, the one before it lies deep in the silence, and in
        # silence all are equal.
        silent = x[:, -2:-1].expand(-1, self.num_positions - T // 2, -1)
        return torch.cat([x[:, :-1], silent, x[:, -1:]], dim=1) + self.positions
