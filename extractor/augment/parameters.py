"""The kit for parameters: what each takes, how it is written, when it is refused.

A kind (`Number`, `Whole`, ...) reads a value from text, from YAML or from Python alike, says what it expects,
and writes a value as text so that it is read again as exactly the same: numbers by ``repr``, so no digit is
lost. A row of a table is a frozen dataclass whose fields are annotated with a kind and a line that says what
it is: ``rate: Annotated[Range, Interval(0.25, 4), "times as fast"]``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from numbers import Integral, Real
from typing import Annotated, Any, ClassVar, TypeAlias, get_args, get_origin, get_type_hints

from extractor.errors import SettingsError, unknown

Range: TypeAlias = tuple[float, float]  # drawn from uniformly; both ends may be equal
Spans: TypeAlias = tuple[tuple[int, int], ...]  # [first, last) each

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_RANGE = re.compile(rf"({_NUMBER})(?:\s*(?:\.\.|-)\s*({_NUMBER}))?")
_SPAN = re.compile(r"(\d+)-(\d+)")
# What needs no quotes; `extractor.augment.text` reads values by the same pattern.
PLAIN = r'[^\s,+|()"]+'


def number_text(value: float) -> str:
    """The shortest text that is read as the same number; whole ones without a point."""
    return repr(value).removesuffix(".0")


@dataclass(frozen=True, slots=True)
class Kind:
    """What a parameter takes. ``expected`` says it to a person: "a number within 0 to 1"."""

    @property
    def expected(self) -> str:
        raise NotImplementedError  # never reached: each kind has its own

    def read(self, value: Any) -> Any:
        """The value as it is kept, from text or Python; raises ValueError where it is of another kind."""
        raise NotImplementedError  # never reached: each kind has its own

    def holds(self, value: object) -> bool:
        """Whether a Python value, as it is, is of this kind: a text is no number here."""
        try:
            self.read(value)
        except ValueError:
            return False
        return not isinstance(value, str)

    def text(self, value: Any) -> str:
        return str(value)


@dataclass(frozen=True, slots=True)
class Number(Kind):
    """A number within ``low`` to ``high``; ``above``, ``below``: not these ends themselves."""

    low: float
    high: float = math.inf
    unit: str = ""
    above: bool = False
    below: bool = False
    words: str = ""  # that say it better than these do

    @property
    def expected(self) -> str:
        return self.words or f"a number{self.limits}"

    @property
    def limits(self) -> str:
        low, high = number_text(self.low), number_text(self.high)
        if self.high == math.inf:
            limits = f" above {low}" if self.above else f", {low} or more"
        elif self.below:
            limits = f" between {low} and {high}" if self.above else f" from {low} up to but not {high}"
        else:
            limits = f" above {low} and at most {high}" if self.above else f" within {low} to {high}"
        return f"{limits}{self.unit and ' ' + self.unit}"

    def read(self, value: Any) -> Any:
        if isinstance(value, str) and re.fullmatch(_NUMBER, value.strip()):
            value = float(value)
        if isinstance(value, bool) or not isinstance(value, Real):
            raise ValueError  # noqa: TRY004 - as for any value that does not fit
        number = float(value)
        beyond_low = number > self.low if self.above else number >= self.low
        below_high = number < self.high if self.below else number <= self.high
        if not (math.isfinite(number) and beyond_low and below_high):
            raise ValueError
        return number

    def text(self, value: float) -> str:
        return number_text(value)


@dataclass(frozen=True, slots=True)
class Interval(Number):
    """A range to draw from, ``a..b`` or ``a-b``, or one number: always that one."""

    @property
    def expected(self) -> str:
        return f"a range a..b, or one number,{self.limits}"

    def read(self, value: Any) -> Range:
        if isinstance(value, str):
            match = _RANGE.fullmatch(value.strip())
            if match is None:
                raise ValueError
            value = match.groups() if match[2] else match[1]
        ends = value if isinstance(value, list | tuple) else (value, value)
        if len(ends) != 2:
            raise ValueError
        first, last = (Number.read(self, end) for end in ends)
        if last < first:
            raise ValueError
        return first, last

    def text(self, value: Range) -> str:  # type: ignore[override]  # what `read` gives
        # ".." and not "-": it is read alike for negative numbers and powers of ten.
        return number_text(value[0]) if value[0] == value[1] else "..".join(map(number_text, value))


@dataclass(frozen=True, slots=True)
class Whole(Kind):
    """A whole number within ``low`` to ``high``."""

    low: int
    high: int | None = None
    unit: str = ""

    @property
    def expected(self) -> str:
        limits = f", {self.low} or more" if self.high is None else f" within {self.low} to {self.high}"
        return f"a whole number{limits}{self.unit and ' ' + self.unit}"

    def read(self, value: Any) -> int:
        whole = isinstance(value, Integral) and not isinstance(value, bool)
        if not whole and not (isinstance(value, str) and re.fullmatch(r"[+-]?\d{1,20}", value)):
            raise ValueError
        number = int(value)
        if number < self.low or (self.high is not None and number > self.high):
            raise ValueError
        return number


@dataclass(frozen=True, slots=True)
class Choice(Kind):
    """One of some names."""

    names: tuple[str, ...]

    @property
    def expected(self) -> str:
        return "one of " + ", ".join(self.names)

    def read(self, value: Any) -> str:
        if value not in self.names:
            raise ValueError
        return str(value)


@dataclass(frozen=True, slots=True)
class Flag(Kind):
    """Yes or no, or as Python says it."""

    words: str = "yes or no"

    @property
    def expected(self) -> str:
        return self.words

    def read(self, value: Any) -> bool:
        if not isinstance(value, bool) and value not in ("yes", "no"):
            raise ValueError
        return value in (True, "yes")

    def text(self, value: bool) -> str:
        return "yes" if value else "no"


@dataclass(frozen=True, slots=True)
class OrNone(Kind):
    """Of another kind, or None: not limited, not used."""

    kind: Kind

    @property
    def expected(self) -> str:
        return f"{self.kind.expected}, or None"

    def read(self, value: Any) -> Any:
        return None if value is None else self.kind.read(value)


@dataclass(frozen=True, slots=True)
class Name(Kind):
    """A path, an id: any text but none. Quoted where it has characters that mean something here."""

    @property
    def expected(self) -> str:
        return "a text"

    def read(self, value: Any) -> str:
        if not isinstance(value, str) or not value:
            raise ValueError
        return value

    def text(self, value: str) -> str:
        if value.isprintable() and re.fullmatch(PLAIN, value):
            return value
        # Escapes what cannot be printed; an undecodable file name (lone surrogates) survives, too.
        return json.dumps(value, ensure_ascii=not value.isprintable())


@dataclass(frozen=True, slots=True)
class Parts(Kind):
    """Parts ``[first, last)`` of an axis: ``3-10;20-28``."""

    unit: str

    @property
    def expected(self) -> str:
        return f"parts as in 3-10;20-28, in {self.unit}"

    def read(self, value: Any) -> Spans:
        if isinstance(value, str):
            matches = [_SPAN.fullmatch(part) for part in value.split(";")]
            value = [match.groups() if match else () for match in matches]
        if not isinstance(value, list | tuple) or any(len(pair) != 2 for pair in value):
            raise ValueError
        spans = tuple((int(first), int(last)) for first, last in value)
        if any(not 0 <= first < last for first, last in spans):
            raise ValueError
        return spans

    def text(self, value: Spans) -> str:
        return ";".join(f"{first}-{last}" for first, last in value)


@dataclass(frozen=True, slots=True)
class Parameter:
    """What a table of parameters shows of one."""

    name: str
    kind: Kind
    default: Any
    says: str


def parameters(row: type[TableRow]) -> Mapping[str, Parameter]:
    """The parameters of a row of the tables, in the order in which they are written."""
    return _parameters(row)  # type: ignore[arg-type]  # mypy takes a dataclass's own hash for its type's


@cache
def _parameters(row: type[TableRow]) -> Mapping[str, Parameter]:
    hints = get_type_hints(row, include_extras=True)
    # A keyword-only one is inherited, and so comes first in the fields; it is written last.
    in_order = sorted(fields(row), key=lambda f: f.kw_only is True)
    annotated = [(f, get_args(hints[f.name])) for f in in_order if get_origin(hints[f.name]) is Annotated]
    return {f.name: Parameter(f.name, kind, f.default, says) for f, (_, kind, says) in annotated}


@dataclass(frozen=True, slots=True)
class TableRow:
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
        return {
            name: value
            for name, value in values.items()
            if value is not None and value != () and not (name == "p" and value == 1)
        }

    @property
    def text(self) -> str:
        """``name:key=value,key=value``."""
        kinds = parameters(type(self))
        written = ",".join(f"{name}={kinds[name].kind.text(value)}" for name, value in self.said.items())
        return f"{self.name}:{written}" if written else self.name


def make(kind: str, table: Mapping[str, type[TableRow]], name: str, values: Mapping[str, object]) -> Any:
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
