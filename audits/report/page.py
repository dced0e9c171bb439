"""The page: one HTML file without script or remote asset, rendered from the report's JSON and from nothing else.

Every number is printed through `num`, which takes a `Value` that knows its JSON pointer; so each carries the place it
came from (`data-key`), and a number without one cannot be printed.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup, escape

from audits.findings import severity_of
from audits.leakage import METRICS, Leakage
from audits.report import figures

UNITS = ("B", "KB", "MB", "GB", "TB")


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

    def items(self) -> list[tuple[str, Value]]:
        return [(key, self[key]) for key in self.raw]

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
        return str(escape(str(self)))


def num(value: Value, style: str = "plain") -> Markup:
    """A number as <data>, with its exact value and its JSON pointer; what is missing is said in words."""
    if value.raw is None:
        return Markup('<span class="missing">not measured</span>')
    if isinstance(value.raw, bool) or not isinstance(value.raw, int | float):
        raise TypeError(f"{value.at} is {value.raw!r}, expected a number")
    return Markup('<data value="{}" data-key="{}">{}</data>').format(value.raw, value.at, shown(value.raw, style))


def shown(number: float, style: str = "plain") -> str:
    """A number for reading. style: plain (three digits), percent, count, bytes, p."""
    if style == "percent":
        return f"{number:.1%}"
    if style == "count":
        return f"{number:,.0f}".replace(",", "\u202f")
    if style == "p":
        return "< 0.001" if number < 0.001 else f"{number:.3f}"
    if style == "bytes":
        size, unit = float(number), 0
        while size >= 1000 and unit < len(UNITS) - 1:
            size, unit = size / 1000, unit + 1
        return f"{size:.3g}\u00a0{UNITS[unit]}"
    return f"{number:.3g}" if abs(number) < 1000 else f"{number:,.0f}".replace(",", "\u202f")


def style_of(leak: Value) -> str:
    """How a leakage's numbers are printed."""
    return "percent" if METRICS[leak.raw["metric"]].percent else "plain"


def weight(value: Value) -> str:
    """The severity of a leakage, in one word: also its class in the page."""
    known = {key: value for key, value in value.raw.items() if key not in ("groups", "baselines")}
    leak = Leakage(**known)
    return severity_of(leak) or ("above chance" if leak.leaks else "none")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("audits.report", "."),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"num": num, "weight": weight}
    environment.globals |= {"metrics": METRICS, "figures": figures, "len": len, "style_of": style_of}
    return environment


def plain(value: Value) -> str:
    """A number in running text, without markup."""
    return "not measured" if value.raw is None else shown(value.raw)


def ask(field: Value) -> str:
    """A question to the controller, answered or left open."""
    return f"**{field.question}** ({field.reference})\n\n{field.answer or '____ (to be filled in by the controller)'}\n"


def document(name: str, report: dict[str, Any]) -> str:
    """A Markdown document of the report's JSON: model_card or dpia. Cells of tables hold no line break or bar."""
    environment = _environment().overlay(autoescape=False)
    environment.filters = {**environment.filters, "plain": plain}
    made = environment.get_template(f"{name}.md.jinja").render(r=Value(report), ask=ask)
    return made.rstrip() + "\n"


def page(report: dict[str, Any]) -> str:
    """The page of a report's JSON, as parsed from `report.json`."""
    template = _environment().get_template("report.html.jinja")
    style = (Path(__file__).parent / "report.css").read_text(encoding="utf-8")
    return template.render(r=Value(report), style=Markup(style))  # nosec B704 - our own file
