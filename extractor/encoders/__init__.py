"""Encoders: what turns waveforms into frames, layer by layer.

`wav2vec2` runs every checkpoint of the HuBERT, WavLM and wav2vec 2.0 family, `whisper` the encoder of
every Whisper checkpoint (named ones stand in `checkpoint.MODELS`), `spectral` the log-mel and MFCC
features (`spectral.SPECTRAL`). All have the face of `Encoder`; `Model` builds them.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from extractor.errors import SettingsError, unknown
from extractor.types import FrameSink, LatentMask

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from extractor.encoders.checkpoint import Checkpoint

DTYPES = ("auto", "fp32", "bf16", "fp16", "int8")
LAYER_CONVENTION = (
    "0 is the transformer's input after the positional convolution, k the output of its layer k; the"
    " last is the model's last_hidden_state, with the final LayerNorm where the model has one"
)
_TORCH_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "int8": "bfloat16"}
_RANGE = re.compile(r"(-?\d+)(?:-(-?\d+))?")


class Encoder(Protocol):
    """Waveforms to frames. ``L = num_layers`` counts layer 0; ``D = dim``."""

    num_layers: int
    dim: int
    min_samples: int  # also the field: n samples give (n - min_samples) // stride + 1 frames
    max_samples: int | None  # the longest that it takes at once; longer recordings need windows
    stride: int
    can_mask: bool  # whether `forward` takes masks

    def num_frames(self, num_samples: int) -> int: ...

    def operations(self, num_samples: int) -> tuple[float, float]:
        """Floating-point operations for one recording: useful ones, and those spent on padding."""
        ...

    def normalise(self, waveforms: Sequence[Tensor]) -> list[Tensor]:
        """Whole recordings, as the model wants them: float32 ``[num_samples]`` each to the same."""
        ...

    def forward(
        self,
        waveforms: Sequence[Tensor],
        sink: FrameSink,
        last_layer: int | None = None,
        masks: Sequence[LatentMask | None] = (),
    ) -> None:
        """Encode normalised waveforms together; every layer goes to ``sink`` when it exists.

        ``masks``, where ``can_mask``: aligned with ``waveforms``, or empty for none.
        """
        ...


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
        return 0.0 if fused is None or fused.recordings is None else fused.recordings.seconds

    def build(self, dtype: str) -> Encoder:
        """Another encoder of this model, read anew."""
        import torch

        if self.spectral:
            import torchaudio

            from extractor.encoders.spectral import SpectralEncoder

            self.provenance = {
                "model": self.spec,
                "source": f"torchaudio {torchaudio.__version__}",
                "revision": "none",
                "weights": "none",
                "normalisation": "False",
            }
            return SpectralEncoder(self.spec, self.device)
        from extractor.encoders.checkpoint import load_checkpoint

        if dtype == "fp32" and self.device.type == "cuda":
            exact_fp32()
        checkpoint = load_checkpoint(self.spec)
        self.provenance, self.notes = checkpoint.provenance, checkpoint.notes
        build = _BUILDERS[checkpoint.config.model_type]
        return build(checkpoint, getattr(torch, _TORCH_NAMES[dtype]), self.device, dtype == "int8")


def _wav2vec2(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, int8: bool) -> Encoder:
    from extractor.encoders.wav2vec2 import Wav2Vec2Encoder

    return Wav2Vec2Encoder(
        checkpoint.tensors,
        checkpoint.config,
        dtype,
        device,
        checkpoint.normalise,
        checkpoint.mask_embedding,
        int8=int8,
    )


def _whisper(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, int8: bool) -> Encoder:
    from extractor.encoders.whisper import WhisperEncoder

    return WhisperEncoder(checkpoint.tensors, checkpoint.config, dtype, device, int8)


# By the `model_type` of a checkpoint's config: the kinds that `checkpoint.KINDS` reads.
_BUILDERS: dict[str, Callable[[Checkpoint, torch.dtype, torch.device, bool], Encoder]] = {
    "hubert": _wav2vec2,
    "wavlm": _wav2vec2,
    "wav2vec2": _wav2vec2,
    "whisper": _whisper,
}


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
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SettingsError(f"--device {name}: torch finds no CUDA device here")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise SettingsError(f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise SettingsError(f"--device {name}: torch finds no MPS device here")
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
        from extractor.encoders.int8 import can_run_int8

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


def parse_layers(spec: str | int | Sequence[int], num_layers: int | None = None) -> tuple[int, ...]:
    """Layer numbers, ascending, from ``all``, ``last``, ``0,6,12``, ``0-24``, ``-4--1`` or numbers.

    Negative numbers count from the last layer, -1. Without ``num_layers`` (the model is not known
    yet) only the form is checked and nothing is returned.
    """
    if isinstance(spec, str):
        spans = _parse_spans(spec)
    else:
        spans = [(n, n) for n in ([spec] if isinstance(spec, int) else spec)]
    if num_layers is None:
        return ()
    layers: set[int] = set()
    for first, last in spans:
        ends = [n + num_layers if n < 0 else n for n in (first, last)]
        if not 0 <= ends[0] <= ends[1] < num_layers:
            what = str(first) if first == last else f"{first}-{last}"
            raise SettingsError(
                f"--layers {what}: this model has layers 0-{num_layers - 1}"
                f" (or -{num_layers}--1 from the end)"
            )
        layers.update(range(ends[0], ends[1] + 1))
    return tuple(sorted(layers))


def _parse_spans(spec: str) -> list[tuple[int, int]]:
    named = {"all": (0, -1), "last": (-1, -1)}
    spans = []
    for part in spec.replace(" ", "").split(","):
        match = _RANGE.fullmatch(part)
        if part in named:
            spans.append(named[part])
        elif match:
            spans.append((int(match[1]), int(match[2] or match[1])))
        else:
            raise SettingsError(
                f"--layers {spec!r}: {part!r} is no layer; write all, last, 0,6,12, 0-24 or -4--1"
            )
    return spans


def format_layers(layers: Sequence[int]) -> str:
    """``(0, 1, 2, 6)`` as ``0-2,6``."""
    runs: list[list[int]] = []
    for n in layers:
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
