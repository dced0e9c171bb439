"""What reproducing a published table or figure gives: tables for people, plain values for machines, and every caveat.

A number that fits because a constant was fitted says so; a number that the paper's text does not determine is called
inferred, never reproduced.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Options:
    """quick: smaller data and networks; out: a folder for figures (None: none are drawn); data: a folder of records."""

    quick: bool = False
    out: Path | None = None
    data: Path | None = None
    seed: int = 0


@dataclass(frozen=True)
class Table:
    """Rows of text under a header."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Reproduction:
    """assumptions: what was taken to be so; differences: where the numbers do not meet; values: all of it, for JSON."""

    name: str
    paper: str
    tables: tuple[Table, ...]
    assumptions: tuple[str, ...]
    differences: tuple[str, ...]
    values: dict[str, Any]
    figures: tuple[Path, ...] = field(default=())


Reproduce = Callable[[Options], Reproduction]
