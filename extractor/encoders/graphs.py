"""CUDA graphs of the transformer layers: a layer's dozen launches become one.

A graph is recorded for each layer and each room of a batch (rows, utterances, frames of the longest, all
rounded up), the second time that the room comes up: all batches of one run but its last are about as large as
the budget allows, so that a handful of rooms takes in most of them. Values change from batch to batch, in
tensors that stay where they are: the layer's input, and the table of where utterances lie. Between two layers
the sink gets the frames, by ordinary launches.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from cuda_kernels.packing import Packing, Room

MAX_ROOMS = 8  # that graphs are kept for; their memory for what lies within a layer is shared
MAX_SECONDS = 30.0  # of recording in all: after that, rooms that have no graphs stay without

_log = logging.getLogger(__name__)


class Layers(Protocol):
    """What can be recorded: `fused.FusedLayers`."""

    layers: list[Any]
    norm_first: bool

    def run(self, x: Tensor, packing: Packing, last: int) -> Iterator[Tensor]: ...

    def enter(self, x: Tensor, out: Tensor | None = None) -> Tensor: ...

    def step(
        self, k: int, x: Tensor, h: Tensor, packing: Packing, out: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]: ...


class Recorder(Protocol):
    """Records launches to repeat them."""

    def prepare(self, work: Callable[[], object]) -> None:
        """Do it once, so that nothing is compiled or set up while it is recorded."""
        ...

    def record(self, work: Callable[[], object]) -> Callable[[], object]:
        """What does the same again, on whatever the same tensors hold then."""
        ...

    def follow(self) -> None:
        """Wait, on the device, for what was replayed before `done`, on any stream."""
        ...

    def done(self) -> None: ...


class CudaRecorder:
    """By CUDA graphs, which share one pool of memory, since they are replayed one behind the other."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream: torch.cuda.Stream | None = None
        self.last: torch.cuda.Event | None = None

    def prepare(self, work: Callable[[], object]) -> None:
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
        if self.last is not None:
            torch.cuda.current_stream(self.device).wait_event(self.last)

    def done(self) -> None:
        self.last = torch.cuda.current_stream(self.device).record_event()


@dataclass(frozen=True, slots=True)
class Recording:
    """A room's graphs, and the tensors that they read and write."""

    packing: Packing
    x: Tensor  # [rows, D]: a layer's input, then its output
    enter: Callable[[], object]
    steps: list[Callable[[], object]]


class Recordings:
    """Runs layers by graphs where there are any: one batch at a time, the others wait."""

    def __init__(self, layers: Layers, recorder: Recorder) -> None:
        self.layers, self.recorder = layers, recorder
        self.recorded: dict[Room, Recording] = {}
        self.seen: set[Room] = set()
        self.seconds = 0.0
        self.possible = True
        self.lock = threading.Lock()

    def __call__(self, x: Tensor, packing: Packing, last: int) -> Iterator[Tensor]:
        """Outputs of layers 1 to ``last``; each holds until the next is asked for."""
        with self.lock:
            recording = self._recording(x, packing)
        if recording is None:
            yield from self.layers.run(x, packing, last)
            return
        with self.lock:
            self.recorder.follow()
            try:
                recording.packing.load(packing)
                recording.x.copy_(x)
                recording.enter()
                for step in recording.steps[:last]:
                    step()
                    yield recording.x
            finally:
                self.recorder.done()

    def _recording(self, x: Tensor, packing: Packing) -> Recording | None:
        room = packing.room
        if room in self.recorded:
            return self.recorded[room]
        again = room in self.seen
        self.seen.add(room)
        if not (again and self.possible and len(self.recorded) < MAX_ROOMS and self.seconds < MAX_SECONDS):
            return None
        began = time.perf_counter()
        try:
            self.recorded[room] = self._record(x, packing)
        except RuntimeError as error:  # CUDA's own, for whatever it does not record
            self.possible = False
            _log.warning("layers run without CUDA graphs, which could not be recorded: %s", error)
        self.seconds += time.perf_counter() - began
        _log.info("CUDA graphs of %s; %.1f s of recording so far", room, self.seconds)
        return self.recorded.get(room)

    def _record(self, x: Tensor, packing: Packing) -> Recording:
        layers, recorder = self.layers, self.recorder
        own = Packing(packing.lengths, packing.longest, packing.num_rows, packing.table.clone())
        x, h = x.clone(), torch.empty_like(x)
        if not layers.norm_first:
            h = x

        def step(k: int) -> Callable[[], object]:
            return lambda: layers.step(k, x, h, own, out=(x, h))

        def enter() -> object:
            return layers.enter(x, out=h)

        if layers.norm_first:
            recorder.prepare(enter)
        for k in range(len(layers.layers)):
            recorder.prepare(step(k))
        steps = [recorder.record(step(k)) for k in range(len(layers.layers))]
        # With the norm behind there is nothing to do: torch warns of a graph without work.
        return Recording(own, x, recorder.record(enter) if layers.norm_first else enter, steps)
