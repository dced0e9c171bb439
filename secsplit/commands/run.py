"""`secsplit train` and `secsplit join`: all parties here, or one at its own site."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from secsplit.allocator import keep_large_blocks
from secsplit.commands.console import Json, Out, Overrides, RunPath, progress, result, result_json, say

if TYPE_CHECKING:
    from secsplit.party import Party
    from secsplit.run import Run
    from secsplit.rundir import RunDir
    from secsplit.steps import News


def register(app: typer.Typer) -> None:
    app.command("train")(train)
    app.command("predict")(predict)
    app.command("join")(join)
    app.command("resume")(resume)


def train(
    run_file: RunPath,
    processes: Annotated[bool, typer.Option("--processes", help="one OS process a party, over real channels")] = False,
    out: Out = None,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Train with all parties on this machine: simulated in one process, or one process each."""
    from secsplit.run import load

    show(carried_out(load(run_file, overrides or []), out, processes=processes), as_json)


def predict(
    trained: Annotated[Path, typer.Argument(metavar="DIR", help="the folder of a finished run")],
    processes: Annotated[bool, typer.Option("--processes", help="one OS process a party, over real channels")] = False,
    out: Out = None,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Let a trained network answer for the test records, split, over the same links, without any label."""
    from secsplit.run import load

    start = json.dumps(str(trained.resolve()))
    settings = ['train.purpose="predict"', f"train.start={start}", *(overrides or [])]
    folder = carried_out(load(trained / "run.toml", settings), out or trained / "predictions", processes=processes)
    answers = {party.name: party.predictions() for party in folder.parties()}
    if as_json:
        result_json(
            {name: {key: value.tolist() for key, value in told.items()} for name, told in answers.items() if told}
        )
        return
    for name, told in answers.items():
        for key, value in told.items():
            result(f"{name} {key}: {len(value)} records answered")
    result(f"results: {folder.path}")


def resume(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="the folder of a run that was broken off")],
    processes: Annotated[bool, typer.Option("--processes", help="one OS process a party, over real channels")] = False,
    as_json: Json = False,
) -> None:
    """Go on after any crash, exactly, with all parties on this machine; at a site of its own: join --resume."""
    from secsplit.rundir import RunDir

    run = RunDir.open(folder).run()
    show(carried_out(run, folder, processes=processes, going_on=True), as_json)


def carried_out(run: Run, out: Path | None, *, processes: bool, going_on: bool = False) -> RunDir:
    """Carry out a run with all parties on this machine; the folder it left."""
    keep_large_blocks()
    folder = out or Path("runs") / run.file.name
    with progress(next(iter(run.file.parties))) as bar:
        if processes:
            from secsplit.launch import train_processes

            return train_processes(run, folder, bar.advance, resume=going_on)
        from secsplit.training import train_simulated

        return train_simulated(run, folder, bar, resume=going_on)


def join(
    run_file: RunPath,
    party: Annotated[str, typer.Option("--party", help="which party of the run file this is")],
    key: Annotated[Path, typer.Option("--key", help="its private key file")],
    roster: Annotated[Path, typer.Option("--roster", help="the signed list of who takes part")] = Path("roster.toml"),
    signer: Annotated[
        str, typer.Option("--signer", help="the roster signer's public identity file, or its fingerprint")
    ] = "signer.pub.toml",
    out: Out = None,
    overrides: Overrides = None,
    going_on: Annotated[bool, typer.Option("--resume", help="go on from the newest checkpoint all have")] = False,
    tell: Annotated[bool, typer.Option("--tell", hidden=True, help="news as JSON lines on stdout")] = False,
    as_json: Json = False,
) -> None:
    """Take one party's part in a run, at its own site, over encrypted channels."""
    from channels import PublicIdentity, Roster
    from secsplit.commands.keys import unlock
    from secsplit.errors import RunError, nearest
    from secsplit.run import load
    from secsplit.training import train_party

    keep_large_blocks()
    run = load(run_file, overrides or [])
    if party not in run.file.parties:
        raise RunError(f"{run_file}: --party {party!r} is not in its [parties]; {nearest(party, run.file.parties)}")
    me = unlock(key)
    if me.public.name != party:
        raise RunError(f"{key}: this is the key of {me.public.name!r}, expected the key of --party {party!r}")
    trusted = PublicIdentity.load(signer) if Path(signer).exists() else signer
    members = Roster.load(roster, trusted, seen=roster.with_suffix(".seen"))
    folder = out or Path("runs") / run.file.name
    with progress(party) as bar:
        done = train_party(run, folder, party, me, members, _Teller() if tell else bar, resume=going_on)
    if not tell:
        show(done, as_json)


class _Teller:
    """News as JSON lines on stdout for the process that started this one, at most twenty a second."""

    def __init__(self) -> None:
        self._next = 0.0

    def __call__(self, party: Party, news: News) -> None:
        if news.what != "turn" or time.monotonic() >= self._next:
            self._next = time.monotonic() + 0.05
            typer.echo(json.dumps(asdict(news)))


def show(folder: RunDir, as_json: bool) -> None:
    """What a finished run achieved."""
    value = summary(folder)
    if as_json:
        result_json(value)
        return
    for party, metrics in value["metrics"].items():
        for objective, values in metrics.items():
            result(f"{party} {objective}: " + ", ".join(f"{k} {v:.4g}" for k, v in values.items()))
    result(f"results: {value['folder']}")
    say(f"audit them with: secsplit audit {value['folder']}")


def summary(folder: RunDir) -> dict[str, Any]:
    """The last epoch's metrics by party, and where everything lies."""
    last = {party.name: lines[-1] for party in folder.parties() if (lines := party.metrics())}
    return {
        "folder": str(folder.path),
        "digest": (folder.path / "digest").read_text().strip(),
        "epochs": max((line["epoch"] + 1 for line in last.values()), default=0),
        "metrics": {name: line["metrics"] for name, line in last.items() if line["metrics"]},
    }
