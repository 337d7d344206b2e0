"""One batch, from decoded audio to rows: augment -> encode -> pool, window by window, layer by layer."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from extractor.encoders import Encoder, Model
from extractor.encoders.pooling import Arriving, Piece, Pooler
from extractor.errors import SettingsError
from extractor.plan.windows import Window, split_windows
from extractor.run.memory import Memory
from extractor.run.staging import Job, Staged, arrived, stage
from extractor.types import SAMPLE_RATE, BatchResult, Decoded, Failure, LatentMask, Row, Utterance

if TYPE_CHECKING:
    from extractor.augment import Recipe

# Frame-level output of one recording is held in memory until its batch is committed.
MAX_FRAME_BYTES = 4 << 30


@dataclass(frozen=True, slots=True)
class Sound:
    """One utterance, ready to encode."""

    position: int
    utterance: Utterance
    waveform: Tensor  # float32 [num_samples], on the model's device, augmented
    checksum: str  # of the recording as it was decoded
    mask: LatentMask | None


@dataclass(frozen=True, slots=True)
class Embedding:
    """What the encoder made of some utterances, aligned with them."""

    pooled: dict[str, np.ndarray]  # float32 [U, L, D']
    frames: list[np.ndarray]  # float32 [T, L, D] each, or empty
    finite: np.ndarray  # bool [U]

    @classmethod
    def of(cls, arriving: Arriving) -> Embedding:
        """Waits for the device."""
        return cls(arriving.pooled(), arriving.frames, arriving.finite())


@dataclass(frozen=True, slots=True)
class Launched:
    """A job that the device is at work on."""

    job: Job
    sounds: list[Sound]
    failures: list[Failure]
    arriving: Arriving


@dataclass(frozen=True, slots=True)
class BatchEncoder:
    """Turns jobs into results. Safe to call from several threads at once.

    On CUDA a thread waits once a batch, for its results; meanwhile another may launch the next.
    """

    model: Model
    layers: tuple[int, ...]
    poolings: tuple[str, ...]
    window_samples: int
    budget_samples: int  # of audio in a forward pass; a batch that holds more goes in several
    memory: Memory = field(default_factory=Memory)
    launching: threading.Lock = field(default_factory=threading.Lock)  # on CUDA: batches in their order

    def __call__(self, job: Job | Staged) -> BatchResult:
        """``job``: as it was decoded, or `stage`d already, so that its audio is there by now."""
        staged = job if isinstance(job, Staged) else stage(job, self.model.device)
        with self.launching if self.model.device.type == "cuda" else nullcontext():
            launched = self.launch(staged)
        return self.finish(launched)

    def launch(self, staged: Staged) -> Launched:
        """Set the device to work on a job."""
        heard = list(self._sounds(staged))
        failures = [each for each in heard if isinstance(each, Failure)]
        sounds = [each for each in heard if isinstance(each, Sound)]
        return Launched(staged.job, sounds, failures, self._embed(self.model.encoder, sounds))

    def finish(self, launched: Launched) -> BatchResult:
        """Wait for what it gives."""
        job, sounds, failures = launched.job, launched.sounds, launched.failures
        embedding = Embedding.of(launched.arriving)
        precision = [self.model.dtype] * len(sounds)
        for i in np.flatnonzero(~embedding.finite).tolist():
            if self._rerun(embedding, i, sounds[i]):
                precision[i] = "fp32"
        rows = [
            Row(s.position, s.utterance, len(s.waveform), self._num_frames(s), s.checksum, precision[i])
            for i, s in enumerate(sounds)
        ]
        kept = np.flatnonzero(embedding.finite)
        failures += [
            _failed(s.utterance, "encode", "the embedding is not finite, in fp32 either; is the audio sane?")
            for i, s in enumerate(sounds)
            if not embedding.finite[i]
        ]
        return BatchResult(
            job.batch,
            [rows[i] for i in kept],
            {name: values[kept] for name, values in embedding.pooled.items()},
            [embedding.frames[i] for i in kept] if embedding.frames else [],
            failures,
        )

    def _sounds(self, staged: Staged) -> Iterator[Sound | Failure]:
        """Each utterance of the job, augmented, or why it cannot be encoded."""
        job = staged.job
        for i, waveform in enumerate(augmented(job, self.model.device, staged)):
            if isinstance(waveform, Failure):
                yield waveform
                continue
            utterance, decoded = job.utterances[i], job.decoded[i]
            assert isinstance(decoded, Decoded)
            refusal = self._refusal(utterance, len(waveform))
            mask = self._mask(job.recipes[i], len(waveform)) if job.recipes and not refusal else None
            yield refusal or Sound(job.positions[i], utterance, waveform, decoded.checksum, mask)

    def _mask(self, recipe: Recipe, num_samples: int) -> LatentMask | None:
        if recipe.latent is None:
            return None
        encoder = self.model.encoder
        return LatentMask(*recipe.latent.spans(encoder.num_frames(num_samples), encoder.dim))

    def _num_frames(self, sound: Sound) -> int:
        return self.model.encoder.num_frames(len(sound.waveform))

    def _refusal(self, utterance: Utterance, n: int) -> Failure | None:
        encoder = self.model.encoder
        reason = None
        if n < encoder.min_samples:
            reason = (
                f"too short: {n} samples at {SAMPLE_RATE} Hz, the model needs {encoder.min_samples}"
                f" ({1000 * encoder.min_samples / SAMPLE_RATE:.0f} ms)"
            )
        elif "none" in self.poolings:
            size = encoder.num_frames(n) * len(self.layers) * encoder.dim * 4
            if size > MAX_FRAME_BYTES:
                reason = (
                    f"its frames would take {size / 2**30:.1f} GiB in memory;"
                    " choose fewer --layers, or cut it with start and end in a manifest"
                )
        return None if reason is None else _failed(utterance, "encode", reason)

    def _rerun(self, embedding: Embedding, i: int, sound: Sound) -> bool:
        """Replace a row that is not finite by the same in fp32; whether that came out finite."""
        if self.model.dtype == "fp32":
            return False
        again = Embedding.of(self._embed(self.model.in_fp32(), [sound]))
        for name, values in again.pooled.items():
            embedding.pooled[name][i] = values[0]
        if again.frames:
            embedding.frames[i] = again.frames[0]
        embedding.finite[i] = again.finite[0]
        return bool(again.finite[0])

    def _pooler(self, encoder: Encoder, num_utterances: int, windowed: bool) -> Pooler:
        return Pooler(num_utterances, self.layers, encoder.dim, self.poolings, self.model.device, windowed)

    def _embed(self, encoder: Encoder, sounds: Sequence[Sound]) -> Arriving:
        windows = [
            (u, w)
            for u, sound in enumerate(sounds)
            for w in split_windows(
                len(sound.waveform), self.window_samples, encoder.stride, encoder.min_samples
            )
        ]
        pooler = self._pooler(encoder, len(sounds), windowed=len(windows) > len(sounds))
        if not sounds:
            return pooler.arriving()
        with torch.inference_mode():
            # Normalised whole: a window must not be scaled by itself.
            audio = encoder.normalise([sound.waveform for sound in sounds])
            first = 0
            while first < len(windows):
                group = self._group(windows, first)
                masks = [_within(sounds[u].mask, w, encoder.stride) for u, w in group]
                pieces = [audio[u][w.start : w.stop] for u, w in group]
                pooler.begin([Piece(u, w.num_frames, w.keep) for u, w in group])
                if _fits(encoder, pieces, pooler, self.layers[-1], masks):
                    first += len(group)
                else:  # again, in parts
                    self._shrink(group)
            return pooler.arriving()

    def _group(self, windows: Sequence[tuple[int, Window]], first: int) -> Sequence[tuple[int, Window]]:
        """The next windows to encode at once: as many as the budget holds, at least one."""
        budget, filled, last = self.memory.left_of(self.budget_samples), 0, first
        for _, window in windows[first:]:
            filled += window.stop - window.start
            if last > first and filled > budget:
                break
            last += 1
        return windows[first:last]

    def _shrink(self, group: Sequence[tuple[int, Window]]) -> None:
        """Take less from now on. Raises SettingsError where there is no less."""
        num_samples = sum(w.stop - w.start for _, w in group)
        if len(group) == 1:
            raise SettingsError(
                f"--window: {num_samples / SAMPLE_RATE:.1f} s of audio alone do not fit in the memory of"
                f" {self.model.device} beside {self.model.spec}; free some of it, take a shorter --window,"
                " --dtype bf16 or fp16, a smaller model or --device cpu; what is stored stays"
            )
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()  # blocks that were cut for the larger size would be in the way
        self.memory.did_not_fit(num_samples)


def _fits(
    encoder: Encoder,
    pieces: Sequence[Tensor],
    pooler: Pooler,
    last_layer: int,
    masks: Sequence[LatentMask | None],
) -> bool:
    """A forward pass; False where it ran out of memory: then the pooler is as it was before.

    By returning it lets go of the error, and of all tensors that its traceback holds.
    """
    try:
        encoder.forward(pieces, pooler, last_layer, masks)
    except torch.OutOfMemoryError:
        pooler.undo()
        return False
    return True


def _failed(utterance: Utterance, stage: str, reason: str) -> Failure:
    return Failure(utterance.id, utterance.path, stage, reason)


def augmented(job: Job, device: torch.device, staged: Staged | None = None) -> list[Tensor | Failure]:
    """The job's waveforms on the device, each as its recipe says."""
    there = arrived(staged or stage(job, device))
    audio = there.utterances
    unusable = {clip: d for clip, d in there.clips.items() if isinstance(d, Failure)}
    todo: dict[int, Tensor] = {}
    for i, (waveform, recipe) in enumerate(zip(audio, job.recipes, strict=False)):
        if isinstance(waveform, Failure) or not recipe.operations:
            continue
        gone = next((unusable[clip] for clip in recipe.clips if clip in unusable), None)
        if gone is None:
            todo[i] = waveform
        else:
            reason = f"{gone.path}, which it was to be augmented with, cannot be used: {gone.reason}"
            audio[i] = _failed(job.utterances[i], "augment", reason)
    if todo:
        from extractor.augment.apply import augment

        clips = {clip: d for clip, d in there.clips.items() if not isinstance(d, Failure)}
        made = augment([job.recipes[i] for i in todo], [*todo.values()], clips)
        for i, found in zip(todo, made, strict=True):
            audio[i] = _failed(job.utterances[i], "augment", found) if isinstance(found, str) else found
    return audio


def _within(mask: LatentMask | None, window: Window, stride: int) -> LatentMask | None:
    """The part of a recording's mask that lies in one window, in the window's own frames."""
    if mask is None:
        return None
    first, end = window.start // stride, window.num_frames
    frames = [(max(a - first, 0), min(b - first, end)) for a, b in mask.frames]
    return LatentMask([(a, b) for a, b in frames if a < b], mask.channels)
