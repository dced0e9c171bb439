"""`secsplit data ids` and `secsplit data common`: sites agree on the records that they share, without showing numbers.

Each site writes its list of keyed ids; what all lists have goes into `data.common` of each. A list tells others only
how many records a site has and, to those who hold the same key, which.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from secsplit.commands.console import Overrides, RunPath, result

data = typer.Typer(help="records that several sites hold", no_args_is_help=True)
List = Annotated[Path, typer.Option("--out", metavar="FILE", help="the list to write")]


def register(app: typer.Typer) -> None:
    app.add_typer(data, name="data")


@data.command("ids")
def ids(
    run_path: RunPath,
    out: List,
    party: Annotated[str, typer.Option(help="whose records, of those in the run file")],
    overrides: Overrides = None,
) -> None:
    """Write the keyed ids of a party's own records, one a line."""
    from secsplit.datasets import source_of
    from secsplit.datasets.align import write_ids
    from secsplit.errors import RunError, nearest
    from secsplit.run import load

    parties = load(run_path, overrides or []).file.parties
    if party not in parties:
        raise RunError(f"--party {party!r}: not in {run_path}; {nearest(party, parties)}")
    spec = parties[party].data
    if spec is None or spec.id_key is None:
        raise RunError(f"parties.{party}.data: no records of its own that an id_key names; set data.id and data.id_key")
    found = source_of(spec.model_copy(update={"common": None})).ids
    write_ids(out, found)
    result(f"{len(found)} records: {out}")


@data.command("common")
def common(lists: Annotated[list[Path], typer.Argument(metavar="LIST...", help="one list a site")], out: List) -> None:
    """Write the ids that every list has: each site's `data.common`."""
    from secsplit.datasets.align import common as shared
    from secsplit.datasets.align import read_ids, write_ids
    from secsplit.errors import DataError

    found = shared(*(read_ids(path) for path in lists))
    if not len(found):
        raise DataError(
            "the lists share no record; expected the same data.id_key and names written alike at every site"
        )
    write_ids(out, found)
    result(f"{len(found)} records in common: {out}")
