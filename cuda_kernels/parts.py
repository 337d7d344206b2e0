"""Parts of Triton kernels: what several of them do alike."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from cuda_kernels import packing as p

BEGIN, LENGTH, FIRST, COLUMNS = map(tl.constexpr, (p.BEGIN, p.LENGTH, p.FIRST, p.COLUMNS))


@triton.jit
def own_rows(tiles: tl.tensor, block_rows: tl.constexpr) -> tl.tensor:
    """For a program of a grid ``[tiles, _, TILE_ROWS / block_rows]``: the row that its utterance begins at,
    that one's length, and which of its rows is the program's first. ``tiles``: int32 ``[tiles, COLUMNS]``."""
    tile = tiles + tl.program_id(0).to(tl.int64) * COLUMNS
    begin = tl.load(tile + BEGIN).to(tl.int64)
    length = tl.load(tile + LENGTH)
    return begin, length, tl.load(tile + FIRST) + tl.program_id(2) * block_rows


@triton.jit
def exact_gelu(x: tl.tensor) -> tl.tensor:
    """``x / 2 * (1 + erf(x / sqrt(2)))``"""
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


def unbroken(x: Tensor) -> Tensor:
    """``[N, D]`` whose rows each lie in one piece, wherever they begin."""
    return x if x.stride(1) == 1 else x.contiguous()
