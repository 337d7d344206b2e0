"""The building blocks on a CPU: what laying weights out once and rounding rows is worth.

    python -m benchmarks.products

One thread, as a stream of the engine has; shapes of hubert-large. Each figure is the time of the plain
way over the time of ours: above 1 is faster. The claims in `extractor/encoders` rest on these.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.baselines import sdpa
from benchmarks.encoder import DTYPES
from benchmarks.harness import CANNOT_RUN, Columns, Table, arguments, take_turns, write_result
from benchmarks.kernels import Clock
from extractor.encoders.linear import Conv, Linear
from extractor.encoders.transformer import attend

CPU = torch.device("cpu")
HEADS, WIDTH, FRAMES = 16, 1024, 150  # 3 s of speech
CALLS = 6  # a round


def pairs(dtype: torch.dtype) -> dict[str, tuple[Callable[[], Any], Callable[[], Any]]]:
    """Name -> the plain way, ours."""
    x, w, b = torch.randn(750, WIDTH), torch.randn(4 * WIDTH, WIDTH) * 0.02, torch.randn(4 * WIDTH)
    rows, kernel = torch.randn(259, 512), torch.randn(512, 512, 3) * 0.02
    x, rows, qkv = x.to(dtype), rows.to(dtype), torch.randn(FRAMES, 3 * WIDTH).to(dtype)
    plain_w, plain_b = w.to(dtype), b.to(dtype)
    linear, conv = Linear(w, b, dtype, CPU), Conv(kernel, None, dtype, CPU, stride=2, typical_rows=259)
    plain_kernel = kernel.to(dtype)[:, :, None].contiguous(memory_format=torch.channels_last)
    row4 = rows[None, None].permute(0, 3, 1, 2)
    odd, even = (torch.randn(HEADS, n, n).to(dtype) for n in (FRAMES, 160))
    return {
        "linear, weight laid out once": (lambda: F.linear(x, plain_w, plain_b), lambda: linear(x)),
        "linear and GELU in one pass": (
            lambda: F.gelu(F.linear(x, plain_w, plain_b)),
            lambda: linear.gelu(x),
        ),
        "convolution of a short block": (
            lambda: F.conv2d(row4, plain_kernel, stride=(1, 2)),
            lambda: conv(rows),
        ),
        "attention of 3 s against SDPA": (
            lambda: sdpa(qkv, [FRAMES], HEADS),
            lambda: attend(qkv, [FRAMES], HEADS),
        ),
        "softmax, 150 keys against 160": (lambda: odd.softmax(-1), lambda: even.softmax(-1)),
    }


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(__doc__, argv, rounds=9)
    if not torch.backends.mkldnn.is_available():
        print("this torch has no oneDNN")
        return CANNOT_RUN
    torch.set_num_threads(1)
    clock = Clock.on("cpu", CALLS)
    rows: list[dict[str, Any]] = []
    with torch.inference_mode():
        for dtype in ("fp32", "bf16"):
            for name, (plain, ours) in pairs(DTYPES[dtype]).items():
                ways = {"plain": partial(clock.seconds, plain), "ours": partial(clock.seconds, ours)}
                times = take_turns(ways, args.rounds)
                ratios = [p / o for p, o in zip(times["plain"], times["ours"], strict=True)]
                rows.append({"what": name, "dtype": dtype, "ratios": ratios, "seconds": times})
    columns: Columns = {
        "plain / ours": "{what}, {dtype}",
        "median": lambda row: f"{median(row['ratios']):.2f}",
        "range": lambda row: f"{min(row['ratios']):.2f}-{max(row['ratios']):.2f}",
    }
    print(Table.of(rows, columns).text())
    write_result("products", {"threads": 1, "rows": rows}, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
