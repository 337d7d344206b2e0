"""Plants known faults one at a time and names those that no test notices: ``make mutants``.

``mutants.toml`` has a table a fault: the file, the text that is there, the text that takes its place, the
tests that are to notice, and a name where these do not say enough. The sources are copied first; nothing
is changed where they are. The list grows with every fault that was found outside the tests.

    python tests/mutants.py                all of them
    python tests/mutants.py eps channel    those with one of these words in their name or file
    python tests/mutants.py --check        only whether each text still stands where the list says, once

Exit code 1 where a fault survived, or where the list no longer fits the sources.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIST = Path(__file__).with_name("mutants.toml")
COPIED = ("extractor", "classifiers", "cuda_kernels", "benchmarks", "tests", "pyproject.toml", "README.md")
MOST_SECONDS = 600  # a fault that makes its tests hang has been noticed
NO_TESTS = 5  # pytest's exit code where none was collected


@dataclass(frozen=True, slots=True)
class Mutant:
    """One planted fault."""

    file: str
    old: str
    new: str
    tests: tuple[str, ...]  # files of `tests/`, or single tests in them
    name: str

    def problem(self, root: Path) -> str | None:
        """Why it cannot be planted, if it cannot."""
        path = root / self.file
        if not path.exists():
            return f"{self.name}: there is no {self.file}"
        if (count := path.read_text("utf-8").count(self.old)) != 1:
            return f"{self.name}: {self.old!r} stands {count} times in {self.file}, not once"
        missing = [test for test in self.tests if not (root / test.partition("::")[0]).exists()]
        return f"{self.name}: there is no {missing[0]}" if missing else None


def read(path: Path = LIST) -> list[Mutant]:
    def name(table: dict[str, str]) -> str:
        old, new = (" ".join(table[which].split()) for which in ("old", "new"))
        return f"{table['file']}: {old} -> {new or 'nothing'}"

    tables = tomllib.loads(path.read_text("utf-8"))["mutant"]
    return [Mutant(**{"name": name(table)} | table | {"tests": tuple(table["tests"])}) for table in tables]


def run_tests(root: Path, tests: tuple[str, ...]) -> int:
    """pytest's exit code, with the sources of ``root``."""
    command = [
        sys.executable,
        *["-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m"],
        "not slow and not gpu",
        *tests,
    ]
    environment = os.environ | {"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, timeout=MOST_SECONDS)
    except subprocess.TimeoutExpired:
        return 1
    if done.returncode == NO_TESTS:
        raise SystemExit(f"no test was found in {' '.join(tests)}")
    return done.returncode


def copy_sources(root: Path) -> None:
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, root / name)
    shared = ROOT.parent / "shared"
    if shared.is_dir():  # real recordings lie beside the checkout
        (root.parent / "shared").symlink_to(shared)


def survivors(mutants: list[Mutant], root: Path) -> list[str]:
    """Names of the faults that their tests did not notice."""
    green: dict[tuple[str, ...], bool] = {}  # a test that is red anyway notices nothing
    alive = []
    for number, mutant in enumerate(mutants, 1):
        if mutant.tests not in green:
            green[mutant.tests] = run_tests(root, mutant.tests) == 0
        if not green[mutant.tests]:
            alive.append(f"{mutant.name} (its tests are red without it)")
            continue
        path = root / mutant.file
        sound = path.read_text("utf-8")
        path.write_text(sound.replace(mutant.old, mutant.new), "utf-8")
        noticed = run_tests(root, mutant.tests) != 0
        path.write_text(sound, "utf-8")
        word = "noticed" if noticed else "SURVIVED"
        print(f"{number} of {len(mutants)}: {mutant.name}: {word}", flush=True)
        if not noticed:
            alive.append(mutant.name)
    return alive


def main(words: list[str]) -> int:
    mutants = read()
    only_check = "--check" in words
    words = [word for word in words if word != "--check"]
    if words:
        mutants = [m for m in mutants if any(word in f"{m.name} {m.file}" for word in words)]
    problems = [problem for mutant in mutants if (problem := mutant.problem(ROOT))]
    for problem in problems:
        print(problem)
    if problems or only_check:
        return bool(problems)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "sources"
        root.mkdir()
        copy_sources(root)
        alive = survivors(mutants, root)
    print(f"{len(mutants) - len(alive)} of {len(mutants)} faults were noticed")
    for name in alive:
        print(f"survived: {name}")
    return bool(alive)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
