"""`secsplit demo`: the whole path on real data in one command, the way a newcomer should first see it.

Two hospitals and a compute server train as separate processes over mutually authenticated encrypted links; then the
attacks run on what was really exchanged, and a report is written. Nothing here is special to the demo: each step is
what `train --processes`, `audit` and `report` do.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Annotated

import typer

from secsplit.commands.console import Json, progress, result, result_json, say

RUN_FILE = Path(__file__).parent / "demo.toml"


WRITTEN = {
    "report.html": "the report, to open in a browser",
    "report.json": "the same for programs",
    "report.schema.json": "its schema",
    "MODEL_CARD.md": "a model card",
    "dpia.md": "fields of an impact assessment",
}


def register(app: typer.Typer) -> None:
    app.command("demo")(demo)


def demo(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="folder for the results")] = Path("secsplit-demo"),
    as_json: Json = False,
) -> None:
    """Watch two hospitals and a server train over encrypted links, see the attacks run, open the report."""
    from audits.cli import audited, reported
    from audits.tables import show
    from secsplit.commands.run import show as show_metrics
    from secsplit.commands.run import summary
    from secsplit.launch import train_processes
    from secsplit.run import load

    run = load(RUN_FILE)
    began = time.monotonic()
    shutil.rmtree(out, ignore_errors=True)
    parties = ", ".join(f"{name} ({party.role})" for name, party in run.file.parties.items())
    say(f"training over encrypted links, one process each: {parties}")
    with progress(next(iter(run.file.parties))) as bar:
        folder = train_processes(run, out, bar.advance)
    if not as_json:
        show_metrics(folder, as_json=False)
    say("attacking what was really exchanged")
    found = audited(out)
    files = reported(out)
    if as_json:
        result_json({**summary(folder), "audit": found.model_dump(mode="json"), "files": [str(f) for f in files]})
        return
    result("")
    show(found)
    result("")
    for file in files:
        result(f"{WRITTEN.get(file.name, 'written')}: {file}")
    say(f"done in {time.monotonic() - began:.0f} seconds; a failed attack is not evidence of safety")
