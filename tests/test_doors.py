"""Nothing that a file brings is run, and no file that is named has others read: every such door, shut.

The first tests read the sources: whoever opens a new door meets them. The others try the handles.
"""

from __future__ import annotations

import ast
import functools
import json
import os
import pty
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import soundfile
from conftest import MakeCheckpoint

from extractor.encoders.checkpoint import load_checkpoint
from extractor.errors import ModelError, StoreError
from extractor.run.engine import run
from extractor.run.options import Options
from extractor.store import Store
from extractor.store.hdf5 import open_part, read_info
from extractor.store.verify import verify

ROOT = Path(__file__).parents[1]
PRODUCT = ("cuda_kernels", "extractor", "classifiers", "benchmarks")

# What a call must be given, by the end of its dotted name.
SHUT_BY: dict[str, dict[str, object]] = {
    "from_pretrained": {"trust_remote_code": False},
    "from_config": {"trust_remote_code": False},
    "torch.load": {"weights_only": True},
    "np.load": {"allow_pickle": False},
    "numpy.load": {"allow_pickle": False},
}
# What is not called at all, but in the files named.
NOWHERE: dict[str, tuple[str, ...]] = {
    "eval": (),
    "exec": (),
    "pickle.loads": (),
    "pickle.load": ("extractor/run/devices.py",),  # from the process that started it, over its pipe
    "joblib.load": (),
    "dill.load": (),
    "marshal.loads": (),
    "shelve.open": (),
    "torch.hub.load": (),
    "torch.jit.load": (),
    "yaml.load": (),
    "yaml.load_all": (),
    "yaml.full_load": (),
    "yaml.unsafe_load": (),
    "Template": (),  # of jinja and its like
    "get_class_from_dynamic_module": (),
    "skops.io.load": (),
    "skops.io.loads": ("classifiers/models/files.py",),  # behind its list of types
    "pd.read_pickle": (),
    "pandas.read_pickle": (),
}
# Where files are opened for reading that could have others read.
ONE_PLACE = {
    "h5py.File": ("extractor/store/hdf5.py",),
    "faiss.read_index": ("extractor/index/generation.py",),
}


@functools.cache
def calls() -> list[tuple[str, str, ast.Call]]:
    """File, dotted name and call, for each in the product."""
    return [
        (path.relative_to(ROOT).as_posix(), ast.unparse(node.func), node)
        for package in PRODUCT
        for path in sorted((ROOT / package).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
    ]


def ends(name: str, pattern: str) -> bool:
    return name == pattern or (name.endswith(f".{pattern}") and pattern not in ("eval", "exec"))


def literal(call: ast.Call, name: str) -> object:
    found = [keyword.value for keyword in call.keywords if keyword.arg == name]
    return found[0].value if found and isinstance(found[0], ast.Constant) else None


def test_what_could_run_code_is_shut_by_an_argument() -> None:
    for file, name, call in calls():
        for pattern, wanted in SHUT_BY.items():
            if ends(name, pattern):
                given = {argument: literal(call, argument) for argument in wanted}
                assert given == wanted, f"{file}:{call.lineno}: {name}({ast.unparse(call)})"


def test_what_runs_code_is_not_called() -> None:
    for file, name, call in calls():
        for pattern, allowed in NOWHERE.items():
            assert not ends(name, pattern) or file in allowed, f"{file}:{call.lineno}: {name}"
        safe = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        if name in ("yaml.compose", "yaml.parse"):
            assert safe.get("Loader") == "yaml.SafeLoader", f"{file}:{call.lineno}"
        assert safe.get("trust_remote_code", "False") == "False", f"{file}:{call.lineno}"
        assert safe.get("shell", "False") == "False", f"{file}:{call.lineno}: a shell"


def test_files_with_links_in_them_are_opened_in_one_place() -> None:
    for file, name, call in calls():
        for pattern, places in ONE_PLACE.items():
            reads = not any(isinstance(each, ast.Constant) and each.value == "w" for each in call.args)
            if name == pattern and reads and not file.startswith("benchmarks/"):
                assert file in places, f"{file}:{call.lineno}: {name}"


# A checkpoint's own code


CODE = "import pathlib\npathlib.Path({mark!r}).touch()\nclass Theirs: pass\n"
AUTO = ("AutoConfig", "AutoModel", "AutoFeatureExtractor", "AutoProcessor")


@pytest.fixture
def with_code(checkpoint: MakeCheckpoint, tmp_path: Path) -> Path:
    """A checkpoint that brings code, which would leave a mark."""
    folder = Path(shutil.copytree(checkpoint("hubert", num_hidden_layers=1), tmp_path / "model"))
    (folder / "theirs.py").write_text(CODE.format(mark=str(tmp_path / "mark")))
    for name in ("config.json", "preprocessor_config.json"):
        values = json.loads((folder / name).read_text())
        values["auto_map"] = dict.fromkeys(AUTO, "theirs.Theirs")
        (folder / name).write_text(json.dumps(values))
    return folder


@pytest.fixture
def always_yes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A terminal on which somebody types "y" to whatever is asked."""
    ours, theirs = pty.openpty()
    os.write(ours, b"y\n" * 9)
    with os.fdopen(theirs, "r") as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        assert sys.stdin.isatty()
        yield
    os.close(ours)


@pytest.mark.usefixtures("always_yes")
def test_a_checkpoints_code_never_runs_whatever_is_typed(with_code: Path, tmp_path: Path) -> None:
    notes = load_checkpoint(str(with_code)).notes
    assert notes == ("not run: the code that the checkpoint brings (auto_map in config.json)",)
    load_checkpoint(f"random:{with_code}")
    values = json.loads((with_code / "config.json").read_text())
    (with_code / "config.json").write_text(json.dumps({**values, "model_type": "of-their-own"}))
    for spec in (str(with_code), f"random:{with_code}"):
        with pytest.raises(ModelError, match="of the kind 'of-their-own'; hser runs hubert"):
            load_checkpoint(spec)
    assert not (tmp_path / "mark").exists()


class Opens:
    """What a pickle runs when it is read as Python does."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


@pytest.mark.parametrize("old_format", [True, False])
def test_a_pickle_of_weights_with_code_is_refused(
    old_format: bool, checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    import torch

    folder = tmp_path / "model"
    folder.mkdir()
    shutil.copy(checkpoint("hubert") / "config.json", folder)
    weights = {"masked_spec_embed": Opens(tmp_path / "mark")}
    torch.save(weights, folder / "pytorch_model.bin", _use_new_zipfile_serialization=not old_format)
    with pytest.raises(ModelError, match=r"cannot read the weights of .*pytorch_model\.bin: UnpicklingError"):
        load_checkpoint(str(folder))
    assert not (tmp_path / "mark").exists()


# Parts of a run


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    rng = np.random.default_rng(0)
    for k in range(3):
        soundfile.write(folder / f"{k}.wav", rng.uniform(-0.3, 0.3, 8_000), 16_000)
    run(folder, Options(model="mfcc", pooling="mean"), folder / "run")
    return folder / "run"


@pytest.fixture
def part(whole: Path, tmp_path: Path) -> Path:
    """The part of a run's copy. What it is to be made of instead lies beside the run."""
    copy = shutil.copytree(whole, tmp_path / "run")
    (path,) = (copy / "parts").glob("part-*.h5")
    shutil.copy(path, tmp_path / "elsewhere.h5")
    return Path(path)


DATASET = "embeddings/mean"


ELSEWHERE = "../../elsewhere.h5"
# Where in the part stands what instead.
LINKS: dict[str, tuple[str, Callable[[h5py.File], object]]] = {
    "external link": (DATASET, lambda h5: h5py.ExternalLink(ELSEWHERE, DATASET)),
    "soft link": (DATASET, lambda h5: h5py.SoftLink("/start")),
    "link to a group elsewhere": ("embeddings", lambda h5: h5py.ExternalLink(ELSEWHERE, "embeddings")),
    "groups in a ring": ("labels/again", lambda h5: h5["/"]),
}


def point_out(part: Path, way: str) -> None:
    """Have a part point out of itself, one way or another."""
    with h5py.File(part, "r+") as h5:
        values, attributes = h5[DATASET][:], dict(h5[DATASET].attrs)
        if way in LINKS:
            name, link = LINKS[way]
            h5.pop(name, None)
            h5[name] = link(h5)
            return
        del h5[DATASET]
        if way == "external storage":
            raw = part.parents[2] / "raw.bin"
            raw.write_bytes(values.tobytes())
            storage = [(str(raw), 0, values.nbytes)]
            made = h5.create_dataset(DATASET, values.shape, values.dtype, external=storage)
        else:
            made = make_virtual(h5, values, "parts/part-00000001.h5" if "contents" in way else ELSEWHERE)
        made.attrs.update(attributes)
        if way == "virtual as contents":  # says that it is a table of contents, which may be virtual
            h5.attrs["kind"] = "contents"


def make_virtual(h5: h5py.File, like: Any, source: str) -> h5py.Dataset:
    layout = h5py.VirtualLayout(like.shape, like.dtype)
    layout[...] = h5py.VirtualSource(source, DATASET, like.shape, like.dtype)
    return h5.create_virtual_dataset(DATASET, layout)


@pytest.mark.parametrize("way", [*LINKS, "external storage", "virtual", "virtual as contents"])
def test_a_part_that_points_out_of_itself_is_refused_by_every_reader(
    way: str, part: Path, whole: Path
) -> None:
    run_folder, message = part.parents[1], "which in no file of a run is so"
    assert Store(run_folder).load(pooling="mean").shape[0] == 3
    point_out(part, way)
    for reader in (
        lambda: Store(run_folder),
        lambda: verify(run_folder),
        lambda: read_info(part, (), 1),
        lambda: run(whole.parent, Options(model="mfcc", pooling="mean"), run_folder),
    ):
        with pytest.raises(StoreError, match=message) as error:
            reader()
        assert str(part) in str(error.value)
    assert part.exists()  # not ours to remove


@pytest.mark.parametrize("way", ["external link", "external storage", "virtual"])
def test_a_packed_file_that_points_out_of_itself_is_refused(way: str, whole: Path, tmp_path: Path) -> None:
    from extractor.store.pack import pack

    (tmp_path / "a" / "b").mkdir(parents=True)
    packed = tmp_path / "a" / "b" / "packed.h5"
    pack(whole, packed)
    assert len(Store(packed)) == 3
    point_out(packed, way)
    with pytest.raises(StoreError, match="which in no file of a run is so"):
        Store(packed)


def test_the_table_of_contents_names_parts_of_its_run_alone(whole: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(whole, tmp_path / "run")
    contents = copy / "embeddings.h5"
    with open_part(contents) as h5:
        assert h5[DATASET].is_virtual and np.isfinite(h5[DATASET][:]).all()
    outside = ("/etc/passwd", "../elsewhere.h5", "parts/../../elsewhere.h5", "elsewhere.h5")
    for source in outside:
        with h5py.File(contents, "r+") as h5:
            make_virtual(h5, h5.pop(DATASET), source)
        with pytest.raises(StoreError, match="embeddings/mean is read from"):
            Store(contents)


# YAML


@pytest.mark.parametrize(
    "text", ["!!python/object/apply:os.system ['touch mark']", "!!python/name:os.system"]
)
def test_yaml_makes_no_objects(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from classifiers.training.config import read_yaml
    from extractor.augment.config import load_yaml
    from extractor.errors import HserError

    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(f"features: {text}\naugment: {text}\n")
    for read in (read_yaml, load_yaml):
        with pytest.raises(HserError):
            read(tmp_path / "c.yaml")
    assert not (tmp_path / "mark").exists()
