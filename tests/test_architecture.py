"""The import directions of the design, read from the sources."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("cuda_kernels", "extractor", "classifiers", "benchmarks", "tests")

MAY_IMPORT = {
    "cuda_kernels": set(),
    "extractor": {"cuda_kernels"},
    "classifiers": {"extractor"},
    "benchmarks": {"extractor", "classifiers", "cuda_kernels", "tests"},
    "tests": set(PACKAGES),
}

# Inside `extractor`, bottom to top. A stage is a set of files that belong together; stages do not
# import each other.
BOTTOM = {
    "types",
    "errors",
    "declared",
    "formats",
    "interruption",
    "segments",
    "windows",
    "backends",
    "where",
}
STAGES = {
    "manifest": {"corpora", "manifest_file", "source_labels", "ids", "manifest", "walk"},
    "probe": {"probe"},
    "plan": {"plan"},
    "decode": {"flac", "waveform", "room", "decode", "ahead"},
    "augment": {"augment"},
    "encode": {"encoders"},
    "pool": {"pooling"},
    "store": {"store", "index"},
    "progress": {"progress"},
}
ENGINE = {
    *("batch", "budget", "committing", "copies", "device_worker", "devices", "fidelity", "files", "indexing"),
    *(
        "jobs",
        "matching",
        "stamping",
        "remarks",
        "row_recipe",
        "run_changes",
        "run_plan",
        "staging",
        "stages",
    ),
    *("engine", "render", "edit", "merge"),
}
TOP = {"cli", "cli_augment", "pictures", "cli_store", "cli_demo", "synthetic", "__init__"}


def imported(path: Path) -> set[str]:
    """Dotted names of our own modules that a file imports anywhere, for types too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; name the package"
            module = node.module or ""
            names.add(module)
            if module in PACKAGES:
                names.update(f"{module}.{alias.name}" for alias in node.names)
    return {name for name in names if name.split(".")[0] in PACKAGES}


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_downwards_only(package: str) -> None:
    for path in sources(package):
        others = {name.split(".")[0] for name in imported(path)} - {package}
        assert others <= MAY_IMPORT[package], f"{path.name} imports {sorted(others)}"


def piece(path: Path) -> str:
    """The file, or for a file in a folder of `extractor` that folder, by name."""
    return path.relative_to(ROOT / "extractor").parts[0].removesuffix(".py")


def test_every_file_of_the_engine_has_its_place() -> None:
    known = BOTTOM | ENGINE | TOP | {name for files in STAGES.values() for name in files}
    assert {piece(path) for path in sources("extractor")} <= known


def test_stages_do_not_import_each_other() -> None:
    stage_of = {name: stage for stage, files in STAGES.items() for name in files}
    for path in sources("extractor"):
        name = piece(path)
        ours = {n.split(".")[1] for n in imported(path) if n.startswith("extractor.")} - {name}
        if name in BOTTOM:
            assert ours <= BOTTOM, f"{path.name} imports {sorted(ours)}"
        elif name in stage_of:
            allowed = BOTTOM | STAGES[stage_of[name]]
            assert ours <= allowed, f"{path.name} imports {sorted(ours - allowed)}"
        elif name in ENGINE:
            assert not ours & TOP, f"{path.name} imports {sorted(ours & TOP)}"


@pytest.mark.parametrize(
    "module", ["extractor", "extractor.cli", "extractor.cli_augment", "extractor.cli_store"]
)
def test_commands_start_without_the_heavy_packages(module: str) -> None:
    """`--help` answers at once because nothing slow is imported for it."""
    heavy = ["torch", "transformers", "torchaudio", "h5py", "numpy", "av", "nvidia", "rich", "matplotlib"]
    code = f"import sys, {module}; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert out.stdout.strip() == "[]"
