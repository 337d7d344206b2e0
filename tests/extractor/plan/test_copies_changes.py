"""Augmented copies in a run whose input changed: made again where what they are drawn by or of changed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from run_cases import sound, stopped

from extractor import Store
from extractor.progress import Summary
from extractor.run.engine import run
from extractor.run.options import Options
from extractor.store.edit import drop
from extractor.store.verify import verify

JOINED = "copypaste:kind=se-cp"
EMOTIONS = ("neutral", "anger")


def table(folder: Path, emotions: list[str], order: list[int] | None = None) -> Path:
    lines = [f"n{i}.wav,{emotions[i]},s{i % 2}" for i in order or range(len(emotions))]
    path = folder / "m.csv"
    path.write_text("\n".join(["path,emotion,speaker", *lines]) + "\n")
    return path


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Eight recordings of noise of two emotions."""
    for i in range(8):
        sound(tmp_path / "data" / f"n{i}.wav", i, 4_800 + 320 * i)
    return table(tmp_path / "data", [EMOTIONS[i % 2] for i in range(8)])


def embed(source: Path, out: Path, **options: Any) -> Summary:
    return run(
        source, Options(**{"model": "mfcc", "augment": JOINED, "copies": 2, "seed": 7, **options}), out
    )


def rows(out: Path) -> dict[str, tuple[str, str, bytes]]:
    """Emotion, recipe and embedding by id."""
    with Store(out) as store:
        columns = (store.labels("emotion"), store.labels("augmentation"), store.load(pooling="mean"))
        return {
            name: (emotion, recipe, row.tobytes())
            for name, emotion, recipe, row in zip(store.ids, *columns, strict=True)
        }


def test_copies_that_are_drawn_by_a_changed_label_are_made_again(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    embed(corpus, out)
    before = rows(out)
    emotions = [EMOTIONS[i % 2] for i in range(8)]
    emotions[3] = "neutral"
    summary = embed(table(corpus.parent, emotions), out)
    embed(corpus, tmp_path / "whole")
    after = rows(out)
    assert after == rows(tmp_path / "whole")
    changed = {name for name in before if before[name][1:] != after[name][1:]}
    assert 0 < len(changed) == summary.changes.redrawn == summary.embedded < 16
    assert summary.changes.relabelled == 1 + 2 - len(changed & {"n3~1", "n3~2"})
    assert verify(out) == []
    assert embed(corpus, out).embedded == 0


def test_copies_that_are_drawn_by_nothing_of_others_keep_their_rows(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    embed(corpus, out, augment="gain")
    before = rows(out)
    summary = embed(table(corpus.parent, ["fear"] * 8), out, augment="gain")
    after = rows(out)
    assert (summary.embedded, summary.changes.relabelled) == (0, 24)
    assert {name: row[1:] for name, row in after.items()} == {name: row[1:] for name, row in before.items()}
    assert {row[0] for row in after.values()} == {"fear"}


@pytest.mark.parametrize("clean", [True, False])
def test_copies_of_and_with_changed_audio_are_made_again(clean: bool, corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    embed(corpus, out, clean=clean)
    before = rows(out)
    sound(corpus.parent / "n3.wav", 99, 4_800 + 320 * 3)
    summary = embed(corpus, out, clean=clean)
    assert summary.changes.replaced == 1
    embed(corpus, tmp_path / "whole", clean=clean)
    after = rows(out)
    assert after == rows(tmp_path / "whole")
    with_it = {name for name, row in before.items() if name.startswith("n3") or "join:clip=n3," in row[1]}
    assert {name for name in before if before[name] != after[name]} == with_it
    assert len(with_it) == summary.embedded > 2


@pytest.mark.parametrize("clean", [True, False])
def test_a_touched_recording_keeps_its_copies(clean: bool, corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    embed(corpus, out, clean=clean)
    os.utime(corpus.parent / "n3.wav", ns=(1, 1))
    assert embed(corpus, out, clean=clean).embedded == 0


@pytest.mark.parametrize("clean", [True, False])
def test_a_renamed_recording_keeps_its_copies(clean: bool, corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    embed(corpus, out, clean=clean)
    before = rows(out)
    (corpus.parent / "n3.wav").rename(corpus.parent / "z.wav")
    corpus.write_text(corpus.read_text().replace("n3.wav", "z.wav"))
    summary = embed(corpus, out, clean=clean)
    assert (summary.embedded, summary.changes.moved, summary.changes.redrawn) == (0, 1, 0) and rows(
        out
    ) == before
    paths = dict(zip(Store(out).ids, Store(out).paths, strict=True))
    assert paths["n3~1"] == paths["n3~2"] == str(corpus.parent / "z.wav")


def test_columns_that_are_new_stand_before_those_of_the_copies(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    embed(corpus, out, augment="gain")
    before = rows(out)
    lines = corpus.read_text().splitlines()
    corpus.write_text("\n".join([lines[0] + ",age", *(f"{line},30" for line in lines[1:])]))
    assert embed(corpus, out, augment="gain").changes.relabelled == 24
    assert rows(out) == before
    with Store(out) as store:
        assert store.columns[-4:] == ("age", "original", "copy", "augmentation")
        assert set(store.labels("age")) == {"30"} and store.labels("original")[:3] == ["n0"] * 3


def test_a_copy_that_had_no_partner_is_tried_again_when_it_has_one(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    emotions = ["anger", "fear", *["anger"] * 6]
    assert {f.id for f in embed(table(corpus.parent, emotions), out).failures} == {"n1~1", "n1~2"}
    emotions[1] = "anger"
    assert not embed(table(corpus.parent, emotions), out).failures
    embed(corpus, tmp_path / "whole")
    assert rows(out) == rows(tmp_path / "whole")


def test_a_copy_dropped_by_hand_stays_out_and_its_recording_stays(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    embed(corpus, out)
    drop(out, "id == 'n3~1'")
    assert embed(corpus, out).embedded == 0
    (corpus.parent / "n3.wav").rename(corpus.parent / "z.wav")
    corpus.write_text(corpus.read_text().replace("n3.wav", "z.wav"))
    assert embed(corpus, out).embedded == embed(corpus, out).embedded == 0
    assert set(rows(out)) == {f"n{i}{copy}" for i in range(8) for copy in ("", "~1", "~2")} - {"n3~1"}


def test_changes_before_anything_was_encoded_are_drawn_as_a_new_run_does(
    corpus: Path, tmp_path: Path
) -> None:
    run(corpus, Options("mfcc", augment=JOINED, copies=2, seed=7), tmp_path / "run", stop=stopped())
    sound(corpus.parent / "n3.wav", 99, 9_600)
    embed(corpus, tmp_path / "run")
    embed(corpus, tmp_path / "whole")
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")
    assert not Store(tmp_path / "run").errors


def test_copies_that_no_changed_label_is_read_for_stay_though_the_pool_grew(
    corpus: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    emotions = [EMOTIONS[i % 2] for i in range(8)]
    embed(table(corpus.parent, emotions, [0, 1, 2, 3]), out)
    embed(table(corpus.parent, emotions), out)
    grown = rows(out)
    emotions[3] = "fear"  # one of the angry ones
    embed(table(corpus.parent, emotions), out)
    after = rows(out)
    neutral = [f"n{i}{copy}" for i in (0, 2, 4, 6) for copy in ("", "~1", "~2")]
    assert {name: after[name] for name in neutral} == {name: grown[name] for name in neutral}
    assert "n3~1" not in after  # it has no partner any more
