"""Between the stages of a run: what is committed behind, moved to the device, and tried again smaller."""

from __future__ import annotations

import itertools
import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
import torch
from conftest import DEVICE, FP32_RELATIVE, MakeCheckpoint
from run_cases import cosines, noise, write_noises
from store_cases import one_row

from extractor import SettingsDiffer, SettingsError, Store, StoreUnwritable
from extractor.encoders import Encoder, Model
from extractor.progress import Summary, bottleneck, summary_rows
from extractor.run import pipeline
from extractor.run.batch import ALIGNMENT, BatchEncoder, DecodedBatch, arrived, pack, stage
from extractor.run.engine import run
from extractor.run.memory import FREE_SHARE, Memory, fitting_seconds
from extractor.run.options import Options
from extractor.run.pipeline import Committer, StreamClock, num_bytes
from extractor.store.writer import RunWriter
from extractor.types import SAMPLE_RATE, BatchResult, Decoded, Failure, Utterance

CPU = torch.device("cpu")
PATIENCE = 30.0  # seconds until a test that waits for another thread gives up


class SlowDisk:
    """A writer that notes what it is given and goes on only while it may."""

    def __init__(self, fails_at: int | None = None, error: BaseException | None = None) -> None:
        self.groups: list[list[int]] = []
        self.may_write = threading.Event()
        self.begun = threading.Event()
        self.fails_at, self.error = fails_at, error

    @contextmanager
    def together(self) -> Iterator[None]:
        self.groups.append([])
        yield
        self.begun.set()
        assert self.may_write.wait(PATIENCE)

    def commit(self, result: BatchResult) -> list[Failure]:
        if result.batch == self.fails_at and self.error is not None:
            raise self.error
        self.groups[-1].append(result.batch)
        return []

    @property
    def committed(self) -> list[int]:
        return [batch for group in self.groups for batch in group]


def committer(disk: SlowDisk) -> Committer:
    return Committer(disk, lambda result, refused: None)  # type: ignore[arg-type]


def test_results_are_committed_in_order_and_those_that_wait_together() -> None:
    disk = SlowDisk()
    told: list[int] = []
    with Committer(disk, lambda result, refused: told.append(result.batch)) as commits:  # type: ignore[arg-type]
        commits.put(one_row(0, 0))
        assert disk.begun.wait(PATIENCE)
        for batch in range(1, 10):
            commits.put(one_row(batch, batch))
        assert told == []  # nothing is permanent yet
        disk.may_write.set()
    assert told == disk.committed == list(range(10))
    assert disk.groups[:2] == [[0], list(range(1, 10))]


@pytest.mark.parametrize("limit", [("MAX_BYTES", 3 * num_bytes(one_row(0, 0))), ("MAX_BATCHES", 3)])
def test_what_waits_is_bounded_in_bytes_and_in_batches(
    limit: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, *limit)
    disk = SlowDisk()
    handed: list[int] = []

    def hand_over(commits: Committer) -> None:
        for batch in range(10):
            commits.put(one_row(batch, batch))
            handed.append(batch)

    with committer(disk) as commits:
        producer = threading.Thread(target=hand_over, args=(commits,))
        producer.start()
        assert disk.begun.wait(PATIENCE)
        producer.join(0.3)
        assert len(handed) <= 3
        disk.may_write.set()
        producer.join(PATIENCE)
        assert not producer.is_alive()
        assert commits.wait_seconds > 0.1  # it stood still for the 0.3 s above
    assert disk.committed == list(range(10))


def test_a_result_larger_than_all_room_goes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "MAX_BYTES", 1)
    disk = SlowDisk()
    disk.may_write.set()
    with committer(disk) as commits:
        for batch in range(3):
            commits.put(one_row(batch, batch))
    assert disk.groups[:3] == [[0], [1], [2]]


@pytest.mark.parametrize("error", [StoreUnwritable("the disk is full"), KeyboardInterrupt("twice")])
def test_an_error_of_the_disk_reaches_the_caller_and_ends_it(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "MAX_BATCHES", 1)
    disk = SlowDisk(fails_at=2, error=error)
    disk.may_write.set()

    def put_all() -> None:
        with committer(disk) as commits:
            for batch in range(10):
                commits.put(one_row(batch, batch))

    with pytest.raises(type(error), match=str(error)):
        put_all()
    assert disk.committed == [0, 1]


@pytest.mark.parametrize(("error", "kept"), [(ValueError, [0, 1, 2]), (KeyboardInterrupt, [0])])
def test_a_callers_error_loses_nothing_and_ctrl_c_does_not_wait(
    error: type[BaseException], kept: list[int]
) -> None:
    disk = SlowDisk()

    def put_some() -> None:
        with committer(disk) as commits:
            commits.put(one_row(0, 0))
            assert disk.begun.wait(PATIENCE)
            commits.put(one_row(1, 1))
            commits.put(one_row(2, 2))
            threading.Timer(0.2, disk.may_write.set).start()
            raise error

    with pytest.raises(error):
        put_some()
    assert disk.committed == kept


def job_of(waveforms: Sequence[np.ndarray | None], rates: Sequence[int] | None = None) -> DecodedBatch:
    """None is a recording that could not be decoded."""
    rates = rates or [SAMPLE_RATE] * len(waveforms)
    utterances = [Utterance(str(i), f"{i}.wav") for i in range(len(waveforms))]
    decoded = [
        Failure(str(i), f"{i}.wav", "decode", "empty") if w is None else Decoded(w, "", rate)
        for i, (w, rate) in enumerate(zip(waveforms, rates, strict=True))
    ]
    return DecodedBatch.of(0, range(len(waveforms)), utterances, decoded)


def test_packed_waveforms_are_what_they_were_and_begin_aligned() -> None:
    waveforms = noise(1, 63, 64, 65, 1_000, 0, 7)
    host, starts = pack(waveforms)
    assert all(start % ALIGNMENT == 0 for start in starts)
    outside = np.ones(len(host), bool)
    for start, waveform in zip(starts, waveforms, strict=True):
        assert np.array_equal(host.numpy()[start : start + len(waveform)], waveform)
        outside[start : start + len(waveform)] = False
    assert not host.numpy()[outside].any()


def test_audio_arrives_beside_the_recordings_that_it_is_of() -> None:
    a, b = noise(1_000, 500)
    batch = job_of([a, None, b])
    assert [failure.id for failure in batch.failures] == ["1"]
    assert [row.position for row in batch.rows] == [0, 2]
    for found, expected in zip(arrived(stage(batch, DEVICE)), (a, b), strict=True):
        assert found.device.type == DEVICE.type
        assert np.array_equal(found.cpu().numpy(), expected)


@pytest.mark.gpu
def test_audio_that_is_copied_on_a_stream_of_its_own_is_there_when_it_is_used() -> None:
    stream, waveforms = torch.cuda.Stream(DEVICE), noise(*[200_000] * 20)
    for _ in range(20):
        audio = arrived(stage(job_of(waveforms), DEVICE, stream))
        for found, expected in zip(audio, waveforms, strict=True):
            assert np.array_equal((found + 0).cpu().numpy(), expected)


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_resampled_on_the_device_it_is_as_long_as_by_soxr_and_the_same_tone(rate: int) -> None:
    """A tone below both Nyquist frequencies, away from the ends, is the tone that was sampled."""
    seconds = [0.5, 0.123, 1.0]
    waveforms = [
        np.sin(2 * np.pi * 1_000 * np.arange(int(s * rate)) / rate).astype(np.float32) for s in seconds
    ]
    plain = np.sin(2 * np.pi * 1_000 * np.arange(3_000) / SAMPLE_RATE).astype(np.float32)
    audio = arrived(stage(job_of([*waveforms, plain], [*[rate] * 3, SAMPLE_RATE]), DEVICE))
    for found, waveform in zip(audio, waveforms, strict=False):
        assert len(found) == len(soxr.resample(waveform, rate, SAMPLE_RATE))
        true = np.sin(2 * np.pi * 1_000 * np.arange(len(found)) / SAMPLE_RATE)
        inside = slice(200, len(found) - 200)
        # The filter keeps levels within 0.0001 dB, 1.2e-5; twice that for the rounding of its float32 sums.
        assert np.abs(found.cpu().numpy()[inside] - true[inside]).max() < 2.5e-5
    assert np.array_equal(audio[3].cpu().numpy(), plain)


def test_where_it_is_resampled_is_a_setting_of_the_run_and_changes_rows_little(
    checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for i, (waveform, rate) in enumerate(
        zip(noise(30_000, 20_000, 9_000), (48_000, 22_050, 16_000), strict=True)
    ):
        name = data / f"n{i}.{'flac' if i else 'wav'}"
        soundfile.write(name, np.convolve(waveform, np.ones(8) / 8, "same"), rate)
    model = str(checkpoint())
    for where in ("cpu", "gpu"):
        summary = run(data, Options(model=model, dtype="fp32", resample=where), tmp_path / where)
        assert not summary.failures
    cpu, gpu = Store(tmp_path / "cpu"), Store(tmp_path / "gpu")
    assert cpu.num_samples.tolist() == gpu.num_samples.tolist()
    assert cpu.checksums[2] == gpu.checksums[2]  # the audio at 16 kHz is what was decoded
    assert cpu.checksums[:2] != gpu.checksums[:2]
    assert np.array_equal(cpu.load()[2], gpu.load()[2])
    assert (
        0.999 < cosines(cpu.load(), gpu.load())[:2].min() < 1
    )  # two filters that differ above 0.9 of the Nyquist frequency
    with pytest.raises(SettingsDiffer, match="resample"):
        run(data, Options(model=model, dtype="fp32", resample="gpu"), tmp_path / "cpu")
    with pytest.raises(SettingsError, match="--resample"):
        run(data, Options(model=model, resample="tpu"), tmp_path / "x")


class SmallMemory:
    """An encoder that runs out of memory beyond some samples, with a layer pooled already."""

    def __init__(self, encoder: Encoder, most_samples: int) -> None:
        self.encoder, self.most_samples = encoder, most_samples
        self.tried: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.encoder, name)

    def forward(self, waveforms: Sequence[torch.Tensor], sink: Any, *rest: Any) -> None:
        self.tried.append(sum(map(len, waveforms)))
        fits, of_them = self.tried[-1] <= self.most_samples, self

        class Sink:
            def add(self, layer: int, hidden: torch.Tensor) -> None:
                sink.add(layer, hidden)
                if layer == 1 and not fits:
                    raise torch.OutOfMemoryError(f"{of_them.tried[-1]} samples")

        self.encoder.forward(waveforms, Sink(), *rest)


def encoder_with(model: Model, most_seconds: float | None, window: float, said: list[str]) -> BatchEncoder:
    if most_seconds is not None:
        model.encoder = SmallMemory(model.encoder, round(most_seconds * SAMPLE_RATE))  # type: ignore[assignment]
    poolings = ("mean", "std", "min", "max", "first", "last", "none")
    return BatchEncoder(
        model, (0, 1, 3), poolings, round(window * SAMPLE_RATE), 30 * SAMPLE_RATE, Memory(said.append)
    )


def rows_of(result: BatchResult) -> Iterator[tuple[str, np.ndarray]]:
    yield from result.pooled.items()
    for i, frames in enumerate(result.frames):
        yield f"frames of {i}", frames


@pytest.mark.parametrize("window", [60.0, 5.0])  # whole, and merged from windows
def test_out_of_memory_halves_the_pass_and_changes_no_row(window: float, checkpoint: MakeCheckpoint) -> None:
    job = job_of(noise(*(16_000 * n for n in (1, 3, 2, 7, 1, 2))))
    folder, said = str(checkpoint()), list[str]()
    enough = encoder_with(Model(folder, "fp32", CPU), None, window, said)
    expected = enough(job)
    assert not said
    encode = encoder_with(Model(folder, "fp32", CPU), 8.0, window, said)
    found = encode(job)
    for (name, a), (_, b) in zip(rows_of(found), rows_of(expected), strict=True):
        # As between any two batches that a recording may be in.
        assert np.linalg.norm(a - b) < FP32_RELATIVE * np.linalg.norm(b), name
    assert [row.num_frames for row in found.rows] == [row.num_frames for row in expected.rows]
    tried = encode.model.encoder.tried  # type: ignore[attr-defined]
    assert tried[0] > 8 * SAMPLE_RATE
    assert len(said) == 1 and f"out of memory: {tried[0] / SAMPLE_RATE:.0f} s" in said[0]
    assert encode.memory.limit is not None and encode.memory.limit <= 8.0
    before = len(tried)
    encode(job)
    assert max(tried[before:]) <= 8 * SAMPLE_RATE  # it is not tried again
    assert len(said) == 1


def test_out_of_memory_with_one_recording_ends_the_run_and_says_what_to_do(
    checkpoint: MakeCheckpoint,
) -> None:
    encode = encoder_with(Model(str(checkpoint()), "fp32", CPU), 0.5, 60.0, [])
    with pytest.raises(
        SettingsError, match=r"--window: 1\.0 s of audio alone do not fit .* shorter --window"
    ):
        encode(job_of(noise(16_000, 16_000)))


def test_the_summary_says_that_memory_ran_out(
    checkpoint: MakeCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_noises(tmp_path, [16_000] * 6)
    build = Model.build
    monkeypatch.setattr(Model, "build", lambda self, dtype: SmallMemory(build(self, dtype), 2 * SAMPLE_RATE))
    summary = run(tmp_path, Options(model=str(checkpoint()), dtype="fp32"), tmp_path / "run")
    assert (summary.embedded, summary.smallest_pass) == (6, 1.5)
    assert "at most 1.5 s" in dict(summary_rows(summary))["memory"]


def test_a_pass_grows_with_free_memory_and_shrinks_with_the_model() -> None:
    large = {"dim": 1_024, "num_layers": 25, "dtype": "bf16", "frames_a_second": 50.0}
    h200, laptop = fitting_seconds(130 << 30, **large), fitting_seconds(6 << 30, **large)
    assert h200 > 10_000 > laptop > 240  # 28 widths a frame at 50 frames of 2 kB: 2.9 MB, and 0.4 MB pooled
    assert fitting_seconds(130 << 30, **(large | {"dtype": "fp32"})) < h200
    assert fitting_seconds(130 << 30, **(large | {"num_layers": 1})) > h200
    assert fitting_seconds(130 << 30, **(large | {"dim": 2_048})) == pytest.approx(h200 / 2)
    assert fitting_seconds(100 << 20, **large) == 0.0
    a_second = 1_024 * (28 * 50 * 2 + 4 * 25 * 4)
    assert (h200 - laptop) * a_second == pytest.approx(FREE_SHARE * (124 << 30))


@pytest.mark.gpu
def test_out_of_memory_on_the_gpu_is_met_by_halves(checkpoint: MakeCheckpoint) -> None:
    """With all but a little of its memory taken away."""
    torch.cuda.empty_cache()
    model, said = Model(str(checkpoint()), "fp32", DEVICE), list[str]()
    encode = BatchEncoder(model, (0, 3), ("mean",), 60 * SAMPLE_RATE, 10**9, Memory(said.append))
    job = job_of(noise(*[160_000] * 200))
    expected = encode(job)
    torch.cuda.reset_peak_memory_stats(DEVICE)
    encode(job)
    peak, total = torch.cuda.max_memory_allocated(DEVICE), torch.cuda.mem_get_info(DEVICE)[1]
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.6 * peak / total, DEVICE)
    try:
        found = encode(job)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, DEVICE)
    assert len(said) == 1
    a, b = found.pooled["mean"], expected.pooled["mean"]
    assert np.linalg.norm(a - b) < FP32_RELATIVE * np.linalg.norm(b)


def test_busy_is_the_share_of_the_streams_that_worked(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    busy = StreamClock(2)

    def work(seconds: float) -> None:
        now[0] += seconds

    busy.during(work, 4.0)  # one of two
    assert busy.seconds == 2.0 and busy.first == 4.0
    busy.during(lambda seconds: busy.during(work, seconds), 3.0)  # two of two
    assert busy.seconds == 5.0
    busy.during(lambda _: busy.during(lambda _: busy.during(work, 1.0), None), None)  # three count as two
    assert busy.seconds == 6.0
    now[0] += 10.0
    assert busy.seconds == 6.0 and busy.first == 4.0


@pytest.mark.parametrize(
    ("decode", "commit", "encode", "says"),
    [
        (60.0, 5.0, 35.0, ["decoding", "60%", "--workers"]),
        (5.0, 60.0, 40.0, ["writing", "60%", "--storage-dtype fp16", "faster disk", "--layers"]),
        (2.0, 1.0, 97.0, ["encoding", "97%", "as it should be"]),
        (2.0, 1.0, 50.0, ["encoding", "50%", "--batch-seconds"]),
        (10.5, 1.0, 86.0, ["encoding", "86%", "--workers"]),
        (20.0, 30.0, 50.0, ["encoding", "50%", "waiting for the disk 30%", "faster disk"]),
    ],
)
def test_the_bottleneck_is_named_with_its_share_and_what_to_change(
    decode: float, commit: float, encode: float, says: list[str]
) -> None:
    summary = Summary("runs/x", "hubert-large", embedded=1, seconds=100.0)
    summary.decode_wait, summary.commit_wait, summary.encode_seconds = decode, commit, encode
    line = bottleneck(summary)
    assert line.startswith(says[0]) and all(word in line for word in says)
    assert "\n" not in line
    assert dict(summary_rows(summary))["bottleneck"] == line


def test_the_bottleneck_is_what_its_own_table_says_takes_most() -> None:
    shares = [0.0, 4.0, 10.4, 33.0, 51.0, 86.0, 99.0]
    stage_of = {
        "encoding": "encoding",
        "waiting for decode": "decoding",
        "writing": "writing",
        "waiting for the disk": "writing",
    }
    for encode, decode, write, wait in itertools.product(shares, repeat=4):
        summary = Summary("runs/x", "hubert-large", embedded=1, seconds=100.0)
        summary.encode_seconds, summary.decode_wait = encode, decode
        summary.write_seconds, summary.commit_wait = write, wait
        rows = dict(summary_rows(summary))
        shown = {row: int(re.search(r"(\d+)% of the time", rows[row])[1]) for row in stage_of}  # type: ignore[index]
        named = rows["bottleneck"].split(":")[0]
        most = max(shown[row] for row, stage in stage_of.items() if stage == named)
        assert most == max(shown.values()), (shown, rows["bottleneck"])
        assert f"{most}%" in rows["bottleneck"]


def test_a_slow_disk_is_found_out_and_does_not_hold_up_the_encoder_alone(
    checkpoint: MakeCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_noises(tmp_path, [8_000] * 12)
    write = RunWriter._write

    def slowly(self: RunWriter, group: Sequence[BatchResult]) -> None:
        time.sleep(0.5)
        write(self, group)

    monkeypatch.setattr(RunWriter, "_write", slowly)
    monkeypatch.setattr(pipeline, "MAX_BATCHES", 1)
    options = Options(model=str(checkpoint()), dtype="fp32", batch_seconds=1.0)
    summary = run(tmp_path, options, tmp_path / "run")
    assert summary.embedded == 12
    assert summary.write_seconds > 6 * 0.5
    assert bottleneck(summary).startswith("writing")
