"""The language of conditions on labels: it means what Python's words mean, and runs nothing."""

from __future__ import annotations

import operator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from extractor import SettingsError
from extractor.store.where import MAX_DEPTH, MAX_LENGTH, factor, parse_where

COLUMNS = ("emotion", "speaker", "age", "my class")

# Labels, and the number that each spells to a person. What only `float()` takes for one is none.
NUMBERS: dict[str, float | None] = {
    "": None,
    "anger": None,
    'it\'s \\ "so"': None,
    "smörgås": None,
    "3": 3,
    "03": 3,
    "3.0": 3,
    "12": 12,
    "-1.5": -1.5,
    "1e3": 1000,
    ".5": 0.5,
    "nan": None,
    "inf": None,
    "1_0": None,
    " 3": None,
    "٣": None,
    "3,5": None,
}
LITERALS = st.one_of(st.sampled_from(sorted(NUMBERS)), st.sampled_from([3, 12, 0, -1.5, 1000, 0.5, 3.0]))
ROWS = st.lists(st.tuples(*[st.sampled_from(sorted(NUMBERS))] * len(COLUMNS)), min_size=1, max_size=8)

ORDERS = st.sampled_from(["<", "<=", ">", ">="])


class Label(str):
    """As `where` compares a label: with texts exactly; with numbers, and in order, as what it spells."""

    def number(self) -> float:
        found = NUMBERS[str(self)]
        return float("nan") if found is None else found  # satisfies no order

    def __eq__(self, other: object) -> bool:
        return str(self) == other if isinstance(other, str) else self.number() == other

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = str.__hash__


for order in (operator.lt, operator.le, operator.gt, operator.ge):
    setattr(Label, f"__{order.__name__}__", lambda a, b, order=order: order(a.number(), float(b)))


@st.composite
def comparisons(draw: st.DrawFn) -> str:
    column = draw(st.sampled_from(COLUMNS))
    name = column if column.isidentifier() else f"label[{column!r}]"
    kind = draw(st.sampled_from(["equal", "in", "order", "chain"]))
    low, high = draw(st.sampled_from([-1.5, 0, 3, 12])), draw(st.sampled_from([-1.5, 0, 3, 1000]))
    if kind == "equal":
        sides = draw(st.permutations([name, repr(draw(LITERALS))]))
        return draw(st.sampled_from([" == ", " != "])).join(sides)
    if kind == "in":
        values = draw(st.sampled_from([list, tuple]))(draw(st.lists(LITERALS, max_size=4)))
        return f"{name} {draw(st.sampled_from(['in', 'not in']))} {values!r}"
    if kind == "order":
        return f"{name} {draw(ORDERS)} {low!r}"
    return f"{low!r} {draw(ORDERS)} {name} {draw(ORDERS)} '{high}'"


def joined(parts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        # Its right side is bare: what it may not hold is an unbracketed `or`, which the next brackets.
        st.builds("({}) and {}".format, parts, parts),
        st.builds("({} or ({}))".format, parts, parts),
        st.builds("not ({})".format, parts),
    )


@given(text=st.recursive(comparisons(), joined, max_leaves=8), rows=ROWS)
def test_a_condition_means_what_python_would_make_of_it(text: str, rows: list[tuple[str, ...]]) -> None:
    labels = [dict(zip(COLUMNS, row, strict=True)) for row in rows]
    where = parse_where(text, COLUMNS)
    named = [{name: Label(value) for name, value in row.items()} for row in labels]
    expected = [bool(eval(text, {"label": row}, row)) for row in named]
    assert where(lambda name: factor(row[name] for row in labels)).tolist() == expected


def test_one_value_without_quotes() -> None:
    where = parse_where("speaker=03", COLUMNS)
    assert where(lambda name: factor(["03", "3", ""])).tolist() == [True, False, False]


@given(st.lists(st.text(max_size=3)))
def test_factoring_loses_nothing(values: list[str]) -> None:
    distinct, codes = factor(values)
    assert [distinct[code] for code in codes] == values
    assert len(set(distinct)) == len(distinct)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("speeker == '1'", "unknown column 'speeker'; known: speaker, "),
        ("emotion", "is no comparison"),
        ("emotion = 'anger'", "--where \"emotion = 'anger'\": "),
        ("emotion == anger", "two columns: a column is compared with a value; values of text"),
        ("emotion == speaker", "two columns"),
        ("1 == 1", "no column"),
        ("age < 'old'", "'old' is no number"),
        ("'anger' in emotion", "the column comes first"),
        ("emotion is 'anger'", "--where"),
        ("emotion == None", "None is no value"),
        ("emotion == True", "True is no value"),
        ("emotion == f'{age}'", "is no value"),
        ("emotion == 'a' 'b' + 'c'", "is no value"),
        ("emotion in ()  and age", "age is no comparison"),
        ("emotion.upper() == 'ANGER'", "no column"),
        ("label[0] == '1'", "write label['name of a column']"),
        ("label['nothing'] == '1'", "unknown column 'nothing'"),
        ("emotion == 'a\\d'", "invalid escape"),
        ("emotion == 'a\0'", "null"),
        ("emotion == 'a' if age == 1 else age == 2", "is no comparison"),
        ("(lambda: 1)() == 1", "no column"),
        ("", "--where ''"),
        ("not " * (MAX_DEPTH + 2) + "age == 1", "nested more than"),
        ("(" * 300 + "age == 1" + ")" * 300, "too many nested"),
        ("age == " + "1" * MAX_LENGTH, "longer than"),
    ],
)
def test_what_is_no_condition_is_refused_with_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(SettingsError) as refused:
        parse_where(text, COLUMNS)
    assert message in str(refused.value)


def test_nothing_is_run() -> None:
    for text in ("__import__('os').system('false') == 0", "emotion == open('/etc/hostname').read()"):
        with pytest.raises(SettingsError):
            parse_where(text, COLUMNS)


def test_a_value_in_brackets_is_a_list_of_one() -> None:
    """To Python ('anger') is a text, and `in` would look for a part of it."""
    where = parse_where("emotion in ('anger')", ("emotion",))
    assert where(lambda name: factor(["anger", "ang", ""])).tolist() == [True, False, False]


def test_an_empty_store_has_no_rows_that_satisfy_anything() -> None:
    where = parse_where("not emotion == 'anger'", ("emotion",))
    assert where(lambda name: factor([])).tolist() == np.zeros(0, bool).tolist()
