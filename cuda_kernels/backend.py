"""Which implementation runs: Triton on CUDA, plain PyTorch elsewhere; a wish that cannot be met raises."""

from __future__ import annotations

import logging
from functools import cache
from importlib.util import find_spec

import torch

BACKENDS = ("auto", "torch", "triton")
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

_log = logging.getLogger(__name__)


def resolve(backend: str, device: torch.device) -> str:
    """``"torch"`` or ``"triton"`` for tensors on ``device``.

    ``"auto"`` is Triton on CUDA where it is installed, else PyTorch, and is logged once a device type.
    Raises ValueError for an unknown name, RuntimeError for ``"triton"`` where it cannot run: it needs a
    CUDA device, or Triton's interpreter (``TRITON_INTERPRET=1`` before Python starts) for CPU tensors.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend {backend!r}: must be one of {', '.join(BACKENDS)}")
    if backend == "auto":
        return _default(device.type)
    if backend == "triton":
        reason = why_not_triton(device.type)
        if reason:
            raise RuntimeError(f"backend 'triton' cannot run here: {reason}; use 'auto' or 'torch'")
    return backend


def why_not_triton(device_type: str) -> str | None:
    """Why Triton cannot run on this kind of device, or None where it can."""
    if find_spec("triton") is None:
        return "triton is not installed"
    if device_type == "cuda" or interpreted():
        return None
    return f"the tensors are on {device_type!r}, and Triton compiles for CUDA"


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on any device: slowly, to check them."""
    import triton

    return bool(triton.knobs.runtime.interpret)


@cache
def _default(device_type: str) -> str:
    chosen = "triton" if device_type == "cuda" and why_not_triton(device_type) is None else "torch"
    _log.info("kernels on %s: %s", device_type, chosen)
    return chosen


def accumulated(dtype: torch.dtype) -> torch.dtype:
    """What sums over values of this dtype are in."""
    return torch.float64 if dtype == torch.float64 else torch.float32
