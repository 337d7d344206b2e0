"""Does a row fit the dtype it is stored in? What does not is a failure, never an infinity.

What does is rounded to it: whatever is compared with stored rows is rounded alike (`as_stored`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from extractor.store.parts import NO_POOLING, STORAGE_DTYPES
from extractor.types import BatchResult, Failure


def refuse_overflow(
    result: BatchResult, layers: Sequence[int], storage_dtype: str
) -> tuple[BatchResult, list[Failure]]:
    """Take out the rows with a value that the storage dtype cannot hold: never store an infinity."""
    refused = []
    for k, row in enumerate(result.rows):
        arrays = {name: values[k] for name, values in result.pooled.items()}
        if result.frames:
            arrays[NO_POOLING] = result.frames[k]
        reason = _overflow(arrays, layers, storage_dtype)
        if reason:
            refused.append((k, Failure(row.utterance.id, row.utterance.path, "store", reason)))
    if not refused:
        return result, []
    keep = np.setdiff1d(np.arange(len(result.rows)), [k for k, _ in refused])
    failures = [failure for _, failure in refused]
    kept = BatchResult(
        batch=result.batch,
        rows=[result.rows[k] for k in keep],
        pooled={name: values[keep] for name, values in result.pooled.items()},
        frames=[result.frames[k] for k in keep] if result.frames else (),
        failures=[*result.failures, *failures],
    )
    return kept, failures


def as_stored(result: BatchResult, layers: Sequence[int], storage_dtype: str) -> BatchResult:
    """What a reader has of a batch once it is committed: rounded, and without what does not fit."""
    kept, _ = refuse_overflow(result, layers, storage_dtype)
    return replace(
        kept,
        pooled={name: rounded(values, storage_dtype) for name, values in kept.pooled.items()},
        frames=[rounded(values, storage_dtype) for values in kept.frames],
    )


def rounded(values: np.ndarray, storage_dtype: str) -> np.ndarray:
    """float32 of any shape to the values that the storage dtype has for them, in float32."""
    return values.astype(STORAGE_DTYPES[storage_dtype], copy=False).astype(np.float32, copy=False)


def _overflow(arrays: Mapping[str, np.ndarray], layers: Sequence[int], storage_dtype: str) -> str | None:
    """Why a row cannot be stored. ``arrays``: ``[L, D']``, and ``[T, L, D]`` of frames."""
    limit = float(np.finfo(STORAGE_DTYPES[storage_dtype]).max)
    for name, values in arrays.items():
        if max(values.max(), -values.min()) <= limit:  # false for NaN as well
            continue
        wrong = np.argwhere(~(np.abs(values) <= limit))[0]
        value, layer = values[tuple(wrong)], layers[wrong[-2]]
        if not np.isfinite(value):
            return f"pooling {name}, layer {layer}: a value is {value}"
        return (
            f"pooling {name}, layer {layer}: the value {value:g} is beyond fp16 (largest {limit:g}); "
            "use --storage-dtype fp32"
        )
    return None
