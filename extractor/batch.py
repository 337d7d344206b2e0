"""One batch, from decoded audio to rows: encode -> pool, window by window, each layer as it comes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from extractor.encoders import Encoder, Model
from extractor.pooling import Piece, Pooler
from extractor.types import SAMPLE_RATE, BatchResult, Decoded, Failure, Row, Utterance
from extractor.windows import Window, split_windows

# Frame-level output of one recording is held in memory until its batch is committed.
MAX_FRAME_BYTES = 4 << 30


@dataclass(frozen=True, slots=True)
class Job:
    """A planned batch whose audio is there."""

    batch: int
    positions: Sequence[int]
    utterances: Sequence[Utterance]
    decoded: Sequence[Decoded | Failure]  # aligned with utterances


@dataclass(frozen=True, slots=True)
class Embedding:
    """What the encoder made of some utterances, aligned with them."""

    pooled: dict[str, np.ndarray]  # float32 [U, L, D']
    frames: list[np.ndarray]  # float32 [T, L, D] each, or empty
    finite: np.ndarray  # bool [U]


@dataclass(frozen=True, slots=True)
class BatchEncoder:
    """Turns jobs into results. Safe to call from several threads at once."""

    model: Model
    layers: tuple[int, ...]
    poolings: tuple[str, ...]
    window_samples: int
    budget_samples: int

    def __call__(self, job: Job) -> BatchResult:
        failures = [d for d in job.decoded if isinstance(d, Failure)]
        good: list[tuple[int, Utterance, Decoded]] = []
        for position, utterance, decoded in zip(job.positions, job.utterances, job.decoded, strict=True):
            if isinstance(decoded, Failure):
                continue
            refusal = self._refusal(utterance, decoded)
            if refusal is None:
                good.append((position, utterance, decoded))
            else:
                failures.append(refusal)
        if not good:
            return BatchResult(job.batch, [], self._empty(), [], failures)

        embedding = self._embed(self.model.encoder, [d.waveform for _, _, d in good])
        precision = [self.model.dtype] * len(good)
        for i in np.flatnonzero(~embedding.finite).tolist():
            if self._rerun(embedding, i, good[i][2]):
                precision[i] = "fp32"
        rows = [
            Row(position, utterance, len(d.waveform), self._num_frames(d), d.checksum, precision[i])
            for i, (position, utterance, d) in enumerate(good)
        ]
        kept = np.flatnonzero(embedding.finite)
        failures += [
            Failure(u.id, u.path, "encode", "the embedding is not finite, in fp32 either; is the audio sane?")
            for i, (_, u, _) in enumerate(good)
            if not embedding.finite[i]
        ]
        return BatchResult(
            job.batch,
            [rows[i] for i in kept],
            {name: values[kept] for name, values in embedding.pooled.items()},
            [embedding.frames[i] for i in kept] if embedding.frames else [],
            failures,
        )

    def _num_frames(self, decoded: Decoded) -> int:
        return self.model.encoder.num_frames(len(decoded.waveform))

    def _empty(self) -> dict[str, np.ndarray]:
        return self._pooler(self.model.encoder, 0, windowed=False).pooled()

    def _refusal(self, utterance: Utterance, decoded: Decoded) -> Failure | None:
        encoder, n = self.model.encoder, len(decoded.waveform)
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
        return None if reason is None else Failure(utterance.id, utterance.path, "encode", reason)

    def _rerun(self, embedding: Embedding, i: int, decoded: Decoded) -> bool:
        """Replace a row that is not finite by the same in fp32; whether that came out finite."""
        if self.model.dtype == "fp32":
            return False
        again = self._embed(self.model.in_fp32(), [decoded.waveform])
        for name, values in again.pooled.items():
            embedding.pooled[name][i] = values[0]
        if again.frames:
            embedding.frames[i] = again.frames[0]
        embedding.finite[i] = again.finite[0]
        return bool(again.finite[0])

    def _pooler(self, encoder: Encoder, num_utterances: int, windowed: bool) -> Pooler:
        return Pooler(num_utterances, self.layers, encoder.dim, self.poolings, self.model.device, windowed)

    def _embed(self, encoder: Encoder, waveforms: Sequence[np.ndarray]) -> Embedding:
        windows = [
            (u, w)
            for u, waveform in enumerate(waveforms)
            for w in split_windows(len(waveform), self.window_samples, encoder.stride, encoder.min_samples)
        ]
        pooler = self._pooler(encoder, len(waveforms), windowed=len(windows) > len(waveforms))
        with torch.inference_mode():
            # Normalised whole: a window must not be scaled by itself.
            audio = [encoder.normalise(torch.from_numpy(w).to(self.model.device)) for w in waveforms]
            for group in self._groups(windows):
                pooler.begin([Piece(u, w.num_frames, w.keep) for u, w in group])
                encoder.forward([audio[u][w.start : w.stop] for u, w in group], pooler, self.layers[-1])
        return Embedding(pooler.pooled(), pooler.frame_rows(), pooler.finite())

    def _groups(self, windows: Sequence[tuple[int, Window]]) -> Iterator[list[tuple[int, Window]]]:
        """Windows to encode at once, in their order, each group within the budget."""
        group: list[tuple[int, Window]] = []
        filled = 0
        for u, window in windows:
            size = window.stop - window.start
            if group and filled + size > self.budget_samples:
                yield group
                group, filled = [], 0
            group.append((u, window))
            filled += size
        yield group
