"""`secsplit audit` and `secsplit report`: what the messages of a finished run give away, and the report of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from secsplit.commands.console import Json, Overrides, result, result_json, say

if TYPE_CHECKING:
    from audits.privacy import Audit

Target = Annotated[Path, typer.Argument(metavar="RUN.toml|DIR", help="a run file, or the folder of a finished run")]
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="the folder of a finished run")]


def register(app: typer.Typer) -> None:
    app.command("audit")(audit)
    app.command("report")(report)
    app.command("gate")(gate)


def audit(target: Target, overrides: Overrides = None, as_json: Json = False) -> None:
    """Attack what a finished run really exchanged, and score it against the truth."""
    folder = folder_of(target, overrides or [])
    found = audited(folder)
    if as_json:
        result_json(found.model_dump(mode="json"))
        return
    show(found)
    result(f"audit: {folder / 'audit.json'}")
    say(f"write its report with: secsplit report {folder}")


def report(
    folder: Folder,
    policy: Annotated[Path | None, typer.Option("--policy", metavar="POLICY.toml", help="give a verdict by it")] = None,
    as_json: Json = False,
) -> None:
    """Write the report of an audited run: report.html and report.json."""
    import json

    files = reported(folder, policy)
    if as_json:
        result_json(json.loads(files[0].read_text()))
        return
    for file in files:
        result(str(file))


def audited(folder: Path) -> Audit:
    """Audit a finished run's folder, and leave the result there."""
    from audits.config import audit_spec
    from audits.control import audit_with_control
    from audits.finished import Finished
    from audits.shelf import Shelf

    finished = Finished.open(folder)
    with _progress() as tell:
        found = audit_with_control(finished, audit_spec(finished.run), tell, shelf=Shelf(folder / "cells"))
    found.save(folder)
    return found


def gate(
    folder: Folder,
    policy: Annotated[Path, typer.Option("--policy", metavar="POLICY.toml", help="the rules")],
    as_json: Json = False,
) -> None:
    """Hold an audited run against a policy: exit 1 where a rule fails or its evidence is missing."""
    from audits.gate import Evidence, judge, passed
    from audits.junit import junit
    from audits.policy import load
    from audits.sarif import sarif
    from secsplit.rundir import write_atomically

    rules, evidence = load(policy), Evidence.open(folder)
    outcomes = judge(rules, evidence)
    write_atomically(folder / "gate.sarif", sarif(rules, outcomes).encode())
    write_atomically(folder / "gate.junit.xml", junit(rules, outcomes))
    if as_json:
        result_json({"policy": rules.name, "passed": passed(outcomes), "rules": [o.model_dump() for o in outcomes]})
    else:
        for outcome in outcomes:
            result(f"{outcome.state}  {outcome.id}: {outcome.text}")
        failed = sum(outcome.state == "fail" for outcome in outcomes)
        result(f"{'passed' if passed(outcomes) else 'failed'}: {failed} of {len(outcomes)} rules fail")
    if not passed(outcomes):
        raise typer.Exit(1)


def reported(folder: Path, policy: Path | None = None) -> Sequence[Path]:
    """Write the report of an audited run's folder; the files it wrote."""
    from audits.finished import Finished
    from audits.policy import load
    from audits.privacy import Audit
    from audits.report.assemble import report_of
    from audits.report.write import write

    found = Audit.load(folder)
    finished = Finished.open(folder)
    found.belongs_to(finished.run.digest().hex())
    return write(report_of(finished, found, policy=load(policy) if policy else None), folder)


def folder_of(target: Path, overrides: list[str]) -> Path:
    """The finished run's folder; a run file is first trained, simulated, where its folder is not there yet."""
    if target.is_dir():
        return target
    from secsplit.run import load
    from secsplit.training import train_simulated

    run = load(target, overrides)
    folder = Path("runs") / run.file.name
    if not (folder / "digest").exists() or (folder / "digest").read_text().strip() != run.digest().hex():
        say(f"training {run.file.name} first")
        train_simulated(run, folder, lambda party, news: None)
    return folder


def show(found: Audit) -> None:
    """The leakage table: a line for each headline figure, and one for each attack that failed."""
    from rich.console import Console
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
    Console(width=max(Console().width, 118)).print(table)  # a table folded to 80 columns cannot be read
    say(f"{len(found.cells)} combinations of attack and adversary, {idle} not applicable")


def _progress() -> Any:
    """A bar on stderr, silent where stderr is no terminal; gives the audit's `tell`."""
    import sys
    from contextlib import contextmanager

    @contextmanager
    def silent() -> Any:
        yield lambda done, of, what: None

    @contextmanager
    def bar() -> Any:
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("auditing", total=1)
            yield lambda done, of, what: progress.update(task, completed=done, total=of, description=what)

    return bar() if sys.stderr.isatty() else silent()
