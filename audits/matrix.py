"""Attack x topology x adversary as one table: every combination ran, did not apply because, or failed because.

A reason is written out once and marked by a letter, so that the table stays readable and nothing is missing from it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from audits.findings import severity_of
from audits.frozen import Frozen
from audits.leakage import Goal, worst
from audits.privacy import Audit, Cell, Status
from audits.sweep import Grid


class Square(Frozen):
    """One attack by one adversary. metric, value, score: its worst headline figure; mark: of the reason, else ""."""

    status: Status
    mark: str = ""
    metric: str | None = None
    value: float | None = None
    score: float | None = None
    severity: str | None = None


class Line(Frozen):
    """One attack against every adversary, in the order of the matrix's threats."""

    attack: str
    goal: Goal
    squares: tuple[Square, ...]


class Reason(Frozen):
    """Why something did not run."""

    mark: str
    text: str


class Matrix(Frozen):
    """All attacks against all adversaries of one setting."""

    setting: str
    topology: str
    threats: tuple[str, ...]
    lines: tuple[Line, ...]
    reasons: tuple[Reason, ...]

    def count(self, status: Status) -> int:
        return sum(square.status == status for line in self.lines for square in line.squares)


def matrix_of(audit: Audit, *, setting: str, topology: str) -> Matrix:
    """The audit's cells as a matrix. Raises ValueError where a combination is missing or comes twice."""
    threats = tuple(threat.name for threat in audit.threats)
    cells = {(cell.attack, cell.threat): cell for cell in audit.cells}
    names = dict.fromkeys(cell.attack for cell in audit.cells)
    if len(cells) != len(audit.cells) or len(cells) != len(names) * len(threats):
        raise ValueError(f"{setting}: {len(audit.cells)} cells of {len(names)} attacks by {len(threats)} adversaries")
    because = dict.fromkeys(cell.because for cell in audit.cells if cell.because)
    marks = dict(zip(because, _letters(), strict=False))
    lines = tuple(
        Line(attack=name, goal=cells[name, threats[0]].goal,
             squares=tuple(_square(cells[name, threat], marks) for threat in threats))
        for name in names
    )  # fmt: skip
    reasons = tuple(Reason(mark=mark, text=text) for text, mark in marks.items())
    return Matrix(setting=setting, topology=topology, threats=threats, lines=lines, reasons=reasons)


def matrices_of(grid: Grid) -> tuple[Matrix, ...]:
    """One matrix a setting, of its first seed."""
    found = [(name, grid.of(name)[0]) for name in grid.settings]
    return tuple(matrix_of(point.audit, setting=name, topology=point.topology) for name, point in found)


def several_topologies(grid: Grid) -> bool:
    """Whether the settings are of several topologies: no alternatives to choose from, but a matrix to read."""
    return len({point.topology for point in grid.points}) > 1


def _square(cell: Cell, marks: dict[str, str]) -> Square:
    leak = worst(cell.leakages) or next((leak for leak in cell.leakages if leak.headline), None)
    if leak is None:
        return Square(status=cell.status, mark=marks.get(cell.because, ""))
    return Square(
        status=cell.status, metric=leak.metric, value=leak.value, score=leak.score, severity=severity_of(leak)
    )


def _letters() -> Iterator[str]:
    """a, b, ..., z, aa, ab, ..."""
    letters: Sequence[str] = "abcdefghijklmnopqrstuvwxyz"
    yield from letters
    yield from (first + second for first in letters for second in letters)
