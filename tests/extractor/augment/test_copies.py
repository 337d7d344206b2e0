"""Augmented copies in a run: the same whatever the circumstances, with their labels, never lost."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from conftest import FP32_RELATIVE, MakeCheckpoint, make_model
from run_cases import stopped

from extractor import InputError, SettingsDiffer, SettingsError, Store, extract
from extractor.augment import (
    Compose,
    Gain,
    Original,
    Pool,
    SpecAugment,
    TimeStretch,
    draw,
    parse,
    parse_recipe,
)
from extractor.plan.windows import split_windows
from extractor.run.batch import _within
from extractor.run.engine import run
from extractor.run.options import Options
from extractor.types import LatentMask

EVERY_KIND = (
    "(stretch:rate=0.8-1.25+specaugment:policy=LD|noise:snr_db=5-20,color=pink|pitch:semitones=-2..2"
    "|copypaste:kind=n+se-cp|timemask|bandpass+gain)"
)
EMOTIONS = ("neutral", "anger")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve recordings of noise, 0.3 to 1.5 s, two speakers, two emotions, as a manifest."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    lines = ["path,emotion,speaker"]
    for i in range(12):
        audio = 0.1 * rng.standard_normal(int(rng.integers(4_800, 24_000)))
        soundfile.write(folder / f"n{i:02}.wav", audio, 16_000)
        lines.append(f"n{i:02}.wav,{EMOTIONS[i % 2]},s{i % 3 % 2}")
    (folder / "all.csv").write_text("\n".join(lines) + "\n")
    return folder


def some(corpus: Path, numbers: list[int], name: str) -> Path:
    """A manifest of some of the corpus's recordings, in that order."""
    header, *rows = (corpus / "all.csv").read_text().splitlines()
    path = corpus / name
    path.write_text("\n".join([header, *(rows[i] for i in numbers)]) + "\n")
    return path


def embed(source: Path | list[Path], out: Path, **options: Any) -> Store:
    usual = {"model": "mfcc", "pooling": "mean,std", "augment": EVERY_KIND, "copies": 2, "seed": 7}
    return extract(source, out=out, **usual | options)


@pytest.fixture(scope="module")
def whole(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """All of it at once."""
    return embed(corpus / "all.csv", tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture(scope="module")
def whole_by_seconds(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, bytes]]:
    """Its rows, from batches of a second."""
    return rows(embed(corpus / "all.csv", tmp_path_factory.mktemp("seconds") / "run", batch_seconds=1.0))


def rows(store: Store) -> dict[str, tuple[str, bytes]]:
    """Recipe and embedding by id."""
    recipes = store.labels("augmentation")
    return {
        name: (recipe, row.tobytes())
        for name, recipe, row in zip(store.ids, recipes, store.load(pooling="std"), strict=True)
    }


def same_but_for_rounding(a: dict[str, tuple[str, bytes]], b: dict[str, tuple[str, bytes]]) -> bool:
    """Recipes exactly; rows as the engine promises them for other batches and numbers of threads."""
    if {name: recipe for name, (recipe, _) in a.items()} != {name: recipe for name, (recipe, _) in b.items()}:
        return False
    x, y = (np.stack([np.frombuffer(rows[name][1], np.float32) for name in sorted(a)]) for rows in (a, b))
    return bool((np.linalg.norm(x - y, axis=1) < FP32_RELATIVE * np.linalg.norm(y, axis=1)).all())


def test_copies_carry_their_original_s_labels_and_what_was_done(whole: Store) -> None:
    store = whole
    assert len(store) == 36 and not store.errors
    assert store.ids[:4] == ["n00", "n00~1", "n00~2", "n01"]
    assert store.labels("original")[:4] == ["n00", "n00", "n00", "n01"]
    assert store.labels("copy")[:4] == ["0", "1", "2", "0"]
    planned = [
        json.loads(line)["labels"] for line in (store.path / "manifest.jsonl").read_text().splitlines()
    ]
    assert [labels["copy"] for labels in planned] == ["0", "1", "2"] * 12
    assert all(labels["augmentation"] for labels in planned)
    assert store.labels("emotion")[:4] == ["neutral", "neutral", "neutral", "anger"]
    assert store.labels("speaker")[3:6] == [store.labels("speaker")[3]] * 3
    recipes = store.labels("augmentation")
    assert recipes[::3] == ["none"] * 12
    assert all(parse_recipe(recipe).text == recipe for recipe in recipes)
    clean = dict(zip(store.ids, store.num_samples.tolist(), strict=True))
    for name, original, recipe in zip(store.ids, store.labels("original"), recipes, strict=True):
        assert clean[name] == parse_recipe(recipe).num_samples(clean[original])


def test_clean_copies_are_what_a_run_without_augmentation_gives(
    corpus: Path, whole: Store, tmp_path: Path
) -> None:
    plain = extract(corpus / "all.csv", model="mfcc", pooling="mean,std", out=tmp_path / "plain")
    clean = [i for i, copy in enumerate(whole.labels("copy")) if copy == "0"]
    for pooling in ("mean", "std"):
        assert np.array_equal(whole.load_rows(clean, pooling=pooling), plain.load(pooling=pooling))


def test_a_copy_is_the_same_in_any_order_batch_and_number_of_workers(
    corpus: Path, whole: Store, tmp_path: Path
) -> None:
    expected = rows(whole)
    order = random.Random(1).sample(range(12), 12)
    shuffled = some(corpus, order, "shuffled.csv")
    for name, options in (("b", {"batch_seconds": 0.2}), ("c", {"batch_seconds": 100.0, "workers": 1})):
        assert same_but_for_rounding(rows(embed(shuffled, tmp_path / name, **options)), expected)
    copies = [recipe for name, (recipe, _) in expected.items() if "~" in name]
    assert (len(copies), len(set(copies))) == (24, 23)  # two of them are joined to the same recording


def test_each_copy_is_drawn_by_its_own_number(corpus: Path, tmp_path: Path) -> None:
    """Copy 2 is what number 2 draws: another than copy 1, and the same in every version."""
    store = embed(corpus / "all.csv", tmp_path / "run", augment="noise:snr_db=5..20", copies=3)
    recipes = dict(zip(store.ids, store.labels("augmentation"), strict=True))
    drawn = parse("noise:snr_db=5..20")
    lengths = dict(zip(store.ids, store.num_samples.tolist(), strict=True))
    for name, original, number in zip(store.ids, store.labels("original"), store.labels("copy"), strict=True):
        if number != "0":
            source = Original(original, lengths[original])
            assert recipes[name] == draw(drawn, source, 7, int(number), Pool()).text
    copies = [recipe for recipe in recipes.values() if recipe != "none"]
    assert len(set(copies)) == len(copies) == 36
    assert recipes["n00~1"] == "noise:snr_db=12.384002,color=white,key=16446709322763561978"
    assert recipes["n00~2"] == "noise:snr_db=13.178063,color=white,key=2178658365055283573"


def test_a_copy_is_the_same_whatever_else_is_in_the_input(corpus: Path, tmp_path: Path) -> None:
    """Unless it takes another recording in."""
    alone = EVERY_KIND.replace("|copypaste:kind=n+se-cp", "")
    expected = rows(embed(corpus / "all.csv", tmp_path / "all", augment=alone))
    found = rows(embed(some(corpus, [3, 7], "few.csv"), tmp_path / "few", augment=alone))
    assert len(found) == 6
    assert same_but_for_rounding(found, {name: expected[name] for name in found})


def test_another_seed_gives_other_copies(corpus: Path, tmp_path: Path) -> None:
    a, b = (embed(corpus / "all.csv", tmp_path / f"{seed}", seed=seed) for seed in (1, 2))
    same = [x == y for x, y in zip(a.labels("augmentation"), b.labels("augmentation"), strict=True)]
    assert same == [copy == "0" for copy in a.labels("copy")]


def test_a_run_that_was_stopped_goes_on_with_the_same_copies(
    corpus: Path, whole_by_seconds: dict[str, tuple[str, bytes]], tmp_path: Path
) -> None:
    options = Options("mfcc", pooling="mean,std", augment=EVERY_KIND, copies=2, seed=7, batch_seconds=1.0)
    assert run(corpus / "all.csv", options, tmp_path / "run", stop=stopped()).stopped
    assert not run(corpus / "all.csv", options, tmp_path / "run").stopped
    assert rows(Store(tmp_path / "run")) == whole_by_seconds


def test_a_run_that_grows_keeps_its_copies_and_adds_those_of_the_new(corpus: Path, tmp_path: Path) -> None:
    first = rows(embed(some(corpus, [0, 1, 2], "some.csv"), tmp_path / "run"))
    grown = rows(embed(corpus / "all.csv", tmp_path / "run"))
    assert len(grown) == 36
    assert {name: grown[name] for name in first} == first
    assert rows(embed(corpus / "all.csv", tmp_path / "run")) == grown


def test_partners_of_added_recordings_are_drawn_from_the_whole_input(corpus: Path, tmp_path: Path) -> None:
    joined = "copypaste:kind=se-cp"
    whole = embed(corpus / "all.csv", tmp_path / "whole", augment=joined)
    embed(some(corpus, list(range(10)), "most.csv"), tmp_path / "grown", augment=joined)
    grown = embed(corpus / "all.csv", tmp_path / "grown", augment=joined)
    added = [name for name in whole.ids if name.startswith(("n10", "n11"))]
    of_whole, of_grown = ({name: rows(store)[name] for name in added} for store in (whole, grown))
    assert same_but_for_rounding(of_grown, of_whole)


def test_shards_draw_what_one_run_draws(
    corpus: Path, whole_by_seconds: dict[str, tuple[str, bytes]], tmp_path: Path
) -> None:
    for i in range(3):
        embed(corpus / "all.csv", tmp_path / "shards", batch_seconds=1.0, shard=(i, 3))
    assert rows(Store(tmp_path / "shards")) == whole_by_seconds


def test_without_clean_copies_only_the_augmented_ones_are_there(corpus: Path, tmp_path: Path) -> None:
    store = embed(corpus / "all.csv", tmp_path / "run", clean=False, copies=1)
    assert store.labels("copy") == ["1"] * 12


def test_objects_texts_and_files_ask_for_the_same(corpus: Path, tmp_path: Path) -> None:
    made = Compose([TimeStretch(rate=(0.9, 1.1)), SpecAugment("LD"), Gain(db=(-6, 6), p=0.5)])
    text = "stretch:rate=0.9-1.1+specaugment:policy=LD+gain:db=-6..6,p=0.5"
    (tmp_path / "a.yaml").write_text(
        "augment:\n  compose:\n    - stretch: {rate: [0.9, 1.1]}\n    - specaugment: {policy: LD}\n"
        "    - gain: {db: [-6, 6], p: 0.5}\ncopies: 2\nseed: 7\n"
    )
    expected = rows(embed(corpus / "all.csv", tmp_path / "object", augment=made))
    assert rows(embed(corpus / "all.csv", tmp_path / "text", augment=text)) == expected
    config = {"augment": None, "augment_config": tmp_path / "a.yaml", "copies": None, "seed": None}
    assert rows(embed(corpus / "all.csv", tmp_path / "file", **config)) == expected
    # One and the same to a run that is resumed, too.
    embed(corpus / "all.csv", tmp_path / "text", **config)


def test_a_run_with_other_copies_is_refused_by_name(corpus: Path, whole: Store) -> None:
    for name, value in {"seed": 8, "copies": 3, "augment": "gain", "clean": False}.items():
        with pytest.raises(SettingsDiffer, match=name):
            embed(corpus / "all.csv", whole.path, **{name: value})


def test_a_copy_that_becomes_too_short_is_an_error_row(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "short.wav", np.full(600, 0.1), 16_000)
    store = embed(tmp_path / "short.wav", tmp_path / "run", augment="stretch:rate=2", copies=1)
    assert store.ids == ["short"]
    (failure,) = store.errors
    assert (failure.id, failure.stage) == ("short~1", "augment")
    assert "300 samples" in failure.reason and "stretch:rate=2" in failure.reason


def test_a_silent_recording_has_no_level_for_noise_and_says_so(corpus: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "silent.wav", np.zeros(8_000), 16_000)
    store = embed([tmp_path / "silent.wav", corpus / "n00.wav"], tmp_path / "run", augment="noise")
    assert [failure.id for failure in store.errors] == ["silent~1", "silent~2"]
    assert all(f.stage == "augment" and "silent" in f.reason for f in store.errors)
    assert store.ids == ["silent", "n00", "n00~1", "n00~2"]


def test_a_partner_that_cannot_be_decoded_is_named(corpus: Path, tmp_path: Path) -> None:
    """Its samples are NaN, which no header tells."""
    lines = ["path,emotion,speaker", f"{corpus}/n00.wav,anger,a", "bad.wav,neutral,a"]
    (tmp_path / "all.csv").write_text("\n".join(lines) + "\n")
    soundfile.write(tmp_path / "bad.wav", np.full(8_000, np.nan, np.float32), 16_000, subtype="FLOAT")
    store = embed(tmp_path / "all.csv", tmp_path / "run", augment="copypaste:kind=n-cp", copies=1)
    reasons = {failure.id: failure for failure in store.errors}
    assert set(reasons) == {"n00~1", "bad", "bad~1"}
    assert reasons["n00~1"].stage == "augment" and "bad.wav" in reasons["n00~1"].reason
    assert store.ids == ["n00"]


def test_noise_from_a_folder_is_named_in_the_row(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "noise" / "street").mkdir(parents=True)
    rng = np.random.default_rng(5)
    for i, seconds in enumerate((0.2, 3.0)):
        hum = 0.05 * rng.standard_normal(int(seconds * 16_000))
        soundfile.write(tmp_path / "noise" / "street" / f"{i}.wav", hum, 16_000)
    folder = tmp_path / "noise"
    store = embed(corpus / "all.csv", tmp_path / "run", augment=f'noise:snr_db=10,folder="{folder}"')
    assert len(store) == 36 and not store.errors
    recipes = [r for r in store.labels("augmentation") if r != "none"]
    assert {str(folder / "street" / f"{i}.wav") in recipe for recipe in recipes for i in (0, 1)} == {
        True,
        False,
    }
    assert all("clip=" in recipe for recipe in recipes)


@pytest.mark.parametrize(
    ("source", "augment", "error", "says"),
    [
        ("all.csv", "stretch:rate=0", SettingsError, "rate"),
        ("all.csv", "latent", SettingsError, "latent"),
        ("all.csv", 'noise:folder="nowhere"', InputError, "nowhere"),
        ("all.csv", 'noise:folder="{empty}"', InputError, "empty"),
        ("n00.wav", "copypaste:kind=se-cp", SettingsError, "copypaste"),  # a corpus without labels
        ("own.csv", EVERY_KIND, InputError, "'copy'"),  # a column that augmentation makes
    ],
)
def test_what_cannot_work_is_refused_before_anything_runs(
    source: str, augment: str, error: type[Exception], says: str, corpus: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (corpus / "own.csv").write_text("path,copy\nn00.wav,3\n")
    with pytest.raises(error, match=says):
        embed(corpus / source, tmp_path / "run", augment=augment.replace("{empty}", f"{tmp_path}/empty"))
    assert not (tmp_path / "run" / "parts").exists()


def test_latent_masks_reach_the_encoder(corpus: Path, checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    """Against the reference with the masks that the row's recipe gives."""
    model_folder = checkpoint("hubert", do_normalize=False)
    options = {"model": str(model_folder), "layers": "last", "pooling": "mean", "dtype": "fp32"}
    latent = "latent:time_prob=0.4,time_length=3"
    store = embed(corpus / "all.csv", tmp_path / "run", augment=latent, copies=1, **options)
    model = make_model("hubert")
    values = store.load(layer=-1)
    for i, recipe in enumerate(store.labels("augmentation")):
        audio = torch.from_numpy(soundfile.read(store.paths[i], dtype="float32")[0])
        indices = torch.zeros(1, int(store.num_frames[i]), dtype=torch.bool)
        for operation in parse_recipe(recipe):
            for first, last in operation.spans(indices.shape[1], values.shape[1])[0]:
                indices[0, first:last] = True
        assert indices.any() == (recipe != "none")
        with torch.no_grad():
            theirs = model(audio[None], mask_time_indices=indices).last_hidden_state[0].mean(0).numpy()
        assert np.linalg.norm(values[i] - theirs) / np.linalg.norm(theirs) < FP32_RELATIVE


def test_a_window_sees_its_own_part_of_a_mask() -> None:
    """Frames that are kept from the windows are masked where the whole recording's are."""
    stride, field, samples = 320, 400, 16_000 * 100
    total = (samples - field) // stride + 1
    frames = [(0, 3), (1_400, 1_700), (total - 2, total)]
    whole = np.zeros(total, bool)
    for first, last in frames:
        whole[first:last] = True
    kept = []
    for window in split_windows(samples, 16_000 * 30, stride, field):
        mask = _within(LatentMask(frames, ((1, 2),)), window, stride)
        assert mask is not None and mask.channels == ((1, 2),)
        own = np.zeros(window.num_frames, bool)
        for first, last in mask.frames:
            assert 0 <= first < last <= window.num_frames
            own[first:last] = True
        kept.append(own[window.keep])
    assert np.array_equal(np.concatenate(kept), whole)


def test_rendered_copies_embed_as_the_run_s_own_do(corpus: Path, whole: Store, tmp_path: Path) -> None:
    from extractor.augment.copies import configured
    from extractor.run.render import render

    config = configured(EVERY_KIND, None, 2, 7)
    assert config is not None
    done = render([corpus / "all.csv"], config, tmp_path / "wavs")
    assert (done.written, done.failures) == (36, [])
    manifest = tmp_path / "wavs" / "manifest.csv"
    read = extract(manifest, model="mfcc", pooling="mean,std", out=tmp_path / "read")
    assert same_but_for_rounding(rows(read), rows(whole))
    for label in ("original", "emotion"):
        assert read.labels(label) == whole.labels(label)
