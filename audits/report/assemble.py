"""From a finished run and its audit to a Report: what is measured is taken over, what is not is said to be missing.

Here every sentence is made from the evidence; nothing that only a controller can know is made up.
"""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from pathlib import Path

import torch

from audits.channel import load as load_trials
from audits.dp_found import DpFound
from audits.findings import findings
from audits.finished import Finished
from audits.frontier import advise, settings
from audits.gate import Evidence
from audits.grid import POINTS, spelled
from audits.matrix import matrices_of, several_topologies
from audits.policy import Policy
from audits.privacy import Audit
from audits.report import words
from audits.report.found import leakage_of, utility_of
from audits.report.hazards import hazards
from audits.report.model import Axis, FreeText, Report, Reproduction, Residual, SignOff, SweepSection, Term
from audits.report.protection import channel_of, dp_of
from audits.report.scope import cost_of, data_of, scope_of, threat_of
from audits.report.verdict import verdict_of
from audits.sweep import Grid
from secsplit import __version__
from secsplit.errors import RunError, nearest
from secsplit.run import Run
from secsplit.rundir import RunDir


def report_of(
    finished: Finished,
    audit: Audit,
    *,
    policy: Policy | None = None,
    sweep: SweepSection | None = None,
    now: datetime | None = None,
) -> Report:
    """The report of a run that lies in a folder. policy: whose rules the verdict is by; None: there is no verdict.

    sweep: the settings that it is one of.
    """
    assert finished.folder is not None
    folder, run = RunDir.open(finished.folder), finished.run
    tested, trials = DpFound.load(finished.folder, run.digest().hex()), load_trials(finished.folder)
    found = findings(run.topology, audit, tested=tested, trials=trials)
    channel = channel_of(folder, trials)
    return Report(
        title=f"Privacy report of {run.file.name!r}",
        made=(now or datetime.now(UTC)).replace(microsecond=0).isoformat(),
        verdict=verdict_of(audit, found, policy, Evidence(run, audit, folder)),
        scope=scope_of(finished),
        purpose=tuple(FreeText(id=i, question=q, reference=r) for i, q, r in words.PURPOSE),
        data=data_of(finished),
        threats=tuple(threat_of(facts) for facts in audit.threats),
        channel=channel,
        dp=dp_of(finished, folder, tested),
        leakage=leakage_of(audit, run),
        utility=utility_of(folder),
        cost=cost_of(finished),
        sweep=sweep,
        residual=Residual(findings=found, hazards=hazards(finished, audit, channel=channel, sweep=sweep)),
        reproduction=_reproduction(run, audit, finished.folder),
        sign_off=SignOff(
            fields=tuple(FreeText(id=i, question=q, reference=r) for i, q, r in words.SIGN_OFF),
            triggers=words.TRIGGERS,
        ),
        glossary=tuple(Term(term=t, meaning=m) for t, m in words.GLOSSARY),
    )


def report_of_sweep(
    grid: Grid, folder: Path, setting: str | None = None, *, policy: Policy | None = None, now: datetime | None = None
) -> Report:
    """The report of one setting of a sweep, the advised one where a policy chooses, beside all others.

    It shows a seed that judged, where there is one. Raises RunError where there is no such setting.
    """
    advice = advise(grid, policy, folder) if policy else None
    name = setting or (advice.chosen if advice else None) or grid.settings[0]
    if name not in grid.settings:
        raise RunError(f"{folder}: no setting {name!r}; {nearest(name, grid.settings)}")
    point = (grid.of(name, held_out=True) or grid.of(name))[0]
    section = SweepSection(
        shown=name,
        seed=point.seed,
        seeds=grid.seeds,
        held_out=grid.held_out,
        control=grid.control,
        axes=tuple(
            Axis(name=axis, values=tuple(dict.fromkeys(spelled(point.at[axis]) for point in grid.points)))
            for axis in grid.axes
        ),
        settings=settings(grid),
        advice=advice,
        matrices=matrices_of(grid) if several_topologies(grid) else (),
    )
    finished = Finished.open(folder / POINTS / point.key, whole=False)
    return report_of(finished, point.audit, policy=policy, sweep=section, now=now)


def _reproduction(run: Run, audit: Audit, folder: Path) -> Reproduction:
    return Reproduction(
        digest=run.digest().hex(), command="secsplit train run.toml && secsplit audit DIR && secsplit report DIR",
        seed=run.file.train.seed, audit_seed=audit.seed, threads=run.file.train.threads,
        versions={"secsplit": __version__, "torch": torch.__version__, "python": platform.python_version()},
        run_file=(folder / "run.toml").read_text(),
    )  # fmt: skip
