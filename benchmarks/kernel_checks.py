"""Each kernel, and each augmentation, on a GPU: against its definition, each recording by itself.

Every kernel runs natively on a ragged batch of odd lengths; truth is its own definition in float64 on the
CPU. An augmentation's audio on the GPU is held against that on the CPU.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import TypeAlias

import torch
from torch import Tensor

from benchmarks.findings import Finding, largest, relative_error
from cuda_kernels.add_norm import add_norm
from cuda_kernels.attention import GatedBias, attend_packed
from cuda_kernels.norm_gelu import group_norm_gelu
from cuda_kernels.packing import pack
from cuda_kernels.pool import STATISTICS, pool_rows
from cuda_kernels.positional_conv import lay_out, positional_conv
from cuda_kernels.resample import ratio, resample
from cuda_kernels.spectral import SpectralEdit, edit_by_spectrogram, edit_spectrogram
from cuda_kernels.waveform import WaveformEdit, edit_waveforms

LENGTHS = (1, 63, 0, 400, 500, 1000, 16_001)  # samples or frames; 0 where a kernel allows it
FRAMES = (1, 63, 0, 400, 127, 500, 1000, 3)  # of the encoder's layers
LONGEST = 1024  # frames that attention's biases have distances for
AUGMENTED = (35_200, 11_111, 64_000)  # samples
LONG = 100_000  # frames: 17 minutes, over which a phase must not drift
# Of what goes through a spectrogram, on two devices: roundings of the transforms turn the phases of weak
# bins, which a stretch or warp carries on to where they are strong. On a CPU, fp32 is up to 1.4e-5 from
# float64 in 4 s of noise, whose bins are all weak at some time; two devices differ by twice that.
SPECTRAL_RELATIVE = 1e-4
# Of all else: one pass in float64, or a filter of a few hundred products, rounded to 6e-8.
WAVEFORM_RELATIVE = 1e-6
# fp32: a hundred roundings of 6e-8, of random sign. Half: the weights or the inputs of the last sum, and the
# result, are each rounded to 8 or 11 bits.
LAYER_RELATIVE = {torch.float32: 2e-6, torch.bfloat16: 2 * 2**-8, torch.float16: 2 * 2**-11}
CONV_RELATIVE = 6e-6  # in fp32: 8,192 products a sum, one behind the other

Ragged: TypeAlias = tuple[Tensor, Sequence[int]]  # packed, and the length of each
# Packed recordings, which ones they are, their lengths, and the backend
Call: TypeAlias = Callable[[Tensor, Sequence[int], list[int], str], Ragged]


@dataclass(frozen=True, slots=True)
class KernelBatch:
    """A kernel and recordings to run it on, any of which can be left out."""

    what: str
    sources: Sequence[Tensor]  # as they are stored: what is measured is the kernel, not its input
    limit: float  # relative L2 error of any recording
    call: Call

    def run(self, rows: Sequence[int], device: str, exact: bool) -> list[Tensor]:
        """What becomes of each: by the kernel as hser runs it, or by its definition in float64."""
        sources = [self.sources[i] for i in rows]
        packed = torch.cat(sources).to(device)
        if exact:
            packed = packed.to(torch.complex128 if packed.is_complex() else torch.float64)
        # Triton by name on a GPU, which raises where it cannot run.
        backend = "triton" if device == "cuda" and not exact else "torch"
        packed, lengths = self.call(packed, rows, [len(x) for x in sources], backend)
        return list(packed.split(list(lengths)))


def check(name: str, batch: KernelBatch, device: str, unit: str = "recordings") -> Iterator[Finding]:
    """The worst error, and how many recordings change with their batch mates: none may."""
    everyone = range(len(batch.sources))
    truth = batch.run(everyone, "cpu", exact=True)
    with poisoned_memory():
        results = batch.run(everyone, device, exact=False)
        alone = [batch.run([i], device, exact=False)[0] for i in everyone]
    errors = [relative_error(a.cpu(), b) for a, b in zip(results, truth, strict=True)]
    yield Finding(name, f"{batch.what}: worst relative error", largest(errors), batch.limit)
    changed = sum(not torch.equal(a, b) for a, b in zip(results, alone, strict=True))
    yield Finding(name, f"{batch.what}: {unit} that differ when alone", changed, 0)


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fresh memory is NaN: an output that is never written cannot pass."""
    with warnings.catch_warnings():
        # Deterministic mode fills the memory; that some operations cannot be had in it is no matter here.
        warnings.simplefilter("ignore", UserWarning)
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(False)


def noise(*shape: int) -> Tensor:
    """float64, the same for the same shape."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# --- Audio and frames ---------------------------------------------------------------------------


def check_kernels(device: str, lengths: Sequence[int] = LENGTHS, long: int = LONG) -> Iterator[Finding]:
    """The kernels that augmentation, decoding and pooling call."""
    if device == "cuda":
        version("triton")  # where it is missing, the check is skipped by name
    for batch in batches(lengths, long):
        yield from check("kernels", batch, device)


def batches(lengths: Sequence[int], long: int) -> Iterator[KernelBatch]:
    """Limits are those of the kernels' tests, with the reasons there."""
    edits = [
        SpectralEdit(
            math.ceil(n / 1.2), (1.3, 0.9), knee=n * 0.4, bands=((0, 2), (30, 37)), spans=((n // 4, n // 2),)
        )
        for n in lengths[:-1]
    ]
    yield spectral("spectral", lengths[:-1], edits, 5e-6, num_bins=321)
    # One frame in eleven is skipped, with two arc tangents, each up to 2e-7 rad off and of either sign: by
    # the end their sum has a spread below 2e-7 sqrt(2 LONG / 10), and no rounding of a sum adds to it.
    limit, slower = 3 * 2e-7 * math.sqrt(0.2 * long), SpectralEdit(math.ceil(long / 1.1), (1.1, 1.1))
    yield spectral(f"spectral, {long:,} frames", [long], [slower], limit, num_bins=37)
    waveforms = [noise(n).float() for n in lengths]
    yield spectral_chain(waveforms)
    yield waveform_chain(lengths)
    for rate in (8_000, 44_100, 48_000, 96_000):
        yield KernelBatch(
            f"resample, {rate} Hz",
            waveforms,
            1e-6,
            lambda x, rows, n, backend, rate=rate: resample(x, n, *ratio(rate), backend),  # type: ignore[misc]
        )
    yield normalised(lengths, torch.float32, 1e-6)
    yield normalised(lengths, torch.bfloat16, 2**-8)  # one rounding to 8 bits, at the end

    def pooled(x: Tensor, rows: Sequence[int], lengths: list[int], backend: str) -> Ragged:
        return torch.stack([*pool_rows(x, lengths, STATISTICS, backend).values()], dim=1), [1] * len(lengths)

    for stored in (torch.float32, torch.bfloat16):
        sources = [(noise(n, 1024) * 3 + 1).to(stored) for n in lengths if n]
        yield KernelBatch(f"pool of {', '.join(STATISTICS)}, {named(stored)}", sources, 2e-6, pooled)


def spectral(
    what: str, lengths: Sequence[int], edits: Sequence[SpectralEdit], limit: float, num_bins: int
) -> KernelBatch:
    def call(x: Tensor, rows: Sequence[int], lengths: list[int], backend: str) -> Ragged:
        chosen = [edits[i] for i in rows]
        return edit_spectrogram(x, lengths, chosen, backend), [edit.num_frames for edit in chosen]

    sources = [torch.complex(noise(n, num_bins).float(), noise(num_bins, n).T.float()) for n in lengths]
    return KernelBatch(what, sources, limit, call)


def spectral_chain(waveforms: Sequence[Tensor]) -> KernelBatch:
    """From waveform to waveform."""
    sizes = [round(len(x) / 1.1) for x in waveforms]
    edits = [SpectralEdit(1 + m // 160, (1.1, 1.1), bands=((40, 60),)) for m in sizes]

    def call(x: Tensor, rows: Sequence[int], lengths: list[int], backend: str) -> Ragged:
        wanted = [sizes[i] for i in rows]
        return edit_by_spectrogram(x, lengths, [edits[i] for i in rows], wanted, backend), wanted

    return KernelBatch("spectral, waveform to waveform", waveforms, SPECTRAL_RELATIVE, call)


def waveform_chain(lengths: Sequence[int]) -> KernelBatch:
    kinds = [
        WaveformEdit(0.5, 10.0, noise_key=2**64 - 3),
        WaveformEdit(2.0, 3.0, masks=((0, 7), (20, 40))),
        WaveformEdit(1.0, -5.0, noise_key=4),
    ]
    edits = [kinds[i % 3] if n > 40 else WaveformEdit(-0.3) for i, n in enumerate(lengths)]
    sources, noises = ([(noise(n + k)[k:] * 0.1 + 0.02).float() for n in lengths] for k in (0, 1))

    def call(x: Tensor, rows: Sequence[int], lengths: list[int], backend: str) -> Ragged:
        given = torch.cat([noises[i] for i in rows]).to(x)
        return edit_waveforms(x, lengths, [edits[i] for i in rows], given, True, backend), lengths

    # The noise is drawn in float32: logarithm, root and angle are each a few roundings of 6e-8 off.
    return KernelBatch("waveform chain, normalised", sources, 1e-6, call)


def normalised(lengths: Sequence[int], stored: torch.dtype, limit: float) -> KernelBatch:
    """What follows the CNN's first convolution."""
    channels = 512
    affine = noise(2, channels).to(stored)

    def call(x: Tensor, rows: Sequence[int], lengths: list[int], backend: str) -> Ragged:
        weight, bias = affine.to(x)
        starts = [sum(lengths[:i]) for i in range(len(lengths))]
        return group_norm_gelu(x, starts, lengths, weight, bias, backend=backend), lengths

    sources = [(noise(n, channels) + 0.5).to(stored) for n in lengths]
    return KernelBatch(f"norm_gelu, {named(stored)}", sources, limit, call)


# --- The encoder's layers -----------------------------------------------------------------------


def check_layer_kernels(device: str, attention: bool, lengths: Sequence[int] = FRAMES) -> Iterator[Finding]:
    """Attention, or the layer's other kernels, in each dtype."""
    # Triton's interpreter, on CPUs, has no bf16 products.
    half = (torch.bfloat16, torch.float16) if device == "cuda" else (torch.float16,)
    for dtype in (torch.float32, *half):
        for batch in attentions(device, lengths, dtype) if attention else around_attention(lengths, dtype):
            yield from check("layers-kernels", batch, device, "utterances")


def attentions(device: str, lengths: Sequence[int], stored: torch.dtype) -> Iterator[KernelBatch]:
    """Our kernel, with and without bias, and PyTorch's where it runs."""
    from extractor.encoders.fused import ATTENTION, best_attention

    def attention(
        what: str, num_heads: int, head_dim: int, gated: bool = False, name: str = ""
    ) -> KernelBatch:
        D = num_heads * head_dim
        values = noise(sum(lengths), 3 * D + 2 * num_heads)
        values[:, :D] *= head_dim**-0.5
        vector, const = (noise(num_heads, n).to(stored) for n in (2 * LONGEST - 1, 1))

        def call(x: Tensor, rows: Sequence[int], lengths: list[int], backend: str) -> Ragged:
            packing, qkv = pack(lengths, x.device, LONGEST), x[:, : 3 * D]
            bias = GatedBias(vector.to(x), x[:, 3 * D :], const[:, 0].to(x)) if gated else None
            if name and x.dtype != torch.float64:
                return ATTENTION[name](qkv, packing, num_heads, "auto"), lengths
            return attend_packed(qkv, packing, num_heads, bias), lengths

        sources = values.to(stored).split(list(lengths))
        return KernelBatch(f"{what}, {named(stored)}", sources, LAYER_RELATIVE[stored], call)

    for num_heads, head_dim in ((2, 64), (2, 80), (4, 12)):
        yield attention(f"attention, heads of {head_dim}", num_heads, head_dim)
        yield attention(f"attention, heads of {head_dim}, gated bias", num_heads, head_dim, gated=True)
    if best_attention(stored, torch.device(device), 64) == "varlen":
        yield attention("attention, PyTorch's", 2, 64, name="varlen")


def around_attention(lengths: Sequence[int], stored: torch.dtype) -> Iterator[KernelBatch]:
    """The sum and norm, and the positional convolution."""
    D, groups, width, taps = 1024, 4, 64, 128
    norm = noise(2, D).to(stored)
    kernel = (noise(groups * width, width, taps) / (width * taps) ** 0.5).to(stored)
    bias = noise(groups * width).to(stored)

    def sum_and_norm(x: Tensor, rows: Sequence[int], lengths: list[int], backend: str) -> Ragged:
        weight, shift = norm.to(x)
        return torch.cat(add_norm(x[:, :D], x[:, D:], weight, shift, 1e-5), dim=1), lengths

    def convolve(x: Tensor, rows: Sequence[int], lengths: list[int], backend: str) -> Ragged:
        laid_out = lay_out(kernel.to(x), groups)
        return positional_conv(x, pack(lengths, x.device), laid_out, bias.to(x), x), lengths

    limit = LAYER_RELATIVE[stored]
    for what, columns, most, call in (
        ("sum and norm", 2 * D, limit, sum_and_norm),
        ("positional convolution", groups * width, max(CONV_RELATIVE, limit), convolve),
    ):
        sources = noise(sum(lengths), columns).to(stored).split(list(lengths))
        yield KernelBatch(f"{what}, {named(stored)}", sources, most, call)


# --- Augmentation -------------------------------------------------------------------------------


def check_augment(device: str) -> Iterator[Finding]:
    """Each kind of augmentation, drawn once, on ``device`` against the CPU; fp32, as users have it.

    Each row of the table with its defaults, and what these leave out.
    """
    from extractor.augment import AUGMENTATIONS, Clip, LatentMask, Original, Pool, draw, parse, parse_recipe
    from extractor.augment.apply import augment
    from extractor.augment.spectral import MaskSpectrogram, Shift, Stretch

    pool = Pool([Original(str(i), n, "neutral", "speaker") for i, n in enumerate(AUGMENTED)])
    first = pool.partners(Original("none", 1, "neutral"), "neutral", same_speaker=False)[0]
    texts = [name for name, row in AUGMENTATIONS.items() if row is not LatentMask]  # no audio: the encoder's
    waveforms = [noise(n).float() * 0.1 for n in AUGMENTED]
    for text in (*texts, "noise:color=pink", "stretch+specaugment+gain+noise+timemask"):
        recipe = draw(parse(text), first, 7, 1, pool)
        there, here = (
            augment(
                [parse_recipe(recipe.text)] * len(waveforms),
                [x.to(on) for x in waveforms],
                {Clip(str(i)): x.to(on) for i, x in enumerate(waveforms)},
            )
            for on in (device, "cpu")
        )
        # Infinite where only one could be made, or where they differ in length
        errors = [
            relative_error(a.cpu(), b.double())
            if isinstance(a, Tensor) and isinstance(b, Tensor) and len(a) == len(b)
            else math.inf
            for a, b in zip(there, here, strict=True)
        ]
        spectral = any(isinstance(operation, (Stretch, MaskSpectrogram, Shift)) for operation in recipe)
        limit = SPECTRAL_RELATIVE if spectral else WAVEFORM_RELATIVE
        yield Finding("augment", f"{text}: worst relative error", largest(errors), limit)
