"""The report as data: its fourteen sections, each with an id that the page, the PDF and the JSON share.

This is the single source: the page is rendered from the JSON and from nothing else. Fields that only the controller can
fill stay None and are shown empty. The JSON schema is published beside every report (`report.schema.json`).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from audits.channel import Trial
from audits.dp_found import DpFound
from audits.findings import Finding
from audits.frontier import Advice, Setting
from audits.frozen import Frozen
from audits.gate import Outcome
from audits.matrix import Matrix
from audits.privacy import Cell, ThreatFacts
from audits.spent import Spent
from audits.utility import Utility

SCHEMA_VERSION = "1.0"
State = Literal["pass", "fail", "not run"]


class FreeText(Frozen):
    """A question that only the controller can answer."""

    id: str
    question: str
    reference: str
    answer: str | None = None


class Verdict(Frozen):
    """1. In sentences that a data-protection officer can quote."""

    state: State
    headline: str
    sentences: tuple[str, ...]
    gates: tuple[Outcome, ...] = ()
    policy: str | None = None


class PartyFacts(Frozen):
    name: str
    role: str
    segments: tuple[str, ...]
    columns: tuple[str, ...]
    labels: tuple[str, ...]


class Flow(Frozen):
    """One tensor that crossed from a party to another, over the whole run. shape: of one message (batch first)."""

    sender: str
    receiver: str
    kind: str
    title: str
    about: str
    edge: str
    tensor: str
    dtype: str
    shape: tuple[int, ...]
    messages: int
    bytes: int


class Node(Frozen):
    """A segment in the drawing of the topology."""

    name: str
    role: str
    column: int  # distance from the data
    inputs: tuple[str, ...]


class Scope(Frozen):
    """2. Who takes part, and what leaves each site."""

    topology: str
    about: str
    method: str
    method_about: str
    parties: tuple[PartyFacts, ...]
    nodes: tuple[Node, ...]
    crossings: int  # connections from a role to another
    flows: tuple[Flow, ...]
    recorded: str  # what of the messages was kept for the audit


class Site(Frozen):
    name: str
    train: int
    test: int
    classes: dict[str, dict[str, int]]  # label -> class -> training records


class Data(Frozen):
    """4. Whose data, how much of it, and how it is shared among the sites."""

    name: str
    source: str
    licence: str
    about: str
    real_patients: bool
    unit: str
    features: int
    sites: tuple[Site, ...]


class ThreatText(ThreatFacts):
    """5. An adversary, in words."""

    behaves: str
    knowledge: tuple[str, ...]


class Link(Frozen):
    """A channel as one of its ends tells of it."""

    party: str
    peer: str
    suite: str
    own_fingerprint: str
    peer_fingerprint: str
    connections: int  # more than one where it broke and was resumed
    resent: int  # messages
    bytes_sent: int
    bytes_received: int
    rekeys: int
    refused: int
    padded: bool


class Attacked(Frozen):
    """What became of the faults that a tap committed on channels of one suite. used: by a link of this run."""

    suite: str
    used: bool
    faults: int
    refused: int
    unchanged: int  # delivered whole, for the fault changed nothing
    changed: int  # delivered changed: none may be


class Channel(Frozen):
    """6. How the messages were protected on the way, and how channels of those suites stood attack."""

    encrypted: bool
    about: str
    links: tuple[Link, ...]
    still_visible: tuple[str, ...]
    attacked: tuple[Attacked, ...]
    trials: tuple[Trial, ...]


class Charged(Spent):
    """A line of a ledger, and whose records it is about."""

    site: str


class EpsilonPoint(Frozen):
    """After an epoch: what is claimed, and the lower bound that canaries gave (None: not measured then)."""

    epoch: int
    step: int
    claimed: float | None
    lower: float | None


class EpsilonCurve(Frozen):
    """Epsilon of one role's records against everyone together, over the training."""

    role: str
    protects: str
    delta: float
    points: tuple[EpsilonPoint, ...]


class Dp(Frozen):
    """7. What the ledgers charged, what they do not cover, and what became of the claims that were put to the test."""

    spent: tuple[Charged, ...]
    about: str
    not_covered: tuple[str, ...]
    curves: tuple[EpsilonCurve, ...]
    tested: DpFound | None


class MetricText(Frozen):
    """What a figure measures. ideal: a total leak; more: whether larger is worse for the patient."""

    title: str
    about: str
    percent: bool
    more: bool
    ideal: float | None


class Scored(Frozen):
    """A headline figure and the ends of its interval on the scale from chance (0) to everything (1).

    at: where the figure itself lies.
    """

    at: str
    attack: str
    threat: str
    goal: str
    metric: str
    low: float
    value: float
    high: float


class Level(Frozen):
    """From which score on a leak is called so."""

    severity: str
    least: float


class LeakageSection(Frozen):
    """8. What the attacks found. hidden: reconstructions of real patients were made and are not shown."""

    worst_label: str | None  # JSON pointer of the worst figure about labels
    worst_input: str | None
    cells: tuple[Cell, ...]
    matrix: Matrix
    hidden: bool
    seed: int
    evidence: str  # fingerprint of the transcripts
    confidence: float  # of every interval
    levels: tuple[Level, ...]
    metrics: dict[str, MetricText]
    scores: tuple[Scored, ...]


class UtilitySection(Frozen):
    """9. What the trained network is worth."""

    results: tuple[Utility, ...]
    not_measured: tuple[str, ...]


class Traffic(Frozen):
    """Bytes that crossed in one part of the run."""

    first_step: int
    last_step: int
    forward: int  # smashed data, outputs, labels
    backward: int  # gradients
    other: int  # weights and control messages


class Cost(Frozen):
    """10. What it took."""

    bytes: int
    messages: int
    forward: int
    backward: int
    other: int
    timeline: tuple[Traffic, ...]
    not_measured: tuple[str, ...]


class Hazard(Frozen):
    """A line of the checklist. state: what this audit can say of it."""

    id: str
    question: str
    source: str
    state: Literal["assessed", "open", "for the controller"]
    text: str


class Axis(Frozen):
    """A key of the run file that the sweep varied, and its values in their order."""

    name: str
    values: tuple[str, ...]


class SweepSection(Frozen):
    """What a sweep found of its settings, over seeds. shown: the setting that the rest of this report is about."""

    shown: str
    seed: int
    seeds: tuple[int, ...]
    held_out: tuple[int, ...]
    control: str | None
    axes: tuple[Axis, ...]
    settings: tuple[Setting, ...]
    advice: Advice | None
    matrices: tuple[Matrix, ...] = ()


class Residual(Frozen):
    """11. What remains."""

    findings: tuple[Finding, ...]
    hazards: tuple[Hazard, ...]


class Reproduction(Frozen):
    """12. How to come to the same numbers."""

    digest: str
    command: str
    seed: int
    audit_seed: int
    threads: int
    versions: dict[str, str]
    run_file: str


class SignOff(Frozen):
    """13. For the people who answer for it."""

    fields: tuple[FreeText, ...]
    triggers: tuple[str, ...]


class Term(Frozen):
    term: str
    meaning: str


class Report(Frozen):
    """The whole report, in the order it is read."""

    schema_version: str = SCHEMA_VERSION
    title: str
    made: str = Field(description="UTC, ISO 8601")
    verdict: Verdict
    scope: Scope
    purpose: tuple[FreeText, ...]
    data: Data
    threats: tuple[ThreatText, ...]
    channel: Channel
    dp: Dp
    leakage: LeakageSection
    utility: UtilitySection
    cost: Cost
    sweep: SweepSection | None = None
    residual: Residual
    reproduction: Reproduction
    sign_off: SignOff
    glossary: tuple[Term, ...]
