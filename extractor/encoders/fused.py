"""The transformer layers as a GPU runs them: fused kernels over packed frames, a fixed set of shapes.

    qkv -> attend ->  out   -> add_norm -> fc1, GELU -> fc2 -> add_norm        norm first
    qkv -> attend ->  out   -> norm     -> fc1, GELU -> fc2 -> norm            norm behind

One launch each, but for the exact GELU, which cuBLAS cannot take along: it has the tanh form only. The sum
at the end of a layer takes the next layer's first norm along. Where utterances lie is on the device before
the first layer runs, and nothing is waited for until all layers are done. Numbers of rows, of utterances and
of frames of the longest are rounded up (`pack_frames`), so that few shapes come up, which graphs (see
`graphs`) can be recorded for, and a batch gets the same shapes whether they are or not. What fills a batch up
are utterances of their own, which no other sees.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from cuda_kernels.add_norm import add_norm, norm_rows
from cuda_kernels.attention import GatedBias, attend_packed
from cuda_kernels.packing import Packing, Room, pack
from extractor.encoders.attention import RelativePositionBias
from extractor.encoders.graphs import CudaRecorder, Recordings
from extractor.encoders.products import round_up

if TYPE_CHECKING:
    from extractor.encoders.transformer import TransformerLayer
    from extractor.encoders.weights import Norm

_ROWS = 256  # rows are filled up to a multiple: of four minutes of frames, 1 % on average
_LONGEST = 256  # frames that the longest utterance counts as, at least; then powers of two
_WIDE = 8  # values of half precision in 16 bytes


def pack_frames(lengths: Sequence[int], device: torch.device) -> Packing:
    """Utterances of so many frames, and behind them what fills their room."""
    longest = max(_LONGEST, _power_of_two(max(lengths)))
    room = Room(round_up(sum(lengths), _ROWS), _power_of_two(len(lengths) + 1), longest)
    return pack(room.filled(lengths), device, longest)


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


class FusedLayers:
    """A model's layers, with its bias and final norm; ``[N, D]`` rows of a packing all the way."""

    def __init__(
        self,
        layers: Sequence[TransformerLayer],
        final_norm: Norm,
        bias: RelativePositionBias | None,
        backend: str,
        attention: str | None = None,
    ) -> None:
        """``attention``: a row of `ATTENTION` for layers without a bias; None: the best that runs."""
        self.layers, self.final_norm, self.backend = list(layers), final_norm, backend
        self.norm_first = bool(layers) and layers[0].norm_first
        self.bias = bias
        self.by_distance: dict[int, Tensor] = {}  # of the powers of two that came up
        weight = final_norm.weight
        head_dim = len(weight) // layers[0].num_heads if layers else 0
        self.attention = attention or best_attention(weight.dtype, weight.device, head_dim)
        on_gpu = weight.device.type == "cuda"
        self.recordings = Recordings(self, CudaRecorder(weight.device)) if on_gpu else None

    def __call__(self, x: Tensor, packing: Packing, last: int) -> Iterator[Tensor]:
        """Outputs of layers 1 to ``last``; each holds until the next is asked for."""
        if self.recordings is not None and last:
            yield from self.recordings(x, packing, last)
            return
        yield from self.run(x, packing, last)

    def run(self, x: Tensor, packing: Packing, last: int) -> Iterator[Tensor]:
        """The same by ordinary launches."""
        h = self.enter(x)
        for k in range(last):
            x, h = self.step(k, x, h, packing)
            yield x

    def enter(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """What the first layer takes in beside ``x``."""
        if not (self.norm_first and self.layers):
            return x
        norm = self.layers[0].norm1
        return norm_rows(x, norm.weight, norm.bias, norm.eps, out=out, backend=self.backend)

    def step(
        self, k: int, x: Tensor, h: Tensor, packing: Packing, out: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Layer ``k`` (from 0): its output, and what the next layer takes in beside it.

        With the norm first, ``h`` is the layer's norm of ``x``; else it is ``x``. ``out``: where to write the
        two, which may be ``x`` and ``h`` themselves.
        """
        layer = self.layers[k]
        x_out = None if out is None else out[0]
        branch = layer.out(self._attend(layer, h, packing))
        if not self.norm_first:
            x = self._norm(branch, layer.norm1, residual=x)
            x = self._norm(layer.fc2(layer.feed_forward(x)), layer.norm2, residual=x, out=x_out)
            return x, x
        x, h = self._add(branch, x, layer.norm2)
        branch = layer.fc2(layer.feed_forward(h))
        if layer.adapter is not None:
            x, h = self._add(branch, x, layer.adapter.norm)
            branch = layer.adapter.up(F.relu(layer.adapter.down(h)))
        if k == len(self.layers) - 1:
            x = self._norm(branch, self.final_norm, residual=x, out=x_out)
            return x, x
        return self._add(branch, x, self.layers[k + 1].norm1, out)

    def _add(
        self, x: Tensor, residual: Tensor, norm: Norm, out: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        return add_norm(x, residual, norm.weight, norm.bias, norm.eps, out, self.backend)

    def _norm(self, x: Tensor, norm: Norm, residual: Tensor, out: Tensor | None = None) -> Tensor:
        return norm_rows(x, norm.weight, norm.bias, norm.eps, residual, out=out, backend=self.backend)

    def _attend(self, layer: TransformerLayer, h: Tensor, packing: Packing) -> Tensor:
        D, H = h.shape[1], layer.num_heads
        qkv = layer.qkv(h)  # [N, 3 D]; WavLM: [N, 3 D + 2 H] and what rounds it up
        if not layer.gated:
            return ATTENTION[self.attention](qkv, packing, H, self.backend)
        logits = qkv[:, 3 * D : 3 * D + 2 * H]
        bias = GatedBias(self.distances(packing.longest), logits, layer.gate_const)
        return attend_packed(qkv[:, : 3 * D], packing, H, bias, self.backend)

    def distances(self, longest: int) -> Tensor:
        """The bias of all distances that come up, ``[H, 2 longest - 1]``."""
        assert self.bias is not None
        if longest not in self.by_distance:
            self.by_distance[longest] = self.bias.by_distance(longest)
        return self.by_distance[longest]


def _varlen(qkv: Tensor, packing: Packing, num_heads: int, backend: str) -> Tensor:
    """PyTorch's own, where the keys are never split among programs, which would depend on the batch."""
    from torch.nn.attention.varlen import varlen_attn

    if not len(qkv):
        return qkv[:, : qkv.shape[1] // 3]
    if qkv.stride(0) % _WIDE or qkv.data_ptr() % (_WIDE * qkv.element_size()):
        qkv = qkv.contiguous()  # its loads of 16 bytes fault where rows begin elsewhere; nothing checks that
    q, k, v = qkv.unflatten(1, (3, num_heads, -1)).unbind(1)  # [N, H, d] each
    whole = {"num_splits": 1} if "num_splits" in _varlen_options() else {}
    offsets, longest = packing.offsets, packing.longest
    attended = varlen_attn(q, k, v, offsets, offsets, longest, longest, scale=1.0, **whole)  # type: ignore[arg-type]
    assert isinstance(attended, Tensor)
    return attended.flatten(1)


@cache
def _varlen_options() -> tuple[str, ...]:
    """Parameters of `varlen_attn`; none where it is not installed."""
    if find_spec("torch.nn.attention.varlen") is None:
        return ()
    from torch.nn.attention.varlen import varlen_attn

    return tuple(inspect.signature(varlen_attn).parameters)


def _kernel(qkv: Tensor, packing: Packing, num_heads: int, backend: str) -> Tensor:
    return attend_packed(qkv, packing, num_heads, backend=backend)


# Attention without a bias: qkv [N, 3 D], where utterances lie, heads and backend to [N, D].
ATTENTION: dict[str, Callable[[Tensor, Packing, int, str], Tensor]] = {"varlen": _varlen, "kernel": _kernel}
PREFERRED = "varlen"  # where it runs; `benchmarks/gpu_layers.py` compares them


def best_attention(dtype: torch.dtype, device: torch.device, head_dim: int) -> str:
    """A row of `ATTENTION`: `PREFERRED`, or the kernel where that cannot run."""
    half = dtype in (torch.bfloat16, torch.float16)
    # Its queries come unscaled in versions that cannot be told otherwise.
    can_varlen = device.type == "cuda" and half and head_dim % _WIDE == 0 and "scale" in _varlen_options()
    return PREFERRED if PREFERRED != "varlen" or can_varlen else "kernel"
