"""The transformer layers as a GPU runs them: fused kernels over packed frames, a fixed set of shapes.

    qkv -> attend ->  out   -> add_norm -> fc1, GELU -> fc2 -> add_norm        pre-norm
    qkv -> attend ->  out   -> norm     -> fc1, GELU -> fc2 -> norm            post-norm

One launch each, but for the exact GELU, which cuBLAS cannot take along: it has the tanh form only. The sum
at the end of a layer takes the next layer's first norm along. Where utterances lie is on the device before
the first layer runs, and nothing is waited for until all layers are done. Numbers of rows, of utterances and
of frames of the longest are rounded up to a shape bucket (`pack_frames`), so that few shapes come up, which
graphs can be recorded for, and a batch gets the same shapes whether they are or not. What fills a batch up
are utterances of their own, which no other sees.

With CUDA graphs a layer's dozen launches become one. They are recorded for each layer and each bucket, the
second time that the bucket comes up: all batches of one run but its last are about as large as the budget
allows, so that a handful of buckets takes in most of them. Values change from batch to batch, in tensors that
stay where they are: the layer's input, and the table of where utterances lie. Between two layers the sink
gets the frames, by ordinary launches.
"""

from __future__ import annotations

import inspect
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

from cuda_kernels.add_norm import add_norm, norm_rows
from cuda_kernels.attention import GatedBias, attend_packed
from cuda_kernels.packing import Packing, ShapeBucket, pack
from extractor.encoders.linear import round_up
from extractor.encoders.transformer import RelativePositionBias, TransformerLayer
from extractor.encoders.weights import Norm

_ROWS = 256  # rows are filled up to a multiple: of four minutes of frames, 1 % on average
_LONGEST = 256  # frames that the longest utterance counts as, at least; then powers of two
_WIDE = 8  # values of half precision in 16 bytes

MAX_BUCKETS = 8  # that graphs are kept for; their memory for what lies within a layer is shared
MAX_SECONDS = 30.0  # of recording in all: after that, buckets that have no graphs stay without

_log = logging.getLogger(__name__)


def pack_frames(lengths: Sequence[int], device: torch.device) -> Packing:
    """Utterances of so many frames, and behind them what fills their shape bucket."""
    longest = max(_LONGEST, _power_of_two(max(lengths)))
    bucket = ShapeBucket(round_up(sum(lengths), _ROWS), _power_of_two(len(lengths) + 1), longest)
    return pack(bucket.filled(lengths), device, longest)


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
        self.pre_norm = bool(layers) and layers[0].pre_norm
        self.bias = bias
        self.by_distance: dict[int, Tensor] = {}  # [H, 2 n - 1], of the powers of two n that came up
        weight = final_norm.weight
        head_dim = len(weight) // layers[0].num_heads if layers else 0
        self.attention = attention or best_attention(weight.dtype, weight.device, head_dim)
        on_gpu = weight.device.type == "cuda"
        self.graphs = Graphs(self, CudaRecorder(weight.device)) if on_gpu else None

    def __call__(self, x: Tensor, packing: Packing, last: int) -> Iterator[Tensor]:
        """Outputs of layers 1 to ``last``; each holds until the next is asked for."""
        run = self.run if self.graphs is None or not last else self.graphs.run
        return run(x, packing, last)

    def run(self, x: Tensor, packing: Packing, last: int) -> Iterator[Tensor]:
        """The same by ordinary launches."""
        h = self.enter(x)
        for k in range(last):
            x, h = self.step(k, x, h, packing)
            yield x

    def enter(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """What the first layer takes in beside ``x``."""
        if not (self.pre_norm and self.layers):
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
        if not self.pre_norm:
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
        D, H, longest = h.shape[1], layer.num_heads, packing.longest
        qkv = layer.qkv(h)  # [N, 3 D]; WavLM: [N, 3 D + 2 H] and what rounds it up
        if not layer.gated:
            return ATTENTION[self.attention](qkv, packing, H, self.backend)
        assert self.bias is not None
        if longest not in self.by_distance:
            self.by_distance[longest] = self.bias.by_distance(longest)
        logits = qkv[:, 3 * D : 3 * D + 2 * H]
        bias = GatedBias(self.by_distance[longest], logits, layer.gate_const)
        return attend_packed(qkv[:, : 3 * D], packing, H, bias, self.backend)


class CudaRecorder:
    """Records launches as CUDA graphs, to repeat them on whatever the same tensors hold then.

    The graphs share one pool of memory, since they are replayed one behind the other.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream: torch.cuda.Stream | None = None
        self.last: torch.cuda.Event | None = None

    def prepare(self, work: Callable[[], object]) -> None:
        """Do it once, so that nothing is compiled or set up while it is recorded."""
        if self.stream is None:
            self.stream, self.pool = torch.cuda.Stream(self.device), torch.cuda.graph_pool_handle()
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        if self.last is not None:  # cuBLAS has one workspace for this stream, in graphs as well
            self.stream.wait_event(self.last)
        with torch.cuda.stream(self.stream):
            work()
        # Not the whole device, which must not be asked for while another thread records.
        self.stream.synchronize()

    def record(self, work: Callable[[], object]) -> Callable[[], object]:
        """What does the same again."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self.stream):
            # Other threads may go on allocating and copying meanwhile.
            graph.capture_begin(self.pool, capture_error_mode="thread_local")
            try:
                work()
            finally:
                graph.capture_end()
        return graph.replay

    def follow(self) -> None:
        """Wait, on the device, for what was replayed before `done`, on any stream."""
        if self.last is not None:
            torch.cuda.current_stream(self.device).wait_event(self.last)

    def done(self) -> None:
        self.last = torch.cuda.current_stream(self.device).record_event()


@dataclass(frozen=True, slots=True)
class LayerGraphs:
    """A bucket's graphs, and the tensors that they read and write."""

    packing: Packing
    x: Tensor  # [rows, D]: a layer's input, then its output
    enter: Callable[[], object]
    steps: list[Callable[[], object]]


class Graphs:
    """Runs layers by graphs where there are any: one batch at a time, the others wait."""

    def __init__(self, layers: FusedLayers, recorder: CudaRecorder) -> None:
        self.layers, self.recorder = layers, recorder
        self.recorded: dict[ShapeBucket, LayerGraphs] = {}
        self.seen: set[ShapeBucket] = set()
        self.seconds = 0.0
        self.possible = True
        self.lock = threading.Lock()

    def run(self, x: Tensor, packing: Packing, last: int) -> Iterator[Tensor]:
        """Outputs of layers 1 to ``last``; each holds until the next is asked for."""
        with self.lock:
            graphs = self._graphs_for(x, packing)
        if graphs is None:
            yield from self.layers.run(x, packing, last)
            return
        with self.lock:
            self.recorder.follow()
            try:
                graphs.packing.load(packing)
                graphs.x.copy_(x)
                graphs.enter()
                for step in graphs.steps[:last]:
                    step()
                    yield graphs.x
            finally:
                self.recorder.done()

    def _graphs_for(self, x: Tensor, packing: Packing) -> LayerGraphs | None:
        bucket = packing.bucket
        if bucket in self.recorded:
            return self.recorded[bucket]
        again = bucket in self.seen
        self.seen.add(bucket)
        if not (again and self.possible and len(self.recorded) < MAX_BUCKETS and self.seconds < MAX_SECONDS):
            return None
        began = time.perf_counter()
        try:
            self.recorded[bucket] = self._record(x, packing)
        except RuntimeError as error:  # CUDA's own, for whatever it does not record
            self.possible = False
            _log.warning("layers run without CUDA graphs, which could not be recorded: %s", error)
        self.seconds += time.perf_counter() - began
        _log.info("CUDA graphs of %s; %.1f s of recording so far", bucket, self.seconds)
        return self.recorded.get(bucket)

    def _record(self, x: Tensor, packing: Packing) -> LayerGraphs:
        layers, recorder = self.layers, self.recorder
        own = Packing(packing.lengths, packing.longest, packing.num_rows, packing.table.clone())
        x, h = x.clone(), torch.empty_like(x)
        if not layers.pre_norm:
            h = x

        enter = partial(layers.enter, x, out=h)
        steps = [partial(layers.step, k, x, h, own, (x, h)) for k in range(len(layers.layers))]
        launches: list[Callable[[], object]] = [enter, *steps] if layers.pre_norm else [*steps]
        for work in launches:
            recorder.prepare(work)
        recorded = [recorder.record(step) for step in steps]
        # With post-norm there is nothing to do: torch warns of a graph without work.
        return LayerGraphs(own, x, recorder.record(enter) if layers.pre_norm else enter, recorded)


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


# Attention without a bias: qkv [N, 3 D], where utterances lie, heads and backend to [N, D].
ATTENTION: dict[str, Callable[[Tensor, Packing, int, str], Tensor]] = {
    "varlen": _varlen,
    "kernel": lambda qkv, packing, num_heads, backend: attend_packed(qkv, packing, num_heads, None, backend),
}


def best_attention(dtype: torch.dtype, device: torch.device, head_dim: int) -> str:
    """A row of `ATTENTION`: PyTorch's own where it runs, else the kernel."""
    half = dtype in (torch.bfloat16, torch.float16)
    # Its queries come unscaled in versions that cannot be told otherwise.
    can_varlen = device.type == "cuda" and half and head_dim % _WIDE == 0 and "scale" in _varlen_options()
    return "varlen" if can_varlen else "kernel"
