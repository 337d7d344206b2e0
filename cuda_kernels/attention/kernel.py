"""Attention over packed utterances in Triton: one launch for the batch, softmax on the way.

A program takes up to `TILE_ROWS` queries of one utterance and one head, and walks over the utterance's
keys; its maximum, sum and weighted values are rescaled as it goes (Milakov and Gimelshein 2018; Dao et al.
2022), so that scores are never in memory. The relative position bias is read from a vector a head, by
distance: 12 KB in half precision for a minute of frames, which the first-level cache holds. A row's result is
made by one program, from its own utterance, in the order of the keys.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from cuda_kernels.packing import TILE_ROWS, Packing
from cuda_kernels.parts import own_rows, unbroken

MAX_HEAD_DIM = 128  # a tile of queries stays in registers and shared memory whole

# Rows, keys, warps and pipeline stages of a program, by bytes of an element and whether there is a bias. They
# are the largest for which the compiler spills no register, and that leave room on a multiprocessor for two
# programs of eight warps, or three of four, so that one's exponentials hide behind another's products. fp32,
# for which there is no matrix unit that keeps all its bits, keeps what it multiplies in registers.
SHAPES = {
    (2, False): (128, 64, 8, 3),
    (2, True): (64, 64, 4, 3),
    (4, False): (32, 16, 4, 1),
    (4, True): (32, 16, 4, 1),
}

LOG2_E = tl.constexpr(1.4426950408889634)  # exp2 is an instruction, exp is not


@triton.jit
def _attend_packed(
    qkv_ptr,
    tiles_ptr,  # int32 [tiles, COLUMNS]
    by_distance_ptr,  # [H, 2 M - 1], or None; so are the next two
    logits_ptr,  # [N, 2 H]
    const_ptr,  # [H]
    out_ptr,  # [N, D]
    row_stride,
    logits_row_stride,
    num_distances,
    NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    begin, length, first = own_rows(tiles_ptr, BLOCK_ROWS)
    if first >= length:
        return
    head = tl.program_id(1)
    D: tl.constexpr = NUM_HEADS * HEAD_DIM

    query = first + tl.arange(0, BLOCK_ROWS)
    of_query = query < length
    dim = tl.arange(0, BLOCK_DIM)
    of_head = dim < HEAD_DIM
    qkv_ptr += begin * row_stride + head * HEAD_DIM
    q_ptrs = qkv_ptr + query.to(tl.int64)[:, None] * row_stride + dim[None, :]
    q = tl.load(q_ptrs, mask=of_query[:, None] & of_head[None, :], other=0.0)
    keys = tl.arange(0, BLOCK_KEYS)
    k_ptrs = qkv_ptr + D + keys.to(tl.int64)[:, None] * row_stride + dim[None, :]

    if by_distance_ptr is not None:
        logit_ptrs = logits_ptr + (begin + query) * logits_row_stride + head
        a = tl.sigmoid(tl.load(logit_ptrs, mask=of_query, other=0.0).to(tl.float32))
        b = tl.sigmoid(tl.load(logit_ptrs + NUM_HEADS, mask=of_query, other=0.0).to(tl.float32))
        gate = a * (b * tl.load(const_ptr + head).to(tl.float32) - 1.0) + 2.0
        # Where distance 0 is; rows behind the utterance, which nobody reads, are kept within the vector.
        zero_ptr = by_distance_ptr + head.to(tl.int64) * num_distances + num_distances // 2
        behind = tl.minimum(query, length - 1)

    highest = tl.full([BLOCK_ROWS], float("-inf"), dtype=tl.float32)
    total = tl.zeros([BLOCK_ROWS], dtype=tl.float32)
    weighted = tl.zeros([BLOCK_ROWS, BLOCK_DIM], dtype=tl.float32)
    for before in range(0, length, BLOCK_KEYS):
        of_key = keys < length - before
        wanted = of_key[:, None] & of_head[None, :]
        k = tl.load(k_ptrs, mask=wanted, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee")  # [rows, keys]
        if by_distance_ptr is not None:
            distance = (before + keys)[None, :] - behind[:, None]
            bias = tl.load(zero_ptr + distance, mask=of_key[None, :], other=0.0).to(tl.float32)
            scores += gate[:, None] * bias
        scores = tl.where(of_key[None, :], scores * LOG2_E, float("-inf"))
        higher = tl.maximum(highest, tl.max(scores, axis=1))
        weights = tl.exp2(scores - higher[:, None])
        rescale = tl.exp2(highest - higher)
        total = total * rescale + tl.sum(weights, axis=1)
        v = tl.load(k_ptrs + D, mask=wanted, other=0.0)
        weighted = tl.dot(weights.to(v.dtype), v, weighted * rescale[:, None], input_precision="ieee")
        highest = higher
        k_ptrs += BLOCK_KEYS * row_stride

    out_ptrs = out_ptr + (begin + query)[:, None] * D + head * HEAD_DIM + dim[None, :]
    result = (weighted / total[:, None]).to(out_ptr.dtype.element_ty)
    tl.store(out_ptrs, result, mask=of_query[:, None] & of_head[None, :])


def attend_packed(
    qkv: Tensor, packing: Packing, num_heads: int, bias: tuple[Tensor, Tensor, Tensor] | None
) -> Tensor:
    """``[N, 3 D]`` to ``[N, D]``; rows of ``qkv`` and of the gate's logits strided as they are."""
    N, D = len(qkv), qkv.shape[1] // 3
    head_dim = D // num_heads
    if head_dim > MAX_HEAD_DIM:
        raise ValueError(f"heads of {head_dim} channels: the kernel takes up to {MAX_HEAD_DIM}")
    out = torch.empty(N, D, dtype=qkv.dtype, device=qkv.device)
    tiles = packing.tiles
    if not out.numel():
        return out
    qkv = unbroken(qkv)
    vectors: tuple[Tensor | None, ...] = (None, None, None)
    logits_row_stride, num_distances = 0, 0
    if bias is not None:
        by_distance, logits, const = bias
        logits = unbroken(logits)
        vectors = (by_distance.contiguous(), logits, const.contiguous())
        logits_row_stride, num_distances = logits.stride(0), by_distance.shape[1]
    block_rows, block_keys, num_warps, num_stages = SHAPES[qkv.element_size(), bias is not None]
    strides = qkv.stride(0), logits_row_stride, num_distances
    with torch.cuda.device_of(qkv):
        _attend_packed[len(tiles), num_heads, TILE_ROWS // block_rows](
            *(qkv, tiles, *vectors, out, *strides),
            NUM_HEADS=num_heads,
            HEAD_DIM=head_dim,
            BLOCK_ROWS=block_rows,
            BLOCK_KEYS=block_keys,
            BLOCK_DIM=max(16, triton.next_power_of_2(head_dim)),
            num_warps=num_warps,
            num_stages=num_stages,
        )
    return out
