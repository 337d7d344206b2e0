"""How labels become classes, of one run and between runs. Explicit: every label is listed, with its rows."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from classifiers.data.runs import augmentations_of, open_run, tested_rows
from classifiers.data.source import CLEAN, Source
from extractor.errors import InputError, SettingsError, unknown
from extractor.inputs.corpora.words import Renamer, known
from extractor.types import EMOTIONS

MOST_NUMBERS = 50  # that are classes, such as numbered actors; more are a measurement
_NUMBER = re.compile(r"[-+]?(\d+[.,]?\d*|[.,]\d+)([eE][-+]?\d+)?")


def as_classes(
    where: str,
    column: str,
    labels: Sequence[str],
    renames: Mapping[str, str],
    classes: Collection[str] | None = None,
) -> tuple[list[str], list[str]]:
    """The class of each row, ``""`` where it is left out, and notes on that.

    A label that says "nan", "N/A" or the like is none. ``renames`` come first, then ``classes``, all
    that are wanted. ``where`` names the run.

    Raises:
        SettingsError: a rename of a label, or a class, that is not there.
        InputError: numbers that are a measurement, see `refuse_numbers`.
    """
    rename = Renamer(renames, labels)
    named = {label: known(rename(label)) for label in set(labels)}
    there = sorted({name for name in named.values() if name})
    wanted = set(there if classes is None else classes)
    for name in sorted(wanted - set(there)):
        raise SettingsError(f"--classes: {unknown('class', name, there)}")
    refuse_numbers(where, column, wanted)
    notes = []
    counts = Counter(named[label] for label in labels)
    others = sorted((name, count) for name, count in counts.items() if name and name not in wanted)
    if others:
        shown = ", ".join(f"{name} {count}" for name, count in others)
        notes.append(f"{where}: not among --classes, left out: {shown}")
    own = sorted((name, count) for name, count in counts.items() if name in wanted - set(EMOTIONS))
    if own and column == "emotion":
        shown = ", ".join(f"{name} {count}" for name, count in own)
        notes.append(f"{where}: classes outside the common set: {shown}; --map OLD=NEW counts one as another")
    return [named[label] if named[label] in wanted else "" for label in labels], notes


def refuse_numbers(where: str, column: str, labels: Iterable[str]) -> None:
    """Raises InputError for labels that are a measurement: any fraction, or very many numbers."""
    numbers = {label: float(label.replace(",", ".")) for label in labels if _NUMBER.fullmatch(label)}
    fractions = sorted(label for label, number in numbers.items() if number % 1 != 0)
    if not fractions and len(numbers) <= MOST_NUMBERS:
        return
    shown = ", ".join((fractions or sorted(numbers))[:3])
    raise InputError(
        f"{where}: column {column!r} holds {len(numbers):,} different numbers"
        f" ({'with fractions: ' if fractions else ''}{shown}, ...): a measurement, not classes, and"
        " regression is not there yet; name another --label, or bin them: a column of words in the"
        " manifest, or --map"
    )


@dataclass(frozen=True, slots=True)
class LabelMap:
    """Of one run: rows to be tested of each label, and the class it counts as (None: left out)."""

    run: str
    counts: dict[str, int]
    class_of: dict[str, str | None]

    @property
    def classes(self) -> tuple[str, ...]:
        """Classes that some label counts as."""
        return tuple(sorted({name for name in self.class_of.values() if name is not None}))

    def renames(self) -> dict[str, str]:
        """For `features.Labelling`: labels that count as a class of another name."""
        return {old: new for old, new in self.class_of.items() if new is not None and new != old}

    def lines(self) -> list[str]:
        """As it is printed."""
        return [
            f"{self.run}: {label or '(no label)'} ({count:,}) -> {self.class_of[label] or 'left out'}"
            for label, count in self.counts.items()
        ]


def map_labels(
    runs: Sequence[str],
    column: str,
    renames: Mapping[str, str],
    test_on: str = CLEAN,
    incomplete: bool = False,
    left_out: Mapping[str, Collection[str]] | None = None,
) -> list[LabelMap]:
    """Labels of each run's rows that are tested, after ``renames``; rows without a label have no class.

    ``left_out``: ids of each run that take no part. Raises SettingsError for a label in ``renames`` that
    no run has, and what `runs.open_run` and `runs.tested_rows` raise.
    """
    left_out = left_out or {}
    counts: dict[str, dict[str, int]] = {}  # the most frequent label first
    for run in runs:
        store = open_run(Source.parse(run.split(",")[0]).path, incomplete)
        rows = tested_rows(store.clean, augmentations_of(store), test_on, str(store.path))
        rows = rows & ~np.isin(np.array(store.ids, object), np.array(list(left_out.get(run, ())), object))
        labels = np.array(store.labels(column), object)[rows]
        counts[run] = dict(Counter(labels.tolist()).most_common())
    rename = Renamer(renames, [label for of in counts.values() for label in of])
    maps = [
        LabelMap(run, of, {label: known(rename(label)) or None for label in of}) for run, of in counts.items()
    ]
    for each in maps:
        refuse_numbers(each.run, column, each.classes)
    return maps


def restricted(maps: Sequence[LabelMap], classes: Collection[str]) -> list[LabelMap]:
    """The same with all but ``classes`` left out."""
    return [
        LabelMap(each.run, each.counts, {k: v if v in classes else None for k, v in each.class_of.items()})
        for each in maps
    ]


def common_classes(maps: Sequence[LabelMap], wanted: Collection[str] | None = None) -> tuple[str, ...]:
    """Classes that all runs have, of those that are wanted.

    Raises InputError where there are fewer than two, SettingsError for a wanted one that is missing.
    """
    common = set.intersection(*(set(each.classes) for each in maps))
    if wanted is not None:
        for name in wanted:
            if name not in common:
                raise SettingsError(f"--classes: not in every run: {unknown('class', name, sorted(common))}")
        common &= set(wanted)
    if len(common) < 2:
        has = "; ".join(f"{each.run}: {', '.join(each.classes)}" for each in maps)
        raise InputError(f"the runs have {len(common)} classes in common ({has}); rename with --map old=new")
    return tuple(sorted(common))
