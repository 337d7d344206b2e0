"""``Lookup``: which stored recordings are near to a query, and what emotion they have.

Recordings become query vectors by the same recipe as the run's rows (`extractor.run.recipe`). A model
that is not the run's is refused by name of what differs, before anything is encoded.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from classifiers.data.runs import column_of, missing_notes, open_run
from classifiers.lookup.hits import Hits, Neighbour, check_vote, shares_of
from extractor.errors import InputError, SettingsError, StoreError, unknown
from extractor.run.recipe import RECORDINGS_AT_ONCE, RowEncoder
from extractor.store import Store
from extractor.store.where import Factored, factor, parse_where
from extractor.types import Failure, Utterance

if TYPE_CHECKING:
    from extractor.index import Index

Path: TypeAlias = "str | os.PathLike[str]"

ROW_COLUMNS = ("id", "path")  # beside the labels, what `where` can name
OVERFETCHED = 64  # rows left out by asking for so many more; of more than that the index is told
MAX_ROWS = 200_000  # of 1,024 values 0.8 GB in float32; beyond, an index is to be built once
_NEAREST_NAMES = 5


@dataclass(frozen=True, slots=True)
class Rules:
    """Which rows may be neighbours, and how they vote."""

    where: str | None = None  # see `extractor.store.where`
    exclude_speaker: str | Sequence[str] = ()  # these speakers' rows
    exclude_own_speaker: bool = False  # rows of the query's speaker, who must be known
    exclude_own_file: bool = False  # rows of the query's file, or of the same audio under another name
    copies: bool = False  # augmented copies count too
    temperature: float | None = None  # of the vote, see `hits`


@dataclass(frozen=True, slots=True)
class Query:
    """Something to look up."""

    name: str
    vector: np.ndarray  # float32 [D'], as the store has its rows
    path: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    checksum: str | None = None  # of its audio (``Decoded.checksum``)
    row: int | None = None  # where it is a row of the store


class Lookup:
    """A run, an index of it, and its model for queries. Safe to search from several threads.

    The model is loaded at the first recording. ``notes``: what a person should know of how it was
    opened.

    Args:
        run: the run's folder, or a file made by ``hser-store pack``.
        layer, pooling: may be left out where there is one index, or else one layer and pooling. A
            negative layer counts from the last one that is stored.
        device: where query recordings are encoded.
        model: the run's model, where it is no longer found under the name that the run knows.

    Raises:
        StoreError: no run, a run without rows, an index that no longer fits it, or a run too large
            to do without an index.
        SettingsError: an unknown layer or pooling, or several to choose from.
    """

    def __init__(
        self,
        run: Path,
        layer: int | None = None,
        pooling: str | None = None,
        device: str = "auto",
        model: str | None = None,
    ) -> None:
        self.store = open_run(run, incomplete=True)  # a search misleads nobody by what it cannot find yet
        if not len(self.store):
            raise StoreError(f"{self.store.path}: has no rows to look anything up in")
        self.layer, self.pooling = _choose(self.store, layer, pooling)
        self.index, notes = _open_index(self.store, self.layer, self.pooling)
        self.notes = (*notes, *missing_notes(self.store))
        self._encode = RowEncoder(self.store, [self.layer], [self.pooling], device, model)
        self._columns: dict[str, Factored] = {}
        self._clean = self.store.clean  # bool [N]
        self._indexed = np.isin(self.store.positions, self.index.positions)  # bool [N]: rows can be removed

    def __len__(self) -> int:
        return len(self.store)

    def search(
        self,
        query: Path | np.ndarray | None = None,
        k: int = 10,
        *,
        row: str | None = None,
        **rules: Any,
    ) -> Hits:
        """The ``k`` nearest rows of one query, and their vote.

        Args:
            query: a recording, or float32 ``[D']`` pooled as the run's rows are.
            k: fewer are found where fewer rows may be neighbours.
            row: instead of ``query``, the id of a stored row; it is left out itself, and so are
                other copies of its recording.
            **rules: fields of `Rules`.

        Raises:
            InputError: the recording cannot be decoded or encoded; it says why.
            SettingsError: a rule that cannot work, an unknown row, a vector of another shape.
            SettingsDiffer, ModelError: the run's model cannot be had.
        """
        made, allowed = self._prepared(k, rules)
        if row is not None and query is None:
            return self._find(self._stored(row), k, made, allowed)
        if row is not None or query is None:
            raise SettingsError("name one query: a recording, a vector, or row=")
        if isinstance(query, np.ndarray):
            return self._find(self._vector(query), k, made, allowed)
        found = list(self.embed(query))
        if len(found) != 1:
            raise InputError(f"{os.fspath(query)}: names {len(found)} recordings; use search_batch")
        if isinstance(found[0], Failure):
            raise InputError(f"{found[0].path}: {found[0].reason}")
        return self._find(found[0], k, made, allowed)

    def search_batch(
        self, inputs: Path | Sequence[Path], k: int = 10, corpus: str | None = None, **rules: Any
    ) -> Iterator[Hits | Failure]:
        """`search` for every recording that ``inputs`` name, in their order, as they are done.

        ``inputs`` and ``corpus`` are what ``hser-extract`` takes: folders, files, globs, manifests.
        A recording that cannot be embedded or looked up is a Failure; the others go on. Raises as
        `search`, and InputError for inputs that cannot be read at all.
        """
        made, allowed = self._prepared(k, rules)

        def found(query: Query | Failure) -> Hits | Failure:
            if isinstance(query, Failure):
                return query
            try:
                return self._find(query, k, made, allowed)
            except SettingsError as error:  # of this query alone: the rules themselves have been checked
                return Failure(query.name, query.name, "lookup", str(error))

        return map(found, self.embed(inputs, corpus))

    def embed(self, inputs: Path | Sequence[Path], corpus: str | None = None) -> Iterator[Query | Failure]:
        """Vectors of recordings as the run has its rows, one each, in their order.

        A recording that cannot be embedded is a Failure that says why. Raises ModelError, SettingsDiffer
        or StoreError where the run's model cannot be had.
        """
        from extractor.inputs.manifest import read_manifest

        manifest = read_manifest(inputs, corpus)
        return self._queries(manifest.utterances, manifest.columns)

    def _queries(self, utterances: Sequence[Utterance], columns: Sequence[str]) -> Iterator[Query | Failure]:
        self._encode.load()
        for start in range(0, len(utterances), RECORDINGS_AT_ONCE):
            some = utterances[start : start + RECORDINGS_AT_ONCE]
            result = self._encode(some, self._encode.recipe.decode(some))
            found: dict[str, Query | Failure] = {failure.id: failure for failure in result.failures}
            for row, vector in zip(result.rows, result.pooled[self.pooling][:, 0], strict=True):
                id_, path = row.utterance.id, row.utterance.path
                if vector.any():
                    labels = dict(zip(columns, row.utterance.labels, strict=False))
                    found[id_] = Query(path, vector, path, labels, row.checksum)
                else:
                    reason = "its embedding is zero: it has no direction to compare"
                    found[id_] = Failure(id_, path, "encode", reason)
            yield from (found[utterance.id] for utterance in some)

    def warm_up(self) -> None:
        """Load the model now, rather than at the first recording. Raises as `search`."""
        self._encode.warm_up()

    # Which rows may be neighbours

    def _prepared(self, k: int, rules: dict[str, Any]) -> tuple[Rules, np.ndarray]:
        """The rules, and bool [N]: rows that they allow to every query."""
        try:
            made = Rules(**rules)
        except TypeError as error:
            raise SettingsError(f"search(): {error}") from error
        check_vote(k, made.temperature)
        allowed = self._indexed.copy()
        if not made.copies:
            allowed &= self._clean
            if not allowed.any():
                raise SettingsError(f"{self.store.path}: all rows are augmented copies; take --copies")
        if made.where is not None:
            where = parse_where(made.where, (*self.store.columns, *ROW_COLUMNS))
            allowed &= where(self._column)
            if not allowed.any():
                raise SettingsError(f"--where {made.where!r}: holds for no row of {self.store.path}")
        speakers = made.exclude_speaker
        for speaker in [speakers] if isinstance(speakers, str) else speakers:
            allowed &= ~self._known("speaker", speaker)
        return made, allowed

    def _own_rows(self, query: Query, rules: Rules) -> np.ndarray:
        """bool [N]: rows that are no neighbours of this query."""
        own = np.zeros(len(self.store), bool)
        if query.row is not None:
            own |= self._original == self._original[query.row]
        if rules.exclude_own_file:
            own |= self._same_file(query)
        if rules.exclude_own_speaker:
            speaker = self._speaker(query)
            if not speaker:
                raise SettingsError(
                    "the query's own speaker is to be left out, and is not known; name the speaker with"
                    " --exclude-speaker"
                )
            own |= self._equals("speaker", speaker)
        return own

    @cached_property
    def _original(self) -> np.ndarray:
        """int64 [N], a code of the recording that each row is, or is a copy of."""
        return factor(self.store.originals)[1]

    def _same_file(self, query: Query) -> np.ndarray:
        same = np.zeros(len(self.store), bool)
        if query.path is not None:
            same |= self._equals("path", query.path)
        if query.checksum:
            same |= self._equals("checksum", query.checksum)
        return same

    def _speaker(self, query: Query) -> str:
        """As the store names it, where the recording is one of its own; else as its file name does."""
        for row in np.flatnonzero(self._same_file(query)).tolist():
            if speaker := self._value("speaker", row):
                return speaker
        return query.labels.get("speaker", "")

    # Queries

    def _stored(self, row_id: str) -> Query:
        row = int(np.flatnonzero(self._known("id", row_id))[0])
        vector = self.store.load_rows([row], self.layer, self.pooling)[0]
        path, checksum = self._value("path", row), self._value("checksum", row)
        return Query(row_id, vector, path, self._labels(row), checksum, row)

    def _vector(self, vector: np.ndarray) -> Query:
        width = self.store.shapes[self.pooling]
        if vector.shape != (width,):
            raise SettingsError(f"a query vector of shape {vector.shape}: the run's rows are ({width},)")
        if not np.isfinite(vector).all():
            raise SettingsError("a query vector with values that are not finite")
        return Query("vector", vector.astype(np.float32))

    def _find(self, query: Query, k: int, rules: Rules, allowed: np.ndarray) -> Hits:
        store, own = self.store, self._own_rows(query, rules)
        allowed_here = allowed & ~own
        # A few rows are left out by looking past them, so that the index need not test every row.
        spare = int((allowed & own).sum())
        if spare > OVERFETCHED:
            allowed, spare = allowed_here, 0
        among = None if np.array_equal(allowed, self._indexed) else store.positions[allowed]
        speakers = [self._speaker(query)] if self.index.normalisation == "speaker" else None
        count = min(k + spare, len(store))
        found = self.index.search(query.vector[None], count, among, speakers)
        similarity, position = found[0][0], found[1][0]
        rows = np.searchsorted(store.positions, position).clip(max=len(store) - 1)
        # A position that is no row's is one where nothing was found, or whose row is gone.
        fine = np.flatnonzero((store.positions[rows] == position) & allowed_here[rows])[:k].tolist()
        neighbours = [
            self._neighbour(rank, int(rows[i]), float(similarity[i])) for rank, i in enumerate(fine, start=1)
        ]
        vote, candidates = shares_of(neighbours, rules.temperature), int(allowed_here.sum())
        return Hits(query.name, tuple(neighbours), vote, k, candidates, self.layer, self.pooling)

    def _neighbour(self, rank: int, row: int, similarity: float) -> Neighbour:
        start, end = (
            None if np.isnan(t) else float(t) for t in (self.store.starts[row], self.store.ends[row])
        )
        id_, path = self._value("id", row), self._value("path", row)
        return Neighbour(rank, id_, path, similarity, self._labels(row), row, start, end)

    # Columns, each distinct value once

    def _column(self, name: str) -> Factored:
        if name not in self._columns:
            self._columns[name] = factor(column_of(self.store, name))
        return self._columns[name]

    def _equals(self, name: str, value: str) -> np.ndarray:
        """bool [N]: rows with this value in a column."""
        distinct, codes = self._column(name)
        return codes == (distinct.index(value) if value in distinct else -1)

    def _value(self, name: str, row: int) -> str:
        distinct, codes = self._column(name)
        return distinct[codes[row]]

    def _labels(self, row: int) -> dict[str, str]:
        return {name: self._value(name, row) for name in self.store.columns}

    def _known(self, name: str, value: str) -> np.ndarray:
        """`_equals`, for a value that must be there."""
        found = self._equals(name, value)
        if not found.any():
            near = difflib.get_close_matches(value, self._column(name)[0], n=_NEAREST_NAMES, cutoff=0.5)
            hint = f"; near to it: {', '.join(near)}" if near else ""
            raise SettingsError(f"{self.store.path}: no row has the {name} {value!r}{hint}")
        return found


def _choose(store: Store, layer: int | None, pooling: str | None) -> tuple[int, str]:
    """Which layer and pooling: as asked, or the only index, or the only ones that are stored."""
    from extractor.index import list_indexes

    poolings = store.pooled if pooling is None else [pooling]
    if not poolings:
        raise StoreError(f"{store.path}: only frames are stored; extract with a pooling to look things up")
    if poolings[0] not in store.pooled:
        raise SettingsError(f"{store.path}: {unknown('pooling', poolings[0], store.pooled)}")
    layers, _ = store.resolve(layer, poolings[0])
    stored = [(name, number) for name in poolings for number in layers]
    indexed = [each[:2] for each in list_indexes(store.path) if each[:2] in stored]  # none of a packed file
    choices = indexed or stored
    if len(choices) > 1:
        shown = ", ".join(f"{name}:{number}" for name, number in choices)
        what = "indexes" if indexed else "poolings and layers"
        raise SettingsError(f"{store.path}: name a --layer and --pooling; there are {what} {shown}")
    return choices[0][1], choices[0][0]


def _open_index(store: Store, layer: int, pooling: str) -> tuple[Index, list[str]]:
    """The index, and what a person should know of it."""
    from extractor.index import Index, IndexMissing, in_memory

    if store.path.is_dir():
        try:
            return Index.open(store.path, layer, pooling), []
        except IndexMissing:
            if len(store) > MAX_ROWS:
                raise
    elif len(store) > MAX_ROWS:
        raise StoreError(
            f"{store.path}: {len(store):,} rows need an index, and a packed file has none; use the run folder"
        )
    note = f"no index of {pooling}:{layer}: all {len(store):,} rows are searched, in memory"
    return in_memory(store, layer, pooling), [note]
