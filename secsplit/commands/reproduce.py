"""`secsplit reproduce NAME`: published tables and figures, computed again, with every assumption beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from secsplit.commands.console import Json, result, result_json, say, table

if TYPE_CHECKING:
    from secsplit.reproduce import Reproduction


def register(app: typer.Typer) -> None:
    app.command("reproduce")(reproduce)


def reproduce(
    name: Annotated[str, typer.Argument(metavar="NAME", help="which table or figure; 'list' names them")] = "list",
    quick: Annotated[bool, typer.Option("--quick", help="smaller data and networks")] = False,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="write figures and JSON here")] = None,
    data: Annotated[Path | None, typer.Option("--data", metavar="PATH", help="where the records lie")] = None,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    as_json: Json = False,
) -> None:
    """Compute a published table or figure again, and say what was assumed, fitted or inferred."""
    from secsplit.reproduce import KNOWN, Options, named

    if name == "list":
        if as_json:
            result_json({known: what for known, (_, what) in KNOWN.items()})
        else:
            for known, (_, what) in KNOWN.items():
                result(f"{known}: {what}")
        return
    done = named(name)(Options(quick, out, data, seed))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / f"{name}.json").write_text(json.dumps(as_dict(done), indent=1) + "\n", encoding="utf-8")
    if as_json:
        result_json(as_dict(done))
        return
    for line in lines(done):
        result(line)
    for figure in done.figures:
        say(f"figure: {figure}")


def as_dict(done: Reproduction) -> dict[str, Any]:
    return {
        "name": done.name,
        "paper": done.paper,
        **done.values,
        "assumptions": done.assumptions,
        "differences": done.differences,
        "figures": [str(figure) for figure in done.figures],
    }


def lines(done: Reproduction) -> list[str]:
    """For people."""
    out = [done.paper]
    for each in done.tables:
        out += ["", each.title, *table(each.header, each.rows)]
    out += ["", "assumed:", *(f"  - {text}" for text in done.assumptions)]
    out += ["differences:", *(f"  - {text}" for text in done.differences)]
    return out
