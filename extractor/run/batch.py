"""One batch, from decoded audio to rows: to the device -> augment -> encode -> pool, layer by layer.

On a CPU nothing is copied. On CUDA all waveforms of a batch are one copy, from pinned memory and on a
stream of its own, so that neither the thread that asks for it nor the computing waits. Audio that was
left at its recordings' own rates (`DecodeOptions.resample`) is resampled there.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from extractor.encoders import Encoder, Model
from extractor.encoders.pooling import Embeddings, Pooler
from extractor.errors import SettingsError
from extractor.plan.windows import split_windows
from extractor.run.memory import Memory
from extractor.types import SAMPLE_RATE, BatchResult, Decoded, Failure, LatentMask, Piece, Row, Utterance

if TYPE_CHECKING:
    from extractor.augment import Clip, Recipe

ALIGNMENT = 64  # samples, 256 bytes: each waveform begins as if it had been allocated alone
# Frame-level output of one recording is held in memory until its batch is committed.
MAX_FRAME_BYTES = 4 << 30


@dataclass(frozen=True, slots=True)
class DecodedRow:
    """A recording of a batch that could be decoded."""

    position: int  # in the run's manifest
    utterance: Utterance
    decoded: Decoded
    recipe: Recipe | None = None  # how it is augmented


@dataclass(frozen=True, slots=True)
class DecodedBatch:
    """A planned batch whose audio is there. What failed on the way is in no row."""

    index: int  # in the run's plan
    rows: Sequence[DecodedRow]
    failures: Sequence[Failure] = ()
    clips: Mapping[Clip, Decoded] = field(default_factory=dict)  # other audio, which the recipes take in

    @classmethod
    def of(
        cls,
        index: int,
        positions: Sequence[int],
        utterances: Sequence[Utterance],
        decoded: Sequence[Decoded | Failure],
        recipes: Sequence[Recipe] = (),
        clips: Sequence[Clip] = (),
    ) -> DecodedBatch:
        """``decoded``: of the utterances, then of the clips. ``recipes``: none, or one an utterance."""
        rows: list[DecodedRow] = []
        failures: list[Failure] = []
        taken = dict(zip(clips, decoded[len(utterances) :], strict=True))
        for i, (position, utterance) in enumerate(zip(positions, utterances, strict=True)):
            audio, recipe = decoded[i], recipes[i] if recipes else None
            needed = [taken[clip] for clip in recipe.clips] if recipe else []
            lost = next((each for each in needed if isinstance(each, Failure)), None)
            if isinstance(audio, Failure):
                failures.append(audio)
            elif lost is not None:
                reason = f"{lost.path}, which it was to be augmented with, cannot be used: {lost.reason}"
                failures.append(_failed(utterance, "augment", reason))
            else:
                rows.append(DecodedRow(position, utterance, audio, recipe))
        there = {clip: each for clip, each in taken.items() if isinstance(each, Decoded)}
        return cls(index, rows, failures, there)


@dataclass(frozen=True, slots=True)
class DeviceBatch:
    """A decoded batch whose audio is on its way to the device: see `arrived`."""

    batch: DecodedBatch
    waveforms: Sequence[Tensor]  # float32 [num_samples] each, at its own rate: of the rows, then the clips
    packed: Tensor | None = None  # what the waveforms are views of, where they were copied
    copied: torch.cuda.Event | None = None


def stage(batch: DecodedBatch, device: torch.device, stream: torch.cuda.Stream | None = None) -> DeviceBatch:
    """Begin to move a batch's audio to the device; ``stream`` (CUDA) is the one that copies."""
    waveforms = [each.waveform for each in _audio(batch)]
    if device.type == "cpu" or not waveforms:
        return DeviceBatch(batch, [torch.from_numpy(waveform) for waveform in waveforms])
    host, starts = pack(waveforms, pinned=device.type == "cuda")
    copied = None
    with torch.cuda.stream(stream) if stream is not None else nullcontext():
        packed = host.to(device, non_blocking=device.type == "cuda")
        if device.type == "cuda":
            copied = torch.cuda.Event()
            copied.record(torch.cuda.current_stream(device))
    views = [packed[start : start + len(w)] for start, w in zip(starts, waveforms, strict=True)]
    return DeviceBatch(batch, views, packed, copied)


def _audio(batch: DecodedBatch) -> list[Decoded]:
    return [*(row.decoded for row in batch.rows), *batch.clips.values()]


def pack(waveforms: Sequence[np.ndarray], pinned: bool = False) -> tuple[Tensor, list[int]]:
    """float32 ``[num_samples]`` each, end to end in one tensor on the host, and where each begins.

    Each begins at a multiple of `ALIGNMENT`; what lies between them is zero.
    """
    starts = np.cumsum([0, *(-(-len(waveform) // ALIGNMENT) * ALIGNMENT for waveform in waveforms)]).tolist()
    host = torch.empty(starts[-1], pin_memory=pinned)
    samples = host.numpy()
    for start, end, waveform in zip(starts[:-1], starts[1:], waveforms, strict=True):
        samples[start : start + len(waveform)] = waveform
        samples[start + len(waveform) : end] = 0
    return host, starts[:-1]


def arrived(there: DeviceBatch) -> list[Tensor]:
    """The audio at 16 kHz, for what is computed next on the current stream: nobody waits but that stream.

    float32 ``[num_samples]`` each: of the batch's rows, then of its clips.
    """
    if there.copied is not None and there.packed is not None:
        computing = torch.cuda.current_stream(there.packed.device)
        computing.wait_event(there.copied)
        there.packed.record_stream(computing)  # its memory is not the copying stream's again before that
    waveforms = list(there.waveforms)
    rates = [each.sample_rate for each in _audio(there.batch)]
    for rate in sorted({*rates} - {SAMPLE_RATE}):
        from cuda_kernels.resample import ratio, resample

        # As long as soxr makes them.
        which = [i for i, found in enumerate(rates) if found == rate]
        some = [waveforms[i] for i in which]
        made, lengths = resample(torch.cat(some), [len(waveform) for waveform in some], *ratio(rate))
        for i, waveform in zip(which, made.split(lengths), strict=True):
            waveforms[i] = waveform
    return waveforms


def augmented(there: DeviceBatch) -> tuple[list[tuple[DecodedRow, Tensor]], list[Failure]]:
    """The rows with their waveforms, each as its recipe says; and what failed, up to here."""
    rows, audio = there.batch.rows, arrived(there)
    results: dict[int, Tensor | str] = dict(enumerate(audio[: len(rows)]))
    recipes = {i: row.recipe for i, row in enumerate(rows) if row.recipe}  # one without operations is empty
    if recipes:
        from extractor.augment.apply import augment

        clips = dict(zip(there.batch.clips, audio[len(rows) :], strict=True))
        made = augment([*recipes.values()], [audio[i] for i in recipes], clips)
        results.update(zip(recipes, made, strict=True))
    good: list[tuple[DecodedRow, Tensor]] = []
    failures = list(there.batch.failures)
    for row, result in zip(rows, results.values(), strict=True):
        if isinstance(result, str):
            failures.append(_failed(row.utterance, "augment", result))
        else:
            good.append((row, result))
    return good, failures


@dataclass(frozen=True, slots=True)
class BatchEncoder:
    """Turns batches into results. Safe to call from several threads at once.

    On CUDA a thread waits once a batch, for its results; meanwhile another may launch the next.
    """

    model: Model
    layers: tuple[int, ...]
    poolings: tuple[str, ...]
    window_samples: int
    budget_samples: int  # of audio in a forward pass; a batch that holds more goes in several
    memory: Memory = field(default_factory=Memory)
    launching: threading.Lock = field(default_factory=threading.Lock)  # on CUDA: batches in their order

    def __call__(self, batch: DecodedBatch | DeviceBatch) -> BatchResult:
        """``batch``: as it was decoded, or `stage`d already, so that its audio is there by now."""
        there = batch if isinstance(batch, DeviceBatch) else stage(batch, self.model.device)
        with self.launching if self.model.device.type == "cuda" else nullcontext():
            good, failures = self._long_enough(*augmented(there))
            embeddings = self._embed(self.model.encoder, good)
        embeddings.wait()
        rows: list[Row] = []
        kept: list[int] = []
        for i, (row, waveform) in enumerate(good):
            precision = self.model.dtype
            if not embeddings.finite[i] and self._rerun(embeddings, i, good[i]):
                precision = "fp32"
            if not embeddings.finite[i]:
                reason = "the embedding is not finite, in fp32 either; is the audio sane?"
                failures.append(_failed(row.utterance, "encode", reason))
                continue
            kept.append(i)
            num_frames = self.model.encoder.num_frames(len(waveform))
            rows.append(
                Row(row.position, row.utterance, len(waveform), num_frames, row.decoded.checksum, precision)
            )
        return BatchResult(
            there.batch.index,
            rows,
            {name: values[kept] for name, values in embeddings.pooled.items()},
            [embeddings.frames[i] for i in kept] if embeddings.frames else [],
            failures,
        )

    def _long_enough(
        self, good: list[tuple[DecodedRow, Tensor]], failures: list[Failure]
    ) -> tuple[list[tuple[DecodedRow, Tensor]], list[Failure]]:
        """Without what the model cannot take, or what would fill the memory."""
        encoder, left = self.model.encoder, []
        frame_bytes = 4 * len(self.layers) * encoder.dim if "none" in self.poolings else 0
        for row, waveform in good:
            n, reason = len(waveform), None
            if n < encoder.min_samples:
                reason = (
                    f"too short: {n} samples at {SAMPLE_RATE} Hz, the model needs {encoder.min_samples}"
                    f" ({1000 * encoder.min_samples / SAMPLE_RATE:.0f} ms)"
                )
            elif (size := frame_bytes * encoder.num_frames(n)) > MAX_FRAME_BYTES:
                reason = (
                    f"its frames would take {size / 2**30:.1f} GiB in memory;"
                    " choose fewer --layers, or cut it with start and end in a manifest"
                )
            if reason is None:
                left.append((row, waveform))
            else:
                failures.append(_failed(row.utterance, "encode", reason))
        return left, failures

    def _rerun(self, embeddings: Embeddings, i: int, row: tuple[DecodedRow, Tensor]) -> bool:
        """Replace a row that is not finite by the same in fp32; whether that came out finite."""
        if self.model.dtype == "fp32":
            return False
        again = self._embed(self.model.in_fp32(), [row]).wait()
        for name, values in again.pooled.items():
            embeddings.pooled[name][i] = values[0]
        if again.frames:
            embeddings.frames[i] = again.frames[0]
        embeddings.finite[i] = again.finite[0]
        return bool(again.finite[0])

    def _embed(self, encoder: Encoder, rows: Sequence[tuple[DecodedRow, Tensor]]) -> Embeddings:
        stride = encoder.stride
        pieces = [
            piece
            for u, (_, waveform) in enumerate(rows)
            for piece in split_windows(len(waveform), self.window_samples, stride, encoder.min_samples, u)
        ]
        windowed = len(pieces) > len(rows)
        pooler = Pooler(len(rows), self.layers, encoder.dim, self.poolings, self.model.device, windowed)
        if not rows:
            return pooler.embeddings()
        masks = [
            LatentMask(*row.recipe.latent.spans(encoder.num_frames(len(waveform)), encoder.dim))
            if row.recipe and row.recipe.latent is not None
            else None
            for row, waveform in rows
        ]
        with torch.inference_mode():
            # Normalised whole: a window must not be scaled by itself.
            audio = encoder.normalise([waveform for _, waveform in rows])
            first = 0
            while first < len(pieces):
                group = self._group(pieces, first)
                waveforms = [audio[p.utterance][p.start : p.stop] for p in group]
                pooler.begin(group)
                masks_of_group = [_within(masks[p.utterance], p, stride) for p in group]
                if _fits(encoder, waveforms, pooler, self.layers[-1], masks_of_group):
                    first += len(group)
                else:  # again, in parts
                    self._shrink(group)
            return pooler.embeddings()

    def _group(self, pieces: Sequence[Piece], first: int) -> Sequence[Piece]:
        """The next pieces to encode at once: as many as the budget holds, at least one."""
        budget, filled, last = self.memory.left_of(self.budget_samples), 0, first
        for piece in pieces[first:]:
            filled += piece.stop - piece.start
            if last > first and filled > budget:
                break
            last += 1
        return pieces[first:last]

    def _shrink(self, group: Sequence[Piece]) -> None:
        """Take less from now on. Raises SettingsError where there is no less."""
        num_samples = sum(piece.stop - piece.start for piece in group)
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


def _within(mask: LatentMask | None, piece: Piece, stride: int) -> LatentMask | None:
    """The part of a recording's mask that lies in one piece, in the piece's own frames."""
    if mask is None:
        return None
    first, end = piece.start // stride, piece.num_frames
    frames = [(max(a - first, 0), min(b - first, end)) for a, b in mask.frames]
    return LatentMask([(a, b) for a, b in frames if a < b], mask.channels)
