"""The short-time Fourier transform of a ragged batch, and its inverse.

Frames are centred: frame ``t`` of a recording is its 40 ms around sample ``t * HOP``, with zeros beyond
the ends. A recording alone and the same recording in a batch give the same frames: on a CPU
`edit_by_spectrogram` has each transformed by itself; on a GPU all share the transforms, each row its own, in
groups of a fixed size (`FRAMES_A_TRANSFORM`), so that neither the library's choice of algorithm nor its plan
depends on the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import accumulate

import torch
from torch import Tensor

from cuda_kernels.packing import on_device

N_FFT = 640  # samples a frame: 40 ms at 16 kHz
HOP = 160  # samples from frame to frame: 10 ms
NUM_BINS = N_FFT // 2 + 1  # 25 Hz apart
FRAMES_A_TRANSFORM = 4096

_HOPS = N_FFT // HOP  # frames that cover a sample
_EDGE = N_FFT // 2  # zeros before a recording: its first frame is centred on its first sample


def count_frames(num_samples: int) -> int:
    """Frames of a recording of ``num_samples``."""
    return 1 + num_samples // HOP


def analyse(waveforms: Tensor, lengths: Sequence[int]) -> Tensor:
    """Spectrograms of recordings: complex ``[sum T, NUM_BINS]``, of each ``T = 1 + n // HOP`` frames.

    ``waveforms [sum n]`` float32 or float64 (complex128 then); ``lengths`` the ``n``, which may be 0. The
    window is a periodic Hann's; nothing is scaled. Raises TypeError for another dtype, ValueError where
    shape and lengths disagree.
    """
    if waveforms.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"waveforms are {waveforms.dtype}: float32 or float64 is wanted")
    check_packed("waveforms", waveforms, 1, lengths)
    # Recordings lie in one long signal, each from a multiple of HOP on and with zeros enough about it, so
    # that all frames are one strided view; the _HOPS - 1 frames between two recordings are dropped.
    counts = [count_frames(n) for n in lengths]
    starts = _slots(counts)
    num_frames = _padded_frames(starts[-1], waveforms.device)
    signal = waveforms.new_zeros((num_frames + _HOPS - 1) * HOP)
    _place(signal, waveforms, [s * HOP + _EDGE for s in starts[:-1]], lengths)
    window = _window(waveforms.dtype, waveforms.device)
    frames = signal.unfold(0, N_FFT, HOP)  # [T, N_FFT]
    spectrogram = _transform(frames, lambda block: torch.fft.rfft(block * window))
    return _take(spectrogram, starts[:-1], counts)


def synthesise(spectrogram: Tensor, lengths: Sequence[int], num_samples: Sequence[int]) -> Tensor:
    """The inverse: ``[sum num_samples]`` in the real dtype of ``spectrogram [sum T, NUM_BINS]``.

    Frames are windowed again, added where they overlap and divided by the sum of their squared windows:
    the waveform whose frames come nearest, in squared error, to those given (Griffin and Lim 1984, eq. 6).
    ``num_samples[i]`` reach at most to the end of the last of ``lengths[i]`` frames; take at least
    ``1 + num_samples // HOP`` frames: the divisor is then 1/4 or more, where beyond it sinks towards zero
    and lifts whatever an edit left there. Raises ValueError where shapes and lengths disagree.
    """
    check_packed("spectrogram", spectrogram, 2, lengths)
    check_reach(lengths, num_samples)
    starts = _slots(lengths)
    device = spectrogram.device
    placed = spectrogram.new_zeros(_padded_frames(starts[-1], device), NUM_BINS)
    _place(placed, spectrogram, starts[:-1], lengths)
    window = _window(spectrogram.real.dtype, device)
    frames = _transform(placed, lambda block: torch.fft.irfft(block, n=N_FFT) * window)
    there = window.new_zeros(len(placed))
    _place(there, there.new_ones(()).expand(sum(lengths)), starts[:-1], lengths)
    weights = there[:, None] * window.square()
    from_centre = [s * HOP + _EDGE for s in starts[:-1]]
    added = []
    for x in (frames, weights):  # each sample's terms from the latest frame on
        blocks = x.unflatten(1, (_HOPS, HOP))
        total = x.new_zeros(len(x) + _HOPS - 1, HOP)
        for q in range(_HOPS):
            total[q : q + len(x)] += blocks[:, q]
        added.append(_take(total.flatten(), from_centre, num_samples))
    return added[0] / added[1]


def check_packed(what: str, packed: Tensor, num_axes: int, lengths: Sequence[int]) -> None:
    """ValueError unless ``packed`` has so many axes, the first as long as the ``lengths`` together."""
    if packed.ndim != num_axes or min(lengths, default=0) < 0 or packed.shape[0] != sum(lengths):
        raise ValueError(f"{what} of shape {tuple(packed.shape)} for lengths that add up to {sum(lengths)}")


def check_reach(lengths: Sequence[int], num_samples: Sequence[int]) -> None:
    """ValueError unless each recording's ``num_samples`` can be had from its frames."""
    if len(num_samples) != len(lengths):
        raise ValueError(f"{len(num_samples)} numbers of samples for {len(lengths)} recordings")
    for i, (num_frames, wanted) in enumerate(zip(lengths, num_samples, strict=True)):
        reach = (num_frames - 1) * HOP + N_FFT // 2 if num_frames else 0  # to the end of the last frame
        if not 0 <= wanted <= reach:
            raise ValueError(f"recording {i}: {wanted} samples from {num_frames} frames, which reach {reach}")


def join(parts: list[Tensor]) -> Tensor:
    """`torch.cat`, without copying a single part."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _transform(rows: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """``function`` over groups of rows: fixed in size, which also keeps the memory for frames small."""
    return join([function(block) for block in rows.split(FRAMES_A_TRANSFORM)])


def _slots(counts: Sequence[int]) -> list[int]:
    """Where each recording's frames begin in the long signal, and where the last one's slot ends."""
    return [0, *accumulate(n + _HOPS - 1 for n in counts)]


def _padded_frames(num_frames: int, device: torch.device) -> int:
    """On a GPU, whole transforms."""
    if device.type == "cpu":
        return num_frames
    return -(-num_frames // FRAMES_A_TRANSFORM) * FRAMES_A_TRANSFORM


def _place(slots: Tensor, packed: Tensor, starts: Sequence[int], lengths: Sequence[int]) -> None:
    """Lay each recording's rows into ``slots`` from its start on."""
    if len(lengths) == 1:
        slots[starts[0] : starts[0] + lengths[0]] = packed
    else:
        slots[_rows(starts, lengths, slots.device)] = packed


def _take(slots: Tensor, starts: Sequence[int], lengths: Sequence[int]) -> Tensor:
    """Each recording's rows, from its start on, packed."""
    if len(lengths) == 1:
        return slots[starts[0] : starts[0] + lengths[0]]
    return slots.index_select(0, _rows(starts, lengths, slots.device))


def _rows(starts: Sequence[int], lengths: Sequence[int], device: torch.device) -> Tensor:
    """int64: ``start, start + 1, ...`` of every recording, one behind the other, in a few launches."""
    before = accumulate(lengths, initial=0)
    shifts = [s - b for s, b in zip(starts, before, strict=False)]  # before has the total as well
    table = on_device(torch.tensor([shifts, lengths], dtype=torch.int64), device)
    total = sum(lengths)
    return torch.arange(total, device=device) + table[0].repeat_interleave(table[1], output_size=total)


@cache
def _window(dtype: torch.dtype, device: torch.device) -> Tensor:
    """The periodic Hann window, rounded once from float64."""
    return torch.hann_window(N_FFT, periodic=True, dtype=torch.float64).to(device, dtype)
