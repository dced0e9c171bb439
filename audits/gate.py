"""A policy held against the evidence in a run's folder: each rule passes or fails, and what is missing fails.

Nothing here measures; it reads what the audit, the ledgers, the channels and the parties left.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from math import isfinite
from pathlib import Path
from typing import Any, Literal

from audits.channel import Trial
from audits.channel import load as load_trials
from audits.config import audit_spec
from audits.dp_found import DpFound
from audits.findings import Severity
from audits.frozen import Frozen
from audits.leakage import METRICS, Leakage
from audits.policy import (
    SCORE,
    AnyRule,
    ChannelRule,
    ControlRule,
    EpsilonAuditRule,
    EpsilonRule,
    EvidenceRule,
    LeakageRule,
    Policy,
    UtilityRule,
)
from audits.privacy import Audit, Cell, chosen
from audits.spent import Spent, spent
from audits.utility import utilities
from secsplit.claims import EVERYONE
from secsplit.errors import nearest
from secsplit.forecast import forecasts
from secsplit.method import AGGREGATOR
from secsplit.run import Run
from secsplit.rundir import RunDir


class Outcome(Frozen):
    """One rule and what became of it. reasons: what decided; evidence: where that is, JSON pointers into audit.json."""

    id: str
    asks: str
    state: Literal["pass", "fail"]
    severity: Severity
    text: str
    remedy: str
    reasons: tuple[str, ...] = ()
    evidence: tuple[str, ...] = ()


@dataclass(frozen=True)
class Evidence:
    """All that a gate may read of one finished, audited run."""

    run: Run
    audit: Audit
    folder: RunDir

    @classmethod
    def open(cls, path: Path) -> Evidence:
        """Raises RunError where the folder is no run, was not audited, or holds the audit of another run."""
        folder = RunDir.open(path)
        run, audit = folder.run(), Audit.load(path)
        audit.belongs_to(run.digest().hex())
        return cls(run, audit, folder)

    @cached_property
    def planned(self) -> tuple[tuple[str, str], ...]:
        """(attack, threat): every cell that the run's [audit] table asks for."""
        spec = audit_spec(self.run)
        attacks = chosen(spec)
        threats = spec.adversaries(
            self.run.topology,
            active=any(attack.needs.active for attack in attacks),
            averaged=bool(self.run.parties(AGGREGATOR)),
        )
        return tuple((attack.name, threat.name) for threat in threats for attack in attacks)

    @cached_property
    def cells(self) -> dict[tuple[str, str], tuple[int, Cell]]:
        return {(cell.attack, cell.threat): (i, cell) for i, cell in enumerate(self.audit.cells)}

    @cached_property
    def spent(self) -> tuple[Spent, ...]:
        return spent(self.folder)

    @cached_property
    def tested(self) -> DpFound | None:
        """What became of the claims that were put to the test."""
        return DpFound.load(self.folder.path, self.run.digest().hex())

    @cached_property
    def trials(self) -> tuple[Trial, ...]:
        """The faults that were committed on channels."""
        return load_trials(self.folder.path)


def judge(policy: Policy, evidence: Evidence) -> tuple[Outcome, ...]:
    """Every rule's outcome, in the policy's order."""
    return tuple(_judge(rule, evidence) for rule in policy.all)


def _judge(rule: AnyRule, evidence: Evidence) -> Outcome:
    match rule:
        case LeakageRule():
            problems = _leakage(rule, evidence)
        case EpsilonRule():
            problems = _epsilon(rule, evidence)
        case EpsilonAuditRule():
            problems = _epsilon_audit(evidence)
        case UtilityRule():
            problems = _utility(rule, evidence)
        case ChannelRule():
            problems = _channel(rule, evidence)
        case ControlRule():
            problems = _control(evidence)
        case EvidenceRule():
            problems = _evidence(evidence)
    found = list(problems)
    failed = [(text, at) for ok, text, at in found if not ok]
    decided = failed or [(text, at) for _, text, at in found]
    reasons = tuple(dict.fromkeys(text for text, _ in decided))
    return Outcome(
        id=rule.id, asks=rule.asks, state="fail" if failed else "pass", severity=rule.severity, remedy=rule.remedy,
        text="; ".join(reasons) or "nothing to object to", reasons=reasons,
        evidence=tuple(dict.fromkeys(at for _, at in decided if at)),
    )  # fmt: skip


Judged = Iterable[tuple[bool, str, str]]  # whether it is in order, in words, where in audit.json


def _leakage(rule: LeakageRule, evidence: Evidence) -> Judged:
    wanted = [(a, t) for a, t in evidence.planned if any(fnmatchcase(t, pattern) for pattern in rule.threats)]
    if "all" not in rule.attacks:
        wanted = [(a, t) for a, t in wanted if a in rule.attacks]
    judged = set()
    for key in wanted:
        at, cell = evidence.cells.get(key, (-1, None))
        if cell is None:
            yield False, f"no evidence of {key[0]} by {key[1]}: it was planned and is not there", ""
        elif cell.status == "failed":
            yield False, f"no evidence of {key[0]} by {key[1]}: it failed", f"/cells/{at}"
        elif cell.status == "ran" and cell.goal == rule.goal:
            for line in _figures(rule, cell, at):
                judged.add(key[0])
                yield line
    planned = {attack for attack, _ in evidence.planned}
    for name in dict.fromkeys(rule.attacks):
        if name != "all" and name not in judged:
            hint = "" if name in planned else f"; {nearest(name, planned)}"
            text = f"no evidence: attack {name!r} on the {rule.goal} ran for none of {', '.join(rule.threats)}{hint}"
            yield False, text, ""
    if not judged:
        yield False, f"no evidence: no attack on the {rule.goal} gave {rule.metric!r}", ""


def _figures(rule: LeakageRule, cell: Cell, at: int) -> Judged:
    """The figures of one cell that the rule speaks of; a cell without one is missing evidence."""
    found = [
        (i, leak)
        for i, leak in enumerate(cell.leakages)
        if (leak.headline and leak.score is not None if rule.metric == SCORE else leak.metric == rule.metric)
    ]
    if not found and (rule.metric == SCORE or "all" not in rule.attacks):
        yield False, f"no evidence: {cell.attack} by {cell.threat} has no figure {rule.metric!r}", f"/cells/{at}"
    for i, leak in found:
        worst = pessimistic_score(leak) if rule.metric == SCORE else leak.pessimistic
        name = f"{cell.attack} by {cell.threat}"
        where = f"/cells/{at}/leakages/{i}"
        if worst is None or not isfinite(worst):
            yield False, f"no evidence: {name} has no interval, n = {leak.n}", where
            continue
        ok = worst <= rule.max if rule.max is not None else rule.min is not None and worst >= rule.min
        end = "upper" if rule.metric == SCORE or METRICS[leak.metric].more else "lower"
        what = f"score of {leak.metric}" if rule.metric == SCORE else leak.metric
        if ok and leak.interval.startswith("range: "):  # of so few that it is no interval at 95%
            yield False, f"no evidence: {what} of {name} has no interval at 95%, n = {leak.n} {leak.unit}", where
            continue
        yield ok, f"{what} {worst:.3g} ({end} end of 95%, n = {leak.n}) by {name}", where


def pessimistic_score(leak: Leakage) -> float | None:
    """The score of the end of the interval that is worse for the patient; 0 where even that is at chance."""
    worst, ideal = leak.pessimistic, METRICS[leak.metric].ideal
    if worst is None or leak.chance is None or ideal is None or not isfinite(worst) or not isfinite(leak.chance):
        return None
    return min(1.0, max(0.0, (worst - leak.chance) / (ideal - leak.chance))) if ideal != leak.chance else 0.0


def _epsilon(rule: EpsilonRule, evidence: Evidence) -> Judged:
    told = [line for line in evidence.spent if line.protects == rule.protects and line.everyone]
    if not told:
        yield False, f"no evidence: no ledger charged anything for {rule.protects}", ""
    due = {f.role for f in forecasts(evidence.run) if f.protects == rule.protects and f.to == EVERYONE}
    for role in sorted(due):
        for party in evidence.run.parties(role):
            if not any(line.party == party for line in told):
                yield False, f"no evidence: {party} sent messages of its {rule.protects}, and left no account", ""
    for line in told:
        if line.epsilon is None:
            yield False, f"{line.party}: no finite epsilon ({'; '.join(line.why)})", ""
        elif line.delta > rule.delta:
            yield False, f"{line.party}: its delta is {line.delta:g}", ""
        else:
            yield line.epsilon <= rule.max, f"{line.party}: epsilon {line.epsilon:.4g} at delta {line.delta:g}", ""
    if evidence.tested is not None and evidence.tested.violations:
        yield False, "what the mechanism does contradicts its claim (audit --dp)", ""


def _epsilon_audit(evidence: Evidence) -> Judged:
    found = evidence.tested
    if found is None:
        yield False, "no evidence: no claim was put to the test; run secsplit audit --dp DIR", ""
        return
    if not (found.links or found.trainings):
        yield False, "no evidence: no claim was put to the test; run secsplit audit --dp DIR", ""
    tested = {link.role for link in found.links}
    for line in evidence.spent:
        role = evidence.run.file.parties[line.party].role
        if line.everyone and line.protects == "inputs" and line.epsilon is not None and role not in tested:
            yield False, f"no evidence: the epsilon that {line.party} claims for its inputs was not put to the test", ""
    for link in found.links:
        claimed = "nothing finite" if link.claimed is None else f"{link.claimed:.4g}"
        text = f"{link.mechanism}, {link.canaries} canaries: at least {link.lower:.3g}, claimed {claimed}, n = {link.n}"
        yield link.verdict != "violation" and not (link.claimed is not None and link.lower > link.claimed), text, ""
    for training in found.trainings:
        text = f"a whole training: at least {training.lower:.3g}, claimed {training.claimed:.4g}"
        yield training.verdict != "violation" and training.lower <= training.claimed, text, ""
    for named in found.reidentifications:
        text = f"re-identified {named.rate:.2%} (lower end {named.low:.2%}), allowed {named.bound:.2%}, n = {named.n}"
        yield named.verdict != "violation" and named.low <= named.bound, text, ""


def _utility(rule: UtilityRule, evidence: Evidence) -> Judged:
    told = utilities(evidence.folder)
    if not told:
        yield False, "no evidence: the network was not judged on test records", ""
    for objective in evidence.run.topology.objectives if told else ():
        if not any(line.objective == objective.name for line in told):
            yield False, f"no evidence: {objective.name} was not judged on test records", ""
    for line in told:
        if line.low is None:
            yield False, f"no evidence: {line.objective} has no accuracy at {line.party}", ""
        else:
            text = f"accuracy {line.low:.3g} (lower end of 95%, n = {line.n}) of {line.objective} at {line.party}"
            yield line.low >= rule.min, text, ""


def _channel(rule: ChannelRule, evidence: Evidence) -> Judged:
    told: dict[str, dict[str, Any]] = {party.name: party.channels() for party in evidence.folder.parties()}
    for party in evidence.run.file.parties:
        for peer in evidence.run.peers(party):
            facts = told.get(party, {}).get(peer)
            if not facts or not facts["channels"]:
                yield False, f"no evidence of a channel from {party} to {peer}", ""
                continue
            suites = {channel["suite"] for channel in facts["channels"]}
            allowed = not rule.suites or suites <= set(rule.suites)
            yield allowed, f"{party} to {peer}: {', '.join(sorted(suites))}", ""
            attacked = {trial.suite for trial in evidence.trials}
            for suite in sorted(suites - attacked if rule.attacked else ()):
                yield False, f"no evidence: no channel by {suite} was attacked; run secsplit audit --channel DIR", ""
    for trial in evidence.trials:
        if not trial.sound:
            yield False, f"a {trial.fault} in the {trial.during} got changed bytes delivered by {trial.suite}", ""


def _control(evidence: Evidence) -> Judged:
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in evidence.audit.cells:
        if cell.status == "ran":
            groups.setdefault((cell.goal, cell.threat), []).append(cell)
    for (goal, threat), cells in groups.items():
        if any(leak.leaks for cell in cells for leak in cell.leakages if leak.headline):
            continue
        names = ", ".join(cell.attack for cell in cells)
        able = [cell.attack for cell in cells if cell.control is not None and cell.control.leaks]
        if able:
            yield True, f"{', '.join(able)} by {threat} found the {goal} in the undefended control", ""
        else:
            yield False, f"nothing shows that {names} by {threat} could find any {goal} at all", ""


def _evidence(evidence: Evidence) -> Judged:
    for key in evidence.planned:
        at, cell = evidence.cells.get(key, (-1, None))
        if cell is None:
            yield False, f"{key[0]} by {key[1]} was planned and is not there", ""
        elif cell.status == "failed":
            yield False, f"{key[0]} by {key[1]} failed: {cell.because}", f"/cells/{at}"
        elif cell.status == "ran" and not cell.leakages:
            yield False, f"{key[0]} by {key[1]} ran and left no figure", f"/cells/{at}"
        elif cell.status == "not applicable" and (cell.leakages or not cell.because):
            yield (
                False,
                f"{key[0]} by {key[1]} says that it did not apply, and not why, or left figures",
                f"/cells/{at}",
            )
    if not any(cell.status == "ran" for cell in evidence.audit.cells):
        yield False, "no attack ran at all", ""


def passed(outcomes: Sequence[Outcome]) -> bool:
    """Whether every rule passed; of no rule, nothing passes."""
    return bool(outcomes) and all(outcome.state == "pass" for outcome in outcomes)
