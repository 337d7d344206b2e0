"""Nearest neighbours of stored embeddings: FAISS indexes beside a run's parts, one a (pooling, layer).

    RUN/index/mean-12/index.json      the one file that says which generation is valid
                      3.faiss         what plain FAISS reads; its row k is ``order[k]`` of
                      3.npz           ``order`` (manifest positions), normalisation

In dependency order:

    exact           exact search and unit vectors, in memory
    normalisation   none, whitening, each speaker's own mean and deviation
    kinds           the kinds of FAISS index and their parameters; the only importer of faiss
    generation      the files: written aside, renamed, checked when read; what can be wrong with them
    search          exact and approximate search; `Index`
    building        from the store, a block of rows at a time; after an edit of the run
    writer          `IndexWriter`: fed while a run extracts
"""

from extractor.index.building import build, follow, in_memory
from extractor.index.generation import BrokenIndex, IndexMissing, IndexStale, list_indexes
from extractor.index.kinds import KINDS
from extractor.index.search import Index
from extractor.index.writer import IndexWriter

__all__ = [
    "KINDS",
    "BrokenIndex",
    "Index",
    "IndexMissing",
    "IndexStale",
    "IndexWriter",
    "build",
    "follow",
    "in_memory",
    "list_indexes",
]
