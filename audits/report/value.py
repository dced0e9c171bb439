"""A place in the report's JSON, and how what lies there is printed: never without the pointer to it.

Numbers become <data>, text with a digit in it <span>, words of a drawing a `Said`; each names in `data-key` the place
that it came from, so that whoever reads the page, or a test, can hold it against the JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from markupsafe import Markup, escape

UNITS = ("B", "KB", "MB", "GB", "TB")
THIN, FAST = "\u202f", "\u00a0"  # between thousands; between a number and its unit


class Value:
    """A place in the report's JSON: attribute and index access give deeper places, in the template's own syntax."""

    __slots__ = ("at", "raw")

    def __init__(self, raw: Any, at: str = "") -> None:
        self.raw, self.at = raw, at

    def __getattr__(self, name: str) -> Value:
        if isinstance(self.raw, dict) and name in self.raw:
            return self[name]
        raise AttributeError(f"{self.at or '/'} has no {name!r}")

    def __getitem__(self, key: str | int) -> Value:
        return Value(self.raw[key], f"{self.at}/{str(key).replace('~', '~0').replace('/', '~1')}")

    def __iter__(self) -> Iterator[Value]:
        if isinstance(self.raw, dict):
            raise TypeError(f"{self.at} is a mapping; use its items()")
        return (self[i] for i in range(len(self.raw)))

    def items(self) -> list[tuple[Value, Value]]:
        """Of a mapping: each key, whose place is the mapping's, and its value."""
        return [(Value(key, self.at), self[key]) for key in self.raw]

    def __len__(self) -> int:
        return len(self.raw)

    def __bool__(self) -> bool:
        return bool(self.raw)

    def __eq__(self, other: object) -> bool:
        return bool(self.raw == (other.raw if isinstance(other, Value) else other))

    def __hash__(self) -> int:
        return hash(self.at)

    def __str__(self) -> str:
        if isinstance(self.raw, bool | int | float):
            raise TypeError(f"{self.at} is a number: print it with | num")
        return "" if self.raw is None else str(self.raw)

    def __html__(self) -> str:
        """Text; with its place where it has a digit, for that may be a figure."""
        words = str(self)
        if any(letter.isdigit() for letter in words):
            return str(Markup('<span data-key="{}">{}</span>').format(self.at, words))
        return str(escape(words))


def _count(number: float) -> str:
    return f"{number:,.0f}".replace(",", THIN)


def _bytes(number: float) -> str:
    size, unit = float(number), 0
    while size >= 1000 and unit < len(UNITS) - 1:
        size, unit = size / 1000, unit + 1
    return f"{size:.3g}{FAST}{UNITS[unit]}"


STYLES: Mapping[str, Callable[[float], str]] = MappingProxyType(
    {
        "plain": lambda number: f"{number:.3g}" if abs(number) < 1000 else _count(number),
        "short": lambda number: f"{number:.2g}" if abs(number) < 100 else _count(number),
        "percent": lambda number: f"{number:.1%}",
        "whole": lambda number: f"{number:.0%}",
        "count": _count,
        "bytes": _bytes,
        "p": lambda number: "< 0.001" if number < 0.001 else f"{number:.3f}",
    }
)


def shown(number: float, style: str = "plain") -> str:
    """A number for reading; style: one of STYLES."""
    return STYLES[style](number)


def num(value: Value, style: str = "plain") -> Markup:
    """A number as <data>, with its exact value and its JSON pointer; what is missing is said in words."""
    if value.raw is None:
        return Markup('<span class="missing">not measured</span>')
    if isinstance(value.raw, bool) or not isinstance(value.raw, int | float):
        raise TypeError(f"{value.at} is {value.raw!r}, expected a number")
    return Markup('<data value="{}" data-key="{}">{}</data>').format(value.raw, value.at, shown(value.raw, style))


def beginning(value: Value, length: int = 16) -> Markup:
    """The first letters of a long digest."""
    return Markup('<span class="beginning" data-key="{}">{}</span>').format(value.at, str(value)[:length])


def words(value: Value, style: str = "plain") -> str:
    """A number or text without markup."""
    if isinstance(value.raw, int | float) and not isinstance(value.raw, bool):
        return shown(value.raw, style)
    return "not measured" if value.raw is None else str(value)


class Said:
    """The text alternative of a drawing: plain words, values, and (value, style); it keeps the place of each value."""

    def __init__(self, *parts: str | Value | tuple[Value, str]) -> None:
        self.words, self.keys = "", list[str]()
        self.add(*parts)

    def add(self, *parts: str | Value | tuple[Value, str]) -> None:
        """Say more."""
        for part in parts:
            if isinstance(part, str):
                self.words += part
                continue
            value, style = part if isinstance(part, tuple) else (part, "plain")
            self.words += words(value, style)
            if value.raw is not None:
                self.keys.append(value.at)
