"""Benchmarks at toy size, so that they cannot rot: every stage, every contender. Nothing asserts on time."""

from __future__ import annotations

import json
import os
import pkgutil
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT

from benchmarks import __main__ as all_benchmarks
from benchmarks import (
    accuracy,
    accuracy_tables,
    augment,
    choices,
    common,
    decode,
    egemaps,
    encoder,
    gpu_check,
    gpu_kernels,
    kernels,
    memory,
    readme,
    training,
    write,
)
from benchmarks.accuracy_rows import PROTOCOLS, ROWS, commands
from benchmarks.kernel_cases import COMPILED, DEFINITION, LIBRARY, OURS, Case, Size
from benchmarks.stand_ins import NORMS, SMALL, write_clips, write_config, write_noise
from extractor.audio.decode import DecodeOptions, decode_batch
from extractor.audio.probe import probe
from extractor.encoders import Model
from extractor.encoders.families import MODELS, HubModel
from extractor.encoders.pooling import Piece, Pooler
from extractor.plan.batches import plan_batches
from extractor.run.batch import BatchEncoder
from extractor.store import Store
from extractor.types import SAMPLE_RATE, Decoded, Utterance

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return write_clips(tmp_path_factory.mktemp("clips"), (0.5, 0.7, 1.0, 1.3))


@pytest.fixture
def small_model(monkeypatch: pytest.MonkeyPatch) -> str:
    """A name that all benchmarks know, of a model that takes milliseconds."""
    monkeypatch.setitem(MODELS, "small", HubModel("none", "hubert", {**SMALL, **NORMS["layer"]}))
    return "small"


def timed(benchmark: Any, function: Callable[[], Any]) -> Any:
    return benchmark.pedantic(function, rounds=2, iterations=1, warmup_rounds=1)


# --- The stages ---------------------------------------------------------------------------------


def test_plan_stage(benchmark: Any) -> None:
    lengths = np.random.default_rng(0).integers(8_000, 320_000, 20_000)
    batches = timed(benchmark, lambda: plan_batches(lengths, 30 * SAMPLE_RATE))
    assert sum(map(len, batches)) == len(lengths)


def test_decode_stage(benchmark: Any, clips: list[str]) -> None:
    utterances = [Utterance(path, path) for path in clips]
    headers = probe(utterances)
    decoded = timed(benchmark, lambda: decode_batch(utterances, headers, DecodeOptions()))
    assert all(isinstance(d, Decoded) for d in decoded)


@pytest.mark.parametrize("norm", NORMS)
def test_encode_stage(benchmark: Any, tmp_path: Path, clips: list[str], norm: str) -> None:
    model = Model(write_config(tmp_path, norm=norm), "fp32", CPU)
    encode = BatchEncoder(model, (0, 3), ("mean",), 60 * SAMPLE_RATE, 30 * SAMPLE_RATE)
    [job] = encoder.jobs(encoder.read(clips), 30.0)
    result = timed(benchmark, lambda: encode(job))
    assert result.pooled["mean"].shape == (len(clips), 2, SMALL["hidden_size"])


def test_pool_stage(benchmark: Any) -> None:
    lengths = (1, 63, 500)
    hidden = torch.randn(sum(lengths), 48)

    def pool() -> dict[str, np.ndarray]:
        pooler = Pooler(len(lengths), [0], 48, gpu_check.POOLINGS, CPU)
        pooler.begin([Piece(u, n, slice(0, n)) for u, n in enumerate(lengths)])
        pooler.add(0, hidden)
        return pooler.pooled()

    assert timed(benchmark, pool).keys() == set(gpu_check.POOLINGS)


def test_commit_stage(benchmark: Any, tmp_path: Path) -> None:
    results = write.make_batches(num_rows=6, batch_rows=3)
    folders = iter(tmp_path / str(i) for i in range(3))

    def commit() -> None:
        folder = next(folders)
        folder.mkdir()
        write.with_hser(folder, results)

    timed(benchmark, commit)
    for folder in tmp_path.iterdir():
        with Store(folder / "run") as store:  # each round stored all that it was timed for
            assert len(store) == 6
            assert np.array_equal(store.load(), np.concatenate([r.pooled["mean"] for r in results]))


# --- The benchmarks themselves ------------------------------------------------------------------


def test_contenders_take_turns() -> None:
    order: list[str] = []

    def contender(name: str) -> Callable[[], float]:
        def run() -> float:
            order.append(name)
            return float(len(order))

        return run

    figures = common.take_turns({name: contender(name) for name in "ab"}, rounds=3)
    assert "".join(order) == "baabbaab"  # one round to warm up, then each goes first in turn
    assert figures == {"a": [3.0, 6.0, 7.0], "b": [4.0, 5.0, 8.0]}


def test_a_result_file_names_the_machine_but_no_host(tmp_path: Path) -> None:
    path = common.write_result("toy", {"rows": [1]}, tmp_path / "new" / "toy.json")
    result = json.loads(path.read_text())
    assert result["rows"] == [1] and result["machine"] == common.machine()
    assert result["versions"].keys() >= {"torch", "numpy"}
    if hasattr(os, "uname"):
        assert os.uname().nodename not in path.read_text()


def test_encoder_contenders_run(clips: list[str], small_model: str) -> None:
    reference = encoder.transformers_model(small_model, torch.float32, CPU)
    waveforms = encoder.read(clips)
    model = Model(f"random:{small_model}", "fp32", CPU)
    encode = BatchEncoder(model, (0, 1, 2, 3), ("mean",), 60 * SAMPLE_RATE, 30 * SAMPLE_RATE)
    assert encoder.loop(reference, clips) > 0
    assert encoder.best(reference, waveforms, batch_size=3) > 0
    assert encoder.bare(encode, encoder.jobs(waveforms, 30.0), encoder.audio_seconds(waveforms)) > 0
    assert encoder.command(clips, small_model, "fp32") > 0


def test_decode_benchmark_runs_and_says_when_it_cannot(tmp_path: Path) -> None:
    folder = tmp_path / "emodb" / "wav"
    write_clips(folder, (0.5, 0.6))
    out = tmp_path / "decode-toy.json"
    assert decode.main(["--data", str(tmp_path), "--rounds", "1", "--out", str(out)]) == 0
    assert {row["files"] for row in json.loads(out.read_text())["rows"]} == {"16 kHz WAV (EmoDB)"}
    assert decode.main(["--data", str(tmp_path / "empty")]) == common.CANNOT_RUN


def test_write_benchmark_runs(tmp_path: Path) -> None:
    out = tmp_path / "write-toy.json"
    write.main(["--rows", "4", "--batch-rows", "2", "--repeats", "1", "--out", str(out)])
    assert json.loads(out.read_text())["speeds"].keys() == write.WRITERS.keys()
    assert "rows/s" in readme.write_table(json.loads(out.read_text()))


def test_memory_benchmark_runs(tmp_path: Path, clips: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    write_noise(tmp_path / "stereo.flac", 1.5, 48_000, 2)
    before, after = memory.peaks_of_runs(
        [clips[0], str(tmp_path / "stereo.flac")], write_config(tmp_path / "small"), str(tmp_path / "run")
    )
    assert 0 < before <= after
    plan = memory.measure_plan(1000, str(tmp_path / "planned"))
    assert plan.recordings == 1000 and plan.batches > 100
    with pytest.raises(RuntimeError, match="no_such"):  # a run with failures measures nothing
        write_clips(tmp_path / "bad", (0.01,))
        (tmp_path / "bad" / "no_such.wav").write_bytes(b"no audio")
        memory.peak_of_run([str(tmp_path / "bad" / "no_such.wav")], "mfcc", str(tmp_path / "bad-run"))
    monkeypatch.setattr(memory, "in_child", lambda function, *args: function(*args))
    corpus = memory.measure_corpus(tmp_path, few=1, many=2)
    long = memory.measure_long(tmp_path, ["mfcc"], duration=12.0, formats=["16 kHz mono WAV"])
    result = json.loads(json.dumps(memory.report(corpus, long, plan)))
    assert "2 short recordings" in readme.memory_table(result)


def test_memory_is_measured_in_a_process_of_its_own() -> None:
    ballast = np.ones(200 << 20, dtype=np.uint8)
    assert memory.in_child(memory.peak_bytes) < ballast.nbytes < memory.peak_bytes()


def test_training_benchmark_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways find the same UA, which is the sign that they do the same."""
    monkeypatch.setattr(training, "in_child", lambda function, *args: function(*args))
    out = tmp_path / "training-toy.json"
    sizes = ["--rows", "400", "--layers", "3", "--dim", "12", "--repeats", "2"]
    training.main([*sizes, "--classifiers", "logistic,svm,knn", "--out", str(out)])
    result = json.loads(out.read_text())
    for classifier, contenders in result["classifiers"].items():
        ours = contenders["hser-train"]
        assert len(ours["seconds"]) == 2 and sum(ours["stages"]["fit"]) < sum(ours["seconds"])
        assert set(ours["stages"]) == {"read", "fit", "test", "figures"}
        if classifier in training.BY_HAND:
            assert contenders["by hand"]["UA"] == pytest.approx(ours["UA"])
            assert contenders["by hand"]["stages"].keys() == {"read", "fit", "test"}
        else:
            assert contenders.keys() == {"hser-train"}
    assert "layer 1 of 400 x 3 x 12" in readme.training_table(result)


def test_a_stage_inside_another_counts_for_the_outer() -> None:
    stages = training.Stages()
    inner = stages.timed(lambda: None, "read")
    stages.timed(inner, "fit")()
    assert stages.seconds.keys() == {"fit"}
    with pytest.raises(KeyError):
        stages.timed({}.__getitem__, "test")("no such")
    inner()
    assert stages.seconds.keys() == {"fit", "test", "read"}


def test_kernels_benchmark_runs() -> None:
    result = json.loads(json.dumps(kernels.measure(Size("cpu", 2, 0.2), rounds=1, compiled=False)))
    assert {row["kernel"].split(",")[0].split(" of ")[0] for row in result["rows"]} == {
        "spectral edit",
        "stft",
        "waveform chain",
        "resample",
        "norm_gelu",
        "pool",
    }
    for row in result["rows"]:
        assert row["calls"].keys() == {OURS, LIBRARY}
        assert row["bytes"] > 0 and row["share_of_copy"] > 0
    assert result["findings"] == []  # the aims are a GPU's
    assert "spectral edit, 2 x 0.2 s" in readme.kernels_table(result)
    kernels.print_result(result)


def test_aims_are_held_against_what_was_measured() -> None:
    row = {
        "kernel": "toy",
        "what": "2 x 1 s",
        "calls": {OURS: [1.0], LIBRARY: [2.0]},
        "share_of_copy": 0.7,
        "aims": {"share_of_copy": 0.6, "library/ours": 3.0},
    }
    assert [(f["value"], f["met"]) for f in kernels.findings_of([row])] == [(0.7, True), (2.0, False)]
    [alone] = kernels.findings_of([{**row, "calls": {OURS: [1.0]}}])
    assert alone["aim"] == 0.6


def test_a_kernel_that_is_not_its_definition_is_not_timed() -> None:
    one, other = torch.ones(3), torch.tensor([1.0, 1.0, 1.1])
    with pytest.raises(RuntimeError, match="from the definition"):
        kernels.runnable(Case("toy", "", 1, {OURS: lambda: other, DEFINITION: lambda: one}, ""))
    works, missing = kernels.runnable(Case("toy", "", 1, {OURS: lambda: one, DEFINITION: lambda: one}, ""))
    assert works.keys() == {OURS, DEFINITION} and not missing


def test_what_torch_cannot_compile_is_left_out_with_its_reason() -> None:
    from torch._dynamo.exc import Unsupported

    def fails() -> None:
        raise Unsupported("no such thing\nas this")

    works, missing = kernels.runnable(Case("toy", "", 1, {OURS: lambda: torch.ones(1), COMPILED: fails}, ""))
    assert works.keys() == {OURS}
    assert missing == {COMPILED: "Unsupported: no such thing"}


def test_choices_are_away_while_they_are_away(
    small_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without any of them the embeddings are the same, and none of the patched places stays patched."""
    places = {place for choice in choices.CHOICES.values() for place in choice.instead}
    before = {place: pkgutil.resolve_name(place) for place in places}
    waveforms = [np.random.default_rng(n).standard_normal(n).astype(np.float32) for n in (9_000, 16_000)]
    found = {}
    for name, context in {"all": nullcontext, "none": choices.all_away}.items():
        with context():
            model = Model(f"random:{small_model}", "fp32", CPU)
            encode, _ = encoder.batch_encoder(model)
            [result] = map(encode, encoder.jobs(waveforms, 10.0))
            found[name] = result.pooled["mean"]
            assert (pkgutil.resolve_name(next(iter(places))) is before[next(iter(places))]) == (name == "all")
    np.testing.assert_allclose(found["none"], found["all"], atol=1e-5)
    assert all(pkgutil.resolve_name(place) is value for place, value in before.items())
    row = choices.measure(small_model, "1", rounds=1, seconds=4.0, scratch=tmp_path)
    assert set(row["speeds"]) == {choices.ALL, *choices.CHOICES, choices.NONE}
    assert set(row["gain"]) == set(row["speeds"]) - {choices.ALL}
    assert row["stages"][choices.ALL]["attention"] > 0 < row["stages"][choices.NONE]["attention"]
    result = {"instead": {c.what: c.without for c in choices.CHOICES.values()}, "rows": [row]}
    assert "blocks of 4,096" in readme.choices_table(result)


@pytest.mark.parametrize("gated", [False, True])
def test_sdpa_of_the_choices_is_attention(gated: bool) -> None:
    from extractor.encoders.transformer import attend

    rng = torch.Generator().manual_seed(0)
    lengths, heads = [33, 64], 2
    qkv = torch.randn(100, 3 * 16, generator=rng)
    bias = torch.randn(heads, 64, 64, generator=rng) if gated else None
    gate = torch.rand(100, heads, generator=rng) if gated else None
    torch.testing.assert_close(
        choices.sdpa(qkv, lengths, heads, bias, gate), attend(qkv, lengths, heads, bias, gate)
    )


def test_augment_benchmark_runs(clips: list[str], small_model: str) -> None:
    corpus = augment.Corpus.of(encoder.read(clips))
    result = json.loads(json.dumps(augment.measure(small_model, corpus, rounds=1)))
    assert [row["augmentation"] for row in result["rows"]] == augment.asked()
    assert all(row["share"] > 0 for row in result["rows"])
    aims = {row["augmentation"]: row["aim"] for row in result["rows"]}
    assert (aims["stretch"], aims["noise"]) == (0.25, 0.10)
    assert [row["augmentation"] for row in result["rows"] if row["torchaudio_ms"]] == [
        "stretch",
        "specaugment",
    ]
    table = readme.augment_table(result)
    assert "`pitch`" in table and "`latent`" not in table
    augment.print_result(result)


def test_a_recording_that_cannot_be_augmented_ends_the_augment_benchmark() -> None:
    from extractor.augment import parse

    corpus = augment.Corpus.of([np.zeros(16_000, dtype=np.float32)])
    with pytest.raises(RuntimeError, match="silent"):
        augment.augment_all(corpus, parse("noise"), 1)


def test_all_benchmarks_run_what_can(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    codes = dict.fromkeys(all_benchmarks.BENCHMARKS, 0) | {"decode": common.CANNOT_RUN, "write": 3}
    ran = []

    def run(command: list[str], check: bool) -> Any:
        ran.append(command[-1].removeprefix("benchmarks."))
        return subprocess.CompletedProcess(command, codes[ran[-1]])

    monkeypatch.setattr(subprocess, "run", run)
    assert all_benchmarks.main([]) == 1
    assert ran == list(codes)
    out = capsys.readouterr().out
    assert "decode: skipped" in out and "write: failed with exit code 3" in out
    assert all_benchmarks.main(["memory", "decode"]) == 0
    assert all((ROOT / "benchmarks" / f"{name}.py").is_file() for name in all_benchmarks.BENCHMARKS)


# --- Accuracy -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def toy_emodb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `emodb/`: three speakers, two emotions that differ in level and are often confused."""
    import soundfile

    folder = tmp_path_factory.mktemp("data")
    (folder / "emodb").mkdir()
    rng = np.random.default_rng(0)
    for speaker in ("03", "08", "09"):
        for letter, loudness in (("W", 0.07), ("N", 0.05)):
            for text in ("a01", "a02", "a04", "a05"):
                noise = rng.standard_normal(SAMPLE_RATE // 4) * loudness * rng.uniform(0.7, 1.3)
                soundfile.write(folder / "emodb" / f"{speaker}{text}{letter}a.wav", noise, SAMPLE_RATE)
    return folder


def test_accuracy_in_plain_scikit_learn_is_that_of_hser_train(toy_emodb: Path, tmp_path: Path) -> None:
    """hser's own embeddings in the place of the outside ones: the two ways must find the same."""
    from extractor.store import Store

    out = tmp_path / "accuracy.json"
    options = ["--data", str(toy_emodb), "--runs", str(tmp_path / "runs"), "--out", str(out), "--only"]
    assert accuracy.main([*options, "emodb-egemaps-svm"]) == common.CANNOT_RUN  # no outside features yet
    assert not out.exists()
    assert accuracy.main([*options, "emodb-mfcc-svm"]) == 0
    store = Store(tmp_path / "runs" / "emodb-mfcc")
    shuffled = np.random.default_rng(0).permutation(len(store))
    np.savez(
        tmp_path / "runs" / "emodb-egemaps.npz",
        id=np.array(store.ids)[shuffled],
        x=store.load(layer=0)[shuffled],
        opensmile="none",
    )
    assert accuracy.main([*options, "emodb-egemaps-svm"]) == 0
    assert accuracy.main([*options, "emodb-whisper-svm"]) == common.CANNOT_RUN  # no --whisper
    ours, reference = json.loads(out.read_text())["rows"]
    assert (ours["name"], reference["name"]) == ("emodb-mfcc-svm", "emodb-egemaps-svm")
    assert ours["num_tested"] == 24 and ours["classes"] == ["anger", "neutral"]
    assert ours["figures"] == reference["figures"] and ours["recall"] == reference["recall"]
    assert ours["selected"][0]["C"] == reference["selected"][0]["C"]
    assert 0.5 < ours["figures"]["UA"]["value"] < 1  # else equality would say little
    assert str(tmp_path) not in out.read_text()
    assert "leave one speaker out" in readme.section("figures", tmp_path)


def test_accuracy_rows_are_commands_that_exist() -> None:
    from click.testing import CliRunner

    from classifiers.commands.evaluate import hser_evaluate
    from classifiers.commands.lookup import hser_lookup
    from classifiers.commands.train import command as hser_train
    from extractor.commands.extract import command as hser_extract

    programs = {
        "hser-extract": hser_extract,
        "hser-train": hser_train,
        "hser-evaluate": hser_evaluate,
        "hser-lookup": hser_lookup,
    }
    for row in ROWS.values():
        for text in commands(row):
            program, *arguments = shlex.split(text)
            assert program in {*programs, "python"}
            if program == "hser-train":
                done = CliRunner().invoke(hser_train, [*arguments, "--print-config"])
                assert done.exit_code == 0, (text, done.output, done.exception)
                assert f"protocol: {PROTOCOLS[row.corpora[0]]}" in done.output
            elif program == "hser-evaluate":
                matrix = hser_evaluate.commands[arguments[0]]
                assert matrix.make_context("matrix", arguments[1:]).params["runs"]
            elif program == "hser-lookup":
                evaluate = hser_lookup.commands[arguments[0]]
                assert evaluate.make_context("evaluate", arguments[1:]).params["run"]
            elif program == "hser-extract":
                assert "--dtype fp32" in text  # `auto` is another dtype on another machine
                assert hser_extract.make_context("hser-extract", arguments).params["out"]


def test_accuracy_keeps_what_was_not_asked_for_and_its_order(tmp_path: Path) -> None:
    first, second, third = list(ROWS)[:3]
    out = tmp_path / "accuracy.json"
    accuracy.write(out, [{"name": third, "value": 1}, {"name": "no longer a row"}])
    accuracy.write(out, [{"name": first, "value": 2}])
    accuracy.write(out, [{"name": third, "value": 3}, {"name": second}])
    rows = json.loads(out.read_text())["rows"]
    assert [row["name"] for row in rows] == [first, second, third] and rows[2]["value"] == 3


def test_a_command_that_fails_is_named_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)hser-extract nothing/.*exit code 2.*nothing"):
        accuracy.carry_out("hser-extract nothing/ --model mfcc --out runs/x", tmp_path)


def test_accuracy_tables_say_what_the_embeddings_were_computed_in() -> None:
    """The dtype that a row was measured with; of older rows what their commands asked for."""
    rows = json.loads((ROOT / "benchmarks" / "results" / "accuracy.json").read_text())["rows"]
    told = {row["name"]: accuracy_tables.dtype(row) for row in rows}
    assert told.pop("emodb-egemaps-svm") == told.pop("ravdess-egemaps-svm") == "-"
    assert told["emodb-mfcc-svm"] == "fp32" and set(told.values()) <= {"fp32", accuracy_tables.UNNAMED}
    for row in (row for row in rows if row["name"] in told):
        named = all("--dtype fp32" in text for text in row["commands"] if text.startswith("hser-extract"))
        spectral = "whisper" not in row["features"].lower()
        assert told[row["name"]] == ("fp32" if named or spectral else "auto")
    text = accuracy_tables.accuracy_text({"rows": rows}) + accuracy_tables.neighbours_text({"rows": rows})
    headers = [line for line in text.splitlines() if line.startswith("| ") and "UA %" in line]
    assert len(headers) == 4 and all("| dtype |" in line for line in headers)


def test_rows_of_one_corpus_must_be_tested_alike() -> None:
    row = {"corpora": ["emodb"], "classes": ["a", "b"], "protocol": "loso", "num_tested": 3, "note": ""}
    with pytest.raises(ValueError, match="not tested alike"):
        accuracy_tables.accuracy_text({"rows": [row, {**row, "num_tested": 4}]})


def test_outside_features_are_found_by_id_and_need_their_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    [first, second] = write_clips(tmp_path / "a", (0.1, 0.1))
    assert egemaps.recordings_in(tmp_path) == {"000000": Path(first), "000001": Path(second)}
    write_clips(tmp_path / "b", (0.1,))
    with pytest.raises(ValueError, match="000000: both"):
        egemaps.recordings_in(tmp_path)
    monkeypatch.setattr(egemaps, "find_spec", lambda name: None)
    assert egemaps.main([str(tmp_path), "--out", str(tmp_path / "x.npz")]) == common.CANNOT_RUN
    assert "needs opensmile" in capsys.readouterr().out


# --- The GPU check, its logic on the CPU --------------------------------------------------------


def test_gpu_checks_find_the_cpu_equal_to_itself(tmp_path: Path) -> None:
    findings = [
        *gpu_check.check_layers("cpu"),
        *gpu_check.check_pooling("cpu"),
        *gpu_check.check_bf16("cpu", [write_config(tmp_path / "small")]),
    ]
    assert len(findings) == len(gpu_check.KINDS) * len(NORMS) + 2 + 1
    assert all(finding.passed for finding in findings)
    assert all(f.value == 0.0 for f in findings if not f.at_least)


def test_gpu_check_runs_the_engine_on_both_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "KINDS", ("wavlm",))
    monkeypatch.setattr(gpu_check, "ENGINE_CLIPS", (0.3, 1.1))
    [finding] = gpu_check.check_engine("cpu", tmp_path)
    assert finding.passed and finding.value < 1e-6


def test_gpu_check_measures_speed(tmp_path: Path, small_model: str) -> None:
    row = gpu_check.measure_speed(
        small_model, "cpu", tmp_path, seconds=9.0, loop_seconds=4.5, rounds=1, batch_sizes=[2]
    )
    assert row["speeds"].keys() == {"loop", "best", "hser", "command"}
    result = {"machine": "toy", "rows": [row]}
    assert "small, " in readme.speed_table(result) and "small: hser" in readme.chart([result])


def test_gpu_check_finds_kernels_near_their_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_kernels, "LENGTHS", (1, 63, 0, 400))
    monkeypatch.setattr(gpu_kernels, "LONG", 2000)
    findings = [*gpu_kernels.check_kernels("cpu"), *gpu_kernels.check_augment("cpu")]
    assert {finding.check for finding in findings} == {"kernels", "augment"}
    for finding in findings:
        assert finding.passed, finding


@pytest.mark.parametrize("wrong", ["value", "unwritten", "batch"])
def test_gpu_check_notices_a_wrong_kernel(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(rows: Sequence[int], device: str, dtype: torch.dtype) -> list[torch.Tensor]:
        right = [torch.full((4,), i + 1.0, dtype=dtype) for i in rows]
        if dtype == torch.float64:
            return right
        if wrong == "unwritten":
            return [torch.empty(4) for _ in rows]
        return [x * (1.001 if wrong == "value" else 1 + 1e-7 * len(rows)) for x in right]

    monkeypatch.setattr(gpu_kernels, "batches", lambda: [gpu_kernels.Batch("toy", 3, 1e-5, run)])
    error, changed = gpu_kernels.check_kernels("cpu")
    assert error.passed == (wrong == "batch")
    assert changed.passed == (wrong == "value")


def test_gpu_check_writes_the_kernels_result_beside_its_own(tmp_path: Path) -> None:
    assert not [*gpu_check.check_kernels_speed("cpu", 1, tmp_path / "gpu.json", batch=(2, 0.2))]
    [path] = tmp_path.iterdir()
    assert path.name == f"kernels-{common.machine()}.json" and json.loads(path.read_text())["rows"]


def test_nan_passes_no_check() -> None:
    assert np.isnan(gpu_check.largest([1e-9, float("nan"), 1e-9]))
    for at_least in (False, True):
        assert not gpu_check.Finding("a", "b", float("nan"), 0.5, at_least).passed
    assert gpu_check.Finding("a", "b", 0.9, 0.5, at_least=True).passed
    assert not gpu_check.Finding("a", "b", 0.9, 0.5).passed


def test_a_check_without_its_packages_is_skipped_by_name() -> None:
    from importlib.metadata import version

    def check() -> Iterator[gpu_check.Finding]:
        version("no-such-package")
        yield gpu_check.Finding("a", "b", 0.0, 1.0)

    skipped: dict[str, str] = {}
    assert gpu_check.collect("toy", check, skipped) == []
    assert "no-such-package" in skipped["toy"]


def test_gpu_check_without_a_gpu_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_check.main([]) == 2
    assert "no CUDA device" in capsys.readouterr().out


# --- The README's tables ------------------------------------------------------------------------

TOY_SPEEDS = {
    "machine": "toy-2-cores",
    "rows": [
        {
            "model": "hubert-large",
            "dtype": "bf16",
            "mfu": 0.8,
            "speeds": {"loop": [2.0, 3.0, 4.0], "best": [15.0], "hser": [1500.0]},
            "ratios": {"hser/loop": 500.0, "hser/best": 100.0},
        }
    ],
}


def test_readme_tables_come_from_result_files(tmp_path: Path) -> None:
    page, results = tmp_path / "README.md", tmp_path / "results"
    results.mkdir()
    (results / "encoder-toy.json").write_text(json.dumps(TOY_SPEEDS))
    page.write_text("# Toy\n<!-- speed -->\nold\n<!-- /speed -->\nkept\n<!-- decode --><!-- /decode -->\n")
    arguments = [str(page), "--results", str(results)]
    assert readme.main([*arguments, "--check"]) == 1
    assert "old" in page.read_text()  # --check writes nothing
    assert readme.main(arguments) == 0
    text = page.read_text()
    assert "3.0 (2.0-4.0)" in text and "1,500" in text and "**100.00x**" in text and "toy-2-cores" in text
    assert "kept" in text and "old" not in text and "Not measured yet" in text
    assert (tmp_path / readme.CHART).read_text().count("<rect") == 3  # no int8
    assert readme.main([*arguments, "--check"]) == 0
    page.write_text(text.replace("1,500", "9,999"))
    assert readme.main([*arguments, "--check"]) == 1


def test_readme_marker_without_its_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="<!-- /write -->"):
        readme.fill("<!-- write -->\n", tmp_path)


def test_int8_has_its_column_and_its_bar_where_it_was_measured() -> None:
    (row,) = TOY_SPEEDS["rows"]
    ratios = {**row["ratios"], "int8/hser": 1.4, "int8/best": 140.0, "int8/loop": 700.0}
    quantised = {**row, "speeds": {**row["speeds"], "int8": [2100.0]}, "ratios": ratios}
    result = {**TOY_SPEEDS, "rows": [quantised, {**row, "model": "hubert-base"}]}
    lines = readme.speed_table(result).splitlines()
    assert lines[2].endswith("| 2,100 (1.40x, 140.00x, 700.00x) |") and lines[3].endswith("| - |")
    drawn = readme.chart([result])
    assert drawn.count("<rect") == 3 + 4 and "hubert-large: hser, int8" in drawn
    assert "int8" not in readme.speed_table(TOY_SPEEDS)


def test_chart_is_well_formed() -> None:
    from xml.etree import ElementTree

    assert ElementTree.fromstring(readme.chart([TOY_SPEEDS])).tag.endswith("svg")


def test_readme_shows_the_result_files() -> None:
    """Fails after a benchmark: `python -m benchmarks.readme README.md` makes the tables anew."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.readme", "README.md", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
