"""What a reader must act on: findings drawn from the leakages, from what the topology sends in clear, and from gaps.

A finding has an id that stays the same from run to run, a severity, the evidence it rests on, and a remedy. An attack
that found nothing makes no finding, and is never called a proof of safety.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from audits.channel import Trial
from audits.dp_found import DpFound
from audits.frozen import Frozen
from audits.leakage import METRICS, Leakage
from audits.privacy import Audit
from secsplit.message import Kind
from secsplit.topology import Topology

Severity = Literal["critical", "high", "medium", "low", "note"]
SEVERITIES: tuple[Severity, ...] = ("critical", "high", "medium", "low", "note")
LEVELS: tuple[tuple[float, Severity], ...] = ((0.8, "critical"), (0.5, "high"), (0.2, "medium"), (0.0, "low"))

REMEDIES = {
    "label": "Noise the labels before training (randomised response gives a guarantee for any number of epochs), "
    "noise the returned gradients, or keep the loss with whoever may know the labels. Then audit again.",
    "input": "Cut deeper or make the cut narrower, clip and noise what crosses it, send less of it. Then audit again.",
    "attribute": "Cut deeper, or share fewer features between tasks; what the task needs will still leak. Audit again.",
    "membership": "Train with differential privacy, or with fewer passes over each record. Then audit again.",
    "distinguish": "Raise the noise, or correct the accounting: the claimed epsilon is contradicted.",
    "traffic": "Pad messages to one size and send at fixed times. Then audit again.",
}


class Finding(Frozen):
    """evidence: JSON pointers into the audit's file, or "" where the topology itself is the evidence."""

    id: str
    severity: Severity
    title: str
    text: str
    remedy: str
    evidence: tuple[str, ...] = ()


def findings(
    topology: Topology, audit: Audit, *, tested: DpFound | None = None, trials: Sequence[Trial] = ()
) -> tuple[Finding, ...]:
    """All findings, the severest first. tested: what became of claims of noise; trials: faults on channels."""
    found = [*_in_clear(topology), *_leaks(audit), *_gaps(audit), *_contradicted(tested), *_delivered(trials)]
    return tuple(sorted(found, key=lambda finding: (SEVERITIES.index(finding.severity), finding.id)))


def severity_of(leak: Leakage) -> Severity | None:
    """How severe a leak is, by its score; None where it does not exceed chance."""
    if not leak.leaks or leak.score is None:
        return None
    return next(severity for least, severity in LEVELS if leak.score >= least)


def _in_clear(topology: Topology) -> Iterator[Finding]:
    for crossing in topology.crossings:
        if crossing.kind is Kind.LABELS:
            yield Finding(
                id=f"labels-sent/{crossing.edge}", severity="high",
                title=f"The {crossing.receiver} is sent the labels",
                text=f"By design the {crossing.sender} sends every training label of {crossing.edge!r} to the "
                f"{crossing.receiver}, who needs no attack to read them. Encryption protects them on the way, not from "
                f"the {crossing.receiver}.",
                remedy="Use a U-shaped configuration, or noise the labels before training, unless the receiver may "
                "know them.",
            )  # fmt: skip


def _leaks(audit: Audit) -> Iterator[Finding]:
    """One finding for each attack and threat: its worst headline figure."""
    for index, cell in enumerate(audit.cells):
        rated = [(i, leak, s) for i, leak in enumerate(cell.leakages) if leak.headline and (s := severity_of(leak))]
        if not rated:
            continue
        at, leak, severity = min(rated, key=lambda item: SEVERITIES.index(item[2]))
        metric = METRICS[leak.metric]
        yield Finding(
            id=f"leak/{cell.attack}/{cell.threat.replace(' ', '-')}", severity=severity,
            title=f"{_SECRET[leak.goal]} {leak.column} can be inferred by the {_adversary(audit, cell.threat)}",
            text=f"The attack {cell.attack!r} ({cell.paper}) reaches {metric.title.lower()} "
            f"{_shown(leak, leak.value)}, where {leak.chance_is} reaches {_shown(leak, leak.chance)} "
            f"(n = {leak.n} {leak.unit}).",
            remedy=REMEDIES[leak.goal], evidence=(f"/cells/{index}/leakages/{at}",),
        )  # fmt: skip


def _gaps(audit: Audit) -> Iterator[Finding]:
    for index, cell in enumerate(audit.cells):
        if cell.status == "failed":
            yield Finding(
                id=f"gap/{cell.attack}/{cell.threat.replace(' ', '-')}", severity="medium",
                title=f"The attack {cell.attack!r} failed, so what it would find is unknown",
                text=f"{cell.because}. This is missing evidence and not good news.",
                remedy="Find out why it failed and audit again.", evidence=(f"/cells/{index}",),
            )  # fmt: skip


def _contradicted(tested: DpFound | None) -> Iterator[Finding]:
    if tested is not None and tested.violations:
        yield Finding(
            id="epsilon-contradicted", severity="critical",
            title="A claimed epsilon is contradicted by what its mechanism does",
            text="; ".join(line for line in tested.statements if line.endswith(": violation")) + ".",
            remedy=REMEDIES["distinguish"],
        )  # fmt: skip


def _delivered(trials: Sequence[Trial]) -> Iterator[Finding]:
    suites = sorted({trial.suite for trial in trials if not trial.sound})
    if suites:
        yield Finding(
            id="channel-unsound", severity="critical", title="A channel delivers what was changed on the wire",
            text=f"By {', '.join(suites)} a fault on the wire got changed bytes delivered.",
            remedy="Do not use this channel; report it to whoever maintains it.",
        )  # fmt: skip


_SECRET = {
    "label": "The label", "attribute": "The attribute", "input": "The records in", "membership": "Membership in",
    "distinguish": "The difference in", "traffic": "The label",
}  # fmt: skip


def _adversary(audit: Audit, name: str) -> str:
    threat = next(t for t in audit.threats if t.name == name)
    return f"{threat.behaviour} " + " with the ".join(threat.who) if threat.who else "eavesdropper on the network"


def _shown(leak: Leakage, value: float | None) -> str:
    if value is None:
        return "nothing"
    return f"{value:.1%}" if METRICS[leak.metric].percent else f"{value:.3g}"
