"""Sections 8 and 9: the figures of every attack, how they read on one scale, and what the network is worth."""

from __future__ import annotations

from audits.findings import LEVELS
from audits.leakage import METRICS, Leakage, worst
from audits.matrix import matrix_of
from audits.privacy import AUDIT, Audit
from audits.report.model import LeakageSection, Level, MetricText, Scored, UtilitySection
from audits.statistics import LEVEL
from audits.utility import utilities
from secsplit.errors import RunError
from secsplit.run import Run
from secsplit.rundir import RunDir


def leakage_of(audit: Audit, run: Run) -> LeakageSection:
    """Every cell, and its headline figures from chance to everything. Raises RunError where a cell is missing."""
    try:
        matrix = matrix_of(audit, setting=run.file.name, topology=run.topology.name)
    except ValueError as error:
        raise RunError(f"{AUDIT}: {error}: evidence is missing; audit this run anew") from None
    return LeakageSection(
        worst_label=_pointer(audit, "label"), worst_input=_pointer(audit, "input"), cells=audit.cells,
        matrix=matrix, hidden=audit.hidden,
        seed=audit.seed, evidence=audit.evidence, confidence=LEVEL,
        levels=tuple(Level(severity=name, least=least) for least, name in LEVELS),
        metrics={
            name: MetricText(title=m.title, about=m.about, percent=m.percent, more=m.more, ideal=m.ideal)
            for name, m in METRICS.items()
        },
        scores=tuple(
            scored
            for i, cell in enumerate(audit.cells)
            for j, leak in enumerate(cell.leakages)
            if leak.headline and (scored := _scored(leak, f"/leakage/cells/{i}/leakages/{j}")) is not None
        ),
    )  # fmt: skip


def _scored(leak: Leakage, at: str) -> Scored | None:
    """None where the figure has no scale from chance to everything."""
    metric, chance, value = METRICS[leak.metric], leak.chance, leak.score
    if value is None or chance is None or metric.ideal is None:
        return None
    span = metric.ideal - chance
    ends = [leak.value if end is None else end for end in (leak.low, leak.high)]
    low, high = sorted(min(1.0, max(0.0, (end - chance) / span)) for end in ends)
    return Scored(
        at=at, attack=leak.attack, threat=leak.threat, goal=leak.goal, metric=metric.title, low=low, value=value,
        high=high,
    )  # fmt: skip


def _pointer(audit: Audit, goal: str) -> str | None:
    leak = worst(leak for leak in audit.leakages if leak.goal == goal)
    for i, cell in enumerate(audit.cells):
        for j, other in enumerate(cell.leakages):
            if leak is other:
                return f"/leakage/cells/{i}/leakages/{j}"
    return None


def utility_of(folder: RunDir) -> UtilitySection:
    """Each objective on test records."""
    missing = ("the same network trained without a split", "each site's training on its own records alone")
    return UtilitySection(results=utilities(folder), not_measured=missing)
