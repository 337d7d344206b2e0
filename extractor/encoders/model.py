"""A model by its name, on a device, in a precision: its encoder, and the same in fp32 to rerun with."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING

from extractor.encoders.families import FAMILIES, Encoder
from extractor.errors import SettingsError, unknown

if TYPE_CHECKING:
    import torch

_TORCH_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "int8": "bfloat16"}
DTYPES = ("auto", *_TORCH_NAMES)


class Model:
    """A model that was asked for, and encoders of it: one to run, in fp32 also one to rerun with."""

    def __init__(self, spec: str, dtype: str, device: torch.device) -> None:
        """Load it. Raises ModelError, or SettingsError for a dtype it does not run in."""
        from extractor.encoders.spectral import SPECTRAL

        self.spec, self.device = spec, device
        self.spectral = spec in SPECTRAL
        self.dtype = resolve_dtype(dtype, device, self.spectral)
        self.provenance: Mapping[str, str] = {}
        self.notes: tuple[str, ...] = ()  # what was assumed of it, and what of its checkpoint is not used
        self.encoder = self.build(self.dtype)
        self._exact: Encoder | None = self.encoder if self.dtype == "fp32" else None
        self._building = threading.Lock()

    def in_fp32(self) -> Encoder:
        """The same model in fp32, read again when it is first needed. Safe to call from threads."""
        with self._building:
            if self._exact is None:
                self._exact = self.build("fp32")
            return self._exact

    @property
    def recording_seconds(self) -> float:
        """Time spent on recording CUDA graphs so far."""
        fused = getattr(self.encoder, "fused", None)  # some kinds of encoder have no such layers
        return 0.0 if fused is None or fused.graphs is None else fused.graphs.seconds

    def build(self, dtype: str) -> Encoder:
        """Another encoder of this model, read anew."""
        import torch

        if self.spectral:
            import torchaudio

            from extractor.encoders.spectral import SpectralEncoder

            source = f"torchaudio {torchaudio.__version__}"
            none = {"revision": "none", "weights": "none", "normalisation": "False"}
            self.provenance = {"model": self.spec, "source": source, **none}
            return SpectralEncoder(self.spec, self.device)
        from extractor.encoders.checkpoint import load_checkpoint

        if dtype == "fp32" and self.device.type == "cuda":
            exact_fp32()
        checkpoint = load_checkpoint(self.spec)
        self.provenance, self.notes = checkpoint.provenance, checkpoint.notes
        build = FAMILIES[checkpoint.config.model_type].build
        return build(checkpoint, getattr(torch, _TORCH_NAMES[dtype]), self.device, dtype == "int8")


def exact_fp32() -> None:
    """fp32 on CUDA with all its bits: by default its convolutions round to TF32's ten."""
    import torch

    torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]
    torch.backends.cuda.matmul.fp32_precision = "ieee"


def resolve_device(name: str) -> torch.device:
    """``auto`` (CUDA, else MPS, else CPU), ``cpu``, ``cuda``, ``cuda:N`` or ``mps``."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", name):
        raise SettingsError(unknown("device", name, ["auto", "cpu", "cuda", "cuda:0", "mps"]))
    device = torch.device(name)
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there[device.type]:
        raise SettingsError(f"--device {name}: torch finds no {device.type.upper()} device here")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise SettingsError(f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices")
    return device


def resolve_dtype(name: str, device: torch.device, spectral: bool = False) -> str:
    """``auto`` is bf16 where the hardware computes in it, else fp32; spectral encoders run in fp32.

    ``int8`` is never chosen: its linear layers are in int8, the rest in bf16.
    """
    import torch

    if name not in DTYPES:
        raise SettingsError(unknown("dtype", name, DTYPES))
    if spectral:
        if name not in ("auto", "fp32"):
            raise SettingsError(f"--dtype {name}: spectral encoders run in fp32")
        return "fp32"
    if name == "int8":
        from extractor.encoders.linear import can_run_int8

        if not can_run_int8(device):
            raise SettingsError(
                f"--dtype int8 on {device}: needs --device cpu, and a CPU with AVX-512 VNNI and BF16;"
                " take --dtype auto"
            )
    if name != "auto":
        return name
    match device.type:
        case "cuda":
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        case "cpu":
            # Elsewhere bf16 is emulated and slower than fp32.
            capabilities = torch.cpu.get_capabilities()
            native = bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
        case _:
            native = False
    return "bf16" if native else "fp32"
