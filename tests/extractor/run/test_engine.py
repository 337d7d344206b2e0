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

from extractor import InputError, SettingsDiffer, SettingsError, Store, StoreUnwritable, extract
from extractor.encoders.families import MODELS, HubModel
from extractor.plan import run_plan
from extractor.plan.run_plan import make_plan
from extractor.run.engine import run
from extractor.run.options import Options
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
    folder = tmp_path_factory.mktemp("noises")
    rng = np.random.default_rng(0)
    for i in range(24):
        audio = 0.1 * rng.standard_normal(int(rng.integers(1_600, 32_000)))
        soundfile.write(folder / f"n{i:02}.{'flac' if i % 3 == 0 else 'wav'}", audio, 16_000)
    return folder


def mean_by_reference(model: Any, path: str, do_normalize: bool = True) -> np.ndarray:
    """Mean over frames of every layer, ``[L, D]``, of one file, by `transformers` alone."""
    audio = torch.from_numpy(soundfile.read(path, dtype="float32")[0])
    if do_normalize:
        audio = (audio - audio.mean()) / torch.sqrt(audio.var(correction=0) + 1e-7)
    return torch.stack([h.mean(0) for h in reference_layers(model, audio)]).numpy()


def worst_row_error(a: np.ndarray, b: np.ndarray) -> float:
    """Largest relative L2 error of a row and layer: ``[N, L, D]`` each."""
    return float((np.linalg.norm(a - b, axis=-1) / np.linalg.norm(b, axis=-1)).max())


def same_store(a: Path, b: Path) -> None:
    """Bit for bit, in every column."""
    with Store(a) as x, Store(b) as y:
        assert x.ids == y.ids
        assert x.checksums == y.checksums
        assert x.num_frames.tolist() == y.num_frames.tolist()
        for pooling in x.poolings:
            assert np.array_equal(x.load(pooling=pooling), y.load(pooling=pooling))
        assert sorted(x.errors, key=str) == sorted(y.errors, key=str)


@pytest.mark.parametrize("kind", ["hubert", "wavlm", "wav2vec2"])
@pytest.mark.parametrize("norm", NORMS)
def test_the_store_holds_what_the_reference_gives(
    kind: str, norm: str, noises: Path, checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    folder = checkpoint(kind, **NORMS[norm])
    store = extract(noises, model=str(folder), out=tmp_path / "run", dtype="fp32")
    model = make_model(kind, **NORMS[norm])
    assert store.ids == [f"n{i:02}" for i in range(24)]
    expected = np.stack([mean_by_reference(model, path) for path in store.paths])
    assert worst_row_error(store.load(), expected) < FP32_RELATIVE
    assert np.array_equal(store.load(layer=-1), store.load()[:, -1])


@pytest.mark.parametrize("norm", NORMS)
def test_an_embedding_depends_on_its_recording_alone(
    norm: str, checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    """EmoDB with several budgets, orders and numbers of workers, against each recording alone."""
    files = sorted(str(p) for p in shared("emodb").rglob("*.wav"))[::6]  # all ten speakers
    shuffled = random.Random(3).sample(files, len(files))
    model = str(checkpoint("wavlm", **NORMS[norm]))
    alone = extract(files, model=model, out=tmp_path / "alone", dtype="fp32", batch_seconds=0.1)
    reference = dict(zip(alone.ids, alone.load(), strict=True))
    for budget, order, workers in ((4, files, 2), (30, shuffled, 1), (200, shuffled, 2)):
        store = extract(
            order,
            model=model,
            out=tmp_path / f"{budget}",
            dtype="fp32",
            batch_seconds=budget,
            workers=workers,
        )
        assert store.ids == [Path(f).stem for f in order]
        expected = np.stack([reference[i] for i in store.ids])
        assert worst_row_error(store.load(), expected) < FP32_RELATIVE


def bf16_cosines(model: str, files: list[str], tmp_path: Path) -> np.ndarray:
    rows = {}
    for dtype in ("fp32", "bf16"):
        rows[dtype] = extract(files, model=model, out=tmp_path / dtype, dtype=dtype).load().astype(np.float64)
    a, b = rows["fp32"], rows["bf16"]
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


@pytest.mark.parametrize(
    "name",
    [
        "narrow",
        *(
            pytest.param(n, marks=pytest.mark.slow)
            for n in ("hubert-base", "wavlm-base", "hubert-large", "wavlm-large")
        ),
    ],
)
def test_bf16_rows_point_where_fp32_rows_do(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # As deep as the large ones, since every layer rounds, and a hundred times as fast.
    monkeypatch.setitem(MODELS, "narrow", HubModel("none", "hubert", NARROW))
    files = sorted(str(p) for p in shared("emodb").rglob("*.wav"))[::60]
    cosines = bf16_cosines(f"random:{name}", files, tmp_path)
    with capsys.disabled():
        print(f"\nbf16 against fp32, {name}, random weights: lowest cosine {cosines.min():.6f} ", end="")
    assert cosines.min() >= BF16_COSINE


def test_running_again_does_nothing_twice(noises: Path, checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    options = Options(model=str(checkpoint()), dtype="fp32")
    first = run(noises, options, tmp_path / "run")
    parts = {p: p.stat().st_mtime_ns for p in (tmp_path / "run" / "parts").iterdir()}
    second = run(noises, options, tmp_path / "run")
    assert (first.embedded, second.embedded, second.stored) == (24, 0, 24)
    assert parts == {p: p.stat().st_mtime_ns for p in (tmp_path / "run" / "parts").iterdir()}


def test_a_stopped_run_goes_on_and_ends_the_same(
    noises: Path, checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    options = Options(model=str(checkpoint()), dtype="bf16", batch_seconds=2)
    run(noises, options, tmp_path / "whole")
    stop, commit = threading.Event(), RunWriter.commit

    def commit_and_stop(self: RunWriter, result: Any) -> Any:
        stop.set()
        return commit(self, result)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunWriter, "commit", commit_and_stop)
        summary = run(noises, options, tmp_path / "run", stop=stop)
    assert summary.stopped
    assert 0 < summary.embedded < 24
    assert len(Store(tmp_path / "run")) == summary.embedded
    # Another budget now: the run keeps the batches that it began with.
    run(noises, Options(model=str(checkpoint()), dtype="bf16", batch_seconds=30), tmp_path / "run")
    same_store(tmp_path / "run", tmp_path / "whole")


def test_a_part_cut_short_is_done_again(noises: Path, checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    options = Options(model=str(checkpoint()), dtype="fp32", batch_seconds=2)
    for out in ("whole", "run"):
        run(noises, options, tmp_path / out)
    (part,) = (tmp_path / "run" / "parts").iterdir()
    part.write_bytes(part.read_bytes()[:-1_000])
    summary = run(noises, options, tmp_path / "run")
    assert summary.embedded == 24
    same_store(tmp_path / "run", tmp_path / "whole")


def test_shards_give_what_one_process_gives(noises: Path, checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    made = Options(model=str(checkpoint()), dtype="fp32", batch_seconds=2)
    run(noises, made, tmp_path / "whole")
    for i in range(3):
        shard = Options(model=str(checkpoint()), dtype="fp32", batch_seconds=2, shard=(i, 3))
        summary = run(noises, shard, tmp_path / "run")
        assert 0 < summary.embedded < 24
    same_store(tmp_path / "run", tmp_path / "whole")


def test_other_settings_are_refused_each_by_name(
    noises: Path, checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    run(noises, Options(model=str(checkpoint()), dtype="fp32"), tmp_path / "run")
    other = Options(model=str(checkpoint("wavlm")), dtype="bf16", layers="last", pooling="max", window=30)
    with pytest.raises(SettingsDiffer) as refusal:
        run(noises, other, tmp_path / "run")
    for name in ("weights", "layers", "pooling", "dtype", "window_seconds"):
        assert name in str(refusal.value)
    assert "sample_rate" not in str(refusal.value)
    assert len(Store(tmp_path / "run")) == 24


def test_a_model_is_the_same_wherever_its_folder_is(
    noises: Path, checkpoint: MakeCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoint()
    run(noises, Options(model=str(folder), dtype="fp32"), tmp_path / "run")
    monkeypatch.chdir(folder.parent)
    summary = run(noises, Options(model=f"./{folder.name}", dtype="fp32"), tmp_path / "run")
    assert (summary.embedded, summary.stored) == (0, 24)
    store = Store(tmp_path / "run")
    assert (store.settings["model"], store.settings["source"]) == (folder.name, "local folder")
    assert store.environment["model_spec"] == str(folder)


def test_recordings_that_are_new_are_added(noises: Path, checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    files = sorted(str(p) for p in noises.iterdir())
    options = Options(model=str(checkpoint()), dtype="fp32")
    run(files[::2], options, tmp_path / "run")
    summary = run(files, options, tmp_path / "run")
    assert (summary.embedded, summary.stored) == (12, 24)
    run(files, options, tmp_path / "whole")
    grown, whole = Store(tmp_path / "run"), Store(tmp_path / "whole")
    # Rows that were there keep their place; new ones follow.
    assert grown.ids == [Path(f).stem for f in files[::2] + files[1::2]]
    order = [grown.ids.index(i) for i in whole.ids]
    assert worst_row_error(grown.load()[order], whole.load()) < FP32_RELATIVE


def test_an_id_that_now_names_another_recording_is_refused(
    noises: Path, checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    manifest = tmp_path / "m.csv"
    options = Options(model=str(checkpoint()), dtype="fp32")
    manifest.write_text(f"id,path\na,{noises / 'n01.wav'}\n")
    run(manifest, options, tmp_path / "run")
    manifest.write_text(f"id,path\na,{noises / 'n02.wav'}\n")
    with pytest.raises(InputError, match=r"id 'a' is .*n02\.wav now and was .*n01\.wav"):
        run(manifest, options, tmp_path / "run")


def test_bad_recordings_are_rows_of_errors_and_can_be_retried(
    noises: Path, checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    good = (noises / "n01.wav").read_bytes()
    (data / "good.wav").write_bytes(good)
    (data / "cut.wav").write_bytes(good[:-500])
    (data / "empty.wav").write_bytes(b"")
    soundfile.write(data / "short.wav", np.zeros(399), 16_000)
    soundfile.write(data / "nan.wav", np.full(4_000, np.nan), 16_000, subtype="FLOAT")
    options = Options(model=str(checkpoint()), dtype="fp32")
    summary = run(data, options, tmp_path / "run")
    assert summary.embedded == 1
    assert {f.id for f in summary.failures} == {"cut", "empty", "short", "nan"}
    assert all(f.reason and f.path.endswith(f"{f.id}.wav") for f in summary.failures)
    lines = [json.loads(line) for line in (tmp_path / "run" / "errors.jsonl").read_text().splitlines()]
    assert {line["id"] for line in lines} == {"cut", "empty", "short", "nan"}

    (data / "cut.wav").write_bytes(good)  # of another size: tried again by itself
    was = (data / "nan.wav").stat()
    soundfile.write(data / "nan.wav", np.full(4_000, 0.1), 16_000, subtype="FLOAT")
    os.utime(data / "nan.wav", ns=(was.st_mtime_ns, was.st_mtime_ns))
    assert run(data, options, tmp_path / "run").embedded == 1
    again = Options(model=str(checkpoint()), dtype="fp32", retry_failed=True)
    summary = run(data, again, tmp_path / "run")
    assert summary.embedded == 1
    assert {f.id for f in summary.failures} == {"empty", "short"}
    assert Store(tmp_path / "run").ids == ["cut", "good", "nan"]


def test_a_recording_that_changes_behind_planning_is_an_error_of_this_command(
    checkpoint: MakeCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for name in ("a", "b", "c"):
        soundfile.write(data / f"{name}.wav", np.zeros(8_000), 16_000)
    options = Options(model=str(checkpoint()), dtype="fp32", batch_seconds=0.1)

    def change_behind(*arguments: Any, **more: Any) -> Any:
        plan = make_plan(*arguments, **more)
        soundfile.write(data / "a.wav", np.zeros(4_000), 16_000)
        (data / "b.wav").unlink()
        return plan

    with monkeypatch.context() as patch:
        patch.setattr(run_plan, "make_plan", change_behind)
        summary = run(data, options, tmp_path / "run")
    reasons = {f.id: f.reason for f in summary.failures}
    assert "changed since planning: 0.25 s long now, 0.50 s then" in reasons["a"]
    assert "no such file" in reasons["b"]
    assert Store(tmp_path / "run").ids == ["c"]
    summary = run(data, options, tmp_path / "run")  # and the next takes it as it is
    assert summary.embedded == 1 and Store(tmp_path / "run").ids == ["a", "c"]


def overflowing(folder: Path) -> Path:
    """A checkpoint whose last layer leaves the range of fp16 and is brought back by its final norm."""
    model = make_model("hubert", **LAYER_NORM)
    model.encoder.layers[-1].feed_forward.output_dense.weight.data *= 1e5
    model.save_pretrained(folder)
    return folder


def test_what_is_not_finite_is_run_again_in_fp32(noises: Path, tmp_path: Path) -> None:
    model = overflowing(tmp_path / "model")
    files = sorted(str(p) for p in noises.iterdir())[:6]
    poolings = ("max", "mean", "std", "none")
    summary = run(files, Options(model=str(model), dtype="fp16", pooling=poolings), tmp_path / "half")
    run(files, Options(model=str(model), dtype="fp32", pooling=poolings), tmp_path / "full")
    half, full = Store(tmp_path / "half"), Store(tmp_path / "full")
    assert summary.rerun_in_fp32 == 6
    assert half.precisions == ["fp32"] * 6
    for pooling in poolings[:-1]:  # each of them is replaced, and the frames
        assert worst_row_error(half.load(pooling=pooling), full.load(pooling=pooling)) < FP32_RELATIVE
    for row in range(6):
        frames = torch.from_numpy(half.frames(row)), torch.from_numpy(full.frames(row))
        assert relative_error(*frames) < FP32_RELATIVE


def test_what_is_never_finite_is_an_error_row(noises: Path, tmp_path: Path) -> None:
    model = make_model("hubert", **LAYER_NORM)
    model.encoder.layers[-1].feed_forward.output_dense.weight.data *= 1e38  # finite; what it gives is not
    model.save_pretrained(tmp_path / "model")
    summary = run(noises, Options(model=str(tmp_path / "model"), dtype="bf16"), tmp_path / "run")
    assert summary.stored == 0
    assert len(summary.failures) == 24
    assert "not finite, in fp32 either" in summary.failures[0].reason


def test_frames_of_all_layers_on_request(noises: Path, checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    folder = checkpoint("hubert", **LAYER_NORM)
    store = extract(
        noises, model=str(folder), out=tmp_path / "run", dtype="fp32", pooling="none,mean", layers="1,3"
    )
    model = make_model("hubert", **LAYER_NORM)
    audio = torch.from_numpy(soundfile.read(store.paths[5], dtype="float32")[0])
    audio = (audio - audio.mean()) / torch.sqrt(audio.var(correction=0) + 1e-7)
    layers = reference_layers(model, audio)
    frames = torch.from_numpy(store.frames(5))
    assert relative_error(frames, torch.stack([layers[1], layers[3]], dim=1)) < FP32_RELATIVE
    np.testing.assert_allclose(frames.mean(0), store.load(pooling="mean")[5], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model", ["mfcc", "logmel"])
def test_windows_over_a_long_recording_change_nothing_where_context_is_short(
    model: str, tmp_path: Path
) -> None:
    audio = 0.1 * np.random.default_rng(1).standard_normal(16_000 * 47 + 123)
    soundfile.write(tmp_path / "long.wav", audio, 16_000)
    poolings = "mean,std,min,max,first,last,none"
    whole, cut = (
        extract(
            tmp_path / "long.wav",
            model=model,
            out=tmp_path / f"w{window}",
            pooling=poolings,
            window=window,
            batch_seconds=25,
        )
        for window in (60, 10)
    )
    for pooling in poolings.split(",")[:-1]:
        np.testing.assert_allclose(
            cut.load(pooling=pooling), whole.load(pooling=pooling), rtol=1e-5, atol=1e-5
        )
    np.testing.assert_allclose(cut.frames(0), whole.frames(0), rtol=1e-4, atol=1e-4)


def test_windows_are_close_to_the_whole_for_a_transformer(checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    """Not equal: attention then sees its window only. The frames are all there, each once."""
    audio = 0.1 * np.random.default_rng(1).standard_normal(16_000 * 30)
    soundfile.write(tmp_path / "long.wav", audio, 16_000)
    whole, cut = (
        extract(
            tmp_path / "long.wav",
            model=str(checkpoint("hubert", **LAYER_NORM)),
            out=tmp_path / f"w{window}",
            dtype="fp32",
            window=window,
        )
        for window in (60, 10)
    )
    assert cut.num_frames.tolist() == whole.num_frames.tolist() == [1_499]
    # Layer 0 is behind the CNN and the positional convolution only: the overlap covers their context.
    assert worst_row_error(cut.load(layer=0)[:, None], whole.load(layer=0)[:, None]) < FP32_RELATIVE
    assert worst_row_error(cut.load(layer=-1)[:, None], whole.load(layer=-1)[:, None]) < 0.1


def test_labels_and_order_come_from_the_manifest(
    noises: Path, checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    manifest = tmp_path / "m.csv"
    manifest.write_text(
        "id,path,emotion,speaker,start,end\n"
        f"z,{noises / 'n04.wav'},angry,s1,,\n"
        f"a,{noises / 'n02.wav'},Sad,s2,0.02,0.08\n"
        f"m,{noises / 'n01.wav'},grumpy,s1,,\n"
    )
    store = extract(manifest, model=str(checkpoint()), out=tmp_path / "run", dtype="fp32")
    assert store.ids == ["z", "a", "m"]
    assert store.labels("emotion") == ["anger", "sadness", "grumpy"]
    assert store.labels("emotion_raw") == ["angry", "Sad", "grumpy"]
    assert store.labels("speaker") == ["s1", "s2", "s1"]
    assert store.num_samples[1] == 960


def test_a_full_disk_ends_the_run_with_a_store_that_opens(
    noises: Path, checkpoint: MakeCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits, commit = [], RunWriter.commit

    def full_at_the_third(self: RunWriter, result: Any) -> Any:
        commits.append(result.batch)
        if len(commits) == 3:
            raise StoreUnwritable("runs/x: the disk is full")
        return commit(self, result)

    options = Options(model=str(checkpoint()), dtype="fp32", batch_seconds=2)
    with monkeypatch.context() as patch:
        patch.setattr(RunWriter, "commit", full_at_the_third)
        with pytest.raises(StoreUnwritable):
            run(noises, options, tmp_path / "run")
    ours = [t.name for t in threading.enumerate() if t.name.startswith(("encode", "decode"))]
    assert ours == []
    assert 0 < len(Store(tmp_path / "run")) < 24
    run(noises, options, tmp_path / "run")
    run(noises, options, tmp_path / "whole")
    same_store(tmp_path / "run", tmp_path / "whole")


def test_settings_that_cannot_work_are_refused_before_anything_is_read() -> None:
    nowhere = "nowhere/at/all"
    for bad, message in (
        (Options(batch_seconds=0), "--batch-seconds"),
        (Options(window=5), "--window"),
        (Options(window=30.001), "--window"),
        (Options(workers=0), "--workers"),
        (Options(channel=-1), "--channel"),
        (Options(storage_dtype="bf16"), "--storage-dtype"),
        (Options(shard=(2, 2)), "--shard"),
        (Options(layers="some"), "--layers"),
        (Options(pooling="median"), "unknown pooling"),
        (Options(device="tpu"), "unknown device"),
        (Options(dtype="int4"), "unknown dtype"),
    ):
        with pytest.raises(SettingsError, match=message):
            run(nowhere, bad, "out")
    with pytest.raises(SettingsError, match="poling"):
        extract(nowhere, poling="mean")
    with pytest.raises(InputError, match="nowhere"):
        run(nowhere, Options(), "out")


def test_ids_stay_when_a_new_file_has_the_name_of_an_old_one(
    noises: Path, checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    options = Options(model=str(checkpoint()), dtype="fp32")
    for name, source in (("data/one/a.wav", "n01.wav"), ("data/one/b.wav", "n02.wav")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((noises / source).read_bytes())
    run(tmp_path / "data", options, tmp_path / "run")
    (tmp_path / "data" / "two").mkdir()
    (tmp_path / "data" / "two" / "a.wav").write_bytes((noises / "n04.wav").read_bytes())
    summary = run(tmp_path / "data", options, tmp_path / "run")
    assert (summary.embedded, summary.stored) == (1, 3)
    assert Store(tmp_path / "run").ids == ["a", "b", "two/a"]
