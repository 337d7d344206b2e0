"""What the labels of one corpus count as in another. Explicit: every label is listed, with its rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from classifiers.source import Source
from extractor.errors import InputError, SettingsError, unknown
from extractor.store import Store


@dataclass(frozen=True, slots=True)
class LabelMap:
    """Of one run: clean rows of each label, and the class that it counts as (None: left out)."""

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


def map_labels(runs: Sequence[str], column: str, renames: Mapping[str, str]) -> list[LabelMap]:
    """Labels of each run, after ``renames``; none is left out but rows without a label.

    Raises SettingsError for a label in ``renames`` that no run has.
    """
    counts = {run: _count(run, column) for run in runs}
    known = sorted({label for of in counts.values() for label in of} - {""})
    for old in renames:
        if old not in known:
            raise SettingsError(f"--map: {unknown('class', old, known)}")
    return [
        LabelMap(run, of, {label: renames.get(label, label) or None for label in of})
        for run, of in counts.items()
    ]


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


def _count(run: str, column: str) -> dict[str, int]:
    """Rows of each label, most frequent first; augmented copies are not counted."""
    store = Store(Source.parse(run).path)
    labels = store.labels(column)
    copies = store.labels("copy") if "copy" in store.columns else ["0"] * len(store)
    clean = (label for label, copy in zip(labels, copies, strict=True) if copy == "0")
    return dict(Counter(clean).most_common())
