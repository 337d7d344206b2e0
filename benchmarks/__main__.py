"""All benchmarks, one after another, each in a process of its own.

    python -m benchmarks [NAME ...]

Each is also run on its own, with its options, as `python -m benchmarks.encoder`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence

from benchmarks.harness import CANNOT_RUN

BENCHMARKS = {
    "padding": "what padded batches do to an embedding",
    "precision": "embeddings in fewer bits against fp32",
    "products": "the building blocks on a CPU",
    "encoder": "hser against transformers",
    "choices": "what each choice of the CPU's forward pass gives",
    "decode": "decoding against soundfile",
    "write": "committing against plain h5py",
    "memory": "resident memory of whole runs",
    "kernels": "each kernel against torchaudio and torch",
    "augment": "augmentation against encoding, on a CPU",
    "index": "search indexes against plain FAISS and scikit-learn",
    "training": "hser-train on one layer against the whole array in memory",
    "accuracy": "classifiers' figures on real recordings",
}


def main(argv: Sequence[str] | None = None) -> int:
    """0 when all ran, those that cannot run here left out; 1 when one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="name", help=f"some of: {', '.join(BENCHMARKS)}")
    names = parser.parse_args(argv).names or list(BENCHMARKS)
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"no benchmark {unknown[0]!r}; there are: {', '.join(BENCHMARKS)}")
    failed = []
    for name in names:
        print(f"\n== {name}: {BENCHMARKS[name]}", flush=True)
        code = subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=False).returncode
        if code == CANNOT_RUN:
            print(f"{name}: skipped, it cannot run here")
        elif code:
            failed.append(name)
            print(f"{name}: failed with exit code {code}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
