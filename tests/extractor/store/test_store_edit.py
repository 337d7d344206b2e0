"""A run says what its manifest says now: labels, columns, paths and dropped lines; parts stay as they are."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from store_cases import (
    COLUMNS,
    DIM,
    FRAMES,
    batches,
    content,
    edited,
    lines_of,
    manifest_of,
    one_row,
    opened,
    utterance_at,
    write_run,
)

from extractor.errors import StoreError
from extractor.store import Store
from extractor.store.hdf5 import decode_text
from extractor.store.pack import pack
from extractor.store.run_folder import BY_HAND, CONTENTS, ERRORS, MANIFEST, REPLACED, ROWS, ManifestRow
from extractor.store.verify import verify
from extractor.types import BatchResult, Failure


def labelled(row: ManifestRow, *labels: str) -> ManifestRow:
    return replace(row, utterance=replace(row.utterance, labels=labels))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_run(tmp_path / "run", batches(4, rows=3))
    return tmp_path / "run"


@pytest.mark.parametrize("cache", ["there", "deleted", "damaged", "of the edition before"])
def test_labels_are_those_of_the_manifest(run: Path, cache: str) -> None:
    before = content(run)
    edited(run, lambda row: labelled(row, "fear", f"é{row.position}", "", "old"), (*COLUMNS, "age"))
    old = (run / ROWS).read_bytes()
    edited(run, lambda row: labelled(row, "joy", f"é{row.position}", "x"), ("emotion", "age", "speaker"))
    match cache:
        case "deleted":
            (run / ROWS).unlink()
        case "damaged":
            (run / ROWS).write_bytes(b"no HDF5")
        case "of the edition before":
            (run / ROWS).write_bytes(old)
    store = Store(run)
    assert store.columns == store.info.columns == ("emotion", "age", "speaker")
    assert store.labels("emotion") == ["joy"] * len(store)
    assert store.labels("age") == [f"é{position}" for position in store.positions]
    after = content(run)
    assert {**after, "labels": 0} == {**before, "labels": 0}
    opened(run).close()  # the next writer puts the cache right
    assert verify(run) == []
    assert content(run) == after


def test_plain_h5py_sees_the_labels_and_rows_of_now(run: Path) -> None:
    edited(run, lambda row: replace(labelled(row, "joy", "", ""), dropped=BY_HAND * (row.position % 3 == 0)))
    store = Store(run)
    with h5py.File(run / CONTENTS) as h5:
        order = np.argsort(h5["position"][:])
        np.testing.assert_array_equal(h5["position"][:][order], store.positions)
        np.testing.assert_array_equal(h5["embeddings/mean"][:][order], store.load(pooling="mean"))
        assert set(h5["labels/emotion"].asstr()[:]) == {"joy"}
        assert [h5["checksum"].asstr()[:][k] for k in order] == store.checksums
        assert json.loads(h5.attrs["provenance"])["columns"] == list(COLUMNS)


@pytest.mark.parametrize("dim", [DIM, FRAMES])
def test_dropped_rows_are_gone_everywhere(tmp_path: Path, dim: dict[str, int]) -> None:
    results = batches(4, rows=5, dim=dim)
    run = tmp_path / "run"
    write_run(run, results, dim)
    whole = Store(run)
    failed = {failure.id for failure in whole.errors}
    gone = {whole.ids[1], whole.ids[2], whole.ids[-1], sorted(failed)[0]}
    edited(run, lambda row: replace(row, dropped=BY_HAND * (row.utterance.id in gone)))
    store = Store(run)
    kept = [k for k, key in enumerate(whole.ids) if key not in gone]
    assert store.ids == [whole.ids[k] for k in kept]
    assert len(store) == len(kept)
    assert store.num_dropped == 4
    np.testing.assert_array_equal(store.load(pooling="mean"), whole.load(pooling="mean")[kept])
    assert {failure.id for failure in store.errors} == failed - gone
    assert len((run / ERRORS).read_text().splitlines()) == len(failed - gone)
    pack(run, tmp_path / "packed.h5")
    packed = Store(tmp_path / "packed.h5")
    assert packed.ids == store.ids
    if "none" in dim:
        with h5py.File(run / CONTENTS) as h5:
            offsets, at = h5["frame_offsets"][:], h5["position"][:].tolist()
            shown = {p: h5["embeddings/none"][offsets[k] : offsets[k + 1]] for k, p in enumerate(at)}
        for row, k in enumerate(kept):
            np.testing.assert_array_equal(store.frames(row), whole.frames(k))
            np.testing.assert_array_equal(packed.frames(row), whole.frames(k))
            np.testing.assert_array_equal(shown[int(store.positions[row])], whole.frames(k))
    assert verify(run) == []


def test_a_replaced_recording_is_a_new_line_of_the_same_id(run: Path) -> None:
    with opened(run) as writer:
        rows = lines_of(writer)
        first = next(row for row in rows if row.utterance.id in Store(run).ids)
        rows[first.position] = replace(first, dropped=REPLACED)
        again = replace(first, position=12, batch=4, size=5, mtime_ns=7)
        writer.edit_manifest([*rows, again], COLUMNS)
        failure = Failure(first.utterance.id, first.utterance.path, "decode", "changed, and broken")
        writer.commit(BatchResult(4, [], {}, (), [failure]))
    assert failure in Store(run).errors
    assert first.utterance.id not in Store(run).ids
    with opened(run) as writer:
        writer.append_manifest([replace(again, batch=5)])
        result = one_row(5, 12)
        writer.commit(replace(result, rows=[replace(result.rows[0], utterance=first.utterance)]))
    assert Store(run).ids[-1] == first.utterance.id
    assert verify(run) == []
    assert Store(run).edition == 2


def test_a_failure_of_a_replaced_recording_is_gone(run: Path) -> None:
    failure = Store(run).errors[0]
    with opened(run) as writer:
        rows = lines_of(writer)
        (old,) = [row for row in rows if row.utterance.id == failure.id]
        rows[old.position] = replace(old, dropped=REPLACED)
        writer.edit_manifest([*rows, replace(old, position=12, batch=4)], COLUMNS)
    assert failure.id not in {each.id for each in Store(run).errors}
    assert any("recordings are not done yet" in problem for problem in verify(run))


def test_new_rows_of_an_edited_run(run: Path) -> None:
    """Parts keep the columns that the run began with; what counts is the manifest."""
    edited(run, lambda row: labelled(row, "joy", "9"), ("emotion", "age"))
    with opened(run, columns=("emotion", "age")) as writer:
        assert writer.columns == ("emotion", "age")
        utterance = replace(utterance_at(12), labels=("fear", "80"))
        writer.append_manifest([ManifestRow(12, utterance, 400, 4)])
        result = one_row(4, 12)
        writer.commit(replace(result, rows=[replace(result.rows[0], utterance=utterance)]))
    store = Store(run)
    assert (store.labels("emotion")[-1], store.labels("age")[-2:]) == ("fear", ["9", "80"])
    assert verify(run) == []


def test_a_run_that_began_with_other_columns_and_has_no_manifest_yet(tmp_path: Path) -> None:
    run = tmp_path / "run"
    opened(run).close()
    results = batches(1)
    with opened(run, columns=("emotion", "age")) as writer:
        writer.write_manifest([labelled(row, "joy", "3") for row in manifest_of(results)])
        rows = [
            replace(row, utterance=replace(row.utterance, labels=("joy", "3"))) for row in results[0].rows
        ]
        writer.commit(replace(results[0], rows=rows))
    assert Store(run).labels("age") == ["3"] * len(rows)
    assert verify(run) == []


def test_stamps_are_no_edition(run: Path) -> None:
    edited(run, lambda row: replace(row, size=row.position, mtime_ns=10**18 + row.position))
    assert Store(run).edition == 0
    assert not (run / ROWS).exists()
    with opened(run) as writer:
        rows = lines_of(writer)
        assert [(row.size, row.mtime_ns) for row in rows] == [(k, 10**18 + k) for k in range(12)]
    assert verify(run) == []


def test_paths_are_those_of_the_manifest(run: Path) -> None:
    edited(run, lambda row: replace(row, utterance=replace(row.utterance, path=f"/new/{row.position}")))
    store = Store(run)
    assert store.paths == [f"/new/{position}" for position in store.positions]


def test_what_no_edit_may_do(run: Path) -> None:
    edited(run, lambda row: replace(row, dropped=BY_HAND * (row.position == 3)))
    before = (run / MANIFEST).read_bytes()
    with opened(run) as writer:
        rows = lines_of(writer)

        def refused(match: str, changed: list[ManifestRow]) -> None:
            with pytest.raises(ValueError, match=match):
                writer.edit_manifest(changed, COLUMNS)

        refused("out of order", [*rows[1:], rows[0]])
        refused("11 shall replace", rows[:-1])
        refused("dropped, for good", [replace(row, dropped="") for row in rows])
        other = replace(rows[0], utterance=replace(rows[0].utterance, start=0.5))
        refused("for good; append the new cut", [other, *rows[1:]])
        refused("of two lines", [*rows, replace(rows[0], position=12, batch=4)])
    assert (run / MANIFEST).read_bytes() == before


def test_shards_that_edit_at_once_agree_or_are_told(run: Path) -> None:
    with opened(run, shard=(0, 2)) as one, opened(run, shard=(1, 2)) as other:
        rows, same = one.manifest(), other.manifest()
        assert rows is not None and same is not None
        joy = [labelled(row, "joy", "", "") for row in rows]
        one.edit_manifest(joy, COLUMNS)
        one.append_manifest([ManifestRow(12, utterance_at(12), 400, 4)])
        edition = Store(run).edition
        other.edit_manifest(joy, COLUMNS)  # the same: nothing to do
        other.append_manifest([ManifestRow(12, utterance_at(12), 400, 4)])
        assert Store(run).edition == edition
        with pytest.raises(StoreError, match="edited in the meantime"):
            other.edit_manifest([labelled(row, "fear", "", "") for row in rows], COLUMNS)
        with pytest.raises(StoreError, match="edited in the meantime"):  # labels of before
            other.append_manifest([replace(rows[0], batch=9)])
    assert set(Store(run).labels("emotion")) == {"joy"}


def test_a_store_that_is_open_while_its_run_is_edited(run: Path) -> None:
    edited(run, lambda row: labelled(row, "joy", "", ""))
    store = Store(run)
    assert store.labels("emotion")[0] == "joy"
    edited(run, lambda row: labelled(row, "fear", "", "x"))
    assert store.labels("emotion")[0] == "joy"
    with pytest.raises(StoreError, match="was edited since"):
        store.labels("speaker")


def test_a_damaged_cache_is_named(run: Path) -> None:
    edited(run, lambda row: labelled(row, "joy", "", ""))
    with h5py.File(run / ROWS, "r+") as h5:
        h5["labels/emotion"][0] = b"joi"
    (problem,) = verify(run)
    assert ROWS in problem
    assert "labels/emotion" in problem


def test_a_row_that_gets_another_id_is_found_under_it(run: Path) -> None:
    """In the store, in embeddings.h5, in a pack; and what is checked finds nothing wrong."""
    with Store(run) as store:
        was = store.ids
    edited(
        run,
        lambda row: replace(row, utterance=replace(row.utterance, id="other")) if row.position == 2 else row,
    )
    with Store(run) as store:
        now = ["other" if name == was[store.positions.tolist().index(2)] else name for name in was]
        assert store.ids == now
    with h5py.File(run / "embeddings.h5") as h5:
        assert sorted(decode_text(h5["id"][:])) == sorted(now)
    assert verify(run) == []


def test_failures_are_of_the_line_that_had_their_id(run: Path) -> None:
    """A recording that failed gets another id, and a new one its old id: each has its own failure."""
    failure = Store(run).errors[0]
    with opened(run) as writer:
        rows = lines_of(writer)
        (old,) = [row for row in rows if row.utterance.id == failure.id]
        rows[old.position] = replace(old, utterance=replace(old.utterance, id="longer"))
        new = replace(old, position=12, batch=4, utterance=replace(old.utterance, path="/new"))
        writer.edit_manifest([*rows, new], COLUMNS)
        known = {each.id: each for each in Store(run).errors}
        assert failure.id not in known
        assert known["longer"].reason == failure.reason
        writer.commit(BatchResult(4, [], {}, (), [Failure(failure.id, "/new", "decode", "another")]))
    known = {each.id: each for each in Store(run).errors}
    assert (known["longer"].reason, known[failure.id].reason) == (failure.reason, "another")
    assert verify(run) == []
    (run / ROWS).unlink()
    assert {each.id: each for each in Store(run).errors} == known


def test_what_is_derived_and_of_another_edition_is_not_believed_and_put_right(run: Path) -> None:
    edited(run, lambda row: labelled(row, "joy", "", ""))
    derived = [run / ROWS, run / CONTENTS]
    old = [path.read_bytes() for path in derived]
    edited(run, lambda row: replace(row, dropped=BY_HAND * (row.position < 6)))
    for path, data in zip(derived, old, strict=True):
        path.write_bytes(data)
    assert min(Store(run).positions) >= 6
    with opened(run):
        assert verify(run) == []
        with h5py.File(run / CONTENTS) as h5:
            assert min(h5["position"][:]) >= 6
