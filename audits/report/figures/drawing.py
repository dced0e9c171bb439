"""Small SVG made by hand: no script, colours from the page's style, readable in grey, marks that differ in shape.

A word or number of the report is drawn with the place it came from; a tick of a scale is nobody's figure and is marked
as such. This file knows no section of the report.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from audits.report.value import Said, Value, words

WIDTH = 720
HALF = WIDTH / 2
SHAPES = ("disc", "square", "diamond", "cross")
KINDS = ("s1", "s2", "s3", "s4")


def svg(height: float, said: Said, body: Iterable[str], *, width: float = WIDTH) -> Markup:
    """A drawing with its text alternative."""
    kind = "figure half" if width < WIDTH else "figure"
    title, keys = escape(said.words), escape(" ".join(said.keys))
    # every word of it went through escape()
    return Markup(  # nosec B704
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{title}" data-keys="{keys}" class="{kind}">'
        f"<title>{title}</title>{''.join(body)}</svg>"
    )


def text(
    x: float, y: float, said: str | Value | Sequence[str | Value], style: str = "plain", *, anchor: str = "start",
    kind: str = "",
) -> str:  # fmt: skip
    """Words, values with their places, or some of both."""
    css = f' class="{kind}"' if kind else ""
    parts = [said] if isinstance(said, str | Value) else said
    inside = "".join(
        escape(part)
        if isinstance(part, str)
        else f'<tspan data-key="{escape(part.at)}">{escape(words(part, style))}</tspan>'
        for part in parts
    )
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}"{css}>{inside}</text>'


def tick(x: float, y: float, label: str, *, anchor: str = "middle") -> str:
    """A mark of a scale."""
    return text(x, y, label, anchor=anchor, kind="small tick")


def line(x1: float, y1: float, x2: float, y2: float, kind: str = "") -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def path(points: Sequence[tuple[float, float]], kind: str, *, closed: bool = False) -> str:
    """A line through points, or the area inside them."""
    way = " ".join(f"{'M' if i == 0 else 'L'}{x:.1f} {y:.1f}" for i, (x, y) in enumerate(points))
    return f'<path d="{way}{"z" if closed else ""}" class="{kind}"/>'


def mark(x: float, y: float, shape: str = "disc", kind: str = "s1") -> str:
    """A point: disc, square, diamond or cross."""
    if shape == "disc":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" class="{kind}"/>'
    if shape == "square":
        return f'<rect x="{x - 4.5:.1f}" y="{y - 4.5:.1f}" width="9" height="9" class="{kind}"/>'
    if shape == "diamond":
        return f'<path d="M{x:.1f} {y - 6:.1f}l6 6l-6 6l-6-6z" class="{kind}"/>'
    return f'<path d="M{x - 4:.1f} {y - 4:.1f}l8 8m0-8l-8 8" class="{kind} stroke"/>'


@dataclass(frozen=True)
class Scale:
    """From a range of values to a range of the drawing; values outside stand at its ends. log: of base 10."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        inside = min(self.high, max(self.low, value))
        if self.log:
            share = math.log(inside / self.low) / math.log(self.high / self.low)
        else:
            share = (inside - self.low) / ((self.high - self.low) or 1.0)
        return self.start + share * (self.end - self.start)


@dataclass(frozen=True)
class Plot:
    """A drawing area with a scale each way; x_name, y_name: what is drawn against what."""

    x: Scale
    y: Scale
    x_name: str
    y_name: str

    def frame(self, x_ticks: Sequence[tuple[float, str]], y_ticks: Sequence[tuple[float, str]]) -> list[str]:
        """Grid, ticks (value, label) and names."""
        body = []
        for value, label in x_ticks:
            body.append(line(self.x(value), self.y.start, self.x(value), self.y.end, "grid"))
            body.append(tick(self.x(value), self.y.start + 16, label))
        for value, label in y_ticks:
            body.append(line(self.x.start, self.y(value), self.x.end, self.y(value), "grid"))
            body.append(tick(self.x.start - 7, self.y(value) + 4, label, anchor="end"))
        middle = (self.x.start + self.x.end) / 2
        body.append(text(middle, self.y.start + 32, self.x_name, anchor="middle", kind="small"))
        body.append(text(self.x.start, self.y.end - 7, self.y_name, kind="small"))
        return body

    def whisker(self, x: float, low: float | None, high: float | None) -> list[str]:
        """An interval at x; nothing where there is none."""
        if low is None or high is None:
            return []
        return [line(self.x(x), self.y(low), self.x(x), self.y(high), "interval")]

    def series(self, points: Sequence[tuple[float, float]], index: int) -> list[str]:
        """A line with marks; each series has its own colour, shape and dash."""
        kind, shape = KINDS[index % len(KINDS)], SHAPES[index % len(SHAPES)]
        places = [(self.x(x), self.y(y)) for x, y in points]
        return [path(places, f"{kind} stroke"), *(mark(x, y, shape, kind) for x, y in places)]


def key(index: int, x: float, y: float, *said: str | Value) -> list[str]:
    """A line of a legend."""
    return [mark(x, y - 4, SHAPES[index % len(SHAPES)], KINDS[index % len(KINDS)]), text(x + 11, y, said, kind="small")]
