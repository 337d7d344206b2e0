"""The language of conditions on labels: it means what Python's words mean, and runs nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping

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

Oracle = Callable[[Mapping[str, str]], bool]
ORDERS: dict[str, Callable[[float, float], bool]] = {
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}


def equal(label: str, value: str | float) -> bool:
    return label == value if isinstance(value, str) else NUMBERS[label] == value


def named(column: str) -> str:
    return column if column.isidentifier() else f"label[{column!r}]"


@st.composite
def comparisons(draw: st.DrawFn) -> tuple[str, Oracle]:
    column, kind = draw(st.sampled_from(COLUMNS)), draw(st.sampled_from(["equal", "in", "order", "chain"]))
    name = named(column)
    if kind == "equal":
        value, wanted, mirrored = draw(LITERALS), draw(st.booleans()), draw(st.booleans())
        op = "==" if wanted else "!="
        text = f"{value!r} {op} {name}" if mirrored else f"{name} {op} {value!r}"
        return text, lambda row: equal(row[column], value) is wanted
    if kind == "in":
        values, wanted = draw(st.lists(LITERALS, max_size=4)), draw(st.booleans())
        text = f"{name} {'in' if wanted else 'not in'} {draw(st.sampled_from([list, tuple]))(values)!r}"
        return text, lambda row: any(equal(row[column], value) for value in values) is wanted
    low, high = draw(st.sampled_from([-1.5, 0, 3, 12])), draw(st.sampled_from([-1.5, 0, 3, 1000]))
    first, second = draw(st.sampled_from(sorted(ORDERS))), draw(st.sampled_from(sorted(ORDERS)))

    def spelled(row: Mapping[str, str]) -> float:
        number = NUMBERS[row[column]]
        return float("nan") if number is None else number  # satisfies no order

    if kind == "order":
        return f"{name} {first} {low!r}", lambda row: ORDERS[first](spelled(row), low)
    text = f"{low!r} {first} {name} {second} '{high}'"
    return text, lambda row: ORDERS[first](low, spelled(row)) and ORDERS[second](spelled(row), high)


def joined(parts: st.SearchStrategy[tuple[str, Oracle]]) -> st.SearchStrategy[tuple[str, Oracle]]:
    def both(a: tuple[str, Oracle], b: tuple[str, Oracle]) -> tuple[str, Oracle]:
        return f"({a[0]}) and {b[0]}", lambda row: a[1](row) and b[1](row)

    def either(a: tuple[str, Oracle], b: tuple[str, Oracle]) -> tuple[str, Oracle]:
        return f"({a[0]} or ({b[0]}))", lambda row: a[1](row) or b[1](row)

    def negated(a: tuple[str, Oracle]) -> tuple[str, Oracle]:
        return f"not ({a[0]})", lambda row: not a[1](row)

    return st.one_of(
        st.builds(both, parts, parts), st.builds(either, parts, parts), st.builds(negated, parts)
    )


# `both` leaves its right side bare: what it may not hold is an unbracketed `or`, which `either` brackets.
CONDITIONS = st.recursive(comparisons(), joined, max_leaves=8)


@given(condition=CONDITIONS, rows=ROWS)
def test_a_condition_means_what_python_would_make_of_it(
    condition: tuple[str, Oracle], rows: list[tuple[str, ...]]
) -> None:
    text, oracle = condition
    labels = [dict(zip(COLUMNS, row, strict=True)) for row in rows]
    where = parse_where(text, COLUMNS)
    expected = [oracle(row) for row in labels]
    mask = where.mask(lambda name: factor(row[name] for row in labels))
    assert mask.tolist() == expected
    assert [where.holds(row) for row in labels] == expected
    assert set(where.columns) <= set(COLUMNS)


def test_one_value_without_quotes() -> None:
    where = parse_where("speaker=03", COLUMNS)
    assert [where.holds({"speaker": speaker}) for speaker in ("03", "3", "")] == [True, False, False]


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
    assert [where.holds({"emotion": e}) for e in ("anger", "ang", "")] == [True, False, False]


def test_an_empty_store_has_no_rows_that_satisfy_anything() -> None:
    where = parse_where("not emotion == 'anger'", ("emotion",))
    assert where.mask(lambda name: factor([])).tolist() == np.zeros(0, bool).tolist()
