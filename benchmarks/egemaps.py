"""openSMILE's eGeMAPSv02 functionals of a folder: features of an outside package, for `benchmarks.accuracy`.

    python -m benchmarks.egemaps ravdess/ --out runs/ravdess-egemaps.npz

88 numbers a recording (Eyben et al. 2016, "The Geneva Minimalistic Acoustic Parameter Set"). Needs
`opensmile`, in any environment: its licence is for research only, so it is no dependency of hser's.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from benchmarks.harness import CANNOT_RUN

SUFFIXES = (".wav", ".flac")
SAY_EVERY = 200  # recordings


def recordings_in(folder: Path) -> dict[str, Path]:
    """Paths by id, the name without suffix, as hser's ids are. Raises ValueError for an id twice."""
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SUFFIXES:
            if path.stem in found:
                raise ValueError(f"{path.stem}: both {found[path.stem]} and {path}")
            found[path.stem] = path
    if not found:
        raise ValueError(f"{folder}: no {' or '.join(SUFFIXES)} here")
    return found


def extract(folder: Path, out: Path) -> None:
    """Write ``id`` [N], ``x`` float32 [N, 88], ``names`` [88] and ``opensmile``, its version."""
    opensmile = import_module("opensmile")  # no dependency: by name, so that types are checked without it
    smile = opensmile.Smile(
        feature_set=opensmile.FeatureSet.eGeMAPSv02, feature_level=opensmile.FeatureLevel.Functionals
    )
    paths = recordings_in(folder)
    x = np.empty((len(paths), len(smile.feature_names)), np.float32)
    for i, path in enumerate(paths.values()):
        x[i] = smile.process_file(str(path)).to_numpy()[0]
        if (i + 1) % SAY_EVERY == 0:
            print(f"{i + 1:,} of {len(paths):,}", flush=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        out,
        id=np.array(list(paths)),
        x=x,
        names=np.array(smile.feature_names),
        opensmile=np.array(opensmile.__version__),
    )
    print(f"written to {out}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    if find_spec("opensmile") is None:
        print("this needs opensmile: pip install opensmile (its licence is for research only)")
        return CANNOT_RUN
    extract(args.folder, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
