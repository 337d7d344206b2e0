"""The import directions of the design, read from the sources."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Who imports whom among the packages.
MAY_IMPORT = {
    "cuda_kernels": set(),
    "extractor": {"cuda_kernels"},
    "classifiers": {"extractor"},
    "benchmarks": {"extractor", "classifiers", "cuda_kernels", "tests"},
    "tests": {"extractor", "classifiers", "cuda_kernels", "benchmarks"},
}
# Inside a package each folder imports only what stands below it, that is behind it here.
ORDER = {
    "extractor": "commands run plan index store encoders augment audio inputs progress types errors",
    "classifiers": "demo commands service report studies training charts lookup results models data",
}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


SOURCES = {
    module_name(path): path for package in MAY_IMPORT for path in sorted((ROOT / package).rglob("*.py"))
}


def imported(path: Path) -> set[str]:
    """Our modules that a file imports anywhere, for types too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; name the package"
            module = node.module or ""
            inner = {f"{module}.{alias.name}" for alias in node.names}
            names.update(inner & SOURCES.keys())
            if not inner <= SOURCES.keys():
                names.add(module)
    return names & SOURCES.keys()


IMPORTS = {name: imported(path) for name, path in SOURCES.items()}


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_packages_import_downwards_only(package: str) -> None:
    for name in IMPORTS:
        if name.split(".")[0] == package:
            others = {other.split(".")[0] for other in IMPORTS[name]} - {package}
            assert others <= MAY_IMPORT[package], f"{name} imports {sorted(others)}"


@pytest.mark.parametrize("package", ORDER)
def test_folders_import_what_stands_below_them(package: str) -> None:
    order = ORDER[package].split()
    for name in IMPORTS:
        if not name.startswith(f"{package}."):  # the package's own face may import all of it
            continue
        folder = name.split(".")[1]
        assert folder in order, f"{folder} has no place in the order of {package}"
        for other in IMPORTS[name]:
            if other.startswith(f"{package}."):
                assert order.index(other.split(".")[1]) >= order.index(folder), f"{name} imports {other}"


def test_no_modules_import_each_other_in_a_circle() -> None:
    try:
        TopologicalSorter(IMPORTS).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_what_the_guide_names_is_there() -> None:
    """Each file that docs/develop.md names, and in it what is named just before it."""
    guide = (ROOT / "docs" / "develop.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(\w+)(?:\.\w+)?`[ ,]+\(?`([\w/]+\.py)`", guide))
    assert len(named) > 15
    for name, file in named:
        text = (ROOT / file).read_text(encoding="utf-8")
        assert re.search(rf"^(def|class) {name}\b|^{name}\b ?[:=]|^@.*\ndef {name}\b", text, re.M), (
            name,
            file,
        )
    for file in re.findall(r"`((?:extractor|classifiers|tests)/[\w/]+\.py)`", guide):
        assert (ROOT / file).is_file(), file


@pytest.mark.parametrize("package", ORDER)
def test_a_package_has_few_rooms(package: str) -> None:
    entries = [path.name for path in (ROOT / package).iterdir() if path.name != "__pycache__"]
    assert len(entries) <= 14, sorted(entries)


@pytest.mark.parametrize(
    "command",
    [
        "extractor",
        *(f"extractor.commands.{name}" for name in ("extract", "augment", "store")),
        *(f"classifiers.commands.{name}" for name in ("train", "evaluate", "predict", "report", "lookup")),
    ],
)
def test_commands_start_without_the_heavy_packages(command: str) -> None:
    """`--help` answers at once because nothing slow is imported for it."""
    heavy = [
        *("torch", "transformers", "torchaudio", "h5py", "numpy", "av", "nvidia", "rich", "faiss", "sklearn"),
        *("matplotlib", "scipy", "skops", "umap", "xgboost", "optuna", "pandas"),
    ]
    code = f"import sys, {command}; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert out.stdout.strip() == "[]"
