"""A batch's audio on its way to the device: packed, pinned, copied while the batch before is computed.

On a CPU nothing is copied. On CUDA all waveforms of a batch are one copy, from pinned memory and on a
stream of its own, so that neither the thread that asks for it nor the computing waits. Audio that was
left at its recordings' own rates (`DecodeOptions.resample`) is resampled there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from extractor.types import SAMPLE_RATE, Decoded, Failure, Utterance

if TYPE_CHECKING:
    from extractor.augment import Clip, Recipe

ALIGNMENT = 64  # samples, 256 bytes: each waveform begins as if it had been allocated alone


@dataclass(frozen=True, slots=True)
class Job:
    """A planned batch whose audio is there."""

    batch: int
    positions: Sequence[int]
    utterances: Sequence[Utterance]
    decoded: Sequence[Decoded | Failure]  # aligned with utterances
    recipes: Sequence[Recipe] = ()  # aligned with utterances; empty where nothing is augmented
    clips: Mapping[Clip, Decoded | Failure] = field(default_factory=dict)  # what the recipes take in


@dataclass(frozen=True, slots=True)
class Staged:
    """A job whose audio is on its way; ask `arrived` for it."""

    job: Job
    waveforms: Sequence[Tensor]  # float32 [num_samples] each, of what could be decoded, clips behind
    sample_rates: Sequence[int]  # Hz, aligned with `waveforms`
    packed: Tensor | None = None  # what the waveforms are views of, where they were copied
    copied: torch.cuda.Event | None = None


@dataclass(frozen=True, slots=True)
class Audio:
    """What was decoded of a job, on the device, at 16 kHz."""

    utterances: list[Tensor | Failure]  # aligned with the job's
    clips: dict[Clip, Tensor | Failure]


def stage(job: Job, device: torch.device, stream: torch.cuda.Stream | None = None) -> Staged:
    """Begin to move a job's audio to the device; ``stream`` (CUDA) is the one that copies."""
    decoded = [d for d in (*job.decoded, *job.clips.values()) if isinstance(d, Decoded)]
    rates = [d.sample_rate for d in decoded]
    if device.type == "cpu" or not decoded:
        return Staged(job, [torch.from_numpy(d.waveform) for d in decoded], rates)
    host, starts = pack([d.waveform for d in decoded], pinned=device.type == "cuda")
    copied = None
    with torch.cuda.stream(stream) if stream is not None else nullcontext():
        packed = host.to(device, non_blocking=device.type == "cuda")
        if device.type == "cuda":
            copied = torch.cuda.Event()
            copied.record(torch.cuda.current_stream(device))
    waveforms = [packed[s : s + len(d.waveform)] for s, d in zip(starts, decoded, strict=True)]
    return Staged(job, waveforms, rates, packed, copied)


def pack(waveforms: Sequence[np.ndarray], pinned: bool = False) -> tuple[Tensor, list[int]]:
    """float32 ``[num_samples]`` each, end to end in one tensor on the host, and where each begins.

    Each begins at a multiple of `ALIGNMENT`; what lies between them is zero.
    """
    starts, end = [], 0
    for waveform in waveforms:
        starts.append(end)
        end += -(-len(waveform) // ALIGNMENT) * ALIGNMENT
    host = torch.empty(end, pin_memory=pinned)
    samples = host.numpy()
    for i, (start, waveform) in enumerate(zip(starts, waveforms, strict=True)):
        stop = start + len(waveform)
        samples[start:stop] = waveform
        samples[stop : starts[i + 1] if i + 1 < len(starts) else end] = 0
    return host, starts


def arrived(staged: Staged) -> Audio:
    """The audio, for the computing that follows on the current stream; nobody waits but that stream."""
    job, waveforms = staged.job, list(staged.waveforms)
    if staged.copied is not None and staged.packed is not None:
        computing = torch.cuda.current_stream(staged.packed.device)
        computing.wait_event(staged.copied)
        staged.packed.record_stream(computing)  # its memory is not the copying stream's again before that
    for rate in sorted({*staged.sample_rates} - {SAMPLE_RATE}):
        which = [i for i, found in enumerate(staged.sample_rates) if found == rate]
        for i, made in zip(which, _resampled([waveforms[i] for i in which], rate), strict=True):
            waveforms[i] = made
    moved = iter(waveforms)
    whole = [d if isinstance(d, Failure) else next(moved) for d in (*job.decoded, *job.clips.values())]
    n = len(job.decoded)
    return Audio(whole[:n], dict(zip(job.clips, whole[n:], strict=True)))


def _resampled(waveforms: Sequence[Tensor], sample_rate: int) -> Sequence[Tensor]:
    """Several of one rate to 16 kHz: as long as soxr makes them (`segments.resampled`)."""
    from cuda_kernels.resample import ratio, resample

    made, lengths = resample(torch.cat(list(waveforms)), [len(w) for w in waveforms], *ratio(sample_rate))
    return made.split(lengths)
