"""What an epsilon audit found, as it lies in a run's folder for the report and the gate: `dp-audit.json`.

A bound here is a lower one: a claim above it is not thereby proven. Which of a record's messages a bound rests on is
said with it, so that the claim and the bound can be drawn over the steps of training.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from pathlib import Path

from audits.dp import EpsilonAudit, OneRun, Reidentification, Verdict
from audits.dp_run import DPAudit
from audits.frozen import Frozen
from secsplit.errors import RunError
from secsplit.run import Run
from secsplit.rundir import write_atomically

FILE = "dp-audit.json"
SCHEMA_VERSION = "1.0"


class After(Frozen):
    """The bound that a record's first messages give by themselves."""

    messages: int
    lower: float


class LinkFound(Frozen):
    """One noised link, by canaries. role: whose records; claimed: None where no finite epsilon is claimed."""

    mechanism: str
    role: str
    canaries: str
    claimed: float | None
    adjacency: str
    messages: int
    delta: float
    lower: float
    lower_clopper_pearson: float
    lower_gaussian: float
    confidence: float
    n: int
    verdict: Verdict
    over: tuple[After, ...]


class TrainingFound(Frozen):
    """One whole training, by its own canaries."""

    canaries: int
    guesses: int
    correct: int
    claimed: float
    delta: float
    lower: float
    confidence: float
    verdict: Verdict


class ReidentificationFound(Frozen):
    """How often a record was named among candidates, beside what the noise allows."""

    rate: float
    low: float
    high: float
    n: int
    candidates: int
    chance: float
    bound: float
    mu: float
    verdict: Verdict


class DpFound(Frozen):
    """Everything measured of a run's claims. digest: of the run."""

    schema_version: str = SCHEMA_VERSION
    digest: str
    links: tuple[LinkFound, ...]
    trainings: tuple[TrainingFound, ...]
    reidentifications: tuple[ReidentificationFound, ...]
    statements: tuple[str, ...]
    violations: int

    def save(self, folder: Path) -> Path:
        """Write it to the run's folder."""
        write_atomically(folder / FILE, self.model_dump_json(indent=1).encode())
        return folder / FILE

    @classmethod
    def load(cls, folder: Path, digest: str) -> DpFound | None:
        """What lies in a run's folder; None where claims were not put to the test. Raises RunError where it is of
        another run, or cannot be read."""
        path = folder / FILE
        if not path.exists():
            return None
        try:
            found = cls.model_validate_json(path.read_bytes())
        except ValueError as error:
            raise RunError(f"{path}: not an epsilon audit of version {SCHEMA_VERSION}: {error}") from None
        if found.digest != digest:
            raise RunError(f"{path}: of run {found.digest[:16]}, expected {digest[:16]}; audit with --dp anew")
        return found


def found_of(run: Run, audit: DPAudit) -> DpFound:
    """The audit of a run as it is written."""
    roles = {
        f"gaussian on {spec.edge}": spec.role(run.topology) for spec in run.file.defenses if spec.kind == "gaussian"
    }
    return DpFound(
        digest=run.digest().hex(),
        links=tuple(_link(each, roles) for each in audit.links),
        trainings=tuple(_training(each) for each in audit.trainings),
        reidentifications=tuple(_reidentification(each) for each in audit.reidentifications),
        statements=audit.statements,
        violations=audit.violations,
    )


def _link(a: EpsilonAudit, roles: Mapping[str, str]) -> LinkFound:
    low = a.lower
    return LinkFound(
        mechanism=a.mechanism, role=roles[a.mechanism], canaries=a.canaries, adjacency=a.adjacency,
        claimed=a.claimed if isfinite(a.claimed) else None, messages=a.releases, delta=low.delta, lower=low.epsilon,
        lower_clopper_pearson=low.clopper_pearson, lower_gaussian=low.gaussian, confidence=low.confidence, n=low.n,
        verdict=a.verdict, over=tuple(After(messages=n, lower=lower.epsilon) for n, lower in a.over),
    )  # fmt: skip


def _training(t: OneRun) -> TrainingFound:
    return TrainingFound(
        canaries=t.canaries, guesses=t.guesses, correct=t.correct, claimed=t.claimed, delta=t.delta, lower=t.lower,
        confidence=t.confidence, verdict=t.verdict,
    )  # fmt: skip


def _reidentification(r: Reidentification) -> ReidentificationFound:
    return ReidentificationFound(
        rate=r.rate, low=r.interval.low, high=r.interval.high, n=r.n, candidates=r.candidates, chance=r.chance,
        bound=r.bound, mu=r.mu, verdict=r.verdict,
    )  # fmt: skip
