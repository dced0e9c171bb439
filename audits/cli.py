"""`secsplit audit` and `secsplit report`: what the messages of a finished run give away, and the report of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from audits.tables import progress, show, show_matrix, show_outcome, show_settings
from secsplit.commands.console import Json, Out, Overrides, result, result_json, say

if TYPE_CHECKING:
    from audits.gate import Outcome
    from audits.policy import Policy
    from audits.privacy import Audit

Target = Annotated[
    Path,
    typer.Argument(
        metavar="RUN.toml|DIR|FILE.npz|FILE.safetensors",
        help="a run file, the folder of a finished run, or what another tool recorded",
    ),
]
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="the folder of a finished run")]


def register(app: typer.Typer) -> None:
    app.command("audit")(audit)
    app.command("export")(export)
    app.command("report")(report)
    app.command("gate")(gate)
    app.command("advise")(advise)
    app.command("seal")(seal)
    app.command("verify")(verify)


def audit(
    target: Target,
    jobs: Annotated[int, typer.Option("-j", "--jobs", min=1, help="processes for a [grid]")] = 1,
    channel: Annotated[
        bool, typer.Option("--channel", help="also attack the channel with every fault of a tap")
    ] = False,
    executor: Annotated[str, typer.Option(help="who carries out a [grid]: processes, or ray")] = "processes",
    dp: Annotated[bool, typer.Option("--dp", help="audit the claimed epsilon instead: canaries, lower bounds")] = False,
    out: Out = None,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Attack what a finished run really exchanged, and score it against the truth; a [grid] table sweeps."""
    if target.is_dir() and (overrides or out):
        raise _finished(target)
    if target.suffix in (".npz", ".safetensors"):
        audited_tensors(target, out, as_json)
        return
    if dp:
        audit_epsilon(target, overrides or [], as_json)
        return
    if target.is_file() and (tables := _grid_tables(target, overrides or [])):
        swept(tables, out, jobs, executor, as_json)
        return
    folder = folder_of(target, overrides or [], out)
    found = audited(folder)
    if as_json:
        result_json(found.model_dump(mode="json"))
        return
    show(found)
    result(f"audit: {folder / 'audit.json'}")
    if channel:
        attack_channel(folder)
    say(f"write its report with: secsplit report {folder}")


def _finished(folder: Path) -> Exception:
    from secsplit.errors import RunError

    return RunError(f"--set and --out are for a run file; {folder} is a finished run, audited as it is, where it is")


def audited_tensors(file: Path, out: Path | None, as_json: bool) -> None:
    """Audit what another tool recorded, and leave the result beside the file or in `out`."""
    from audits.config import AuditSpec
    from audits.foreign import Foreign, audit_foreign
    from audits.matrix import matrix_of

    with progress() as tell:
        found = audit_foreign(Foreign.open(file), AuditSpec(gallery=0), tell)
    folder = out or file.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    found.save(folder)
    if as_json:
        result_json(found.model_dump(mode="json"))
        return
    show(found)
    show_matrix(matrix_of(found, setting=file.name, topology="vanilla, labels at the server"))
    result(f"audit: {folder / 'audit.json'}")


def export(
    folder: Folder,
    party: Annotated[str, typer.Option("--party", help="whose transcript")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE.npz|FILE.safetensors", help="the file to write")],
) -> None:
    """Write a party's transcript as plain tensors, for any other tool: activations, gradients, labels, rows."""
    from audits.finished import Finished
    from audits.plain import exported, write

    tensors = exported(Finished.open(folder), party)
    write(out, tensors)
    for name, tensor in tensors.items():
        result(f"{name}: {tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}")
    say("the labels among them are the truth: whoever is given this file needs no attack")


def audit_epsilon(target: Path, overrides: list[str], as_json: bool) -> None:
    """Lower bounds on epsilon beside what is claimed. Exit code 1 where a claim is contradicted."""
    from audits.dp_found import found_of
    from audits.dp_run import audit_run
    from secsplit.run import load
    from secsplit.rundir import RunDir

    run = RunDir.open(target).run() if target.is_dir() else load(target, overrides)
    found = found_of(run, audit_run(run))
    if target.is_dir():
        found.save(target)
    if as_json:
        result_json(found.model_dump(mode="json"))
    else:
        for statement in found.statements:
            result(statement)
    say("a lower bound below the claim proves nothing good: the mechanism may leak more than this test saw")
    if found.violations:
        raise typer.Exit(1)


def attack_channel(folder: Path) -> None:
    """Commit every fault on each channel of this project; exit 1 where one of them got a changed byte delivered."""
    import logging

    from audits.channel import audit_channel, save

    logging.getLogger("secsplit.channels").setLevel(logging.ERROR)  # refusals are what is hoped for
    trials = audit_channel()
    for suite in dict.fromkeys(trial.suite for trial in trials):
        mine = [trial for trial in trials if trial.suite == suite]
        refused = sum(trial.outcome == "refused" for trial in mine)
        whole = sum(trial.outcome == "delivered unchanged" for trial in mine)
        result(f"channel: {suite}: of {len(mine)} faults {refused} refused, {whole} delivered unchanged, "
               f"{len(mine) - refused - whole} DELIVERED CHANGED")  # fmt: skip
    result(f"channel: {save(trials, folder)}")
    if not all(trial.sound for trial in trials):
        raise typer.Exit(1)


def _grid_tables(path: Path, overrides: list[str]) -> dict[str, Any]:
    """The run file's tables, where it asks for a sweep; else nothing."""
    from secsplit.runfile import read

    tables = read(path, overrides)
    return tables if tables.get("grid") else {}


def swept(tables: dict[str, Any], out: Path | None, jobs: int, executor: str, as_json: bool) -> None:
    """Carry out a sweep and show its settings."""
    from typing import get_args

    from audits.frontier import settings
    from audits.matrix import matrices_of, several_topologies
    from audits.sweep import Executor, sweep
    from secsplit.errors import RunError, nearest

    if executor not in get_args(Executor):
        raise RunError(f"--executor {executor!r}: {nearest(executor, get_args(Executor))}")
    folder = out or Path("runs") / str(tables.get("name", "run"))
    with progress() as tell:
        grid = sweep(tables, folder, jobs=jobs, executor=executor, tell=tell)  # type: ignore[arg-type]
    if as_json:
        result_json(grid.model_dump(mode="json"))
        return
    if several_topologies(grid):
        for matrix in matrices_of(grid):
            show_matrix(matrix)
        say("a score of 0 is chance and 1 is everything; letters say why there is none")
        result(f"sweep: {folder / 'grid.json'}")
        return
    show_settings(settings(grid))
    result(f"sweep: {folder / 'grid.json'}")
    say(f"choose with: secsplit advise {folder} --policy POLICY.toml")


def advise(
    folder: Folder,
    policy: Annotated[Path, typer.Option("--policy", metavar="POLICY.toml", help="what a setting must meet")],
    as_json: Json = False,
) -> None:
    """Of a sweep's settings, the one to take under a policy, and what was not measured."""
    from audits.frontier import advise as choose
    from audits.gate import passed
    from audits.policy import load
    from audits.sweep import Grid

    found = choose(Grid.load(folder), load(policy), folder)
    if as_json:
        result_json(found.model_dump(mode="json"))
    else:
        show_settings(found.settings)
        for name in found.meets:
            result(f"meets the policy: {name}")
        result(f"take: {found.chosen or 'none'}; {found.because}")
        for outcome in found.held_out:
            result(f"held out, {outcome.state}  {outcome.id}: {outcome.text}")
        for line in found.not_measured:
            result(f"not measured: {line}")
    if found.chosen is None or (found.held_out and not passed(found.held_out)):
        raise typer.Exit(1)


def report(
    folder: Folder,
    policy: Annotated[Path | None, typer.Option("--policy", metavar="POLICY.toml", help="give a verdict by it")] = None,
    setting: Annotated[str | None, typer.Option("--setting", help="of a sweep: which setting")] = None,
    as_pdf: Annotated[bool, typer.Option("--pdf", help="also a tagged PDF; needs secsplit[pdf]")] = False,
    as_json: Json = False,
) -> None:
    """Write the report of an audited run: page, JSON and schema, model card, DPIA fields."""
    import json

    files = reported(folder, policy, setting, as_pdf=as_pdf)
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
    with progress() as tell:
        found = audit_with_control(finished, audit_spec(finished.run), tell, shelf=Shelf(folder / "cells"))
    found.save(folder)
    return found


def gate(
    folder: Folder,
    policy: Annotated[Path, typer.Option("--policy", metavar="POLICY.toml", help="the rules")],
    setting: Annotated[
        str | None, typer.Option("--setting", help="of a sweep: which setting, on held-out seeds")
    ] = None,
    as_json: Json = False,
) -> None:
    """Hold an audited run against a policy: exit 1 where a rule fails or its evidence is missing."""
    from audits.gate import passed
    from audits.junit import junit
    from audits.policy import load
    from audits.sarif import sarif
    from secsplit.rundir import write_atomically

    rules = load(policy)
    outcomes = judged(folder, rules, setting)
    write_atomically(folder / "gate.sarif", sarif(rules, outcomes).encode())
    write_atomically(folder / "gate.junit.xml", junit(rules, outcomes))
    if as_json:
        result_json({"policy": rules.name, "passed": passed(outcomes), "rules": [o.model_dump() for o in outcomes]})
    else:
        for outcome in outcomes:
            show_outcome(outcome)
        failed = sum(outcome.state == "fail" for outcome in outcomes)
        result(f"{'passed' if passed(outcomes) else 'failed'}: {failed} of {len(outcomes)} rules fail")
        say(f"every reason: {folder / 'gate.sarif'} and {folder / 'gate.junit.xml'}")
    if not passed(outcomes):
        raise typer.Exit(1)


def seal(
    folder: Folder,
    key: Annotated[Path, typer.Option("--key", metavar="NAME.key", help="the site's private key")],
) -> None:
    """Sign a run's evidence and report as one site; what is sealed can be verified by anybody."""
    from audits.seal import seal as sign
    from secsplit.commands.keys import unlock

    me = unlock(key)
    result(str(sign(folder, me)))
    say(f"signed by {me.public.name}: {me.public.fingerprint}; tell it to whoever verifies, by another way")


def verify(
    folder: Folder,
    signer: Annotated[list[str] | None, typer.Option("--signer", help="a fingerprint that must have signed")] = None,
    as_json: Json = False,
) -> None:
    """Check logs, weights, files and signatures offline; exit 1 naming the first bad line of each."""
    from audits.grid import POINTS
    from audits.verify import verify as check_all

    checks = check_all(folder, signer or ())
    if as_json:
        result_json([check.model_dump() for check in checks])
    else:
        of_points = [check for check in checks if check.ok and check.what.startswith(f"{POINTS}/")]
        for check in checks:
            if check not in of_points:
                result(f"{'ok ' if check.ok else 'BAD'}  {check.what}: {check.text}")
        if of_points:
            result(f"ok   {POINTS}: {len(of_points)} sealed files as they were sealed")
    if not all(check.ok for check in checks):
        raise typer.Exit(1)


def judged(folder: Path, policy: Policy, setting: str | None) -> Sequence[Outcome]:
    """The outcomes for a run's folder, or for one setting of a sweep: on held-out seeds where there are any."""
    from audits.frontier import judge_setting
    from audits.gate import Evidence, judge
    from audits.sweep import GRID, Grid
    from secsplit.errors import RunError

    if not (folder / GRID).exists():
        if setting is not None:
            raise RunError(f"{folder}: --setting {setting!r} is for a sweep, and this is one run")
        return judge(policy, Evidence.open(folder))
    grid = Grid.load(folder)
    if setting is None:
        raise RunError(
            f"{folder}: a sweep; say which setting is judged: --setting one of {', '.join(map(repr, grid.settings))}"
        )
    return judge_setting(policy, grid, folder, setting, held_out=True if grid.held_out else None)


def reported(
    folder: Path, policy: Path | None = None, setting: str | None = None, *, as_pdf: bool = False
) -> Sequence[Path]:
    """Write the report of an audited run's folder; the files it wrote."""
    from audits.finished import Finished
    from audits.policy import load
    from audits.privacy import Audit
    from audits.report.assemble import report_of, report_of_sweep
    from audits.report.write import write
    from audits.sweep import GRID, Grid

    rules = load(policy) if policy else None
    if (folder / GRID).exists():
        return write(report_of_sweep(Grid.load(folder), folder, setting, policy=rules), folder, as_pdf=as_pdf)
    found = Audit.load(folder)
    finished = Finished.open(folder, whole=False)  # what was attacked was checked then, and is the same by its digest
    found.belongs_to(finished.run.digest().hex(), finished.fingerprint)
    return write(report_of(finished, found, policy=rules), folder, as_pdf=as_pdf)


def folder_of(target: Path, overrides: list[str], out: Path | None = None) -> Path:
    """The finished run's folder; a run file is first trained, simulated, where its folder is not there yet."""
    if target.is_dir():
        return target
    from secsplit.run import load
    from secsplit.training import train_simulated

    run = load(target, overrides)
    folder = out or Path("runs") / run.file.name
    if not (folder / "digest").exists() or (folder / "digest").read_text().strip() != run.digest().hex():
        say(f"training {run.file.name} first")
        train_simulated(run, folder, lambda party, news: None)
    return folder
