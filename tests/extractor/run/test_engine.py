"""The main job end to end: exact, independent of its circumstances, never lost."""

from __future__ import annotations

import json
import os
import random
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from conftest import (
    BF16_COSINE,
    FP32_RELATIVE,
    MakeCheckpoint,
    make_model,
    reference_layers,
    relative_error,
    shared,
)
from run_cases import Runs, cosines, random_lengths, worst_row_error, write_noises

from extractor import InputError, SettingsDiffer, Store, StoreUnwritable
from extractor.encoders.families import MODELS, HubModel
from extractor.plan import run_plan
from extractor.plan.run_plan import make_plan
from extractor.store.writer import RunWriter

NORMS = {"group": {"feat_extract_norm": "group"}, "layer": {"feat_extract_norm": "layer"}}
LAYER_NORM = {"do_stable_layer_norm": True, "feat_extract_norm": "layer"}
NARROW = LAYER_NORM | {
    "hidden_size": 128,
    "num_hidden_layers": 24,
    "num_attention_heads": 4,
    "intermediate_size": 512,
    "conv_dim": [64] * 7,
}


@pytest.fixture(scope="session")
def noises(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 recordings of noise, 0.1 to 2 s, as WAV and FLAC."""
    return write_noises(tmp_path_factory.mktemp("noises"), random_lengths(24, 1_600, 32_000), flac=3)


@pytest.fixture
def embed(checkpoint: MakeCheckpoint, tmp_path: Path) -> Runs:
    return Runs(tmp_path, checkpoint())


def layers_by_reference(model: Any, path: str) -> torch.Tensor:
    """``[T, L, D]`` of one file, by `transformers` alone."""
    audio = torch.from_numpy(soundfile.read(path, dtype="float32")[0])
    audio = (audio - audio.mean()) / torch.sqrt(audio.var(correction=0) + 1e-7)
    return torch.stack(reference_layers(model, audio), dim=1)


@pytest.mark.parametrize("kind", ["hubert", "wavlm", "wav2vec2"])
@pytest.mark.parametrize("norm", NORMS)
def test_the_store_holds_what_the_reference_gives(
    kind: str, norm: str, noises: Path, checkpoint: MakeCheckpoint, embed: Runs
) -> None:
    store = embed.store(noises, model=str(checkpoint(kind, **NORMS[norm])))
    model = make_model(kind, **NORMS[norm])
    assert store.ids == [f"n{i:02}" for i in range(24)]
    expected = np.stack([layers_by_reference(model, path).mean(0).numpy() for path in store.paths])
    assert worst_row_error(store.load(), expected) < FP32_RELATIVE
    assert np.array_equal(store.load(layer=-1), store.load()[:, -1])


@pytest.mark.parametrize("norm", NORMS)
def test_an_embedding_depends_on_its_recording_alone(
    norm: str, checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    """EmoDB with several budgets, orders and numbers of workers, against each recording alone."""
    files = sorted(str(p) for p in shared("emodb").rglob("*.wav"))[::6]  # all ten speakers
    shuffled = random.Random(3).sample(files, len(files))
    embed = Runs(tmp_path, checkpoint("wavlm", **NORMS[norm]))
    alone = embed.store(files, "alone", batch_seconds=0.1)
    reference = dict(zip(alone.ids, alone.load(), strict=True))
    for budget, order, workers in ((4, files, 2), (30, shuffled, 1), (200, shuffled, 2)):
        store = embed.store(order, f"{budget}", batch_seconds=budget, workers=workers)
        assert store.ids == [Path(f).stem for f in order]
        expected = np.stack([reference[i] for i in store.ids])
        assert worst_row_error(store.load(), expected) < FP32_RELATIVE


SLOW = [
    pytest.param(name, marks=pytest.mark.slow)
    for name in ("hubert-base", "wavlm-base", "hubert-large", "wavlm-large")
]


@pytest.mark.parametrize("name", ["narrow", *SLOW])
def test_bf16_rows_point_where_fp32_rows_do(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # As deep as the large ones, since every layer rounds, and a hundred times as fast.
    monkeypatch.setitem(MODELS, "narrow", HubModel("none", "hubert", NARROW))
    files = sorted(str(p) for p in shared("emodb").rglob("*.wav"))[::60]
    embed = Runs(tmp_path, f"random:{name}")
    found = cosines(*(embed.store(files, dtype, dtype=dtype).load() for dtype in ("fp32", "bf16")))
    with capsys.disabled():
        print(f"\nbf16 against fp32, {name}, random weights: lowest cosine {found.min():.6f} ", end="")
    assert found.min() >= BF16_COSINE


def test_a_stopped_run_goes_on_and_ends_the_same(noises: Path, embed: Runs) -> None:
    embed(noises, "whole", dtype="bf16", batch_seconds=2)
    stop, commit = threading.Event(), RunWriter.commit

    def commit_and_stop(self: RunWriter, result: Any) -> Any:
        stop.set()
        return commit(self, result)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunWriter, "commit", commit_and_stop)
        summary = embed(noises, stop=stop, dtype="bf16", batch_seconds=2)
    assert summary.stopped
    assert 0 < summary.embedded < 24
    assert len(Store(embed.folder / "run")) == summary.embedded
    # Another budget now: the run keeps the batches that it began with.
    embed(noises, dtype="bf16", batch_seconds=30)
    assert embed.are_same()


def test_shards_give_what_one_process_gives(noises: Path, embed: Runs) -> None:
    embed(noises, "whole", batch_seconds=2)
    for i in range(3):
        assert 0 < embed(noises, batch_seconds=2, shard=(i, 3)).embedded < 24
    assert embed.are_same()


def test_other_settings_are_refused_each_by_name(
    noises: Path, embed: Runs, checkpoint: MakeCheckpoint
) -> None:
    embed(noises)
    with pytest.raises(SettingsDiffer) as refusal:
        embed(noises, model=str(checkpoint("wavlm")), dtype="bf16", layers="last", pooling="max", window=30)
    for name in ("weights", "layers", "pooling", "dtype", "window_seconds"):
        assert name in str(refusal.value)
    assert "sample_rate" not in str(refusal.value)
    assert len(Store(embed.folder / "run")) == 24


def test_a_model_is_the_same_wherever_its_folder_is(
    noises: Path, checkpoint: MakeCheckpoint, embed: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoint()
    embed(noises)
    monkeypatch.chdir(folder.parent)
    summary = embed(noises, model=f"./{folder.name}")
    assert (summary.embedded, summary.stored) == (0, 24)
    store = Store(embed.folder / "run")
    assert (store.settings["model"], store.settings["source"]) == (folder.name, "local folder")
    assert store.environment["model_spec"] == str(folder)


def test_recordings_that_are_new_are_added(noises: Path, embed: Runs) -> None:
    files = sorted(str(p) for p in noises.iterdir())
    embed(files[::2])
    summary = embed(files)
    assert (summary.embedded, summary.stored) == (12, 24)
    grown, whole = Store(embed.folder / "run"), embed.store(files, "whole")
    # Rows that were there keep their place; new ones follow.
    assert grown.ids == [Path(f).stem for f in files[::2] + files[1::2]]
    order = [grown.ids.index(i) for i in whole.ids]
    assert worst_row_error(grown.load()[order], whole.load()) < FP32_RELATIVE


def test_an_id_that_now_names_another_recording_is_refused(noises: Path, embed: Runs) -> None:
    manifest = embed.folder / "m.csv"
    manifest.write_text(f"id,path\na,{noises / 'n01.wav'}\n")
    embed(manifest)
    manifest.write_text(f"id,path\na,{noises / 'n02.wav'}\n")
    with pytest.raises(InputError, match=r"id 'a' is .*n02\.wav now and was .*n01\.wav"):
        embed(manifest)


def test_bad_recordings_are_rows_of_errors_and_can_be_retried(noises: Path, embed: Runs) -> None:
    data = embed.folder / "data"
    data.mkdir()
    good = (noises / "n01.wav").read_bytes()
    (data / "good.wav").write_bytes(good)
    (data / "cut.wav").write_bytes(good[:-500])
    (data / "empty.wav").write_bytes(b"")
    soundfile.write(data / "short.wav", np.zeros(399), 16_000)
    soundfile.write(data / "nan.wav", np.full(4_000, np.nan), 16_000, subtype="FLOAT")
    summary = embed(data)
    assert summary.embedded == 1
    assert {f.id for f in summary.failures} == {"cut", "empty", "short", "nan"}
    assert all(f.reason and f.path.endswith(f"{f.id}.wav") for f in summary.failures)
    lines = [json.loads(line) for line in (embed.folder / "run" / "errors.jsonl").read_text().splitlines()]
    assert {line["id"] for line in lines} == {"cut", "empty", "short", "nan"}

    (data / "cut.wav").write_bytes(good)  # of another size: tried again by itself
    was = (data / "nan.wav").stat()
    soundfile.write(data / "nan.wav", np.full(4_000, 0.1), 16_000, subtype="FLOAT")
    os.utime(data / "nan.wav", ns=(was.st_mtime_ns, was.st_mtime_ns))
    assert embed(data).embedded == 1
    summary = embed(data, retry_failed=True)
    assert summary.embedded == 1
    assert {f.id for f in summary.failures} == {"empty", "short"}
    assert Store(embed.folder / "run").ids == ["cut", "good", "nan"]


def test_a_recording_that_changes_behind_planning_is_an_error_of_this_command(
    embed: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_noises(embed.folder / "data", [8_000] * 3)

    def change_behind(*arguments: Any, **more: Any) -> Any:
        plan = make_plan(*arguments, **more)
        soundfile.write(data / "n00.wav", np.zeros(4_000), 16_000)
        (data / "n01.wav").unlink()
        return plan

    with monkeypatch.context() as patch:
        patch.setattr(run_plan, "make_plan", change_behind)
        summary = embed(data, batch_seconds=0.1)
    reasons = {f.id: f.reason for f in summary.failures}
    assert "changed since planning: 0.25 s long now, 0.50 s then" in reasons["n00"]
    assert "no such file" in reasons["n01"]
    assert Store(embed.folder / "run").ids == ["n02"]
    assert embed(data, batch_seconds=0.1).embedded == 1  # and the next takes it as it is
    assert Store(embed.folder / "run").ids == ["n00", "n02"]


def beyond(folder: Path, factor: float) -> str:
    """A checkpoint whose last layer is so much louder, and is brought back by its final norm."""
    model = make_model("hubert", **LAYER_NORM)
    model.encoder.layers[-1].feed_forward.output_dense.weight.data *= factor
    model.save_pretrained(folder)
    return str(folder)


def test_what_is_not_finite_is_run_again_in_fp32(noises: Path, tmp_path: Path) -> None:
    embed = Runs(tmp_path, beyond(tmp_path / "model", 1e5))  # more than fp16 holds
    files = sorted(str(p) for p in noises.iterdir())[:6]
    poolings = ("max", "mean", "std", "none")
    assert embed(files, "half", dtype="fp16", pooling=poolings).rerun_in_fp32 == 6
    half, full = Store(tmp_path / "half"), embed.store(files, "full", pooling=poolings)
    for pooling in poolings[:-1]:  # each of them is replaced, and the frames
        assert worst_row_error(half.load(pooling=pooling), full.load(pooling=pooling)) < FP32_RELATIVE
    for row in range(6):
        assert (
            relative_error(*(torch.from_numpy(store.frames(row)) for store in (half, full))) < FP32_RELATIVE
        )


def test_what_is_never_finite_is_an_error_row(noises: Path, tmp_path: Path) -> None:
    # The weights are finite; what they give is not.
    summary = Runs(tmp_path, beyond(tmp_path / "model", 1e38))(noises, dtype="bf16")
    assert summary.stored == 0
    assert len(summary.failures) == 24
    assert "not finite, in fp32 either" in summary.failures[0].reason


def test_frames_of_all_layers_on_request(noises: Path, checkpoint: MakeCheckpoint, embed: Runs) -> None:
    model = str(checkpoint("hubert", **LAYER_NORM))
    store = embed.store(noises, model=model, pooling="none,mean", layers="1,3")
    frames = torch.from_numpy(store.frames(5))
    expected = layers_by_reference(make_model("hubert", **LAYER_NORM), store.paths[5])[:, [1, 3]]
    assert relative_error(frames, expected) < FP32_RELATIVE
    np.testing.assert_allclose(frames.mean(0), store.load(pooling="mean")[5], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model", ["mfcc", "logmel"])
def test_windows_over_a_long_recording_change_nothing_where_context_is_short(
    model: str, tmp_path: Path
) -> None:
    source = write_noises(tmp_path / "data", [16_000 * 47 + 123])
    poolings = "mean,std,min,max,first,last,none"
    embed = Runs(tmp_path, model, pooling=poolings, batch_seconds=25)
    whole, cut = (embed.store(source, f"w{window}", window=window) for window in (60, 10))
    for pooling in poolings.split(",")[:-1]:
        np.testing.assert_allclose(
            cut.load(pooling=pooling), whole.load(pooling=pooling), rtol=1e-5, atol=1e-5
        )
    np.testing.assert_allclose(cut.frames(0), whole.frames(0), rtol=1e-4, atol=1e-4)


def test_windows_are_close_to_the_whole_for_a_transformer(checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    """Not equal: attention then sees its window only. The frames are all there, each once."""
    source = write_noises(tmp_path / "data", [16_000 * 30])
    embed = Runs(tmp_path, checkpoint("hubert", **LAYER_NORM))
    whole, cut = (embed.store(source, f"w{window}", window=window) for window in (60, 10))
    assert cut.num_frames.tolist() == whole.num_frames.tolist() == [1_499]
    # Layer 0 is behind the CNN and the positional convolution only: the overlap covers their context.
    assert worst_row_error(cut.load(layer=0)[:, None], whole.load(layer=0)[:, None]) < FP32_RELATIVE
    assert worst_row_error(cut.load(layer=-1)[:, None], whole.load(layer=-1)[:, None]) < 0.1


def test_a_full_disk_ends_the_run_with_a_store_that_opens(
    noises: Path, embed: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits, commit = iter(range(100)), RunWriter.commit

    def full_at_the_third(self: RunWriter, result: Any) -> Any:
        if next(commits) == 2:
            raise StoreUnwritable("runs/x: the disk is full")
        return commit(self, result)

    with monkeypatch.context() as patch:
        patch.setattr(RunWriter, "commit", full_at_the_third)
        with pytest.raises(StoreUnwritable):
            embed(noises, batch_seconds=2)
    assert not [t for t in threading.enumerate() if t.name.startswith(("encode", "decode", "commit"))]
    assert 0 < len(Store(embed.folder / "run")) < 24
    for name in ("run", "whole"):
        embed(noises, name, batch_seconds=2)
    assert embed.are_same()
