"""What is said of a run beside its rows: silence, audio that is there twice, notes of input and model."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner

from extractor import Store, extract
from extractor.commands.store import hser_store
from extractor.inputs import manifest
from extractor.progress import Counts, Silent, summary_rows
from extractor.run.engine import run
from extractor.run.options import Options
from extractor.run.remarks import remarks, zero_checksums
from extractor.store.edit import drop
from extractor.store.merge import merge
from extractor.store.pack import pack
from extractor.store.verify import verify


def noise(n: int, seed: int = 0) -> np.ndarray:
    return 0.1 * np.random.default_rng(seed).standard_normal(n)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sounds, one of them again as another file and once more as FLAC; three kinds of silence."""
    folder = tmp_path_factory.mktemp("corpus")
    for k in range(3):
        soundfile.write(folder / f"s{k}.wav", noise(8_000, k), 16_000)
    (folder / "again").mkdir()
    samples = soundfile.read(folder / "s0.wav", dtype="int16")[0]
    soundfile.write(folder / "again" / "t0.wav", samples, 16_000)
    soundfile.write(folder / "again" / "t1.flac", samples, 16_000)
    soundfile.write(folder / "zero.wav", np.zeros(8_000), 16_000)
    left = noise(24_000, 5)  # rounded down, so that the channels cancel to a step of 16 bits
    soundfile.write(folder / "antiphase.wav", np.stack([left, -left], axis=1), 48_000)
    soundfile.write(folder / "zero2.wav", np.zeros(8_000), 16_000)  # not the same audio twice: silent
    return folder


SILENT = (
    "3 recordings are silent as decoded (channels can cancel where they are averaged; --channel takes one):"
    " antiphase, zero, zero2"
)
TWICE = "2 recordings are in the run twice, by the audio: t1 = t0, s0 = t0"


def options(**changes: Any) -> Options:
    return Options("mfcc", **changes)


def notes_shown(rows: list[tuple[str, str]]) -> list[str]:
    return [value for name, value in rows if name == "note"]


def test_silence_and_audio_twice_are_said_in_the_summary_and_by_info(corpus: Path, tmp_path: Path) -> None:
    summary = run(corpus, options(), tmp_path / "run")
    assert notes_shown(summary_rows(summary)) == [SILENT, TWICE]
    again = run(corpus, options(), tmp_path / "run")
    assert again.embedded == 0 and notes_shown(summary_rows(again)) == [SILENT, TWICE]
    code = "from extractor.commands.store import main; main()"
    command = [sys.executable, "-c", code, "info", str(tmp_path / "run")]
    info = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [line.removeprefix("note: ") for line in info if line.startswith("note: ")] == [SILENT, TWICE]


def test_shards_say_what_the_whole_run_holds(corpus: Path, tmp_path: Path) -> None:
    for k in range(2):
        summary = run(corpus, options(shard=(k, 2), batch_seconds=0.6), tmp_path / "run")
    assert list(summary.notes) == [SILENT, TWICE]


def test_a_channel_alone_is_not_silent(corpus: Path, tmp_path: Path) -> None:
    with extract(corpus / "antiphase.wav", model="mfcc", channel=0, out=tmp_path / "run") as store:
        assert remarks(store) == []


def test_copies_are_not_their_original_twice(corpus: Path, tmp_path: Path) -> None:
    two = [corpus / "s0.wav", corpus / "s1.wav"]
    for name, source, said, clean in (
        *(("two", two, [], clean) for clean in (True, False)),
        *(("all", corpus, [SILENT, TWICE], clean) for clean in (True, False)),
    ):
        out = tmp_path / f"{name}{clean}"
        with extract(source, model="mfcc", out=out, augment="gain", clean=clean) as store:
            assert remarks(store) == said
            assert name == "all" or len(set(store.checksums)) == 2


def test_silence_is_found_where_the_device_resampled(corpus: Path, tmp_path: Path) -> None:
    with extract(corpus, model="mfcc", resample="gpu", out=tmp_path / "run") as store:
        assert remarks(store) == [SILENT, TWICE]


def test_a_run_from_before_knows_its_digital_silence(corpus: Path, tmp_path: Path) -> None:
    with extract(corpus, model="mfcc", out=tmp_path / "run") as store:
        for path in store.path.glob("quiet-*"):
            path.unlink()
        assert remarks(store)[0].endswith(": zero, zero2")


def test_a_killed_run_remembers_what_was_silent(corpus: Path, tmp_path: Path) -> None:
    """It is noted before the batch that it is of."""
    stopped = threading.Event()

    class Stopping(Silent):
        def update(self, counts: Counts) -> None:
            stopped.set()

    first = run(corpus, options(batch_seconds=0.4), tmp_path / "run", Stopping(), stopped)
    assert first.stopped
    assert list(run(corpus, options(batch_seconds=0.4), tmp_path / "run").notes) == [SILENT, TWICE]


def test_checksums_of_silence_are_those_of_zeros() -> None:
    lengths = [400, 1, 300_001, 400]
    expected = {hashlib.sha256(np.zeros(n, np.float32).data).hexdigest() for n in lengths}
    assert zero_checksums(lengths) == expected
    assert zero_checksums([]) == set()


def test_notes_of_the_input_are_kept_and_follow_it(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, said = manifest.read_manifest, ["12 files with suffix .xyz not taken"]
    monkeypatch.setattr(
        manifest, "read_manifest", lambda *args, **kw: replace(original(*args, **kw), notes=tuple(said))
    )
    source, out = corpus / "s1.wav", tmp_path / "run"
    assert list(run(source, options(), out).notes) == said
    assert remarks(Store(out)) == said
    said[:] = ["another", "and one more"]
    assert list(run(source, options(), out).notes) == said
    said.clear()
    assert list(run(source, options(), out).notes) == []
    with Store(out) as store:
        assert "notes" not in store.environment and store.environment["model_spec"] == "mfcc"


def test_a_packed_file_says_what_its_run_says(corpus: Path, tmp_path: Path) -> None:
    run(corpus, options(), tmp_path / "run")
    with Store(tmp_path / "run") as store:
        said = remarks(store)
    assert SILENT in said
    pack(tmp_path / "run", tmp_path / "one.h5")
    pack(tmp_path / "one.h5", tmp_path / "two.h5")
    for name in ("one.h5", "two.h5"):
        with Store(tmp_path / name) as store:
            assert remarks(store) == said
        assert verify(tmp_path / name) == []


def test_what_is_said_of_labels_is_of_those_of_now(tmp_path: Path) -> None:
    """Relabelled, dropped, merged and packed: the line follows the rows, counted once a recording."""
    lines = ["path,emotion"]
    for k, emotion in enumerate(("anger", "blorp", "blorp", "nan")):
        soundfile.write(tmp_path / f"{k}.wav", noise(4_000, k), 16_000)
        lines.append(f"{k}.wav,{emotion}")
    table = tmp_path / "m.csv"
    table.write_text("\n".join(lines))

    def said(name: str = "run") -> list[str]:
        with Store(tmp_path / name) as store:
            return [note.partition(";")[0] for note in remarks(store)]

    own, nothing = "labels outside the common set stay classes of their own: {}", "taken for no emotion: {}"
    copied = run(table, options(augment="gain:db=3", copies=2), tmp_path / "copies")
    assert said("copies") == [note.partition(";")[0] for note in copied.notes]
    assert said("copies") == [own.format("blorp (2)"), nothing.format("nan (1)")]
    run(table, options(), tmp_path / "run")
    drop(tmp_path / "run", "id=2")
    assert said() == [own.format("blorp (1)"), nothing.format("nan (1)")]
    table.write_text("\n".join(lines).replace("nan", "joy").replace("blorp", "blurp"))
    command = [str(tmp_path / "run"), str(table)]
    done = CliRunner().invoke(hser_store, ["relabel", *command])
    assert f"note: {table}: {own.format('blurp (2)')};" in done.output.replace("\n", " ")
    assert said() == [own.format("blurp (1)")]
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    merge([tmp_path / "run", tmp_path / "other"], tmp_path / "both")
    twice = "3 recordings are in the run twice, by the audio: other/0 = 0, other/1 = 1, other/3 = 3"
    assert said("both") == [own.format("blurp (2)"), twice]
    assert CliRunner().invoke(hser_store, ["relabel", *command, "--map", "blurp=sadness"]).exit_code == 0
    assert said() == []


def test_a_merged_run_says_what_there_is_to_say_of_both_inputs(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        soundfile.write(tmp_path / name / f"{name}.wav", noise(4_000, ord(name)), 16_000)
        (tmp_path / name / "nowhere").symlink_to(tmp_path / "missing")
        run(tmp_path / name, options(), tmp_path / f"run_{name}")
    merge([tmp_path / "run_a", tmp_path / "run_b"], tmp_path / "both")
    with Store(tmp_path / "both") as store:
        said = remarks(store)
    assert len(said) == 2
    assert all(f"{tmp_path / name}: left out" in note for name, note in zip("ab", said, strict=True))


def test_recordings_beside_copies_in_files_of_their_own_are_each_counted(tmp_path: Path) -> None:
    """Of a manifest that says of which recording a copy is, and of the recordings nothing."""
    lines = ["path,emotion,original,copy,augmentation", "copy.wav,blorp,a,1,gain:db=3"]
    for name, samples in (("copy", noise(4_000)), ("a", noise(4_000, 1)), ("b", noise(4_000, 2))):
        soundfile.write(tmp_path / f"{name}.wav", samples, 16_000)
    soundfile.write(tmp_path / "c.wav", np.zeros(4_000), 16_000)
    shutil.copy(tmp_path / "b.wav", tmp_path / "d.wav")
    (tmp_path / "m.csv").write_text("\n".join([*lines, *(f"{name}.wav,blorp,,," for name in "abcd")]))
    labels, silent, twice = run(tmp_path / "m.csv", options(), tmp_path / "run").notes
    assert "blorp (4);" in labels
    assert silent.endswith(": c")
    assert twice == "1 recording is in the run twice, by the audio: d = b"
