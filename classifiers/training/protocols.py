"""How rows are divided into training and test rows: a row of the table each.

Folds are made of originals: a recording and its augmented copies are trained on together or held out
together. Of what is held out the clean rows are tested, or those that ``--test-on`` names.

``check_folds`` is run on every division, whoever made it: a speaker, or an original, on both sides of
a fold that claims to part them is refused.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from classifiers.data.features import Features, named
from classifiers.data.source import CLEAN
from extractor.errors import InputError, SettingsError, unknown

FOLDS_NAMED = 5  # in a note
# EmoBox's folds (Ma et al. 2024): test speakers of each fold.
EMOBOX_RAVDESS = (
    ("1", "11", "20", "21"),
    ("4", "10", "12", "14"),
    ("8", "9", "19", "23"),
    ("3", "5", "7", "24"),
    ("2", "15", "16", "18"),
    ("6", "13", "17", "22"),
)
EMOBOX_SAVEE = (("JE",), ("KL",), ("DC",), ("JK",))

# Values of a column `split`, as corpora write them.
SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
SPLITS |= dict.fromkeys(("dev", "valid", "validation", "val", "development"), "dev")

Rows = np.ndarray  # int64, indices into Features


@dataclass(frozen=True, slots=True)
class Fold:
    """Rows to train on and rows to test."""

    name: str
    train: Rows
    test: Rows
    dev: Rows | None = None  # among `train`: what selection is scored on, where the corpus says so


@dataclass(frozen=True, slots=True)
class Units:
    """Originals, which folds are made of. Aligned with each other."""

    of_row: np.ndarray  # int64 [N]: the unit of each row of the features
    y: np.ndarray  # int64 [U]
    group: np.ndarray  # object [U]: speaker or session; the unit itself where nothing is kept apart


# Gives the held-out units of each fold, by name; a third value is the dev units.
_Held = tuple[str, np.ndarray, np.ndarray | None]
_Divide = Callable[[Units, int, int], Iterator[_Held]]


@dataclass(frozen=True, slots=True)
class Protocol:
    """A row: what is kept apart, and how it is divided."""

    name: str
    divide: _Divide
    group: str | None  # column whose values never cross a fold
    needs: str | None = None  # column that `divide` reads as group, where nothing is kept apart by it
    speaker_dependent: bool = False
    shuffled: bool = False  # another seed, other folds
    least: int | None = 2  # recordings of a class: one to train on, one to test; None: --folds
    about: str = ""


def protocol(name: str) -> Protocol:
    """Raises SettingsError for a name that is not there."""
    if name not in PROTOCOLS:
        raise SettingsError(unknown("protocol", name, PROTOCOLS))
    return PROTOCOLS[name]


def make_folds(
    features: Features, name: str, num_folds: int = 5, seed: int = 0, test_on: str = CLEAN
) -> tuple[list[Fold], list[str]]:
    """The folds, checked, and notes on what takes no part or cannot be told.

    ``test_on``: the rows of what is held out that are tested, see `runs.tested_rows`.

    Raises:
        SettingsError: an unknown protocol, a column that the runs have not.
        InputError: no row to test; too few groups; a fold whose training rows are of one class.
    """
    row = protocol(name)
    column = row.group or row.needs
    tested = features.tested(test_on)
    units = units_of(features, column)
    least, where = row.least or num_folds, f"{features.sources[0].path}: --protocol {name}"
    count = np.bincount(units.y[units.group != ""], minlength=len(features.classes))
    small = [
        f"class {of!r} has {_counted(n, 'recording')}"
        for of, n in zip(features.classes, count.tolist(), strict=True)
        if n < least
    ]
    if small and count.any():  # where no group is known at all, that is what is wrong
        raise InputError(
            f"{where}: {', '.join(small)}, {least} are needed, to train on some and test on others; leave a"
            " class out with --classes, join it to another with --map OLD=NEW, or take another --protocol"
        )
    try:
        divided = list(row.divide(units, num_folds, seed))
    except InputError as error:
        of_column = f", column {column!r}" if column else ""
        raise InputError(f"{where}{of_column}: {error}") from error
    folds = []
    for held_name, held, dev in divided:
        testable = np.isin(units.of_row, held) & tested
        usable = (units.group[units.of_row] != "") & features.trainable
        train = ~np.isin(units.of_row, held) & usable
        of_dev = None if dev is None else np.flatnonzero(np.isin(units.of_row, dev) & features.selectable)
        if testable.any():
            folds.append(Fold(held_name, np.flatnonzero(train), np.flatnonzero(testable), of_dev))
    notes = []
    out = np.flatnonzero(units.group[units.of_row] == "")
    if len(out):
        ids = [features.ids[i] for i in out.tolist()]
        notes.append(f"{named(ids)} without {column}: take no part")
    is_tested = np.zeros(len(units.y), bool)
    is_tested[units.of_row[tested]] = True
    if not is_tested.all():
        what = "as copies only" if tested[features.clean].all() else "without the copies that are tested"
        notes.append(f"{int((~is_tested).sum()):,} originals are there {what}: never tested")
    return folds, notes + check_folds(features, folds, row.group)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _kept_apart(features: Features, column: str | None) -> np.ndarray:
    """object [N]: a column of the rows; without one each recording and its copies are kept together."""
    if column is None:
        return np.array(features.originals, object)
    if column not in features.columns:
        raise SettingsError(
            f"{features.sources[0].path}: --protocol: {unknown('column', column, features.columns)}"
        )
    return np.array(features.column(column), object)


def units_of(features: Features, column: str | None) -> Units:
    """Originals and what keeps them apart. Raises InputError where copies and original disagree."""
    group = _kept_apart(features, column)
    _, first, of_row = np.unique(np.array(features.originals, object), return_index=True, return_inverse=True)
    for what, values in ((column or "original", group), ("class", features.y)):
        odd = np.flatnonzero(values != values[first][of_row])
        if len(odd):
            raise InputError(
                f"copies of {named([features.originals[i] for i in odd.tolist()])} have another {what} than"
                " the recording itself"
            )
    # In the order of the features, so that folds do not depend on how ids sort.
    order = np.argsort(first, kind="stable")
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    return Units(place[of_row], features.y[first][order], group[first][order])


def inner_splits(
    features: Features, fold: Fold, name: str, num_folds: int, seed: int
) -> list[tuple[Rows, Rows]]:
    """Partitions of a fold's training rows, to select on: (train, validation) each.

    They keep apart what the protocol keeps apart, or else originals; validation rows are clean where
    any are. With a fixed dev part there is one split: train without dev, dev.
    """
    if fold.dev is not None and len(fold.dev):
        originals = np.array(features.originals, object)
        held = np.isin(originals[fold.train], originals[fold.dev])
        return [(fold.train[~held], fold.dev)]
    row = protocol(name)
    units = units_of(features, row.group or row.needs)
    unit = np.unique(units.of_row[fold.train])
    group = units.group[unit] if row.group else unit
    num_groups = len(set(group.tolist()))
    if num_groups < 2:
        raise InputError(
            f"fold {fold.name!r}: its training rows are of one {row.group or 'recording'}: nothing can be"
            " selected inside them; name --layer and leave --grid and --tune out"
        )
    # The fewest rows of a class bound how many parts it can be spread over.
    count = np.bincount(units.y[unit])
    k = max(2, min(num_folds, num_groups, int(count[count > 0].min())))
    splits = []
    for held in _stratified_by_group(units.y[unit], group, k, seed):
        is_held = np.isin(units.of_row[fold.train], unit[held])
        train, validation = fold.train[~is_held], fold.train[is_held & features.selectable[fold.train]]
        if len(validation) and len(np.unique(features.y[train])) > 1:
            splits.append((train, validation))
    if not splits:
        raise InputError(f"fold {fold.name!r}: its training rows cannot be divided to select on")
    return splits


def check_folds(features: Features, folds: Sequence[Fold], group: str | None) -> list[str]:
    """Refuse what would make a figure a lie; note what makes it less than it seems.

    Raises InputError: no fold; a row tested twice; an original or a value of ``group`` both trained
    on and tested; training rows of one class.
    """
    if not folds:
        raise InputError("no fold could be made: nothing is tested")
    tested = np.concatenate([fold.test for fold in folds])
    rows, times = np.unique(tested, return_counts=True)
    if (times > 1).any():
        raise InputError(f"tested more than once: {named([features.ids[r] for r in rows[times > 1]])}")
    kept_apart = {"original": features.originals}
    if group is not None:
        kept_apart[group] = features.column(group)
    notes = []
    for fold in folds:
        for what, values in kept_apart.items():
            trained = {values[row] for row in fold.train.tolist()}
            crossing = sorted(trained & {values[row] for row in fold.test.tolist()})
            if crossing:
                raise InputError(
                    f"fold {fold.name!r}: {what} {named(crossing)} is trained on and tested: a leak"
                )
        in_train = set(features.y[fold.train].tolist())
        if len(in_train) < 2:
            only = ", ".join(features.classes[code] for code in in_train) or "none"
            raise InputError(
                f"fold {fold.name!r}: its {len(fold.train)} training rows are of one class ({only});"
                " take another --protocol or fewer --folds"
            )
        for code in sorted(set(features.y[fold.test].tolist()) - in_train):
            count = int((features.y[fold.test] == code).sum())
            notes.append(
                f"fold {fold.name!r}: {features.classes[code]!r} is not among its training rows; its"
                f" {count} test rows count as wrong"
            )
    single = [fold.name for fold in folds if len(np.unique(features.y[fold.test])) == 1]
    if single:
        shown = ", ".join(single[:FOLDS_NAMED])
        shown += f" and {len(single) - FOLDS_NAMED:,} more" if len(single) > FOLDS_NAMED else ""
        notes.append(f"one class only is tested in fold {shown}: its own UA says little")
    return notes


# How units are divided. A generator of (name, held units, dev units).


def _leave_one_out(units: Units, num_folds: int, seed: int) -> Iterator[_Held]:
    groups = sorted(set(units.group.tolist()) - {""})
    if len(groups) < 2:
        there = f"only {groups[0]!r}" if groups else "none"
        raise InputError(f"at least two groups are needed to leave one out, there is {there}")
    for group in groups:
        yield str(group), np.flatnonzero(units.group == group), None


def _grouped(units: Units, num_folds: int, seed: int) -> Iterator[_Held]:
    known = np.flatnonzero(units.group != "")
    num_groups = len(set(units.group[known].tolist()))
    if num_groups < num_folds:
        raise InputError(
            f"--folds {num_folds}: there {'is' if num_groups == 1 else 'are'}"
            f" {_counted(num_groups, 'group')} only; take fewer --folds, or another --protocol"
        )
    for k, held in enumerate(_stratified_by_group(units.y[known], units.group[known], num_folds, seed)):
        yield f"{k + 1}/{num_folds}", known[held], None


def _stratified(units: Units, num_folds: int, seed: int) -> Iterator[_Held]:
    from sklearn.model_selection import StratifiedKFold

    splitter = StratifiedKFold(num_folds, shuffle=True, random_state=seed)
    for k, (_, held) in enumerate(splitter.split(np.zeros(len(units.y)), units.y)):
        yield f"{k + 1}/{num_folds}", held, None


def _eighty_ten_ten(units: Units, num_folds: int, seed: int) -> Iterator[_Held]:
    (_, test, _), (_, dev, _), *_ = _stratified(units, 10, seed)
    yield "test 10 %", test, dev


def _fixed(units: Units, num_folds: int, seed: int) -> Iterator[_Held]:
    strange = sorted({str(value) for value in units.group if value and str(value).lower() not in SPLITS})
    if strange:
        raise InputError(f"column 'split' has {strange[0]!r}; write train, dev or test")
    split = np.array([SPLITS.get(str(value).lower(), "") for value in units.group], object)
    for part in ("train", "test"):
        if part not in split:
            raise InputError(f"column 'split' names no {part!r} rows")
    dev = np.flatnonzero(split == "dev")
    yield "test", np.flatnonzero(split == "test"), dev if len(dev) else None


def _published(folds: Sequence[Sequence[str]]) -> _Divide:
    """Folds that are given by their test speakers. Numbers are compared as numbers."""

    def plain(name: object) -> str:
        return str(name).lstrip("0") if str(name).isdigit() else str(name)

    def divide(units: Units, num_folds: int, seed: int) -> Iterator[_Held]:
        speakers = np.array([plain(name) for name in units.group], object)
        listed = {name for fold in folds for name in fold}
        strange = sorted(set(speakers.tolist()) - listed - {""})
        if strange:
            raise InputError(
                f"these folds are of speakers {', '.join(sorted(listed))}; the run has speaker {strange[0]!r}"
            )
        for k, fold in enumerate(folds):
            yield f"{k + 1}/{len(folds)}", np.flatnonzero(np.isin(speakers, list(fold))), None

    return divide


def _stratified_by_group(y: np.ndarray, group: np.ndarray, k: int, seed: int) -> list[np.ndarray]:
    """Whole groups in ``k`` parts, classes spread as evenly as that allows: held-out indices each.

    Raises InputError where no class has ``k`` recordings: nothing could be spread.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    if (most := int(np.bincount(y).max())) < k:
        raise InputError(
            f"{k} parts are too many: no class has more than {_counted(most, 'recording')}; take fewer"
            " --folds, join classes with --map OLD=NEW, or name --layer and leave --grid and --tune out"
        )
    code = np.unique(group, return_inverse=True)[1]
    splitter = StratifiedGroupKFold(k, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # A class with fewer rows than parts is in some of them only; what that leads to is noted by name.
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        parts = [held for _, held in splitter.split(np.zeros(len(y)), y, code)]
    return [held for held in parts if len(held)]


_ROWS = (
    Protocol("loso", _leave_one_out, "speaker", about="leave one speaker out"),
    Protocol("session", _leave_one_out, "session", about="leave one session out"),
    Protocol("grouped-kfold", _grouped, "speaker", shuffled=True, about="speakers in --folds parts"),
    Protocol("emobox-ravdess", _published(EMOBOX_RAVDESS), "speaker", about="EmoBox's six folds of actors"),
    Protocol("emobox-savee", _published(EMOBOX_SAVEE), "speaker", about="EmoBox's four folds of speakers"),
    Protocol("split", _fixed, None, "split", about="the corpus's own column `split`"),
    Protocol(
        "stratified-kfold", _stratified, None, speaker_dependent=True, shuffled=True, least=None,
        about="recordings in --folds parts",
    ),
    Protocol(
        "stratified-80-10-10", _eighty_ten_ten, None, speaker_dependent=True, shuffled=True, least=10,
        about="80 % trained on, 10 % selected on, 10 % tested",
    ),
)  # fmt: skip

PROTOCOLS: Mapping[str, Protocol] = {each.name: each for each in _ROWS}


def about(name: str) -> str:
    """The protocol in words; where it is speaker-dependent it says so."""
    row = protocol(name)
    return f"{row.about} (speaker-dependent)" if row.speaker_dependent else row.about


def shares_speakers(features: Features, folds: Sequence[Fold]) -> bool | None:
    """Whether a known speaker is trained on and tested in any fold; None where none is known."""
    if "speaker" not in features.columns:
        return None
    speakers = features.column("speaker")
    any_known = False
    for fold in folds:
        tested = {speakers[row] for row in fold.test.tolist()} - {""}
        any_known |= bool(tested)
        if tested & {speakers[row] for row in fold.train.tolist()}:
            return True
    return False if any_known else None


def fit_groups(features: Features, name: str) -> np.ndarray:
    """What estimators keep apart when they hold rows of their own out (calibration, early stopping).

    int64 [N], codes: the protocol's groups, or originals, so that copies never straddle.
    """
    groups = _kept_apart(features, protocol(name).group)
    codes: np.ndarray = np.unique(groups, return_inverse=True)[1]
    return codes
