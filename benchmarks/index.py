"""hser's indexes, each kind, against plain FAISS used directly and scikit-learn's NearestNeighbors.

    python -m benchmarks.index [--rows 1000000] [--dim 1024] [--kinds flat,ivf,ivfpq,hnsw] [--out FILE.json]

Rows are synthetic, in clusters, with a spectrum as real embeddings have it, and written to a run's store
first; an index is then built from it as ``hser-lookup build`` does. Plain FAISS searches the very object that
was built, with the same parameters, on vectors that are of length one already: what hser adds is the rest.
With ``--plain-build`` FAISS also builds the same index itself, from an array in memory. Queries are of the
same clusters and not in the store. Recall is against FAISS's flat index. scikit-learn is brute force on unit
vectors. Kinds that are not asked for stay as they are in the result file, if it is of the same size and
settings. A million rows of 1,024 take 4 GB of memory a copy, up to two copies, and 12 GB of disk.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import harness
from benchmarks.readme import show
from benchmarks.stand_ins import write_store
from extractor.index import KINDS, Index, build
from extractor.index.exact import unit
from extractor.index.generation import folder_of, read_head
from extractor.index.kinds import load_faiss

K = 10
LAYER, POOLING = 0, "mean"
BATCH_ROWS = 8192
ROWS_A_CLUSTER = 200
# Within a cluster, of the distance between clusters: neighbours are mostly of one's own cluster, and
# some of those beside it
SPREAD = 0.7
# Variance of principal component k falls as k to this, as it does in Whisper's embeddings of RAVDESS: half
# of it lies in ten components. With equal ones clusters would have no neighbours, and HNSW's graph no way
# from one to the next.
FALL = -1.2
SINGLE_QUERIES = 20  # searched one at a time
QUICK = 1.0  # seconds of a batch: searches below are a matter of noise, and are repeated more often
MORE_REPEATS = 8


@dataclass(frozen=True, slots=True)
class Clusters:
    """Rows in blocks, the same each time a block is asked for."""

    rows: int
    dim: int

    def block(self, number: int, count: int) -> np.ndarray:
        """float32 ``[count, dim]``; block -1 is the queries."""
        num_clusters = max(1, self.rows // ROWS_A_CLUSTER)
        centres = np.random.default_rng(0).standard_normal((num_clusters, self.dim), dtype=np.float32)
        rng = np.random.default_rng([1, number + 1])
        noise = rng.standard_normal((count, self.dim), dtype=np.float32)
        x = centres[rng.integers(0, num_clusters, count)] + np.float32(SPREAD) * noise
        return x * np.arange(1, self.dim + 1, dtype=np.float32) ** np.float32(FALL / 2)

    def blocks(self) -> Iterator[np.ndarray]:
        for number, start in enumerate(range(0, self.rows, BATCH_ROWS)):
            yield self.block(number, min(BATCH_ROWS, self.rows - start))


def opened_bytes(run: Path) -> int:
    """What an open index takes; in a process of its own, since freed memory is used again."""
    load_faiss()
    before = harness.process_bytes("RssAnon")
    index = Index.open(run, LAYER, POOLING, mapped=False)
    index.search(np.ones((1, index.dim), np.float32), 1)
    return harness.process_bytes("RssAnon") - before


def plain_build(x: np.ndarray, index: Index) -> float:
    """Seconds that FAISS takes for the same index, from an array in memory."""
    from extractor.index.building import new_index, sample
    from extractor.index.kinds import Parameters

    names = ("factory", "num_lists", "training_rows")
    parameters = Parameters(**{name: index.parameters[name] for name in names})
    began = time.perf_counter()
    faiss_index = new_index(x.shape[1], parameters)
    if parameters.training_rows:
        faiss_index.train(x[sample(np.arange(len(x)), parameters.training_rows, 0)])
    for start in range(0, len(x), BATCH_ROWS):
        faiss_index.add(x[start : start + BATCH_ROWS])
    return time.perf_counter() - began


def speed(search: Callable[[np.ndarray], Any], queries: np.ndarray, alone: bool = False) -> float:
    """Queries per second, in one batch or one by one."""
    batches = np.split(queries, len(queries)) if alone else [queries]
    began = time.perf_counter()
    for batch in batches:
        search(batch)
    return len(queries) / (time.perf_counter() - began)


def contenders(
    name: str, search: Callable[[np.ndarray], Any], queries: np.ndarray
) -> dict[str, Callable[[], float]]:
    return {
        name: partial(speed, search, queries),
        f"{name}, one by one": partial(speed, search, queries[:SINGLE_QUERIES], alone=True),
    }


def recall(found: np.ndarray, true: np.ndarray) -> float:
    return float(np.mean([np.isin(a, b).mean() for a, b in zip(found, true, strict=True)]))


def measure_kind(
    run: Path, kind: str, queries: np.ndarray, true: np.ndarray, repeats: int, x: np.ndarray | None
) -> dict[str, Any]:
    """Build one kind and search it; ``x`` where plain FAISS is to build it as well."""
    faiss = load_faiss()
    before = harness.forget_peak()
    began = time.perf_counter()
    build(run, LAYER, POOLING, kind)
    seconds, peak = time.perf_counter() - began, harness.peak_bytes() - before
    head = read_head(run, LAYER, POOLING)
    index = Index.open(run, LAYER, POOLING, mapped=False)
    path = folder_of(run, LAYER, POOLING) / f"{head.generation}.faiss"
    # The same object, not a second one from the file: of two copies of the vectors in memory one may lie in
    # large pages and be searched a fifth faster.
    plain = index.faiss_index
    parameters = KINDS[kind].search_parameters(faiss, head.effort, None)
    search = partial(plain.search, k=K, params=parameters)
    units = unit(queries)
    quick = len(units) / speed(search, units) < QUICK
    ways = contenders("hser", lambda q: index.search(q, K), queries) | contenders("FAISS", search, units)
    return {
        "parameters": dict(index.parameters),
        "build_seconds": seconds,
        "faiss_build_seconds": None if x is None else plain_build(x, index),
        "peak_build_bytes": peak,
        "memory_bytes": harness.in_child(opened_bytes, run),
        "file_bytes": path.stat().st_size,
        "recall_at_10": recall(index.search(queries, K)[1], true),
        "queries_per_second": harness.take_turns(ways, repeats * (MORE_REPEATS if quick else 1)),
    }


def scikit_learn(x: np.ndarray, queries: np.ndarray, true: np.ndarray, repeats: int) -> dict[str, Any]:
    from sklearn.neighbors import NearestNeighbors

    # Of unit vectors, the nearest are those of the largest cosine; and no copy is made, as for "cosine"
    neighbours = NearestNeighbors(n_neighbors=K, algorithm="brute", metric="euclidean").fit(x)
    units = unit(queries)
    found = neighbours.kneighbors(units, return_distance=False)
    return {
        "recall_at_10": recall(found, true),
        "queries_per_second": harness.take_turns(
            contenders("scikit-learn", neighbours.kneighbors, units), repeats
        ),
        "memory_bytes": x.nbytes,
    }


def main(argv: Sequence[str] | None = None) -> None:
    args = harness.arguments(
        __doc__,
        argv,
        rows=1_000_000,
        dim=1024,
        queries=200,
        kinds=",".join(KINDS),
        repeats=5,
        plain_build=(False, "let plain FAISS build each index, too"),
        scratch=(Path, "folder for the store (default: temporary)"),
    )
    faiss = load_faiss()
    data = Clusters(args.rows, args.dim)
    queries = data.block(-1, args.queries)
    x = np.empty((data.rows, data.dim), np.float32)  # of length one
    for number, block in enumerate(data.blocks()):
        x[number * BATCH_ROWS :][: len(block)] = unit(block)
    flat = faiss.IndexFlatIP(args.dim)
    flat.add(x)
    _, true = flat.search(unit(queries), K)
    del flat
    about = {
        "what": "indexes of synthetic rows: time to build, memory, recall@10, queries per second",
        "data": f"clusters of {ROWS_A_CLUSTER}, spread {SPREAD}, variances as k^{FALL}",
        "rows": args.rows,
        "dim": args.dim,
        "queries": args.queries,
        "faiss": faiss.__version__,
        "threads": faiss.omp_get_max_threads(),
    }
    results = harness.measured_before(harness.result_path("index", args.out), about, "kinds")
    results["scikit-learn"] = scikit_learn(x, queries, true, args.repeats)
    built_from = x if args.plain_build else None
    del x
    with tempfile.TemporaryDirectory(prefix="hser-index-", dir=args.scratch) as folder:
        run = Path(folder) / "run"
        write_store(run, data.rows, (block[:, None] for block in data.blocks()), BATCH_ROWS)
        for kind in args.kinds.split(","):
            results[kind] = measure_kind(run, kind, queries, true, args.repeats, built_from)
            # A kind may take an hour: what is measured is kept.
            harness.write_result("index", {**about, "kinds": results}, args.out)
    show("index", {**about, "kinds": results})


if __name__ == "__main__":
    main()
