"""``hser-augment``: audio and pictures that a person can judge an augmentation by."""

from __future__ import annotations

import csv
import re
import struct
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from extractor.augment import AUGMENTATIONS, parse
from extractor.augment.copies import configured
from extractor.commands.augment import EPILOG
from extractor.errors import SettingsDiffer
from extractor.run.render import file_name, render, wav_bytes


def hser_augment(*args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "extractor.commands.augment", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """One second, rising from 100 Hz to 4 kHz."""
    t = np.arange(16_000) / 16_000
    soundfile.write(tmp_path / "sweep.wav", 0.3 * np.sin(2 * np.pi * (100 * t + 1_950 * t**2)), 16_000)
    return tmp_path / "sweep.wav"


def manifest_of(folder: Path) -> dict[str, dict[str, str]]:
    """The rows of what was written, by id."""
    with (folder / "manifest.csv").open(newline="") as file:
        return {row["id"]: row for row in csv.DictReader(file)}


def test_the_help_states_the_defaults_that_the_table_has() -> None:
    stated = re.findall(r"^  ([a-z]+:\S+)  ", EPILOG, re.MULTILINE)
    assert {text.partition(":")[0] for text in stated} == set(AUGMENTATIONS) - {"gain"}
    for text in [*stated, "gain:db=-6..6"]:
        augmentation = parse(text)
        assert augmentation == type(augmentation)(), text


def test_without_an_augmentation_each_is_shown(sweep: Path, tmp_path: Path) -> None:
    done = hser_augment(sweep, "--plot", "--out", tmp_path / "looks")
    assert done.returncode == 0, done.stderr
    shown = {path.name for path in (tmp_path / "looks").iterdir()}
    assert shown == set(AUGMENTATIONS) - {"copypaste", "latent"}  # which need labels, and an encoder
    for name in shown:
        folder = tmp_path / "looks" / name
        files = {p.name for p in folder.iterdir()}
        assert files == {"sweep.wav", "sweep~1.wav", "sweep~1.png", "manifest.csv"}
        picture = (folder / "sweep~1.png").read_bytes()
        width, height = struct.unpack(">II", picture[16:24])
        assert picture[:8] == b"\x89PNG\r\n\x1a\n" and width > 800 and height > 400
        audio, rate = soundfile.read(folder / "sweep~1.wav", dtype="float32")
        assert rate == 16_000 and np.isfinite(audio).all() and np.abs(audio).max() > 0


def test_copies_are_written_with_a_manifest_about_them(sweep: Path, tmp_path: Path) -> None:
    out = tmp_path / "wavs"
    done = hser_augment(sweep, "--augment", "gain:db=6", "--copies", 2, "--no-clean", "--out", out)
    assert done.returncode == 0, done.stderr
    rows = manifest_of(out).values()
    assert [row["path"] for row in rows] == ["sweep~1.wav", "sweep~2.wav"]
    said = [(row["original"], row["copy"], row["augmentation"]) for row in rows]
    assert said == [("sweep", "1", "gain:db=6"), ("sweep", "2", "gain:db=6")]
    before, after = (soundfile.read(p, dtype="float64")[0] for p in (sweep, out / "sweep~1.wav"))
    np.testing.assert_allclose(after, before * 10 ** (6 / 20), atol=1e-6)  # 16-bit input, float output


def test_other_copies_are_not_overwritten(sweep: Path, tmp_path: Path) -> None:
    out = tmp_path / "wavs"
    augment = partial(rendered, sweep, out)
    first = augment("gain:db=6")
    assert augment("gain:db=6") == first, "the same again"
    with pytest.raises(SettingsDiffer, match=r"sweep~1 is gain:db=6 .* gain:db=3 now; .*--force"):
        augment("gain:db=3")
    assert manifest_of(out) == first
    more = augment("gain:db=6", copies=2)
    with pytest.raises(SettingsDiffer, match=r"sweep~2 .* would not be made now"):
        augment("gain:db=6")
    assert more != augment("gain:db=3", force=True)
    (out / "manifest.csv").write_text("path,emotion\na.wav,anger\n")
    with pytest.raises(SettingsDiffer, match="hser-augment did not write it"):
        augment("gain:db=3")


def test_what_fails_is_listed_and_the_rest_is_written(sweep: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "silent.wav", np.zeros(8_000), 16_000)
    out = tmp_path / "wavs"
    command = (sweep, tmp_path / "silent.wav", "--augment", "noise", "--no-clean", "--out", out)
    done = hser_augment(*command)
    assert done.returncode == 0 and "silent" in done.stdout
    assert hser_augment(*command, "--strict").returncode == 1
    assert sorted(path.name for path in out.glob("*.wav")) == ["sweep~1.wav"]
    assert "silent~1" in (out / "errors.csv").read_text()


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--augment", "latent"), "nothing to hear"),
        (("--augment", "stretch:rate=9"), "rate"),
        (("--augment", "gain", "--limit", "0"), "--limit 0"),
        (("--augment-config", "none.yaml"), "none.yaml"),
    ],
)
def test_mistakes_are_refused_in_a_line(
    args: tuple[str, ...], says: str, sweep: Path, tmp_path: Path
) -> None:
    done = hser_augment(sweep, *args, "--out", tmp_path / "wavs")
    assert done.returncode == 2 and says in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "wavs").exists()


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Four recordings of two emotions as a manifest, and a folder of noise beside it."""
    rng = np.random.default_rng(0)
    (tmp_path / "noises").mkdir()
    soundfile.write(tmp_path / "noises" / "hum.wav", 0.1 * rng.standard_normal(30_000), 16_000)
    lines = ["path,emotion"]
    for k in range(4):
        soundfile.write(tmp_path / f"r{k}.wav", 0.1 * rng.standard_normal(9_000 + 1_000 * k), 16_000)
        lines.append(f"r{k}.wav,{('neutral', 'anger')[k % 2]}")
    (tmp_path / "all.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "all.csv"


def rendered(
    source: Path, out: Path, augment: str, force: bool = False, **options: Any
) -> dict[str, dict[str, str]]:
    config = configured(augment, **options)
    assert config is not None
    assert not render([source], config, out, device="cpu", force=force).failures
    return manifest_of(out)


def test_the_same_seed_gives_the_same_bytes(labelled: Path, tmp_path: Path) -> None:
    """libsndfile would put the time of day into them, in its PEAK chunk."""
    text = "noise:snr_db=3+gain:db=20"
    first = rendered(labelled, tmp_path / "a", text, seed=3)
    assert rendered(labelled, tmp_path / "b", text, seed=3) == first
    for row in first.values():
        a, b = ((tmp_path / run / row["path"]).read_bytes() for run in "ab")
        assert a == b and b"PEAK" not in a
        samples, rate = soundfile.read(tmp_path / "a" / row["path"], dtype="float32")
        assert rate == 16_000 and wav_bytes(samples) == a
        if "~" in row["path"]:  # louder than full scale is not cut off
            assert np.abs(samples).max() > 2


# One of each that makes audio; a recipe without operations, too.
WHOLE_TABLE = {
    **{name: f"{name}" for name in AUGMENTATIONS if name not in ("latent", "bandpass")},
    "bandpass": "bandpass:low=250.5,high=3000",
    "pink": "noise:color=pink",
    "folder": "noise:folder={noises}",
    "chain": "(stretch+specaugment+noise:color=brown):p=0.9+timemask:count=2+pitch+gain",
    "nothing": "gain:p=1e-9",
}


@pytest.mark.parametrize("name", WHOLE_TABLE)
def test_a_stored_recipe_alone_remakes_its_copy(name: str, labelled: Path, tmp_path: Path) -> None:
    assert set(AUGMENTATIONS) - {"latent"} <= set(WHOLE_TABLE)
    text = WHOLE_TABLE[name].format(noises=tmp_path / "noises")
    drawn = rendered(labelled, tmp_path / "drawn", text, seed=5, copies=2)
    recipe = drawn["r0~2"]["augmentation"]
    again = rendered(labelled, tmp_path / "again", recipe, seed=99, clean=False)
    assert {row["augmentation"] for row in again.values()} == {recipe}
    remade = (tmp_path / "again" / again["r0~1"]["path"]).read_bytes()
    assert remade == (tmp_path / "drawn" / drawn["r0~2"]["path"]).read_bytes()


def test_names_of_files_stay_below_the_folder() -> None:
    names = {"a/b~1": "a/b~1.wav", "../../etc/x": "etc/x.wav", "/abs": "abs.wav", "..": "recording.wav"}
    names |= {"a\\b:c*": "a%5Cb%3Ac%2A.wav", "clip@1.5-4": "clip@1.5-4.wav"}
    assert {name: file_name(name) for name in names} == names
