"""Time stretch, time warp, and frequency and time masks in one pass over complex spectrograms.

A phase vocoder reads the source along a piecewise-linear map of time; bins and frames that are masked
are set to zero in the same pass. Recordings of a batch are packed one behind the other; none is padded,
and none sees another.

    edit_by_spectrogram    waveforms -> analyse -> edit_spectrogram -> synthesise -> waveforms
    analyse, synthesise    the short-time Fourier transform and its inverse
    edit_spectrogram       the edit itself: a Triton kernel on CUDA, PyTorch elsewhere
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from cuda_kernels.backend import resolve
from cuda_kernels.edits import SpectralEdit
from cuda_kernels.spectral.stft import (
    HOP,
    N_FFT,
    NUM_BINS,
    analyse,
    check_packed,
    check_reach,
    count_frames,
    join,
    synthesise,
)

__all__ = ["HOP", "NUM_BINS", "N_FFT", "SpectralEdit", "edit_by_spectrogram", "edit_spectrogram"]

# Output frames at a time: what a block needs (about a dozen arrays of 256 x 321) stays in a core's cache.
BLOCK_FRAMES = 256


def edit_spectrogram(
    spectrogram: Tensor, lengths: Sequence[int], edits: Sequence[SpectralEdit], backend: str = "auto"
) -> Tensor:
    """Each recording's frames edited: ``[sum T, F]`` to ``[sum of num_frames, F]``, in the same dtype.

    ``spectrogram`` is complex64, or complex128, which PyTorch computes in float64 throughout; it may have
    any number of bins and must be finite. ``lengths`` are the ``T``; one may be 0 where its edit asks for
    0 frames. What is not masked in a recording whose rates are (1, 1) is equal bit for bit.

    Raises TypeError for another dtype and for complex128 with ``backend="triton"``, ValueError where an
    edit does not fit its recording or shapes and lengths disagree.
    """
    if spectrogram.dtype not in (torch.complex64, torch.complex128):
        raise TypeError(f"the spectrogram is {spectrogram.dtype}: complex64 or complex128 is wanted")
    check_packed("the spectrogram", spectrogram, 2, lengths)
    _check_edits(lengths, edits, spectrogram.shape[1])
    spectrogram = spectrogram.resolve_conj().resolve_neg()
    if spectrogram.dtype == torch.complex128 and backend == "auto":
        backend = "torch"
    if resolve(backend, spectrogram.device) == "triton":
        if spectrogram.dtype != torch.complex64:
            raise TypeError("the Triton kernel takes complex64; complex128 is computed by backend 'torch'")
        from cuda_kernels.spectral import kernel

        return kernel.edit_spectrogram(spectrogram, lengths, edits)
    counts = [edit.num_frames for edit in edits]
    result = spectrogram.new_empty(sum(counts), spectrogram.shape[1])
    of_each = zip(spectrogram.split(list(lengths)), edits, result.split(counts), strict=True)
    for source, edit, target in of_each:
        if edit.copies:
            target.copy_(source)
        else:
            _stretch(source, edit, target)
        for first, last in edit.bands:
            target[:, first:last] = 0
        for first, last in edit.spans:
            target[first:last] = 0
    return result


def edit_by_spectrogram(
    waveforms: Tensor,
    lengths: Sequence[int],
    edits: Sequence[SpectralEdit],
    num_samples: Sequence[int],
    backend: str = "auto",
) -> Tensor:
    """Waveforms ``[sum n]`` edited as spectrograms: ``[sum num_samples]``, in the same dtype.

    ``lengths`` are the ``n``; recording i has ``1 + n // HOP`` frames, its edit gives ``num_frames``, and
    those give ``num_samples[i]``: a stretch by ``rate`` wants ``round(n / rate)`` samples and one frame
    more than these have whole hops. Errors as of `analyse`, `edit_spectrogram` and `synthesise`.
    """
    counts = [count_frames(n) for n in lengths]
    _check_edits(counts, edits, NUM_BINS)
    check_reach([edit.num_frames for edit in edits], num_samples)
    check_packed("waveforms", waveforms, 1, lengths)
    if not lengths:
        return torch.empty_like(waveforms)
    if waveforms.device.type != "cpu" or len(lengths) == 1:
        edited = edit_spectrogram(analyse(waveforms, lengths), counts, edits, backend)
        return synthesise(edited, [edit.num_frames for edit in edits], num_samples)
    # One recording through all three at a time: what lies between them stays in the cache.
    of_each = zip(waveforms.split(list(lengths)), lengths, edits, num_samples, strict=True)
    return join([edit_by_spectrogram(x, [n], [edit], [wanted], backend) for x, n, edit, wanted in of_each])


def _check_edits(lengths: Sequence[int], edits: Sequence[SpectralEdit], num_bins: int) -> None:
    if len(edits) != len(lengths):
        raise ValueError(f"{len(edits)} edits for {len(lengths)} recordings")
    for i, (num_frames, edit) in enumerate(zip(lengths, edits, strict=True)):
        try:
            edit.check(num_frames, num_bins)
        except ValueError as error:
            raise ValueError(f"recording {i}: {error}") from None


def _stretch(source: Tensor, edit: SpectralEdit, target: Tensor) -> None:
    """The phase vocoder (Flanagan and Golden 1966; as torchaudio's): ``source [T, F]`` into ``target``.

    A phase advances from one output frame to the next as it does between the two source frames that the
    first of them lies between. Output and source frames are equally far apart, so the usual expected
    advance (k / 4 turns in bin k) is subtracted and added back within a whole turn: it drops out, and so
    does all wrapping. Phases are in turns, their sums in float64, where they do not drift.
    """
    magnitudes, angles = _polar(source)  # of each frame once: a phase must leave a sum as it entered it
    turns = angles[:1].double() / math.tau  # [1, F]: where the next block's phases begin
    for first in range(0, len(target), BLOCK_FRAMES):
        block = target[first : first + BLOCK_FRAMES]
        t = torch.arange(first, first + len(block), dtype=torch.float64)  # fp32 would lose the fraction
        position = torch.where(t <= edit.knee, t * edit.rates[0], (t - edit.origin) * edit.rates[1])
        position.clamp_(max=len(source))
        frame = position.long()
        fraction = (position - frame).to(source.device, magnitudes.dtype)[:, None]
        frame = frame.to(source.device)
        before, after = (magnitudes.index_select(0, i) for i in (frame, frame + 1))
        start, end = (angles.index_select(0, i).double() for i in (frame, frame + 1))
        advance = (end - start) / math.tau
        phases = torch.cat([turns, advance]).cumsum(dim=0)  # [frames + 1, F]
        phases -= phases.round()
        turns = phases[-1:]
        radians = phases[:-1].to(fraction.dtype) * math.tau
        magnitude = torch.lerp(before, after, fraction)
        torch.complex(magnitude * radians.cos(), magnitude * radians.sin(), out=block)


def _polar(source: Tensor) -> tuple[Tensor, Tensor]:
    """Magnitudes and angles in radians ``[T + 2, F]``; what lies behind the last frame is zero."""
    # In parts that lie contiguous: torch's abs and angle of complex numbers take twice as long.
    real, imag = (pad(part.contiguous(), (0, 0, 0, 2)) for part in (source.real, source.imag))
    return torch.hypot(real, imag), torch.atan2(imag, real)
