"""What `benchmarks.kernels` times: for each kernel its inputs, and the ways to the same result.

All recordings of a batch are equally long and edited alike: torchaudio knows no other batches. That spares
it the padding that hser does without; it says nothing of ragged batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cuda_kernels.norm_gelu import group_norm_gelu
from cuda_kernels.norm_gelu import reference as norm_gelu_reference
from cuda_kernels.pool import pool_rows
from cuda_kernels.pool import reference as pool_reference
from cuda_kernels.resample import ratio, resample
from cuda_kernels.resample import reference as resample_reference
from cuda_kernels.spectral import HOP, N_FFT, NUM_BINS, SpectralEdit, edit_by_spectrogram, edit_spectrogram
from cuda_kernels.spectral import reference as spectral_reference
from cuda_kernels.waveform import WaveformEdit, edit_waveforms
from cuda_kernels.waveform import reference as waveform_reference
from extractor.types import SAMPLE_RATE, Seconds

OURS, DEFINITION, COMPILED, LIBRARY = "ours", "definition", "compiled", "library"

RATE = 1.1  # times as fast
MOST_BINS, MOST_FRAMES = 108, 100  # widest masks: 27 of 80 mel channels are at most that many bins
SNR_DB = 10.0
EPS = 1e-7  # of the normalisation
CHANNELS = 512  # of the CNN's first layer
DIM, FRAMES_A_SECOND = 1024, 50  # of hubert-large
LAYERS = 25
CPU_NORM_RECORDINGS = 4  # the first layer of 64 recordings of 4 s is a gigabyte: minutes on a CPU
LARGER = 16  # times the batch: hundreds of megabytes, several times a GPU's second-level cache
STATISTICS = ("mean", "m2", "min", "max")

COPY_AIM = 0.6  # of a copy's speed
SPECTRAL_AIM = 3.0  # times as fast as torchaudio


@dataclass(frozen=True, slots=True)
class Size:
    """The batch."""

    device: str
    recordings: int
    seconds: Seconds

    @property
    def num_samples(self) -> int:
        """Of one recording at 16 kHz."""
        return round(self.seconds * SAMPLE_RATE)

    def text(self, recordings: int | None = None) -> str:
        return f"{recordings or self.recordings} x {self.seconds:g} s"


@dataclass(frozen=True, slots=True)
class Case:
    """One kernel on one batch."""

    kernel: str
    what: str
    num_bytes: int  # that must be moved: inputs read once, outputs written once
    ways: dict[str, Callable[[], Any]]  # `OURS` and `DEFINITION` give tensors to compare
    library: str  # what the library's way is made of
    missing: dict[str, str] = field(default_factory=dict)  # way -> why it is not there
    # On CUDA: the least share_of_copy and library/ours
    aims: dict[str, float] = field(default_factory=dict)


def cases(size: Size, compiled: bool) -> Iterator[Case]:
    """All of them; ``compiled`` adds torch.compile to one case of each kernel, for it takes its time."""
    yield spectral_edit(size, compiled)
    yield spectral_chain(size)
    yield waveform(size, compiled, given=False)
    yield waveform(size, False, given=True)
    if size.device == "cuda":
        large = Size(size.device, LARGER * size.recordings, size.seconds)
        yield waveform(large, False, given=False, alone=True)
    for rate in (48_000, 44_100, 8_000):
        yield resampling(size, rate)
    yield norm_gelu(size, compiled)
    for dtype in (torch.bfloat16, torch.float32):
        for statistics in (("mean",), STATISTICS):
            yield pooling(size, dtype, statistics, compiled and statistics == STATISTICS)
    if size.device == "cuda":
        yield pooling(size, torch.bfloat16, ("mean",), False, layers=LAYERS)


def noise(size: Size, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal, the same for the same shape and device."""
    generator = torch.Generator(size.device).manual_seed(0)
    return torch.randn(*shape, generator=generator, device=size.device).to(dtype)


def case(
    size: Size,
    kernel: str,
    num_bytes: int,
    ours: Callable[[str], Tensor],
    load_library: Callable[[], Callable[[], Any]],
    library: str,
    one: Callable[[Tensor], Any] | None = None,
    parts: Sequence[Tensor] = (),
    what: str | None = None,
    missing: Mapping[str, str] = MappingProxyType({}),
    aims: Mapping[str, float] = MappingProxyType({}),
) -> Case:
    """``ours`` takes a backend; ``one`` is the definition of one recording, to be compiled, for ``parts``."""
    ways: dict[str, Callable[[], Any]] = {OURS: lambda: ours("auto")}
    without = dict(missing)
    if size.device == "cuda":  # elsewhere ours is the definition
        ways[DEFINITION] = lambda: ours("torch")
    if one is not None:
        compiled = torch.compile(one, dynamic=False)
        ways[COMPILED] = lambda: [compiled(part) for part in parts]
    try:
        ways[LIBRARY] = load_library()
    except ImportError:
        without[LIBRARY] = "torchaudio is not installed"
    return Case(kernel, what or size.text(), num_bytes, ways, library, without, dict(aims))


# --- The spectrogram ----------------------------------------------------------------------------


def spectral_edit(size: Size, compiled: bool) -> Case:
    """Stretch with one frequency mask and one time mask, on spectrograms that are there."""
    num_frames = 1 + size.num_samples // HOP
    # [R, T, F]; torchaudio's are [R, F, T]
    frames = torch.view_as_complex(noise(size, size.recordings, num_frames, NUM_BINS, 2))
    edit = SpectralEdit(
        math.ceil(num_frames / RATE), (RATE, RATE), bands=((20, 20 + MOST_BINS // 2),), spans=((5, 9),)
    )
    lengths, edits = [num_frames] * size.recordings, [edit] * size.recordings
    packed = frames.flatten(0, 1)

    def library() -> Callable[[], Tensor]:
        return partial(torchaudio_edit(size.device), frames.transpose(1, 2).contiguous())

    return case(
        size,
        "spectral edit",
        8 * NUM_BINS * size.recordings * (num_frames + edit.num_frames),
        lambda backend: torch.view_as_real(edit_spectrogram(packed, lengths, edits, backend)),
        library,
        "torchaudio: TimeStretch, FrequencyMasking, TimeMasking",
        (lambda x: spectral_reference.edit_spectrogram(x, [num_frames], [edit])) if compiled else None,
        frames.unbind(),
        aims={"library/ours": SPECTRAL_AIM},
    )


def spectral_chain(size: Size) -> Case:
    """The same from waveform to waveform."""
    n, m = size.num_samples, round(size.num_samples / RATE)
    waveforms, window = noise(size, size.recordings, n), torch.hann_window(N_FFT, device=size.device)
    edit = SpectralEdit(1 + m // HOP, (RATE, RATE), bands=((20, 20 + MOST_BINS // 2),), spans=((5, 9),))
    packed, lengths = waveforms.flatten(), [n] * size.recordings
    edits, wanted = [edit] * size.recordings, [m] * size.recordings

    def library() -> Callable[[], Tensor]:
        edited = torchaudio_edit(size.device)

        def run() -> Tensor:
            frames = torch.stft(
                waveforms, N_FFT, HOP, window=window, pad_mode="constant", return_complex=True
            )
            return torch.istft(edited(frames), N_FFT, HOP, window=window, length=m)

        return run

    return case(
        size,
        "stft, edit, istft",
        4 * size.recordings * (n + m),
        lambda backend: edit_by_spectrogram(packed, lengths, edits, wanted, backend),
        library,
        "torch.stft, torchaudio as above, torch.istft",
    )


def torchaudio_edit(device: str) -> Callable[[Tensor], Tensor]:
    """Complex ``[R, F, T]`` to ``[R, F, T / RATE]``."""
    from torchaudio.transforms import TimeStretch

    stretch, masked = TimeStretch(HOP, NUM_BINS, RATE).to(device), torchaudio_masks(1)
    return lambda frames: masked(stretch(frames))


def torchaudio_masks(pairs: int) -> Callable[[Tensor], Tensor]:
    """So many of each kind, on complex ``[..., F, T]``."""
    from torchaudio.transforms import FrequencyMasking, TimeMasking

    masks = [FrequencyMasking(MOST_BINS), TimeMasking(MOST_FRAMES)] * pairs

    def run(frames: Tensor) -> Tensor:
        # The masks fail on complex numbers; given both parts in front of them, they mask both alike.
        parts = torch.view_as_real(frames).movedim(-1, 0)
        for mask in masks:
            parts = mask(parts)
        return torch.view_as_complex(parts.movedim(0, -1).contiguous())

    return run


# --- The waveform -------------------------------------------------------------------------------


def waveform(size: Size, compiled: bool, given: bool, alone: bool = False) -> Case:
    """Gain, noise at an SNR, one mask, normalisation. ``alone``: nothing to compare with."""
    n = size.num_samples
    x, noises = noise(size, size.recordings, n), noise(size, size.recordings, n)
    mask = (n // 3, n // 3 + n // 20)
    edits = [WaveformEdit(0.7, SNR_DB, None if given else 12345 + i, (mask,)) for i in range(size.recordings)]
    packed, lengths = x.flatten(), [n] * size.recordings
    packed_noise = noises.flatten() if given else None
    same = WaveformEdit(0.7, SNR_DB, 12345, (mask,))

    def library() -> Callable[[], Tensor]:
        from torchaudio.functional import add_noise

        snr = torch.full((size.recordings,), SNR_DB, device=size.device)
        at = torch.arange(n, device=size.device)
        outside = (at < mask[0]) | (at >= mask[1])

        def run() -> Tensor:
            noisy = add_noise(0.7 * x, noises if given else torch.randn_like(x), snr)
            return F.layer_norm(noisy * outside, [n], eps=EPS)

        return run

    made = case(
        size,
        f"waveform chain, {'given' if given else 'white'} noise",
        4 * x.numel() * (3 if given else 2),
        lambda backend: edit_waveforms(packed, lengths, edits, packed_noise, True, backend),
        library,
        f"{'' if given else 'torch.randn, '}torchaudio.functional.add_noise, a product, layer_norm",
        (lambda x: waveform_reference.edit_waveform(x, same, None, True)) if compiled else None,
        x.unbind(),
        aims={"share_of_copy": COPY_AIM},
    )
    if not alone:
        return made
    return replace(made, ways={OURS: made.ways[OURS]}, missing={LIBRARY: "measured on the smaller batch"})


def resampling(size: Size, rate: int) -> Case:
    """To 16 kHz. torchaudio's filter is made as long as ours and of the same window; its own default is a
    tenth as long, and no match for it."""
    up, down = ratio(rate)
    n = round(size.seconds * rate)
    x, lengths = noise(size, size.recordings, n), [n] * size.recordings
    packed = x.flatten()

    def library() -> Callable[[], Tensor]:
        from torchaudio.transforms import Resample

        width = math.ceil(resample_reference.HALF_WIDTH)
        roll_off, beta = (1 + resample_reference.PASS_BAND) / 2, resample_reference.BETA
        return partial(
            Resample(rate, SAMPLE_RATE, "sinc_interp_kaiser", width, roll_off, beta).to(size.device), x
        )

    return case(
        size,
        f"resample, {rate / 1000:g} kHz",
        4 * size.recordings * (n + resample_reference.num_resampled(n, up, down)),
        lambda backend: resample(packed, lengths, up, down, backend)[0],
        library,
        "torchaudio.transforms.Resample, a filter of the same length",
        missing={COMPILED: "resampling keeps its filters in a cache, past which torch.compile goes"},
    )


# --- Frames of the encoder ----------------------------------------------------------------------


def norm_gelu(size: Size, compiled: bool) -> Case:
    """What follows the first convolution: five samples a row."""
    recordings = size.recordings if size.device == "cuda" else min(CPU_NORM_RECORDINGS, size.recordings)
    num_rows = (size.num_samples - 10) // 5 + 1
    x = noise(size, recordings, num_rows, CHANNELS, dtype=torch.bfloat16)
    weight, bias = noise(size, 2, CHANNELS, dtype=torch.bfloat16)
    packed, lengths = x.flatten(0, 1), [num_rows] * recordings
    starts = [i * num_rows for i in range(recordings)]
    channels_first = x.transpose(1, 2).contiguous()  # [R, C, T], as torch wants it

    def one(rows: Tensor) -> Tensor:
        return norm_gelu_reference.group_norm_gelu(rows, [0], [num_rows], weight, bias, 1e-5)

    return case(
        size,
        "norm_gelu, bf16",
        2 * x.numel() * x.element_size(),
        lambda backend: group_norm_gelu(packed, starts, lengths, weight, bias, backend=backend),
        lambda: lambda: F.gelu(F.group_norm(channels_first, CHANNELS, weight, bias)),
        "torch: group_norm, gelu",
        one if compiled else None,
        x.unbind(),
        size.text(recordings),
    )


def pooling(
    size: Size, dtype: torch.dtype, statistics: Sequence[str], compiled: bool, layers: int = 1
) -> Case:
    """Of one layer of hubert-large, or of several at once."""
    num_frames = round(size.seconds * FRAMES_A_SECOND) - 1
    x = noise(size, layers, size.recordings, num_frames, DIM, dtype=dtype)
    packed, lengths = x.flatten(1, 2), [num_frames] * size.recordings
    reductions: Mapping[str, Callable[[Tensor], Tensor]] = {
        "mean": lambda rows: rows.mean(2, dtype=torch.float32),
        "m2": lambda rows: rows.float().var(2, correction=0) * num_frames,
        "min": lambda rows: rows.amin(2),
        "max": lambda rows: rows.amax(2),
    }
    short = {torch.bfloat16: "bf16", torch.float32: "fp32"}[dtype]
    return case(
        size,
        f"pool of {', '.join(statistics)}, {short}",
        x.numel() * x.element_size() + 4 * len(statistics) * layers * size.recordings * DIM,
        lambda backend: torch.cat([*pool_rows(packed, lengths, statistics, backend).values()]),
        lambda: lambda: [reductions[name](x) for name in statistics],
        "torch: a reduction for each statistic",
        (lambda rows: pool_reference.pool_rows(rows, [num_frames], statistics)) if compiled else None,
        x[0].unbind(),
        size.text() + (f", {layers} layers" if layers > 1 else ""),
        aims={"share_of_copy": COPY_AIM},
    )
