"""The store: what goes in comes out, in manifest order, exactly, also without hser."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from time import sleep

import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_cases import (
    COLUMNS,
    DIM,
    LAYERS,
    SETTINGS,
    WITH_FRAMES,
    batches,
    commit_all,
    content,
    expected_values,
    manifest_of,
    opened,
    python,
    utterance_at,
    write_run,
)

from extractor.commands import store as cli_store
from extractor.errors import (
    SettingsError,
    StoreError,
    StoreUnwritable,
)
from extractor.store import Store, aside, hdf5, parts
from extractor.store import writer as run_writer
from extractor.store.pack import pack
from extractor.store.run_folder import ManifestRow
from extractor.store.verify import verify
from extractor.types import BatchResult, Failure, Row, Utterance

NO_FOLDER_FIXTURE_RESET = [HealthCheck.function_scoped_fixture]


@pytest.fixture
def small_merges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_writer, "MERGE_BATCHES", 3)


# Round trip


@pytest.mark.usefixtures("small_merges")
def test_what_was_committed_is_read_back_exactly_in_manifest_order(tmp_path: Path) -> None:
    results = batches(8, dim=WITH_FRAMES)
    write_run(tmp_path / "run", results, WITH_FRAMES)
    rows = sorted((row for result in results for row in result.rows), key=lambda row: row.position)
    frames = {r.position: f for result in results for r, f in zip(result.rows, result.frames, strict=True)}

    store = Store(tmp_path / "run")
    assert len(store) == len(rows)
    for name in ("ids", "paths"):
        assert getattr(store, name) == [getattr(row.utterance, name[:-1]) for row in rows]
    for name in ("positions", "checksums", "precisions", "num_samples", "num_frames"):
        singular = name if name.startswith("num") else name[:-1]
        assert list(getattr(store, name)) == [getattr(row, singular) for row in rows]
    assert store.durations.tolist() == [row.num_samples / 16_000 for row in rows]
    for name in ("starts", "ends"):
        found = [None if np.isnan(value) else value for value in getattr(store, name)]
        assert found == [getattr(row.utterance, name[:-1]) for row in rows]
    assert store.columns == COLUMNS
    for k, name in enumerate(COLUMNS):
        assert store.labels(name) == [row.utterance.labels[k] for row in rows]
    assert store.poolings == ["mean", "meanstd", "none"]
    assert store.layers == list(LAYERS)
    assert store.settings == SETTINGS
    for name in DIM:
        np.testing.assert_array_equal(store.load(pooling=name), expected_values(results, name))
    for k, row in enumerate(rows):
        np.testing.assert_array_equal(store.frames(k), frames[row.position])
        np.testing.assert_array_equal(store.frames(row.utterance.id, layer=12), frames[row.position][:, 2])
    with pytest.raises(SettingsError, match="no row has the id"):
        store.frames("nobody")
    failures = [failure for result in results for failure in result.failures]
    assert failures
    assert store.errors == failures
    lines = (tmp_path / "run" / "errors.jsonl").read_text().splitlines()
    assert [Failure(**json.loads(line)) for line in lines] == failures
    assert verify(tmp_path / "run") == []


@settings(max_examples=15, deadline=None, suppress_health_check=NO_FOLDER_FIXTURE_RESET)
@given(
    counts=st.lists(st.integers(0, 5), min_size=1, max_size=9),
    merge_batches=st.integers(1, 4),
    stops=st.lists(st.integers(0, 9), max_size=3),
    frames=st.booleans(),
    seed=st.integers(0, 99),
)
def test_the_store_does_not_depend_on_stops_and_merges(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    counts: list[int],
    merge_batches: int,
    stops: list[int],
    frames: bool,
    seed: int,
) -> None:
    folder = tmp_path_factory.mktemp("runs")
    dim = WITH_FRAMES if frames else DIM
    results = batches(len(counts), counts, dim, seed=seed)
    write_run(folder / "whole", results, dim)
    monkeypatch.setattr(run_writer, "MERGE_BATCHES", merge_batches)
    for stop in sorted(stops):
        with opened(folder / "stopped", dim) as writer:
            done = writer.done()
            commit_all(writer, results, [each for each in results[:stop] if each.batch not in done])
    write_run(folder / "stopped", results, dim)
    assert content(folder / "stopped") == content(folder / "whole")
    assert verify(folder / "stopped") == []


def test_layers_are_named_by_the_models_numbers(tmp_path: Path) -> None:
    results = batches(2)
    write_run(tmp_path / "run", results)
    store = Store(tmp_path / "run")
    X = expected_values(results, "mean")
    np.testing.assert_array_equal(store.load(6, "mean"), X[:, 1])
    np.testing.assert_array_equal(store.load(-1, "mean"), X[:, 2])
    np.testing.assert_array_equal(store.load([12, 0], "mean"), X[:, [2, 0]])
    assert store.load(0, "mean").dtype == np.float32
    refused: list[tuple[str, Callable[..., object], tuple[object, ...]]] = [
        (r"layer 1 is not stored; there are: \[0, 6, 12\]", store.load, (1, "mean")),
        ("layer -4", store.load, (-4, "mean")),
        ("unknown pooling 'men'; known: mean", store.load, (0, "men")),
        ("name a pooling; there are: mean, meanstd", store.load, (0,)),
        ("read them with frames", store.load, (0, "none")),
        ("unknown label 'emotions'; known: emotion", store.labels, ("emotions",)),
        ("--pooling none", store.frames, (0,)),
    ]
    for message, read, arguments in refused:
        with pytest.raises(SettingsError, match=message):
            read(*arguments)


def test_rows_can_be_read_at_random_and_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hdf5, "CHUNK_BYTES", 64)  # three rows a chunk
    results = batches(4, rows=9)
    write_run(tmp_path / "run", results)
    store = Store(tmp_path / "run")
    X = expected_values(results, "mean")
    rows = np.random.default_rng(0).integers(-len(X), len(X), 40)
    np.testing.assert_array_equal(store.load_rows(rows, 6, "mean"), X[rows, 1])
    seen = np.zeros(len(X), int)
    for indices, values in store.iter_rows(pooling="mean", block_rows=4):
        np.testing.assert_array_equal(values, X[indices])
        seen[indices] += 1
    assert (seen == 1).all()
    with pytest.raises(SettingsError, match="row 1000 asked for"):
        store.load_rows([1000], 6, "mean")


def test_reading_one_layer_needs_no_more_memory_than_that_layer(tmp_path: Path) -> None:
    num_rows, num_layers, width = 2000, 24, 256  # 49 MB, 2 MB a layer
    code = f"""
import resource, sys
import numpy as np
from extractor.store.writer import RunWriter
from extractor.store import Store
from extractor.types import BatchResult, Row, Utterance
from extractor.store.run_folder import ManifestRow
if sys.argv[1] == "write":
    with RunWriter.open("run", {{}}, {{}}, [], range({num_layers}), None) as writer:
        for b in range(2):
            at = range(b * {num_rows // 2}, (b + 1) * {num_rows // 2})
            rows = [Row(k, Utterance(str(k), "p"), 400, 1, "c", "fp32") for k in at]
            writer.commit(BatchResult(b, rows, {{"mean": np.ones((len(rows), {num_layers}, {width}), "f4")}}))
else:
    store = Store("run")
    store.load_rows([0], 0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert store.load(5).shape == ({num_rows}, {width})
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    for what in ("write", "read"):
        ran = python(code, what, cwd=tmp_path)
    # The layer, one chunk, and the part's share of the layer: 2 + 1 + 2 MB; all layers would be 49.
    assert int(ran.stdout) < 10_000  # KiB


# Without hser


@pytest.mark.usefixtures("small_merges")
def test_plain_h5py_reads_the_run_as_one_file_wherever_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = batches(8, dim=WITH_FRAMES)
    write_run(tmp_path / "run", results, WITH_FRAMES)
    assert len(list((tmp_path / "run" / "parts").iterdir())) == 3
    moved = tmp_path / "else where"
    (tmp_path / "run").rename(moved)
    monkeypatch.chdir("/")
    store = Store(moved / "embeddings.h5")
    with h5py.File(moved / "embeddings.h5") as h5:
        order = np.argsort(h5["position"][:])
        np.testing.assert_array_equal(h5["embeddings/mean"][:, 1][order], store.load(6, "mean"))
        np.testing.assert_array_equal(h5["position"][:][order], store.positions)
        names = [value.decode("utf-8", "surrogatepass") for value in h5["id"][:]]
        assert [names[k] for k in order] == store.ids
        labels = h5["labels/emotion"].asstr()[:]
        assert [labels[k] for k in order] == store.labels("emotion")
        offsets = h5["frame_offsets"][:]
        for row, k in enumerate(order):
            frames = h5["embeddings/none"][offsets[k] : offsets[k + 1]]
            np.testing.assert_array_equal(frames, store.frames(row))
        assert h5["layers"][:].tolist() == list(LAYERS)
        assert json.loads(h5.attrs["provenance"])["settings"] == SETTINGS
        assert "position" in h5.attrs["row_order"]


@pytest.mark.usefixtures("small_merges")
def test_a_missing_part_shows_as_nan(tmp_path: Path) -> None:
    write_run(tmp_path / "run", batches(4, failing=0))
    (tmp_path / "run" / "parts" / "part-00000000.h5").unlink()
    with h5py.File(tmp_path / "run" / "embeddings.h5") as h5:
        X = h5["embeddings/mean"][:, 0]
        assert np.isnan(X[:9]).all()
        assert not np.isnan(X[9:]).any()
        assert (h5["position"][:9] == -1).all()


def test_a_layer_of_all_recordings_is_one_run_of_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hdf5, "CHUNK_BYTES", 100)
    monkeypatch.setattr(parts, "MERGE_BUFFER_BYTES", 1000)
    write_run(tmp_path / "run", batches(5, rows=21, dim=WITH_FRAMES), WITH_FRAMES)
    (part,) = (tmp_path / "run" / "parts").iterdir()
    with h5py.File(part) as h5:
        for dataset in h5["embeddings"].values():
            infos = [dataset.id.get_chunk_info(k) for k in range(dataset.id.get_num_chunks())]
            infos.sort(key=lambda info: (info.chunk_offset[1], info.chunk_offset[0]))  # by layer, then row
            assert len(infos) >= 5 * len(LAYERS)
            ends = [info.byte_offset + info.size for info in infos]
            # HDF5 puts its chunk index behind the first chunk, once a dataset.
            assert [info.byte_offset for info in infos[2:]] == ends[1:-1]
            assert 0 < infos[1].byte_offset - ends[0] < 20 * len(infos) + 100


def test_the_number_of_parts_stays_below_the_limit_of_open_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_writer, "MERGE_BATCHES", 1)
    monkeypatch.setattr(run_writer, "PARTS_A_SIZE", 4)
    write_run(tmp_path / "run", batches(60, rows=1))
    assert len(list((tmp_path / "run" / "parts").glob("part-*"))) <= 4 * 4  # 4 of 1, 4 of 2, 4 of 4, 4 of 8


# What a reader meets


def test_a_run_without_rows_is_a_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    failed = batches(2, failing=1.0)
    write_run(run, failed)
    store = Store(run)
    assert len(store) == 0
    assert store.ids == []
    assert store.load(6, "mean").shape == (0, 5)
    assert store.load(pooling="meanstd").shape == (0, 3, 10)
    assert len(store.errors) == 6
    assert verify(run) == []
    with h5py.File(run / "embeddings.h5") as h5:
        assert h5["embeddings/mean"].shape == (0, 3, 5)
    pack(run, tmp_path / "packed.h5")
    assert content(tmp_path / "packed.h5") == content(run)


def test_a_store_can_be_read_while_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_writer, "MERGE_BATCHES", 4)
    run = tmp_path / "run"
    results = batches(80, rows=2, failing=0)
    expected = expected_values(results, "mean")
    with opened(run) as writer:
        writer.write_manifest(manifest_of(results))

        def write() -> None:
            for result in results:
                writer.commit(result)

        thread = threading.Thread(target=write)
        thread.start()
        sizes = set()
        while thread.is_alive():
            store = Store(run)
            sizes.add(len(store))
            sleep(0.005)  # so that batch files which the store knows are merged and vanish
            np.testing.assert_array_equal(store.load(pooling="mean"), expected[store.positions])
            assert store.ids == [utterance_at(k).id for k in store.positions]
        thread.join()
    assert len(sizes) > 2
    np.testing.assert_array_equal(Store(run).load(pooling="mean"), expected)


def test_an_open_store_survives_the_merge_of_its_files(tmp_path: Path) -> None:
    run = tmp_path / "run"
    results = batches(6, dim=WITH_FRAMES)
    writer = opened(run, WITH_FRAMES)
    commit_all(writer, results, results[:5])
    store = Store(run)
    expected = expected_values(results[:5], "mean")
    writer.commit(results[5])
    writer.close()
    assert not list((run / "parts").glob("batch-*"))
    np.testing.assert_array_equal(store.load(pooling="mean"), expected)
    assert len(store.ids) == len(store) == len(expected)
    frames = [frames for result in results[:5] for frames in result.frames]
    assert sum(len(store.frames(k)) for k in range(len(store))) == sum(map(len, frames))


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_run(run, batches(1))
    (tmp_path / "text.h5").write_text("not HDF5")
    with h5py.File(tmp_path / "other.h5", "w") as h5:
        h5["x"] = 1
    shutil.copy(run / "embeddings.h5", tmp_path / "alone.h5")
    description = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(description | {"format": 2}))
    for name, message in {
        "nowhere": "no such run",
        "": r"not a run folder \(no run.json\)",
        "text.h5": r"text.h5: not a run or packed file",
        "other.h5": "not a run",
        "alone.h5": "not a run",
        "run": "format 2, this hser reads 1",
    }.items():
        with pytest.raises(StoreError, match=message):
            Store(tmp_path / name)
    (run / "run.json").unlink()
    with pytest.raises(StoreError, match=r"has parts but no run.json"):
        opened(run)


# The commands


def test_pack_is_one_file_with_the_same_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hdf5, "CHUNK_BYTES", 64)
    run, packed = tmp_path / "run", tmp_path / "packed.h5"
    write_run(run, batches(4, dim=WITH_FRAMES), WITH_FRAMES)
    pack(run, packed)
    assert content(packed) == content(run)
    assert verify(packed) == []
    assert Store(packed).settings == SETTINGS
    with h5py.File(packed) as h5:
        np.testing.assert_array_equal(h5["embeddings/mean"][:, 1], Store(run).load(6, "mean"))
        assert (np.diff(h5["position"][:]) > 0).all()
    with pytest.raises(StoreError, match="--force"):
        pack(run, packed)
    pack(run, packed, force=True)
    pack(packed, tmp_path / "again.h5")
    assert content(tmp_path / "again.h5") == content(run)
    with pytest.raises(StoreError, match="there is no folder"):
        pack(run, tmp_path / "none" / "packed.h5")


def test_the_commands_say_what_there_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = str(tmp_path / "run")
    write_run(tmp_path / "run", batches(3))
    packed = str(tmp_path / "packed.h5")

    def says(*words: str) -> str:
        return CliRunner().invoke(cli_store.hser_store, words).output

    for text in ("rows: 7", "failed: 2", "2 x: decode: cut short (#)", "poolings: mean (5), meanstd (10)",
                 "model: tiny", "label emotion: emotion"):  # fmt: skip
        assert text in says("info", run)
    assert says("verify", run) == f"{run}: no problems\n"
    assert "7 rows" in says("pack", run, packed)
    assert "rows: 7" in says("info", packed)
    (tmp_path / "run" / "parts" / "part-00000000.h5").write_bytes(b"")
    assert "part-00000000.h5: damaged" in says("verify", run)
    assert CliRunner().invoke(cli_store.hser_store, ["verify", run]).exit_code == 1
    with monkeypatch.context() as patch:  # on a terminal
        patch.setattr(sys.stdout, "isatty", lambda: True)
        cli_store.hser_store(["info", packed], standalone_mode=False)
    assert "poolings" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["hser-store", "info", str(tmp_path / "nowhere")])
    with pytest.raises(SystemExit) as ended:
        cli_store.main()
    assert ended.value.code == 2


def test_help_answers_at_once() -> None:
    code = "import sys, extractor.commands.store; print({'h5py', 'numpy', 'rich', 'torch'} & {*sys.modules})"
    assert python(code).stdout == "set()\n"


def test_a_label_may_be_called_anything(tmp_path: Path) -> None:
    columns = ("a/b", "..", "%2F", "naïve~")
    utterance = Utterance("id", "path", labels=("1", "2", "3", "4"))
    row = Row(0, utterance, 400, 1, "c", "fp32")
    with opened(tmp_path / "run", {"mean": 2}, columns=columns) as writer:
        writer.write_manifest([ManifestRow(0, utterance, 400, 0)])
        writer.commit(BatchResult(0, [row], {"mean": np.ones((1, 3, 2), np.float32)}))
    store = Store(tmp_path / "run")
    assert [store.labels(name) for name in columns] == [["1"], ["2"], ["3"], ["4"]]
    assert verify(tmp_path / "run") == []


def test_unwritable_errnos_have_a_message_each() -> None:
    for number in aside.UNWRITABLE:
        with pytest.raises(StoreUnwritable, match="target"), aside.writable(Path("target")):
            raise OSError(number, os.strerror(number))
    with pytest.raises(OSError, match="Input/output"), aside.writable(Path("target")):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
