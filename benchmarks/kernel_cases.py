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
from cuda_kernels.pool import pool_rows
from cuda_kernels.resample import BETA, HALF_WIDTH, PASS_BAND, num_resampled, ratio, resample
from cuda_kernels.spectral import HOP, N_FFT, NUM_BINS, SpectralEdit, edit_by_spectrogram, edit_spectrogram
from cuda_kernels.waveform import WaveformEdit, edit_waveforms
from extractor.types import SAMPLE_RATE, Seconds

OURS, DEFINITION, COMPILED, LIBRARY = "ours", "definition", "compiled", "library"

RATE = 1.1  # times as fast
MOST_BINS, MOST_FRAMES = 108, 100  # widest masks: 27 of 80 mel channels are at most that many bins
SNR_DB = 10.0
EPS = 1e-7  # of the normalisation
CHANNELS = 512  # of the CNN's first layer
DIM, FRAMES_A_SECOND = 1024, 50  # of hubert-large
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


def noise(size: Size, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal, the same for the same shape and device."""
    generator = torch.Generator(size.device).manual_seed(0)
    return torch.randn(*shape, generator=generator, device=size.device).to(dtype)


def case(
    size: Size,
    kernel: str,
    num_bytes: int,
    packed: Tensor,
    ours: Callable[[Tensor, int, str], Tensor],
    library: str,
    load: Callable[[], Callable[[], Any]],
    compiled: bool = False,
    missing: Mapping[str, str] = MappingProxyType({}),
    aims: Mapping[str, float] = MappingProxyType({}),
) -> Case:
    """``ours`` takes packed recordings, how many they are and a backend; ``load`` gives the library's way."""
    ways: dict[str, Callable[[], Any]] = {OURS: lambda: ours(packed, size.recordings, "auto")}
    without = dict(missing)
    if size.device == "cuda":  # elsewhere ours is the definition
        ways[DEFINITION] = lambda: ours(packed, size.recordings, "torch")
    if compiled:
        one = torch.compile(lambda recording: ours(recording, 1, "torch"), dynamic=False)
        ways[COMPILED] = lambda: [one(recording) for recording in packed.chunk(size.recordings)]
    try:
        ways[LIBRARY] = load()
    except ImportError:
        without[LIBRARY] = "torchaudio is not installed"
    what = f"{size.recordings} x {size.seconds:g} s"
    return Case(kernel, what, num_bytes, ways, library, without, dict(aims))


# --- The spectrogram ----------------------------------------------------------------------------


def spectral_edit(size: Size, compiled: bool) -> Case:
    """Stretch with one frequency mask and one time mask, on spectrograms that are there."""
    num_frames = 1 + size.num_samples // HOP
    # [R, T, F]; torchaudio's are [R, F, T]
    frames = torch.view_as_complex(noise(size, size.recordings, num_frames, NUM_BINS, 2))
    edit = SpectralEdit(
        math.ceil(num_frames / RATE), (RATE, RATE), bands=((20, 20 + MOST_BINS // 2),), spans=((5, 9),)
    )

    def ours(x: Tensor, count: int, backend: str) -> Tensor:
        return torch.view_as_real(edit_spectrogram(x, [num_frames] * count, [edit] * count, backend))

    return case(
        size,
        "spectral edit",
        8 * NUM_BINS * size.recordings * (num_frames + edit.num_frames),
        frames.flatten(0, 1),
        ours,
        "torchaudio: TimeStretch, FrequencyMasking, TimeMasking",
        lambda: partial(torchaudio_edit(size.device), frames.transpose(1, 2).contiguous()),
        compiled,
        aims={"library/ours": SPECTRAL_AIM},
    )


def spectral_chain(size: Size) -> Case:
    """The same from waveform to waveform."""
    n, m = size.num_samples, round(size.num_samples / RATE)
    waveforms, window = noise(size, size.recordings, n), torch.hann_window(N_FFT, device=size.device)
    edit = SpectralEdit(1 + m // HOP, (RATE, RATE), bands=((20, 20 + MOST_BINS // 2),), spans=((5, 9),))

    def ours(x: Tensor, count: int, backend: str) -> Tensor:
        return edit_by_spectrogram(x, [n] * count, [edit] * count, [m] * count, backend)

    def load() -> Callable[[], Tensor]:
        edited = torchaudio_edit(size.device)

        def run() -> Tensor:
            frames = torch.stft(
                waveforms, N_FFT, HOP, window=window, pad_mode="constant", return_complex=True
            )
            return torch.istft(edited(frames), N_FFT, HOP, window=window, length=m)

        return run

    num_bytes, library = 4 * size.recordings * (n + m), "torch.stft, torchaudio as above, torch.istft"
    return case(size, "stft, edit, istft", num_bytes, waveforms.flatten(), ours, library, load)


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
    packed_noise = noises.flatten() if given else None

    def ours(x: Tensor, count: int, backend: str) -> Tensor:
        return edit_waveforms(x, [n] * count, edits[:count], packed_noise, True, backend)

    def load() -> Callable[[], Tensor]:
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
        x.flatten(),
        ours,
        f"{'' if given else 'torch.randn, '}torchaudio.functional.add_noise, a product, layer_norm",
        load,
        compiled,
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
    x = noise(size, size.recordings, n)

    def load() -> Callable[[], Tensor]:
        from torchaudio.transforms import Resample

        width = math.ceil(HALF_WIDTH)
        roll_off, beta = (1 + PASS_BAND) / 2, BETA
        transform = Resample(rate, SAMPLE_RATE, "sinc_interp_kaiser", width, roll_off, beta)
        return partial(transform.to(size.device), x)

    return case(
        size,
        f"resample, {rate / 1000:g} kHz",
        4 * size.recordings * (n + num_resampled(n, up, down)),
        x.flatten(),
        lambda x, count, backend: resample(x, [n] * count, up, down, backend)[0],
        "torchaudio.transforms.Resample, a filter of the same length",
        load,
        missing={COMPILED: "resampling keeps its filters in a cache, past which torch.compile goes"},
    )


# --- Frames of the encoder ----------------------------------------------------------------------


def norm_gelu(size: Size, compiled: bool) -> Case:
    """What follows the first convolution: five samples a row."""
    if size.device != "cuda":
        size = replace(size, recordings=min(CPU_NORM_RECORDINGS, size.recordings))
    num_rows = (size.num_samples - 10) // 5 + 1
    x = noise(size, size.recordings, num_rows, CHANNELS, dtype=torch.bfloat16)
    weight, bias = noise(size, 2, CHANNELS, dtype=torch.bfloat16)
    starts = [i * num_rows for i in range(size.recordings)]
    channels_first = x.transpose(1, 2).contiguous()  # [R, C, T], as torch wants it

    def ours(x: Tensor, count: int, backend: str) -> Tensor:
        return group_norm_gelu(x, starts[:count], [num_rows] * count, weight, bias, backend=backend)

    return case(
        size,
        "norm_gelu, bf16",
        2 * x.numel() * x.element_size(),
        x.flatten(0, 1),
        ours,
        "torch: group_norm, gelu",
        lambda: lambda: F.gelu(F.group_norm(channels_first, CHANNELS, weight, bias)),
        compiled,
    )


def pooling(size: Size, dtype: torch.dtype, statistics: Sequence[str], compiled: bool) -> Case:
    """Of one layer of hubert-large."""
    num_frames = round(size.seconds * FRAMES_A_SECOND) - 1
    x = noise(size, size.recordings, num_frames, DIM, dtype=dtype)
    reductions: Mapping[str, Callable[[], Tensor]] = {
        "mean": lambda: x.mean(1, dtype=torch.float32),
        "m2": lambda: x.float().var(1, correction=0) * num_frames,
        "min": lambda: x.amin(1),
        "max": lambda: x.amax(1),
    }

    def ours(x: Tensor, count: int, backend: str) -> Tensor:
        return torch.cat([*pool_rows(x, [num_frames] * count, statistics, backend).values()])

    return case(
        size,
        f"pool of {', '.join(statistics)}, {'bf16' if dtype == torch.bfloat16 else 'fp32'}",
        x.numel() * x.element_size() + 4 * len(statistics) * size.recordings * DIM,
        x.flatten(0, 1),
        ours,
        "torch: a reduction for each statistic",
        lambda: lambda: [reductions[name]() for name in statistics],
        compiled,
        aims={"share_of_copy": COPY_AIM},
    )
