"""Nearest neighbours of stored embeddings: FAISS indexes beside a run's parts, one a (pooling, layer).

    RUN/index/mean-12/index.json      the one file that says which generation is valid
                      3.faiss         what plain FAISS reads; its row k is ``order[k]`` of
                      3.npz           ``order`` (manifest positions), what was removed, normalisation

In dependency order:

    problems        what can be wrong with an index, and the command that puts it right
    normalisation   none, whitening, each speaker's own mean and deviation; unit vectors
    kinds           the kinds of FAISS index and their parameters; the only importer of faiss
    generation      the files: written aside, renamed, checked when read
    search          exact and approximate search; `Index`
    building        from the store, a block of rows at a time; removal of rows; after an edit of the run
    writer          `IndexWriter`: fed while a run extracts
"""

from extractor.index.building import build, follow, remove
from extractor.index.generation import list_indexes
from extractor.index.kinds import KINDS
from extractor.index.normalisation import NORMALISATIONS
from extractor.index.problems import BrokenIndex, IndexMissing, IndexStale
from extractor.index.search import Index
from extractor.index.writer import IndexWriter

__all__ = [
    "KINDS",
    "NORMALISATIONS",
    "BrokenIndex",
    "Index",
    "IndexMissing",
    "IndexStale",
    "IndexWriter",
    "build",
    "follow",
    "list_indexes",
    "remove",
]
