"""The values that flow through the engine. Bottom of the package: imports nothing of ours.

Utterance -> Header -> Decoded -> BatchResult
                    \\-> Failure (a row of errors.jsonl) at any stage
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import torch

Seconds: TypeAlias = float

__version__ = "0.1.0"

SAMPLE_RATE = 16_000  # Hz: what every encoder here takes
MIN_SAMPLES = 400  # receptive field of the wav2vec2 family's CNN: fewer samples give no frame

# The common emotion set that corpora's own labels are mapped to.
EMOTIONS = (
    "anger",
    "happiness",
    "sadness",
    "neutral",
    "fear",
    "disgust",
    "surprise",
    "calm",
    "boredom",
    "other",
)


@dataclass(frozen=True, slots=True)
class Utterance:
    """One recording, or one segment of a recording, to embed.

    ``labels`` is aligned with ``Manifest.columns``; an unknown value is ``""``.
    ``start`` and ``end`` (seconds) cut a segment; ``None`` is the file's own start or end.
    """

    id: str
    path: str
    start: Seconds | None = None
    end: Seconds | None = None
    labels: tuple[str, ...] = ()

    @property
    def file_name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def span(self) -> tuple[Seconds | None, Seconds | None]:
        return self.start, self.end


@dataclass(frozen=True, slots=True)
class Manifest:
    """Utterances in the order in which users see them, and the names of their labels.

    Ids are unique. ``columns`` starts with ``emotion`` (common set), ``emotion_raw`` (as the
    corpus codes it), ``speaker``; a corpus or a manifest file may add more.
    """

    utterances: Sequence[Utterance]
    columns: tuple[str, ...] = ("emotion", "emotion_raw", "speaker")
    corpus: str = "files"
    notes: tuple[str, ...] = ()  # what a person should know of how it was read
    # What each utterance may be called: the one id that was given for it, else its forms, the shortest
    # first (`ids.Names`). Empty: nothing is known but the ids.
    names: Sequence[Sequence[str]] = ()
    given: Sequence[bool] = ()  # whether a manifest file gives its id; empty: of none
    label_notes: tuple[str, ...] = ()  # those of the notes that are of labels: a run may change them

    def __len__(self) -> int:
        return len(self.utterances)

    def is_given(self, i: int) -> bool:
        return bool(self.given) and self.given[i]


@dataclass(frozen=True, slots=True)
class Header:
    """What a file's header says of its audio, before anything is decoded.

    ``length`` says how far ``num_frames`` can be trusted:

    "exact"     the decoder must give just this many
    "stated"    the container says so; decoders may differ by a codec block
    "estimate"  from the bit rate: good for planning, not for finding that something is missing
    "unknown"   only a library can tell
    """

    container: str  # "wav", "flac", "ogg", "mp3", "aiff", ...: as sniffed from the bytes
    sample_rate: int = 0  # Hz
    num_channels: int = 0
    num_frames: int = 0  # samples per channel at `sample_rate`
    length: str = "exact"
    block_frames: int = field(default=0, compare=False)  # FLAC: of all blocks but the last, 0 if it varies
    pcm_md5: bytes = field(default=b"", compare=False)  # 16-bit FLAC: of the samples, where it is written

    @property
    def duration(self) -> Seconds:
        return self.num_frames / self.sample_rate


@dataclass(frozen=True, slots=True)
class Failure:
    """A recording that could not be embedded: a row of ``errors.jsonl``."""

    id: str
    path: str
    stage: str  # "probe", "decode", "augment", "encode" or "store"
    reason: str  # for a person: what is wrong and, where there is one, the remedy


@dataclass(frozen=True, slots=True)
class Decoded:
    """A recording's audio as the encoders take it."""

    waveform: np.ndarray  # float32 [num_samples], mono, at `sample_rate`
    checksum: str  # SHA-256 of the waveform's bytes: what audio gave this embedding
    sample_rate: int = SAMPLE_RATE  # Hz; another only where resampling was left to the device
    quiet: bool = False  # no sample is beyond `cut.QUIET`: nothing is to be heard


@dataclass(frozen=True, slots=True)
class Row:
    """One committed utterance: everything the store keeps about it but the embedding."""

    position: int  # index in the run's manifest: the order in which readers see rows
    utterance: Utterance
    num_samples: int  # at SAMPLE_RATE
    num_frames: int  # frames the encoder gave
    checksum: str  # Decoded.checksum
    precision: str  # dtype of the forward pass that gave this row: "fp32", "bf16", "fp16", "int8"


@dataclass(frozen=True, slots=True)
class BatchResult:
    """What one batch of the plan came to. Committed whole or not at all.

    ``pooled[name]``: float32 ``[len(rows), L, D']``, aligned with ``rows``.
    ``frames``: for the pooling ``none``, one float32 ``[T, L, D]`` a row, else empty.
    """

    batch: int  # index in the run's plan
    rows: Sequence[Row]
    pooled: dict[str, np.ndarray]
    frames: Sequence[np.ndarray] = ()
    failures: Sequence[Failure] = field(default=())


@dataclass(frozen=True, slots=True)
class LatentMask:
    """What is hidden of one utterance between the CNN and the transformer: ``[first, last)`` each."""

    frames: Sequence[tuple[int, int]] = ()  # replaced by the model's own mask embedding
    channels: Sequence[tuple[int, int]] = ()  # set to zero


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of an utterance in one forward pass: all of it, or one window of a long one."""

    utterance: int  # index in the batch
    start: int  # samples [start, stop) of it
    stop: int
    num_frames: int  # in the forward pass
    keep: slice  # of those frames: each frame of the utterance is kept from one window only


class FrameSink(Protocol):
    """Takes each layer's hidden states the moment they exist (see ``pooling.py``)."""

    def add(self, layer: int, hidden: torch.Tensor) -> None:
        """``hidden``: packed frames ``[sum of lengths, D]`` of layer ``layer``; not kept."""
        ...
