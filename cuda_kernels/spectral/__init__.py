"""Time stretch, time warp, and frequency and time masks in one pass over complex spectrograms.

A phase vocoder reads the source along a piecewise-linear map of time; bins and frames that are masked
are set to zero in the same pass. Recordings of a batch are packed one behind the other; none is padded,
and none sees another.

    edit_by_spectrogram    waveforms -> analyse -> edit_spectrogram -> synthesise -> waveforms
    analyse, synthesise    the short-time Fourier transform and its inverse
    edit_spectrogram       the edit itself: a Triton kernel on CUDA, PyTorch elsewhere
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cuda_kernels.backend import resolve
from cuda_kernels.spectral import reference
from cuda_kernels.spectral.reference import SpectralEdit
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

__all__ = [
    "HOP",
    "NUM_BINS",
    "N_FFT",
    "SpectralEdit",
    "analyse",
    "edit_by_spectrogram",
    "edit_spectrogram",
    "synthesise",
]


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
    if resolve(backend, spectrogram.device) == "torch":
        return reference.edit_spectrogram(spectrogram, lengths, edits)
    if spectrogram.dtype != torch.complex64:
        raise TypeError("the Triton kernel takes complex64; complex128 is computed by backend 'torch'")
    from cuda_kernels.spectral import kernel

    return kernel.edit_spectrogram(spectrogram, lengths, edits)


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
