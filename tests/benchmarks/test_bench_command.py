"""`hser-bench` at toy size: stages, baselines, lengths, and where the time goes. Nothing asserts on speed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
import torch
from bench_cases import small_models as small_models
from click.testing import CliRunner, Result
from conftest import ROOT

from benchmarks import baselines, breakdown, decode, encoder, stand_ins, write
from benchmarks.cli import command
from benchmarks.harness import CANNOT_RUN
from benchmarks.stand_ins import write_config
from extractor.encoders import Model
from extractor.encoders.families import MODELS
from extractor.encoders.linear import can_run_int8
from extractor.errors import SettingsError

CPU = torch.device("cpu")
SMALL = ("--seconds", "4", "--loop-seconds", "1", "--rounds", "1", "--device", "cpu", "--out")


def workload(model: str) -> baselines.Workload:
    waveforms = [np.random.default_rng(n).standard_normal(n).astype(np.float32) for n in (8000, 9000)]
    return baselines.Workload(model, torch.float32, CPU, waveforms, [], compiled=True)


def bench(*arguments: str) -> Result:
    return CliRunner().invoke(command, arguments, catch_exceptions=False)


def toy(*arguments: str, out: Path) -> list[dict[str, Any]]:
    """Rows of a run on a few seconds of noise."""
    done = bench(*arguments, *SMALL, str(out))
    assert done.exit_code == 0, done.output
    return json.loads(out.read_text())["rows"]


# --- The command --------------------------------------------------------------------------------


# transformers' own WavLM hands SDPA's ancestor two kinds of masks.
@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask:UserWarning")
def test_encoder_is_measured_beside_all_baselines(tmp_path: Path) -> None:
    int8 = {"int8"} if can_run_int8(CPU) else set()
    names = ("--model", "small-hubert,small-wavlm", "--lengths", "0.5,emodb", *["--int8"] * len(int8))
    rows = toy("encoder", *names, out=tmp_path / "toy.json")
    assert [(row["model"], row["lengths"]) for row in rows] == [
        (model, of) for model in ("small-hubert", "small-wavlm") for of in ("0.5 s", "emodb")
    ]
    for row in rows:
        # There is no small WavLM in torchaudio's table: that is said, and the rest is measured.
        left_out = {"torchaudio"} if row["model"] == "small-wavlm" else set()
        others = {"loop", "best", "torchaudio"} - left_out
        assert row["speeds"].keys() == {*others, "hser", *int8}
        pairs = [(way, other) for way in ("hser", *int8) for other in ("hser", *others) if way != other]
        assert row["ratios"].keys() == {f"{way}/{other}" for way, other in pairs}
        speeds = {who: median(figures) for who, figures in row["speeds"].items()}
        for way, other in pairs:
            assert row["ratios"][f"{way}/{other}"] == pytest.approx(speeds[way] / speeds[other])
        assert row["missing"].keys() == left_out
        assert all(len(figures) == 1 and figures[0] > 0 for figures in row["speeds"].values())
        assert row["mfu"] > 0 and row["flop_per_audio_second"] > 0
        assert 0 <= row["padding"]["hser"] < 1 and row["padding"]["loop"] == 0
        assert row["content"].startswith(("noise", "recordings"))
    assert rows[0]["padding"]["best"] == 0  # all are equally long


def test_rows_of_other_models_and_lengths_stay(tmp_path: Path) -> None:
    def row(model: str, lengths: str, speed: float) -> dict[str, Any]:
        return {"model": model, "dtype": "bf16", "lengths": lengths, "speed": speed}

    out = tmp_path / "toy.json"
    encoder.write_rows("encoder", [row("a", "4 s", 1.0), row("b", "4 s", 2.0)], out)
    encoder.write_rows("encoder", [row("b", "4 s", 3.0), row("b", "emodb", 4.0)], out)
    assert [each["speed"] for each in json.loads(out.read_text())["rows"]] == [1.0, 3.0, 4.0]


@pytest.mark.parametrize("stage", ["command", "all"])
def test_all_measures_every_stage_and_says_what_cannot_run(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: dict[str, Sequence[str]] = {}

    def main(name: str, arguments: Sequence[str]) -> int:
        ran[name] = arguments
        return CANNOT_RUN

    monkeypatch.setattr(decode, "main", partial(main, "decode"))
    monkeypatch.setattr(write, "main", partial(main, "write"))
    out = tmp_path / "toy.json"
    done = bench(stage, "--model", "small-hubert", "--lengths", "1", "--baselines", "none", *SMALL, str(out))
    [row] = json.loads(out.read_text())["rows"]
    assert row["speeds"].keys() == {"hser", "command"} and row["ratios"].keys() == {"command/hser"}
    if stage == "command":
        assert done.exit_code == 0 and not ran
        return
    assert done.exit_code == 1 and "cannot run here: decode" in done.output
    assert ran == {
        "decode": ["--rounds", "1", "--out", str(tmp_path / "toy-decode.json")],
        "write": ["--repeats", "1", "--out", str(tmp_path / "toy-write.json")],
    }


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("encode",), "encoder"),
        (("encoder", "--model", "hubert-larg"), "hubert-large"),
        (("encoder", "--model", "whisper-tiny"), "hubert-large"),
        (("encoder", "--lengths", "emodbb"), "emodb"),
        (("encoder", "--lengths", "nan"), "emodb"),
        (("encoder", "--lengths", "-4"), "emodb"),
        (("encoder", "--baselines", "bestt"), "best"),
        (("encoder", "--model", "hubert-base", "--device", "cpu", "--int8"), "VNNI"),
        (("decode", "--profile"), "of the encoder"),
    ],
)
def test_what_is_unknown_is_refused_by_name(
    arguments: tuple[str, ...], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    with pytest.raises(SettingsError, match=named):
        bench(*arguments)


def test_help_answers_without_the_heavy_packages() -> None:
    code = "import sys, benchmarks.cli; print([m for m in ('torch', 'numpy', 'h5py') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert out.stdout.strip() == "[]"
    assert bench("--help").exit_code == 0


# --- Baselines ----------------------------------------------------------------------------------


def test_models_without_masks_get_batches_of_one_length(monkeypatch: pytest.MonkeyPatch) -> None:
    waveforms = [np.ones(n, dtype=np.float32) for n in (5, 3, 5, 3, 3, 4)]
    batches = [[len(w) for w in batch] for batch in baselines.equal_batches(waveforms, 2)]
    assert batches == [[3, 3], [3], [4], [5, 5]]
    assert baselines.padding_share(baselines.equal_batches(waveforms, 2)) == 0
    # Sorted: [3 3] [3 4] [5 5]: one sample of 24 is padding.
    assert baselines.padding_share(baselines.sorted_batches(waveforms, 2)) == pytest.approx(1 / 24)
    monkeypatch.setitem(baselines.TORCHAUDIO, "small-wavlm", "small")
    monkeypatch.setattr(baselines, "BATCH_SIZES", (2,))
    assert baselines.prepare_torchaudio(workload("small-hubert")).padding_share > 0
    prepared = baselines.prepare_torchaudio(workload("small-wavlm"))
    assert "of one length each" in prepared.how and prepared.padding_share == 0 and prepared.run() > 0


def test_every_name_of_torchaudio_is_there() -> None:
    import torchaudio

    for name, function in baselines.TORCHAUDIO.items():
        assert name in MODELS and callable(getattr(torchaudio.models, function))


def test_a_way_that_fails_is_left_out_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any, **kwargs: Any) -> Any:
        raise torch.OutOfMemoryError("too much\nby far")

    way, tried, missing = baselines.fastest({"a": lambda: 1.0, "b": lambda: 3.0, "c": fails}, calls=2)
    assert (way, tried, missing) == ("b", {"a": 1.0, "b": 3.0}, {"c": "OutOfMemoryError: too much"})
    assert baselines.fastest({"c": fails}, calls=1)[0] is None
    for compiled, works in ((lambda model, dynamic: model, True), (lambda model, dynamic: fails, False)):
        monkeypatch.setattr(torch, "compile", compiled)
        prepared = baselines.prepare_best(workload("small-hubert"))
        assert any("compiled" in way for way in prepared.tried) == works
        assert list(prepared.missing.values()) == ["OutOfMemoryError: too much"] * (not works)
        assert prepared.how in prepared.tried and prepared.run() > 0


def test_pooling_of_a_padded_batch_sees_own_frames_only() -> None:
    hidden = torch.arange(12.0).view(2, 3, 2)
    pooled = baselines.pool([hidden, 2 * hidden], torch.tensor([400 + 2 * 320, 400]))
    expected = torch.stack([hidden[0].mean(0), hidden[1, 0]])  # three frames, and one
    torch.testing.assert_close(pooled, torch.stack([expected, 2 * expected], 1))


# --- Lengths ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*stand_ins.CORPORA, "1", "30"])
def test_drawn_lengths_are_the_distribution_asked_for(name: str) -> None:
    distribution = stand_ins.lengths_of(name)
    drawn = stand_ins.draw(distribution, 1200.0)
    shortest, longest = distribution.quantiles[0], distribution.quantiles[-1]
    assert shortest <= min(drawn) and max(drawn) <= longest
    assert list(distribution.quantiles) == sorted(distribution.quantiles)
    # The tables' piecewise linear distribution and the midpoints of its steps have the same mean.
    assert sum(drawn) == pytest.approx(1200.0, rel=0.05)
    middle = distribution.quantiles[len(distribution.quantiles) // 2]
    assert np.median(drawn) == pytest.approx(middle, rel=0.02)
    assert drawn == stand_ins.draw(distribution, 1200.0)


# --- Where the time goes ------------------------------------------------------------------------


def event(cat: str, name: str, ts: float, dur: float, tid: int = 1, **args: Any) -> dict[str, Any]:
    return {"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur, "tid": tid, "args": args}


def stage(name: str, ts: float, dur: float) -> dict[str, Any]:
    return event("user_annotation", f"hser:{name}", ts, dur)


ON_CPU = [
    stage("CNN", 0, 40),
    stage("norms", 10, 5),  # within the CNN
    stage("norms", 40, 10),
    event("cpu_op", "aten::copy_", 45, 2),  # within the norm
    event("cpu_op", "aten::cat", 60, 8),
    event("cpu_op", "aten::copy_", 61, 2),  # within that
    event("cpu_op", "aten::add", 70, 9),
]
ON_CUDA = [  # a kernel counts where it was launched
    stage("attention", 0, 10),
    event("cuda_runtime", "cudaLaunchKernel", 5, 1, correlation=7),
    event("cuda_driver", "cuLaunchKernel", 20, 1, correlation=8),  # in no range
    event("cuda_runtime", "cudaMemcpyAsync", 25, 1, correlation=9),
    event("kernel", "k", 30, 30, tid=99, correlation=7),
    event("kernel", "k", 60, 5, tid=99, correlation=8),
    event("gpu_memcpy", "m", 70, 15, tid=99, correlation=9),
]


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        (ON_CPU, {"CNN": 40, "norms": 10, "copies": 8, "other": 42}),
        (ON_CUDA, {"attention": 30, "other": 5, "copies": 15, "idle": 50}),
    ],
)
def test_on_a_cpu_time_goes_to_the_outermost_range(
    events: list[dict[str, Any]], expected: dict[str, float]
) -> None:
    whole = event("user_annotation", breakdown.WHOLE, 0, 100)
    total, seconds = breakdown.by_stage([whole, *events], on_cuda=events is ON_CUDA)
    assert {name: s * 1e6 for name, s in seconds.items()} == pytest.approx(expected)
    assert total * 1e6 == pytest.approx(100)
    with pytest.raises(ValueError, match="no batch"):
        breakdown.by_stage(events, on_cuda=False)


def test_profile_finds_every_stage_of_an_encoder(tmp_path: Path) -> None:
    traces = ("--profile", "--traces", str(tmp_path / "traces"))
    names = ("--model", "small-wavlm", "--lengths", "1", "--baselines", "none")
    [row] = toy("encoder", *names, *traces, out=tmp_path / "toy.json")
    found = row["breakdown"]
    wanted = {"CNN", "projection", "positions", "attention's products", "attention", "feed-forward"}
    assert wanted | {"norms", "pooling"} <= found["seconds"].keys() <= set(breakdown.STAGES)
    assert sum(found["seconds"].values()) == pytest.approx(found["total"])
    assert found["operations"].keys() == wanted
    assert found["least_bytes"].keys() == {"norms", "pooling"}
    assert found["missing"] == []  # the table names functions that there are
    page, trace = sorted((tmp_path / "traces").iterdir(), key=lambda path: path.suffix, reverse=True)
    assert "feed-forward" in page.read_text() and json.loads(trace.read_text())["traceEvents"]


def test_operations_of_the_stages_are_those_of_the_encoder(tmp_path: Path) -> None:
    model = Model(write_config(tmp_path), "fp32", CPU)
    samples = [16_000, 31_999]
    stages = breakdown.operations_of(model.encoder, samples)
    useful = sum(model.encoder.operations(n)[0] for n in samples)
    # All but nothing: the two add up the same integers in other orders.
    assert sum(stages.values()) == pytest.approx(useful, rel=1e-12)
