"""HDF5 files that would have other files read: refused before any of their datasets is.

HDF5 can keep a dataset's values in another file, by external storage, by a link or by a virtual dataset. A
part has its values itself, whatever its origin says; the table of contents alone is virtual, over the
parts beside it (``contents.py``).
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

import h5py

from extractor.errors import StoreError
from extractor.store.run_folder import PARTS

_DEPTH = 1  # of groups below the root: embeddings, labels
_PART = re.compile(rf"{PARTS}/part-\d{{8,}}\.h5")  # a source of the table of contents, relative to itself


def refuse_outside(path: Path) -> None:
    """Raises ``StoreError`` for a file that points out of itself; what h5py raises comes through."""
    there = path.stat()
    problem = _points_outside(path, there.st_dev, there.st_ino, there.st_size, there.st_mtime_ns)
    if problem:
        raise StoreError(
            f"{path}: {problem}, which in no file of a run is so: hser did not write it. Take the run from"
            " where it is from again, or delete this file"
        )


# Readers open a file for every piece that they read, and this takes ten times as long as opening.
@functools.lru_cache(maxsize=1 << 16)
def _points_outside(path: Path, *_identity: int) -> str | None:
    with h5py.File(path, "r", locking=False) as h5:
        contents = h5.attrs.get("kind") == "contents" and path.parent.name != PARTS
        groups = [(h5.id, "", 0)]
        while groups:
            group, prefix, depth = groups.pop()
            for k in range(group.get_num_objs()):
                raw = group.get_objname_by_idx(k)
                name = f"{prefix}{raw.decode('utf-8', 'backslashreplace')}"
                # Hard links are names of what is in the file.
                if group.links.get_info(raw).type != h5py.h5l.TYPE_HARD:
                    return f"{name} is a link to something else"
                item = h5py.h5o.open(group, raw)
                if isinstance(item, h5py.h5g.GroupID):
                    if depth == _DEPTH:
                        return f"{name} is a group in a group"
                    groups.append((item, f"{name}/", depth + 1))
                elif isinstance(item, h5py.h5d.DatasetID):
                    problem = _kept_outside(item, contents)
                    if problem:
                        return f"dataset {name} {problem}"
    return None


def _kept_outside(dataset: h5py.h5d.DatasetID, contents: bool) -> str | None:
    made = dataset.get_create_plist()
    if made.get_external_count():
        return "is kept in another file"
    if made.get_layout() != h5py.h5d.VIRTUAL:
        return None
    sources = (made.get_virtual_filename(k) for k in range(made.get_virtual_count()))
    foreign = next((source for source in sources if not contents or not _PART.fullmatch(source)), None)
    return None if foreign is None else f"is read from {foreign!r}"
