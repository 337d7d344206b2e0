"""The store: a folder of immutable HDF5 parts that a kill at any moment cannot break.

In dependency order:

    aside           write a file aside, sync it, rename it
    run_folder      names and text files of a run folder
    locks           one writer a shard
    outside         HDF5 files that point out of themselves are refused
    parts           one HDF5 part: its format, written and read
    edition         what an edited run says of its rows now: its manifest, and rows.h5 derived of it
    editing         the manifest is written, grows, is edited
    contents        embeddings.h5: virtual datasets over the parts
    sources         the finished files and the rows in each
    reader          `Store`
    fit             what the storage dtype cannot hold
    same_settings   is it the run that was asked for?
    writer          `RunWriter`: open or resume, commit, merge, close
    selection       some rows of a file as a file of another run
    verify, pack    behind `hser-store`
"""

from extractor.store.reader import Store

__all__ = ["Store"]
