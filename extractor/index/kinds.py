"""The kinds of FAISS index, when each is taken, and its parameters.

The parameters are those of FAISS's wiki, *Guidelines to choose an index* and *The index factory*,
as functions of rows N and dimensions D. How hard a search tries (``effort``) is not guessed: it is
tuned when the index is built, on stored rows (``building.py``), and stored with the recall it reached.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from extractor.errors import SettingsError, unknown

Effort = dict[str, int]

# Scanning 0.8 GB takes about 0.1 s on two cores: below that nothing approximate is worth its error.
FLAT_VALUES = 200_000 * 1024
MEMORY_SHARE = 0.5  # of the machine's memory that an index may take while it is built
TRAINING_SHARE = 1 / 8  # of the machine's memory that training rows may take
ROWS_A_LIST = 64  # of training; the guidelines say 30 to 256 a list, FAISS warns below 39
LEAST_ROWS_A_LIST = 39
PQ_CENTROIDS = 256  # of 8 bits
HNSW_LINKS = 32  # the guidelines say 4 to 64
MOST_CODE_BYTES = 64
CODED_BYTES = MOST_CODE_BYTES + 8  # a code and its row number
REFINEMENTS = {"SQfp16": 2, "SQ8": 1}  # bytes a value
# Lists by rows: 4 sqrt(N) up to a million, then these. Finding the nearest of so many lists is
# itself a search, and done with HNSW.
MANY_LISTS = ((100_000_000, 1 << 20), (10_000_000, 1 << 18), (1_000_000, 1 << 16))


@dataclass(frozen=True, slots=True)
class Parameters:
    """How an index of N rows is made. ``training_rows`` is 0 where nothing is trained."""

    factory: str  # as ``faiss.index_factory`` reads it
    num_lists: int = 0
    training_rows: int = 0

    @property
    def coded(self) -> bool:
        """Vectors are rotated and kept as codes."""
        return self.factory.startswith("OPQ")

    @property
    def refined(self) -> bool:
        """Neighbours found by codes are ranked anew by vectors."""
        return "Refine" in self.factory


@dataclass(frozen=True, slots=True)
class Kind:
    """``bytes_a_row``: of D dimensions, in memory, at the most. ``efforts``: in ascending order."""

    exact: bool
    true_similarities: bool  # of what it finds, though it may not find all
    least_rows: int
    parameters: Callable[[int, int, int], Parameters]  # rows, dim, memory (bytes)
    bytes_a_row: Callable[[int], int]
    efforts: Callable[[Parameters], Iterator[Effort]]
    search_parameters: Callable[[Any, Effort, Any], Any]  # faiss, effort, selector


def load_faiss() -> Any:
    """The module. Raises ``SettingsError`` that says what to install."""
    try:
        import faiss
    except ImportError as error:
        raise SettingsError(
            "indexes need FAISS: `pip install faiss-cpu` (or faiss-gpu, which also runs without a GPU; "
            f"never both) - {error}"
        ) from error
    return faiss


def machine_memory() -> int:
    """Bytes of memory of the machine, or of the container where that is less."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.exists() else "max"
    return min(memory, int(text)) if text.isdigit() else memory


def choose(kind: str, rows: int, dim: int, memory: int) -> str:
    """The name in ``KINDS`` that ``kind`` (a name, or ``auto``) comes to for so many rows.

    Raises ``SettingsError`` for an unknown kind, or one that cannot be trained on so few rows.
    """
    if kind == "auto":
        if rows * dim <= FLAT_VALUES:
            return "flat"
        return "ivf" if rows * KINDS["ivf"].bytes_a_row(dim) <= MEMORY_SHARE * memory else "ivfpq"
    if kind not in KINDS:
        raise SettingsError(unknown("kind of index", kind, ["auto", *KINDS]))
    if rows < KINDS[kind].least_rows:
        raise SettingsError(
            f"an index of kind {kind} is trained on at least {KINDS[kind].least_rows:,} rows, "
            f"there are {rows:,}; use --kind flat, which is exact and as fast for so few"
        )
    return kind


def lists_of(rows: int, dim: int, memory: int) -> tuple[int, int]:
    """Number of lists, and of rows to train them on."""
    most = max(LEAST_ROWS_A_LIST, min(rows, int(memory * TRAINING_SHARE) // (4 * dim)))
    wanted = next((lists for above, lists in MANY_LISTS if rows > above), round(4 * math.sqrt(rows)))
    lists = max(1, min(wanted, most // LEAST_ROWS_A_LIST))
    return lists, min(most, lists * ROWS_A_LIST)


def _lists(num_lists: int) -> str:
    return f"IVF{num_lists}_HNSW{HNSW_LINKS}" if num_lists >= MANY_LISTS[-1][1] else f"IVF{num_lists}"


def _ivf(rows: int, dim: int, memory: int) -> Parameters:
    num_lists, training_rows = lists_of(rows, dim, memory)
    return Parameters(f"{_lists(num_lists)},Flat", num_lists, training_rows)


def _ivfpq(rows: int, dim: int, memory: int) -> Parameters:
    """Codes of one byte for every four dimensions that OPQ keeps, 64 at most. With codes alone recall
    ends well below 0.95, so neighbours are ranked anew by the most exact vectors that fit."""
    num_lists, training_rows = lists_of(rows, dim, memory)
    code = max(1, min(MOST_CODE_BYTES, dim // 4))
    factory = f"OPQ{code}_{min(dim, 4 * code)},{_lists(num_lists)},PQ{code}"
    for vectors, value_bytes in REFINEMENTS.items():
        if rows * (value_bytes * dim + CODED_BYTES) <= MEMORY_SHARE * memory:
            factory += f",Refine({vectors})"
            break
    training_rows = min(rows, max(training_rows, PQ_CENTROIDS * ROWS_A_LIST))
    return Parameters(factory, num_lists, training_rows)


def _ivf_efforts(parameters: Parameters) -> Iterator[Effort]:
    num_lists = parameters.num_lists
    yield from ({"nprobe": 1 << power} for power in range((num_lists - 1).bit_length()))
    yield {"nprobe": num_lists}


def _ivfpq_efforts(parameters: Parameters) -> Iterator[Effort]:
    refined = [{"k_factor": 8}, {"k_factor": 64}] if parameters.refined else [{}]
    for ranked in refined:
        yield from (effort | ranked for effort in _ivf_efforts(parameters))


def _ivf_search(faiss: Any, effort: Effort, selector: Any) -> Any:
    return faiss.SearchParametersIVF(sel=selector, nprobe=effort["nprobe"])


def _ivfpq_search(faiss: Any, effort: Effort, selector: Any) -> Any:
    coarse = faiss.SearchParametersPreTransform(index_params=_ivf_search(faiss, effort, selector))
    if "k_factor" not in effort:
        return coarse
    return faiss.IndexRefineSearchParameters(k_factor=effort["k_factor"], base_index_params=coarse)


KINDS: dict[str, Kind] = {
    "flat": Kind(
        exact=True,
        true_similarities=True,
        least_rows=0,
        parameters=lambda rows, dim, memory: Parameters("Flat"),
        bytes_a_row=lambda dim: 4 * dim,
        efforts=lambda parameters: iter([{}]),
        search_parameters=lambda faiss, effort, selector: faiss.SearchParameters(sel=selector),
    ),
    "ivf": Kind(
        exact=False,
        true_similarities=True,
        least_rows=LEAST_ROWS_A_LIST,
        parameters=_ivf,
        bytes_a_row=lambda dim: 4 * dim + 8,
        efforts=_ivf_efforts,
        search_parameters=_ivf_search,
    ),
    "ivfpq": Kind(
        exact=False,
        true_similarities=False,
        least_rows=LEAST_ROWS_A_LIST * PQ_CENTROIDS,
        parameters=_ivfpq,
        bytes_a_row=lambda dim: 2 * dim + CODED_BYTES,
        efforts=_ivfpq_efforts,
        search_parameters=_ivfpq_search,
    ),
    "hnsw": Kind(
        exact=False,
        true_similarities=True,
        least_rows=1,
        parameters=lambda rows, dim, memory: Parameters(f"HNSW{HNSW_LINKS},Flat"),
        bytes_a_row=lambda dim: (
            4 * dim + 8 * HNSW_LINKS
        ),  # twice as many links on the lowest level, of 4 bytes
        efforts=lambda parameters: ({"efSearch": 1 << power} for power in range(4, 13)),
        search_parameters=lambda faiss, effort, selector: faiss.SearchParametersHNSW(
            sel=selector, efSearch=effort["efSearch"]
        ),
    ),
}
