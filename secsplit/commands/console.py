"""What all commands share: where results and progress go, and how a run file is named on the command line."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from secsplit.party import Party
    from secsplit.steps import News

RunPath = Annotated[Path, typer.Argument(metavar="RUN.toml", help="the run file")]
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="a.b=c", help="override a key of the run file")]
Json = Annotated[bool, typer.Option("--json", help="print the result as JSON")]
Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="folder for the results [runs/NAME]")]


def result(text: str) -> None:
    """A line of the result, to stdout."""
    typer.echo(text)


def result_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=1))


def say(text: str) -> None:
    """A line for the person watching, to stderr."""
    typer.echo(text, err=True)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines with aligned columns: the first to the left, the others to the right."""
    rows = [header, *rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    padded = (
        [cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(r, widths, strict=True))] for r in rows
    )
    return ["  " + "  ".join(cells).rstrip() for cells in padded]


class Progress:
    """A bar on stderr while a run trains; silent where stderr is no terminal."""

    def __init__(self, bar: Any, task: Any, party: str) -> None:
        self._bar, self._task, self._party = bar, task, party

    def __call__(self, party: Party, news: News) -> None:
        self.advance(party.name, news)

    def advance(self, party: str, news: News) -> None:
        if self._bar is not None and party == self._party:
            self._bar.update(self._task, total=news.steps, completed=news.step, description=f"epoch {news.epoch + 1}")


@contextmanager
def progress(party: str) -> Iterator[Progress]:
    """Show `party`'s progress; the whole run advances with it."""
    if not sys.stderr.isatty():
        yield Progress(None, None, party)
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:.0f}/{task.total:.0f}"))
    with Bar(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
        yield Progress(bar, bar.add_task("training", total=1), party)
