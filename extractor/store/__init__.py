"""The store: a folder of immutable HDF5 parts that a kill at any moment cannot break.

In dependency order:

    aside                       write a file aside, sync it, rename it
    run_folder                  names and text files of a run folder; is it the run that was asked for?
    locks                       one writer a shard
    hdf5                        HDF5 files of a run: their format, how they are opened and checked
    parts                       what goes into one, from batches or from other files, and how it is written
    edition                     the manifest is written, grows, is edited; rows.h5, derived of it
    contents                    embeddings.h5: virtual datasets over the parts
    sources                     the finished files and the rows in each
    reader                      `Store`
    writer                      `RunWriter`: open or resume, commit, merge, close
    where                       conditions over labels
    edit, merge, pack, verify   behind `hser-store`
"""

from extractor.store.reader import Store

__all__ = ["Store"]
