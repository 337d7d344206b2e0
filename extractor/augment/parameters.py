"""Parameters of augmentations and operations: what each takes, how it is written, when it is refused.

A row of the tables is a frozen dataclass whose fields are annotated with a kind (`Number`, `Interval`, ...)
and a line that says what it is: ``rate: Annotated[Range, Interval(0.25, 4), "times as fast"]``. The kind
reads a value from text, from YAML or from Python alike, and writes it back so that it is read again as
exactly the same: numbers by ``repr``, so no digit is lost.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from typing import Annotated, Any, ClassVar, Protocol, TypeAlias, get_args, get_origin, get_type_hints

from extractor.errors import SettingsError, unknown

Range: TypeAlias = tuple[float, float]  # drawn from uniformly; both ends may be equal
Spans: TypeAlias = tuple[tuple[int, int], ...]  # [first, last) each

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_RANGE = re.compile(rf"({_NUMBER})(?:\s*(?:\.\.|-)\s*({_NUMBER}))?")
_SPAN = re.compile(r"(\d+)-(\d+)")
# What needs no quotes; `extractor.augment.syntax` reads values by the same pattern.
PLAIN = r'[^\s,+|()"]+'


class Kind(Protocol):
    """What a parameter takes. ``expected`` says it to a person: "a number within 0 to 1"."""

    @property
    def expected(self) -> str: ...

    def read(self, value: object) -> Any:
        """The value as the dataclass keeps it; raises ValueError where it is not of this kind."""
        ...

    def text(self, value: Any) -> str: ...

    def plain(self, value: Any) -> object:
        """The value as YAML writes it."""
        ...


def number_text(value: float) -> str:
    """The shortest text that is read as the same number; whole ones without a point."""
    text = repr(value)
    return text.removesuffix(".0")


def _number(value: object) -> float:
    if isinstance(value, str) and re.fullmatch(_NUMBER, value.strip()):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError
    return float(value)


@dataclass(frozen=True, slots=True)
class Number:
    """A number within ``low`` to ``high``; ``above``: beyond ``low``, not ``low`` itself."""

    low: float
    high: float
    unit: str = ""
    above: bool = False

    @property
    def expected(self) -> str:
        return f"a number {self.limits}{self.unit and ' ' + self.unit}"

    @property
    def limits(self) -> str:
        low, high = number_text(self.low), number_text(self.high)
        return f"above {low} and at most {high}" if self.above else f"within {low} to {high}"

    def within(self, value: float) -> bool:
        return self.low <= value <= self.high and not (self.above and value == self.low)

    def read(self, value: object) -> float:
        number = _number(value)
        if not self.within(number):
            raise ValueError
        return number

    def text(self, value: float) -> str:
        return number_text(value)

    def plain(self, value: float) -> object:
        return int(value) if value == int(value) else value


@dataclass(frozen=True, slots=True)
class Interval:
    """A range to draw from, ``a..b`` or ``a-b``, or one number: always that one."""

    low: float
    high: float
    unit: str = ""
    above: bool = False

    @property
    def expected(self) -> str:
        return "a range a..b, or one number, " + self._end.expected.removeprefix("a number ")

    @property
    def _end(self) -> Number:
        return Number(self.low, self.high, self.unit, self.above)

    def read(self, value: object) -> Range:
        ends: tuple[object, ...]
        if isinstance(value, str):
            match = _RANGE.fullmatch(value.strip())
            if match is None:
                raise ValueError
            ends = match.groups() if match[2] else (match[1], match[1])
        elif isinstance(value, list | tuple):
            ends = tuple(value)
        else:
            ends = (value, value)
        if len(ends) != 2:
            raise ValueError
        first, last = (self._end.read(end) for end in ends)
        if last < first:
            raise ValueError
        return first, last

    def text(self, value: Range) -> str:
        # ".." and not "-": it is read alike for negative numbers and powers of ten.
        return number_text(value[0]) if value[0] == value[1] else "..".join(map(number_text, value))

    def plain(self, value: Range) -> object:
        first, last = (self._end.plain(end) for end in value)
        return first if first == last else [first, last]


@dataclass(frozen=True, slots=True)
class Whole:
    """A whole number within ``low`` to ``high``."""

    low: int
    high: int
    unit: str = ""

    @property
    def expected(self) -> str:
        return f"a whole number within {self.low} to {self.high}{self.unit and ' ' + self.unit}"

    def read(self, value: object) -> int:
        text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
        if not isinstance(text, str) or not re.fullmatch(r"[+-]?\d{1,20}", text):
            raise ValueError
        number = int(text)
        if not self.low <= number <= self.high:
            raise ValueError
        return number

    def text(self, value: int) -> str:
        return str(value)

    def plain(self, value: int) -> object:
        return value


@dataclass(frozen=True, slots=True)
class Choice:
    """One of some names."""

    names: tuple[str, ...]

    @property
    def expected(self) -> str:
        return "one of " + ", ".join(self.names)

    def read(self, value: object) -> str:
        if value not in self.names:
            raise ValueError
        return str(value)

    def text(self, value: str) -> str:
        return value

    def plain(self, value: str) -> object:
        return value


@dataclass(frozen=True, slots=True)
class Flag:
    """Yes or no."""

    expected: str = "yes or no"

    def read(self, value: object) -> bool:
        if isinstance(value, bool):
            return value
        if value not in ("yes", "no"):
            raise ValueError
        return value == "yes"

    def text(self, value: bool) -> str:
        return "yes" if value else "no"

    def plain(self, value: bool) -> object:
        return value


@dataclass(frozen=True, slots=True)
class Name:
    """A path, an id: any text but none. Quoted where it has characters that mean something here."""

    expected: str = "a text"

    def read(self, value: object) -> str:
        if not isinstance(value, str) or not value:
            raise ValueError
        return value

    def text(self, value: str) -> str:
        if value.isprintable() and re.fullmatch(PLAIN, value):
            return value
        # Escapes what cannot be printed; an undecodable file name (lone surrogates) survives, too.
        return json.dumps(value, ensure_ascii=not value.isprintable())

    def plain(self, value: str) -> object:
        return value


@dataclass(frozen=True, slots=True)
class Parts:
    """Parts ``[first, last)`` of an axis: ``3-10;20-28``."""

    unit: str

    @property
    def expected(self) -> str:
        return f"parts as in 3-10;20-28, in {self.unit}"

    def read(self, value: object) -> Spans:
        if isinstance(value, str):
            matches = [_SPAN.fullmatch(part) for part in value.split(";")]
            pairs: list[Any] = [match and (int(match[1]), int(match[2])) for match in matches]
        elif isinstance(value, list | tuple):
            pairs = list(value)
        else:
            raise ValueError  # noqa: TRY004 - as for any value that does not fit
        spans = []
        for pair in pairs:
            if pair is None or len(pair) != 2 or not 0 <= pair[0] < pair[1]:
                raise ValueError
            spans.append((int(pair[0]), int(pair[1])))
        return tuple(spans)

    def text(self, value: Spans) -> str:
        return ";".join(f"{first}-{last}" for first, last in value)

    def plain(self, value: Spans) -> object:
        return [list(span) for span in value]


@dataclass(frozen=True, slots=True)
class Parameter:
    """What a table of parameters shows of one."""

    name: str
    kind: Kind
    default: Any
    says: str


def parameters(row: type[Row]) -> Mapping[str, Parameter]:
    """The parameters of a row of the tables, in the order in which they are written."""
    return _parameters(row)  # type: ignore[arg-type]  # mypy takes a dataclass's own hash for its type's


@cache
def _parameters(row: type[Row]) -> Mapping[str, Parameter]:
    hints = get_type_hints(row, include_extras=True)
    # A keyword-only one is inherited, and so comes first in the fields; it is written last.
    in_order = sorted(fields(row), key=lambda f: f.kw_only is True)
    annotated = [(f, get_args(hints[f.name])) for f in in_order if get_origin(hints[f.name]) is Annotated]
    return {f.name: Parameter(f.name, kind, f.default, says) for f, (_, kind, says) in annotated}


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table: its parameters are checked when it is made, and it can be written down.

    Raises SettingsError, which names the row, the parameter, its value and what it must be.
    """

    name: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for parameter in parameters(type(self)).values():
            value = getattr(self, parameter.name)
            if value is None and parameter.default is None:
                continue
            try:
                read = parameter.kind.read(value)
            except ValueError:
                raise self.refuse(parameter.name, f"must be {parameter.kind.expected}") from None
            object.__setattr__(self, parameter.name, read)

    def refuse(self, parameter: str, why: str) -> SettingsError:
        value = getattr(self, parameter)
        shown = value if isinstance(value, str) else repr(value)
        return SettingsError(f"{self.name}: {parameter}={shown}: {why}")

    @property
    def said(self) -> dict[str, Any]:
        """The parameters that are written: not those left out, and ``p`` only where it is not 1."""
        values = {name: getattr(self, name) for name in parameters(type(self))}
        unsaid = {name for name, value in values.items() if value is None or value == ()}
        if values.get("p") == 1:
            unsaid.add("p")
        return {name: value for name, value in values.items() if name not in unsaid}

    @property
    def text(self) -> str:
        """``name:key=value,key=value``."""
        kinds = parameters(type(self))
        written = ",".join(f"{name}={kinds[name].kind.text(value)}" for name, value in self.said.items())
        return f"{self.name}:{written}" if written else self.name


def make(kind: str, table: Mapping[str, type[Row]], name: str, values: Mapping[str, object]) -> Any:
    """The row ``name`` of ``table`` with these parameters. Raises SettingsError for unknown names."""
    if name not in table:
        raise SettingsError(unknown(kind, name, table))
    known = parameters(table[name])
    for key in values:
        if key not in known:
            raise SettingsError(f"{name}: {unknown('parameter', key, known)}")
    for parameter in known.values():
        if parameter.default is MISSING and parameter.name not in values:
            raise SettingsError(f"{name}: {parameter.name} is missing")
    return table[name](**values)
