"""The most memory that something takes while it runs, above what was there before."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5): the high-water mark becomes what is resident now


def working_bytes(work: Callable[[], object], device: torch.device) -> int | None:
    """Of the device; None where that cannot be found out."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    return working_bytes_of_host(work) if device.type == "cpu" else None


def working_bytes_of_host(work: Callable[[], object]) -> int | None:
    """Resident memory of this process; None, without doing the work, where it cannot be found out."""
    if not _CLEAR.exists() or not _trim():
        return None
    try:
        _CLEAR.write_text(_RESET_PEAK)
    except OSError:  # some containers do not allow it
        return None
    before = _resident("VmRSS")
    work()
    return max(0, _resident("VmHWM") - before)


def _trim() -> bool:
    """Hand freed memory back to the system, that it be counted when it is taken again; glibc can."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    return trim is not None


def _resident(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", _STATUS.read_text())
    assert found is not None
    return int(found[1]) << 10
