"""Recipes carried out: waveforms in, augmented waveforms out, a batch at a time.

    recipe -> passes (neighbours that one kernel does at once are one pass)
    pass k of all recordings -> one ragged call for each kind of pass

Batches are ragged, and a result does not depend on its batch mates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import groupby
from typing import TypeAlias

import torch
from torch import Tensor

from cuda_kernels.philox import coloured_noise
from cuda_kernels.resample import resample
from cuda_kernels.spectral import SpectralEdit, edit_by_spectrogram
from cuda_kernels.waveform import WaveformEdit, edit_waveforms, silent
from extractor.augment.drawing import Clip, Operation, Operations
from extractor.augment.parameters import Spans
from extractor.augment.spectral import MaskSpectrogram, Shift, Stretch, num_frames, pitch_ratio
from extractor.augment.table import COLOURS, AddNoise, Band, Join, LatentMasks, Recipe, Scale, Silence
from extractor.types import SAMPLE_RATE

Result: TypeAlias = "Tensor | str"  # float32 [n], or why there is none
Todo: TypeAlias = Sequence[Operations]
Waveforms: TypeAlias = Sequence[Tensor]
Clips: TypeAlias = Mapping[Clip, Tensor]
# Of one kind, for several recordings: operations, waveforms, other audio, backend -> results
Pass: TypeAlias = Callable[[Todo, Waveforms, Clips, str], list[Result]]

SILENT = "the recording is silent: there is no level that {} could be matched to"


def augment(
    recipes: Sequence[Recipe],
    waveforms: Waveforms,
    clips: Clips,
    backend: str = "auto",
) -> list[Tensor | str]:
    """Each waveform as its recipe says: float32 ``[n]`` to ``[n']``, or the reason why that cannot be.

    ``waveforms`` at 16 kHz, all on one device (float64 is computed throughout). ``clips`` has the whole
    audio of every `Recipe.clips`, on that device; KeyError where one is missing. ``n'`` is
    ``recipe.num_samples(n)``, save where a joined recording is not as long as was planned. Masks that reach
    beyond the audio are cut. Latent masks are the encoder's. No waveform is changed in place; an empty
    recipe gives its own back.
    """
    plans = [passes(recipe) for recipe in recipes]
    results: list[Result] = [x if len(x) else "the recording has no samples" for x in waveforms]
    for k in range(max(map(len, plans), default=0)):
        todo: dict[Pass, list[int]] = {}
        for i, (plan, x) in enumerate(zip(plans, results, strict=True)):
            if k < len(plan) and not isinstance(x, str):
                todo.setdefault(plan[k][0], []).append(i)
        for run, rows in todo.items():
            audio = [x for x in (results[i] for i in rows) if not isinstance(x, str)]
            done = run([plans[i][k][1] for i in rows], audio, clips, backend)
            for i, result in zip(rows, done, strict=True):
                results[i] = result
    return results


def passes(recipe: Recipe) -> list[tuple[Pass, Operations]]:
    """The recipe's operations by the pass that does them, neighbours together where one pass can."""
    found: list[tuple[Pass, Operations]] = []
    last: tuple[Pass, int] | None = None
    for operation in recipe:
        step = STEPS[type(operation)]
        if step is None:
            continue
        run, place = step
        if last is not None and last[0] is run and last[1] < place:
            found[-1] = (run, (*found[-1][1], operation))
        else:
            found.append((run, (operation,)))
        last = step
    return found


def _spectral(todo: Todo, waveforms: Waveforms, clips: Clips, backend: str) -> list[Result]:
    """A stretch, masks, or a stretch and then masks."""
    edits, lengths = [], []
    for operations, x in zip(todo, waveforms, strict=True):
        rate, n, masks = 1.0, len(x), MaskSpectrogram()
        for operation in operations:
            n = operation.num_samples(n)
            if isinstance(operation, Stretch):
                rate = operation.rate
            elif isinstance(operation, MaskSpectrogram):
                masks = operation
        edits.append(spectral_edit(rate, masks, n))
        lengths.append(n)
    return [*_edited(waveforms, edits, lengths, backend)]


def spectral_edit(rate: float, masks: MaskSpectrogram, n: int) -> SpectralEdit:
    """A stretch to ``n`` samples, then ``masks``, as one map: output frame -> warp -> stretch -> source."""
    T = num_frames(n)
    rates, knee = (rate, rate), 0.0
    if masks.warp_from is not None and masks.warp_to is not None and T > 2:
        # Inside even where the recording is shorter than was planned, and never on an end.
        source, target = (min(max(x, 0.5), T - 1.5) for x in (masks.warp_from, masks.warp_to))
        rates = (rate * (source / target), rate * ((T - 1 - source) / (T - 1 - target)))
        knee = target
    return SpectralEdit(T, rates, knee, masks.bands, _within(masks.spans, T))


def _within(spans: Spans, end: int) -> Spans:
    """The parts of spans that lie before ``end``: a recording may be shorter than its header said."""
    return tuple((first, min(last, end)) for first, last in spans if first < end)


def _pitch(todo: Todo, waveforms: Waveforms, clips: Clips, backend: str) -> list[Result]:
    """Stretch by the ratio, then play so much faster."""
    ratios = [pitch_ratio(operation.semitones) for (operation,) in todo if isinstance(operation, Shift)]
    # Rounded up: resampled back, that is as long as before or a little longer, and is then cut.
    lengths = [math.ceil(len(x) * ratio) for x, ratio in zip(waveforms, ratios, strict=True)]
    edits = [
        SpectralEdit(num_frames(n), (float(1 / ratio), float(1 / ratio)))
        for n, ratio in zip(lengths, ratios, strict=True)
    ]
    stretched = _edited(waveforms, edits, lengths, backend)
    results: list[Result] = [""] * len(todo)
    in_order = sorted(range(len(todo)), key=lambda i: ratios[i])
    for ratio, group in groupby(in_order, key=lambda i: ratios[i]):
        rows = list(group)
        up, down = ratio.denominator, ratio.numerator
        packed, resampled = resample(
            torch.cat([stretched[i] for i in rows]), [lengths[i] for i in rows], up, down, backend
        )
        for i, x in zip(rows, packed.split(resampled), strict=True):
            results[i] = x[: len(waveforms[i])]
    return results


def _edited(
    waveforms: Waveforms, edits: Sequence[SpectralEdit], lengths: Sequence[int], backend: str
) -> list[Tensor]:
    packed = edit_by_spectrogram(
        torch.cat(list(waveforms)), list(map(len, waveforms)), edits, lengths, backend
    )
    return list(packed.split(list(lengths)))


def _waveform(todo: Todo, waveforms: Waveforms, clips: Clips, backend: str) -> list[Result]:
    """Gain, noise, silence: each of them or not, in this order."""
    edits: list[WaveformEdit] = []
    noises: dict[int, Tensor] = {}  # those that are stored
    for i, (operations, x) in enumerate(zip(todo, waveforms, strict=True)):
        gain, snr_db, noise_key = 1.0, None, None
        masks: Spans = ()
        for operation in operations:
            if isinstance(operation, Scale):
                gain = 10 ** (operation.db / 20)
            elif isinstance(operation, Silence):
                masks = _within(operation.spans, len(x))
            elif isinstance(operation, AddNoise):
                snr_db = operation.snr_db
                if operation.color == "white":  # made where it is used, and never stored
                    noise_key = operation.key
                else:
                    noises[i] = _noise(operation, x, clips)
        edits.append(WaveformEdit(gain, snr_db, noise_key, masks))
    results: list[Result] = list(waveforms)
    noisy = [i for i, edit in enumerate(edits) if edit.snr_db is not None]
    for i, no_level in zip(noisy, _silent([waveforms[i] for i in noisy]), strict=True):
        if no_level:
            results[i] = SILENT.format("noise")
    for i, no_level in zip(noises, _silent(list(noises.values())), strict=True):
        if no_level:
            results[i] = "the part of the noise recording that was drawn is silent"
    loud = [i for i, result in enumerate(results) if not isinstance(result, str)]
    if not loud:
        return results
    given = None
    if any(i in noises for i in loud):
        given = torch.cat([noises[i] if i in noises else torch.zeros_like(waveforms[i]) for i in loud])
    lengths = [len(waveforms[i]) for i in loud]
    packed = edit_waveforms(
        torch.cat([waveforms[i] for i in loud]), lengths, [edits[i] for i in loud], given, backend=backend
    )
    for i, x in zip(loud, packed.split(lengths), strict=True):
        results[i] = x
    return results


def _noise(operation: AddNoise, x: Tensor, clips: Clips) -> Tensor:
    """As long as ``x``: of a colour, or cut from a recording."""
    if operation.color is not None and operation.key is not None:
        return coloured_noise(operation.key, len(x), COLOURS[operation.color], x.device, x.dtype)
    clip = operation.clip_needed
    assert clip is not None and operation.start is not None
    return cut(clips[clip], round(operation.start * SAMPLE_RATE), len(x))


def cut(clip: Tensor, start: int, n: int) -> Tensor:
    """``n`` samples of ``clip`` from ``start`` on; behind its end it begins again."""
    if start + n <= len(clip) or not len(clip):
        return clip[start : start + n] if len(clip) else clip.new_zeros(n)
    start %= len(clip)
    return clip.repeat(-(-(start + n) // len(clip)))[start : start + n]


def _silent(waveforms: Waveforms) -> list[bool]:
    return silent(torch.cat(list(waveforms)), list(map(len, waveforms))) if waveforms else []


def _band(todo: Todo, waveforms: Waveforms, clips: Clips, backend: str) -> list[Result]:
    bands = [operation for (operation,) in todo if isinstance(operation, Band)]
    return [band_pass(x, band.low, band.high) for x, band in zip(waveforms, bands, strict=True)]


# The filter is linear-phase FIR, applied without its delay, by FFT: a sinc under a Kaiser window (Oppenheim
# and Schafer, Discrete-Time Signal Processing, section 7.5.3), 80 dB down from half a transition width
# outside an edge on, flat within 0.001 dB from half of one inside it on; at the edge itself 6 dB down.
# 100 Hz of transition take 401 samples, 25 ms, on either side.
ATTENUATION_DB = 80.0
TRANSITION = 100.0  # Hz
# Kaiser's formulas for the window's shape and for its half width in samples.
BETA = 0.1102 * (ATTENUATION_DB - 8.7)
HALF_WIDTH = math.ceil((ATTENUATION_DB - 7.95) / (2.285 * 2 * math.pi * TRANSITION / SAMPLE_RATE) / 2)


def band_pass(x: Tensor, low: float, high: float) -> Tensor:
    """``[n] -> [n]``, float32 or float64, with what lies outside ``low`` to ``high`` Hz removed.

    Zero phase: nothing moves in time. Beyond both ends there is silence. 0 and 8000 Hz are no edges.
    """
    # Behind x as many zeros as the filter reaches, so that nothing wraps around; and one of few sizes that
    # FFTs are fast at, 17 to 32 times a power of two, so that responses are found again.
    least = max(len(x) + HALF_WIDTH, 2 * HALF_WIDTH + 1)
    step = 1 << max(least.bit_length() - 5, 0)
    n_fft = -(-least // step) * step
    response = _response(low, high, n_fft).to(x.device, x.dtype)
    return torch.fft.irfft(torch.fft.rfft(x, n=n_fft).mul_(response), n=n_fft)[: len(x)]


def impulse_response(low: float, high: float) -> Tensor:
    """float64 ``[2 * HALF_WIDTH + 1]``, symmetric about its middle, which is time 0."""
    time = torch.arange(-HALF_WIDTH, HALF_WIDTH + 1, dtype=torch.float64)
    window = torch.special.i0(BETA * (1 - (time / HALF_WIDTH).square()).sqrt())
    return (_low_pass(time, high) - _low_pass(time, low)) * (window / window.max())


def _low_pass(time: Tensor, edge: float) -> Tensor:
    """The ideal low-pass at ``edge`` Hz; at half the sample rate it is exactly the identity."""
    if edge == SAMPLE_RATE / 2:
        return (time == 0).to(time.dtype)
    share = 2 * edge / SAMPLE_RATE
    return share * torch.sinc(share * time)


@lru_cache(maxsize=16)
def _response(low: float, high: float, n_fft: int) -> Tensor:
    """float64 ``[n_fft / 2 + 1]``: the filter's gain at each frequency, real because it has no delay."""
    circular = torch.zeros(n_fft, dtype=torch.float64)
    filter_ = impulse_response(low, high)
    circular[: HALF_WIDTH + 1] = filter_[HALF_WIDTH:]
    circular[-HALF_WIDTH:] = filter_[:HALF_WIDTH]
    return torch.fft.rfft(circular).real


def _join(todo: Todo, waveforms: Waveforms, clips: Clips, backend: str) -> list[Result]:
    """The other recording at this one's RMS, before or behind it."""
    joins = [operation for (operation,) in todo if isinstance(operation, Join)]
    others = [clips[Clip(join.clip)] for join in joins]
    results: list[Result] = []
    silences = zip(_silent(waveforms), _silent(others), strict=True)
    for join, x, other, (no_level, nothing) in zip(joins, waveforms, others, silences, strict=True):
        if no_level:
            results.append(SILENT.format("another recording"))
        elif nothing:
            results.append(f"the other recording, {join.clip!r}, is silent: it has no level to match")
        else:
            # In float64: the squares of quiet float32 samples would vanish.
            own, its = (wave.double().square().mean().sqrt() for wave in (x, other))
            matched = other * (own / its).to(other.dtype)
            results.append(torch.cat([x, matched] if join.at == "end" else [matched, x]))
    return results


# Which pass does an operation, and its place there: neighbours of one pass that come in the order of their
# places are done at once. None: not done to the waveform.
STEPS: dict[type[Operation], tuple[Pass, int] | None] = {
    Stretch: (_spectral, 0),
    MaskSpectrogram: (_spectral, 1),
    LatentMasks: None,
    AddNoise: (_waveform, 1),
    Join: (_join, 0),
    Shift: (_pitch, 0),
    Silence: (_waveform, 2),
    Band: (_band, 0),
    Scale: (_waveform, 0),
}
