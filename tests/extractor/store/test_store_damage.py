"""The store under damage: cut files, flipped bytes, full disks, other writers."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
import soundfile
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_cases import (
    WITH_FRAMES,
    batches,
    commit_all,
    content,
    expected_values,
    manifest_of,
    opened,
    python,
    write_run,
)

from extractor.errors import StoreError, StoreLocked, StoreUnwritable
from extractor.run.remarks import remarks
from extractor.store import Store
from extractor.store import writer as run_writer
from extractor.store.run_folder import read_lines
from extractor.store.verify import verify


def test_every_rename_and_deletion_is_followed_by_a_sync_of_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a power cut may undo it: `commit` would have promised what is not so."""
    unsynced: set[Path] = set()
    seen: list[Path] = []
    replace_file, unlink, fsync = os.replace, os.unlink, os.fsync

    def replaced(source: Any, target: Any, **options: Any) -> None:
        replace_file(source, target, **options)
        unsynced.add(Path(target).parent)
        seen.append(Path(target))

    def unlinked(path: Any, **options: Any) -> None:
        unlink(path, **options)
        unsynced.add(Path(path).parent)

    def synced(fd: int) -> None:
        fsync(fd)
        unsynced.discard(Path(f"/proc/self/fd/{fd}").readlink())

    monkeypatch.setattr(os, "replace", replaced)
    monkeypatch.setattr(os, "unlink", unlinked)
    monkeypatch.setattr(os, "fsync", synced)
    run = tmp_path.resolve() / "run"
    results = batches(4)
    with opened(run) as writer:
        writer.write_manifest(manifest_of(results))
        assert unsynced == set()
        for result in results:  # one by one: two are merged at the end
            writer.commit(result)
            assert unsynced == set()
    # Both ways to a part: several batches merged, and one alone that only takes another name.
    write_run(tmp_path.resolve() / "alone", batches(1))
    assert unsynced <= {run, run.parent / "alone"}  # the lock, which need not survive, goes last
    names = [path.name for path in seen]
    assert names.count("part-00000000.h5") == 2 and "embeddings.h5" in names and "run.json" in names


@pytest.mark.parametrize("length", [0, 1, 8, 100, 2000, 4096, -4096, -1])
def test_a_part_cut_short_is_found_and_its_batches_are_done_again(tmp_path: Path, length: int) -> None:
    results = batches(6, dim=WITH_FRAMES)
    write_run(tmp_path / "whole", results, WITH_FRAMES)
    run = tmp_path / "run"
    with opened(run, WITH_FRAMES) as writer:
        commit_all(writer, results, results[:3])
    with opened(run, WITH_FRAMES) as writer:
        for result in results[3:]:
            writer.commit(result)
        part, batch = run / "parts" / "part-00000000.h5", run / "parts" / "batch-00000004.h5"
        writer._pending.clear()  # as if killed before the merge
    for path in (part, batch):
        os.truncate(path, length if length >= 0 else path.stat().st_size + length)
    with pytest.raises(StoreError, match=r"damaged .*delete this file and run the same command again"):
        Store(run)
    assert sum("damaged" in problem for problem in verify(run)) == 2
    with opened(run, WITH_FRAMES) as writer:
        assert writer.done() == {3, 5}
        assert len(writer.repaired) == 2
        assert "part-00000000.h5" in writer.repaired[0]
        with h5py.File(run / "embeddings.h5") as h5:  # no longer names the part that is gone
            assert len(h5["position"]) == 0
    write_run(run, results, WITH_FRAMES)
    assert content(run) == content(tmp_path / "whole")
    assert verify(run) == []


def test_a_part_that_cannot_be_opened_for_another_reason_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    write_run(run, batches(2))

    def too_many(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(h5py, "File", too_many)
        with pytest.raises(OSError, match="Too many open files"):
            opened(run)
    assert len(list((run / "parts").iterdir())) == 1
    write_run(run, batches(2))
    assert verify(run) == []


def test_a_flipped_byte_is_found(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_run(run, batches(3, dim=WITH_FRAMES), WITH_FRAMES)
    (part,) = (run / "parts").iterdir()
    whole = part.read_bytes()
    with h5py.File(part) as h5:
        places = {name: h5[f"embeddings/{name}"].id.get_chunk_info(0).byte_offset for name in WITH_FRAMES}
        names = ("position", "id", "path", "num_samples", "checksum", "frame_offsets", "labels/emotion_raw")
        columns = {name: h5[name].id.get_offset() for name in names}
    for name, offset in {f"embeddings/{name}": at for name, at in places.items()}.items() | columns.items():
        flipped = bytearray(whole)
        flipped[offset + 2] ^= 0x10
        part.write_bytes(flipped)
        problems = verify(run)
        assert any(name in problem for problem in problems), (name, problems)
        if name == "embeddings/mean":
            with pytest.raises(StoreError, match="damaged"):
                Store(run).load(0, "mean")
    part.write_bytes(whole)
    assert verify(run) == []


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_flipped_byte_of_a_part_goes_unseen_and_comes_out_as_data(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Bytes between the datasets carry no data; any other flip is named by verify or refused."""
    run = tmp_path_factory.mktemp("flip") / "run"
    write_run(run, batches(2))
    before = content(run)
    (part,) = (run / "parts").iterdir()
    broken = bytearray(part.read_bytes())
    broken[data.draw(st.integers(0, len(broken) - 1))] ^= data.draw(st.integers(1, 255))
    part.write_bytes(broken)
    assert verify(run) or content(run) == before


# Full, read-only, locked


def fails_with(number: int) -> Callable[..., None]:
    """An os function that fails with this errno."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
@pytest.mark.parametrize("call", ["pwrite", "fsync", "ftruncate"])
def test_a_full_disk_ends_the_run_with_a_remedy_and_a_store_that_opens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, call: str
) -> None:
    run = tmp_path / "run"
    results = batches(5)
    write_run(tmp_path / "whole", results)
    with pytest.raises(StoreUnwritable) as raised, opened(run) as writer:
        commit_all(writer, results, results[:3])
        monkeypatch.setattr(os, call, fails_with(number))
        writer.commit(results[3])
    assert "batch-00000003.h5: no space left" in str(raised.value)
    assert "free space and run the same command again: what is committed is kept" in str(raised.value)
    assert not list(run.rglob("*.tmp"))
    monkeypatch.undo()
    store = Store(run)
    assert len(store) == sum(len(result.rows) for result in results[:3])
    np.testing.assert_array_equal(store.load(pooling="mean"), expected_values(results[:3], "mean"))
    write_run(run, results)
    assert content(run) == content(tmp_path / "whole")
    assert verify(run) == []


@pytest.mark.parametrize("call", ["pwrite", "fsync", "replace"])
def test_a_merge_without_space_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    run = tmp_path / "run"
    results = batches(6)
    with opened(run) as writer:
        commit_all(writer, results)
        real = getattr(os, call)
        path_of: dict[int, str] = {}

        def fail_for_parts(first: Any, *rest: Any, **options: Any) -> Any:
            if isinstance(first, int) and first not in path_of:
                path_of[first] = str(Path(f"/proc/self/fd/{first}").readlink())
            if "part-" in (path_of.pop(first) if isinstance(first, int) else os.fspath(first)):
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(first, *rest, **options)

        monkeypatch.setattr(os, call, fail_for_parts)
        monkeypatch.setattr(run_writer, "MOST_PIECES", 1)
        with pytest.raises(StoreUnwritable, match=r"6 batch files were left unmerged.*free space"):
            writer.close()
        monkeypatch.undo()
    assert not list(run.rglob("*.tmp"))
    np.testing.assert_array_equal(Store(run).load(pooling="mean"), expected_values(results, "mean"))
    assert "embeddings.h5: shows 0 rows" in verify(run)[0]
    write_run(run, results)
    assert verify(run) == []
    assert len(list((run / "parts").iterdir())) == 1


@pytest.mark.parametrize("name", ["features.npz", "features.h5", "notes.txt", "parts/part-00000000.h5"])
def test_a_file_of_the_users_own_is_not_to_be_deleted(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    np.savez(tmp_path / "made.npz", x=np.arange(9))
    file.write_bytes((tmp_path / "made.npz").read_bytes())
    with pytest.raises(StoreError, match="not a run or packed file") as raised:
        Store(file)
    assert str(file) in str(raised.value)
    assert "delete" not in str(raised.value)


@pytest.mark.parametrize("kind", ["folder", "pipe", "device"])
@pytest.mark.parametrize(
    "name", ["run.json", "manifest.jsonl", "errors.jsonl", "embeddings.h5", "quiet-0-of-1.txt", "parts/"]
)
def test_what_is_no_file_is_refused_and_not_waited_for(name: str, kind: str, tmp_path: Path) -> None:
    write_run(tmp_path / "run", batches(2))
    path = next((tmp_path / "run/parts").iterdir()) if name == "parts/" else tmp_path / "run" / name
    path.unlink(missing_ok=True)
    make = {
        "folder": path.mkdir,
        "pipe": lambda: os.mkfifo(path),
        "device": lambda: path.symlink_to("/dev/zero"),
    }
    make[kind]()
    with pytest.raises(StoreError, match="must be a file"):
        Store(tmp_path / "run")


def test_a_manifest_that_is_damaged_is_named(tmp_path: Path) -> None:
    write_run(tmp_path / "run", batches(2))
    path = tmp_path / "run" / "manifest.jsonl"
    lines = path.read_text()
    for damaged in (b"\xe0\xff", lines.replace('"path":', '"pfad":').encode(), b"[1]\n", b"7\n"):
        path.write_bytes(damaged)
        with pytest.raises(StoreError, match=r"manifest\.jsonl.* damaged"):
            read_lines(tmp_path / "run", ())


def test_damage_in_what_is_noted_of_silence_is_no_traceback(tmp_path: Path) -> None:
    write_run(tmp_path / "run", batches(2))
    (tmp_path / "run/quiet-0-of-1.txt").write_bytes(b"\xe0\xff")
    remarks(Store(tmp_path / "run"))


@pytest.mark.parametrize("free_files", [0, 2, 5])
def test_what_is_merged_at_last_is_merged_within_what_is_free(
    free_files: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    results = batches(9)
    with opened(run) as writer:
        commit_all(writer, results)
        largest = max(path.stat().st_size for path in (run / "parts").iterdir())
        free = run_writer.FREE_MARGIN_BYTES + free_files * largest
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    assert writer.warnings == []
    assert verify(run) == []
    with h5py.File(run / "embeddings.h5") as table:
        assert len(table["id"]) == sum(len(result.rows) for result in results)
    parts = sorted(path.name for path in (run / "parts").iterdir())
    assert all(name.startswith("part-") for name in parts)
    assert len(parts) == {0: 9, 2: 5, 5: 2}[free_files]  # 9 by one; 2 + 2 + 2 + 1 + 2; 4 + 5
    np.testing.assert_array_equal(Store(run).load(pooling="mean"), expected_values(results, "mean"))


@pytest.mark.parametrize("quiet", [[], ["-q"]])
def test_a_run_that_its_table_does_not_show_does_not_end_well(quiet: list[str], tmp_path: Path) -> None:
    """As on a disk that was full, and has too little room since."""
    run, results = tmp_path / "run", tmp_path / "data"
    results.mkdir()
    for i in range(6):
        soundfile.write(results / f"{i}.wav", np.full(8_000 + 100 * i, 0.1), 16_000)
    small = (
        "from extractor.run import pipeline; from extractor.store import writer;"
        " pipeline.GROUP_BYTES = 1; writer.FREE_MARGIN_BYTES = 1 << 62; writer.MOST_PIECES = 2;"
    )
    main = "from extractor.commands import extract; extract.main()"
    words = [results, "--model", "mfcc", "--batch-seconds", "0.1", "--out", run, *quiet]
    ran = python(small + main, *words)
    assert ran.returncode == 2
    assert "batch files were left unmerged" in ran.stderr and "Traceback" not in ran.stderr
    assert len(Store(run)) == 6
    assert (python(main, *words).returncode, verify(run)) == (0, [])


LIMITED = """
import resource, sys
from pathlib import Path
from extractor.errors import StoreUnwritable
from store_cases import batches, commit_all, opened
results = batches(4, rows=[3, 3, 3, 60])
try:
    with opened(Path(sys.argv[1])) as writer:
        for result in results:
            limit = 90_000 if result.batch < 3 else 8_000
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            commit_all(writer, results, [result])
except StoreUnwritable as error:
    print(error, *getattr(error, "__notes__", ()))
"""


def test_a_limit_on_file_size_is_met_inside_hdf5_without_harm(tmp_path: Path) -> None:
    """The real thing: the kernel refuses in the midst of HDF5's own writes, then as it closes."""
    run = tmp_path / "run"
    ran = python(LIMITED, run)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "batch-00000003.h5: no space left (File too large)" in ran.stdout
    assert not list(run.rglob("*.tmp"))
    results = batches(4, rows=[3, 3, 3, 60])
    assert len(Store(run)) == sum(len(result.rows) for result in results[:3])
    write_run(run, results)
    write_run(tmp_path / "whole", results)
    assert content(run) == content(tmp_path / "whole")
    assert verify(run) == []


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EPERM])
def test_a_read_only_run_says_so_and_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    run = tmp_path / "run"
    write_run(run, batches(2))
    real = os.open

    def read_only(path: Any, flags: int, *rest: Any, **options: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(number, os.strerror(number))
        return real(path, flags, *rest, **options)

    monkeypatch.setattr(os, "open", read_only)
    with pytest.raises(StoreUnwritable, match=f"cannot be written.*{os.strerror(number)}.*--out"):
        opened(run)
    assert len(Store(run))
    assert verify(run) == []


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(StoreUnwritable, match="a file is where a folder should be"):
            opened(path)
    assert (tmp_path / "file").read_text() == "x"


def test_an_error_of_the_run_is_not_hidden_by_one_of_closing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RuntimeError, match="the model") as raised, opened(tmp_path / "run"):
        monkeypatch.setattr(os, "fsync", fails_with(errno.ENOSPC))
        raise RuntimeError("the model")
    assert "no space left" in raised.value.__notes__[0]
    monkeypatch.undo()
    opened(tmp_path / "run").close()  # the lock was let go of


def test_only_one_process_writes(tmp_path: Path) -> None:
    run = tmp_path / "run"
    code = (
        "import sys; sys.path[:0] = sys.argv[2:]; from store_cases import opened; from pathlib import Path;"
        " w = opened(Path(sys.argv[1])); print('open', flush=True); input()"
    )
    command = [sys.executable, "-c", code, str(run), str(ROOT / "tests"), str(ROOT)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "open\n"
        with pytest.raises(StoreLocked, match=f"process {other.pid} is writing to it"):
            opened(run)
        with pytest.raises(StoreLocked, match=f"process {other.pid}"):
            opened(run, shard=(0, 2))
        other.kill()
    with opened(run, shard=(0, 2)), opened(run, shard=(1, 2)):
        with pytest.raises(StoreLocked, match="shard 1 of 2"):
            opened(run, shard=(1, 2))
        with pytest.raises(StoreLocked):
            opened(run)
    opened(run).close()
    assert sorted(path.name for path in run.glob("lock*")) == ["lock"]
