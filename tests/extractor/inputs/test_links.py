"""Folders and links: every folder once, an end to every walk, and nothing lost for one bad entry."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from conftest import touch
from inputs_cases import names

from extractor.audio.probe import probe
from extractor.errors import InputError
from extractor.inputs.manifest import read_manifest
from extractor.inputs.walk import Search, folders
from extractor.types import Failure


def link(place: Path, target: Path | str) -> None:
    place.symlink_to(target, target_is_directory=True)


@pytest.mark.parametrize("name", ["loop", "loop.wav", "a.wav.d"])
def test_a_link_to_itself_costs_nothing_but_itself(tmp_path: Path, name: str) -> None:
    touch(tmp_path, "a.wav", "sub/b.wav")
    link(tmp_path / name, name)
    manifest = read_manifest(tmp_path)
    found = [Path(u.path).name for u in manifest.utterances]
    assert [each for each in found if each != name] == ["a.wav", "b.wav"]
    if name.endswith(".wav"):  # as a recording that cannot be read
        assert name in found
        (failure,) = [each for each in probe(manifest.utterances) if "loop" in getattr(each, "path", "")]
        assert isinstance(failure, Failure)
    else:
        assert manifest.notes == (f"{tmp_path}: left out, leads nowhere: 1 link ({tmp_path / name})",)


def test_a_broken_link_is_an_error_row(tmp_path: Path) -> None:
    touch(tmp_path, "a.wav")
    (tmp_path / "gone.wav").symlink_to(tmp_path / "nowhere.wav")
    (tmp_path / "notes.txt").symlink_to(tmp_path / "nowhere.txt")
    manifest = read_manifest(tmp_path)
    assert [Path(u.path).name for u in manifest.utterances] == ["a.wav", "gone.wav"]
    failure = probe(manifest.utterances)[1]
    assert isinstance(failure, Failure)
    assert "leads nowhere: 1 link" in manifest.notes[0]


def test_a_loop_of_links_ends_and_finds_each_recording_once(tmp_path: Path) -> None:
    """By its own folder's name, not by a link's."""
    touch(tmp_path, "a/x.wav", "b/y.wav")
    link(tmp_path / "a" / "to_b", tmp_path / "b")
    link(tmp_path / "b" / "to_a", tmp_path / "a")
    link(tmp_path / "a" / "up", tmp_path)
    found = [str(tmp_path / name) for name in ("a/x.wav", "b/y.wav")]
    assert [u.path for u in read_manifest(tmp_path).utterances] == found


def test_folders_that_all_link_to_one_another_are_visited_once_each(tmp_path: Path) -> None:
    """Followed along every path of links, twelve of them are 12! walks."""
    inside = [tmp_path / "in" / f"{i:02}" for i in range(12)]
    for folder in inside:
        touch(folder, f"{folder.name}.wav")
        for other in inside:
            link(folder / f"to-{other.name}", other)
    assert names(tmp_path / "in") == [f"{i:02}.wav" for i in range(12)]
    assert len(list(folders(str(tmp_path / "in"), Search()))) == 13
    assert names(tmp_path / "in" / "**" / "*.wav") == [f"{i:02}.wav" for i in range(12)]


def test_linked_folders_outside_of_the_input_are_followed(tmp_path: Path) -> None:
    touch(tmp_path / "elsewhere", "b.wav", "deep/c.wav")
    touch(tmp_path / "in", "a.wav", "z/d.wav")
    link(tmp_path / "in" / "more", tmp_path / "elsewhere")
    link(tmp_path / "elsewhere" / "deep" / "back", tmp_path / "in")
    link(tmp_path / "in" / "same", tmp_path / "elsewhere")
    assert [u.path for u in read_manifest(tmp_path / "in").utterances] == [
        str(tmp_path / "in" / name) for name in ("a.wav", "more/b.wav", "more/deep/c.wav", "z/d.wav")
    ]


def test_an_unreadable_folder_is_named_and_the_others_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "a.wav", "locked/b.wav", "z/c.wav")
    scan = os.scandir

    def refusing(folder: str) -> object:
        if str(folder).endswith("locked"):
            raise PermissionError(13, "Permission denied", folder)
        return scan(folder)

    monkeypatch.setattr("extractor.inputs.walk.os.scandir", refusing)
    assert names(tmp_path) == ["a.wav", "c.wav"]
    (note,) = read_manifest(tmp_path).notes
    assert note == f"{tmp_path}: left out, cannot be read: 1 folder ({tmp_path / 'locked'})"
    with pytest.raises(InputError, match="locked: cannot be read: Permission denied"):
        read_manifest(tmp_path / "locked")


def test_suffixes_that_are_not_searched_for_are_counted(tmp_path: Path) -> None:
    touch(tmp_path, "a.wav", "b.spx", "c.MP2", "d.mp1", "x.xyz", "sub/y.XYZ", "readme.txt", "labels.csv", "n")
    manifest = read_manifest(tmp_path)
    assert len(manifest) == 4
    (note,) = manifest.notes
    assert note.startswith(f"{tmp_path}: 2 files with suffix .xyz not taken")
    assert len(read_manifest([tmp_path, f"{tmp_path}/**/*.xyz", tmp_path / "sub" / "y.XYZ"])) == 6


def test_a_folder_of_nothing_searched_for_says_what_it_holds(tmp_path: Path) -> None:
    touch(tmp_path, "x.xyz")
    with pytest.raises(InputError, match=r"no audio in the folder(.|\n)*1 file with suffix \.xyz"):
        read_manifest(tmp_path)
