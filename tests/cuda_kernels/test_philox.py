"""Random numbers are the published generator's, depend on key and index alone, and are well distributed."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from cuda_kernels import philox
from cuda_kernels.philox import (
    MASK,
    MAX_EXPONENT,
    coloured_noise,
    derive_key,
    philox4x32,
    uniforms,
    white_noise,
)

SAMPLE_RATE = 16_000

# philox4x32, 10 rounds: counter, key (lower word first) and result, from Random123's kat_vectors
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
AS_ARRAYS: dict[str, Callable[[int], Any]] = {
    "ints": int,
    "numpy": lambda word: np.array([word], dtype=np.uint64),
    "torch": lambda word: torch.tensor([word], dtype=torch.int64),
}
# The probability that a right generator fails a bound of so many standard deviations is below 1e-6; keys are
# fixed, so that it was tried once and for all.
DEVIATIONS = 5


def words(key: int, first: int, count: int) -> np.ndarray:
    """uint32 ``[count, 4]``: words of counters (lower half of i, upper half, 0, 0), i from ``first``."""
    index = np.arange(first, first + count, dtype=np.uint64)
    lanes = philox4x32((index & MASK, index >> 32, np.zeros_like(index), np.zeros_like(index)), key)
    return np.stack(lanes, axis=1).astype(np.uint32)


@pytest.mark.parametrize("kind", AS_ARRAYS)
@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_the_published_vectors(
    kind: str, counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]
) -> None:
    c0, c1, c2, c3 = (AS_ARRAYS[kind](word) for word in counter)
    drawn = philox4x32((c0, c1, c2, c3), key[0] | key[1] << 32)
    assert tuple(word if kind == "ints" else word.item() for word in drawn) == expected


def test_uniforms_are_53_bits_of_word_pairs_and_any_part_can_be_drawn_alone() -> None:
    w = words(9, 0, 50).astype(object)
    expected = [((row[h] << 32 | row[h + 1]) >> 11) / 2**53 for row in w for h in (0, 2)]
    assert uniforms(9, 100).tolist() == expected
    assert uniforms(9, 31, first=13).tolist() == expected[13:44]
    assert uniforms(9, 0).shape == (0,)


def test_uniforms_fill_the_unit_interval_evenly() -> None:
    n = 20_000
    drawn = uniforms(derive_key("uniforms"), n)
    assert 0 <= drawn.min() < drawn.max() < 1
    # Kolmogorov and Smirnov: sqrt(n) times the largest distance exceeds 1.95 once in 1,000 keys
    distance = np.abs(np.sort(drawn) - (np.arange(n) + 0.5) / n).max()
    assert distance * math.sqrt(n) < 1.95


@pytest.mark.parametrize("num_samples", [0, 1, 63, 16_001, 4 * philox.CHUNK + 1])
def test_white_noise_is_box_and_muller_on_the_words(num_samples: int) -> None:
    key = derive_key(7, "a.wav", 0, "noise")
    w = words(key, 0, -(-num_samples // 4)).astype(np.float64)
    radius = np.sqrt(-2 * np.log((w[:, ::2] + 1) / 2**32))
    angle = 2 * np.pi * w[:, 1::2] / 2**32
    expected = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=2).reshape(-1)[:num_samples]
    drawn = white_noise(key, num_samples, dtype=torch.float64)
    assert drawn.shape == (num_samples,)
    # a few roundings of values up to 6.66
    np.testing.assert_allclose(drawn.numpy(), expected, rtol=0, atol=1e-14)


def test_white_noise_in_float32_is_that_of_float64_rounded() -> None:
    single, double = white_noise(3, 100_000), white_noise(3, 100_000, dtype=torch.float64)
    assert single.dtype == torch.float32
    error = (single - double).abs()
    # In roundings of e = 2^-24: u has two, so ln u is off by 2 e, radius^2 by 4 e and the radius by up to
    # 4 e / radius; the angle has three, of up to 2 pi, 19 e; logarithm, root, sine and product have five.
    e = 2**-24
    radius = double.view(-1, 2).square().sum(1, keepdim=True).sqrt().expand(-1, 2).reshape(-1)
    assert (error <= 4 * e / radius + 24 * e * radius).all()


def test_the_beginning_of_white_noise_does_not_depend_on_how_much_is_drawn() -> None:
    long = white_noise(5, 3 * 4 * philox.CHUNK)
    for num_samples in (1, 500, 4 * philox.CHUNK, 4 * philox.CHUNK + 3):
        assert torch.equal(white_noise(5, num_samples), long[:num_samples])


def test_white_noise_is_normal() -> None:
    n = 200_000
    drawn = white_noise(derive_key("normal"), n, dtype=torch.float64)
    assert abs(drawn.mean().item()) < DEVIATIONS / math.sqrt(n)
    assert abs(drawn.var().item() - 1) < DEVIATIONS * math.sqrt(2 / n)
    distribution = 0.5 * (1 + torch.erf(drawn.sort().values / math.sqrt(2)))
    distance = (distribution - (torch.arange(n) + 0.5) / n).abs().max().item()
    assert distance * math.sqrt(n) < 1.95  # as above


def test_samples_and_keys_are_independent() -> None:
    n = 100_000
    noise = white_noise(1, n, dtype=torch.float64)
    bound = DEVIATIONS / math.sqrt(n)
    for lag in range(1, 9):
        for other in (noise, noise**2 - 1):  # radius and angle of a pair are both random
            assert abs((noise[lag:] * other[:-lag]).mean().item()) < bound * other.std().item()
    for key in (0, 2, 1 + 2**32, 2**63 + 1):
        assert abs((noise * white_noise(key, n, dtype=torch.float64)).mean().item()) < bound


def test_a_key_is_of_64_bits_and_tells_its_parts_apart() -> None:
    parts: list[tuple[str | int, ...]] = [
        *((), ("",), ("", ""), ("ab", "c"), ("a", "bc"), ("abc",)),
        *((1,), ("1",), (-1,), (11,), (1, 1), (2**80,)),
        *(("é",), ("\udcc3\udca9",)),  # the latter is how Python names a file whose bytes are not UTF-8
    ]
    keys = [derive_key(*p) for p in parts]
    assert len(set(keys)) == len(keys)
    assert all(0 <= key < 2**64 for key in keys)
    # stored runs are made again from their keys: this digest may never change
    assert derive_key(7, "03-01-05-01", 0, "noise") == 0x331F2562A82931D5
    with pytest.raises(TypeError, match=r"1\.5"):
        derive_key(1.5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        *((partial(draw, key, 1), "key") for draw in (uniforms, white_noise) for key in (-1, 2**64)),
        (partial(uniforms, 0, 1, first=-1), "negative"),
        (partial(white_noise, 0, -1), "negative"),
        (partial(coloured_noise, 0, -1, 1.0), "negative"),
        *((partial(coloured_noise, 0, 100, value), "exponent") for value in (MAX_EXPONENT + 1, math.nan)),
        (partial(white_noise, 0, 1, dtype=torch.float16), "float16"),
    ],
)
def test_wrong_arguments_are_refused(draw: Callable[[], Any], message: str) -> None:
    with pytest.raises(TypeError if message == "float16" else ValueError, match=message):
        draw()


def octave_levels(num_samples: int, exponent: float, keys: int) -> np.ndarray:
    """Power density in dB of the octaves from 100 to 6400 Hz, averaged over keys."""
    # the window keeps brown noise's unequal ends from adding a slope of their own
    window = torch.hann_window(num_samples, dtype=torch.float64)
    noises = [coloured_noise(key, num_samples, exponent, dtype=torch.float64) for key in range(keys)]
    power = torch.fft.rfft(torch.stack(noises) * window).abs().square().sum(0)
    hertz = torch.arange(len(power)) * SAMPLE_RATE / num_samples
    edges = [100 * 2**octave for octave in range(7)]
    bands = [power[(hertz >= low) & (hertz < 2 * low)].mean() for low in edges[:-1]]
    return 10 * np.log10(np.array(bands))


@pytest.mark.parametrize("num_samples", [8_000, 16_001])
@pytest.mark.parametrize("exponent", [-1.0, 0.0, 0.5, 1.0, 2.0])
def test_coloured_noise_falls_by_its_exponent(num_samples: int, exponent: float) -> None:
    levels = octave_levels(num_samples, exponent, keys=8)
    slope = np.polyfit(np.arange(6), levels, 1)[0]
    assert abs(slope + 10 * math.log10(2) * exponent) < 0.5  # dB an octave, as asked for
    # Every octave lies on the line: the lowest has 50 bins a key, 8 keys make 400 (less by the window's
    # width of 1.5 bins), and 5 deviations of their mean are 1.3 dB.
    line = levels - slope * np.arange(6)
    assert np.abs(line - line.mean()).max() < 1.3


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0, MAX_EXPONENT, -MAX_EXPONENT])
@pytest.mark.parametrize("num_samples", [1, 63, 1000, 16_001])
def test_coloured_noise_has_unit_power(num_samples: int, exponent: float) -> None:
    noise = coloured_noise(4, num_samples, exponent)
    assert (noise.dtype, noise.shape) == (torch.float32, (num_samples,))
    assert abs(noise.double().square().mean().item() - 1) < 1e-5  # float32's sum of 16,000 squares
    assert coloured_noise(4, 0, exponent).shape == (0,)


def test_brown_noise_does_not_drift_into_an_offset() -> None:
    noise = torch.stack([coloured_noise(key, 32_768, 2.0, dtype=torch.float64) for key in range(4)])
    assert noise.mean(dim=1).abs().max().item() < 1e-12  # a whole period: its DC is taken away
    power = torch.fft.rfft(noise).abs().square().mean(dim=0)
    hertz = torch.arange(len(power)) * SAMPLE_RATE / 32_768
    below, above = power[(hertz > 0) & (hertz < 19)].mean(), power[(hertz > 20) & (hertz < 24)].mean()
    # 4 keys of 38 and 8 bins: 5 deviations of the latter's mean are a factor of 2; on with 1 / f^2 to the
    # lowest bin it would be 25
    assert 0.5 < below / above < 3


def test_colours_of_one_key_are_one_noise_shaped() -> None:
    white, brown = (torch.fft.rfft(coloured_noise(6, 2048, e, dtype=torch.float64))[1:] for e in (0.0, 2.0))
    ratio = white / brown
    assert (ratio.imag.abs() < 1e-9 * ratio.real).all()  # the phases are the same
    assert (ratio.real.diff()[3:] > 0).all()  # and the weights grow with the frequency
