"""``where``: which rows may be neighbours, by their labels.

    speaker != '12' and emotion in ('anger', 'neutral')
    not (age < 30 or session == 2)

    condition  = comparison | condition and condition | condition or condition
               | not condition | ( condition )
    comparison = column op value {op value} | value op column      op: == != < <= > >=
               | column in (value, ...) | column not in (value, ...)
    column     = name | label['any name']      for names that are no words, such as label['my class']
    value      = 'text' | number

``speaker=03`` alone, without quotes, is short for ``speaker == '03'``.

A label is a text, ``''`` where it is not known. Against a text, ``==``, ``!=`` and ``in`` compare
texts exactly. Against a number, and for ``< <= > >=`` always, a label counts as the number that it
spells (``'03'`` is 3); one that spells none is unequal to every number and satisfies no order.

It is read with ``ast`` and never run as Python.
"""

from __future__ import annotations

import ast
import operator
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import numpy as np

from extractor.errors import SettingsError, unknown

MAX_LENGTH = 4_000  # characters
MAX_DEPTH = 40  # of nesting: what a person writes, and far from Python's own limit

Value: TypeAlias = "str | int | float"
Factored: TypeAlias = tuple[Sequence[str], np.ndarray]  # distinct values, and int [N] of each row's value
# A condition that was read: the rows that satisfy it, bool [N], given a column by name (see `factor`).
Where: TypeAlias = Callable[[Callable[[str], Factored]], np.ndarray]

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_SHORT = re.compile(r"\s*(\w+)=([\w.-]+)\s*")
_ORDERS = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_MIRRORED = {ast.Lt: ast.Gt, ast.LtE: ast.GtE, ast.Gt: ast.Lt, ast.GtE: ast.LtE}


def factor(values: Iterable[str]) -> Factored:
    """Distinct values in order of appearance, and int64 ``[N]``: which of them each row has.

    A condition is then tested once a value, not once a row.
    """
    index: dict[str, int] = {}
    codes = np.fromiter((index.setdefault(value, len(index)) for value in values), np.int64)
    return list(index), codes


def parse_where(text: str, columns: Sequence[str]) -> Where:
    """Read a condition over ``columns``.

    Raises SettingsError that shows the text and says what is wrong, for an unknown column with the
    nearest known ones.
    """
    if len(text) > MAX_LENGTH:
        raise SettingsError(f"--where: longer than {MAX_LENGTH} characters")
    short = _SHORT.fullmatch(text)
    if short:
        text = f"label[{short[1]!r}] == {short[2]!r}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a stray backslash is a mistake, not a remark
            tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else str(error) or type(error).__name__
        raise _refused(
            text, f"{reason}; write for instance speaker != '12' and emotion == 'anger'"
        ) from error
    return _Reader(text, tuple(columns)).condition(tree.body, 0)


def number(text: str) -> float | None:
    """The number that a label spells, or None."""
    return float(text) if _NUMBER.fullmatch(text) else None


def _refused(text: str, reason: str) -> SettingsError:
    return SettingsError(f"--where {text!r}: {reason}")


class _Reader:
    """Syntax tree to test."""

    def __init__(self, text: str, columns: tuple[str, ...]) -> None:
        self.text, self.columns = text, columns

    def condition(self, node: ast.expr, depth: int) -> Where:
        if depth > MAX_DEPTH:
            raise _refused(self.text, f"nested more than {MAX_DEPTH} deep")
        match node:
            case ast.BoolOp(op, parts):
                tests = [self.condition(part, depth + 1) for part in parts]
                join = np.logical_and if isinstance(op, ast.And) else np.logical_or
                return lambda column: join.reduce([test(column) for test in tests])
            case ast.UnaryOp(ast.Not(), part):
                negated = self.condition(part, depth + 1)
                return lambda column: ~negated(column)
            case ast.Compare(left, ops, rights):
                lefts = [left, *rights[:-1]]
                tests = [self.comparison(*each) for each in zip(lefts, ops, rights, strict=True)]
                return lambda column: np.logical_and.reduce([test(column) for test in tests])
        raise _refused(self.text, f"{ast.unparse(node)} is no comparison; write column == 'value'")

    def comparison(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> Where:
        named_left, named_right = self.is_column(left), self.is_column(right)
        if named_left == named_right:
            what = "two columns" if named_left else "no column"
            shown = ast.unparse(ast.Compare(left, [op], [right]))
            hint = "; values of text are written in quotes" if named_left else ""
            raise _refused(self.text, f"{shown} has {what}: a column is compared with a value{hint}")
        kind = type(op)
        if isinstance(op, ast.In | ast.NotIn):
            if named_right:
                raise _refused(self.text, "in: the column comes first, as in emotion in ('anger', 'fear')")
            values = self.values(right)
        elif named_right:  # 30 < age is age > 30
            left, right, kind = right, left, _MIRRORED.get(kind, kind)
            values = [self.value(right)]
        else:
            values = [self.value(right)]
        name, predicate = self.column(left), self.predicate(kind, values)

        def test(column: Callable[[str], Factored]) -> np.ndarray:
            distinct, codes = column(name)
            good = np.fromiter(map(predicate, distinct), bool, len(distinct))
            return good[codes]

        return test

    def predicate(self, kind: type[ast.cmpop], values: Sequence[Value]) -> Callable[[str], bool]:
        """What one label must satisfy."""
        if kind in _ORDERS:
            order, bound = _ORDERS[kind], values[0]
            limit = number(bound) if isinstance(bound, str) else bound
            if limit is None:
                raise _refused(self.text, f"{bound!r} is no number: < <= > >= compare numbers")
            return lambda label: (n := number(label)) is not None and bool(order(n, limit))
        if kind not in (ast.Eq, ast.NotEq, ast.In, ast.NotIn):
            raise _refused(self.text, "the comparisons are == != < <= > >= in not in")
        texts = {value for value in values if isinstance(value, str)}
        numbers = {value for value in values if not isinstance(value, str)}
        wanted = kind in (ast.Eq, ast.In)
        return lambda label: (label in texts or number(label) in numbers) is wanted

    def is_column(self, node: ast.expr) -> bool:
        match node:
            case ast.Name() | ast.Subscript(ast.Name("label"), _):
                return True
        return False

    def column(self, node: ast.expr) -> str:
        match node:
            case ast.Name(name) | ast.Subscript(ast.Name("label"), ast.Constant(str(name))):
                if name not in self.columns:
                    raise _refused(self.text, unknown("column", name, self.columns))
                return name
        raise _refused(self.text, f"{ast.unparse(node)}: write label['name of a column']")

    def values(self, node: ast.expr) -> list[Value]:
        match node:
            case ast.Tuple(items) | ast.List(items) | ast.Set(items):
                return [self.value(item) for item in items]
        return [self.value(node)]  # ('anger') is no tuple to Python, and meant as one here

    def value(self, node: ast.expr) -> Value:
        match node:
            case ast.Constant(bool()):
                pass
            case ast.Constant(str() | int() | float() as value):
                return value
            case ast.UnaryOp(ast.USub() | ast.UAdd() as sign, ast.Constant(int() | float() as value)) if (
                not isinstance(value, bool)
            ):
                return -value if isinstance(sign, ast.USub) else value
        raise _refused(self.text, f"{ast.unparse(node)} is no value; values are 'text' and numbers")
