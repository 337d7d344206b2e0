"""Benchmarks at toy size, so that they cannot rot: every contender. Nothing asserts on time."""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import subprocess
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bench_cases import small_models as small_models
from conftest import ROOT, MakeCheckpoint, relative_error

from benchmarks import __main__ as all_benchmarks
from benchmarks import (
    augment,
    choices,
    decode,
    encoder,
    harness,
    kernels,
    memory,
    padding,
    precision,
    products,
    readme,
    training,
    write,
)
from benchmarks.kernel_cases import COMPILED, DEFINITION, LIBRARY, OURS, Case
from benchmarks.stand_ins import write_clips
from extractor.encoders import Model
from extractor.encoders.linear import Linear, can_run_int8
from extractor.store import Store

CPU = torch.device("cpu")


@pytest.fixture
def run_toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """The result of a benchmark in this process, and what the README says of it."""

    def run(name: str, *arguments: str) -> dict[str, Any]:
        module, out = importlib.import_module(f"benchmarks.{name}"), tmp_path / f"{name}-toy.json"
        for owner in (harness, module):  # not in a process of its own
            monkeypatch.setattr(owner, "in_child", lambda function, *args: function(*args), raising=False)
        assert not module.main([*arguments, "--out", str(out)])
        result = json.loads(out.read_text())
        table = readme.section(name, tmp_path) if name in readme.SECTIONS else ""
        return result | {"table": table}

    return run


# --- What they share ----------------------------------------------------------------------------


def test_contenders_take_turns() -> None:
    order: list[str] = []

    def contender(name: str) -> float:
        order.append(name)
        return float(len(order))

    figures = harness.take_turns({name: lambda n=name: contender(n) for name in "ab"}, rounds=3)
    assert "".join(order) == "baabbaab"  # one round to warm up, then each goes first in turn
    assert figures == {"a": [3.0, 6.0, 7.0], "b": [4.0, 5.0, 8.0]}


def test_a_result_file_names_the_machine_but_no_host(tmp_path: Path) -> None:
    path = harness.write_result("toy", {"rows": [1]}, tmp_path / "new" / "toy.json")
    result = json.loads(path.read_text())
    assert result["rows"] == [1] and result["machine"] == harness.machine()
    assert result["versions"].keys() >= {"torch", "numpy"}
    if hasattr(os, "uname"):
        assert os.uname().nodename not in path.read_text()


def test_working_memory_is_what_the_work_takes_and_no_more() -> None:
    size = 256 << 20
    ballast = np.ones(size, dtype=np.uint8)  # there before: does not count
    taken = harness.working_bytes(lambda: np.ones(size, dtype=np.uint8), CPU)
    nothing = harness.working_bytes(lambda: None, CPU)
    if taken is None or nothing is None:
        pytest.skip("the peak of resident memory cannot be reset here, or this is not glibc")
    # Pages that the interpreter and the allocator take along are a few megabytes.
    assert 0.9 * size < taken < 1.2 * size and nothing < 0.1 * size
    # A process of its own has nothing of this one's.
    assert harness.in_child(harness.peak_bytes) < ballast.nbytes < harness.peak_bytes()


def test_all_benchmarks_run_what_can(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    codes = dict.fromkeys(all_benchmarks.BENCHMARKS, 0) | {"decode": harness.CANNOT_RUN, "write": 3}
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


# --- Each at toy size, and what the README says of it -------------------------------------------


def holds_training(result: dict[str, Any]) -> None:
    """Both ways find the same UA, which is the sign that they do the same."""
    for classifier, contenders in result["classifiers"].items():
        ours, by_hand = contenders["hser-train"], contenders.get("by hand")
        assert len(ours["seconds"]) == 2 and sum(ours["stages"]["fit"]) < sum(ours["seconds"])
        assert set(ours["stages"]) == {"read", "fit", "test", "figures"}
        assert (by_hand is not None) == (classifier in training.BY_HAND)
        if by_hand is not None:
            assert by_hand["UA"] == pytest.approx(ours["UA"])
            assert by_hand["stages"].keys() == {"read", "fit", "test"}


def holds_kernels(result: dict[str, Any]) -> None:
    kinds = {row["kernel"].split(",")[0].split(" of ")[0] for row in result["rows"]}
    assert kinds == {"spectral edit", "stft", "waveform chain", "resample", "norm_gelu", "pool"}
    for row in result["rows"]:
        assert row["calls"].keys() == {OURS, LIBRARY}
        assert row["bytes"] > 0 and row["share_of_copy"] > 0
    assert result["findings"] == []  # the aims are a GPU's


def holds_augment(result: dict[str, Any]) -> None:
    assert [row["augmentation"] for row in result["rows"]] == augment.texts()
    assert all(row["share"] > 0 for row in result["rows"])
    aims = {row["augmentation"]: row["aim"] for row in result["rows"]}
    assert (aims["stretch"], aims["noise"]) == (0.25, 0.10) and "`latent`" not in result["table"]
    with_baseline = [row["augmentation"] for row in result["rows"] if row["torchaudio_ms"]]
    assert with_baseline == ["stretch", "specaugment"]


def holds_choices(result: dict[str, Any]) -> None:
    [row] = result["rows"]
    assert set(row["speeds"]) == {choices.ALL, *(c.what for c in choices.CHOICES), choices.NONE}
    assert set(row["gain"]) == set(row["speeds"]) - {choices.ALL}
    assert row["stages"][choices.ALL]["attention"] > 0 < row["stages"][choices.NONE]["attention"]


def holds_padding(result: dict[str, Any]) -> None:
    [row] = result["rows"]
    assert len(row["hser"]) == padding.NUM_CLIPS and max(row["hser"]) < 1e-5


# Its options, what the README's table has, and what its result must be.
TOYS: dict[str, tuple[str, str, Callable[[dict[str, Any]], None] | None]] = {
    "write": ("--rows 4 --batch-rows 2 --repeats 1", "write and fsync", None),
    "memory": ("--many 20 --hours 0.004 --rows 1000", "20 short recordings", None),
    "index": ("--rows 2000 --dim 16 --queries 5 --repeats 1 --kinds ivf --plain-build", "ivf", None),
    "training": (
        "--rows 400 --layers 3 --dim 12 --repeats 2 --classifiers logistic,svm,knn",
        "400 x 3 x 12",
        holds_training,
    ),
    "kernels": (
        "--device cpu --recordings 2 --seconds 0.2 --rounds 1",
        "spectral edit, 2 x 0.2 s",
        holds_kernels,
    ),
    "augment": ("--model small-hubert --seconds 6 --rounds 1", "`pitch`", holds_augment),
    "padding": ("", "small-hubert (layer norm)", holds_padding),
    "products": ("--rounds 1", "", None),
    "choices": (
        "--models small-hubert --lengths 1 --seconds 4 --rounds 1",
        "blocks of 4,096",
        holds_choices,
    ),
}


@pytest.mark.parametrize("name", TOYS)
def test_benchmark_runs(name: str, run_toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(padding, "MODELS", ("small-hubert",))
    monkeypatch.setattr(products, "CALLS", 1)
    arguments, told, holds = TOYS[name]
    result = run_toy(name, *arguments.split())
    assert told in result["table"]
    if holds is not None:
        holds(result)


def test_decode_benchmark_runs_and_says_when_it_cannot(run_toy: Any, tmp_path: Path) -> None:
    write_clips(tmp_path / "emodb" / "wav", (0.5, 0.6))
    result = run_toy("decode", "--data", str(tmp_path), "--rounds", "1")
    assert {row["files"] for row in result["rows"]} == {"16 kHz WAV (EmoDB)"} and "EmoDB" in result["table"]
    assert decode.main(["--data", str(tmp_path / "empty")]) == harness.CANNOT_RUN


def test_what_the_write_benchmark_times_is_stored(tmp_path: Path) -> None:
    batches = write.make_batches(num_rows=6, batch_rows=3)
    for name in ("hser", "hser, each batch alone"):
        (tmp_path / name).mkdir()
        write.WRITERS[name](tmp_path / name, batches)
        with Store(tmp_path / name / "run") as store:
            assert np.array_equal(store.load(), np.concatenate([b.pooled["mean"] for b in batches]))


def test_a_run_with_failures_measures_nothing(tmp_path: Path) -> None:
    (tmp_path / "no_such.wav").write_bytes(b"no audio")
    with pytest.raises(RuntimeError, match="no_such"):
        memory.peaks_of_runs([[str(tmp_path / "no_such.wav")]], "mfcc", str(tmp_path / "bad-run"))


def test_a_stage_inside_another_counts_for_the_outer() -> None:
    stages = training.Stages()
    inner = stages.timed(lambda: None, "read")
    stages.timed(inner, "fit")()
    assert stages.seconds.keys() == {"fit"}
    with pytest.raises(KeyError):
        stages.timed({}.__getitem__, "test")("no such")
    inner()
    assert stages.seconds.keys() == {"fit", "test", "read"}


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
    from torch._dynamo.exc import Unsupported

    def fails() -> None:
        raise Unsupported("no such thing\nas this")

    one, other = torch.ones(3), torch.tensor([1.0, 1.0, 1.1])
    with pytest.raises(RuntimeError, match="from the definition"):
        kernels.runnable(Case("toy", "", 1, {OURS: lambda: other, DEFINITION: lambda: one}, ""))
    ways = {OURS: lambda: one, DEFINITION: lambda: one, COMPILED: fails}
    works, missing = kernels.runnable(Case("toy", "", 1, ways, ""))
    assert works.keys() == {OURS, DEFINITION} and missing == {COMPILED: "Unsupported: no such thing"}


def test_a_recording_that_cannot_be_augmented_ends_the_augment_benchmark() -> None:
    from extractor.augment import parse

    corpus = augment.Corpus([np.zeros(16_000, dtype=np.float32)])
    with pytest.raises(RuntimeError, match="silent"):
        corpus.augment(parse("noise"), 1)


@pytest.mark.parametrize("kind", ["hubert", "wavlm"])  # WavLM's attention has a gated bias
def test_choices_are_away_while_they_are_away(kind: str) -> None:
    """Without any of them the embeddings are the same, and none of the patched places stays patched."""
    places = {place for choice in choices.CHOICES for place in choice.instead}
    before = {place: pkgutil.resolve_name(place) for place in places}
    waveforms = [np.random.default_rng(n).standard_normal(n).astype(np.float32) for n in (9_000, 16_000)]
    found = []
    for context in (nullcontext(), choices.without(*choices.CHOICES)):
        with context:
            found.append(encoder.mean_pooled(Model(f"random:small-{kind}", "fp32", CPU), waveforms))
            same = {pkgutil.resolve_name(place) is value for place, value in before.items()}
            assert same == {len(found) == 1}
    np.testing.assert_allclose(*found, atol=1e-5)
    assert all(pkgutil.resolve_name(place) is value for place, value in before.items())


# --- Fewer bits ---------------------------------------------------------------------------------


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


def test_values_are_rounded_to_what_e4m3_holds() -> None:
    x = normal(50, 300) * torch.logspace(-6, 6, 50)[:, None]
    back = precision.rounded(x)
    scale = x.abs().amax(1, keepdim=True) / 448
    # Another rounding changes nothing.
    assert torch.equal((back / scale).to(precision.E4M3).float() * scale, back)
    # Three bits behind the leading one: off by a sixteenth at most, and by half the smallest step, 2^-9.
    assert ((back - x).abs() <= x.abs() / 16 + scale * 2**-10 * 1.001).all()
    assert torch.equal(precision.rounded(torch.zeros(2, 3)), torch.zeros(2, 3))


def test_products_in_e4m3_are_near_the_exact_ones_and_not_equal() -> None:
    weight, bias, x, residual = normal(96, 64), normal(96), normal(40, 64), normal(40, 96)
    ours = precision.Float8Linear(weight, bias)
    exact = Linear(weight, bias, torch.float32, CPU)
    for got, wanted in (
        (ours(x), exact(x)),
        (ours.gelu(x), exact.gelu(x)),
        (ours.add(x, residual), exact.add(x, residual)),
    ):
        assert 0.005 < relative_error(got, wanted) < 0.06


def test_the_benchmark_gives_a_row_a_model(run_toy: Any, checkpoint: MakeCheckpoint) -> None:
    folder = checkpoint(do_stable_layer_norm=True, feat_extract_norm="layer")
    config = str(folder / "config.json")
    result = run_toy("precision", "--models", config, "--checkpoint", f"tiny={folder}")
    assert result["rows"][0]["model"] == config
    assert [row["weights"] for row in result["rows"]] == ["random", "its own"]
    for row in result["rows"]:
        assert row["pooled"].keys() == {"bf16", "fp8"} | ({"int8"} if can_run_int8(CPU) else set())
        lowest = {dtype: min(cosines) for dtype, cosines in row["frames"].items()}
        assert lowest["fp8"] < lowest["bf16"] < 1
        assert all(0.9 < cosine <= 1 for by_layer in row["pooled"].values() for cosine in by_layer)
    assert f"{min(result['rows'][1]['pooled']['fp8']):.5f}" in result["table"]
    assert "tiny, its own weights" in result["table"]
    with pytest.raises(SystemExit):
        precision.main(["--checkpoint", "tiny"])
