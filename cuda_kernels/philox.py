"""Random numbers by counter: sample i of a key is a function of (key, i), the same on every device.

Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 3 and table 2)
turns a counter of four 32-bit words and a key of two into four random words. There is no state: noise need
not be stored, any part of it can be made alone, and it does not depend on batch, order or device.
"""

from __future__ import annotations

import math
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)  # what each half of the key grows by from round to round
MASK = 0xFFFFFFFF

FLAT_BELOW = 20.0  # Hz, the lower end of hearing: without it most of brown noise would be slow drift
MAX_EXPONENT = 10.0  # either way: 400^5, at 8 kHz, is still well within float32
SHORTEST = 2048  # samples the spectrum is shaped over at least: bins of 7.8 Hz at 16 kHz

# Counters made at once, about: 64-bit words of a few arrays of this length stay in a core's second cache.
CHUNK = 8192


def derive_key(*parts: str | int) -> int:
    """A 64-bit key from a digest of its parts, such as (seed, utterance id, copy, augmentation).

    Kind and length of every part go into the digest, so that no two lists of parts share their bytes:
    ``("ab", "c")``, ``("a", "bc")`` and ``(1,)``, ``("1",)`` give different keys.
    """
    digest = blake2b(digest_size=8)
    for part in parts:
        if not isinstance(part, str | int):
            raise TypeError(f"part {part!r} of a key must be a str or an int, not {type(part).__name__}")
        kind = b"s" if isinstance(part, str) else b"i"
        content = (part if isinstance(part, str) else str(int(part))).encode("utf-8", "surrogatepass")
        digest.update(kind + len(content).to_bytes(8, "little") + content)
    return int.from_bytes(digest.digest(), "little")


def philox4x32(counter: tuple[Any, Any, Any, Any], key: int) -> tuple[Any, Any, Any, Any]:
    """Four words for a counter of four words, each in [0, 2^32), and a 64-bit key.

    A word is a Python int, a numpy uint64 array or a torch int64 tensor: all three have the 64-bit products,
    whose upper and lower halves are wanted. (In int64 a product may wrap to a negative number: its bits are
    the right ones, and the mask drops what the arithmetic shift put above them.)
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key & MASK, key >> 32
    for _ in range(ROUNDS):
        p0, p1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        # c1 and c3 keep their product's upper half, which the next round's mask drops: two operations fewer
        c0, c1, c2, c3 = ((p1 >> 32) ^ c1 ^ k0) & MASK, p1, ((p0 >> 32) ^ c3 ^ k1) & MASK, p0
        k0, k1 = (k0 + WEYL[0]) & MASK, (k1 + WEYL[1]) & MASK
    return c0, c1 & MASK, c2, c3 & MASK


def uniforms(key: int, count: int, first: int = 0) -> np.ndarray:
    """float64 ``[count]`` in [0, 1), numbers ``first`` and on: multiples of 2^-53.

    Number i is made of words 2 (i mod 2) and 2 (i mod 2) + 1 of counter i // 2: the former's 32 bits above
    the latter's upper 21. In plain ints: for the few numbers a draw needs, arrays cost more than they save.
    """
    _check(key, count, first)
    drawn = np.empty(count)
    for block in range(first // 2, (first + count + 1) // 2):
        w = philox4x32((block & MASK, block >> 32, 0, 0), key)
        for half in (0, 1):
            at = 2 * block + half - first
            if 0 <= at < count:
                drawn[at] = ((w[2 * half] << 21) | (w[2 * half + 1] >> 11)) * 2.0**-53
    return drawn


def white_noise(
    key: int, num_samples: int, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> torch.Tensor:
    """Standard normal ``[num_samples]``, float32 (None) or float64, made on ``device``.

    Sample i is lane i mod 4 of counter i // 4. With w the counter's words, Box and Muller (1958) give

        lanes 0, 1 = sqrt(-2 ln u) (cos v, sin v),   u = (w0 + 1) 2^-32 in (0, 1],   v = 2 pi 2^-32 w1
        lanes 2, 3 = the same of w2, w3

    so that no sample is beyond sqrt(64 ln 2) = 6.66. In float32 every step is rounded to float32, and first
    each word: at a radius r a sample is off by at most 3e-7 / r + 2e-6 r, and by 2.5e-4 where r is next to 0.
    """
    import torch

    _check(key, num_samples)
    dtype = dtype or torch.float32
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"white noise is float32 or float64, not {dtype}")
    blocks = -(-num_samples // 4)
    step = CHUNK if torch.device(device).type == "cpu" else max(blocks, 1)
    noise = torch.empty(blocks, 4, device=device, dtype=dtype)
    for first in range(0, blocks, step):
        rows = noise[first : first + step]
        index = torch.arange(first, first + len(rows), device=device)
        w = philox4x32((index & MASK, index >> 32, 0, 0), key)
        for lane in (0, 2):
            u = w[lane].to(dtype).mul_(2.0**-32).add_(2.0**-32)
            radius = u.log_().mul_(-2.0).sqrt_()
            angle = w[lane + 1].to(dtype).mul_(2.0 * math.pi * 2.0**-32)
            torch.mul(radius, angle.cos(), out=rows[:, lane])
            torch.mul(radius, angle.sin_(), out=rows[:, lane + 1])
    return noise.view(-1)[:num_samples]


def coloured_noise(
    key: int,
    num_samples: int,
    exponent: float,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Noise ``[num_samples]`` at 16 kHz with power ~ 1 / f^exponent: 0 white, 1 pink, 2 brown.

    float32 (None) or float64. ``white_noise(key, N)``, N the power of two that holds ``num_samples``
    (``SHORTEST`` at least), is weighted by ``max(f, FLAT_BELOW)^(-exponent / 2)`` in the frequency domain, f
    in Hz, without its DC, and cut to its first ``num_samples``; their mean square is then made 1. Raises
    ValueError for an exponent beyond ``MAX_EXPONENT`` and for a negative length.
    """
    import torch

    dtype = dtype or torch.float32
    if not abs(exponent) <= MAX_EXPONENT:
        raise ValueError(f"exponent {exponent}: must be within {-MAX_EXPONENT:g} to {MAX_EXPONENT:g}")
    if num_samples < 0:
        raise ValueError(f"num_samples {num_samples}: must not be negative")
    n_fft = max(SHORTEST, 1 << max(num_samples - 1, 0).bit_length())
    spectrum = torch.fft.rfft(white_noise(key, n_fft, device, dtype))  # [n_fft / 2 + 1]
    hertz = torch.arange(len(spectrum), device=device, dtype=dtype) * (16_000 / n_fft)
    weights = (hertz / FLAT_BELOW).clamp_(min=1.0).pow_(-exponent / 2)
    weights[0] = 0.0
    noise = torch.fft.irfft(spectrum.mul_(weights), n=n_fft)[:num_samples]
    return noise / noise.square().mean().sqrt() if num_samples else noise


def _check(key: int, count: int, first: int = 0) -> None:
    if not 0 <= key < 2**64:
        raise ValueError(f"key {key}: must be within 0 to 2^64 - 1")
    if count < 0 or first < 0:
        raise ValueError(f"{count} numbers from {first}: neither may be negative")
