"""How to extract: made at the edge, checked once, passed down."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from extractor.errors import SettingsError
from extractor.run.recipe import RESAMPLING
from extractor.types import Seconds

if TYPE_CHECKING:
    from extractor.augment import Augmentation

Inputs = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


@dataclass(frozen=True, slots=True)
class Options:
    """How to extract. Made at the edge, checked once, passed down."""

    model: str = "hubert-large"
    layers: str | int | Sequence[int] = "all"
    pooling: str | Sequence[str] = "mean"
    dtype: str = "auto"
    device: str = "auto"
    devices: str | Sequence[str | int] = ()  # several, a process each: "0,1,2,3"; see `devices`
    corpus: str | None = None  # None: recognised from the file names
    map: Mapping[str, str] | str | Sequence[str] = ()  # what labels count as: "calm=neutral"; no setting
    batch_seconds: Seconds | None = None  # audio in a batch; None: by device
    window: Seconds = 60.0  # longer recordings are encoded in windows of this
    channel: int | None = None  # None: the average
    resample: str = "cpu"  # where recordings of another rate come to 16 kHz: see `RESAMPLING`
    storage_dtype: str = "fp32"
    workers: int | None = None  # decoding threads of a process; None: by the number of cores
    # What is longer, or than the GiB hold that all that is being decoded may take, is an error. Neither
    # changes a row, so a run may go on with others; `retry_failed` tries again what was too long.
    max_hours: float = 24.0
    decode_memory: float | None = None  # None: a quarter of the machine's memory
    shard: tuple[int, int] = (0, 1)  # this process does batches with index % n == i
    retry_failed: bool = False
    prune: bool = False  # drop recordings that are not in the input any more
    index: str | Sequence[str] = ()  # indexes to build on the way: "mean:12"; see `hser-lookup`
    # What to augment: an `extractor.augment` object or its text; several texts are alternatives.
    augment: Augmentation | str | Sequence[str] | None = None
    augment_config: str | os.PathLike[str] | None = None  # the same, and the next three, as a YAML file
    copies: int | None = None  # augmented copies of each recording; None: as the file says, else 1
    seed: int | None = None  # of all that is drawn; None: as the file says, else 0
    clean: bool | None = None  # keep each recording as it is, too; None: as the file says, else yes


def check(options: Options) -> None:
    """Refuse values that cannot work before anything is read or loaded."""
    from extractor.plan.windows import OVERLAP, STEP

    o, (shard, num_shards) = options, options.shard
    steps = o.window / STEP
    rules = [
        (
            o.batch_seconds is None or o.batch_seconds > 0,
            f"--batch-seconds {o.batch_seconds}: must be more than 0",
        ),
        (
            o.window > 2 * OVERLAP and abs(steps - round(steps)) <= 1e-6,
            f"--window {o.window}: must be more than {2 * OVERLAP:g} seconds and a multiple of {STEP}",
        ),
        (o.workers is None or o.workers >= 1, f"--workers {o.workers}: must be at least 1"),
        (o.max_hours > 0, f"--max-hours {o.max_hours}: must be more than 0"),
        (
            o.decode_memory is None or o.decode_memory > 0,
            f"--decode-memory {o.decode_memory}: must be more than 0",
        ),
        (o.channel is None or o.channel >= 0, f"--channel {o.channel}: channels count from 0"),
        (o.resample in RESAMPLING, f"--resample {o.resample}: must be {' or '.join(RESAMPLING)}"),
        (not o.devices or o.device == "auto", "--device and --devices exclude each other"),
        (o.storage_dtype in ("fp32", "fp16"), f"--storage-dtype {o.storage_dtype}: must be fp32 or fp16"),
        (0 <= shard < num_shards, f"--shard {shard}/{num_shards}: must be i/n with 0 <= i < n"),
        # With a part of the input alone, the rest of it would seem to have left: so, too, with any
        # option to come that takes a part.
        (
            not o.prune or num_shards == 1,
            "--prune and --shard exclude each other: prune when all shards are done",
        ),
        (
            not o.index or num_shards == 1,
            "--index and --shard exclude each other: build the index when all shards are done, with"
            " `hser-lookup build`",
        ),
    ]
    for holds, refusal in rules:
        if not holds:
            raise SettingsError(refusal)
