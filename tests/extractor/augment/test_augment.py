"""Augmentations are written, read and refused as they should be, whatever row of the tables they are."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from extractor.augment import (
    AUGMENTATIONS,
    OPERATIONS,
    AdditiveNoise,
    Augmentation,
    BandPass,
    Compose,
    Gain,
    OneOf,
    Recipe,
    SpecAugment,
    TimeStretch,
    draw,
    parse,
    parse_recipe,
    to_text,
)
from extractor.augment.config import Config, load_yaml, read_yaml
from extractor.augment.drawing import Nothing, Original, Pool
from extractor.augment.parameters import (
    Choice,
    Flag,
    Interval,
    Kind,
    Name,
    Number,
    Parts,
    TableRow,
    Whole,
    make,
    parameters,
)
from extractor.augment.spectral import POLICIES, MaskSpectrogram
from extractor.augment.table import AddNoise, Band, Join, LatentMasks, Silence
from extractor.augment.text import WITH_PLUS
from extractor.errors import HserError, SettingsError

ROWS = [*AUGMENTATIONS.values(), *OPERATIONS.values()]
FAR = 1e9  # stands for the end of a range that has none

row_names = pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.__name__}")


def example(kind: Kind, place: int) -> Any:
    """A value of the kind; later places get higher ones, so that edges come in order."""
    if isinstance(kind, Number | Interval):
        low, high = kind.low, min(kind.high, FAR)
        return low + (place + 1) / 10 * (high - low)
    if isinstance(kind, Whole):
        return min(kind.low + place + 1, kind.high)
    return {Choice: getattr(kind, "names", [""])[0], Flag: True, Name: "x.wav", Parts: ((1, 3),)}[type(kind)]


def subsets(row: type[TableRow]) -> list[tuple[str, ...]]:
    """Which parameters may be given together: some need each other, some exclude each other."""
    # An operation of a recipe has no probability.
    known = {name: of for name, of in parameters(row).items() if row in AUGMENTATIONS.values() or name != "p"}
    fitting = []
    for chosen in itertools.product([False, True], repeat=len(known)):
        names = tuple(name for name, wanted in zip(known, chosen, strict=True) if wanted)
        try:
            make(
                "row", {row.name: row}, row.name, {n: example(known[n].kind, i) for i, n in enumerate(names)}
            )
        except SettingsError:
            continue
        fitting.append(names)
    return fitting


def values(kind: Kind) -> st.SearchStrategy[Any]:
    if isinstance(kind, Number | Interval):
        high = min(kind.high, FAR)
        one = st.floats(kind.low, high, exclude_min=kind.above, allow_nan=False)
        return one if isinstance(kind, Number) else st.tuples(one, one).map(sorted)
    if isinstance(kind, Whole):
        return st.integers(kind.low, kind.high)
    if isinstance(kind, Choice):
        return st.sampled_from(kind.names)
    if isinstance(kind, Flag):
        return st.booleans()
    if isinstance(kind, Name):
        return st.text(st.characters(), min_size=1, max_size=12)  # lone surrogates, too
    assert isinstance(kind, Parts)
    span = st.tuples(st.integers(0, 10**9), st.integers(1, 10**6)).map(lambda x: (x[0], x[0] + x[1]))
    return st.lists(span, max_size=4).map(tuple)


SUBSETS = {row: subsets(row) for row in ROWS}


@st.composite
def rows(draw: st.DrawFn, row: type[Any]) -> Any:
    names = draw(st.sampled_from(SUBSETS[row]))
    drawn = {name: draw(values(parameters(row)[name].kind)) for name in names}
    try:
        return row(**drawn)
    except SettingsError:  # two parameters that must come in an order
        assume(False)


@st.composite
def composed(draw: st.DrawFn, inner: st.SearchStrategy[Augmentation]) -> Augmentation:
    items = draw(st.lists(inner, min_size=1, max_size=3))
    assume(sum(item.inside_encoder for item in items) < 2)
    return Compose(items, p=draw(st.sampled_from([1.0, 0.25])))


@st.composite
def chosen(draw: st.DrawFn, inner: st.SearchStrategy[Augmentation]) -> Augmentation:
    weight = st.floats(1e-9, 1e9)
    pairs = draw(st.lists(st.tuples(inner, weight), min_size=1, max_size=3))
    return OneOf(pairs, p=draw(st.sampled_from([1.0, 1e-7])))


# What a recipe names and no augmentation does; the others are read as augmentations of one value.
FIXED = st.sampled_from([AddNoise, Band, Join, LatentMasks, MaskSpectrogram, Silence]).flatmap(rows)
LEAVES = st.one_of(
    st.sampled_from(list(AUGMENTATIONS.values())).flatmap(rows),
    st.builds(
        lambda operation, p: replace(operation, p=p), FIXED | st.just(Nothing()), st.sampled_from([1.0, 0.25])
    ),
)
TREES = st.recursive(LEAVES, lambda inner: composed(inner) | chosen(inner), max_leaves=6)


@row_names
def test_every_row_can_be_made_and_its_parameters_are_documented(row: type[TableRow]) -> None:
    assert SUBSETS[row], f"{row.name}: no combination of example values is accepted"
    assert row.__doc__
    assert not row.__doc__.startswith(row.__name__ + "(")
    for parameter in parameters(row).values():
        assert parameter.says
        assert parameter.kind.expected


@row_names
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_every_row_is_read_from_its_own_text_as_the_same(row: type[TableRow], data: st.DataObject) -> None:
    made = data.draw(rows(row))
    assert made == (
        parse(made.text) if row in AUGMENTATIONS.values() else parse_recipe(made.text).operations[0]
    )


def tree(augmentation: Augmentation) -> dict[str, Any]:
    """As YAML has it."""
    p = {"p": augmentation.p}
    if isinstance(augmentation, OneOf):
        return {"oneof": [{"weight": w, **tree(a)} for a, w in augmentation.weighted], **p}
    if isinstance(augmentation, Compose):
        return {"compose": [tree(item) for item in augmentation.items], **p}
    return {augmentation.name: augmentation.said}


def as_yaml(augmentation: Augmentation, **values: Any) -> str:
    values = json.loads(json.dumps({"augment": tree(augmentation), **values}))  # tuples are lists there
    return yaml.safe_dump(values, allow_unicode=True)


# Trees of several rows are large, and two latent masks in a row are filtered out.
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(TREES)
def test_every_augmentation_is_read_from_its_text_as_the_same(augmentation: Augmentation) -> None:
    text = to_text(augmentation)
    assert parse(text) == augmentation
    assert to_text(parse(text)) == text


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(TREES, st.integers(1, 9), st.integers(0, 2**60), st.booleans())
def test_every_configuration_is_read_from_its_yaml_as_the_same(
    augmentation: Augmentation, copies: int, seed: int, clean: bool
) -> None:
    text = as_yaml(augmentation, copies=copies, seed=seed, clean=clean)
    assert read_yaml(text) == Config(augmentation, copies, seed, clean)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.sampled_from([r for r in OPERATIONS.values() if r.name != "latent"]).flatmap(rows), max_size=4
    ),
    st.integers(0, 9),
)
def test_a_recipe_asked_for_again_is_what_every_copy_gets(operations: list[Any], number: int) -> None:
    recipe = Recipe(tuple(operations))
    assert parse_recipe(recipe.text) == recipe
    asked = parse(recipe.text)
    assert draw(asked, Original("any", 20_000), number, number, Pool()) == recipe
    assert parse(to_text(asked)) == read_yaml(as_yaml(asked)).augmentation == asked


def test_what_a_recipe_takes_in_must_be_there(tmp_path: Path) -> None:
    pool = Pool([Original("a", 16_000)])
    parse("join:clip=a,at=end,partner_samples=16000").check(pool)
    with pytest.raises(SettingsError, match="no recording of the input has the id 'b'"):
        parse("gain+join:clip=b,at=end,partner_samples=16000").check(pool)
    with pytest.raises(SettingsError, match="there is no file"):
        parse(f'noise:snr_db=3,clip="{tmp_path}/x.wav",start=0').check(pool)
    assert parse("join:clip=a,at=end,partner_samples=1").needs_partners
    assert not parse("silence:spans=1-2").needs_partners
    latent = "latent:time_prob=0.1,time_length=10,channel_prob=0,channel_length=10,key=3"
    assert parse(f"gain+{latent}").inside_encoder
    with pytest.raises(SettingsError, match="latent masks twice"):
        parse(f"{latent}+latent")


def test_what_users_write() -> None:
    assert parse("stretch:rate=0.8-1.25") == TimeStretch(rate=(0.8, 1.25)) == parse("stretch:rate=0.8..1.25")
    assert parse("noise:snr_db=5-20").snr_db == (5.0, 20.0)
    assert parse("pitch:semitones=-2..2").semitones == (-2.0, 2.0) == parse("pitch:semitones=-2-2").semitones
    assert parse("gain:db=-6--3").db == (-6.0, -3.0)
    assert parse("gain:db=3").db == (3.0, 3.0)
    assert parse("specaugment:policy=LD") == SpecAugment("LD")
    assert parse(" stretch + gain : db = -6..6 ") == Compose([TimeStretch(), Gain((-6, 6))])
    assert parse("copypaste:kind=n+se-cp+gain").items[0].kind == "n+se-cp"
    assert parse('noise:folder="a, b+(c)"').folder == "a, b+(c)"
    assert parse("(stretch+gain):p=0.5") == Compose([TimeStretch(), Gain()], p=0.5)
    both = OneOf([(TimeStretch(), 0.6), (SpecAugment("LD"), 0.4)])
    assert parse("(0.6*stretch:rate=0.8-1.25|0.4*specaugment:policy=LD)") == both
    assert parse("0.6*stretch|0.4*specaugment") == both == parse(["0.6*stretch", "0.4*specaugment"])
    assert parse(["stretch", "0.4*gain"]) == OneOf([TimeStretch(), (Gain(), 0.4)])
    assert parse(["stretch"]) == parse("stretch") == TimeStretch()


def test_a_policy_gives_the_bounds_that_are_not_given() -> None:
    assert SpecAugment("SM").bounds == POLICIES["SM"] == (40, 15, 2, 70, 0.2, 2)
    assert SpecAugment("LD", warp=0, time_share=0.3).bounds == (0, 27, 2, 100, 0.3, 2)


def test_values_with_a_plus_are_known_to_the_grammar() -> None:
    names = {
        name
        for row in ROWS
        for parameter in parameters(row).values()
        for name in getattr(parameter.kind, "names", ())
        if "+" in name
    }
    assert names == set(WITH_PLUS)


REFUSED = {
    "strech": "unknown augmentation 'strech'; known: stretch",
    "stretch:rat=1": "stretch: unknown parameter 'rat'; known: rate",
    "stretch:rate=9": "stretch: rate=9: .* within 0.25 to 4",
    "stretch:rate=1.2..0.8": "stretch: rate=1.2..0.8: must be a range",
    "stretch:rate=0": "stretch: rate=0: .* within 0.25 to 4",
    "stretch:p=0": "stretch: p=0: .*above 0 and at most 1",
    "specaugment:policy=XX": "specaugment: policy=XX: must be one of LB, LD, SM, SS",
    "specaugment:frequency_width=81": "specaugment: frequency_width=81: .*0 to 80",
    "specaugment:time_share=1.5": "specaugment: time_share=1.5: .*0 to 1",
    "specaugment:warp=-1": "specaugment: warp=-1: must be a whole number",
    "specaugment:time_masks=1.5": "specaugment: time_masks=1.5: must be a whole number",
    "noise:color=white,folder=x": "noise: folder=x: and color=white exclude each other",
    "copypaste:same_speaker=maybe": "copypaste: same_speaker=maybe: must be yes or no",
    "bandpass:low=4000,high=300": "bandpass: high=300.0: low must be below high",
    "bandpass:low=8000": "bandpass: low=8000.0: low must be below high",
    "bandpass:band=telephone,low=3": "bandpass: band=telephone: excludes low and high",
    "gain:db=1,db=2": "db is given twice",
    "gain:db": r"character 8: = behind db expected, the end found",
    "gain:db=": r"character 9: a value of db",
    "(gain": r"character 6: one of \+ \| \) expected, the end found",
    "gain)": r"character 5: the end, or one of \+ \| expected, '\)' found",
    "gain+": "the name of an augmentation or \\( expected",
    "": "the name of an augmentation or \\( expected",
    "0.4*gain": "a weight needs an alternative.*gain:p=0.4",
    "0*gain|stretch": "oneof: weight 0.0 of gain: must be a number above 0",
    "1.2.3*gain|stretch": "oneof: weight 1.2.3: must be a number above 0",
    "(gain):q=1": r"\(\.\.\.\): unknown parameter 'q'",
    'noise:folder="a': "a value of folder",
    r'noise:folder="\q"': "badly quoted",
    "latent+latent": "latent masks twice",
    "(" * 3000: "at most 50 parentheses inside each other expected",
}


@pytest.mark.parametrize("text", REFUSED, ids=lambda text: text[:40])
def test_what_cannot_work_is_refused_by_name(text: str) -> None:
    with pytest.raises(SettingsError, match=REFUSED[text]):
        parse(text)


@row_names
def test_every_parameter_refuses_what_lies_outside_its_range(row: type[TableRow]) -> None:
    known = parameters(row)
    for name, parameter in known.items():
        subset = next((names for names in SUBSETS[row] if name in names), SUBSETS[row][0])
        good = {n: example(known[n].kind, i) for i, n in enumerate(subset)}
        bad: list[Any] = [object(), "\N{SNOWMAN}" if not isinstance(parameter.kind, Name) else "", [], {}]
        if isinstance(parameter.kind, Number | Interval | Whole):
            bad += [parameter.kind.low - 1, float("nan"), float("inf"), True, "1e999"]
            bad += [parameter.kind.high + 1] if parameter.kind.high <= FAR else []
        if isinstance(parameter.kind, Parts):
            bad = [object(), "3-3", "5-2", [(-1, 2)], [(1, 2, 3)], 7]
        for value in bad:
            with pytest.raises(SettingsError, match=f"^{row.name}: {name}=") as caught:
                row(**{**good, name: value})
            assert parameter.kind.expected in str(caught.value)


def test_objects_refuse_what_is_not_an_augmentation() -> None:
    weights = ([(TimeStretch(), weight)] for weight in (0, float("nan"), "1"))
    for made, name, wrong in [
        *((OneOf, "oneof", wrong) for wrong in ([], ["stretch"], *weights)),
        *((Compose, "compose", wrong) for wrong in ([], ["stretch"])),
    ]:
        with pytest.raises(SettingsError, match=f"^{name}: "):
            made(wrong)
    with pytest.raises(SettingsError, match=r"^oneof: p=2"):
        OneOf([TimeStretch()], p=2)


def test_defaults_that_depend_on_what_else_is_given() -> None:
    assert AdditiveNoise().color == "white"
    assert AdditiveNoise(folder="x").color is None
    assert BandPass().edges == (300, 3400)
    assert BandPass(low=100).edges == (100, 8000)
    assert BandPass(high=4000).edges == (0, 4000)


def test_the_yaml_of_the_manual() -> None:
    config = read_yaml("""
augment:
  oneof:
    - weight: 0.6
      stretch: {rate: [0.8, 1.25]}
    - weight: 0.4
      compose:
        - specaugment: {policy: LD}
        - gain: {db: [-6, 6], p: 0.5}
copies: 2
seed: 7
clean: false
""")
    tree = OneOf([(TimeStretch((0.8, 1.25)), 0.6), (Compose([SpecAugment("LD"), Gain((-6, 6), p=0.5)]), 0.4)])
    assert config == Config(tree, copies=2, seed=7, clean=False)
    short = read_yaml("augment: {compose: [stretch, 'gain:db=1', {noise: {folder: yes!}}], p: 0.5}")
    assert short.augmentation.p == 0.5


YAML_REFUSED = {
    "augment: {strech: {}}": "line 1: unknown augmentation 'strech'; known: stretch",
    "augment:\n  oneof:\n  - gain:\n  - pitch: {semitones: [1, 2, 3]}": "line 4: pitch: semitones=.1, 2, 3",
    "augment:\n  oneof:\n  - gain:\n    weight: heavy": "line 3: oneof: weight 'heavy' of gain",
    "augment:\n  compose: gain": "line 2: a list of augmentations expected",
    "augment:\n  compose: [gain]\n  oneof: [gain]": "line 2: one augmentation expected, found: compose, o",
    "augment: [gain]": "line 1: entries as in key: value expected",
    "augment:\n  gain: {}\n  p: 0.5": "line 3: p belongs into the braces of gain",
    "augment:\n  gain:\n    db: 5\n    db: 4": "line 4: db is given twice",
    "augment:\n  gain:\n    dB: 5": "line 3: gain: unknown parameter 'dB'; known: db",
    "augment: {gain: {}": "line 1: not readable as YAML|line 2: not readable as YAML",
    "copies: 1": "the entry augment is missing",
    "": "the entry augment is missing",
    "augment: gain\ncopy: 2": "line 2: unknown entry 'copy'; known: copies",
    "augment: gain\ncopies: 0": "line 2: copies: 0: must be a whole number of at least 1",
    "augment: gain\ncopies: true": "line 2: copies: True: must be a whole number",
    "augment: gain\nseed: 1.5": "line 2: seed: 1.5: must be a whole number",
    "augment: gain\nclean: 1": "line 2: clean: 1: must be true or false",
    "augment: stretch:rate=9": "not readable as YAML|stretch: rate=9",
    "augment: !!python/object/apply:os.getcwd []": "line 1: entries as in key: value|not readable",
    "augment:\n  gain: {db: !!python/name:os.getcwd }": "line 2: not readable as YAML",
}


@pytest.mark.parametrize("text", YAML_REFUSED)
def test_yaml_that_cannot_work_is_refused_with_file_and_line(text: str, tmp_path: Path) -> None:
    file = tmp_path / "augment.yaml"
    file.write_text(text)
    with pytest.raises(SettingsError, match=YAML_REFUSED[text]) as caught:
        load_yaml(file)
    assert str(caught.value).startswith(str(file))


def test_yaml_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"x\.yaml: cannot be read: No such file"):
        load_yaml(tmp_path / "x.yaml")
    (tmp_path / "y.yaml").write_bytes(b"augment: \xff")
    with pytest.raises(SettingsError, match=r"y\.yaml: not UTF-8"):
        load_yaml(tmp_path / "y.yaml")


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from('stretchgain:=+|()*".,0.4p \\-'), max_size=20) | st.text(max_size=12))
def test_no_text_does_anything_but_parse_or_be_refused(text: str) -> None:
    for read in (parse, parse_recipe, read_yaml):
        try:
            read(text)
        except HserError as error:
            assert str(error)


@pytest.mark.parametrize(
    "text", ["gain:db=1|gain:db=2", "2*gain:db=1", "(gain:db=1)", "stretch", "gain:db=1..2", "x"]
)
def test_a_recipe_has_one_number_where_an_augmentation_has_choices(text: str) -> None:
    with pytest.raises(SettingsError):
        parse_recipe(text)
