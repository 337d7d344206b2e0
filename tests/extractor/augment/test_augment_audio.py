"""Augmented audio is what physics says it should be, and depends on its own recording alone."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from cuda_kernels.spectral.stft import HOP, N_FFT, NUM_BINS, analyse
from extractor.augment import (
    AUGMENTATIONS,
    NOISE,
    OPERATIONS,
    Clip,
    Original,
    Pool,
    Recipe,
    draw,
    parse,
    parse_recipe,
)
from extractor.augment.apply import (
    HALF_WIDTH,
    STEPS,
    TRANSITION,
    augment,
    band_pass,
    cut,
    impulse_response,
    passes,
    spectral_edit,
)
from extractor.augment.spectral import MaskSpectrogram
from tests.conftest import relative_error, shared

RATE = 16_000
N = 24_000
# Relative L2 of float32 results against float64 ones, or against the same in another order of operations:
# a few dozen roundings of 6e-8 each.
ROUNDING = 2e-6


def sine(hertz: float, n: int = N, amplitude: float = 0.5) -> Tensor:
    return (amplitude * torch.sin(2 * math.pi * hertz / RATE * torch.arange(n, dtype=torch.float64))).float()


def noise(n: int = N, seed: int = 0, scale: float = 0.1) -> Tensor:
    return scale * torch.randn(n, generator=torch.Generator().manual_seed(seed))


def either(text: str, x: Tensor, **clips: Tensor) -> Tensor | str:
    """A waveform by a recipe; recordings to join by name."""
    recipe = parse_recipe(text)
    (result,) = augment([recipe], [x], {clip: clips[clip.id] for clip in recipe.clips})
    return result


def one(text: str, x: Tensor, **clips: Tensor) -> Tensor:
    result = either(text, x, **clips)
    assert not isinstance(result, str), result
    return result


def frequency(x: Tensor) -> float:
    """Hz of a sine: the middle of ``x`` under a Gaussian window, whose logarithmic peak is a parabola."""
    middle = x[len(x) // 4 : -len(x) // 4].double()
    time = torch.linspace(-1, 1, len(middle), dtype=torch.float64)
    power = torch.fft.rfft(middle * torch.exp(-8 * time.square()), n=2**17).abs()
    k = int(power.argmax())
    a, b, c = power[k - 1 : k + 2].log().tolist()
    return (k + 0.5 * (a - c) / (a - 2 * b + c)) * RATE / 2**17


def level(x: Tensor) -> float:
    """dB of the mean square, away from the ends."""
    return 10 * math.log10(x[len(x) // 4 : -len(x) // 4].double().square().mean().item())


@pytest.mark.parametrize("rate", [0.25, 0.8, 0.913048, 1.25, 4.0])
@pytest.mark.parametrize("hertz", [110.0, 440.0, 3000.0])
def test_a_stretched_sine_keeps_its_frequency_and_changes_its_length(rate: float, hertz: float) -> None:
    x = sine(hertz)
    y = one(f"stretch:rate={rate}", x)
    assert len(y) == round(N / rate)
    assert frequency(y) == pytest.approx(hertz, abs=1)
    # The bins of a sine come out of phase with each other, the more so the more often the frames where it
    # sets in are repeated (Laroche and Dolson 1999, "phasiness"): never louder, and within the usual rates
    # softer by less than the dB or so that is heard as a difference.
    assert level(y) < level(x) + 0.1
    assert level(y) > level(x) - 1 or not 0.8 <= rate <= 1.25


@pytest.mark.parametrize("semitones", [-24, -7.3, -2, -0.31, 0.5, 1.37, 2, 12, 24])
def test_a_shifted_sine_moves_by_its_semitones_and_keeps_its_length(semitones: float) -> None:
    x = sine(500.0)
    y = one(f"pitch:semitones={semitones}", x)
    assert len(y) == N
    cents = 1200 * math.log2(frequency(y) / 500) - 100 * semitones
    assert abs(cents) < 5
    assert level(y) < level(x) + 0.1  # as of a stretched sine
    assert level(y) > level(x) - 1 or abs(semitones) > 2


def test_a_rate_of_one_and_a_shift_of_nothing_change_nothing() -> None:
    x = noise()
    for text in ("stretch:rate=1", "pitch:semitones=0", "masks"):
        assert relative_error(one(text, x), x) < ROUNDING


def test_masked_bands_are_silent_and_the_others_untouched() -> None:
    x = noise()
    y = one("masks:bands=40-80;200-321", x)
    before, after = (analyse(z, [N]).abs() for z in (x, y))
    # Frames of the result overlap with each other's windows: a masked band is seen again through the
    # window's main lobe, two bins wide, and its side lobes, 31 dB down and falling.
    inner = after[10:-10, 44:76].square().sum() / before[10:-10, 44:76].square().sum()
    assert 10 * math.log10(inner) < -50
    for kept in (slice(2, 36), slice(84, 196)):
        error = (after[10:-10, kept] - before[10:-10, kept]).norm() / before[10:-10, kept].norm()
        assert error < 10 ** (-40 / 20)


def test_masked_frames_are_silent_and_the_others_untouched() -> None:
    x = noise()
    first, last = 50, 90
    y = one(f"masks:spans={first}-{last}", x)
    # A frame reaches half a window to either side of its centre: silent are samples of masked frames
    # alone, untouched those of none.
    silent = y[(first - 1) * HOP + N_FFT // 2 : last * HOP - N_FFT // 2]
    assert len(silent) == (last - first + 1) * HOP - N_FFT
    assert silent.abs().max() < 1e-7  # -100 dB of the noise: rounding of the inverse transform
    for kept in (slice(0, first * HOP - N_FFT // 2), slice((last - 1) * HOP + N_FFT // 2, N)):
        assert relative_error(y[kept], x[kept]) < ROUNDING


@pytest.mark.parametrize(("source", "target"), [(40.0, 60.0), (100.0, 75.0)])
def test_a_warp_moves_a_click_where_it_should(source: float, target: float) -> None:
    x = noise(scale=1e-4)
    x[round(source * HOP)] = 1.0
    y = one(f"masks:warp_from={source},warp_to={target}", x)
    assert len(y) == N
    # A vocoder spreads a click over its frames; their middle is where it lies.
    power = y.double().square()
    centre = (power * torch.arange(N)).sum() / power.sum()
    assert centre.item() == pytest.approx(target * HOP, abs=1.5 * HOP)


def test_a_warp_keeps_frequencies() -> None:
    y = one("masks:warp_from=60,warp_to=90", sine(440.0))
    assert frequency(y[: N // 2]) == pytest.approx(440, abs=1)
    assert frequency(y[N // 2 :]) == pytest.approx(440, abs=1)


def test_stretch_and_warp_are_one_map_of_time() -> None:
    masks = MaskSpectrogram(30.0, 40.0, spans=((3, 5),), bands=((1, 2),))
    edit = spectral_edit(0.8, masks, n := 16_000)
    last = n // HOP

    def source(frame: float) -> float:  # of the recording, for a frame of the result
        warped = frame * 30 / 40 if frame <= 40 else 30 + (frame - 40) * (last - 30) / (last - 40)
        return 0.8 * warped

    for frame in (0.0, 17.5, 40.0, 41.0, float(last)):
        before = min(frame, edit.knee)
        position = before * edit.rates[0] + (frame - before) * edit.rates[1]
        assert position == pytest.approx(source(frame), rel=1e-12)
    assert (edit.num_frames, edit.spans, edit.bands) == (last + 1, ((3, 5),), ((1, 2),))
    recipe = parse_recipe("stretch:rate=0.8+masks:spans=3-5")
    assert len(passes(recipe)) == 1
    assert len(passes(parse_recipe("masks:spans=3-5+stretch:rate=0.8"))) == 2


@pytest.mark.parametrize("n", [1600, N])
@pytest.mark.parametrize("asked", [-5.0, 12.3, 40.0])
@pytest.mark.parametrize(
    "kind", ["color=white,key=9", "color=pink,key=9", "color=brown,key=9", "clip=c,start=0.5"]
)
def test_the_signal_to_noise_ratio_is_the_one_asked_for(kind: str, asked: float, n: int) -> None:
    x = sine(300.0, n) + noise(n)
    clip = noise(30_000, seed=1, scale=3.0).cumsum(0)
    y = augment([parse_recipe(f"noise:snr_db={asked},{kind}")], [x], {Clip("c", NOISE): clip})[0]
    signal, added = (z.double().square().mean() for z in (x, y - x))
    assert 10 * math.log10(signal / added) == pytest.approx(asked, abs=0.1)


def test_made_noise_is_of_its_colour() -> None:
    slopes = {}
    for color in ("white", "pink", "brown"):
        power = torch.zeros(NUM_BINS, dtype=torch.float64)
        for key in range(4):
            x = noise(64_000)
            y = one(f"noise:snr_db=0,color={color},key={key}", x)
            power += analyse(y - x, [64_000]).abs().double().square().mean(0)
        slopes[color] = 10 * math.log10(power[160:192].mean() / power[20:24].mean()) / 3  # dB an octave
    assert slopes == {
        "white": pytest.approx(0, abs=0.5),
        "pink": pytest.approx(-3, abs=0.5),
        "brown": pytest.approx(-6, abs=0.5),
    }


def test_noise_keys_make_the_noise_and_nothing_else_does() -> None:
    x = noise()
    for color in ("white", "pink"):
        a, b, c = (one(f"noise:snr_db=9,color={color},key={key}", x) for key in (1, 1, 2))
        assert torch.equal(a, b)
        assert abs(torch.corrcoef(torch.stack([a - x, c - x]))[0, 1]) < 6 / math.sqrt(N)  # independent


def test_short_recordings_of_noise_begin_again() -> None:
    clip = torch.arange(5.0)
    assert cut(clip, 0, 3).tolist() == [0, 1, 2]
    assert cut(clip, 3, 4).tolist() == [3, 4, 0, 1]
    assert cut(clip, 0, 12).tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]
    assert cut(clip, 12, 2).tolist() == [2, 3]
    assert cut(clip[:0], 0, 2).tolist() == [0, 0]


@pytest.mark.parametrize("db", [-40.0, -3.1, 0.0, 6.0])
def test_gain_is_a_factor(db: float) -> None:
    x = noise()
    torch.testing.assert_close(one(f"gain:db={db}", x), x * 10 ** (db / 20), rtol=1e-6, atol=0)


def test_silence_covers_what_was_asked_and_nothing_else() -> None:
    x = noise()
    y = one("silence:spans=100-900;23000-99000", x)
    expected = x.clone()
    expected[100:900] = expected[23_000:] = 0
    assert torch.equal(y, expected)


def test_one_pass_gives_what_one_operation_after_the_other_gives() -> None:
    texts = ["gain:db=-3.1", "noise:snr_db=10,color=white,key=3", "silence:spans=100-900", "gain:db=2"]
    together = parse_recipe("+".join(texts))
    assert [len(operations) for _, operations in passes(together)] == [3, 1]
    y = x = noise()
    for text in texts:
        y = one(text, y)
    assert relative_error(one(together.text, x), y) < ROUNDING


@pytest.mark.parametrize(("low", "high"), [(300.0, 3400.0), (0.0, 1000.0), (2000.0, 8000.0)])
def test_a_band_keeps_and_kills_sines(low: float, high: float) -> None:
    for hertz in (60.0, 150.0, low + TRANSITION, (low + high) / 2, high - TRANSITION, 7000.0):
        if low + TRANSITION <= hertz <= high - TRANSITION:
            y = one(f"band:low={low},high={high}", x := sine(hertz))
            assert level(y) == pytest.approx(level(x), abs=0.01)
            middle = slice(N // 4, -N // 4)
            assert relative_error(y[middle], x[middle]) < 1e-3  # nothing moves in time
    for hertz in (low - TRANSITION, low / 2 - TRANSITION, high + TRANSITION, (high + 8000) / 2):
        if 0 <= hertz < 8000 and not low - TRANSITION < hertz < high + TRANSITION:
            x = torch.full((N,), 0.5) if hertz == 0 else sine(hertz)
            assert level(one(f"band:low={low},high={high}", x)) < level(x) - 60


@pytest.mark.parametrize("n", [1, 63, 400, 801, 1000, 16_001])
def test_the_band_is_a_convolution_with_silence_around(n: int) -> None:
    x = noise(n).double()
    h = impulse_response(300.0, 3400.0)
    direct = torch.nn.functional.conv1d(x[None, None], h[None, None], padding=HALF_WIDTH)[0, 0]
    assert torch.equal(h, h.flip(0))
    # 801 products in float64, of about the size of the result.
    assert relative_error(band_pass(x, 300.0, 3400.0), direct) < 1e-12
    assert relative_error(band_pass(x.float(), 300.0, 3400.0).double(), direct) < ROUNDING


def test_bands_that_part_the_axis_add_up_to_the_recording() -> None:
    x = noise()
    parts = [one(f"band:low={low},high={high}", x) for low, high in ((0, 500), (500, 3000), (3000, 8000))]
    assert relative_error(sum(parts), x) < ROUNDING


@pytest.mark.parametrize("at", ["start", "end"])
def test_a_joined_recording_has_the_level_of_the_first(at: str) -> None:
    x, other = noise(), sine(200.0, 7000, amplitude=3.0)
    y = one(f"join:clip=b,at={at},partner_samples=7000", x, b=other)
    assert len(y) == N + 7000
    own, joined = (y[:N], y[N:]) if at == "end" else (y[7000:], y[:7000])
    assert torch.equal(own, x)
    assert relative_error(joined / joined.norm(), other / other.norm()) < ROUNDING
    assert joined.square().mean().sqrt().item() == pytest.approx(x.square().mean().sqrt().item(), rel=1e-5)


def test_quiet_recordings_are_matched_too() -> None:
    x, other = noise(scale=1e-25), noise(9000, seed=1, scale=1e-25)  # squares below float32's range
    y = one("join:clip=b,at=end,partner_samples=9000", x, b=other)
    own, joined = (z.double().square().mean().item() for z in (x, y[N:]))
    assert joined == pytest.approx(own, rel=1e-5, abs=0)


SILENCE = torch.zeros(N)


def test_what_has_no_level_is_refused_with_a_reason() -> None:
    x, join = noise(), "join:clip=b,at=end,partner_samples=9"
    for text, audio, other, reason in (
        ("noise:snr_db=5,color=white,key=1", SILENCE, x, "the recording is silent"),
        ("noise:snr_db=5,color=pink,key=1+gain:db=3", SILENCE, x, "the recording is silent"),
        ("noise:snr_db=5,clip=b,start=0", x, SILENCE, "noise recording that was drawn is silent"),
        (join, SILENCE, x, "the recording is silent"),
        ("gain:db=1+" + join, x, SILENCE, "'b', is silent"),
        ("gain:db=1", x[:0], x, "no samples"),
    ):
        result = either(text, audio, b=other)
        assert isinstance(result, str) and reason in result
    assert torch.equal(one("gain:db=3+silence:spans=5-9", SILENCE), SILENCE)


def test_a_recording_that_cannot_be_augmented_leaves_the_others_alone() -> None:
    x = noise()
    recipes = [parse_recipe("noise:snr_db=5,color=white,key=1+gain:db=3+band:low=300,high=3400")] * 3
    results = augment(recipes, [x, SILENCE, x[:9000]], {})
    assert isinstance(results[1], str)
    assert torch.equal(results[0], augment(recipes[:1], [x], {})[0])
    assert torch.equal(results[2], augment(recipes[:1], [x[:9000]], {})[0])


def test_recordings_shorter_than_planned_are_masked_as_far_as_they_go() -> None:
    x = noise(1600)
    y = one("masks:warp_from=300,warp_to=280,spans=5-400;600-700+silence:spans=0-3;1500-9000;9000-9999", x)
    assert len(y) == 1600
    assert (y[:3] == 0).all()
    assert (y[1500:] == 0).all()
    assert y[3:500].abs().max() > 0
    joined = one("join:clip=b,at=end,partner_samples=9000", x, b=noise(500, seed=1))
    assert len(joined) == 2100


LENGTHS = (16_001, 400, 9000, 1, 12_345, 159)
CLIPS = {Clip("b"): noise(5000, seed=5), Clip("c", NOISE): noise(3000, seed=6)}
TEXTS = (
    "stretch:rate=0.913",
    "masks:bands=3-9,spans=1-2",
    "stretch:rate=1.2+masks:warp_from=20,warp_to=24.5,bands=30-50,spans=2-4;7-9",
    "pitch:semitones=1.37",
    "pitch:semitones=-3",
    "gain:db=-3+noise:snr_db=7,color=white,key=5+silence:spans=3-90",
    "noise:snr_db=7,color=brown,key=6",
    "noise:snr_db=7,clip=c,start=0.1+band:low=300,high=3400+gain:db=2",
    "join:clip=b,at=start,partner_samples=5000+stretch:rate=0.9",
    "latent:time_prob=0.1,time_length=10,channel_prob=0,channel_length=10,key=1+gain:db=1",
    "none",
)


def test_the_batch_has_every_operation() -> None:
    assert {operation.name for text in TEXTS for operation in parse_recipe(text)} == set(OPERATIONS)
    assert set(STEPS) == set(OPERATIONS.values())


def test_a_result_does_not_depend_on_batch_mates() -> None:
    texts = (
        *TEXTS,
        "stretch:rate=0.77",
        "stretch:rate=3.9",
        "pitch:semitones=-7.3",
        "pitch:semitones=5",
        "masks",
    )
    jobs = [(parse_recipe(text), noise(n, seed=n)) for text, n in itertools.product(texts, LENGTHS)]
    together = augment([recipe for recipe, _ in jobs], [x for _, x in jobs], CLIPS)
    for (recipe, x), batched in zip(jobs, together, strict=True):
        (alone,) = augment([recipe], [x], CLIPS)
        assert isinstance(batched, Tensor), batched
        assert torch.equal(batched, alone), recipe.text
        assert batched.isfinite().all()
        assert len(batched) == recipe.num_samples(len(x))


def test_what_comes_in_is_left_as_it_was() -> None:
    clips = {clip: audio.clone() for clip, audio in CLIPS.items()}
    for text in TEXTS:
        x = noise(4000)
        augment([parse_recipe(text)], [x], clips)
        assert torch.equal(x, noise(4000))
    assert all(torch.equal(clips[clip], CLIPS[clip]) for clip in CLIPS)
    assert augment([], [], {}) == []
    assert augment([Recipe()], [x], {})[0] is x


@pytest.mark.parametrize("text", TEXTS)
def test_float32_is_as_good_as_float64(text: str) -> None:
    x = noise(9000)
    recipe = parse_recipe(text)
    exact = {clip: audio.double() for clip, audio in CLIPS.items()}
    (single,), (double,) = augment([recipe], [x], CLIPS), augment([recipe], [x.double()], exact)
    assert double.dtype == torch.float64
    # The vocoder divides by magnitudes as small as 1e-3 of the noise's: its roundings weigh more.
    assert relative_error(single.double(), double) < 1e-4


@pytest.mark.parametrize("text", [t for t in TEXTS if "=" in t])
def test_the_kernels_give_what_pytorch_gives(text: str) -> None:
    """In Triton's interpreter where there is no GPU; short, because that is slow."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    clips = {clip: audio[:700].to(device) for clip, audio in CLIPS.items()}
    recipe, x = parse_recipe(text), noise(1600).to(device)
    (a,), (b,) = (augment([recipe], [x], clips, backend) for backend in ("triton", "torch"))
    # As above: phases of bins with little energy.
    assert relative_error(a, b) < 1e-4


def test_real_recordings_through_the_whole_table() -> None:
    soundfile = pytest.importorskip("soundfile")
    files = sorted(shared("emodb").rglob("*.wav"))[:8]
    audio = {file.stem: torch.from_numpy(soundfile.read(file, dtype="float32")[0]) for file in files}
    sources = [
        Original(name, len(x), "neutral" if i % 2 else "anger", name[:2])
        for i, (name, x) in enumerate(audio.items())
    ]
    pool = Pool(sources)
    for name in AUGMENTATIONS:
        recipes = [draw(parse(name), source, 1, 1, pool) for source in sources]
        clips = {clip: audio[clip.id] for recipe in recipes for clip in recipe.clips}
        for source, recipe, y in zip(
            sources, recipes, augment(recipes, [*audio.values()], clips), strict=True
        ):
            assert isinstance(y, Tensor), y
            assert len(y) == recipe.num_samples(source.num_samples)
            assert y.isfinite().all()
            assert torch.equal(y, audio[source.id]) == (name == "latent")
            # Noise at 5 dB or a gain of 6 dB is the most that makes a recording louder.
            assert y.square().mean() < 5 * audio[source.id].square().mean()
