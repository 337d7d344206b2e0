"""What is drawn depends on seed, recording and copy alone, and keeps to what was asked for."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cuda_kernels import spectral as kernel
from extractor.augment import (
    AUGMENTATIONS,
    NOISE,
    OPERATIONS,
    Clip,
    LatentMask,
    LatentMasks,
    Original,
    Pool,
    Recipe,
    SpecAugment,
    draw,
    parse,
    parse_recipe,
)
from extractor.augment.drawing import Random
from extractor.augment.spectral import (
    HOP,
    N_FFT,
    NUM_BINS,
    NUM_CHANNELS,
    POLICIES,
    RATIO_SLACK,
    bin_of,
    num_frames,
    pitch_ratio,
)
from extractor.errors import CannotAugment, SettingsError

N = 48_000
MANY = 2000  # recordings in tests of a distribution
EMOTIONS = ("neutral", "anger", "happiness", "sadness")
SOURCES = [Original(f"u{i:04}", N + i, EMOTIONS[i % 4], f"s{i // 4 % 5}") for i in range(MANY)]
CLIPS = [Clip(f"noise/{i}.wav", NOISE, 20_000 * i) for i in range(1, 7)]
POOL = Pool(SOURCES, {"noise": CLIPS})

# Every row of the table as it is by default, those that need something else with it, and combinations.
ASKED = [
    *AUGMENTATIONS,
    "noise:folder=noise",
    "copypaste:kind=n+se-cp,order=random,same_speaker=yes",
    "(0.6*stretch|0.3*specaugment|0.1*noise:color=pink)",
    "stretch+specaugment+gain:p=0.5",
]


def drawn(
    text: str, sources: Iterable[Original], seed: int = 7, copy: int = 1, pool: Pool = POOL
) -> list[Recipe]:
    augmentation = parse(text)
    return [draw(augmentation, source, seed, copy, pool) for source in sources]


def operations(text: str, count: int = MANY) -> list:
    """The only operation of each recording's recipe."""
    return [operation for recipe in drawn(text, SOURCES[:count]) for operation in recipe]


@pytest.mark.parametrize("text", ASKED)
def test_a_draw_does_not_depend_on_order_or_on_other_draws(text: str) -> None:
    some = SOURCES[:60]
    shuffled = random.Random(0).sample(some, len(some))
    backwards = Pool(reversed(SOURCES), {"noise": CLIPS[::-1]})
    again = dict(zip((s.id for s in shuffled), drawn(text, shuffled, pool=backwards), strict=True))
    recipes = drawn(text, some)
    assert [again[s.id] for s in some] == recipes
    for recipe in recipes:  # which survive their text, and are made of the table
        assert parse_recipe(recipe.text) == recipe
        assert all(OPERATIONS[operation.name] is type(operation) for operation in recipe)


@pytest.mark.parametrize("text", [t for t in ASKED if t != "bandpass"])  # a band has nothing to draw
def test_recordings_copies_and_seeds_draw_differently(text: str) -> None:
    each = [[r.text for r in drawn(text, SOURCES[:40], *which)] for which in ((7, 1), (7, 2), (8, 1))]
    assert len(set(each[0])) > 20
    for a, b in combinations(each, 2):
        assert sum(x == y for x, y in zip(a, b, strict=True)) < 10
    if text == "noise":
        assert len({operation.key for operation in operations(text)}) == MANY


def test_draws_are_the_same_in_every_version() -> None:
    """A run is resumed, and its copies are made again, by a later version: these must never change."""
    text = "(0.6*stretch:rate=0.8-1.25|0.4*specaugment:policy=LD)+noise:snr_db=5-20,p=0.5"
    assert [recipe.text for recipe in drawn(text, SOURCES[:4])] == GOLDEN


GOLDEN = [
    "stretch:rate=0.827684+noise:snr_db=5.262519,color=white,key=436092408206899500",
    "masks:warp_from=220.854287,warp_to=207.945102,bands=1-19;20-28,spans=292-296;261-280"
    "+noise:snr_db=18.960684,color=white,key=8558695395669098165",
    "stretch:rate=0.951102",
    "masks:warp_from=137.659314,warp_to=174.289462,bands=92-219;71-126,spans=147-234;212-220"
    "+noise:snr_db=6.458906,color=white,key=16446124850348312708",
]


def test_every_operation_is_drawn_by_an_augmentation() -> None:
    names = {operation.name for text in ASKED for recipe in drawn(text, SOURCES[:30]) for operation in recipe}
    assert names == set(OPERATIONS)


def chi_square(counts: Sequence[int], weights: Sequence[float]) -> float:
    total = sum(counts)
    expected = [total * weight / sum(weights) for weight in weights]
    return sum((count - e) ** 2 / e for count, e in zip(counts, expected, strict=True))


def test_choices_are_drawn_by_their_weights() -> None:
    names = Counter(operation.name for operation in operations("(6*stretch|3*gain|1*bandpass)"))
    counts = [names[name] for name in ("stretch", "gain", "band")]
    # Two degrees of freedom: 13.8 is exceeded by one fair draw in a thousand.
    assert chi_square(counts, [6, 3, 1]) < 13.8


@pytest.mark.parametrize("text", ["gain:p=0.3", "(gain):p=0.3", "(gain|pitch):p=0.3"])
def test_p_is_the_share_that_is_augmented(text: str) -> None:
    share = sum(len(recipe) > 0 for recipe in drawn(text, SOURCES)) / MANY
    # Four standard deviations of a share of 2,000: exceeded once in 16,000 fair draws.
    assert abs(share - 0.3) < 4 * math.sqrt(0.3 * 0.7 / MANY)
    assert {recipe.text for recipe in drawn(text, SOURCES) if not len(recipe)} == {"none"}


def test_inner_draws_do_not_depend_on_the_choice_around_them() -> None:
    """Whether a part is applied, and which is chosen, comes from other numbers than its parameters."""
    for weight in (0.5, 2):
        found = operations(f"(1*stretch:rate=1-2|{weight}*gain)")
        rates = [operation.rate for operation in found if operation.name == "stretch"]
        assert abs(sum(rates) / len(rates) - 1.5) < 4 * math.sqrt(1 / 12 / len(rates))


RANGES = "stretch:rate=0.8..1.25 pitch:semitones=-2..2 gain:db=-6..6 noise:snr_db=5..20"


@pytest.mark.parametrize("text", RANGES.split())
def test_ranges_are_drawn_from_uniformly(text: str) -> None:
    field = text.partition(":")[2].partition("=")[0]
    low, high = getattr(parse(text), field)
    values = sorted((getattr(operation, field) - low) / (high - low) for operation in operations(text))
    assert 0 <= values[0] <= values[-1] <= 1
    distance = max(max(x - i / MANY, (i + 1) / MANY - x) for i, x in enumerate(values))
    # Kolmogorov and Smirnov: exceeded by one fair draw in a thousand.
    assert distance < 1.95 / math.sqrt(MANY)


def test_lengths_are_known_before_anything_runs() -> None:
    assert parse_recipe("stretch:rate=0.8").num_samples(N) == 60_000
    assert parse_recipe("stretch:rate=1.25+join:clip=x,at=end,partner_samples=500").num_samples(N) == 38_900
    for name in ("pitch:semitones=3", "gain:db=1", "silence:spans=1-9", "band:low=1,high=2", "masks", "none"):
        assert parse_recipe(name).num_samples(N) == N


def test_later_items_see_the_length_that_earlier_ones_leave() -> None:
    slow = drawn("stretch:rate=0.25+timemask:width=40", SOURCES[:50])
    widths = [b - a for recipe in slow for a, b in recipe.operations[1].spans]
    assert {round(w / HOP) for w in widths} == {round(2 * (N + i) / HOP) for i in range(50)}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("n", [400, 5000, N])
def test_masks_keep_to_their_policy(policy: str, n: int) -> None:
    bounds, tau = POLICIES[policy], num_frames(n)
    sources = [Original(s.id, n) for s in SOURCES[:400]]
    edges = [bin_of(channel) for channel in range(NUM_CHANNELS + 1)]
    widest = 0
    for (masks,) in drawn(f"specaugment:policy={policy}", sources):
        assert len(masks.bands) <= bounds.frequency_masks and len(masks.spans) <= bounds.time_masks
        for first, last in masks.bands:
            assert first in edges and last in edges
            # Channels without a bin have the same edge as their neighbours: the fewest that fit.
            channels = len(edges) - 1 - edges[::-1].index(first) - edges.index(last)
            assert -channels <= bounds.frequency_width
        for first, last in masks.spans:
            assert 0 <= first < last <= tau
            widest = max(widest, last - first)
    most = min(bounds.time_width, int(bounds.time_share * tau))
    # 400 or more uniform widths of 0 .. most: the widest is in the upper tenth but once in 10^18.
    assert 0.9 * most <= widest <= most


def test_the_warp_moves_a_point_by_at_most_its_bound_and_off_the_ends() -> None:
    for n in (0, 100, 159, 700, 2000, N):
        tau = num_frames(n)
        most = min(30, tau // 4)
        for (masks,) in drawn("specaugment:warp=30", [Original(s.id, n) for s in SOURCES[:300]]):
            if most == 0:
                assert masks.warp_from is None
                continue
            assert most <= masks.warp_from <= tau - 1 - most
            assert abs(masks.warp_to - masks.warp_from) <= most
            assert 0 < masks.warp_to < tau - 1


def test_bounds_given_beside_a_policy_are_kept() -> None:
    text = "specaugment:policy=LD,frequency_masks=0,time_masks=5,time_width=3,warp=0"
    for masks in operations(text, 200):
        assert masks.bands == () and masks.warp_from is None and len(masks.spans) <= 5
        assert all(last - first <= 3 for first, last in masks.spans)


def test_mel_channels_part_the_bins() -> None:
    edges = [bin_of(channel) for channel in range(NUM_CHANNELS + 1)]
    assert (edges[0], edges[-1]) == (0, NUM_BINS) and edges == sorted(edges)
    widths = [b - a for a, b in pairwise(edges)]
    assert widths[-1] > 10 * widths[0]  # on the mel axis high channels are wide in Hz
    # HTK: 1000 Hz is 999.99 mel, 8000 Hz 2840.02; 1000 Hz lies in channel 28 of 80.
    assert edges[28] <= 1000 / 25 < edges[29]


def test_frames_and_bins_are_those_of_the_kernel() -> None:
    assert (N_FFT, HOP, NUM_BINS) == (kernel.N_FFT, kernel.HOP, kernel.NUM_BINS)
    assert 16_000 / N_FFT == 25


def test_pitch_ratios_are_close_and_small() -> None:
    for step in range(-2400, 2401):
        semitones = step / 100 + 0.0037 * (abs(step) < 2399)
        ratio = pitch_ratio(semitones)
        cents = 1200 * math.log2(ratio) - 100 * semitones
        assert abs(cents) <= RATIO_SLACK + 1e-9  # rounding of a logarithm
        assert max(ratio.numerator, ratio.denominator) <= 512
    assert pitch_ratio(0) == 1
    assert pitch_ratio(12) == 2
    assert pitch_ratio(-24) * 4 == 1


@pytest.mark.parametrize(
    ("n", "width", "count"), [(N, "0.1-0.2", 3), (1000, "5", 1), (1000, "5", 4), (1, "1", 1)]
)
def test_time_masks_cover_half_of_a_recording_at_most(n: int, width: str, count: int) -> None:
    sources = [Original(s.id, n) for s in SOURCES[:200]]
    for (mask,) in drawn(f"timemask:width={width},count={count}", sources):
        assert all(0 <= first < last <= n for first, last in mask.spans)
        assert sum(last - first for first, last in mask.spans) <= n // 2
        assert len(mask.spans) == (count if n > 1 else 0)
        if n == N:
            assert all(0.1 <= (last - first) / 16_000 <= 0.2 for first, last in mask.spans)


def test_latent_spans_follow_from_sizes_and_key_alone() -> None:
    masks = LatentMasks(0.5, 10, 0.3, 8, key=3)
    assert masks.spans(200, 768) == masks.spans(200, 768)
    assert masks.spans(200, 768)[0] == masks.spans(200, 32)[0]
    assert masks.spans(200, 768) != LatentMasks(0.5, 10, 0.3, 8, key=4).spans(200, 768)


@settings(max_examples=200, deadline=None)
@given(
    st.floats(0, 1), st.integers(1, 40), st.floats(0, 1), st.integers(1, 40), st.integers(0, 2**64 - 1),
    st.integers(1, 300), st.integers(1, 100),
)  # fmt: skip
def test_latent_spans_lie_inside_and_start_apart(
    time_prob: float, time_length: int, channel_prob: float, channel_length: int, key: int, T: int, D: int
) -> None:
    masks = LatentMasks(time_prob, time_length, channel_prob, channel_length, key)
    settings_of = ((T, time_prob, time_length, 2), (D, channel_prob, channel_length, 0))
    for spans, (size, prob, length, least) in zip(masks.spans(T, D), settings_of, strict=True):
        assert all(first >= 0 and last == first + length and last <= size for first, last in spans)
        assert len({first for first, _ in spans}) == len(spans)
        expected = prob * size / length
        if prob == 0:
            assert spans == ()
        elif size // length >= max(least, expected + 1):
            assert max(least, int(expected)) <= len(spans) <= max(least, math.ceil(expected))


def test_as_much_is_masked_as_in_transformers() -> None:
    """Counts and places, on average over keys, against the function that HuBERT is trained with."""
    import numpy as np
    from transformers.models.hubert.modeling_hubert import _compute_mask_indices

    T, count = 203, 400
    ours = np.zeros((count, T), dtype=bool)
    for key in range(count):
        for first, last in LatentMasks(0.37, 10, 0, 10, key).spans(T, 8)[0]:
            ours[key, first:last] = True
    np.random.seed(0)
    theirs = np.stack([_compute_mask_indices((1, T), 0.37, 10, min_masks=2)[0] for _ in range(count)])
    per_recording = np.stack([ours.mean(1), theirs.mean(1)])
    # Four standard errors of the difference of two means.
    error = 4 * math.sqrt(per_recording.var(1).sum() / count)
    assert abs(np.diff(per_recording.mean(1))[0]) < error
    # Along time alike, too: the ends are masked less. Five standard errors a frame, of 203 frames.
    by_frame = np.abs(ours.mean(0) - theirs.mean(0))
    assert by_frame.max() < 5 * math.sqrt(2 * 0.25 / count)


def test_a_recipe_tells_the_encoder_its_masks() -> None:
    (recipe,) = drawn("gain+latent:time_prob=0.4", SOURCES[:1])
    assert recipe.latent == recipe.operations[1]
    assert recipe.latent.time_prob == 0.4
    assert parse_recipe("gain:db=1").latent is None
    with pytest.raises(SettingsError, match="latent masks twice"):
        Recipe((recipe.operations[1], recipe.operations[1]))
    assert LatentMask().time_prob == 0.05


@pytest.mark.parametrize("same_speaker", ["yes", "no"])
@pytest.mark.parametrize("kind", ["n-cp", "se-cp", "n+se-cp"])
def test_partners_keep_the_label_and_are_never_the_recording_itself(kind: str, same_speaker: str) -> None:
    by_id = {source.id: source for source in SOURCES}
    kinds = Counter()
    for source, (join,) in zip(
        SOURCES, drawn(f"copypaste:kind={kind},same_speaker={same_speaker}", SOURCES), strict=True
    ):
        partner = by_id[join.clip]
        assert partner.id != source.id and partner.emotion in ("neutral", source.emotion)
        assert join.partner_samples == partner.num_samples
        assert join.num_samples(source.num_samples) == source.num_samples + partner.num_samples
        if same_speaker == "yes":
            assert partner.speaker == source.speaker
        if source.emotion != "neutral":
            kinds["n-cp" if partner.emotion == "neutral" else "se-cp"] += 1
    assert set(kinds) <= set(kind.replace("n+se-cp", "n-cp se-cp").split())
    # One degree of freedom: 10.8 is exceeded by one fair draw in a thousand.
    assert kind != "n+se-cp" or chi_square([kinds["n-cp"], kinds["se-cp"]], [1, 1]) < 10.8


def test_all_partners_are_drawn_alike_often() -> None:
    pool = Pool(SOURCES[:40])
    partners = Counter(recipe.clips[0].id for recipe in drawn("copypaste", SOURCES, pool=pool))
    assert set(partners) == {source.id for source in SOURCES[:40] if source.emotion == "neutral"}
    # Nine degrees of freedom: 27.9 is exceeded by one fair draw in a thousand.
    assert chi_square(list(partners.values()), [1] * 10) < 27.9


@pytest.mark.parametrize(
    ("order", "ends"), [("append", {"end"}), ("prepend", {"start"}), ("random", {"end", "start"})]
)
def test_the_order_of_a_join(order: str, ends: set[str]) -> None:
    assert {operation.at for operation in operations(f"copypaste:order={order}", 50)} == ends


def test_either_kind_is_taken_where_only_one_has_a_partner() -> None:
    pool = Pool([Original("a", 9, "fear"), Original("b", 9, "neutral"), Original("c", 9, "fear")])
    lonely = Original("x", 9, "anger")
    assert {r.clips[0].id for r in drawn("copypaste:kind=n+se-cp", [lonely], pool=pool)} == {"b"}


def test_recordings_of_noise_are_cut_within_their_length() -> None:
    lengths = {clip.id: clip.num_samples for clip in CLIPS}
    used = Counter()
    for source, recipe in zip(SOURCES, drawn("noise:folder=noise", SOURCES), strict=True):
        (noise,) = recipe
        assert recipe.clips == (Clip(noise.clip, NOISE),)
        start = noise.start * 16_000
        assert start == pytest.approx(round(start), abs=1e-6)  # a whole number of samples, in seconds
        assert start <= max(lengths[noise.clip] - source.num_samples, 0)
        used[noise.clip] += 1
    assert chi_square(list(used.values()), [1] * len(CLIPS)) < 20.5  # five degrees of freedom, 1 in 1,000


def test_a_clip_is_the_same_whatever_is_known_of_its_length() -> None:
    assert Clip("x", NOISE, 5) == Clip("x", NOISE)
    assert hash(Clip("x", NOISE, 5)) == hash(Clip("x", NOISE))
    assert Clip("x", NOISE) != Clip("x")
    twice = parse_recipe("join:clip=x,at=end,partner_samples=5+join:clip=x,at=start,partner_samples=5")
    assert twice.clips == (Clip("x"),)


ALONE = {
    "copypaste": (Original("n", 9, "neutral", "s"), "kind=n-cp: the corpus has no other neutral recording$"),
    "copypaste:kind=se-cp": (Original("a", 9, "anger", "s"), "no other anger recording"),
    "copypaste:kind=se-cp,p=1": (Original("?", 9, "", "s"), "emotion is not known"),
    "copypaste:same_speaker=yes": (
        Original("a", 9, "anger", "t"),
        "no other neutral recording of speaker 't'",
    ),
    "copypaste:same_speaker=yes,p=1": (Original("?", 9, "anger", ""), "speaker is not known"),
    "copypaste:kind=n+se-cp": (Original("n", 9, "neutral", "s"), "no other neutral recording$"),
    "noise:folder=x": (Original("a", 9), "no recording in folder 'x'"),
}


@pytest.mark.parametrize("text", ALONE)
def test_a_recording_without_a_partner_says_why(text: str) -> None:
    source, reason = ALONE[text]
    pool = Pool([Original("a", 9, "anger", "s"), Original("n", 9, "neutral", "s")])
    with pytest.raises(CannotAugment, match=reason):
        draw(parse(text), source, 0, 1, pool)


LACKING = {
    "stretch+copypaste": ([""], "copypaste: kind=n-cp: no recording has an emotion"),
    "(gain|copypaste:kind=se-cp)": ([""], "copypaste: kind=se-cp: no recording has an emotion"),
    "copypaste": (["anger"], "kind=n-cp: no recording of the corpus is neutral"),
    "copypaste:kind=se-cp": (["anger", "fear"], "no two recordings"),
    "copypaste:same_speaker=yes": (["neutral"], "same_speaker=True: no recording has a speaker"),
    "noise:folder=x": ([], "noise: folder=x: there is no recording in it"),
}


@pytest.mark.parametrize("text", LACKING)
def test_a_corpus_that_cannot_serve_is_refused_before_anything_runs(text: str) -> None:
    emotions, reason = LACKING[text]
    with pytest.raises(SettingsError, match=reason):
        parse(text).check(Pool([Original(str(i), 9, emotion) for i, emotion in enumerate(emotions)]))


def test_what_is_needed_is_known_beforehand() -> None:
    parse([*AUGMENTATIONS, "noise:folder=noise"]).check(POOL)
    tree = parse("stretch+(noise:folder=b|(noise:folder=a+noise:folder=b)|latent)")
    assert tree.folders == ("b", "a")
    assert tree.inside_encoder and not tree.needs_partners and not SpecAugment().inside_encoder
    assert parse("(gain|copypaste):p=0.1").needs_partners


def test_numbers_are_a_function_of_their_parts() -> None:
    def first(*parts: str | int) -> list[float]:
        numbers = Random(*parts)
        return [numbers.uniform() for _ in range(9)]

    assert first(7, "a", 1) == first(7, "a", 1)
    parts = ((7, "a", 1), (7, "a", 2), (7, "b", 1), (8, "a", 1), (7, "a1"))
    assert len({tuple(first(*each)) for each in parts}) == 5
    assert Random(7).inside(2).uniform() == Random(7, 2).uniform() != Random(7).uniform()


@given(st.integers(0, 2**32), st.integers(0, 50), st.integers(0, 50))
@settings(max_examples=100, deadline=None)
def test_distinct_numbers_are_distinct(key: int, count: int, more: int) -> None:
    found = Random(key).distinct(count, count + more)
    assert len(set(found)) == count
    assert found == sorted(found)
    assert all(0 <= number < count + more for number in found)


def test_distinct_numbers_are_alike_often() -> None:
    counts = Counter(number for key in range(MANY) for number in Random(key).distinct(3, 8))
    # Seven degrees of freedom, and less spread than independent draws have: 24.3 is 1 in 1,000.
    assert chi_square([counts[i] for i in range(8)], [1] * 8) < 24.3
