"""What the commands of this floor print: the leakage table, a sweep's settings, the matrix, and progress on stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from secsplit.commands.console import result, say

if TYPE_CHECKING:
    from rich.table import Table

    from audits.frontier import OverSeeds, Setting
    from audits.gate import Outcome
    from audits.matrix import Matrix, Square
    from audits.privacy import Audit

REASONS = 4  # of a rule, before the rest is only counted
Tell = Callable[[int, int, str], None]


def show(found: Audit) -> None:
    """The leakage table: a line for each headline figure, and one for each attack that failed."""
    from rich.table import Table

    from audits.findings import severity_of
    from audits.leakage import METRICS

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("attack", "adversary", "figure", "value", "chance", "95% interval", "n", "leak"):
        table.add_column(name, justify="right" if name in ("value", "chance", "95% interval", "n") else "left")
    for cell in found.cells:
        for leak in cell.leakages:
            if leak.headline:
                form = "{:.1%}" if METRICS[leak.metric].percent else "{:.3g}"
                ends = [form.format(end) if end is not None else "?" for end in (leak.low, leak.high)]
                table.add_row(
                    cell.attack, cell.threat, METRICS[leak.metric].title, form.format(leak.value),
                    form.format(leak.chance) if leak.chance is not None else "?", " to ".join(ends),
                    f"{leak.n} {leak.unit}", severity_of(leak) or "none",
                )  # fmt: skip
        if cell.status == "failed":
            table.add_row(cell.attack, cell.threat, "failed", "", "", "", "", cell.because)
    idle = sum(cell.status == "not applicable" for cell in found.cells)
    print_table(table)
    say(f"{len(found.cells)} combinations of attack and adversary, {idle} not applicable")


def show_outcome(outcome: Outcome) -> None:
    """A rule, the first reasons that decided, how many more there are, and what to do about it."""
    result(f"{outcome.state}  {outcome.id}: {outcome.asks}")
    if outcome.state == "pass":
        result(f"      {outcome.text}")
        return
    for reason in outcome.reasons[:REASONS]:
        result(f"      {reason}")
    if len(outcome.reasons) > REASONS:
        result(f"      and {len(outcome.reasons) - REASONS} more")
    if outcome.remedy:
        result(f"      remedy: {outcome.remedy}")


def show_settings(found: Sequence[Setting]) -> None:
    """A line for each setting of a sweep."""
    from rich.table import Table

    goals = dict.fromkeys(leak.goal for setting in found for leak in setting.leakages)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("setting")
    for name in (*(f"worst {goal} leak" for goal in goals), "accuracy", "seeds", "unbeaten"):
        table.add_column(name, justify="right")
    for setting in found:
        by_goal = {leak.goal: leak.score for leak in setting.leakages}
        scores = [_over_seeds(by_goal[goal]) if goal in by_goal else "not measured" for goal in goals]
        worth = _over_seeds(setting.accuracy) if setting.accuracy else "not measured"
        n = max([leak.score.n for leak in setting.leakages], default=0)
        table.add_row(setting.name, *scores, worth, str(n), "yes" if setting.best else "")
    print_table(table)
    say("leaks are scores from 0 (chance) to 1 (everything), mean over seeds and 95% interval")


def show_matrix(matrix: Matrix) -> None:
    """Attacks by adversaries: the worst headline figure's score, or the letter of the reason why there is none."""
    from rich.table import Table

    table = Table(title=f"{matrix.setting} ({matrix.topology})", title_justify="left", box=None, pad_edge=False,
                  header_style="bold")  # fmt: skip
    table.add_column("attack")
    for threat in matrix.threats:
        table.add_column(threat, justify="right")
    for line in matrix.lines:
        table.add_row(line.attack, *map(_shown, line.squares))
    print_table(table)
    for reason in matrix.reasons:
        result(f"  ({reason.mark}) {reason.text}")
    counts = (f"{matrix.count(status)} {status}" for status in ("ran", "not applicable", "failed"))
    result(f"  {', '.join(counts)}")
    result("")


def _shown(square: Square) -> str:
    if square.status != "ran":
        return f"{'failed ' if square.status == 'failed' else ''}({square.mark})"
    score = "?" if square.score is None else f"{square.score:.2f}"
    return f"{score} {square.severity or 'none'}"


def _over_seeds(figure: OverSeeds) -> str:
    if figure.low is None or figure.high is None:
        return f"{figure.mean:.2f}"
    return f"{figure.mean:.2f} ({max(0.0, figure.low):.2f} to {min(1.0, figure.high):.2f})"


def print_table(table: Table) -> None:
    """To stdout; a table folded to 80 columns cannot be read, so it is never narrower than 118."""
    from rich.console import Console

    Console(width=max(Console().width, 118)).print(table)


@contextmanager
def progress() -> Iterator[Tell]:
    """A bar on stderr with the time left, silent where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield lambda done, of, what: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("auditing", total=1)
        yield lambda done, of, what: bar.update(task, completed=done, total=of, description=what)
