"""Weights in several files: read as one, and only from the checkpoint's own folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeCheckpoint, make_model

from extractor.encoders.checkpoint import load_checkpoint
from extractor.errors import ModelError

INDEX = "model.safetensors.index.json"


@pytest.fixture
def shards(checkpoint: MakeCheckpoint, tmp_path: Path) -> Path:
    folder = tmp_path / "shards"
    make_model("hubert", num_hidden_layers=1).save_pretrained(folder, max_shard_size="100KB")
    assert len([*folder.glob("model-*.safetensors")]) > 1
    return folder


def test_shards_give_what_one_file_gives(shards: Path, checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    whole = load_checkpoint(str(checkpoint("hubert", num_hidden_layers=1))).provenance["weights"]
    assert load_checkpoint(str(shards)).provenance["weights"] == whole
    # The hub's cache: a snapshot of links to files that lie together elsewhere.
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(shards.iterdir())):
        shutil.copy(file, blobs / str(number))
        (snapshot / file.name).symlink_to(Path("../../blobs") / str(number))
    assert load_checkpoint(str(snapshot)).provenance["weights"] == whole


@pytest.mark.parametrize(
    "name",
    ["../elsewhere.safetensors", "/etc/passwd", "a/../../elsewhere.safetensors", "..", "", ".",
     "C:\\x", "a\0b", 3, None, "..\\elsewhere.safetensors"],
)  # fmt: skip
def test_a_shards_name_stays_inside_the_folder(name: Any, shards: Path, tmp_path: Path) -> None:
    shutil.copy(next(shards.glob("model-*.safetensors")), tmp_path / "elsewhere.safetensors")
    index = json.loads((shards / INDEX).read_text())
    index["weight_map"]["x"] = name
    (shards / INDEX).write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"is not a file of the checkpoint's folder") as error:
        load_checkpoint(str(shards))
    assert str(shards / INDEX) in str(error.value)


def test_a_shard_that_is_a_link_out_of_the_folder_is_refused(shards: Path, tmp_path: Path) -> None:
    shard = next(shards.glob("model-*.safetensors"))
    shard.rename(tmp_path / "elsewhere.safetensors")
    shard.symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises(ModelError, match=rf"names {shard.name}, which is a link out of"):
        load_checkpoint(str(shards))
    shard.unlink()
    with pytest.raises(ModelError, match=rf"names {shard.name}, which is not there"):
        load_checkpoint(str(shards))


@pytest.mark.parametrize("value", [None, [], {}, "x", 3])
def test_an_index_without_names_is_refused(value: Any, shards: Path) -> None:
    (shards / INDEX).write_text(json.dumps({"weight_map": value}))
    with pytest.raises(ModelError, match="weight_map is"):
        load_checkpoint(str(shards))
