"""The GPU check of the kernels and of augmentation, each recording by itself.

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
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from benchmarks.findings import Finding, largest

if TYPE_CHECKING:
    from extractor.augment import Recipe

LENGTHS = (1, 63, 0, 400, 500, 1000, 16_001)  # samples or frames; 0 where a kernel allows it
AUGMENTED = (35_200, 11_111, 64_000)  # samples
LONG = 100_000  # frames: 17 minutes, over which a phase must not drift
# Of what goes through a spectrogram, on two devices: roundings of the transforms turn the phases of weak
# bins, which a stretch or warp carries on to where they are strong. On a CPU, fp32 is up to 1.4e-5 from
# float64 in 4 s of noise, whose bins are all weak at some time; two devices differ by twice that.
SPECTRAL_RELATIVE = 1e-4
# Of all else: one pass in float64, or a filter of a few hundred products, rounded to 6e-8.
WAVEFORM_RELATIVE = 1e-6

# Recordings by index, device, float32 or float64 -> what becomes of each
Run = Callable[[Sequence[int], str, torch.dtype], list[Tensor]]


@dataclass(frozen=True, slots=True)
class Batch:
    """A kernel and recordings to run it on, any of which can be left out."""

    what: str
    num_recordings: int
    limit: float  # relative L2 error of any recording
    run: Run


def check_kernels(device: str) -> Iterator[Finding]:
    """Each kernel's worst error, and how many recordings change with their batch mates: none may."""
    if device == "cuda":
        version("triton")  # where it is missing, the check is skipped by name
    for batch in batches():
        everyone = range(batch.num_recordings)
        truth = batch.run(everyone, "cpu", torch.float64)
        with poisoned_memory():
            results = batch.run(everyone, device, torch.float32)
            alone = [batch.run([i], device, torch.float32)[0] for i in everyone]
        errors = [relative_error(a.cpu(), b) for a, b in zip(results, truth, strict=True)]
        yield Finding("kernels", f"{batch.what}: worst relative error", largest(errors), batch.limit)
        changed = sum(not torch.equal(a, b) for a, b in zip(results, alone, strict=True))
        yield Finding("kernels", f"{batch.what}: recordings that differ when alone", changed, 0)


def relative_error(result: Tensor, truth: Tensor) -> float:
    """||result - truth|| / ||truth|| in double precision; of what must be zero, infinite unless it is."""
    error = (result.to(truth.dtype) - truth).norm().item()
    size = truth.norm().item()
    if size == 0:
        return math.inf if error != 0 else 0.0
    return error / size


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


def backend(device: str, dtype: torch.dtype) -> str:
    """Triton by name on a GPU, which raises where it cannot run; float64 is the definition's."""
    return "triton" if device == "cuda" and dtype == torch.float32 else "torch"


def batches() -> Iterator[Batch]:
    """All kernels; limits are those of their tests, with the reasons there."""
    yield spectral("spectral", LENGTHS[:-1], 5e-6)
    # One frame in eleven is skipped, with two arc tangents, each up to 2e-7 rad off and of either sign: by
    # the end their sum has a spread below 2e-7 sqrt(2 LONG / 10), and no rounding of a sum adds to it.
    yield spectral(f"spectral, {LONG:,} frames", (LONG,), 3 * 2e-7 * math.sqrt(0.2 * LONG), num_bins=37)
    yield spectral_chain()
    yield waveform_chain()
    yield from (resampling(rate) for rate in (8_000, 44_100, 48_000, 96_000))
    yield norm_gelu(torch.float32, 1e-6)
    yield norm_gelu(torch.bfloat16, 2**-8)  # one rounding to 8 bits, at the end
    yield from (pooling(dtype) for dtype in (torch.float32, torch.bfloat16))


def noise(*shape: int) -> Tensor:
    """float64, the same for the same shape."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def spectral(what: str, lengths: Sequence[int], limit: float, num_bins: int = 321) -> Batch:
    from cuda_kernels.spectral import SpectralEdit, edit_spectrogram

    # Rounded to fp32 first: what is measured is the kernel, not its input.
    sources = [torch.complex(noise(n, num_bins).float(), noise(num_bins, n).T.float()) for n in lengths]
    edits = [
        SpectralEdit(math.ceil(n / 1.1), (1.1, 1.1))
        if n == LONG
        else SpectralEdit(
            math.ceil(n / 1.2), (1.3, 0.9), knee=n * 0.4, bands=((0, 2), (30, 37)), spans=((n // 4, n // 2),)
        )
        for n in lengths
    ]

    def run(rows: Sequence[int], device: str, dtype: torch.dtype) -> list[Tensor]:
        packed = torch.cat([sources[i] for i in rows]).to(device, dtype.to_complex())
        chosen = [edits[i] for i in rows]
        edited = edit_spectrogram(packed, [lengths[i] for i in rows], chosen, backend(device, dtype))
        return list(edited.split([edit.num_frames for edit in chosen]))

    return Batch(what, len(lengths), limit, run)


def spectral_chain() -> Batch:
    """From waveform to waveform."""
    from cuda_kernels.spectral import SpectralEdit, edit_by_spectrogram

    sources = [noise(n).float() for n in LENGTHS]
    wanted = [round(n / 1.1) for n in LENGTHS]
    edits = [SpectralEdit(1 + m // 160, (1.1, 1.1), bands=((40, 60),)) for m in wanted]

    def run(rows: Sequence[int], device: str, dtype: torch.dtype) -> list[Tensor]:
        packed = torch.cat([sources[i] for i in rows]).to(device, dtype)
        sizes = [wanted[i] for i in rows]
        lengths, chosen = [LENGTHS[i] for i in rows], [edits[i] for i in rows]
        return list(edit_by_spectrogram(packed, lengths, chosen, sizes, backend(device, dtype)).split(sizes))

    return Batch("spectral, waveform to waveform", len(LENGTHS), SPECTRAL_RELATIVE, run)


def waveform_chain() -> Batch:
    from cuda_kernels.waveform import WaveformEdit, edit_waveforms

    kinds = [
        WaveformEdit(0.5, 10.0, noise_key=2**64 - 3),
        WaveformEdit(2.0, 3.0, masks=((0, 7), (20, 40))),
        WaveformEdit(1.0, -5.0, noise_key=4),
    ]
    edits = [kinds[i % 3] if n > 40 else WaveformEdit(-0.3) for i, n in enumerate(LENGTHS)]
    sources, noises = ([(noise(n + k)[k:] * 0.1 + 0.02).float() for n in LENGTHS] for k in (0, 1))

    def run(rows: Sequence[int], device: str, dtype: torch.dtype) -> list[Tensor]:
        packed, given = (torch.cat([x[i] for i in rows]).to(device, dtype) for x in (sources, noises))
        lengths, chosen = [LENGTHS[i] for i in rows], [edits[i] for i in rows]
        edited = edit_waveforms(packed, lengths, chosen, given, True, backend(device, dtype))
        return list(edited.split(lengths))

    # The noise is drawn in float32: logarithm, root and angle are each a few roundings of 6e-8 off.
    return Batch("waveform chain, normalised", len(LENGTHS), 1e-6, run)


def resampling(rate: int) -> Batch:
    from cuda_kernels.resample import ratio, resample

    sources = [noise(n).float() for n in LENGTHS]

    def run(rows: Sequence[int], device: str, dtype: torch.dtype) -> list[Tensor]:
        packed = torch.cat([sources[i] for i in rows]).to(device, dtype)
        lengths = [LENGTHS[i] for i in rows]
        resampled, sizes = resample(packed, lengths, *ratio(rate), backend(device, dtype))
        return list(resampled.split(sizes))

    return Batch(f"resample, {rate} Hz", len(LENGTHS), 1e-6, run)


def norm_gelu(stored: torch.dtype, limit: float) -> Batch:
    from cuda_kernels.norm_gelu import group_norm_gelu

    channels = 512
    sources = [(noise(n, channels) + 0.5).to(stored) for n in LENGTHS]
    weight, bias = noise(2, channels)

    def run(rows: Sequence[int], device: str, dtype: torch.dtype) -> list[Tensor]:
        held = stored if dtype == torch.float32 else dtype
        lengths = [LENGTHS[i] for i in rows]
        starts = [sum(lengths[:i]) for i in range(len(rows))]
        packed = torch.cat([sources[i] for i in rows]).to(device, held)
        affine = (weight.to(device, held), bias.to(device, held))
        if held == torch.float64:  # from what the kernel is given
            affine = (weight.to(stored).to(device, held), bias.to(stored).to(device, held))
        out = group_norm_gelu(packed, starts, lengths, *affine, backend=backend(device, dtype))
        return list(out.split(lengths))

    return Batch(f"norm_gelu, {str(stored).removeprefix('torch.')}", len(LENGTHS), limit, run)


def pooling(stored: torch.dtype) -> Batch:
    from cuda_kernels.pool import STATISTICS, pool_rows

    lengths = [n for n in LENGTHS if n]
    sources = [(noise(n, 1024) * 3 + 1).to(stored) for n in lengths]

    def run(rows: Sequence[int], device: str, dtype: torch.dtype) -> list[Tensor]:
        held = stored if dtype == torch.float32 else dtype
        packed = torch.cat([sources[i] for i in rows]).to(device, held)
        pooled = pool_rows(packed, [lengths[i] for i in rows], STATISTICS, backend(device, dtype))
        return list(torch.stack(list(pooled.values()), dim=1))  # each [statistics, D]

    what = f"pool of {', '.join(STATISTICS)}, {str(stored).removeprefix('torch.')}"
    return Batch(what, len(lengths), 2e-6, run)


# --- Augmentation -------------------------------------------------------------------------------


def check_augment(device: str) -> Iterator[Finding]:
    """Each kind of augmentation, drawn once, on ``device`` against the CPU; fp32, as users have it."""
    from extractor.augment import Clip, parse_recipe
    from extractor.augment.apply import augment
    from extractor.augment.spectral import MaskSpectrogram, Shift, Stretch

    spectral_kinds = (Stretch, MaskSpectrogram, Shift)
    waveforms = [noise(n).float() * 0.1 for n in AUGMENTED]
    for what, recipe in recipes().items():
        again = parse_recipe(recipe.text)
        there, here = (
            augment(
                [again] * len(waveforms),
                [x.to(on) for x in waveforms],
                {Clip(str(i)): x.to(on) for i, x in enumerate(waveforms)},
            )
            for on in (device, "cpu")
        )
        error = largest(difference(a, b) for a, b in zip(there, here, strict=True))
        limit = SPECTRAL_RELATIVE if any(isinstance(o, spectral_kinds) for o in recipe) else WAVEFORM_RELATIVE
        yield Finding("augment", f"{what}: worst relative error", error, limit)


def recipes() -> dict[str, Recipe]:
    """By the text of what is asked for: each row's defaults, and what these leave out."""
    from extractor.augment import AUGMENTATIONS, LatentMask, Pool, Source, draw, parse

    pool = Pool([Source(str(i), n, "neutral", "speaker") for i, n in enumerate(AUGMENTED)])
    asked = [name for name, row in AUGMENTATIONS.items() if row is not LatentMask]  # no audio: the encoder's
    asked += ["noise:color=pink", "stretch+specaugment+gain+noise+timemask"]
    first = pool.partners(Source("none", 1, "neutral"), "neutral", same_speaker=False)[0]
    return {text: draw(parse(text), first, 7, 1, pool) for text in asked}


def difference(result: Tensor | str, expected: Tensor | str) -> float:
    """Relative; infinite where only one could be made, or where they differ in length."""
    if isinstance(result, str) or isinstance(expected, str) or len(result) != len(expected):
        return math.inf
    return relative_error(result.cpu(), expected.double())
